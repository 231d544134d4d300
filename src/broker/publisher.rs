//! Publishing with confirms.
//!
//! Only `Ok` means that the broker has the message, in the queue it was meant for. Any error may still have been a success
//! that nobody heard of, so whoever repeats a publish must be safe against doubles (they are: claims are fenced, events deduped).
//!
//! A channel belongs to one worker and carries one window of messages at a time: everything that waits is sent, then all of its
//! confirms are awaited. That keeps the broker busy, and it is what makes returned messages safe to read: the client library
//! attaches a returned message to whichever confirm comes next, so within a window returns are matched by message id.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::link::{Link, LinkError, LinkState, within};
use super::meter;
use super::topology::{Names, Queue, Route};

/// How many waiting messages share one window.
const WINDOW: usize = 512;

/// A message to publish.
#[derive(Clone)]
pub struct Outgoing {
    /// Where it goes.
    pub route: Route,
    /// What it is: the AMQP `type`, at most 255 bytes.
    pub kind: &'static str,
    /// The AMQP `message_id`; different for each message.
    pub id: Uuid,
    /// The W3C trace context it belongs to.
    pub traceparent: Option<String>,
    /// The JSON.
    pub body: Bytes,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("route", &self.route)
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why the broker is not known to have a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no connection, it was lost meanwhile, or the broker accepts no messages now.
    #[error("the broker is not available")]
    Disconnected,
    /// No confirm came in time.
    #[error("the broker did not confirm in time")]
    TimedOut,
    /// The queue does not exist and could not be made; of an event: nobody listens.
    #[error("no queue takes the message")]
    Unroutable,
    /// The broker answered that it did not keep the message: a full or failing queue.
    #[error("the broker refused the message")]
    Refused,
}

impl PublishError {
    fn label(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::TimedOut => "timed_out",
            Self::Unroutable => "unroutable",
            Self::Refused => "refused",
        }
    }
}

pub(crate) type Published = Result<(), PublishError>;

/// Messages of one caller, answered together.
pub(crate) struct Job {
    pub(crate) messages: Vec<Outgoing>,
    pub(crate) reply: oneshot::Sender<Vec<Published>>,
}

/// Owns one channel.
pub(crate) struct Worker {
    jobs: mpsc::Receiver<Job>,
    links: watch::Receiver<Option<Arc<Link>>>,
    states: watch::Receiver<LinkState>,
    names: Names,
    limit: Duration,
    open: Option<(Arc<Link>, Channel)>,
}

/// What one try says about a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tried {
    Waiting,
    Done(Published),
    /// The channel was closed under it while the connection lived on.
    ChannelClosed,
}

impl Worker {
    pub(crate) fn new(
        jobs: mpsc::Receiver<Job>,
        links: watch::Receiver<Option<Arc<Link>>>,
        states: watch::Receiver<LinkState>,
        names: Names,
        limit: Duration,
    ) -> Self {
        Self { jobs, links, states, names, limit, open: None }
    }

    /// Publishes until nobody can ask for it any more.
    pub(crate) async fn run(mut self) {
        while let Some(job) = self.jobs.recv().await {
            let mut waiting = job.messages.len();
            let mut jobs = vec![job];
            while waiting < WINDOW
                && let Ok(job) = self.jobs.try_recv()
            {
                waiting += job.messages.len();
                jobs.push(job);
            }
            // A caller whose time is over does not get its message published behind its back.
            jobs.retain(|job| !job.reply.is_closed());
            self.window(jobs).await;
        }
    }

    async fn window(&mut self, jobs: Vec<Job>) {
        let messages: Vec<&Outgoing> = jobs.iter().flat_map(|job| &job.messages).collect();
        let mut answers = self.publish(&messages).await.into_iter();
        for (message, answer) in messages.iter().zip(answers.as_slice()) {
            meter::published(message.route.kind(), answer.map_or_else(PublishError::label, |()| "ok"), 1);
        }
        let counts: Vec<usize> = jobs.iter().map(|job| job.messages.len()).collect();
        for (job, count) in jobs.into_iter().zip(counts) {
            // The caller may have stopped waiting; the answer is then nobody's.
            let _unheard = job.reply.send(answers.by_ref().take(count).collect());
        }
    }

