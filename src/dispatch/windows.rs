//! Sending windows: when normal and bulk messages may leave, on the wall clock of the tenant's time zone.
//!
//! Everything is decided on the wall clock: an hour that is skipped in spring is never open, one that comes twice in autumn is
//! open twice, and a window that begins in a skipped hour opens when the clocks have moved.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone, Timelike, Utc, Weekday};
use chrono_tz::Tz;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// How far ahead an opening is looked for: closed dates rarely reach further than a year.
const HORIZON_DAYS: u64 = 800;
/// Ranges and closed dates at the most.
const MOST_RANGES: usize = 50;
const MOST_CLOSED: usize = 1000;
const DAY: u32 = 24 * 60;

/// When normal and bulk messages may leave; high ones always may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "timezone": "Europe/Berlin",
    "weekly": [{"days": ["mon", "tue", "wed", "thu", "fri"], "from": "09:00", "to": "18:00"}],
    "closed": ["2026-12-25"]
}))]
pub struct Windows {
    /// The zone whose clock counts: a name of the IANA time zone database, such as `Europe/Berlin`. Daylight saving is
    /// followed.
    #[schema(value_type = String, example = "Europe/Berlin")]
    pub timezone: Zone,
    /// When messages may leave: 1 to 50 ranges. What none of them covers is closed.
    #[schema(min_items = 1, max_items = 50)]
    pub weekly: Vec<Range>,
    /// Dates on which nothing leaves, from midnight to midnight: at most 1000.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["2026-12-25"]), max_items = 1000)]
    pub closed: BTreeSet<NaiveDate>,
}

/// A range of each of some weekdays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WindowRange)]
pub struct Range {
    /// `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`: the days on which it begins.
    #[schema(min_items = 1, max_items = 7)]
    pub days: Vec<Day>,
    /// When it begins: `HH:MM`.
    #[schema(value_type = String, pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$", example = "09:00")]
    pub from: Clock,
    /// When it ends, exclusive: `HH:MM`, up to `24:00`. Earlier than `from`, it ends on the next day.
    #[schema(value_type = String, pattern = "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", example = "18:00")]
    pub to: Clock,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = WindowDay)]
#[expect(missing_docs, reason = "days")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    const fn of(day: Weekday) -> Self {
        match day {
            Weekday::Mon => Self::Mon,
            Weekday::Tue => Self::Tue,
            Weekday::Wed => Self::Wed,
            Weekday::Thu => Self::Thu,
            Weekday::Fri => Self::Fri,
            Weekday::Sat => Self::Sat,
            Weekday::Sun => Self::Sun,
        }
    }
}

/// A time zone by its IANA name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone(pub Tz);

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse()
            .map(Self)
            .map_err(|_| D::Error::custom("invalid value: no zone, expected a time zone such as Europe/Berlin"))
    }
}

/// A time of day, to the minute; `24:00` is the end of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clock(u32);

impl FromStr for Clock {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (hours, minutes) = text.split_once(':').ok_or(())?;
        let number = |digits: &str| -> Result<u32, ()> {
            let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
            if plain { digits.parse().map_err(|_| ()) } else { Err(()) }
        };
        let (hours, minutes) = (number(hours)?, number(minutes)?);
        let total = hours * 60 + minutes;
        if minutes < 60 && total <= DAY { Ok(Self(total)) } else { Err(()) }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Clock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|()| D::Error::custom("invalid value: no time of day, expected a time of day such as 09:00"))
    }
}

