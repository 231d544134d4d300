//! Steering what is queued: pacing and windows changed, paused and resumed, looked at and emptied.

use serde_json::{Value, json};
use switchboard::domain::ids::{SessionId, TenantId};

use super::stand::{Doors, Stand, session};

struct Steered {
    stand: Stand,
    doors: Doors,
    tenant: TenantId,
    id: SessionId,
    key: String,
    path: String,
}

impl Steered {
    /// A session that works, as far as the database knows.
    async fn new() -> Self {
        let stand = Stand::new().await;
        let doors = stand.open();
        let tenant = stand.tenant("a").await;
        stand.server(5).await;
        let key = doors.key(tenant, &["*"]).await;
        let id = stand.create(tenant, session("support")).await.unwrap().id;
        stand.sql().await.batch_execute("UPDATE lanes SET stopped_because = NULL").await.unwrap();
        Self { path: format!("/v1/sessions/{id}"), stand, doors, tenant, id, key }
    }

    async fn patch(&self, body: Value) -> super::stand::Answer {
        self.doors.send(self.doors.request("PATCH", &self.path, &self.key).json(&body)).await
    }

    async fn order(&self, order: &str, body: &Value) -> Value {
        self.doors.post(&format!("{}/{order}", self.path), &self.key, body.clone()).await.expect(200).json()
    }

