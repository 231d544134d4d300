//! For how many days a tenant's data is kept: `settings.retention`.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::Value;

/// The days in which a setting may be given.
pub const DAYS: std::ops::RangeInclusive<u32> = 1..=3650;
/// The settings by name.
pub const NAMES: [&str; 4] = ["content_days", "raw_payload_days", "events_days", "attempts_days"];
const DEFAULT: u32 = 30;

/// For how many days things are kept; what is not said has its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Retention {
    /// Texts, files and everything else that messages say; by default they are kept. The messages themselves always are.
    pub content_days: Option<u32>,
    /// What WAHA told of messages, word by word; 30.
    pub raw_payload_days: Option<u32>,
    /// Events and their deliveries; 30.
    pub events_days: Option<u32>,
    /// Attempts to deliver events; 30.
    pub attempts_days: Option<u32>,
}

impl Retention {
    /// What the settings of a tenant say. They were checked when they were made; what cannot be read is the default.
    #[must_use]
    pub fn of(settings: &Value) -> Self {
        let days = |name: &str| {
            let days = settings.get("retention")?.get(name)?.as_u64()?;
            u32::try_from(days).ok().filter(|days| DAYS.contains(days))
        };
        let [content_days, raw_payload_days, events_days, attempts_days] = NAMES.map(days);
        Self { content_days, raw_payload_days, events_days, attempts_days }
    }

    /// Content from before this time goes; `None`: it stays.
    #[must_use]
    pub fn content_before(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.content_days.map(|days| before(now, days))
    }

    /// Raw payloads from before this time go.
    #[must_use]
    pub fn raw_payload_before(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        before(now, self.raw_payload_days.unwrap_or(DEFAULT))
    }

    /// Events from before this time go.
    #[must_use]
    pub fn events_before(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        before(now, self.events_days.unwrap_or(DEFAULT))
    }

    /// Attempts from before this time go.
    #[must_use]
    pub fn attempts_before(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        before(now, self.attempts_days.unwrap_or(DEFAULT))
    }
}

fn before(now: DateTime<Utc>, days: u32) -> DateTime<Utc> {
    now - TimeDelta::days(days.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_said_has_its_default() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1000);
        let none = Retention::of(&json!({}));
        assert_eq!(none.content_before(now), None);
        assert_eq!(none.events_before(now), now - TimeDelta::days(30));
        let some = Retention::of(&json!({"retention": {"content_days": 7, "events_days": null, "attempts_days": 0}}));
        assert_eq!(some.content_before(now), Some(now - TimeDelta::days(7)));
        assert_eq!(some.events_before(now), now - TimeDelta::days(30));
        assert_eq!(some.attempts_before(now), now - TimeDelta::days(30));
    }
}
