//! Fifty sessions for an hour, on a clock that is moved from turn to turn: never too soon, never too many, never at night.

use chrono::TimeDelta;
use serde_json::json;

use super::stand::{Lane, PLAIN, Stand, at};

/// The clocks of Berlin are moved forward in the middle: 01:59:59 is followed by 03:00.
const START: &str = "2027-03-28T00:30:00Z";
const HOUR: TimeDelta = TimeDelta::hours(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_of_fifty_paced_sessions_across_a_change_of_the_clocks() {
    let stand = Stand::new(START).await;
    let window = |from: &str, to: &str| {
        let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        Some(json!({"timezone": "Europe/Berlin", "weekly": [{"days": days, "from": from, "to": to}]}))
    };
    let mut lanes = Vec::new();
    for index in 0..50 {
        let paced = Lane { gap_ms: 1000, ..PLAIN };
        let (lane, messages) = match index {
            // Ten minutes without a pause.
            0..3 => (paced, 600),
            3 => (Lane { gap_ms: 20_000, jitter_ms: 20_000, ..paced }, 200),
            4..20 => (Lane { per_minute: Some(10), ..paced }, 700),
            20..35 => (Lane { per_hour: Some(100), per_minute: Some(40), ..paced }, 150),
            35..40 => (Lane { windows: window("01:00", "03:10"), per_minute: Some(12), ..paced }, 800),
            40..45 => (Lane { windows: window("02:30", "04:00"), per_minute: Some(12), ..paced }, 800),
            _ => (Lane { windows: window("02:00", "02:59"), ..paced }, 20),
        };
        let session = stand.lane(lane).await;
        stand.queue(session, messages, 1).await;
        lanes.push(session);
    }
    let sent = stand.run_until(at(START) + HOUR).await;

    let gaps = "SELECT count(*)::text FROM (
        SELECT s.at - lag(s.at) OVER (PARTITION BY session_id ORDER BY s.at) AS gap FROM lane_sends s) g WHERE gap < interval '1 s'";
    assert_eq!(stand.text(gaps).await, "0", "gaps under the minimum");
    let caps = "SELECT count(*)::text FROM lane_sends s JOIN lanes l USING (session_id) WHERE
        (SELECT count(*) FROM lane_sends o WHERE o.session_id = s.session_id AND o.at > s.at - interval '1 minute' AND o.at <= s.at) > l.per_minute
        OR (l.per_hour IS NOT NULL AND (SELECT count(*) FROM lane_sends o
            WHERE o.session_id = s.session_id AND o.at > s.at - interval '1 hour' AND o.at <= s.at) > l.per_hour)";
    assert_eq!(stand.text(caps).await, "0", "sends above a cap");
    // By the database's own reading of the time zone.
    let closed =
        "SELECT count(*)::text FROM lane_sends s JOIN lanes l USING (session_id) WHERE l.windows IS NOT NULL AND NOT (
        (s.at AT TIME ZONE 'Europe/Berlin')::time >= (l.windows #>> '{weekly,0,from}')::time
        AND (s.at AT TIME ZONE 'Europe/Berlin')::time < (l.windows #>> '{weekly,0,to}')::time)";
    assert_eq!(stand.text(closed).await, "0", "sends outside of the window");

    // Nor slower than allowed.
    let breaks = "SELECT count(*) FROM (SELECT s.at - lag(s.at) OVER (PARTITION BY session_id ORDER BY s.at) AS gap FROM lane_sends s
        JOIN lanes l USING (session_id) WHERE l.per_minute IS NULL AND l.min_gap_ms = 1000 AND l.windows IS NULL) g WHERE gap > interval '1 s'";
    assert_eq!(stand.text(breaks).await, "0", "a pause for no cause");
    let mut counts = Vec::new();
    for session in &lanes {
        let count = stand.text(&format!("SELECT count(*) FROM lane_sends WHERE session_id = '{session}'")).await;
        let count: i64 = count.parse().unwrap();
        counts.push(count);
    }
    assert!(counts[..3].iter().all(|count| *count == 600), "{counts:?}");
    assert!((100..=145).contains(&counts[3]), "a gap of 20 to 40 s: {counts:?}");
    assert!(counts[4..20].iter().all(|count| (600..=610).contains(count)), "{counts:?}");
    assert!(counts[20..35].iter().all(|count| (100..=101).contains(count)), "{counts:?}");
    // 30 minutes before the change and ten after it; the second kind opens with the change and has half an hour.
    assert!(counts[35..40].iter().all(|count| (470..=492).contains(count)), "{counts:?}");
    assert!(counts[40..45].iter().all(|count| (350..=372).contains(count)), "{counts:?}");
    assert!(counts[45..].iter().all(|count| *count == 0), "an hour that does not exist: {counts:?}");
    let opened = "SELECT min(s.at)::text FROM lane_sends s JOIN lanes l USING (session_id)
        WHERE l.windows #>> '{weekly,0,from}' = '02:30'";
    stand.sql.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
    assert_eq!(stand.text(opened).await, "2027-03-28 01:00:00+00", "as soon as the clocks are moved");
    assert_eq!(i64::try_from(sent.len()).unwrap(), counts.iter().sum::<i64>());
    eprintln!("an hour of 50 sessions: {} sends", sent.len());
}
