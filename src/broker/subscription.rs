//! One subscription to one queue on a channel of its own.
//!
//! A broker need not say that a subscription is over. When a quorum queue is deleted and made again, RabbitMQ 3.10 stays silent,
//! books the new queue's messages out to the old subscription and never delivers them, until the channel closes. So a
//! subscription ends by itself when its queue is known to be made again, and when it has been idle for a while. A topic binding
//! vanishes with its exchange without a word too, so an idle listener binds again.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::Stream;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel};
use tokio::sync::watch;
use tokio::time::sleep;

use super::delivery::{ConsumeOptions, Delivery};
use super::link::{Link, LinkError, within};
use super::topology::{self, Names, Queue};
use crate::domain::chance::Chance;

/// What deliveries come from.
#[derive(Clone)]
pub(crate) enum Source {
    Queue(Queue),
    Events(ShortString),
}

impl Source {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Queue(queue) => queue.kind(),
            Self::Events(_) => "event",
        }
    }

    /// How often this process has found it missing.
    fn rebuilds(&self, names: &Names) -> u64 {
        match self {
            Self::Queue(queue) => names.rebuilds_of(Some(*queue)),
            Self::Events(_) => names.rebuilds_of(None),
        }
    }
}

/// Deliveries with the means to answer them.
pub(crate) type Taken = Vec<(Delivery, Acker)>;

pub(crate) struct Subscription {
    channel: Channel,
    deliveries: lapin::Consumer,
    queue: String,
    source: Source,
    names: Names,
    rebuilds: watch::Receiver<()>,
    rebuilds_seen: u64,
    idle: Duration,
}

/// What a subscription has to say.
pub(crate) enum Next {
    /// At least one.
    Deliveries(Taken),
    /// It is over, with the channel or by a deletion.
    Lost,
    /// Nothing came for a while; a new subscription finds out whether that is true.
    Idle,
}

impl Subscription {
    /// Makes the source exist and subscribes to it.
    pub(crate) async fn open(
        link: &Link,
        names: &Names,
        source: &Source,
        options: &ConsumeOptions,
        chance: &Chance,
    ) -> Result<Self, LinkError> {
        let rebuilds = names.rebuilds();
        let rebuilds_seen = source.rebuilds(names);
        let queue = match source {
            Source::Queue(queue) => {
                link.ensure(names, *queue).await?;
                names.queue(*queue)
            }
            // A fresh name each time: the old queue may still belong to a connection that the broker has not given up.
            Source::Events(_) => {
                link.ensure_base(names).await?;
                names.live(uuid::Builder::from_random_bytes(chance.bytes()).into_uuid())
            }
        };
        let channel = link.channel().await?;
        if let Source::Events(pattern) = source {
            topology::declare_live(&channel, &queue).await?;
            topology::bind_live(&channel, names, &queue, pattern).await?;
        }
        within(channel.basic_qos(options.prefetch.max(1), BasicQosOptions { global: false })).await?;
        let with = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.as_str().into(), "".into(), with, FieldTable::default());
        let deliveries = within(consume).await?;
        Ok(Self {
            channel,
            deliveries,
            queue,
            source: source.clone(),
            names: names.clone(),
            rebuilds,
            rebuilds_seen,
            idle: options.idle_renewal,
        })
    }

    /// What is there, up to `most`; waits for the first.
    ///
    /// `is_quiet` says whether every delivery so far is answered, so that the subscription can end without any of them coming
    /// again.
    pub(crate) async fn next(&mut self, most: usize, is_quiet: impl Fn() -> bool) -> Next {
        loop {
            tokio::select! {
                biased;
                taken = take(&mut self.deliveries, most) => {
                    return if taken.is_empty() { Next::Lost } else { Next::Deliveries(taken) };
                }
                _ = self.rebuilds.changed() => {
                    if self.source.rebuilds(&self.names) != self.rebuilds_seen {
                        return Next::Lost;
                    }
                }
                () = sleep(self.idle) => match &self.source {
                    Source::Queue(_) if is_quiet() => return Next::Idle,
                    Source::Queue(_) => {}
                    // Events would be missed between two subscriptions. Binding again is harmless, and fails where the
                    // exchange is gone.
                    Source::Events(pattern) => {
                        if topology::bind_live(&self.channel, &self.names, &self.queue, pattern).await.is_err() {
                            return Next::Lost;
                        }
                    }
                },
            }
        }
    }

    /// Asks for no more. What was prefetched goes back when the channel closes.
    pub(crate) async fn cancel(&self) {
        // A failure means that the channel is closed already.
        let cancelled = self.channel.basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        let _cancelled = within(cancelled).await;
    }

    /// Gives back what is not answered.
    pub(crate) async fn close(&self) {
        if self.channel.status().connected() {
            topology::close(&self.channel).await;
        }
    }
}

async fn take(deliveries: &mut lapin::Consumer, most: usize) -> Taken {
    let mut taken = Vec::new();
    poll_fn(|context| {
        while taken.len() < most {
            match Pin::new(&mut *deliveries).poll_next(context) {
                Poll::Ready(Some(Ok(raw))) => taken.push(Delivery::read(raw)),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "the subscription ended");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending if taken.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    })
    .await;
    taken
}
