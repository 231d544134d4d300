//! Edit, revoke, react, forward, mark as read.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::simulator::Fault;

use super::messages_kinds::still;
use crate::support::invariants;
use crate::support::world::{Answer, Client, Inside, PATIENCE, text};
use crate::support::{World, eventually};

const TO: &str = "+15550101001";
const OTHER: &str = "+15550101002";

async fn ask(client: &Client, method: Method, message: &Value, rest: &str, body: &Value) -> Answer {
    let path = format!("/v1/messages/{}{rest}", text(message, "id"));
    Client::send(client.request(method, &path).json(body)).await
}

async fn edit(client: &Client, message: &Value, body: &str) -> Answer {
    ask(client, Method::PATCH, message, "", &json!({"body": body})).await
}

async fn react(client: &Client, message: &Value, emoji: &str) -> Answer {
    ask(client, Method::PUT, message, "/reaction", &json!({"emoji": emoji})).await
}

async fn delete(client: &Client, message: &Value, query: &str) -> Answer {
    let path = format!("/v1/messages/{}{query}", text(message, "id"));
    Client::send(client.request(Method::DELETE, &path)).await
}

async fn seen(client: &Client, message: &Value) -> Answer {
    ask(client, Method::POST, message, "/seen", &json!({})).await
}

async fn forward(client: &Client, message: &Value, body: &Value) -> Answer {
    ask(client, Method::POST, message, "/forward", body).await
}

/// What the tenant was told of this type, once it is as much as `times`.
async fn told(client: &Client, kind: &str, times: usize) -> Vec<Value> {
    let path = format!("/v1/events?type={kind}");
    eventually(PATIENCE, "the events to be readable", async || {
        let events = client.get(&path).await.expect(StatusCode::OK);
        let mut events = events["data"].as_array().unwrap().clone();
        events.sort_by_key(|event| event["seq"].as_i64());
        (events.len() == times).then(|| events.into_iter().map(|mut event| event["data"].take()).collect())
    })
    .await
}

/// A node, a tenant, its session's id and name at WAHA, and a message that was read.
async fn sent(world: &World) -> (Inside, Client, (String, String), Value) {
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let session = tenant.session("only").await;
    let message = tenant.send_text(&session.0, TO, "first").await;
    let message = tenant.message_with(text(&message, "id"), "read").await;
    (node, tenant, session, message)
}

