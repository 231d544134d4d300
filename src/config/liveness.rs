//! Settings of watching over sessions.

use std::time::Duration;

use super::Reader;

/// How sessions are watched over.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// How often the sessions are counted and those that are due are looked at; `SWITCHBOARD_LIVENESS_MS`, default 5 s.
    pub every: Duration,
    /// Sessions that must fail within 5 minutes for an alarm; `SWITCHBOARD_ALARM_SESSIONS`, default 5.
    pub alarm_sessions: i64,
    /// The share that they must be of those that worked within 10 minutes, in percent; `SWITCHBOARD_ALARM_PERCENT`, default 50.
    pub alarm_percent: i64,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { every: Duration::from_secs(5), alarm_sessions: 5, alarm_percent: 50 }
    }
}

impl Liveness {
    pub(super) const NAMES: [&str; 3] =
        ["SWITCHBOARD_LIVENESS_MS", "SWITCHBOARD_ALARM_SESSIONS", "SWITCHBOARD_ALARM_PERCENT"];

    pub(super) fn read(reader: &mut Reader) -> Self {
        let defaults = Self::default();
        let read = Self {
            every: reader.millis("SWITCHBOARD_LIVENESS_MS", defaults.every),
            alarm_sessions: reader.or("SWITCHBOARD_ALARM_SESSIONS", defaults.alarm_sessions),
            alarm_percent: reader.or("SWITCHBOARD_ALARM_PERCENT", defaults.alarm_percent),
        };
        if read.every.is_zero() {
            reader.faults.push("SWITCHBOARD_LIVENESS_MS: must be at least 1".to_owned());
        }
        if read.alarm_sessions < 1 {
            reader.faults.push("SWITCHBOARD_ALARM_SESSIONS: must be at least 1".to_owned());
        }
        if !(1..=100).contains(&read.alarm_percent) {
            reader.faults.push("SWITCHBOARD_ALARM_PERCENT: must be 1 to 100".to_owned());
        }
        read
    }
}
