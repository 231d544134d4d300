//! How fast a lane may go: the caps over sliding windows, and what a young number may send.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most that any cap may be.
const MOST: i32 = 1_000_000;
/// The longest gap between two messages, in milliseconds: a day.
const MOST_GAP: i32 = 86_400_000;

/// How fast a session's messages may leave. Gap and caps hold for every priority, and every attempt counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"min_gap_ms": 1000, "jitter_ms": 500, "per_minute": 20, "per_day": 1000, "typing": true}))]
pub struct Pacing {
    /// The smallest gap between two messages, in milliseconds; 0 switches it off.
    #[serde(default = "Pacing::default_gap")]
    #[schema(minimum = 0, maximum = 86_400_000, default = 1000)]
    pub min_gap_ms: i32,
    /// The most that chance adds to each gap, in milliseconds; 0 switches it off.
    #[serde(default = "Pacing::default_jitter")]
    #[schema(minimum = 0, maximum = 86_400_000, default = 500)]
    pub jitter_ms: i32,
    /// Messages in any 60 seconds at the most; 0 or absent: no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub per_minute: Option<i32>,
    /// Messages in any 60 minutes at the most; 0 or absent: no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub per_hour: Option<i32>,
    /// Messages in any 24 hours at the most; 0 or absent: no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub per_day: Option<i32>,
    /// First messages to people who never wrote, in any 24 hours at the most; 0 or absent: no cap. Those above it wait and
    /// hold up nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub new_chats_per_day: Option<i32>,
    /// Whether the recipient sees "typing…" before a text, for as long as a person would need.
    #[serde(default)]
    #[schema(default = false)]
    pub typing: bool,
    /// Begin slowly with a number that was just paired. Needs `per_day`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
}

/// How `per_day` grows in the first days after a session first worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"days": 14, "start_per_day": 20}))]
pub struct WarmUp {
    /// After this many days `per_day` itself holds; from day to day the cap grows by the same factor.
    #[schema(minimum = 1, maximum = 365)]
    pub days: i32,
    /// The cap of the first day: at least 1, at most `per_day`.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub start_per_day: i32,
}

impl Pacing {
    const fn default_gap() -> i32 {
        1000
    }

    const fn default_jitter() -> i32 {
        500
    }

    /// What is wrong with it beyond its form: the field, below `pacing`, and the rule.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, &'static str)> {
        let mut faults = Vec::new();
        for (field, gap) in [("min_gap_ms", self.min_gap_ms), ("jitter_ms", self.jitter_ms)] {
            if !(0..=MOST_GAP).contains(&gap) {
                faults.push((field, "must be from 0 to 86400000"));
            }
        }
        for (field, cap) in [
            ("per_minute", self.per_minute),
            ("per_hour", self.per_hour),
            ("per_day", self.per_day),
            ("new_chats_per_day", self.new_chats_per_day),
        ] {
            if cap.is_some_and(|cap| !(0..=MOST).contains(&cap)) {
                faults.push((field, "must be from 0 to 1000000"));
            }
        }
        if let Some(warm_up) = self.warm_up {
            if !(1..=365).contains(&warm_up.days) {
                faults.push(("warm_up.days", "must be from 1 to 365"));
            }
            match self.per_day.filter(|cap| *cap > 0) {
                None => faults.push(("warm_up", "needs `per_day`, towards which it grows")),
                Some(cap) if !(1..=cap).contains(&warm_up.start_per_day) => {
                    faults.push(("warm_up.start_per_day", "must be from 1 to `per_day`"));
                }
                Some(_) => {}
            }
        }
        faults
    }
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            min_gap_ms: Self::default_gap(),
            jitter_ms: Self::default_jitter(),
            per_minute: None,
            per_hour: None,
            per_day: None,
            new_chats_per_day: None,
            typing: false,
            warm_up: None,
        }
    }
}

/// The cap per day that holds at `now` for a number that has worked since `since`, and until when it holds if it still
/// grows. One that has not worked yet is as on its first day.
#[must_use]
pub fn per_day_at(
    per_day: i32,
    warm_up: WarmUp,
    since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> (i32, Option<DateTime<Utc>>) {
    let since = since.unwrap_or(now).min(now);
    let day = i32::try_from((now - since).num_days()).unwrap_or(i32::MAX);
    if day >= warm_up.days {
        return (per_day, None);
    }
    let start = warm_up.start_per_day.clamp(1, per_day.max(1));
    let factor = (f64::from(per_day) / f64::from(start)).powf(f64::from(day) / f64::from(warm_up.days));
    // Between start and per_day, both of which are whole and small.
    #[expect(clippy::cast_possible_truncation, reason = "a float is cut to the range of the target")]
    let cap = (f64::from(start) * factor + 1e-9).floor() as i32;
    (cap.clamp(start, per_day.max(start)), Some(since + TimeDelta::days(i64::from(day) + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64, hour: i64) -> DateTime<Utc> {
        "2026-11-21T12:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(day) + TimeDelta::hours(hour)
    }

    #[test]
    fn a_young_number_sends_less() {
        let warm_up = WarmUp { days: 10, start_per_day: 10 };
        let cap = |day, hour| per_day_at(1000, warm_up, Some(at(0, 0)), at(day, hour));
        assert_eq!(cap(0, 0), (10, Some(at(1, 0))));
        assert_eq!(cap(0, 23), (10, Some(at(1, 0))));
        // 100 times as much in ten days: tenfold in five.
        assert_eq!(cap(5, 1), (100, Some(at(6, 0))));
        assert_eq!(cap(9, 0), (630, Some(at(10, 0))));
        assert_eq!(cap(10, 0), (1000, None));
        assert_eq!(cap(10_000, 0), (1000, None));
        let caps: Vec<i32> = (0..=10).map(|day| cap(day, 0).0).collect();
        assert!(caps.windows(2).all(|pair| pair[0] < pair[1]), "{caps:?}");
        assert_eq!(per_day_at(1000, warm_up, None, at(3, 0)), (10, Some(at(4, 0))), "has not worked yet");
        assert_eq!(per_day_at(1000, warm_up, Some(at(3, 0)), at(0, 0)).0, 10, "by a clock that is ahead");
        assert_eq!(per_day_at(5, WarmUp { days: 3, start_per_day: 5 }, Some(at(0, 0)), at(1, 0)).0, 5);
    }

    #[test]
    fn faults_name_their_field() {
        let fields = |pacing: Pacing| -> Vec<&str> { pacing.faults().into_iter().map(|fault| fault.0).collect() };
        let warm = |days, start_per_day| Some(WarmUp { days, start_per_day });
        assert!(fields(Pacing::default()).is_empty());
        assert!(fields(Pacing { per_day: Some(50), warm_up: warm(14, 50), ..Pacing::default() }).is_empty());
        assert_eq!(
            fields(Pacing { jitter_ms: MOST_GAP + 1, per_minute: Some(-1), ..Pacing::default() }),
            ["jitter_ms", "per_minute"]
        );
        assert_eq!(fields(Pacing { warm_up: warm(14, 5), ..Pacing::default() }), ["warm_up"]);
        assert_eq!(fields(Pacing { per_day: Some(0), warm_up: warm(14, 5), ..Pacing::default() }), ["warm_up"]);
        let both = Pacing { per_day: Some(9), warm_up: warm(0, 10), ..Pacing::default() };
        assert_eq!(fields(both), ["warm_up.days", "warm_up.start_per_day"]);
    }
}
