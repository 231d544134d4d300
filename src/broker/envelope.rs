//! The bodies that travel over the broker: small, typed and versioned.
//!
//! A body that does not parse will not parse the next time either: its consumer answers
//! [`Verdict::Dead`](super::Verdict::Dead).

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::domain::ids::{MessageId, SessionId, TenantId, WahaServerId};

/// The version written into every body.
const VERSION: u8 = 1;

/// How every body of that version begins.
const OPENING: &[u8] = b"{\"v\":1,";

/// Why a body could not be read. Carries no part of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the JSON this type is written as.
    #[error("the body is not a valid envelope (line {line}, column {column})")]
    Malformed {
        /// Line of the first fault, from 1.
        line: usize,
        /// Column of the first fault.
        column: usize,
    },
    /// Written by a version this one does not know.
    #[error("the envelope has the unknown version {0}")]
    UnknownVersion(u8),
}

/// A body of the broker.
pub trait Envelope: Serialize + DeserializeOwned {
    /// The AMQP `type` of messages with this body.
    const KIND: &'static str;

    /// The body as JSON with its version.
    ///
    /// # Errors
    /// When the value has no JSON form; none of the types here can get into that state.
    fn to_bytes(&self) -> Result<Bytes, serde_json::Error> {
        serde_json::to_vec(&Versioned { v: VERSION, body: self }).map(Bytes::from)
    }

    /// Reads what [`Envelope::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is not such a body, or of an unknown version.
    fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let malformed =
            |error: serde_json::Error| EnvelopeError::Malformed { line: error.line(), column: error.column() };
        // What `to_bytes` wrote begins with its version; anything else is read once more for it.
        if !bytes.starts_with(OPENING) {
            let Version { v } = serde_json::from_slice(bytes).map_err(malformed)?;
            if v != VERSION {
                return Err(EnvelopeError::UnknownVersion(v));
            }
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u8,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u8,
}

/// A message whose turn it is; the text stays in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundRef {
    /// The message to send.
    pub message_id: MessageId,
    /// The session it is sent from.
    pub session_id: SessionId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The lane's lease it was dispatched under; a claim with another one is refused.
    pub fence: i64,
}

impl Envelope for OutboundRef {
    const KIND: &'static str = "outbound.ref";
}

/// A verified webhook of a WAHA server, as it came.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundEvent {
    /// Whose session it speaks of.
    pub tenant_id: TenantId,
    /// The session it speaks of.
    pub session_id: SessionId,
    /// The server that sent it.
    pub waha_server_id: WahaServerId,
    /// When it was received.
    pub received_at: DateTime<Utc>,
    /// The webhook's body, unchanged.
    pub body: String,
}

impl fmt::Debug for InboundEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundEvent")
            .field("session_id", &self.session_id)
            .field("received_at", &self.received_at)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl Envelope for InboundEvent {
    const KIND: &'static str = "inbound.event";
}

/// Webhooks that came in at the same moment, on the road together: the broker's work is by the message, not by the byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundBatch {
    /// The webhooks, in the order in which they came.
    pub events: Vec<InboundEvent>,
}

impl Envelope for InboundBatch {
    const KIND: &'static str = "inbound.batch";
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn outbound() -> OutboundRef {
        OutboundRef {
            message_id: MessageId(Uuid::from_u128(1)),
            session_id: SessionId(Uuid::from_u128(2)),
            tenant_id: TenantId(Uuid::from_u128(3)),
            fence: 7,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = outbound().to_bytes().unwrap();
        assert_eq!(OutboundRef::parse(&written), Ok(outbound()));
        assert!(written.starts_with(OPENING));
        let json: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(json["v"], 1);
        assert_eq!(json["fence"], 7);
    }

    #[test]
    fn the_webhook_body_survives_unchanged_and_stays_out_of_debug() {
        let event = InboundEvent {
            tenant_id: TenantId(Uuid::from_u128(1)),
            session_id: SessionId(Uuid::from_u128(2)),
            waha_server_id: WahaServerId(Uuid::from_u128(3)),
            received_at: DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
            body: "{\"text\":\"secret \\u0000 \u{1f600}\"} ".to_owned(),
        };
        assert_eq!(InboundEvent::parse(&event.to_bytes().unwrap()), Ok(event.clone()));
        assert!(!format!("{event:?}").contains("secret"));
    }

    #[test]
    fn foreign_bodies_are_refused() {
        assert!(matches!(OutboundRef::parse(b"\xff\x00"), Err(EnvelopeError::Malformed { .. })));
        assert!(matches!(OutboundRef::parse(b"{\"v\":1}"), Err(EnvelopeError::Malformed { .. })));
        assert_eq!(OutboundRef::parse(b"{\"v\":2}"), Err(EnvelopeError::UnknownVersion(2)));
    }
}
