//! How files that come with messages are fetched from the WAHA servers.

use std::time::Duration;

use super::Reader;

/// How files that come with messages are fetched from the WAHA servers.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// Files fetched at once by a node; `SWITCHBOARD_MEDIA_FETCHES`, default 8.
    pub at_once: usize,
    /// Of those, from one WAHA server; `SWITCHBOARD_MEDIA_FETCHES_PER_SERVER`, default 4.
    pub per_server: usize,
    /// Of those, of one session; `SWITCHBOARD_MEDIA_FETCHES_PER_SESSION`, default 2.
    pub per_session: usize,
    /// How long one try may take; `SWITCHBOARD_MEDIA_FETCH_TIMEOUT_MS`, default 5 min.
    pub timeout: Duration,
    /// Tries before a file is given up, over about 14 hours if there are 10; `SWITCHBOARD_MEDIA_FETCH_ATTEMPTS`, default 10.
    pub attempts: i32,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { at_once: 8, per_server: 4, per_session: 2, timeout: Duration::from_secs(300), attempts: 10 }
    }
}

impl Arrivals {
    pub(super) const NAMES: [&str; 5] = [
        "SWITCHBOARD_MEDIA_FETCHES",
        "SWITCHBOARD_MEDIA_FETCHES_PER_SERVER",
        "SWITCHBOARD_MEDIA_FETCHES_PER_SESSION",
        "SWITCHBOARD_MEDIA_FETCH_TIMEOUT_MS",
        "SWITCHBOARD_MEDIA_FETCH_ATTEMPTS",
    ];

    pub(super) fn read(reader: &mut Reader) -> Self {
        let defaults = Self::default();
        let read = Self {
            at_once: reader.or("SWITCHBOARD_MEDIA_FETCHES", defaults.at_once),
            per_server: reader.or("SWITCHBOARD_MEDIA_FETCHES_PER_SERVER", defaults.per_server),
            per_session: reader.or("SWITCHBOARD_MEDIA_FETCHES_PER_SESSION", defaults.per_session),
            timeout: reader.millis("SWITCHBOARD_MEDIA_FETCH_TIMEOUT_MS", defaults.timeout),
            attempts: reader.or("SWITCHBOARD_MEDIA_FETCH_ATTEMPTS", defaults.attempts),
        };
        let counts = [
            ("SWITCHBOARD_MEDIA_FETCHES", read.at_once),
            ("SWITCHBOARD_MEDIA_FETCHES_PER_SERVER", read.per_server),
            ("SWITCHBOARD_MEDIA_FETCHES_PER_SESSION", read.per_session),
            ("SWITCHBOARD_MEDIA_FETCH_ATTEMPTS", usize::try_from(read.attempts).unwrap_or_default()),
        ];
        for (name, count) in counts {
            if count < 1 {
                reader.faults.push(format!("{name}: must be at least 1"));
            }
        }
        if read.timeout.is_zero() {
            reader.faults.push("SWITCHBOARD_MEDIA_FETCH_TIMEOUT_MS: must be at least 1".to_owned());
        }
        read
    }
}
