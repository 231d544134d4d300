//! How sessions are kept alive on the WAHA servers.

use std::time::Duration;

use super::Reader;

/// How sessions are kept alive on the WAHA servers.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Sessions of one server that start at the same time; `SWITCHBOARD_STARTS_AT_ONCE`, default 5.
    pub starts_at_once: i64,
    /// How long a session may be starting before it is restarted, twice as long after each restart that did not help;
    /// `SWITCHBOARD_START_DEADLINE_MS`, default 90 s.
    pub start_deadline: Duration,
    /// Restarts of one session in an hour that the gateway decides on by itself; `SWITCHBOARD_RESTARTS_PER_HOUR`, default 4.
    pub restarts_per_hour: u32,
    /// How long after its pairing a session is not restarted, since the engine is still writing the pairing down;
    /// `SWITCHBOARD_RESTART_AFTER_PAIRING_MS`, default 2 min.
    pub restart_after_pairing: Duration,
    /// How long a server must not answer before its sessions move to another one with the same session storage;
    /// `SWITCHBOARD_MOVE_FROM_DEAD_MS`, default never.
    pub move_from_dead: Option<Duration>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            starts_at_once: 5,
            start_deadline: Duration::from_secs(90),
            restarts_per_hour: 4,
            restart_after_pairing: Duration::from_secs(120),
            move_from_dead: None,
        }
    }
}

impl Fleet {
    pub(super) const NAMES: [&str; 5] = [
        "SWITCHBOARD_STARTS_AT_ONCE",
        "SWITCHBOARD_START_DEADLINE_MS",
        "SWITCHBOARD_RESTARTS_PER_HOUR",
        "SWITCHBOARD_RESTART_AFTER_PAIRING_MS",
        "SWITCHBOARD_MOVE_FROM_DEAD_MS",
    ];

    pub(super) fn read(reader: &mut Reader) -> Self {
        let defaults = Self::default();
        let fleet = Self {
            starts_at_once: reader.or("SWITCHBOARD_STARTS_AT_ONCE", defaults.starts_at_once),
            start_deadline: reader.millis("SWITCHBOARD_START_DEADLINE_MS", defaults.start_deadline),
            restarts_per_hour: reader.or("SWITCHBOARD_RESTARTS_PER_HOUR", defaults.restarts_per_hour),
            restart_after_pairing: reader
                .millis("SWITCHBOARD_RESTART_AFTER_PAIRING_MS", defaults.restart_after_pairing),
            move_from_dead: reader.optional("SWITCHBOARD_MOVE_FROM_DEAD_MS").map(Duration::from_millis),
        };
        if fleet.starts_at_once < 1 {
            reader.faults.push("SWITCHBOARD_STARTS_AT_ONCE: must be at least 1".to_owned());
        }
        fleet
    }
}
