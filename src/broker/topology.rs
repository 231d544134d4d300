//! What exists on the broker: names, arguments and how it is brought about.
//!
//! Everything is durable and declared idempotently by whoever needs it first, so an empty broker is as good as a kept one.
//! Quorum queues carry an explicit delivery limit and dead-letter exchange, because the defaults differ between RabbitMQ 3.10
//! and 4.x.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ErrorKind, ExchangeKind};
use tokio::sync::watch;

use super::link::{Link, LinkError, within};
use crate::domain::ids::WahaServerId;

/// How often a delivery may come back before it goes to the dead letters.
///
/// RabbitMQ before 4.3 counts every return, a lost connection's included, so this is generous.
const DELIVERY_LIMIT: i64 = 50;
/// The dead letters wait for an operator, however often one looks at them.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;
/// Events kept for a live listener that does not keep up; the oldest go first.
const LIVE_MAX_LENGTH: i64 = 50_000;
/// Leaves room for the longest suffix even where each character takes four bytes.
const NAMESPACE_MAX_CHARS: usize = 48;

/// A work queue: durable, replicated, dead-lettering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Messages to send through one WAHA server.
    Outbound(WahaServerId),
    /// Webhooks received from WAHA.
    Inbound,
    /// Webhooks received from WAHA that tell of what happened a while ago.
    History,
    /// Events on their way to tenants' endpoints.
    Deliver,
}

impl Queue {
    /// The kind of queue, without ids: a metric label.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Outbound(_) => "outbound",
            Self::Inbound => "inbound",
            Self::History => "history",
            Self::Deliver => "deliver",
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The queue of one WAHA server.
    Outbound(WahaServerId),
    /// The queue of received webhooks.
    Inbound,
    /// The queue of received webhooks that tell of what happened a while ago.
    History,
    /// The queue of deliveries to tenants' endpoints.
    Deliver,
    /// The topic exchange of live events, where nobody may be listening.
    Event {
        /// The topic, at most 255 bytes.
        routing_key: String,
    },
}

impl Route {
    /// The queue at the end of the route, if it is one queue.
    #[must_use]
    pub fn queue(&self) -> Option<Queue> {
        match self {
            Self::Outbound(server) => Some(Queue::Outbound(*server)),
            Self::Inbound => Some(Queue::Inbound),
            Self::History => Some(Queue::History),
            Self::Deliver => Some(Queue::Deliver),
            Self::Event { .. } => None,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.queue().map_or("event", Queue::kind)
    }
}

/// The names of one namespace, and what this process knows of it.
#[derive(Clone)]
pub(crate) struct Names(Arc<Namespace>);

struct Namespace {
    prefix: String,
    /// Work queues this process has declared.
    known: Mutex<HashSet<Queue>>,
    /// How often each work queue, or (`None`) the exchanges, were found missing on the broker by this process.
    rebuilds: Mutex<HashMap<Option<Queue>, u64>>,
    rebuilt: watch::Sender<()>,
}

impl Names {
    /// AMQP allows 255 bytes in a name; what is too long for that with every suffix is cut off.
    pub(crate) fn new(namespace: &str) -> Self {
        let prefix = namespace.chars().take(NAMESPACE_MAX_CHARS).collect();
        Self(Arc::new(Namespace {
            prefix,
            known: Mutex::default(),
            rebuilds: Mutex::default(),
            rebuilt: watch::Sender::new(()),
        }))
    }

    /// These work queues (or, `None`, exchanges) are gone from the broker: whoever relies on them must begin anew.
    pub(crate) fn announce_missing(&self, missing: impl IntoIterator<Item = Option<Queue>>) {
        let mut rebuilds = self.0.rebuilds.lock().unwrap_or_else(PoisonError::into_inner);
        for what in missing {
            *rebuilds.entry(what).or_default() += 1;
        }
        drop(rebuilds);
        self.0.rebuilt.send_replace(());
    }

    /// Tells when something was announced missing.
    pub(crate) fn rebuilds(&self) -> watch::Receiver<()> {
        self.0.rebuilt.subscribe()
    }

    pub(crate) fn rebuilds_of(&self, what: Option<Queue>) -> u64 {
        self.0.rebuilds.lock().unwrap_or_else(PoisonError::into_inner).get(&what).copied().unwrap_or_default()
    }

    fn remember(&self, queue: Queue) {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).insert(queue);
    }

