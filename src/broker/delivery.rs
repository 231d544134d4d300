//! What a consumer gets and what it answers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use lapin::types::AMQPValue;
use uuid::Uuid;

/// One message from the broker.
#[derive(Clone)]
pub struct Delivery {
    /// The body; see [`Envelope::parse`](super::Envelope::parse).
    pub body: Bytes,
    /// What it is: the AMQP `type`, empty when it has none.
    pub kind: String,
    /// The `message_id` it was published with.
    pub id: Option<Uuid>,
    /// The W3C trace context it belongs to.
    pub traceparent: Option<String>,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// How often it came back to its queue before this delivery.
    pub returns: u32,
    /// The routing key it was published with.
    pub routing_key: String,
}

impl Delivery {
    pub(crate) fn read(raw: lapin::message::Delivery) -> (Self, lapin::Acker) {
        let header = |name: &str| raw.properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
        let delivery = Self {
            kind: raw.properties.kind().as_ref().map(ToString::to_string).unwrap_or_default(),
            id: raw.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok()),
            traceparent: header("traceparent").and_then(|value| match value {
                AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
                _ => None,
            }),
            redelivered: raw.redelivered,
            returns: header("x-delivery-count").map_or(0, count),
            routing_key: raw.routing_key.to_string(),
            body: raw.data.into(),
        };
        (delivery, raw.acker)
    }
}

fn count(value: &AMQPValue) -> u32 {
    let count = match value {
        AMQPValue::LongLongInt(count) => *count,
        AMQPValue::LongInt(count) => i64::from(*count),
        AMQPValue::LongUInt(count) => i64::from(*count),
        AMQPValue::ShortInt(count) => i64::from(*count),
        AMQPValue::ShortShortUInt(count) => i64::from(*count),
        _ => 0,
    };
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("redelivered", &self.redelivered)
            .field("returns", &self.returns)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Its work is done; the broker forgets it.
    Done,
    /// It goes back to its queue after a growing pause. Each return counts; after fifty it goes to the dead letters, so a
    /// handler that only waits for something else to come back should wait, not answer this.
    Retry,
    /// It goes to the dead letters at once.
    Dead,
}

impl Verdict {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry => "retry",
            Self::Dead => "dead",
        }
    }
}

/// How a queue is consumed.
#[derive(Debug, Clone, Copy)]
pub struct ConsumeOptions {
    /// Deliveries held without an answer at most, and so handlers that run at once: 1 or more.
    pub prefetch: u16,
    /// Deliveries in a batch at most; batches are what is there already, nothing is waited for.
    pub max_batch: usize,
    /// The pause before the first return of a [`Verdict::Retry`]; doubles with each return, half of it random.
    pub retry_pause: Duration,
    /// The longest such pause.
    pub retry_pause_most: Duration,
    /// How long nothing may come before the subscription is made anew: the longest that a queue which another process deleted
    /// and made again can go unnoticed.
    pub idle_renewal: Duration,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self {
            prefetch: 64,
            max_batch: 64,
            retry_pause: Duration::from_millis(100),
            retry_pause_most: Duration::from_secs(10),
            idle_renewal: Duration::from_secs(15),
        }
    }
}
