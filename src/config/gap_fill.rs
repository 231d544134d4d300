//! Settings of reading back what webhooks did not bring.

use std::time::Duration;

use super::Reader;

/// How gaps are filled.
#[derive(Clone, Debug)]
pub struct GapFill {
    /// How often it is looked for sessions that are due; `SWITCHBOARD_GAP_FILL_POLL_MS`, default 5 s.
    pub every: Duration,
    /// From one fill of a session to the next, give or take a tenth; `SWITCHBOARD_GAP_FILL_INTERVAL_MS`, default 6 h.
    pub interval: Duration,
    /// From an incident to its fill: what is on its way by webhook is left to the webhook; `SWITCHBOARD_GAP_FILL_DELAY_MS`,
    /// default 15 s.
    pub delay: Duration,
    /// How far a fill reaches into the one before; `SWITCHBOARD_GAP_FILL_OVERLAP_MS`, default 10 min.
    pub overlap: Duration,
    /// How far back a fill reaches at the most; `SWITCHBOARD_GAP_FILL_DAYS_BACK`, default 7 days.
    pub days_back: u32,
    /// Messages asked for in one call; `SWITCHBOARD_GAP_FILL_PAGE`, default 100.
    pub page: u32,
    /// Calls at one WAHA server at once, over all nodes; `SWITCHBOARD_GAP_FILL_AT_ONCE`, default 2.
    pub at_once: u32,
    /// Calls at one WAHA server within a minute, over all nodes; `SWITCHBOARD_GAP_FILL_PER_MINUTE`, default 120.
    pub per_minute: u32,
    /// How long one node alone fills a session's gap without a sign of progress; `SWITCHBOARD_GAP_FILL_LEASE_MS`, default
    /// 90 s. Longer than a call takes.
    pub lease: Duration,
}

impl Default for GapFill {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(5),
            interval: Duration::from_secs(6 * 3600),
            delay: Duration::from_secs(15),
            overlap: Duration::from_secs(600),
            days_back: 7,
            page: 100,
            at_once: 2,
            per_minute: 120,
            lease: Duration::from_secs(90),
        }
    }
}

impl GapFill {
    pub(super) const NAMES: [&str; 9] = [
        "SWITCHBOARD_GAP_FILL_POLL_MS",
        "SWITCHBOARD_GAP_FILL_INTERVAL_MS",
        "SWITCHBOARD_GAP_FILL_DELAY_MS",
        "SWITCHBOARD_GAP_FILL_OVERLAP_MS",
        "SWITCHBOARD_GAP_FILL_DAYS_BACK",
        "SWITCHBOARD_GAP_FILL_PAGE",
        "SWITCHBOARD_GAP_FILL_AT_ONCE",
        "SWITCHBOARD_GAP_FILL_PER_MINUTE",
        "SWITCHBOARD_GAP_FILL_LEASE_MS",
    ];

    pub(super) fn read(reader: &mut Reader) -> Self {
        let defaults = Self::default();
        let read = Self {
            every: reader.millis("SWITCHBOARD_GAP_FILL_POLL_MS", defaults.every),
            interval: reader.millis("SWITCHBOARD_GAP_FILL_INTERVAL_MS", defaults.interval),
            delay: reader.millis("SWITCHBOARD_GAP_FILL_DELAY_MS", defaults.delay),
            overlap: reader.millis("SWITCHBOARD_GAP_FILL_OVERLAP_MS", defaults.overlap),
            days_back: reader.or("SWITCHBOARD_GAP_FILL_DAYS_BACK", defaults.days_back),
            page: reader.or("SWITCHBOARD_GAP_FILL_PAGE", defaults.page),
            at_once: reader.or("SWITCHBOARD_GAP_FILL_AT_ONCE", defaults.at_once),
            per_minute: reader.or("SWITCHBOARD_GAP_FILL_PER_MINUTE", defaults.per_minute),
            lease: reader.millis("SWITCHBOARD_GAP_FILL_LEASE_MS", defaults.lease),
        };
        let whole = [
            ("POLL_MS", read.every.is_zero()),
            ("INTERVAL_MS", read.interval.is_zero()),
            ("LEASE_MS", read.lease.is_zero()),
            ("DAYS_BACK", read.days_back == 0),
            ("AT_ONCE", read.at_once == 0),
            ("PER_MINUTE", read.per_minute == 0),
        ];
        for (name, _) in whole.into_iter().filter(|(_, zero)| *zero) {
            reader.faults.push(format!("SWITCHBOARD_GAP_FILL_{name}: must be at least 1"));
        }
        if !(1..=1000).contains(&read.page) {
            reader.faults.push("SWITCHBOARD_GAP_FILL_PAGE: must be 1 to 1000".to_owned());
        }
        read
    }

    /// How long a place at a WAHA server is taken by one call, so that all places together keep to the calls of a minute.
    #[must_use]
    pub fn spacing(&self) -> Duration {
        Duration::from_secs(60) * self.at_once / self.per_minute.max(1)
    }
}
