use proptest::prelude::*;
use serde_json::json;

use super::*;

fn windows(value: serde_json::Value) -> Windows {
    let windows: Windows = serde_json::from_value(value).unwrap();
    assert_eq!(windows.faults(), Vec::new());
    windows
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

#[track_caller]
fn opens(windows: &Windows, now: &str, expected: &str) {
    assert_eq!(next_open(windows, at(now)), Some(at(expected)), "from {now}");
}

fn daily(zone: &str, from: &str, to: &str) -> Windows {
    let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    windows(json!({"timezone": zone, "weekly": [{"days": days, "from": from, "to": to}]}))
}

#[test]
fn office_hours() {
    let office = windows(json!({
        "timezone": "Europe/Berlin",
        "weekly": [
            {"days": ["mon", "tue", "wed", "thu"], "from": "09:00", "to": "12:00"},
            {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "13:00", "to": "18:00"},
        ],
        "closed": ["2026-12-25"],
    }));
    opens(&office, "2026-12-23T08:00:00Z", "2026-12-23T08:00:00Z");
    opens(&office, "2026-12-23T07:59:59.999Z", "2026-12-23T08:00:00Z");
    opens(&office, "2026-12-23T11:00:00Z", "2026-12-23T12:00:00Z");
    opens(&office, "2026-12-23T16:59:59Z", "2026-12-23T16:59:59Z");
    opens(&office, "2026-12-23T17:00:00Z", "2026-12-24T08:00:00Z");
    // Friday is closed, then the weekend.
    opens(&office, "2026-12-24T17:00:00Z", "2026-12-28T08:00:00Z");
}

#[test]
fn over_midnight() {
    let night = windows(json!({
        "timezone": "America/Sao_Paulo",
        "weekly": [{"days": ["fri"], "from": "22:00", "to": "02:00"}],
        "closed": ["2026-11-28"],
    }));
    opens(&night, "2026-11-20T12:00:00Z", "2026-11-21T01:00:00Z");
    opens(&night, "2026-11-21T04:59:00Z", "2026-11-21T04:59:00Z");
    // Closed from midnight on, on the next Saturday.
    assert!(night.is_open(at("2026-11-28T02:59:59Z")));
    opens(&night, "2026-11-28T03:00:00Z", "2026-12-05T01:00:00Z");
    // What begins on a closed date does not happen at all.
    let closed_eve = Windows { closed: [NaiveDate::from_ymd_opt(2026, 11, 27).unwrap()].into(), ..night };
    assert!(!closed_eve.is_open(at("2026-11-28T03:30:00Z")));
}

#[test]
fn the_clocks_go_forward() {
    // Berlin, 2027-03-28: 01:59:59 +01:00 is followed by 03:00 +02:00.
    let skipped = daily("Europe/Berlin", "02:00", "02:45");
    opens(&skipped, "2027-03-28T00:30:00Z", "2027-03-29T00:00:00Z");
    let begins_skipped = daily("Europe/Berlin", "02:30", "04:00");
    opens(&begins_skipped, "2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z");
    assert!(!begins_skipped.is_open(at("2027-03-28T00:59:59Z")));
    assert!(!begins_skipped.is_open(at("2027-03-28T02:00:00Z")), "04:00 has come");
    let office = daily("Europe/Berlin", "09:00", "18:00");
    opens(&office, "2027-03-27T20:00:00Z", "2027-03-28T07:00:00Z");
}

#[test]
fn the_clocks_go_back() {
    // Berlin, 2026-10-25: 02:59:59 +02:00 is followed by 02:00 +01:00.
    let twice = daily("Europe/Berlin", "02:15", "02:45");
    opens(&twice, "2026-10-25T00:00:00Z", "2026-10-25T00:15:00Z");
    opens(&twice, "2026-10-25T00:45:00Z", "2026-10-25T01:15:00Z");
    opens(&twice, "2026-10-25T01:45:00Z", "2026-10-26T01:15:00Z");
    // Back into a range that had ended: open again when the clocks move.
    let ended = daily("Europe/Berlin", "01:00", "02:30");
    opens(&ended, "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z");
    let office = daily("Europe/Berlin", "09:00", "18:00");
    opens(&office, "2026-10-24T20:00:00Z", "2026-10-25T08:00:00Z");
}

#[test]
fn odd_zones() {
    // Lord Howe moves by half an hour; Beirut moves at midnight; Samoa left out 2011-12-30.
    opens(&daily("Australia/Lord_Howe", "02:15", "03:00"), "2026-10-03T15:00:00Z", "2026-10-03T15:30:00Z");
    opens(&daily("Asia/Beirut", "00:00", "01:30"), "2026-03-28T21:30:00Z", "2026-03-28T22:00:00Z");
    let fridays =
        windows(json!({"timezone": "Pacific/Apia", "weekly": [{"days": ["fri"], "from": "00:00", "to": "24:00"}]}));
    opens(&fridays, "2011-12-30T09:00:00Z", "2012-01-05T10:00:00Z");
}

#[test]
fn never_is_an_answer() {
    let mut never = daily("UTC", "00:00", "24:00");
    let first = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    never.closed = first.iter_days().take(1000).collect();
    assert_eq!(next_open(&never, at("2026-01-01T00:00:00Z")), None);
    opens(&never, "2027-01-01T00:00:00Z", "2028-09-27T00:00:00Z");
}

#[test]
fn what_is_no_window_is_refused() {
    let refused = |value: serde_json::Value| serde_json::from_value::<Windows>(value).is_err();
    let with = |field: &str, value: serde_json::Value| {
        let mut range = json!({"days": ["mon"], "from": "09:00", "to": "18:00"});
        range[field] = value;
        json!({"timezone": "UTC", "weekly": [range]})
    };
    assert!(!refused(with("from", json!("00:00"))));
    for bad in ["9:00", "24:01", "25:00", "09:60", "0900", "", "09:0", "+9:00", "09:00:00", "noon"] {
        assert!(refused(with("from", json!(bad))), "{bad}");
    }
    assert!(refused(with("days", json!(["monday"]))));
    assert!(refused(with("days", json!(["Mon"]))));
    assert!(refused(with("until", json!("18:00"))));
    for zone in ["Mars/Base", "", "CEST", "+02:00", "europe/berlin"] {
        let mut value = with("from", json!("09:00"));
        value["timezone"] = json!(zone);
        assert!(refused(value), "{zone}");
    }
    let faults = |value: serde_json::Value| -> Vec<String> {
        serde_json::from_value::<Windows>(value).unwrap().faults().into_iter().map(|fault| fault.0).collect()
    };
    assert_eq!(faults(with("from", json!("24:00"))), ["weekly[0].from"]);
    assert_eq!(faults(with("to", json!("09:00"))), ["weekly[0].to"]);
    assert_eq!(faults(with("days", json!([]))), ["weekly[0].days"]);
    assert_eq!(faults(json!({"timezone": "UTC", "weekly": []})), ["weekly"]);
}

#[test]
fn they_are_kept_as_they_came() {
    let value = json!({
        "timezone": "Asia/Kolkata",
        "weekly": [{"days": ["sat", "sun"], "from": "08:05", "to": "24:00"}],
        "closed": ["2026-12-25"],
    });
    assert_eq!(serde_json::to_value(windows(value.clone())).unwrap(), value);
}

fn any_windows() -> impl Strategy<Value = Windows> {
    let zones =
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "Asia/Kolkata", "America/Santiago"];
    let days =
        prop::sample::subsequence(vec![Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun], 1..=7);
    let range = (days, 0..DAY, 1..=DAY)
        .prop_filter("not empty", |(_, from, to)| from != to)
        .prop_map(|(days, from, to)| Range { days, from: Clock(from), to: Clock(to) });
    (
        prop::sample::select(zones.to_vec()),
        prop::collection::vec(range, 1..3),
        prop::collection::btree_set(0..20_u64, 0..3),
    )
        .prop_map(|(zone, weekly, closed)| Windows {
            timezone: Zone(zone.parse().unwrap()),
            weekly,
            closed: closed.into_iter().filter_map(|day| around_a_change().checked_add_days(Days::new(day))).collect(),
        })
}

/// Both changes of 2026 are near: with half a year between, and in both hemispheres.
fn around_a_change() -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 3, 20).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    // Looking at every minute must find the same.
    #[test]
    fn as_if_one_had_waited(windows in any_windows(), start in 0..(20 * i64::from(DAY)), autumn in any::<bool>()) {
        let season = if autumn { at("2026-09-25T00:00:00Z") } else { at("2026-03-20T00:00:00Z") };
        let now = season + TimeDelta::minutes(start) + TimeDelta::milliseconds(if start % 3 == 0 { 0 } else { 1 });
        let minutes = (0..9 * i64::from(DAY)).map(|minute| if minute == 0 { now } else {
            DateTime::from_timestamp((now.timestamp() / 60 + minute) * 60, 0).unwrap()
        });
        let waited = minutes.into_iter().find(|at| windows.is_open(*at));
        match (next_open(&windows, now), waited) {
            (found, Some(waited)) => prop_assert_eq!(found, Some(waited)),
            (Some(found), None) => prop_assert!(windows.is_open(found) && found > now + TimeDelta::days(8)),
            (None, None) => {}
        }
    }
}
