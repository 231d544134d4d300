//! Attempts of which nobody knows whether they sent.

use reqwest::StatusCode;
use serde_json::{Value, json};
use switchboard::simulator::{Engine, Fault, FaultRule, SimulatorConfig};

use crate::support::world::{Client, PATIENCE, text};
use crate::support::{World, eventually, invariants};

/// Not sent, or sent and not known to be.
const DOUBTS: [Fault; 12] = [
    Fault::HangAfterSend,
    Fault::HangWithoutSend,
    Fault::ResetBefore,
    Fault::ResetAfterSend,
    Fault::HalfResponse,
    Fault::Error500Before,
    Fault::Error500After,
    Fault::BadGateway502,
    Fault::BadGateway502After,
    Fault::Unavailable503,
    Fault::GatewayTimeout504,
    Fault::NoId,
];

/// Of these, those that send nothing.
const NOT_SENT: [Fault; 5] =
    [Fault::HangWithoutSend, Fault::ResetBefore, Fault::Error500Before, Fault::BadGateway502, Fault::Unavailable503];

async fn world_of(engine: Engine) -> World {
    World::with(SimulatorConfig { engine, ..SimulatorConfig::default() }).await
}

/// Three messages by a session of its own for each fault, which strikes the first of them.
async fn send_into_doubt(world: &World, tenant: &Client) -> Vec<(String, String, Vec<String>)> {
    let mut sessions = Vec::new();
    for (number, fault) in DOUBTS.into_iter().enumerate() {
        let (session, external) = tenant.session(&format!("s{number}")).await;
        let rule = FaultRule::always("sendText", fault).for_session(&external).times(1);
        world.simulator.control().add_fault(rule);
        sessions.push((session, external, Vec::new()));
    }
    for n in 0..3 {
        for (number, (session, _, messages)) in sessions.iter_mut().enumerate() {
            let message = tenant.send_text(session, "+15550101234", &format!("{number}-{n}")).await;
            messages.push(text(&message, "id").to_owned());
        }
    }
    sessions
}

async fn engines_that_keep_ids(engine: Engine) {
    let world = world_of(engine).await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = send_into_doubt(&world, &tenant).await;
    for (number, (_, external, messages)) in sessions.iter().enumerate() {
        for message in messages {
            let message = tenant.message_with(message, "read").await;
            assert_eq!(message["error"], Value::Null, "{:?}", DOUBTS[number]);
        }
        let ledger = world.simulator.control().ledger_of(Some(external));
        let expected: Vec<String> = (0..3).map(|n| format!("{number}-{n}")).collect();
        assert_eq!(ledger.texts(external), expected, "{:?}: once, and in order", DOUBTS[number]);
    }
    // A POST that hangs stays under way at WAHA after the gateway has given it up.
    let overlaps = world.simulator.control().ledger().overlaps();
    assert!(overlaps.iter().all(|(before, _)| before.ended.is_none()), "never two of a session at a time");
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_noweb_every_doubt_ends_in_one_bubble() {
    engines_that_keep_ids(Engine::Noweb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_gows_every_doubt_ends_in_one_bubble() {
    engines_that_keep_ids(Engine::Gows).await;
}

async fn engines_that_choose_ids(engine: Engine) {
    let world = world_of(engine).await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let sessions = send_into_doubt(&world, &tenant).await;
    for (number, (_, external, messages)) in sessions.iter().enumerate() {
        let sent = !NOT_SENT.contains(&DOUBTS[number]);
        // An answer without an id is no doubt about the sending.
        if DOUBTS[number] != Fault::NoId {
            let settled = tenant.message_with(&messages[0], if sent { "read" } else { "failed" }).await;
            let code = if sent { Value::Null } else { json!("unconfirmed") };
            assert_eq!(settled["error"]["code"], code, "{:?}", DOUBTS[number]);
        }
        let all = world
            .simulator
            .control()
            .ledger_when(|ledger| ledger.posts.iter().filter(|post| post.session == *external).count() >= 3);
        tokio::time::timeout(PATIENCE, all).await.expect("the others to be posted");
        let ledger = world.simulator.control().ledger_of(Some(external));
        assert_eq!(ledger.posts.len(), 3, "{:?}: nothing is sent again blindly", DOUBTS[number]);
        assert!(ledger.bubbles(&format!("{number}-0")) <= 1);
    }
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_webjs_a_doubt_is_told_and_never_sent_again() {
    engines_that_choose_ids(Engine::Webjs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_wpp_a_doubt_is_told_and_never_sent_again() {
    engines_that_choose_ids(Engine::Wpp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_makes_its_engine_fail_does_not_hold_its_session_for_ever() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("only").await;
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::Error500Before));
    let poison = tenant.send_text(&session, "+15550101234", "poison").await;
    let next = tenant.send_text(&session, "+15550101234", "next").await;
    let client = world.db.connect().await;
    // Most of its attempts have been made.
    eventually(PATIENCE, "a counted doubt", async || {
        let counted = "UPDATE messages SET doubts = 7 WHERE doubts > 0 AND body = 'poison'";
        (client.execute(counted, &[]).await.unwrap() > 0).then_some(())
    })
    .await;
    let failed = tenant.message_with(text(&poison, "id"), "failed").await;
    assert_eq!(text(&failed["error"], "code"), "unconfirmed");
    world.simulator.control().clear_faults();
    tenant.message_with(text(&next, "id"), "read").await;
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_that_comes_before_the_outcome_has_the_last_word() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    // Refused by WhatsApp while WAHA's answer is still under way.
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::DelayMs(700)).times(1));
    let refused = tenant.send_text(&session, "+15550100004", "refused").await;
    let failed = tenant.message_with(text(&refused, "id"), "failed").await;
    assert_eq!(text(&failed["error"], "code"), "rejected_by_whatsapp");
    let next = tenant.send_text(&session, "+15550100001", "next").await;
    tenant.message_with(text(&next, "id"), "read").await;
    let failed = tenant.get(&format!("/v1/messages/{}", text(&refused, "id"))).await.expect(StatusCode::OK);
    assert_eq!(text(&failed["error"], "code"), "rejected_by_whatsapp", "the outcome changes nothing");

    // Read while WAHA never answers: nothing is left to be tried again.
    world.simulator.control().add_fault(FaultRule::always("sendText", Fault::HangAfterSend).times(1));
    let read = tenant.send_text(&session, "+15550100001", "read").await;
    let last = tenant.send_text(&session, "+15550100001", "last").await;
    tenant.message_with(text(&last, "id"), "read").await;
    let read = tenant.message_with(text(&read, "id"), "read").await;
    assert_eq!((&read["error"], &read["attempts"]), (&Value::Null, &json!(1)));
    assert_eq!(world.simulator.control().ledger().texts(&external), ["next", "read", "last"]);
    invariants::hold(&world).await;
    node.node.stop().await;
}