    /// Queues `count` messages.
    async fn queue(&self, count: i64, rest: &str) {
        let (tenant, id) = (self.tenant, self.id);
        let insert = format!(
            "INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, created_at, updated_at,
                                   priority, status, held_because)
             SELECT '{tenant}', gen_random_uuid(), '{id}', 'outbound', 'text', '1@c.us', 'x', now() - interval '5 s', now(), {rest}
             FROM generate_series(1, {count});
             UPDATE lanes l SET ready_at = CASE WHEN paused_because IS NULL THEN greatest(next_slot_at, now()) END, queued = (
                SELECT count(*) FROM messages m WHERE m.session_id = l.session_id AND m.status = 'queued' AND m.held_because IS NULL)"
        );
        self.stand.sql().await.batch_execute(&insert).await.unwrap();
    }

    async fn truth(&self, query: &str) -> bool {
        self.stand.sql().await.query_one(&format!("SELECT {query} FROM lanes"), &[]).await.unwrap().get(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_merged_checked_and_versioned() {
    let one = Steered::new().await;
    let full = json!({"min_gap_ms": 2000, "jitter_ms": 0, "per_minute": 10, "per_hour": 100, "per_day": 500,
        "new_chats_per_day": 20, "typing": true, "warm_up": {"days": 10, "start_per_day": 20}});
    let windows = json!({"timezone": "Europe/Berlin", "weekly": [{"days": ["mon"], "from": "22:00", "to": "02:00"}], "closed": ["2026-12-25"]});
    let body = json!({"name": "sales", "pacing": full, "windows": windows, "check_numbers": false, "metadata": {"a": 1}, "config": {"b": 2}});
    let changed = one.patch(body).await.expect(200);
    assert_eq!(changed.header("etag"), Some("\"2\""));
    let changed = changed.json();
    assert_eq!((&changed["pacing"], &changed["windows"]), (&full, &windows));
    assert_eq!(
        (&changed["name"], &changed["check_numbers"], &changed["metadata"]),
        (&json!("sales"), &json!(false), &json!({"a": 1}))
    );
    let lane = "(min_gap_ms, jitter_ms, per_minute, per_hour, per_day, new_chats_per_day, typing, check_numbers)
                = (2000, 0, 10, 100, 500, 20, true, false) AND warm_up = '{\"days\": 10, \"start_per_day\": 20}' AND windows ? 'closed'";
    assert!(one.truth(lane).await);

    let merged =
        one.patch(json!({"pacing": {"per_minute": 30, "per_hour": null, "warm_up": null, "min_gap_ms": null}})).await;
    let pacing = merged.expect(200).json()["pacing"].clone();
    assert_eq!(
        pacing,
        json!({"min_gap_ms": 1000, "jitter_ms": 0, "per_minute": 30, "per_day": 500, "new_chats_per_day": 20, "typing": true})
    );
    let without = one.patch(json!({"windows": null})).await.expect(200).json();
    assert!(without.get("windows").is_none());
    assert!(one.truth("windows IS NULL AND per_hour IS NULL AND per_minute = 30").await);

    let stale = one.doors.request("PATCH", &one.path, &one.key).header("If-Match", "\"2\"").json(&json!({"name": "x"}));
    assert_eq!(one.doors.send(stale).await.problem(412).0, "precondition_failed");
    let version = one.doors.get(&one.path, &one.key).await.expect(200).json()["version"].clone();
    let fresh = one
        .doors
        .request("PATCH", &one.path, &one.key)
        .header("If-Match", format!("\"{version}\""))
        .json(&json!({"name": "x"}));
    one.doors.send(fresh).await.expect(200);
    one.stand.create(one.tenant, session("taken")).await.unwrap();
    assert_eq!(one.patch(json!({"name": "taken"})).await.problem(409), ("conflict".into(), "name".into()));

    let range = |field: &str, value: Value| {
        let mut range = json!({"days": ["mon"], "from": "09:00", "to": "18:00"});
        range[field] = value;
        json!({"windows": {"timezone": "UTC", "weekly": [range]}})
    };
    for (body, field) in [
        (json!({"pacing": {"per_minute": -1}}), "pacing.per_minute"),
        (json!({"pacing": {"per_day": 1_000_001}}), "pacing.per_day"),
        (json!({"pacing": {"speed": 1}}), "pacing.speed"),
        (json!({"pacing": {"typing": "yes"}}), "pacing.typing"),
        (json!({"pacing": {"per_day": null, "warm_up": {"days": 1, "start_per_day": 1}}}), "pacing.warm_up"),
        (json!({"pacing": {"warm_up": {"days": 0, "start_per_day": 1}}}), "pacing.warm_up.days"),
        (json!({"pacing": {"warm_up": {"days": 1, "start_per_day": 501}}}), "pacing.warm_up.start_per_day"),
        (json!({"windows": {"timezone": "Mars/Base", "weekly": []}}), "windows.timezone"),
        (json!({"windows": {"timezone": "UTC", "weekly": []}}), "windows.weekly"),
        (json!({"windows": {"timezone": "UTC", "weekly": [], "holidays": []}}), "windows.holidays"),
        (json!({"windows": {"timezone": "UTC", "weekly": [], "closed": ["2026-02-30"]}}), "windows.closed[0]"),
        (range("from", json!("9:00")), "windows.weekly[0].from"),
        (range("to", json!("24:30")), "windows.weekly[0].to"),
        (range("to", json!("09:00")), "windows.weekly[0].to"),
        (range("days", json!([])), "windows.weekly[0].days"),
        (range("days", json!(["monday"])), "windows.weekly[0].days[0]"),
        (json!({"name": ""}), "name"),
        (json!({"status": "working"}), "status"),
    ] {
        assert_eq!(one.patch(body.clone()).await.problem(422), ("validation_failed".into(), field.into()), "{body}");
        let mut create = body.clone();
        if field != "name" && field != "status" && field != "pacing.warm_up.start_per_day" {
            create["name"] = json!("new");
            let refused = one.doors.post("/v1/sessions", &one.key, create).await;
            assert_eq!(refused.status, 422, "{body}");
        }
    }
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_acts_on_what_is_queued_already() {
    let one = Steered::new().await;
    let sql = one.stand.sql().await;
    sql.batch_execute("UPDATE lanes SET last_send_at = now(), next_slot_at = now() + interval '1 hour'").await.unwrap();
    one.queue(3, "1, 'queued', NULL").await;
    // Shorter, and counted from the last send.
    one.patch(json!({"pacing": {"min_gap_ms": 60_000, "jitter_ms": 0}})).await.expect(200);
    assert!(one.truth("next_slot_at = last_send_at + interval '1 minute' AND ready_at = next_slot_at").await);
    one.patch(json!({"pacing": {"min_gap_ms": 600_000}})).await.expect(200);
    assert!(one.truth("next_slot_at = last_send_at + interval '10 minutes' AND ready_at = next_slot_at").await);
    // What is not about the gap leaves the slot alone, and the lane is looked at anew.
    sql.batch_execute("UPDATE lanes SET ready_at = now() + interval '3 days'").await.unwrap();
    one.patch(json!({"windows": null, "pacing": {"per_day": 5}})).await.expect(200);
    assert!(one.truth("next_slot_at = last_send_at + interval '10 minutes' AND ready_at = next_slot_at").await);
    // What is in flight keeps its lease.
    sql.batch_execute("UPDATE lanes SET in_flight = gen_random_uuid(), ready_at = now() + interval '1 day'")
        .await
        .unwrap();
    one.patch(json!({"pacing": {"min_gap_ms": 0}})).await.expect(200);
    assert!(one.truth("ready_at > now() + interval '23 hours' AND next_slot_at = last_send_at").await);
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_until_both_are_over() {
    let one = Steered::new().await;
    one.queue(2, "1, 'queued', NULL").await;
    let paused = one.order("pause", &json!({"reason": "the shop is closed"})).await;
    assert_eq!((&paused["paused"]["reason"], &paused["version"]), (&json!("the shop is closed"), &json!(2)));
    assert!(paused["paused"]["since"].is_string());
    assert!(one.truth("ready_at IS NULL AND paused_because = 'paused_by_tenant'").await);
    assert_eq!(one.order("pause", &json!({"reason": "the shop is closed"})).await["version"], 2, "nothing changed");
    let queue = one.doors.get(&format!("{}/queue", one.path), &one.key).await.expect(200).json();
    assert_eq!((&queue["total"], &queue["next_at"]), (&json!(2), &Value::Null));

    // Accepted messages wait, and so they do when the session stops and works again.
    let message = json!({"session_id": one.id, "to": "+15550100001", "body": "x"});
    one.doors.post("/v1/messages", &one.key, message).await.expect(202);
    assert!(one.truth("ready_at IS NULL AND queued = 3").await);
    let observe = async |status: switchboard::waha::SessionStatus| {
        let now = one.stand.app.clock.now();
        let observation = switchboard::sessions::status::Observation {
            tenant: one.tenant,
            session: one.id,
            status,
            reported_at: None,
            me: None,
            source: switchboard::sessions::status::Source::Poll,
        };
        let chance = one.stand.app.chance.clone();
        one.stand
            .app
            .db
            .system(async move |conn| switchboard::sessions::status::observe(conn, &chance, now, &observation).await)
            .await
            .unwrap()
    };
    observe(switchboard::waha::SessionStatus::Working).await;
    observe(switchboard::waha::SessionStatus::Failed).await;
    assert!(
        one.truth("ready_at IS NULL AND stopped_because = 'session_not_working' AND tenant_paused_at IS NOT NULL")
            .await
    );
    let resumed = one.order("resume", &json!({})).await;
    assert!(resumed.get("paused").is_none());
    assert!(one.truth("ready_at IS NULL AND paused_because = 'session_not_working'").await);
    one.order("pause", &json!({})).await;
    observe(switchboard::waha::SessionStatus::Working).await;
    assert!(one.truth("ready_at IS NULL AND paused_because = 'paused_by_tenant'").await);
    one.order("resume", &json!({})).await;
    assert!(one.truth("ready_at IS NOT NULL AND paused_because IS NULL").await);
    one.order("resume", &json!({})).await;
    let long = one.doors.post(&format!("{}/pause", one.path), &one.key, json!({"reason": "x".repeat(201)})).await;
    assert_eq!(long.problem(422).1, "reason");
    one.doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_seen_and_emptied() {
    let one = Steered::new().await;
    one.queue(700, "2, 'queued', NULL").await;
    one.queue(2, "0, 'queued', NULL").await;
    one.queue(3, "1, 'queued', NULL").await;
    one.queue(4, "1, 'queued', 'new_chats_per_day'").await;
    one.queue(1, "1, 'queued', 'restricted'").await;
    one.queue(5, "1, 'scheduled', NULL").await;
    one.queue(1, "1, 'sending', NULL").await;
    let path = format!("{}/queue", one.path);
    let queue = one.doors.get(&path, &one.key).await.expect(200).json();
    assert_eq!(queue["counts"], json!({"high": 2, "normal": 3, "bulk": 700}));
    assert_eq!((&queue["total"], &queue["scheduled"]), (&json!(705), &json!(5)));
    assert_eq!(queue["held"], json!({"restricted": 1, "new_chats_per_day": 4}));
    assert!((5..60).contains(&queue["oldest_age_seconds"].as_i64().unwrap()), "{queue}");
    assert!(queue["next_at"].is_string() && queue["oldest_at"].is_string());

    let other = one.stand.tenant("b").await;
    let (foreign, reader) = (one.doors.key(other, &["*"]).await, one.doors.key(one.tenant, &["sessions:read"]).await);
    let empty = async |key: &str| one.doors.send(one.doors.request("DELETE", &path, key)).await;
    assert_eq!(empty(&foreign).await.problem(404).0, "not_found");
    assert_eq!(empty(&reader).await.problem(403).0, "forbidden");
    // One is dispatched but not claimed: its turn becomes void.
    let sql = one.stand.sql().await;
    sql.batch_execute("UPDATE lanes SET fence = 7, claimed_fence = 6, lease_until = now(), in_flight = (SELECT id FROM messages WHERE priority = 0 LIMIT 1)")
        .await
        .unwrap();
    let (first, second) = tokio::join!(empty(&one.key), empty(&one.key));
    let cancelled = |answer: super::stand::Answer| answer.expect(200).json()["cancelled"].as_i64().unwrap();
    assert_eq!(cancelled(first) + cancelled(second), 715);
    assert_eq!(
        one.stand.count("SELECT count(*) FROM messages WHERE status = 'cancelled' AND held_because IS NULL").await,
        715
    );
    assert_eq!(
        one.stand.count("SELECT count(*) FROM messages WHERE status = 'sending'").await,
        1,
        "what is on its way stays"
    );
    assert!(one.truth("queued = 0 AND in_flight IS NULL AND fence = 8 AND lease_until IS NULL").await);
    for kind in ["message_transitions WHERE status = 'cancelled'", "events WHERE type = 'message.cancelled'"] {
        assert_eq!(one.stand.count(&format!("SELECT count(*) FROM {kind}")).await, 715);
    }
    let queue = one.doors.get(&path, &one.key).await.expect(200).json();
    assert_eq!(
        (&queue["total"], &queue["oldest_at"], &queue["oldest_age_seconds"]),
        (&json!(0), &Value::Null, &Value::Null)
    );
    one.doors.close().await;
}
