//! When a failed delivery is tried again.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::chance::Chance;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// The seconds between attempts: ten attempts over about three days.
const DELAYS: [u64; 9] = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];

/// The longest an endpoint may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(24 * HOUR);

/// How many attempts a delivery gets in all.
pub const ATTEMPTS: usize = DELAYS.len() + 1;

/// When to try again after `attempts_made` failed attempts, the last of them at `now`; `None` when they are used up.
///
/// Up to a fifth is added by chance, so that what failed together does not come back together. `retry_after`, as the endpoint
/// asked, is a lower bound, up to 24 hours. A delivery without an attempt is due at once.
#[must_use]
pub fn next_attempt(
    attempts_made: u32,
    now: DateTime<Utc>,
    retry_after: Option<Duration>,
    chance: &Chance,
) -> Option<DateTime<Utc>> {
    let Some(failed_before) = attempts_made.checked_sub(1) else {
        return Some(now);
    };
    let planned = Duration::from_secs(*DELAYS.get(usize::try_from(failed_before).ok()?)?);
    let wished = retry_after.unwrap_or_default().min(LONGEST_WISH);
    let delay = planned.max(wished);
    let delay = delay + chance.jitter(delay / 5);
    now.checked_add_signed(TimeDelta::from_std(delay).ok()?)
}

/// Reads a `Retry-After` header: seconds, or a date. `None` when it is neither; zero when the date has passed.
#[must_use]
pub fn retry_after(header: &str, now: DateTime<Utc>) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(header).ok()?;
    Some((date.with_timezone(&Utc) - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_211_853, 0).unwrap()
    }

    fn delay(attempts_made: u32, retry_after: Option<u64>, chance: &Chance) -> Option<Duration> {
        let at = next_attempt(attempts_made, now(), retry_after.map(Duration::from_secs), chance)?;
        Some((at - now()).to_std().unwrap())
    }

    #[test]
    fn each_attempt_has_its_delay_and_at_most_a_fifth_more() {
        let chance = Chance::seeded(1);
        assert_eq!(delay(0, None, &chance), Some(Duration::ZERO));
        let seconds = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
        for (failed, seconds) in (1..).zip(seconds) {
            let (least, most) = (Duration::from_secs(seconds), Duration::from_secs(seconds) * 6 / 5);
            for _ in 0..200 {
                let delay = delay(failed, None, &chance).unwrap();
                assert!((least..=most).contains(&delay), "{failed}: {delay:?}");
            }
        }
        assert_eq!(ATTEMPTS, 10);
        for used_up in [10, 11, u32::MAX] {
            assert_eq!(delay(used_up, Some(1), &chance), None);
        }
    }

    #[test]
    fn jitter_spreads() {
        let chance = Chance::seeded(1);
        let delays: Vec<_> = (0..100).map(|_| delay(2, None, &chance).unwrap()).collect();
        let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*most - *least > Duration::from_secs(30), "{least:?} {most:?}");
    }

    #[test]
    fn what_the_endpoint_asks_is_a_lower_bound() {
        let chance = Chance::seeded(1);
        let cases =
            [(1, 0, 5), (1, 60, 60), (2, 60, 300), (1, 86_400, 86_400), (1, 10_000_000, 86_400), (9, 7, 86_400)];
        for (failed, wished, least) in cases {
            let delay = delay(failed, Some(wished), &chance).unwrap();
            let least = Duration::from_secs(least);
            assert!((least..=least * 6 / 5).contains(&delay), "{failed} {wished}: {delay:?}");
        }
        assert!(next_attempt(1, now(), Some(Duration::MAX), &chance).is_some());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let date = (now() + TimeDelta::seconds(90)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let past = (now() - TimeDelta::seconds(90)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        for (header, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            (date.as_str(), Some(90)),
            (past.as_str(), Some(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(retry_after(header, now()), seconds.map(Duration::from_secs), "{header}");
        }
    }
}
