//! The road: RabbitMQ, and the only home of its client.
//!
//! Guarantee: [`Broker::publish`] answers `Ok` only for a message that is in its queue, and never takes longer than the limit
//! it was given. A consumer gets every message of its queue at least once, whatever is restarted, wiped or cut in between.
//! Nothing here is the truth about anything: whoever needs a message not to be lost keeps it in Postgres and publishes again.
//!
//! Publishing and consuming have a connection each, since a broker short of memory or disk stops reading from connections
//! that publish. Each connection has a supervisor that makes it again for ever (`link`); each publisher channel (`publisher`)
//! and each consumer (`consumer`) lives through reconnects. Everything runs on the runtime that called [`Broker::start`].

mod consumer;
mod delivery;
pub mod envelope;
mod link;
mod meter;
mod publisher;
mod subscription;
mod topology;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use consumer::ConsumerHandle;
pub use delivery::{ConsumeOptions, Delivery, Verdict};
pub use envelope::{Envelope, EnvelopeError, InboundBatch, InboundEvent, OutboundRef};
pub use link::LinkState;
pub use meter::describe_metrics;
pub use publisher::{Outgoing, PublishError};
pub use topology::{Queue, Route};

use self::consumer::{Consumer, Handler};
use self::link::{Link, Supervisor};
use self::publisher::{Job, Worker};
use self::subscription::Source;
use self::topology::Names;
use crate::domain::chance::Chance;

/// Part of any log filter: the client library logs messages that came back unroutable with their bodies.
pub const LOG_FILTER: &str = "lapin::returned_messages=off,lapin::channels=off,lapin::io_loop=off";

/// Callers that may wait for a publish channel at once; further ones wait for room, within their limit.
const WAITING_JOBS: usize = 1024;
/// How long [`Broker::stop`] lets handlers finish.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Where the broker is and how to use it.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `amqp://` or `amqps://`, with user, password and virtual host.
    pub url: SecretString,
    /// The prefix of every exchange and queue, at most 48 characters.
    pub namespace: String,
    /// The longest a publish with its confirm may take; 5 s is a good value.
    pub publish_timeout: Duration,
    /// Channels to publish on at once; 2 is a good value.
    pub channels: usize,
}

/// The connection of this process to RabbitMQ; clones share it.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    names: Names,
    chance: Chance,
    uri: Option<AMQPUri>,
    runtime: Handle,
    publish_timeout: Duration,
    workers: Vec<mpsc::Sender<Job>>,
    next_worker: AtomicUsize,
    states: watch::Receiver<LinkState>,
    links: watch::Receiver<Option<Arc<Link>>>,
    consuming: watch::Sender<Option<Arc<Link>>>,
    consuming_started: Once,
    consumers: Mutex<Vec<ConsumerHandle>>,
    stopping: watch::Sender<bool>,
    supervisors: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("state", &*self.0.states.borrow()).finish_non_exhaustive()
    }
}

/// Why queues and exchanges could not be deleted.
#[derive(Debug, thiserror::Error)]
#[error("the broker did not delete the namespace: {0}")]
pub struct DeleteError(String);

impl Broker {
    /// Begins to connect in the background and goes on for ever; never fails. Must be called on the process-wide runtime.
    #[must_use]
    pub fn start(config: BrokerConfig, chance: Chance) -> Self {
        let names = Names::new(&config.namespace);
        let uri = link::address(config.url.expose_secret());
        let (stopping, stop) = watch::channel(false);
        let (links_in, links) = watch::channel(None);
        let (states_in, states) = watch::channel(LinkState::Disconnected);
        let mut supervisors = JoinSet::new();
        let supervisor = Supervisor {
            role: "publish",
            uri: uri.clone(),
            names: names.clone(),
            chance: chance.clone(),
            links: links_in,
            states: states_in,
            stop,
        };
        supervisors.spawn(supervisor.run());
        let workers = (0..config.channels.max(1))
            .map(|_| {
                let (jobs_in, jobs) = mpsc::channel(WAITING_JOBS);
                let worker = Worker::new(jobs, links.clone(), states.clone(), names.clone(), config.publish_timeout);
                tokio::spawn(worker.run());
                jobs_in
            })
            .collect();
        Self(Arc::new(Shared {
            names,
            chance,
            uri,
            runtime: Handle::current(),
            publish_timeout: config.publish_timeout,
            workers,
            next_worker: AtomicUsize::new(0),
            states,
            links,
            consuming: watch::Sender::new(None),
            consuming_started: Once::new(),
            consumers: Mutex::new(Vec::new()),
            stopping,
            supervisors: Mutex::new(supervisors),
        }))
    }