impl Windows {
    /// What is wrong with them beyond their form: the field, below `windows`, and the rule.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, &'static str)> {
        let mut faults = Vec::new();
        if self.weekly.is_empty() || self.weekly.len() > MOST_RANGES {
            faults.push(("weekly".to_owned(), "must have 1 to 50 ranges"));
        }
        for (index, range) in self.weekly.iter().enumerate() {
            if range.days.is_empty() || range.days.len() > 7 {
                faults.push((format!("weekly[{index}].days"), "must have 1 to 7 days"));
            }
            if range.from.0 >= DAY {
                faults.push((format!("weekly[{index}].from"), "must be before 24:00"));
            }
            if range.from == range.to {
                faults.push((format!("weekly[{index}].to"), "must differ from `from`; a whole day is 00:00 to 24:00"));
            }
        }
        if self.closed.len() > MOST_CLOSED {
            faults.push(("closed".to_owned(), "must have at most 1000 dates"));
        }
        if self.closed.iter().any(|date| !(2000..=9999).contains(&date.year())) {
            faults.push(("closed".to_owned(), "must have dates from the year 2000 on"));
        }
        faults
    }

    /// Whether a range begins on `date`, and which.
    fn beginning_on(&self, date: NaiveDate) -> impl Iterator<Item = &Range> {
        let open = !self.closed.contains(&date);
        let day = Day::of(date.weekday());
        self.weekly.iter().filter(move |range| open && range.days.contains(&day))
    }

    fn is_open_on_the_wall(&self, at: NaiveDateTime) -> bool {
        let (date, minute) = (at.date(), at.hour() * 60 + at.minute());
        let today = |range: &Range| range.from.0 <= minute && (minute < range.to.0 || range.to <= range.from);
        // What began the evening before; a closed date ends it at midnight.
        let since_yesterday = |range: &Range| range.to < range.from && minute < range.to.0;
        self.beginning_on(date).any(today)
            || (!self.closed.contains(&date)
                && date.pred_opt().is_some_and(|eve| self.beginning_on(eve).any(since_yesterday)))
    }

    /// Whether normal and bulk messages may leave at `at`.
    #[must_use]
    pub fn is_open(&self, at: DateTime<Utc>) -> bool {
        self.is_open_on_the_wall(at.with_timezone(&self.timezone.0).naive_local())
    }
}

/// The first moment from `now` on at which `windows` are open: `now` itself when they are. `None` when there is none within
/// two years.
#[must_use]
pub fn next_open(windows: &Windows, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if windows.is_open(now) {
        return Some(now);
    }
    // It opens where a range begins or where the clocks are moved; day by day, so that mostly the first day answers.
    (0..HORIZON_DAYS).find_map(|day| {
        let from = now.checked_add_days(Days::new(day))?;
        let until = from.checked_add_days(Days::new(1))?;
        candidates(windows, from, until).into_iter().find(|at| windows.is_open(*at))
    })
}

/// The moments in `from..=until` at which the windows may open, in order.
fn candidates(windows: &Windows, from: DateTime<Utc>, until: DateTime<Utc>) -> BTreeSet<DateTime<Utc>> {
    let zone = windows.timezone.0;
    let date = |at: DateTime<Utc>| at.with_timezone(&zone).date_naive();
    let mut found: BTreeSet<_> = clock_changes(zone, from, until).into_iter().collect();
    // The clocks' changes can shift what falls into the day by a day at the most.
    let first = date(from).pred_opt().unwrap_or_else(|| date(from));
    for date in first.iter_days().take_while(|day| *day <= date(until)) {
        for range in windows.beginning_on(date) {
            let Some(wall) = date.and_hms_opt(range.from.0 / 60, range.from.0 % 60, 0) else { continue };
            let when = zone.from_local_datetime(&wall);
            found.extend([when.earliest(), when.latest()].into_iter().flatten().map(|at| at.with_timezone(&Utc)));
        }
    }
    found.retain(|at| (from..=until).contains(at));
    found
}

/// The moments in `from..=until` at which the zone's clocks are moved.
fn clock_changes(zone: Tz, from: DateTime<Utc>, until: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let offset = |at: DateTime<Utc>| zone.offset_from_utc_datetime(&at.naive_utc()).fix();
    let mut changes = Vec::new();
    let mut start = from;
    while start < until {
        // No zone moves its clocks twice within six hours.
        let end = until.min(start + TimeDelta::hours(6));
        if offset(start) != offset(end) {
            let (mut before, mut after) = (start.timestamp(), end.timestamp() + 1);
            while after - before > 1 {
                let middle = before + (after - before) / 2;
                let at = DateTime::from_timestamp(middle, 0).unwrap_or(end);
                if offset(at) == offset(start) { before = middle } else { after = middle }
            }
            changes.extend(DateTime::from_timestamp(after, 0));
        }
        start = end;
    }
    changes
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
