//! A node that is killed in the middle of its work.

use reqwest::StatusCode;
use serde_json::json;
use switchboard::simulator::{Fault, FaultRule};

use crate::support::world::{PATIENCE, text};
use crate::support::{World, free_port};

const ALL: &str = "api,dispatch,send,ingest,deliver";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_accepted_by_a_node_that_is_killed_before_it_sends_is_sent_once_by_the_next() {
    let world = World::new().await;
    let port = free_port();
    let mut node = world.process(port, ALL, |_| {}).await;
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    drop(node);

    // This node accepts and does nothing else.
    node = world.process(port, "api", |_| {}).await;
    let message = tenant.send_text(&session, "+15550100001", "kept").await;
    node.process.kill9();
    assert_eq!(world.simulator.control().ledger().bubbles("kept"), 0);

    let node = world.process(port, ALL, |_| {}).await;
    let message = tenant.message_with(text(&message, "id"), "read").await;
    assert_eq!(message["attempts"], 1);
    let ledger = world.simulator.control().ledger();
    assert_eq!((ledger.bubbles("kept"), ledger.texts(&external)), (1, vec!["kept"]));
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_in_mid_attempt_loses_nothing_and_doubles_nothing() {
    const SESSIONS: usize = 6;
    const EACH: usize = 15;
    let world = World::new().await;
    let port = free_port();
    let mut node = world.process(port, ALL, |_| {}).await;
    let tenant = world.tenant(&node.base, "one").await;
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        sessions.push(tenant.session(&format!("s{n}")).await);
    }
    // Slow enough that the kill meets attempts of every kind: not begun, at WAHA, answered and not recorded.
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::DelayMs(60)));
    for n in 0..EACH {
        for (number, (session, _)) in sessions.iter().enumerate() {
            let body = json!({"session_id": session, "to": "+15550101234", "body": format!("{number}-{n}")});
            tenant.post("/v1/messages", &body).await.expect(StatusCode::ACCEPTED);
        }
        if n % 5 == 4 {
            let before = world.simulator.control().seen();
            let moving = world.simulator.control().ledger_when(|ledger| ledger.entries.len() > before);
            tokio::time::timeout(PATIENCE, moving).await.expect("messages to leave");
            node.process.kill9();
            node = world.process(port, ALL, |_| {}).await;
        }
    }
    let all = world.simulator.control().ledger_when(|ledger| ledger.entries.len() >= SESSIONS * EACH);
    tokio::time::timeout(PATIENCE, all).await.expect("all messages to arrive");
    for (number, (session, external)) in sessions.iter().enumerate() {
        let expected: Vec<String> = (0..EACH).map(|n| format!("{number}-{n}")).collect();
        let ledger = world.simulator.control().ledger();
        assert_eq!(ledger.texts(external), expected, "once, and in order");
        assert!(ledger.entries.iter().all(|entry| entry.seen), "one bubble each");
        let list = tenant.get(&format!("/v1/messages?session_id={session}&limit=200")).await.expect(StatusCode::OK);
        for message in list["data"].as_array().unwrap() {
            tenant.message_with(text(message, "id"), "read").await;
        }
    }
}