    /// Publishes `messages`; what failed because something was deleted on the broker is made again and tried once more.
    async fn publish(&mut self, messages: &[&Outgoing]) -> Vec<Published> {
        let deadline = Instant::now() + self.limit;
        let mut answers = vec![Tried::Waiting; messages.len()];
        self.attempt(messages, &mut answers, deadline).await;
        let unroutable = Tried::Done(Err(PublishError::Unroutable));
        let mut missing: HashSet<Option<Queue>> = HashSet::new();
        for (message, answer) in messages.iter().zip(&mut answers) {
            if *answer == unroutable {
                // An event that nobody listens for is no fault.
                let Some(queue) = message.route.queue() else { continue };
                missing.insert(Some(queue));
            } else if *answer == Tried::ChannelClosed {
                missing.insert(None);
            } else {
                continue;
            }
            *answer = Tried::Waiting;
        }
        if !missing.is_empty() && self.rebuild(missing).await {
            self.attempt(messages, &mut answers, deadline).await;
        }
        answers
            .into_iter()
            .map(|answer| match answer {
                Tried::Done(answer) => answer,
                Tried::Waiting | Tried::ChannelClosed => Err(PublishError::Disconnected),
            })
            .collect()
    }

    async fn rebuild(&mut self, missing: HashSet<Option<Queue>>) -> bool {
        let Some(link) = self.links.borrow().clone() else {
            return false;
        };
        link.forget();
        self.names.announce_missing(missing);
        match link.ensure_base(&self.names).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the exchanges could not be declared again");
                self.suspect(&link, &error);
                false
            }
        }
    }

    /// Sends every message that still waits for an answer and gives it one.
    async fn attempt(&mut self, messages: &[&Outgoing], answers: &mut [Tried], deadline: Instant) {
        let Some(link) = self.links.borrow().clone().filter(|_| *self.states.borrow() == LinkState::Connected) else {
            return settle(answers, Err(PublishError::Disconnected));
        };
        self.declare(&link, messages, answers).await;
        let channel = match self.channel(&link).await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%error, "no channel to publish on");
                self.suspect(&link, &error);
                return settle(answers, Err(PublishError::Disconnected));
            }
        };
        let started = Instant::now();
        let mut flights: Vec<Flight<'_>> = Vec::with_capacity(messages.len());
        for (index, (message, answer)) in messages.iter().zip(answers.iter_mut()).enumerate() {
            if *answer == Tried::Waiting {
                match send(&channel, &self.names, message) {
                    Some(confirm) => flights.push(Flight { index, confirm, end: None }),
                    None => *answer = Tried::Done(Err(PublishError::Refused)),
                }
            }
        }
        // The first poll hands a message to the connection, so this sends all of them, in order.
        look(&mut flights).await;
        let landed = timeout_at(deadline, async {
            for flight in &mut flights {
                if flight.end.is_none() {
                    flight.end = Some(flight.confirm.as_mut().await);
                }
            }
        });
        let timed_out = landed.await.is_err();
        if timed_out {
            // The rest of this channel's confirms must not mix with the next window's.
            self.abandon(&link).await;
            look(&mut flights).await;
        } else {
            meter::confirmed(started.elapsed(), flights.len());
        }
        let closed = !timed_out && !channel.status().connected();
        if closed {
            self.open = None;
        }
        conclude(flights, messages, answers, timed_out, closed && link.is_up());
    }

    /// Makes the queues of `messages` exist; messages whose queue cannot be made are answered.
    async fn declare(&self, link: &Arc<Link>, messages: &[&Outgoing], answers: &mut [Tried]) {
        let mut seen: Vec<(Queue, bool)> = Vec::new();
        for (message, answer) in messages.iter().zip(answers.iter_mut()) {
            let Some(queue) = message.route.queue().filter(|_| *answer == Tried::Waiting) else {
                continue;
            };
            let there = match seen.iter().find(|(known, _)| *known == queue) {
                Some((_, there)) => *there,
                None => {
                    let ensured = link.ensure(&self.names, queue).await;
                    if let Err(error) = &ensured {
                        tracing::warn!(queue = queue.kind(), %error, "the queue could not be declared");
                        self.suspect(link, error);
                    }
                    seen.push((queue, ensured.is_ok()));
                    ensured.is_ok()
                }
            };
            if !there {
                let why = if link.is_up() { PublishError::Unroutable } else { PublishError::Disconnected };
                *answer = Tried::Done(Err(why));
            }
        }
    }

    async fn channel(&mut self, link: &Arc<Link>) -> Result<Channel, LinkError> {
        if let Some((owner, channel)) = &self.open
            && Arc::ptr_eq(owner, link)
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        self.open = None;
        let channel = link.channel().await?;
        within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        self.open = Some((link.clone(), channel.clone()));
        Ok(channel)
    }

    /// Drops the channel; a connection that cannot even close it is given up.
    async fn abandon(&mut self, link: &Arc<Link>) {
        let Some((_, channel)) = self.open.take() else {
            return;
        };
        if *self.states.borrow() == LinkState::Blocked {
            return;
        }
        if let Err(error) = within(channel.close(200, "OK".into())).await {
            self.suspect(link, &error);
        }
    }

    /// A blocked connection is silent with good reason; any other silence is a dead peer.
    fn suspect(&self, link: &Arc<Link>, error: &LinkError) {
        if matches!(error, LinkError::TimedOut) && *self.states.borrow() != LinkState::Blocked {
            link.give_up();
        }
    }
}

