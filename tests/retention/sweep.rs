//! What is old goes, in pieces, and what is in use stays.

use reqwest::{Method, StatusCode};
use serde_json::json;
use switchboard::retention::sweep::{PIECE, sweep};

use super::{count, days, later};
use crate::support::receiver::Answer as Reply;
use crate::support::world::{Client, PATIENCE, text};
use crate::support::{Receiver, World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_says_for_how_long_things_are_kept() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let patch = async |settings: serde_json::Value| {
        Client::send(tenant.request(Method::PATCH, "/v1/tenant").json(&json!({"settings": settings}))).await
    };
    for (retention, field) in [
        (json!([]), "settings.retention"),
        (json!({"content_days": 0}), "settings.retention.content_days"),
        (json!({"events_days": 3651}), "settings.retention.events_days"),
        (json!({"events_days": "30"}), "settings.retention.events_days"),
        (json!({"attempts_days": 1.5}), "settings.retention.attempts_days"),
        (json!({"everything_days": 1}), "settings.retention.everything_days"),
    ] {
        let refused = patch(json!({"retention": retention})).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(text(&refused["errors"][0], "field"), field);
    }
    let kept = json!({"locale": "de", "retention": {"content_days": 7, "raw_payload_days": null}});
    assert_eq!(patch(kept.clone()).await.expect(StatusCode::OK)["settings"], kept);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_goes_and_what_is_in_use_stays() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let receiver = Receiver::start();
    let endpoint = json!({"url": receiver.url("/"), "event_types": ["message.received"]});
    let endpoint = tenant.post("/v1/webhook-endpoints", &endpoint).await.expect(StatusCode::CREATED);
    let failing = Receiver::start();
    failing.answer_always(Reply::status(500));
    let endpoint_failing = json!({"url": failing.url("/"), "event_types": ["message.cancelled"]});
    tenant.post("/v1/webhook-endpoints", &endpoint_failing).await.expect(StatusCode::CREATED);
    let (session, external) = tenant.session("first").await;
    let sql = world.db.connect().await;
    // Contacts are not what this is about.
    sql.execute("UPDATE event_cursors SET xact = 9223372036854775807 WHERE name = 'conversations'", &[]).await.unwrap();
    world.simulator.control().inbound_text(&external, "15550107777", "an old text").unwrap();
    let scheduled = json!({"session_id": session, "to": "+15550100002", "body": "still to come",
        "scheduled_at": switchboard::domain::clock::Clock::running().now() + days(300)});
    let waits = tenant.post("/v1/messages", &scheduled).await.expect(StatusCode::ACCEPTED);
    let cancelled = tenant.post("/v1/messages", &scheduled).await.expect(StatusCode::ACCEPTED);
    let path = format!("/v1/messages/{}/cancel", text(&cancelled, "id"));
    tenant.post(&path, &json!({})).await;
    eventually(PATIENCE, "the deliveries, the index and the letters", async || {
        let delivered = count(&sql, "SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'").await;
        let pending =
            count(&sql, "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending' AND attempts > 0").await;
        let indexed = count(&sql, "SELECT count(*) FROM message_search").await;
        (delivered == 1 && pending == 1 && indexed >= 2).then_some(())
    })
    .await;
    // More than a piece of old messages, and a letter of each kind.
    sql.batch_execute(&format!(
        "INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, raw_payload, created_at, updated_at, status)
         SELECT tenant_id, gen_random_uuid(), session_id, 'inbound', 'text', '1@c.us', 'text ' || n, '{{}}', now(), now(), 'received'
         FROM messages, generate_series(1, {}) n WHERE body = 'an old text';
         INSERT INTO inbound_dead_letters (tenant_id, id, session_id, waha_server_id, received_at, reason, cause, body, created_at, updated_at)
         SELECT tenant_id, gen_random_uuid(), id, waha_server_id, now(), r, '', r, now(), now()
         FROM waha_sessions, unnest(ARRAY['refused', 'unknown_event']) r",
        PIECE + 7
    ))
    .await
    .unwrap();
    let content = "SELECT count(*) FROM messages WHERE body IS NOT NULL";
    let before = count(&sql, content).await;

    sweep(&later(&world, days(6))).await.unwrap();
    assert_eq!(count(&sql, "SELECT count(*) FROM inbound_dead_letters").await, 2);
    sweep(&later(&world, days(29))).await.unwrap();
    assert_eq!(count(&sql, content).await, before, "kept for good unless the tenant says otherwise");
    assert_eq!(count(&sql, "SELECT count(*) FROM inbound_dead_letters WHERE reason = 'unknown_event'").await, 0);
    assert!(count(&sql, "SELECT count(*) FROM messages WHERE raw_payload IS NOT NULL").await > PIECE);
    let events = count(&sql, "SELECT count(*) FROM events").await;
    assert!(events > 2);

    sweep(&later(&world, days(31))).await.unwrap();
    assert_eq!(count(&sql, content).await, before);
    assert_eq!(count(&sql, "SELECT count(*) FROM messages WHERE raw_payload IS NOT NULL").await, 0);
    assert_eq!(count(&sql, "SELECT count(*) FROM webhook_attempts").await, 0);
    let left = count(&sql, "SELECT count(*) FROM events").await;
    let pending = count(&sql, "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'").await;
    assert_eq!((left, pending), (1, 1), "but for one that is still being delivered");
    assert_eq!(count(&sql, "SELECT count(*) FROM webhook_deliveries").await, 1);
    assert_eq!(count(&sql, "SELECT count(*) FROM inbound_dead_letters").await, 1);

    let settings = json!({"settings": {"retention": {"content_days": 40}}});
    Client::send(tenant.request(Method::PATCH, "/v1/tenant").json(&settings)).await.expect(StatusCode::OK);
    sweep(&later(&world, days(39))).await.unwrap();
    assert_eq!(count(&sql, content).await, before);
    sweep(&later(&world, days(41))).await.unwrap();
    assert_eq!(count(&sql, content).await, 1, "but for the one that is still to be sent");
    assert_eq!(count(&sql, "SELECT count(*) FROM message_search").await, 0);
    assert!(count(&sql, "SELECT count(*) FROM messages").await >= before);
    assert!(count(&sql, "SELECT count(*) FROM message_transitions").await > 0);
    // Once it is settled, it goes as well.
    tenant.post(&format!("/v1/messages/{}/cancel", text(&waits, "id")), &json!({})).await;
    sweep(&later(&world, days(41))).await.unwrap();
    assert_eq!(count(&sql, content).await, 0);
    assert!(!text(&endpoint, "id").is_empty());
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_stay_until_everyone_has_read_them() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("first").await;
    let sent = tenant.send_text(&session, "+15550100001", "hello").await;
    tenant.message_with(text(&sent, "id"), "read").await;
    let sql = world.db.connect().await;
    eventually(PATIENCE, "the log to be read", async || {
        let unread = "SELECT count(*) FROM events e WHERE EXISTS (SELECT 1 FROM event_cursors c WHERE (c.xact, c.seq) < (e.xact, e.seq) \
                      AND c.name IN ('fan_out', 'search'))";
        (count(&sql, unread).await == 0).then_some(())
    })
    .await;
    node.node.stop().await;
    let events = count(&sql, "SELECT count(*) FROM events").await;
    sql.execute("INSERT INTO event_cursors (name, xact, seq, updated_at) VALUES ('slow', 0, 0, now())", &[])
        .await
        .unwrap();
    let app = later(&world, days(100));
    sweep(&app).await.unwrap();
    assert_eq!(count(&sql, "SELECT count(*) FROM events").await, events);
    sql.execute("UPDATE event_cursors SET xact = 9223372036854775807", &[]).await.unwrap();
    sweep(&app).await.unwrap();
    assert_eq!(count(&sql, "SELECT count(*) FROM events").await, 0);
}
