//! The pause, the expiry and a changed pace, on two running nodes.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::World;
use crate::support::invariants;
use crate::support::world::{Client, text};

fn time(value: &Value, name: &str) -> DateTime<Utc> {
    text(value, name).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_expired_and_paced_by_two_nodes() {
    let world = World::new().await;
    let (node, other) = (world.node(), world.node());
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("plain").await;
    let send = async |more: Value| {
        let mut body = json!({"session_id": session, "to": "+15550101234", "body": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tenant.post("/v1/messages", &body).await.expect(StatusCode::ACCEPTED)
    };
    // Paused: nothing leaves, and what may not wait that long expires.
    tenant.post(&format!("/v1/sessions/{session}/pause"), &json!({})).await.expect(StatusCode::OK);
    let waiting = send(json!({"body": "waits"})).await;
    let hurried = send(json!({"body": "too late", "priority": "bulk"})).await;
    let path = format!("/v1/sessions/{session}/queue");
    let queue = tenant.get(&path).await.expect(StatusCode::OK);
    assert_eq!((&queue["counts"]["bulk"], &queue["next_at"]), (&json!(1), &Value::Null));
    assert_eq!(waiting["status"], "queued");
    let sql = world.db.connect().await;
    let expire = format!("UPDATE messages SET expires_at = now() WHERE id = '{}'", text(&hurried, "id"));
    sql.batch_execute(&expire).await.unwrap();
    let expired = tenant.message_with(text(&hurried, "id"), "expired").await;
    assert!(expired["error"].is_null(), "{expired}");
    tenant.at(&other.base).post(&format!("/v1/sessions/{session}/resume"), &json!({})).await.expect(StatusCode::OK);
    tenant.message_with(text(&waiting, "id"), "read").await;

    // A longer gap holds for what is queued already, from the last send on.
    let pace = async |gap: u32| {
        let body = json!({"pacing": {"min_gap_ms": gap, "jitter_ms": 0}});
        let patch = tenant.request(Method::PATCH, &format!("/v1/sessions/{session}")).json(&body);
        Client::send(patch).await.expect(StatusCode::OK);
    };
    pace(60_000).await;
    let held = send(json!({"body": "in a minute"})).await;
    let queue = tenant.get(&format!("/v1/sessions/{session}/queue")).await.expect(StatusCode::OK);
    assert_eq!(queue["counts"]["normal"], 1);
    assert!(time(&queue, "next_at") > node.app.clock.now() + TimeDelta::seconds(30), "{queue}");
    pace(0).await;
    tenant.message_with(text(&held, "id"), "read").await;
    let control = world.simulator.control();
    let ledger = control.ledger_when(|ledger| ledger.texts(&external).len() >= 2).await;
    assert_eq!(ledger.texts(&external), ["waits", "in a minute"]);
    invariants::hold(&world).await;
    node.node.stop().await;
    other.node.stop().await;
}
