//! What waits in a pool's session that cannot write any more is sent by another one, once.

use reqwest::StatusCode;
use serde_json::{Value, json};
use switchboard::simulator::{Engine, Fault, FaultRule, SimulatorConfig};

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{World, eventually, invariants};

async fn send(tenant: &Client, to: &str, body: &str) -> Value {
    let message = json!({"pool": "all", "to": to, "body": body});
    tenant.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED)
}

async fn pool(tenant: &Client, sessions: &[&str]) {
    let pool = json!({"name": "all", "session_ids": sessions});
    tenant.post("/v1/sender-pools", &pool).await.expect(StatusCode::CREATED);
}

async fn move_from_stopped(engine: Engine) {
    let world = World::with(SimulatorConfig { engine, ..SimulatorConfig::default() }).await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (first, first_name) = tenant.session("first").await;
    let (second, second_name) = tenant.session("second").await;
    pool(&tenant, &[&first]).await;
    let pools = tenant.get("/v1/sender-pools").await.expect(StatusCode::OK);
    let path = format!("/v1/sender-pools/{}", text(&pools["data"][0], "id"));
    // Nobody hears of the first one: it may have been sent, so it stays.
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::HangAfterSend).for_session(&first_name));
    let doubtful = send(&tenant, "+15550101234", "doubtful").await;
    let asked = world.simulator.control().ledger_when(|ledger| !ledger.posts.is_empty());
    tokio::time::timeout(PATIENCE, asked).await.expect("a POST");
    let mut waiting = Vec::new();
    for n in 0..5 {
        waiting.push(send(&tenant, "+15550101234", &format!("w{n}")).await);
    }
    assert!(waiting.iter().all(|message| message["session_id"] == *first));
    let both = json!({"session_ids": [first, second]});
    let patched = Client::send(tenant.request(reqwest::Method::PATCH, &path).json(&both)).await;
    patched.expect(StatusCode::OK);
    tenant.post(&format!("/v1/sessions/{first}/stop"), &json!({})).await.expect(StatusCode::ACCEPTED);
    for message in &waiting {
        let sent = tenant.message_with(text(message, "id"), "read").await;
        assert_eq!((&sent["session_id"], &sent["attempts"]), (&json!(second), &json!(1)));
    }
    let ledger = world.simulator.control().ledger();
    assert_eq!(ledger.texts(&second_name), ["w0", "w1", "w2", "w3", "w4"], "in the order of acceptance");
    assert_eq!((ledger.bubbles("doubtful"), ledger.posts_saying("doubtful").len()), (1, 1));
    assert!(ledger.texts(&first_name) == ["doubtful"]);
    let stays = tenant.get(&format!("/v1/messages/{}", text(&doubtful, "id"))).await.body;
    assert_eq!(stays["session_id"], *first);
    let steps = tenant.get(&format!("/v1/messages/{}/transitions", text(&waiting[0], "id"))).await.body;
    let causes: Vec<&str> = steps["data"].as_array().unwrap().iter().map(|step| text(step, "cause")).collect();
    assert!(causes.contains(&"moved"), "{causes:?}");
    // Its recipient stays with the new one.
    assert_eq!(send(&tenant, "+15550101234", "next").await["session_id"], *second);
    eventually(PATIENCE, "the last", async || (world.simulator.control().ledger().bubbles("next") == 1).then_some(()))
        .await;
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_leaves_a_stopped_session_on_an_engine_that_keeps_ids() {
    move_from_stopped(Engine::Gows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_leaves_a_stopped_session_on_an_engine_that_chooses_ids() {
    move_from_stopped(Engine::Webjs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_was_given_and_not_claimed_moves_with_its_message() {
    let world = World::new().await;
    // No worker: turns are given and never claimed.
    let node = world.node_with(
        &[switchboard::serve::Role::Api, switchboard::serve::Role::Dispatch, switchboard::serve::Role::Ingest],
        |_| {},
    );
    let tenant = world.tenant(&node.base, "one").await;
    let (first, _) = tenant.session("first").await;
    let (second, _) = tenant.session("second").await;
    pool(&tenant, &[&first]).await;
    let message = send(&tenant, "+15550101234", "only").await;
    let client = world.db.connect().await;
    eventually(PATIENCE, "its turn", async || {
        let given = "SELECT FROM lanes WHERE in_flight IS NOT NULL AND fence > 0";
        (!client.query(given, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    let pools = tenant.get("/v1/sender-pools").await.expect(StatusCode::OK);
    let path = format!("/v1/sender-pools/{}", text(&pools["data"][0], "id"));
    let both = json!({"session_ids": [first, second]});
    let patched = Client::send(tenant.request(reqwest::Method::PATCH, &path).json(&both)).await;
    patched.expect(StatusCode::OK);
    tenant.post(&format!("/v1/sessions/{first}/stop"), &json!({})).await.expect(StatusCode::ACCEPTED);
    let path = format!("/v1/messages/{}", text(&message, "id"));
    eventually(PATIENCE, "the move", async || (tenant.get(&path).await.body["session_id"] == *second).then_some(()))
        .await;
    // The old turn is still in the broker; the worker that starts now claims the new one only.
    let worker = world.node_with(&[switchboard::serve::Role::Send], |_| {});
    let sent = tenant.message_with(text(&message, "id"), "read").await;
    assert_eq!(sent["attempts"], 1);
    assert_eq!(world.simulator.control().ledger().posts.len(), 1);
    invariants::hold(&world).await;
    worker.node.stop().await;
    node.node.stop().await;
}
