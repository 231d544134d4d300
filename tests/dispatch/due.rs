//! What a look at the lanes gives: caps, windows, priorities, expiry, breakers.

use chrono::TimeDelta;
use serde_json::json;
use switchboard::dispatch::sweep::Swept;

use super::stand::{Lane, PLAIN, Stand, at, fresh};

const START: &str = "2026-11-23T10:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_is_a_sliding_window() {
    let stand = Stand::new(START).await;
    let session = stand.lane(Lane { gap_ms: 1000, per_minute: Some(3), per_hour: Some(5), ..PLAIN }).await;
    stand.queue(session, 8, 1).await;
    let sent = stand.run_until(at("2026-11-23T11:30:00Z")).await;
    let seconds: Vec<i64> = sent.iter().map(|(when, _)| (*when - at(START)).num_seconds()).collect();
    assert_eq!(seconds, [0, 1, 2, 60, 61, 3600, 3601, 3602]);
    // An idle lane has nothing to be looked at for.
    assert_eq!(stand.next().await, None);
    assert_eq!(stand.text("SELECT queued FROM lanes").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_and_gap_hold_for_high_messages_too() {
    let stand = Stand::new(START).await;
    let session = stand.lane(Lane { gap_ms: 10_000, per_minute: Some(2), ..PLAIN }).await;
    stand.queue(session, 5, 0).await;
    let sent = stand.run_until(at("2026-11-23T10:02:30Z")).await;
    let seconds: Vec<i64> = sent.iter().map(|(when, _)| (*when - at(START)).num_seconds()).collect();
    assert_eq!(seconds, [0, 10, 60, 70, 120]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_number_warms_up() {
    let stand = Stand::new(START).await;
    let warm_up = Some(json!({"days": 3, "start_per_day": 2}));
    let session = stand.lane(Lane { gap_ms: 1000, per_day: Some(16), warm_up, ..PLAIN }).await;
    stand.queue(session, 100, 1).await;
    let sent = stand.run_until(at(START) + TimeDelta::days(5)).await;
    let mut days = [0; 5];
    for (when, _) in &sent {
        let day = usize::try_from((*when - at(START)).num_days()).unwrap();
        days[day.min(4)] += 1;
    }
    // 2, 4, 8 and then 16 in any 24 hours.
    assert_eq!(&days[..4], &[2, 4, 8, 16], "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_the_window_only_high_ones_leave() {
    let stand = Stand::new("2026-11-23T06:00:00Z").await;
    let windows =
        json!({"timezone": "Europe/Berlin", "weekly": [{"days": ["mon", "tue"], "from": "09:00", "to": "17:00"}]});
    let session = stand.lane(Lane { windows: Some(windows), ..PLAIN }).await;
    let normal = stand.queue(session, 1, 1).await;
    assert!(stand.turn().await.is_empty());
    assert_eq!(stand.next().await, Some(at("2026-11-23T08:00:00Z")));
    let high = stand.queue(session, 2, 0).await;
    assert_eq!([stand.turn().await, stand.turn().await].concat(), high);
    assert!(stand.turn().await.is_empty());
    let sent = stand.run_until(at("2026-11-23T20:00:00Z")).await;
    assert_eq!(sent, [(at("2026-11-23T08:00:00Z"), normal[0])]);
    // Accepted after hours: tomorrow.
    stand.queue(session, 1, 2).await;
    assert!(stand.turn().await.is_empty());
    assert_eq!(stand.next().await, Some(at("2026-11-24T08:00:00Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclaimed_turn_steps_back_for_a_high_one_and_a_claimed_one_does_not() {
    let stand = Stand::new(START).await;
    let session = stand.lane(PLAIN).await;
    let normal = stand.queue(session, 1, 1).await;
    let lost = stand.look().await;
    assert_eq!(lost.turns[0].1.message_id.0, normal[0]);
    let high = stand.queue(session, 1, 0).await;
    stand.advance(31_000);
    let again = stand.look().await;
    assert_eq!(again.turns[0].1.message_id.0, high[0]);
    assert!(stand.send(&lost).await.is_empty(), "a turn that was taken back is refused");
    assert_eq!(stand.send(&again).await, high);

    // Claimed, and its worker died: it keeps its turn, whatever waits.
    let due = stand.look().await;
    assert_eq!(due.turns[0].1.message_id.0, normal[0]);
    stand.sql.batch_execute("UPDATE messages SET status = 'sending', attempts = 1, attempt_state = 'open' WHERE status = 'queued'; UPDATE lanes SET claimed_fence = fence, queued = 0").await.unwrap();
    stand.queue(session, 1, 0).await;
    stand.advance(31_000);
    assert_eq!(stand.look().await.turns[0].1.message_id.0, normal[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduled_to_the_second_expired_in_time_and_once() {
    let stand = Stand::new(START).await;
    let session = stand.lane(PLAIN).await;
    let later = stand.insert(session, 3, 1, "'scheduled', $4 + interval '10 s', NULL, NULL, '{}'").await;
    let expiring = stand.insert(session, 2, 1, "'queued', NULL, $4 + interval '5 s', NULL, '{}'").await;
    let never = stand.insert(session, 1, 1, "'scheduled', $4 + interval '9 s', $4 + interval '8 s', NULL, '{}'").await;
    let first = stand.sweep().await;
    assert_eq!(first, Swept { next: Some(at("2026-11-23T10:00:09Z")), ..Swept::default() });
    assert_eq!(stand.turn().await, [expiring[0]]);

    stand.advance(5000);
    // Past its time: nobody takes it, even before it is swept.
    assert!(stand.look().await.turns.is_empty());
    assert_eq!(stand.text("SELECT queued FROM lanes").await, "1");
    assert_eq!(stand.sweep().await.expired, 1);
    assert_eq!(stand.text("SELECT queued FROM lanes").await, "0");
    stand.advance(5000);
    let (one, other) = tokio::join!(stand.sweep(), stand.sweep());
    assert_eq!((one.queued + other.queued, one.expired + other.expired), (3, 1));
    let sent = stand.run_until(at("2026-11-23T10:00:20Z")).await;
    assert_eq!(sent.iter().map(|sent| sent.1).collect::<Vec<_>>(), later, "in the order in which they were accepted");
    assert!(sent.iter().all(|(when, _)| *when <= at("2026-11-23T10:00:11Z")));
    for (id, steps, events) in [
        (expiring[1], "expired", "message.expired"),
        (never[0], "expired", "message.expired"),
        (later[0], "queued", "message.queued"),
    ] {
        let query = format!("SELECT string_agg(status, ',') FROM message_transitions WHERE message_id = '{id}'");
        assert_eq!(stand.text(&query).await, steps);
        let query = format!("SELECT string_agg(type, ',') FROM events WHERE message_id = '{id}'");
        assert_eq!(stand.text(&query).await, events);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dispatched_and_not_claimed_expires_and_its_turn_is_void() {
    let stand = Stand::new(START).await;
    let session = stand.lane(PLAIN).await;
    stand.insert(session, 1, 1, "'queued', NULL, $4 + interval '5 s', NULL, '{}'").await;
    let next = stand.queue(session, 1, 1).await;
    let due = stand.look().await;
    stand.advance(6000);
    assert_eq!(stand.sweep().await.expired, 1);
    assert!(stand.send(&due).await.is_empty());
    assert_eq!(stand.turn().await, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_messages_are_released_in_order_as_room_appears() {
    let stand = Stand::new(START).await;
    let session = stand.lane(Lane { gap_ms: 1000, new_chats_per_day: Some(2), ..PLAIN }).await;
    let held = stand.insert(session, 3, 1, "'queued', NULL, NULL, 'new_chats_per_day', '{\"cold\": true}'").await;
    let urgent = stand.insert(session, 1, 0, "'queued', NULL, NULL, 'new_chats_per_day', '{\"cold\": true}'").await;
    // Nothing makes the lane due but the sweep.
    assert_eq!(stand.next().await, None);
    let mut sent = Vec::new();
    for _ in 0..10 {
        stand.sweep().await;
        sent.extend(stand.turn().await);
        stand.advance(1000);
    }
    assert_eq!(sent, [urgent[0], held[0]], "up to the room, high ones first");
    assert_eq!(stand.next().await, None, "without room it costs nothing");
    // A reply is not held up by them.
    let reply = stand.queue(session, 1, 1).await;
    assert_eq!(stand.turn().await, reply);
    stand.move_to(at(START) + TimeDelta::hours(24));
    stand.sweep().await;
    assert_eq!(stand.turn().await, [held[1]], "a day after the first");
    // Without a cap they are all let go.
    stand.sql.batch_execute("UPDATE lanes SET new_chats_per_day = NULL").await.unwrap();
    assert_eq!(stand.sweep().await.released, 1);
    stand.advance(1000);
    assert_eq!(stand.turn().await, [held[2]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restriction_that_is_over_lets_its_messages_go() {
    let stand = Stand::new(START).await;
    let (one, two) = (stand.lane(PLAIN).await, stand.lane(PLAIN).await);
    let rest = "'queued', NULL, NULL, 'restricted', '{}'";
    let (of_one, of_two) = (stand.insert(one, 2, 1, rest).await, stand.insert(two, 700, 2, rest).await);
    stand
        .sql
        .batch_execute(&format!(
            "UPDATE lanes SET restricted_until = '2026-11-23T11:00:00Z' WHERE session_id = '{one}';
             UPDATE lanes SET restricted_until = 'infinity' WHERE session_id = '{two}';
             UPDATE waha_sessions SET restriction_kind = 'x', restriction_since = now()"
        ))
        .await
        .unwrap();
    assert_eq!(stand.sweep().await, Swept::default());
    stand.move_to(at("2026-11-23T11:00:00Z"));
    let swept = stand.sweep().await;
    assert_eq!((swept.unrestricted, swept.released), (1, 2));
    assert_eq!([stand.turn().await, stand.turn().await].concat(), of_one);
    let over = "SELECT string_agg((restriction_kind IS NULL) || ' ' || version, ',' ORDER BY restriction_kind NULLS FIRST) FROM waha_sessions";
    assert_eq!(stand.text(over).await, "true 2,false 1");
    // Lifted by an event: in batches.
    stand.sql.batch_execute("UPDATE lanes SET restricted_until = NULL").await.unwrap();
    let (first, second) = (stand.sweep().await, stand.sweep().await);
    assert_eq!((first.released, first.more, second.released, second.more), (500, true, 200, false));
    assert_eq!(stand.text(&format!("SELECT queued FROM lanes WHERE session_id = '{two}'")).await, "700");
    assert_eq!(stand.turn().await, [of_two[0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_stops_its_server_alone_and_is_tried_one_by_one() {
    let stand = Stand::new(START).await;
    let other = fresh();
    stand.server(other).await;
    for _ in 0..20 {
        let session = stand.lane(PLAIN).await;
        stand.queue(session, 3, 1).await;
    }
    let healthy = stand.lane_at(other, PLAIN).await;
    let elsewhere = stand.queue(healthy, 1, 1).await;
    let open =
        format!("UPDATE waha_servers SET breaker_open_until = '2026-11-23T10:01:00Z' WHERE id = '{}'", stand.server);
    stand.sql.batch_execute(&open).await.unwrap();
    assert_eq!(stand.turn().await, elsewhere);
    let early =
        "SELECT count(*) FROM lanes WHERE ready_at < '2026-11-23T10:01:00Z' OR ready_at > '2026-11-23T10:01:02Z'";
    assert_eq!(stand.text(early).await, "0", "they cost nothing until then, and do not come all at once");

    // Half open: one at a time, even from two dispatchers.
    stand.move_to(at("2026-11-23T10:01:02Z"));
    let (one, two) = tokio::join!(stand.look(), stand.look());
    assert_eq!(one.turns.len() + two.turns.len(), 1);
    for _ in 0..20 {
        stand.advance(500);
        assert!(stand.look().await.turns.is_empty(), "while the first is out");
    }
    let trial = if one.turns.is_empty() { two } else { one };
    assert_eq!(stand.send(&trial).await.len(), 1);
    stand.advance(500);
    assert_eq!(stand.look().await.turns.len(), 1, "it did not close the breaker: another try");
    // Closed: everybody but the one that is out.
    stand.sql.batch_execute("UPDATE waha_servers SET breaker_open_until = NULL").await.unwrap();
    stand.advance(1500);
    assert_eq!(stand.look().await.turns.len(), 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_bulk_messages_delay_a_high_one_by_one_gap_at_the_most() {
    let stand = Stand::new(START).await;
    let session = stand.lane(Lane { gap_ms: 1000, jitter_ms: 500, ..PLAIN }).await;
    stand.queue(session, 100_000, 2).await;
    for round in 0..20 {
        // Somewhere between two sends.
        stand.run_until(stand.now() + TimeDelta::milliseconds(700 + round * 131)).await;
        let accepted = stand.now();
        let high = stand.queue(session, 1, 0).await;
        let sent = stand.run_until(accepted + TimeDelta::milliseconds(1500)).await;
        assert_eq!(sent[0].1, high[0], "before every bulk message");
        assert!(sent[0].0 - accepted <= TimeDelta::milliseconds(1500));
    }
}
