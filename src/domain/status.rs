//! The life of a message, and which step may follow which.
//!
//! Status only moves forward, by rank. Evidence beats its absence: an acknowledgement supersedes a failure that was
//! concluded from silence.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a message is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, to be queued at `scheduled_at`.
    Scheduled,
    /// Accepted and waiting for its turn.
    Queued,
    /// Its turn has come: being handed to WhatsApp, not yet acknowledged by WhatsApp's server.
    Sending,
    /// WhatsApp's server has it.
    Sent,
    /// It reached the recipient's device.
    Delivered,
    /// The recipient has read it.
    Read,
    /// The recipient has played it (voice and video).
    Played,
    /// It was not sent; `error` says why.
    Failed,
    /// Withdrawn by the tenant before its turn.
    Cancelled,
    /// Its `expires_at` passed before its turn.
    Expired,
    /// Inbound.
    Received,
}

impl Status {
    /// Every status, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::Scheduled,
        Self::Queued,
        Self::Sending,
        Self::Sent,
        Self::Delivered,
        Self::Read,
        Self::Played,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Received,
    ];

    /// The status as the API and the database write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Played => "played",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Received => "received",
        }
    }

    /// How far along the way; a message never takes a step to a lower rank.
    #[must_use]
    pub const fn rank(self) -> u8 {
        match self {
            Self::Scheduled => 0,
            Self::Queued => 1,
            Self::Sending => 2,
            Self::Failed => 3,
            Self::Sent => 4,
            Self::Delivered => 5,
            Self::Read => 6,
            Self::Played => 7,
            Self::Cancelled | Self::Expired | Self::Received => 8,
        }
    }

    /// The event that tells the tenant of this status; `sending` has none.
    #[must_use]
    pub const fn event_type(self) -> Option<&'static str> {
        match self {
            Self::Scheduled | Self::Sending => None,
            Self::Queued => Some("message.queued"),
            Self::Sent => Some("message.sent"),
            Self::Delivered => Some("message.delivered"),
            Self::Read => Some("message.read"),
            Self::Played => Some("message.played"),
            Self::Failed => Some("message.failed"),
            Self::Cancelled => Some("message.cancelled"),
            Self::Expired => Some("message.expired"),
            Self::Received => Some("message.received"),
        }
    }

    /// The steps an acknowledgement takes an outbound message through; empty when it says nothing new. A level implies
    /// the ones below it, so a `read` that overtakes its `delivered` still leaves a whole history.
    #[must_use]
    pub fn after_ack(self, ack: Ack) -> Vec<Self> {
        match (ack, self) {
            (Ack::Error, Self::Queued | Self::Sending) => vec![Self::Failed],
            (Ack::Error | Ack::Pending, _) | (_, Self::Cancelled | Self::Expired | Self::Received) => Vec::new(),
            (Ack::Server | Ack::Device | Ack::Read | Ack::Played, _) => {
                [Self::Sent, Self::Delivered, Self::Read, Self::Played]
                    .into_iter()
                    .take_while(|step| step.rank() <= ack.reaches().rank())
                    .filter(|step| step.rank() > self.rank())
                    .collect()
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a status.
#[derive(Debug, thiserror::Error)]
#[error("not a message status")]
pub struct UnknownStatus;

impl FromStr for Status {
    type Err = UnknownStatus;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

/// WhatsApp's acknowledgement levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ack {
    /// −1: refused or failed.
    Error,
    /// 0: in the engine only.
    Pending,
    /// 1: WhatsApp's server has it.
    Server,
    /// 2: reached a device of the recipient.
    Device,
    /// 3: read.
    Read,
    /// 4: played.
    Played,
}

impl Ack {
    /// From WAHA's number; `None` for one that WAHA does not document.
    #[must_use]
    pub const fn from_level(level: i16) -> Option<Self> {
        Some(match level {
            -1 => Self::Error,
            0 => Self::Pending,
            1 => Self::Server,
            2 => Self::Device,
            3 => Self::Read,
            4 => Self::Played,
            _ => return None,
        })
    }

    /// WAHA's number.
    #[must_use]
    pub const fn level(self) -> i16 {
        match self {
            Self::Error => -1,
            Self::Pending => 0,
            Self::Server => 1,
            Self::Device => 2,
            Self::Read => 3,
            Self::Played => 4,
        }
    }

    const fn reaches(self) -> Status {
        match self {
            Self::Error => Status::Failed,
            Self::Pending => Status::Sending,
            Self::Server => Status::Sent,
            Self::Device => Status::Delivered,
            Self::Read => Status::Read,
            Self::Played => Status::Played,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_overtakes_leaves_a_whole_history() {
        assert_eq!(Status::Sending.after_ack(Ack::Read), [Status::Sent, Status::Delivered, Status::Read]);
        assert_eq!(Status::Read.after_ack(Ack::Device), []);
    }

    #[test]
    fn evidence_beats_a_failure_and_never_the_other_way() {
        assert_eq!(Status::Failed.after_ack(Ack::Server), [Status::Sent]);
        assert_eq!(Status::Delivered.after_ack(Ack::Error), []);
        assert_eq!(Status::Sent.after_ack(Ack::Error), []);
        assert_eq!(Status::Cancelled.after_ack(Ack::Read), []);
    }

    #[test]
    fn names_round_trip() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>().unwrap(), status);
        }
    }
}