    /// Whether a publish can succeed now: connected, and the broker accepts messages.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        *self.0.states.borrow() == LinkState::Connected
    }

    /// The state of the publishing side, to wait on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.0.states.clone()
    }

    /// Publishes one message and waits for its confirm, no longer than the configured limit.
    ///
    /// # Errors
    /// When the broker is not known to have the message; it may have it all the same.
    pub async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.publish_all(vec![message]).await.pop().unwrap_or(Err(PublishError::Disconnected))
    }

    /// Publishes messages, in order, and answers for each by index. All are sent before the first confirm is awaited.
    ///
    /// An event that nobody listens for is published all the same.
    pub async fn publish_all(&self, messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let is_event: Vec<bool> = messages.iter().map(|message| message.route.queue().is_none()).collect();
        let mut answers = self.publish_to_listeners(messages).await;
        for (answer, is_event) in answers.iter_mut().zip(is_event) {
            if is_event && *answer == Err(PublishError::Unroutable) {
                *answer = Ok(());
            }
        }
        answers
    }

    /// As [`Broker::publish_all`], but an event that nobody listens for is [`PublishError::Unroutable`].
    pub async fn publish_to_listeners(&self, messages: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let count = messages.len();
        if count == 0 {
            return Vec::new();
        }
        if !self.is_connected() {
            return vec![Err(PublishError::Disconnected); count];
        }
        let turn = self.0.next_worker.fetch_add(1, Ordering::Relaxed);
        let Some(worker) = self.0.workers.get(turn % self.0.workers.len().max(1)) else {
            return vec![Err(PublishError::Disconnected); count];
        };
        let (reply, answers) = oneshot::channel();
        let published = timeout(self.0.publish_timeout, async {
            worker.send(Job { messages, reply }).await.ok()?;
            answers.await.ok()
        });
        match published.await {
            Ok(Some(answers)) => answers,
            Ok(None) => vec![Err(PublishError::Disconnected); count],
            Err(_) => vec![Err(PublishError::TimedOut); count],
        }
    }

    /// Consumes `queue`, each delivery by itself, up to `options.prefetch` at once.
    ///
    /// A handler that panics has answered [`Verdict::Retry`].
    pub fn consume<F, Fut>(&self, queue: Queue, options: ConsumeOptions, handler: F) -> ConsumerHandle
    where
        F: Fn(Delivery) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Verdict> + Send + 'static,
    {
        let handler = Handler::Each(Arc::new(move |delivery| handler(delivery).boxed()));
        self.spawn(Source::Queue(queue), options, handler)
    }

    /// Consumes `queue` in batches of what is there, one batch after another. The handler answers by index.
    ///
    /// A missing answer is [`Verdict::Retry`]. After a panic each delivery of the batch is given to the handler by itself.
    pub fn consume_batches<F, Fut>(&self, queue: Queue, options: ConsumeOptions, handler: F) -> ConsumerHandle
    where
        F: Fn(Vec<Delivery>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Verdict>> + Send + 'static,
    {
        let handler = Handler::Batch(Arc::new(move |deliveries| handler(deliveries).boxed()));
        self.spawn(Source::Queue(queue), options, handler)
    }

    /// Listens to live events whose routing key matches `pattern` (`*` one word, `#` any), in order, one at a time.
    ///
    /// Events published while this process is not subscribed are missed. A pattern over 255 bytes matches nothing.
    pub fn subscribe_events<F, Fut>(&self, pattern: &str, handler: F) -> ConsumerHandle
    where
        F: Fn(Delivery) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let batches = Handler::Batch(Arc::new(move |deliveries: Vec<Delivery>| {
            let handler = handler.clone();
            async move {
                let verdicts = vec![Verdict::Done; deliveries.len()];
                for delivery in deliveries {
                    handler(delivery).await;
                }
                verdicts
            }
            .boxed()
        }));
        let pattern = ShortString::try_new(pattern).unwrap_or_else(|_| "too-long".into());
        let options = ConsumeOptions { prefetch: 256, max_batch: 256, ..ConsumeOptions::default() };
        self.spawn(Source::Events(pattern), options, batches)
    }

    fn spawn(&self, source: Source, options: ConsumeOptions, handler: Handler) -> ConsumerHandle {
        self.connect_consumers();
        let (stop_in, stop) = watch::channel(*self.0.stopping.borrow());
        let (ended_in, ended) = watch::channel(false);
        let consumer = Consumer {
            source,
            handler,
            options,
            names: self.0.names.clone(),
            chance: self.0.chance.clone(),
            links: self.0.consuming.subscribe(),
            stop,
            tasks: JoinSet::new(),
        };
        let abort = self.0.runtime.spawn(consumer.run(ended_in)).abort_handle();
        let handle = ConsumerHandle { stop: Arc::new(stop_in), ended, abort };
        let mut consumers = self.0.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        consumers.retain(|consumer| !consumer.is_ended());
        consumers.push(handle.clone());
        handle
    }

    /// The consuming connection is made when the first consumer needs it.
    fn connect_consumers(&self) {
        self.0.consuming_started.call_once(|| {
            let supervisor = Supervisor {
                role: "consume",
                uri: self.0.uri.clone(),
                names: self.0.names.clone(),
                chance: self.0.chance.clone(),
                links: self.0.consuming.clone(),
                states: watch::Sender::new(LinkState::Disconnected),
                stop: self.0.stopping.subscribe(),
            };
            let mut supervisors = self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
            supervisors.spawn_on(supervisor.run(), &self.0.runtime);
        });
    }

    /// Stops in order: consumers take no more, running handlers get 30 s to finish, the connections are closed.
    ///
    /// Publishes work until the handlers have finished, and answer [`PublishError::Disconnected`] afterwards.
    pub async fn stop(&self) {
        self.stop_within(STOP_LIMIT).await;
    }

    /// [`Broker::stop`] with another limit for running handlers. True if all of them finished.
    pub async fn stop_within(&self, limit: Duration) -> bool {
        let consumers = std::mem::take(&mut *self.0.consumers.lock().unwrap_or_else(PoisonError::into_inner));
        let finished = join_all(consumers.iter().map(|consumer| consumer.stop(limit))).await;
        self.0.stopping.send_replace(true);
        let mut supervisors = std::mem::take(&mut *self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner));
        while supervisors.join_next().await.is_some() {}
        finished.into_iter().all(|finished| finished)
    }

    /// Deletes this namespace's exchanges, dead letters and the work queues that this process has used, with everything in them.
    /// Running consumers and publishers make them again.
    ///
    /// # Errors
    /// When there is no connection, or the broker refuses; some of it may be deleted then.
    pub async fn delete_all(&self) -> Result<(), DeleteError> {
        let link = self.0.links.borrow().clone().ok_or_else(|| DeleteError("not connected".to_owned()))?;
        topology::delete(&link, &self.0.names).await.map_err(|error| DeleteError(error.to_string()))?;
        link.forget();
        self.0.names.announce_missing(self.0.names.known().into_iter().map(Some).chain([None]));
        Ok(())
    }
}
