//! Consuming.
//!
//! A consumer subscribes for ever: after a lost connection, a closed channel or a deleted queue it declares what it needs and
//! subscribes again. Every delivery keeps the acknowledger of the channel it came on, and every subscription has its own channel,
//! so an answer that comes after a reconnect goes nowhere and the broker delivers again. A handler may therefore see a delivery
//! twice, also at the same time as a handler of the old subscription still runs.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use lapin::Acker;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::delivery::{ConsumeOptions, Delivery, Verdict};
use super::link::{Link, LinkError, backoff, within};
use super::meter;
use super::subscription::{Next, Source, Subscription};
use super::topology::Names;
use crate::domain::chance::Chance;

/// The pauses between two tries to subscribe.
const RESUBSCRIBE_FIRST: Duration = Duration::from_millis(100);
const RESUBSCRIBE_MOST: Duration = Duration::from_secs(5);

type Each = dyn Fn(Delivery) -> BoxFuture<'static, Verdict> + Send + Sync;
type Batch = dyn Fn(Vec<Delivery>) -> BoxFuture<'static, Vec<Verdict>> + Send + Sync;

/// What is done with deliveries.
#[derive(Clone)]
pub(crate) enum Handler {
    Each(Arc<Each>),
    Batch(Arc<Batch>),
}

/// A running consumer. Dropping the handle leaves it running until the broker is stopped.
#[derive(Clone, Debug)]
pub struct ConsumerHandle {
    pub(crate) stop: Arc<watch::Sender<bool>>,
    pub(crate) ended: watch::Receiver<bool>,
    pub(crate) abort: AbortHandle,
}

impl ConsumerHandle {
    /// Takes no more deliveries and returns when the running handlers have finished and their answers are given, or after
    /// `limit`: what runs then is dropped where it stands, and its deliveries come again. True if all had finished.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        // An error means that the task is gone, which is an end too.
        let finished = timeout(limit, ended.wait_for(|ended| *ended)).await.is_ok();
        if !finished {
            self.abort.abort();
        }
        finished
    }

    /// Whether the consumer has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        *self.ended.borrow() || self.abort.is_finished()
    }
}

/// The task behind a [`ConsumerHandle`].
pub(crate) struct Consumer {
    pub(crate) source: Source,
    pub(crate) handler: Handler,
    pub(crate) options: ConsumeOptions,
    pub(crate) names: Names,
    pub(crate) chance: Chance,
    pub(crate) links: watch::Receiver<Option<Arc<Link>>>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) tasks: JoinSet<()>,
}

enum End {
    Stopped,
    Lost,
    Idle,
}

