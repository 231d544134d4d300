//! What is handed over, what is not, and what becomes of it when WhatsApp does not play along.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use switchboard::domain::content::{ContactCard, Content, Kind, Location, Poll};
use switchboard::domain::ids::{SessionId, TenantId};
use switchboard::domain::recipient::ChatId;
use switchboard::messages::accept::Draft;
use switchboard::serve::Role;
use switchboard::simulator::{Engine, Fault, FaultRule, SimulatorConfig};

use crate::support::world::{Client, Inside, PATIENCE, text};
use crate::support::{World, eventually, invariants};

const SOMEBODY: &str = "+15550101234";

async fn world_of(engine: Engine) -> World {
    World::with(SimulatorConfig { engine, ..SimulatorConfig::default() }).await
}

/// A node that gives WhatsApp's server little time.
fn impatient(world: &World) -> Inside {
    world.node_with(&Role::ALL, |config| config.sending.ack_timeout = Duration::from_secs(1))
}

fn id(message: &Value) -> &str {
    text(message, "id")
}

fn code(message: &Value) -> &str {
    text(&message["error"], "code")
}

async fn posts(world: &World, words: &str) -> usize {
    world.simulator.control().ledger().posts_saying(words).len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_goes_to_its_endpoint_with_what_it_says() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let first = tenant.send_text(&session, SOMEBODY, "first").await;
    let read = tenant.message_with(id(&first), "read").await;
    let draft = |kind: Kind, content: Content| {
        let (tenant, session): (String, String) = (text(&first, "tenant_id").to_owned(), session.clone());
        let chat = ChatId::parse(SOMEBODY).unwrap();
        let plain = Draft::text(TenantId(tenant.parse().unwrap()), SessionId(session.parse().unwrap()), chat, "");
        Draft {
            kind,
            content,
            body: None,
            reply_to: Some(serde_json::from_value(first["id"].clone()).unwrap()),
            ..plain
        }
    };
    let location = Location { latitude: 52.5, longitude: 13.4, name: Some("Here".to_owned()) };
    let card = ContactCard { full_name: "Ada".to_owned(), phone: "+15550100042".to_owned(), organization: None };
    let poll = Poll { question: "Tea?".to_owned(), options: vec!["yes".to_owned(), "no".to_owned()], multiple: false };
    let forwards = format!("true_15550101234@c.us_{}", text(&read, "waha_message_id"));
    let drafts = [
        draft(Kind::Location, Content { location: Some(location), ..Content::default() }),
        draft(Kind::Contact, Content { contacts: vec![card], ..Content::default() }),
        draft(Kind::Poll, Content { poll: Some(poll), ..Content::default() }),
        draft(Kind::Text, Content { forwards: Some(forwards), ..Content::default() }),
    ];
    for draft in drafts {
        let accepted = node.app.acceptor.accept(&node.app, draft).await.unwrap();
        tenant.message_with(&accepted.id.0.to_string(), "read").await;
    }
    let ledger = world.simulator.control().ledger_of(Some(&external));
    let endpoints: Vec<&str> = ledger.posts.iter().map(|post| post.endpoint).collect();
    assert_eq!(endpoints, ["sendText", "sendLocation", "sendContactVcard", "sendPoll", "forwardMessage"]);
    assert_eq!(ledger.texts(&external), ["first", "Here", "Ada", "Tea?", "first"]);
    assert!(ledger.entries.iter().all(|entry| entry.bubbles == 1));
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_is_checked_once_and_one_that_is_not_there_gets_no_post() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    // WhatsApp knows this mobile without its ninth digit.
    control.number("5511987654321", Some("551187654321"));
    // The first check comes to nothing, which is no doubt about anything.
    control.add_fault(FaultRule::always("contacts/check-exists", Fault::Error500Before).times(1));
    let nobody = tenant.send_text(&session, "+15550100005", "nobody").await;
    let variant = tenant.send_text(&session, "+5511987654321", "variant").await;
    let again = tenant.send_text(&session, "+5511987654321", "again").await;
    let nobody = tenant.message_with(id(&nobody), "failed").await;
    assert_eq!(code(&nobody), "recipient_not_on_whatsapp");
    for message in [&variant, &again] {
        tenant.message_with(id(message), "read").await;
    }
    let ledger = control.ledger_of(Some(&external));
    assert_eq!(ledger.texts(&external), ["variant", "again"]);
    assert!(ledger.posts_saying("nobody").is_empty());
    assert!(ledger.entries.iter().all(|entry| entry.chat == "551187654321@c.us"));
    let checks = ledger.calls_of(&external, "contacts/check-exists").len();

    let path = |phone: &str| format!("/v1/sessions/{session}/contacts/{phone}");
    let known = tenant.get(&path("+5511987654321")).await.expect(StatusCode::OK);
    assert_eq!(known, json!({"exists": true, "chat_id": "551187654321@c.us"}));
    assert_eq!(tenant.get(&path("15550100005")).await.expect(StatusCode::OK), json!({"exists": false}));
    let now = control.ledger_of(Some(&external)).calls_of(&external, "contacts/check-exists").len();
    assert_eq!(now, checks, "what was answered is kept");
    assert_eq!(tenant.get(&path("+15550100042")).await.expect(StatusCode::OK)["exists"], true);
    // Who has joined since is found by a retry, which asks anew.
    control.number("15550100005", Some("15550100005"));
    let retry = format!("/v1/messages/{}/retry", id(&nobody));
    tenant.post(&retry, &json!({})).await.expect(StatusCode::ACCEPTED);
    eventually(PATIENCE, "the retried message to be posted", async || {
        (!control.ledger_of(Some(&external)).posts_saying("nobody").is_empty()).then_some(())
    })
    .await;
    let refused = tenant.get(&path("12")).await.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused["errors"][0]["field"], "phone");
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_is_not_sent_and_delays_nobody() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    let client = world.db.connect().await;
    // Certainly not sent, and by the next try it is too late.
    control.add_fault(FaultRule::always("sendText", Fault::TooMany429).times(1));
    let paced = "UPDATE messages SET expires_at = now() + interval '300 ms' WHERE body = 'late'";
    let late = tenant.send_text(&session, SOMEBODY, "late").await;
    client.execute(paced, &[]).await.unwrap();
    let next = tenant.send_text(&session, SOMEBODY, "next").await;
    tenant.message_with(id(&next), "read").await;
    let late = tenant.get(&format!("/v1/messages/{}", id(&late))).await.body;
    if late["status"] != "read" {
        assert_eq!((&late["status"], &late["error"]), (&json!("expired"), &Value::Null));
        assert_eq!(control.ledger().texts(&external), ["next"]);
    }
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restricted_account_still_replies_and_its_cold_messages_wait() {
    let world = world_of(Engine::Gows).await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    control.inbound_text(&external, "+15550100042", "hello").unwrap();
    let client = world.db.connect().await;
    eventually(PATIENCE, "the conversation", async || {
        let rows = client.query("SELECT FROM known_chats WHERE last_inbound_at IS NOT NULL", &[]).await.unwrap();
        (!rows.is_empty()).then_some(())
    })
    .await;
    // Refused once with 463; nothing after that is to be tried with somebody new.
    control.add_fault(FaultRule::always("sendText", Fault::Refused463).times(1));
    let refused = tenant.send_text(&session, "+15550101111", "refused").await;
    let cold = tenant.send_text(&session, "+15550102222", "cold").await;
    let reply = tenant.send_text(&session, "+15550100042", "reply").await;
    tenant.message_with(id(&reply), "read").await;
    assert_eq!(control.ledger().texts(&external), ["reply"]);
    assert_eq!((posts(&world, "refused").await, posts(&world, "cold").await), (1, 0), "no storm");
    for (message, status) in [(&refused, "sending"), (&cold, "queued")] {
        let message = tenant.get(&format!("/v1/messages/{}", id(message))).await.body;
        assert_eq!(text(&message, "status"), status);
    }
    let events = "SELECT count(*) FROM events WHERE type = 'session.restricted'";
    assert_eq!(client.query_one(events, &[]).await.unwrap().get::<_, i64>(0), 1, "told once");
    let row = client
        .query_one("SELECT restriction_kind, restriction_until > now() + interval '23 hours' FROM waha_sessions", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, String>(0).as_str(), row.get::<_, bool>(1)), ("reachout_timelock", true));
    assert!(control.ledger_of(Some(&external)).calls_of(&external, "restart").is_empty());
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_does_not_keep_ids_is_found_out_and_never_repeated_blindly() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    control.add_fault(FaultRule::always("sendText", Fault::ForeignId).times(1));
    let foreign = tenant.send_text(&session, SOMEBODY, "foreign").await;
    let read = tenant.message_with(id(&foreign), "read").await;
    assert!(
        control.ledger().entry(&external, text(&read, "waha_message_id")).is_some(),
        "the answered id is the message's"
    );
    control.add_fault(FaultRule::always("sendText", Fault::HangWithoutSend).times(1));
    let lost = tenant.send_text(&session, SOMEBODY, "lost").await;
    let lost = tenant.message_with(id(&lost), "failed").await;
    assert_eq!(code(&lost), "unconfirmed");
    assert_eq!(posts(&world, "lost").await, 1);
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_ack_a_message_is_sent_once_more_and_then_fails() {
    let world = World::new().await;
    let node = impatient(&world);
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    // Stays pending for good, and reaches nobody.
    let never = tenant.send_text(&session, "+15550100003", "never").await;
    let never = tenant.message_with(id(&never), "failed").await;
    assert_eq!(code(&never), "no_server_ack");
    let posts = control.ledger().posts_saying("never").iter().map(|post| post.requested_id.clone()).collect::<Vec<_>>();
    assert_eq!((posts.len(), &posts[0]), (2, &posts[1]), "one more, under the same id");

    // Nothing leaves the engine the first time.
    control.add_fault(FaultRule::always("sendText", Fault::Swallowed).times(1));
    let again = tenant.send_text(&session, SOMEBODY, "again").await;
    tenant.message_with(id(&again), "read").await;
    assert_eq!(control.ledger().bubbles("again"), 1);
    assert_eq!(control.ledger().texts(&external), ["again"]);
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_choose_ids_are_never_sent_the_same_again() {
    let world = world_of(Engine::Webjs).await;
    let node = impatient(&world);
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("only").await;
    let never = tenant.send_text(&session, "+15550100003", "never").await;
    let never = tenant.message_with(id(&never), "failed").await;
    assert_eq!(code(&never), "no_server_ack");
    assert_eq!(posts(&world, "never").await, 1);
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_works_in_name_only_is_restarted_once_and_loses_nothing() {
    let world = World::new().await;
    let node = impatient(&world);
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    control.add_fault(FaultRule::always("sendText", Fault::Swallowed).for_session(&external).until_restart());
    let mut messages = Vec::new();
    for n in 0..4 {
        messages.push(tenant.send_text(&session, SOMEBODY, &n.to_string()).await);
    }
    for message in &messages {
        tenant.message_with(id(message), "read").await;
    }
    let ledger = control.ledger_of(Some(&external));
    assert_eq!(ledger.calls_of(&external, "restart").len(), 1);
    assert!((0..4).all(|n| ledger.bubbles(&n.to_string()) == 1));
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_refusal_three_times_restarts_the_session() {
    let world = world_of(Engine::Gows).await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let control = world.simulator.control();
    control.add_fault(FaultRule::always("sendText", Fault::Refused400).for_session(&external).until_restart());
    let mut messages = Vec::new();
    for n in 0..4 {
        messages.push(tenant.send_text(&session, SOMEBODY, &n.to_string()).await);
    }
    for message in &messages[2..] {
        tenant.message_with(id(message), "read").await;
    }
    for message in &messages[..2] {
        assert_eq!(code(&tenant.message_with(id(message), "failed").await), "refused_by_whatsapp");
    }
    assert_eq!(control.ledger_of(Some(&external)).calls_of(&external, "restart").len(), 1);
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_gets_a_break_and_the_circuit_closes_again() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let control = world.simulator.control();
    let (mut sessions, mut messages) = (Vec::new(), Vec::new());
    for n in 0..6 {
        sessions.push(tenant.session(&format!("s{n}")).await.0);
    }
    control.add_fault(FaultRule::always("sendText", Fault::BadGateway502).times(6));
    for session in &sessions {
        messages.push(tenant.send_text(session, SOMEBODY, "through the break").await);
    }
    let client = world.db.connect().await;
    let opened = async |open: bool| {
        eventually(PATIENCE, "the circuit", async || {
            let query = "SELECT breaker_open_until IS NOT NULL FROM waha_servers";
            (client.query_one(query, &[]).await.unwrap().get::<_, bool>(0) == open).then_some(())
        })
        .await;
    };
    opened(true).await;
    for message in &messages {
        tenant.message_with(id(message), "read").await;
    }
    opened(false).await;
    invariants::hold(&world).await;
    node.node.stop().await;
}

async fn typed(tenant: &Client, world: &World, session: &str, external: &str) {
    let client = world.db.connect().await;
    client.execute("UPDATE lanes SET typing = true", &[]).await.unwrap();
    let message = tenant.send_text(session, SOMEBODY, "a few words that take a while to type").await;
    tenant.message_with(id(&message), "read").await;
    let ledger = world.simulator.control().ledger_of(Some(external));
    let took = ledger.typed_before(&ledger.posts[0]).expect("typing before the message");
    assert!(took >= chrono::TimeDelta::milliseconds(400), "{took}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_is_shown_before_the_message_and_its_failure_does_not_matter() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    typed(&tenant, &world, &session, &external).await;
    world.simulator.control().add_fault(FaultRule::always("startTyping", Fault::Error500Before));
    let message = tenant.send_text(&session, SOMEBODY, "without").await;
    tenant.message_with(id(&message), "read").await;
    invariants::hold(&world).await;
    node.node.stop().await;
}