async fn received(world: &World, tenant: &Client, external: &str) -> Value {
    world.simulator.control().inbound_text(external, TO, "hello").unwrap();
    eventually(PATIENCE, "the message to be received", async || {
        let list = tenant.get("/v1/messages?direction=inbound").await.expect(StatusCode::OK);
        list["data"].as_array().unwrap().first().cloned()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sent_message_is_edited_and_revoked() {
    let world = World::new().await;
    let (node, tenant, (session, external), message) = sent(&world).await;
    let bare = text(&message, "waha_message_id");
    let entry = || world.simulator.control().ledger().entry(&external, bare).unwrap().clone();

    let edited = edit(&tenant, &message, "second").await.expect(StatusCode::OK);
    assert_eq!((text(&edited, "body"), text(&edited, "status")), ("second", "read"));
    assert!(edited["edited_at"].is_string());
    assert_eq!((entry().text.as_str(), entry().edited, entry().revoked), ("second", true, false));
    assert_eq!(edit(&tenant, &message, "second").await.expect(StatusCode::OK), edited, "again changes nothing");
    world.simulator.control().fault_once("PUT chats/messages", Fault::Unavailable503);
    let failed = edit(&tenant, &message, "third").await;
    assert_eq!((failed.status, failed.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "5"));
    world.simulator.control().fault_once("PUT chats/messages", Fault::State422);
    assert_eq!(edit(&tenant, &message, "third").await.status, StatusCode::CONFLICT);
    world.simulator.control().fault_once("PUT chats/messages", Fault::NotFound404);
    assert_eq!(edit(&tenant, &message, "third").await.status, StatusCode::CONFLICT);
    let path = format!("/v1/messages/{}", text(&message, "id"));
    assert_eq!(tenant.get(&path).await.expect(StatusCode::OK), edited, "what WhatsApp did not do is not shown");
    for bad in ["", &"x".repeat(5001)] {
        assert_eq!(edit(&tenant, &message, bad).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    }

    world.simulator.control().fault_once("DELETE chats/messages", Fault::Unavailable503);
    let failed = delete(&tenant, &message, "?for_everyone=true").await;
    assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE);
    tenant.get(&path).await.expect(StatusCode::OK);
    assert_eq!(delete(&tenant, &message, "?for_everyone=x").await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(delete(&tenant, &message, "?for_everyone=true").await.status, StatusCode::NO_CONTENT);
    assert!(entry().revoked);
    assert_eq!(delete(&tenant, &message, "?for_everyone=true").await.status, StatusCode::NOT_FOUND);
    assert_eq!(tenant.get(&path).await.status, StatusCode::NOT_FOUND);

    let kept = tenant.send_text(&session, TO, "kept").await;
    let kept = tenant.message_with(text(&kept, "id"), "read").await;
    assert_eq!(delete(&tenant, &kept, "?for_everyone=false").await.status, StatusCode::NO_CONTENT);
    let bare = text(&kept, "waha_message_id");
    assert!(!world.simulator.control().ledger().entry(&external, bare).unwrap().revoked, "deleted here only");

    // By now WAHA's own echoes are applied: they came before the acknowledgements of the last message.
    let told_of = told(&tenant, "message.edited", 1).await;
    assert_eq!((text(&told_of[0], "body"), &told_of[0]["id"]), ("second", &message["id"]));
    let told_of = told(&tenant, "message.revoked", 1).await;
    assert!(told_of[0]["revoked_at"].is_string());
    invariants::hold(&world).await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_both_sides_are_reacted_to_and_received_ones_marked_as_read() {
    let world = World::new().await;
    let (node, tenant, (_, external), message) = sent(&world).await;
    let inbound = received(&world, &tenant, &external).await;
    let ledger = || world.simulator.control().ledger();
    let (own, theirs) = (text(&message, "waha_message_id"), text(&inbound, "waha_message_id"));

    for emoji in ["👍🏽", "❤️", "❤️", ""] {
        react(&tenant, &message, emoji).await.expect(StatusCode::OK);
        assert_eq!(ledger().entry(&external, own).unwrap().reaction, emoji);
    }
    let answer = react(&tenant, &inbound, "🇩🇪").await.expect(StatusCode::OK);
    assert_eq!(answer["id"], inbound["id"]);
    assert_eq!(ledger().received(&external, theirs).unwrap().reaction, "🇩🇪");
    for bad in ["ok", "👍👍", " ", "x"] {
        let answer = react(&tenant, &inbound, bad).await;
        assert_eq!(
            (answer.status, text(&answer.body["errors"][0], "field")),
            (StatusCode::UNPROCESSABLE_ENTITY, "emoji")
        );
    }
    let told_of = told(&tenant, "message.reaction", 4).await;
    assert_eq!(told_of[0]["reaction"], json!({"emoji": "👍🏽", "from_me": true}));
    assert_eq!((&told_of[3]["reaction"]["emoji"], &told_of[3]["id"]), (&json!("🇩🇪"), &inbound["id"]));

    assert!(!ledger().received(&external, theirs).unwrap().read);
    let marked = seen(&tenant, &inbound).await.expect(StatusCode::OK);
    assert!(marked["read_at"].is_string() && marked["status"] == "received");
    assert!(ledger().received(&external, theirs).unwrap().read);
    assert_eq!(seen(&tenant, &inbound).await.expect(StatusCode::OK), marked, "again changes nothing");

    let conflict = |answer: Answer| assert_eq!(answer.status, StatusCode::CONFLICT, "{:?}", answer.body);
    conflict(seen(&tenant, &message).await);
    conflict(edit(&tenant, &inbound, "x").await);
    conflict(delete(&tenant, &inbound, "?for_everyone=true").await);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_forwarded_as_new_ones() {
    let world = World::new().await;
    let (node, tenant, (session, external), message) = sent(&world).await;
    let inbound = received(&world, &tenant, &external).await;
    for (original, body) in [(&message, "first"), (&inbound, "hello")] {
        let copy = forward(&tenant, original, &json!({"to": OTHER, "session_id": session})).await;
        let copy = copy.expect(StatusCode::ACCEPTED);
        assert_eq!((text(&copy, "body"), text(&copy, "type"), text(&copy, "to")), (body, "text", OTHER));
        assert_ne!(copy["id"], original["id"]);
        let copy = tenant.message_with(text(&copy, "id"), "read").await;
        let ledger = world.simulator.control().ledger();
        let entry = ledger.entry(&external, text(&copy, "waha_message_id")).unwrap();
        assert_eq!((entry.text.as_str(), entry.bubbles, &entry.details["forwarded"]), (body, 1, &json!(true)));
    }

    let path = |message: &Value| format!("/v1/messages/{}/forward", text(message, "id"));
    let keyed = async |original: &Value| {
        let request = tenant.request(Method::POST, &path(original)).header("Idempotency-Key", "once");
        Client::send(request.json(&json!({"to": OTHER}))).await
    };
    let first = keyed(&message).await;
    let again = keyed(&message).await;
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), ("", "true"));
    assert_eq!(first.expect(StatusCode::ACCEPTED), again.expect(StatusCode::ACCEPTED));
    assert_eq!(keyed(&inbound).await.status, StatusCode::UNPROCESSABLE_ENTITY, "another message, another request");
    assert_eq!(delete(&tenant, &message, "?for_everyone=true").await.status, StatusCode::NO_CONTENT);
    assert_eq!(keyed(&message).await.status, StatusCode::ACCEPTED, "the first answer, still");

    let bad = forward(&tenant, &inbound, &json!({"to": "nobody"})).await;
    assert_eq!((bad.status, text(&bad.body["errors"][0], "field")), (StatusCode::UNPROCESSABLE_ENTITY, "to"));
    let other = json!({"to": OTHER, "session_id": text(&message, "id")});
    let bad = forward(&tenant, &inbound, &other).await;
    assert_eq!((bad.status, text(&bad.body["errors"][0], "code")), (StatusCode::UNPROCESSABLE_ENTITY, "other_session"));
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_sent_and_sessions_that_do_not_work_conflict() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let message = tenant.send_text(&session, TO, "waits").await;
    let all = async |message: &Value| {
        [
            edit(&tenant, message, "x").await,
            delete(&tenant, message, "?for_everyone=true").await,
            react(&tenant, message, "👍").await,
        ]
    };
    for answer in all(&message).await.into_iter().chain([forward(&tenant, &message, &json!({"to": OTHER})).await]) {
        assert_eq!((answer.status, text(&answer.body, "code")), (StatusCode::CONFLICT, "conflict"));
        assert!(text(&answer.body, "detail").contains("queued"), "{:?}", answer.body);
    }
    let path = format!("/v1/messages/{}", text(&message, "id"));
    assert_eq!(text(&tenant.get(&path).await.expect(StatusCode::OK), "status"), "queued", "it is still there");

    // As if it had been sent, by a session that never started.
    let sql = world.db.connect().await;
    sql.execute("UPDATE messages SET status = 'sent', sent_at = now()", &[]).await.unwrap();
    for answer in all(&message).await {
        assert_eq!(answer.status, StatusCode::CONFLICT);
        assert!(text(&answer.body, "detail").contains("session"), "{:?}", answer.body);
    }
    node.node.stop().await;
}