type Confirm<'a> = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>;

struct Flight<'a> {
    index: usize,
    confirm: Confirm<'a>,
    end: Option<lapin::Result<Confirmation>>,
}

/// Polls each flight that is still up once, in order.
async fn look(flights: &mut [Flight<'_>]) {
    poll_fn(|context| {
        for flight in flights.iter_mut().filter(|flight| flight.end.is_none()) {
            if let Poll::Ready(end) = flight.confirm.as_mut().poll(context) {
                flight.end = Some(end);
            }
        }
        Poll::Ready(())
    })
    .await;
}

fn settle(answers: &mut [Tried], with: Published) {
    for answer in answers.iter_mut().filter(|answer| **answer == Tried::Waiting) {
        *answer = Tried::Done(with);
    }
}

/// `None` where the address of the message is longer than AMQP allows.
fn send<'a>(channel: &'a Channel, names: &Names, message: &'a Outgoing) -> Option<Confirm<'a>> {
    let (exchange, key, mandatory) = match &message.route {
        Route::Event { routing_key } => (names.events(), routing_key.clone(), true),
        Route::Outbound(server) => (String::new(), names.queue(Queue::Outbound(*server)), true),
        Route::Inbound => (String::new(), names.queue(Queue::Inbound), true),
        Route::History => (String::new(), names.queue(Queue::History), true),
        Route::Deliver => (String::new(), names.queue(Queue::Deliver), true),
    };
    let (exchange, key) = (ShortString::try_new(exchange).ok()?, ShortString::try_new(key).ok()?);
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_type(ShortString::try_new(message.kind).ok()?)
        .with_message_id(message.id.to_string().into());
    if let Some(traceparent) = &message.traceparent {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.as_str().into()));
        properties = properties.with_headers(headers);
    }
    let options = BasicPublishOptions { mandatory, immediate: false };
    Some(Box::pin(async move { channel.basic_publish(exchange, key, options, &message.body, properties).await?.await }))
}

/// Turns confirms into answers, with returned messages counted against those they belong to.
fn conclude(
    flights: Vec<Flight<'_>>,
    messages: &[&Outgoing],
    answers: &mut [Tried],
    timed_out: bool,
    channel_closed: bool,
) {
    let mut returned: HashSet<Uuid> = HashSet::new();
    let mut ends = Vec::with_capacity(flights.len());
    for flight in flights {
        let end = match flight.end {
            Some(Ok(confirmation)) => {
                let ok = match confirmation {
                    Confirmation::Ack(_) => Ok(()),
                    Confirmation::Nack(_) | Confirmation::NotRequested => Err(PublishError::Refused),
                };
                let back = confirmation.take_message();
                returned
                    .extend(back.and_then(|back| back.properties.message_id().as_ref()?.as_str().parse::<Uuid>().ok()));
                Tried::Done(ok)
            }
            Some(Err(_)) | None if timed_out => Tried::Done(Err(PublishError::TimedOut)),
            Some(Err(_)) | None if channel_closed => Tried::ChannelClosed,
            Some(Err(_)) | None => Tried::Done(Err(PublishError::Disconnected)),
        };
        ends.push((flight.index, end));
    }
    for (index, end) in ends {
        if let (Some(answer), Some(message)) = (answers.get_mut(index), messages.get(index)) {
            *answer = if returned.contains(&message.id) { Tried::Done(Err(PublishError::Unroutable)) } else { end };
        }
    }
}
