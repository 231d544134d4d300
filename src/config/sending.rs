//! Settings of handing messages over.

use std::time::Duration;

use super::Reader;

/// How messages are handed over, and what is done about those that WhatsApp's server does not acknowledge.
#[derive(Clone, Debug)]
pub struct Sending {
    /// Attempts at once in this process; `SWITCHBOARD_SEND_CONCURRENCY`, default 1024. One that has waited for its answer for a
    /// few seconds does not count any more, so that servers that hang do not hold up the others.
    pub at_once: usize,
    /// Attempts at once per WAHA server and process; `SWITCHBOARD_SEND_CONCURRENCY_PER_SERVER`, default 256.
    pub at_once_per_server: u16,
    /// How long to wait for the acknowledgement of WhatsApp's server before looking for the message, sending it again or
    /// giving it up; `SWITCHBOARD_ACK_TIMEOUT_MS`, default 60 s.
    pub ack_timeout: Duration,
    /// Messages of a session in a row without that acknowledgement, or with the same error of the engine, after which the session
    /// is restarted; `SWITCHBOARD_STUCK_AFTER`, default 3.
    pub stuck_after: i32,
    /// The shortest time between two such restarts of a session; `SWITCHBOARD_STUCK_COOL_DOWN_MS`, default 10 min.
    pub stuck_cool_down: Duration,
    /// How long a session is taken to be restricted when WhatsApp does not say until when;
    /// `SWITCHBOARD_RESTRICTION_MS`, default 24 h.
    pub restriction: Duration,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            at_once: 1024,
            at_once_per_server: 256,
            ack_timeout: Duration::from_secs(60),
            stuck_after: 3,
            stuck_cool_down: Duration::from_secs(600),
            restriction: Duration::from_secs(24 * 3600),
        }
    }
}

impl Sending {
    pub(super) const NAMES: [&str; 6] = [
        "SWITCHBOARD_SEND_CONCURRENCY",
        "SWITCHBOARD_SEND_CONCURRENCY_PER_SERVER",
        "SWITCHBOARD_ACK_TIMEOUT_MS",
        "SWITCHBOARD_STUCK_AFTER",
        "SWITCHBOARD_STUCK_COOL_DOWN_MS",
        "SWITCHBOARD_RESTRICTION_MS",
    ];

    pub(super) fn read(reader: &mut Reader) -> Self {
        let defaults = Self::default();
        let read = Self {
            at_once: reader.or("SWITCHBOARD_SEND_CONCURRENCY", defaults.at_once),
            at_once_per_server: reader.or("SWITCHBOARD_SEND_CONCURRENCY_PER_SERVER", defaults.at_once_per_server),
            ack_timeout: reader.millis("SWITCHBOARD_ACK_TIMEOUT_MS", defaults.ack_timeout),
            stuck_after: reader.or("SWITCHBOARD_STUCK_AFTER", defaults.stuck_after),
            stuck_cool_down: reader.millis("SWITCHBOARD_STUCK_COOL_DOWN_MS", defaults.stuck_cool_down),
            restriction: reader.millis("SWITCHBOARD_RESTRICTION_MS", defaults.restriction),
        };
        for (name, least) in [
            ("SWITCHBOARD_SEND_CONCURRENCY", read.at_once),
            ("SWITCHBOARD_SEND_CONCURRENCY_PER_SERVER", read.at_once_per_server.into()),
            ("SWITCHBOARD_STUCK_AFTER", usize::try_from(read.stuck_after).unwrap_or(0)),
        ] {
            if least == 0 {
                reader.faults.push(format!("{name}: must be at least 1"));
            }
        }
        read
    }
}
