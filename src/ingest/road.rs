//! Events on the road from the doors to the consumers, several in one message of the broker's.
//!
//! What comes in while a publish waits for its confirm shares the next one, as in a group commit; each caller hears whether its
//! own event was kept.

use bytes::Bytes;

use crate::broker::envelope::{Envelope, InboundBatch, InboundEvent};
use crate::broker::{Broker, Outgoing, PublishError, Route};
use crate::db::DbError;
use crate::db::group_commit::BatchWriter;
use crate::domain::chance::Chance;
use crate::telemetry::trace;

/// Events in one message at the most.
pub const TOGETHER: usize = 64;
/// The same of history, whose transactions are short, so that others find room between them.
pub const HISTORY_TOGETHER: usize = 16;
/// Bytes of bodies in one message, unless a single one is larger.
const BYTES: usize = 512 * 1024;

/// Publishes batches of events.
pub struct Road {
    /// The broker.
    pub broker: Broker,
    /// The source of ids.
    pub chance: Chance,
    /// Where it leads.
    pub route: Route,
    /// Events in one message at the most; consumers take them into one transaction.
    pub together: usize,
}

impl BatchWriter for Road {
    type Item = InboundEvent;
    type Answer = Result<(), PublishError>;

    async fn write(&self, events: &[InboundEvent]) -> Result<Vec<Self::Answer>, DbError> {
        let parts = parts(events, self.together);
        let messages = parts.iter().filter_map(|part| self.message(part)).collect::<Vec<_>>();
        // What has no JSON form does not exist; should it, all are kept elsewhere.
        if messages.len() != parts.len() {
            return Ok(vec![Err(PublishError::Refused); events.len()]);
        }
        let answers = self.broker.publish_all(messages).await;
        Ok(parts.iter().zip(answers).flat_map(|(part, answer)| vec![answer; part.len()]).collect())
    }
}

impl Road {
    fn message(&self, events: &[InboundEvent]) -> Option<Outgoing> {
        let (kind, body) = match events {
            [event] => (InboundEvent::KIND, event.to_bytes().ok()?),
            events => (InboundBatch::KIND, InboundBatch { events: events.to_vec() }.to_bytes().ok()?),
        };
        Some(self.outgoing(kind, body, events.first()?))
    }

    fn outgoing(&self, kind: &'static str, body: Bytes, first: &InboundEvent) -> Outgoing {
        let id = self.chance.uuid(first.received_at);
        let traceparent = Some(trace::parent_for(id, &self.chance));
        Outgoing { route: self.route.clone(), kind, id, traceparent, body }
    }
}

/// Cuts `events` into what goes into one message each.
fn parts(events: &[InboundEvent], together: usize) -> Vec<&[InboundEvent]> {
    let mut parts = Vec::new();
    let (mut rest, mut count, mut bytes) = (events, 0, 0);
    for event in events {
        if count > 0 && (count == together || bytes + event.body.len() > BYTES) {
            let (part, behind) = rest.split_at(count);
            parts.push(part);
            (rest, count, bytes) = (behind, 0, 0);
        }
        count += 1;
        bytes += event.body.len();
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{SessionId, TenantId, WahaServerId};

    fn event(bytes: usize) -> InboundEvent {
        InboundEvent {
            tenant_id: TenantId(Uuid::nil()),
            session_id: SessionId(Uuid::nil()),
            waha_server_id: WahaServerId(Uuid::nil()),
            received_at: chrono::DateTime::<Utc>::UNIX_EPOCH,
            body: "x".repeat(bytes),
        }
    }

    #[test]
    fn messages_hold_so_many_events_or_so_many_bytes() {
        let sizes = |events: &[InboundEvent]| parts(events, TOGETHER).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), Vec::<usize>::new());
        assert_eq!(sizes(&vec![event(10); 130]), [64, 64, 2]);
        assert_eq!(sizes(&[event(BYTES), event(1), event(BYTES - 1), event(1)]), [1, 2, 1]);
        assert_eq!(sizes(&[event(1), event(BYTES * 2), event(1)]), [1, 1, 1]);
    }
}