    pub(crate) fn known(&self) -> Vec<Queue> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().copied().chain([Queue::Inbound, Queue::History, Queue::Deliver]).collect()
    }

    pub(crate) fn queue(&self, queue: Queue) -> String {
        match queue {
            Queue::Outbound(server) => format!("{}.outbound.{server}", self.0.prefix),
            Queue::Inbound => format!("{}.inbound", self.0.prefix),
            Queue::History => format!("{}.history", self.0.prefix),
            Queue::Deliver => format!("{}.deliver", self.0.prefix),
        }
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.0.prefix)
    }

    pub(crate) fn dead_exchange(&self) -> String {
        format!("{}.dlx", self.0.prefix)
    }

    pub(crate) fn events(&self) -> String {
        format!("{}.events", self.0.prefix)
    }

    pub(crate) fn live(&self, id: impl fmt::Display) -> String {
        format!("{}.live.{id}", self.0.prefix)
    }
}

fn quorum(limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
    arguments
}

/// Declares what every process needs: dead letters and the events exchange.
pub(crate) async fn declare_base(link: &Link, names: &Names) -> Result<(), LinkError> {
    declare_queue(link, &names.dead(), quorum(DEAD_DELIVERY_LIMIT)).await?;
    let channel = link.channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    within(channel.exchange_declare(names.dead_exchange().into(), ExchangeKind::Fanout, durable, none())).await?;
    within(channel.exchange_declare(names.events().into(), ExchangeKind::Topic, durable, none())).await?;
    let bind = QueueBindOptions::default();
    within(channel.queue_bind(names.dead().into(), names.dead_exchange().into(), "".into(), bind, none())).await?;
    close(&channel).await;
    Ok(())
}

/// Declares a work queue.
pub(crate) async fn declare(link: &Link, names: &Names, queue: Queue) -> Result<(), LinkError> {
    names.remember(queue);
    let mut arguments = quorum(DELIVERY_LIMIT);
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(names.dead_exchange().into()));
    declare_queue(link, &names.queue(queue), arguments).await
}

/// A queue that exists with other arguments is used as it is: an operator's choice or an older release must not stop the flow.
async fn declare_queue(link: &Link, name: &str, arguments: FieldTable) -> Result<(), LinkError> {
    let channel = link.channel().await?;
    match within(channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)).await {
        Ok(_) => {}
        Err(LinkError::Amqp(error)) if is_soft(&error, &AMQPSoftError::PRECONDITIONFAILED) => {
            tracing::warn!(queue = name, "the queue exists with other arguments and is used as it is");
            let channel = link.channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            within(channel.queue_declare(name.into(), passive, FieldTable::default())).await?;
            close(&channel).await;
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    close(&channel).await;
    Ok(())
}

/// Declares a queue of live events that lives as long as this connection.
pub(crate) async fn declare_live(channel: &Channel, queue: &str) -> Result<(), LinkError> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(LIVE_MAX_LENGTH));
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    within(channel.queue_declare(queue.into(), options, arguments)).await?;
    Ok(())
}

/// Lets the events that match `pattern` into a live queue.
pub(crate) async fn bind_live(
    channel: &Channel,
    names: &Names,
    queue: &str,
    pattern: &ShortString,
) -> Result<(), LinkError> {
    let bind = QueueBindOptions::default();
    within(channel.queue_bind(queue.into(), names.events().into(), pattern.clone(), bind, FieldTable::default())).await
}

/// Deletes the work queues this process knows, the dead letters and the exchanges of the namespace, with all that is in them.
pub(crate) async fn delete(link: &Link, names: &Names) -> Result<(), LinkError> {
    let channel = link.channel().await?;
    let queues = names.known().into_iter().map(|queue| names.queue(queue)).chain([names.dead()]);
    for queue in queues {
        within(channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await?;
    }
    for exchange in [names.dead_exchange(), names.events()] {
        within(channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default())).await?;
    }
    close(&channel).await;
    Ok(())
}

/// Whether the broker closed the channel for this reason.
fn is_soft(error: &lapin::Error, reason: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == reason))
}

/// Closes a channel that is no longer needed; one that is gone already is fine.
pub(crate) async fn close(channel: &Channel) {
    if let Err(error) = within(channel.close(200, "OK".into())).await {
        tracing::debug!(%error, "a channel was gone before it was closed");
    }
}