impl Consumer {
    pub(crate) async fn run(mut self, ended: watch::Sender<bool>) {
        let permits = Arc::new(Semaphore::new(usize::from(self.options.prefetch.max(1))));
        let mut stop = self.stop.clone();
        let mut links = self.links.clone();
        let mut failures = 0_u32;
        loop {
            let link = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                link = links.wait_for(Option::is_some) => match link {
                    Ok(link) => link.clone(),
                    Err(_) => break,
                },
            };
            let Some(link) = link else { continue };
            match Subscription::open(&link, &self.names, &self.source, &self.options, &self.chance).await {
                Ok(mut subscription) => {
                    failures = 0;
                    let end = match self.handler.clone() {
                        Handler::Each(handler) => {
                            self.pump_each(&handler, &mut subscription, &permits, &mut stop).await
                        }
                        Handler::Batch(handler) => self.pump_batches(&handler, &mut subscription, &mut stop).await,
                    };
                    if matches!(end, End::Stopped) {
                        subscription.cancel().await;
                        while self.tasks.join_next().await.is_some() {}
                        subscription.close().await;
                        break;
                    }
                    subscription.close().await;
                    if matches!(end, End::Idle) {
                        continue;
                    }
                    meter::resubscribe(self.source.kind());
                    tracing::info!(queue = self.source.kind(), "the subscription is lost");
                    link.forget();
                }
                Err(error) => {
                    tracing::warn!(queue = self.source.kind(), %error, failures, "could not subscribe");
                    link.forget();
                    if matches!(error, LinkError::TimedOut) {
                        link.give_up();
                    }
                }
            }
            drop(link);
            failures = failures.saturating_add(1);
            let pause = backoff(failures, RESUBSCRIBE_FIRST, RESUBSCRIBE_MOST, &self.chance);
            let _stopped = timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok();
        }
        while self.tasks.join_next().await.is_some() {}
        ended.send_replace(true);
    }

    async fn pump_each(
        &mut self,
        handler: &Arc<Each>,
        subscription: &mut Subscription,
        permits: &Arc<Semaphore>,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        let all = usize::from(self.options.prefetch.max(1));
        loop {
            while self.tasks.try_join_next().is_some() {}
            let permit = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return End::Stopped,
                permit = permits.clone().acquire_owned() => permit,
            };
            // The one permit that is taken is the one for what comes next.
            let is_quiet = || permits.available_permits() + 1 >= all;
            let next = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return End::Stopped,
                next = subscription.next(1, is_quiet) => next,
            };
            let mut taken = match next {
                Next::Deliveries(taken) => taken,
                Next::Lost => return End::Lost,
                Next::Idle => return End::Idle,
            };
            let Some((delivery, acker)) = taken.pop() else {
                return End::Lost;
            };
            let (handler, settler, returns) = (handler.clone(), self.settler(), delivery.returns);
            self.tasks.spawn(async move {
                let verdict = match guarded(async { handler(delivery).await }).await {
                    Some(verdict) => verdict,
                    None => {
                        meter::panicked(settler.kind);
                        Verdict::Retry
                    }
                };
                settler.count(verdict, 1);
                if verdict == Verdict::Retry {
                    settler.hold(returns).await;
                }
                settler.settle(&acker, verdict, false).await;
                drop(permit);
            });
        }
    }

    async fn pump_batches(
        &mut self,
        handler: &Arc<Batch>,
        subscription: &mut Subscription,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        let all = usize::from(self.options.prefetch.max(1));
        let most = self.options.max_batch.clamp(1, all);
        // One permit for each delivery of this subscription that waits for its return.
        let permits = Arc::new(Semaphore::new(all));
        loop {
            while self.tasks.try_join_next().is_some() {}
            let batch = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return End::Stopped,
                next = subscription.next(most, || permits.available_permits() >= all) => match next {
                    Next::Deliveries(batch) => batch,
                    Next::Lost => return End::Lost,
                    Next::Idle => return End::Idle,
                },
            };
            let verdicts =
                judge(handler, batch.iter().map(|(delivery, _)| delivery.clone()).collect(), &self.source).await;
            // While a delivery of an earlier batch waits for its return, one answer for many would answer that one too.
            let free = permits.available_permits() >= all;
            self.settle_batch(batch, &verdicts, free, &permits).await;
        }
    }

    async fn settle_batch(
        &mut self,
        batch: Vec<(Delivery, Acker)>,
        verdicts: &[Verdict],
        free: bool,
        permits: &Arc<Semaphore>,
    ) {
        let settler = self.settler();
        let verdicts = verdicts.iter().copied().chain(std::iter::repeat(Verdict::Retry));
        let (mut done, mut dead, mut held) = (Vec::new(), Vec::new(), false);
        for ((delivery, acker), verdict) in batch.into_iter().zip(verdicts) {
            settler.count(verdict, 1);
            match verdict {
                Verdict::Done => done.push(acker),
                Verdict::Dead => dead.push(acker),
                Verdict::Retry => {
                    held = true;
                    let (settler, permit) = (self.settler(), permits.clone().try_acquire_owned());
                    self.tasks.spawn(async move {
                        settler.hold(delivery.returns).await;
                        settler.settle(&acker, Verdict::Retry, false).await;
                        drop(permit);
                    });
                }
            }
        }
        join_all(dead.iter().map(|acker| settler.settle(acker, Verdict::Dead, false))).await;
        if free && !held {
            if let Some(last) = done.last() {
                settler.settle(last, Verdict::Done, true).await;
            }
        } else {
            join_all(done.iter().map(|acker| settler.settle(acker, Verdict::Done, false))).await;
        }
    }

    fn settler(&self) -> Settler {
        Settler {
            kind: self.source.kind(),
            options: self.options,
            chance: self.chance.clone(),
            stop: self.stop.clone(),
        }
    }
}

/// Runs a batch; if that panics, each of it alone, so that one poisonous delivery does not take the others with it.
async fn judge(handler: &Arc<Batch>, deliveries: Vec<Delivery>, source: &Source) -> Vec<Verdict> {
    let alone = deliveries.clone();
    if let Some(verdicts) = guarded(async { handler(deliveries).await }).await {
        return verdicts;
    }
    meter::panicked(source.kind());
    if alone.len() == 1 {
        return vec![Verdict::Retry];
    }
    let mut verdicts = Vec::with_capacity(alone.len());
    for delivery in alone {
        let verdict = guarded(async { handler(vec![delivery]).await }).await;
        verdicts.push(verdict.and_then(|verdicts| verdicts.first().copied()).unwrap_or(Verdict::Retry));
    }
    verdicts
}

/// `None` if the handler panicked.
async fn guarded<T>(handler: impl Future<Output = T>) -> Option<T> {
    match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(answer) => Some(answer),
        Err(_) => {
            tracing::error!("a handler of deliveries panicked");
            None
        }
    }
}

/// Gives the broker the answers.
struct Settler {
    kind: &'static str,
    options: ConsumeOptions,
    chance: Chance,
    stop: watch::Receiver<bool>,
}

impl Settler {
    fn count(&self, verdict: Verdict, deliveries: u64) {
        meter::delivered(self.kind, verdict.label(), deliveries);
    }

    /// The pause before a return, cut short by a stop.
    async fn hold(&self, returns: u32) {
        let (first, most) = (self.options.retry_pause, self.options.retry_pause_most);
        let pause = backoff(returns.saturating_add(1), first, most, &self.chance);
        let mut stop = self.stop.clone();
        let _stopped = timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok();
    }

    /// An answer that cannot be given is no loss: the broker delivers again.
    async fn settle(&self, acker: &Acker, verdict: Verdict, multiple: bool) {
        let answered = match verdict {
            Verdict::Done => within(acker.ack(BasicAckOptions { multiple })).await,
            Verdict::Retry => within(acker.reject(BasicRejectOptions { requeue: true })).await,
            Verdict::Dead => within(acker.reject(BasicRejectOptions { requeue: false })).await,
        };
        match answered {
            Ok(true) => {}
            Ok(false) => tracing::debug!(queue = self.kind, "an answer came after its channel was gone"),
            Err(error) => tracing::debug!(queue = self.kind, %error, "an answer did not reach the broker"),
        }
    }
}
