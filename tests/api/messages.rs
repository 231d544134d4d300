//! `POST /v1/messages`, as a tenant's backend meets it on a good day and on a bad one.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::serve::Role;

use crate::support::world::{Answer, Client, PATIENCE, text};
use crate::support::{World, eventually};

const TO: &str = "+15550100001";

/// Sends `body` as it stands.
async fn raw(client: &Client, body: impl Into<reqwest::Body>) -> Answer {
    let request = client.request(Method::POST, "/v1/messages").header("content-type", "application/json");
    Client::send(request.body(body)).await
}

/// The answer is a well-formed problem of this status and code.
#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status.as_u16(), answer.body["code"].as_str()), (status, Some(code)), "{:?}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.body["request_id"], answer.header("x-request-id"));
}

/// The fields that a 422 names.
#[track_caller]
fn fields(answer: &Answer) -> Vec<(String, String)> {
    refused(answer, 422, "validation_failed");
    let errors = answer.body["errors"].as_array().unwrap();
    assert!(errors.iter().all(|error| !text(error, "message").is_empty()), "{errors:?}");
    errors.iter().map(|error| (text(error, "field").to_owned(), text(error, "code").to_owned())).collect()
}

#[track_caller]
fn names(answer: &Answer, field: &str, code: &str, what: &str) {
    assert_eq!(fields(answer), [(field.to_owned(), code.to_owned())], "{what}");
}

/// A message accepted, whatever is asked of it.
#[track_caller]
fn accepted(answer: Answer) -> Value {
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{:?}", answer.body);
    assert_eq!(answer.header("location"), format!("/v1/messages/{}", text(&answer.body, "id")));
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(!answer.header("x-request-id").is_empty());
    answer.body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_are_refused_by_name() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("only").await;

    for body in [
        "",
        "{",
        "{\"to\":",
        "to=1",
        "{\"to\":\"\\ud800\",\"body\":\"a\"}",
        "{\"to\":\"1\",\"body\":\"\\udc00\\ud83d\"}",
    ] {
        refused(&raw(&tenant, body).await, 400, "malformed_json");
    }
    refused(&raw(&tenant, b"{\"to\":\"+15550100001\",\"body\":\"\xc3\x28\"}".to_vec()).await, 400, "malformed_json");
    let lone = "{\"to\":\"+15550100001\",\"body\":\"a\",\"metadata\":{\"x\":\"\\udfff\"}}";
    refused(&raw(&tenant, lone).await, 400, "malformed_json");

    let cases = [
        (json!([]), "(body)", "invalid_type"),
        (json!({}), "to", "required"),
        (json!({"to": TO, "body": "a", "bdoy": "b"}), "bdoy", "unknown_field"),
        (json!({"to": 15_550_100_001_u64, "body": "a"}), "to", "invalid_type"),
        (json!({"to": null, "body": "a"}), "to", "invalid_type"),
        (json!({"to": [TO], "body": "a"}), "to", "invalid_type"),
        (json!({"to": TO, "body": 1}), "body", "invalid_type"),
        (json!({"to": TO, "body": {"text": "a"}}), "body", "invalid_type"),
        (json!({"to": TO, "body": null}), "body", "required"),
        (json!({"to": TO}), "body", "required"),
        (json!({"to": TO, "body": ""}), "body", "required"),
        (json!({"to": TO, "body": "a".repeat(5001)}), "body", "too_long"),
        (json!({"to": TO, "body": "a\0b"}), "body", "invalid_character"),
        (json!({"to": "1555\u{0}0100001", "body": "a"}), "to", "invalid_character"),
        (json!({"to": TO, "body": "a", "metadata": {"k": ["\0"]}}), "metadata.k[0]", "invalid_character"),
        (json!({"to": TO, "body": "a", "metadata": {"k\0": 1}}), "metadata.k\u{fffd}", "invalid_character"),
        (json!({"to": TO, "body": "a", "metadata": []}), "metadata", "invalid_type"),
        (json!({"to": TO, "body": "a", "metadata": "x"}), "metadata", "invalid_type"),
        (json!({"to": TO, "body": "a", "metadata": {"k": "x".repeat(16 * 1024)}}), "metadata", "too_long"),
        (json!({"to": TO, "body": "a", "priority": "urgent"}), "priority", "invalid_value"),
        (json!({"to": TO, "body": "a", "priority": 1}), "priority", "invalid_type"),
        (json!({"to": TO, "body": "a", "type": "carrier-pigeon"}), "type", "unsupported"),
        (json!({"to": TO, "type": "image"}), "media", "required"),
        (json!({"to": TO, "body": "a", "type": 7}), "type", "invalid_type"),
        (json!({"to": TO, "body": "a", "session_id": "first"}), "session_id", "invalid_value"),
        (json!({"to": TO, "body": "a", "session_id": 7}), "session_id", "invalid_type"),
        (json!({"to": "", "body": "a"}), "to", "required"),
        (json!({"to": " ", "body": "a"}), "to", "required"),
        (json!({"to": "0044 20 7946 0000", "body": "a"}), "to", "no_country_code"),
    ];
    for (body, field, code) in cases {
        names(&tenant.post("/v1/messages", &body).await, field, code, &body.to_string());
    }
    for to in [
        "call me",
        "+",
        "12345",
        "1234567890123456",
        "1+5550100001",
        "+1 555 010 0001 ext 5",
        "１５５５０１００００１",
        "status@broadcast",
        "abc@g.us",
        "@c.us",
        "15550100001@",
        "15550100001@example.org",
        "a@b@c.us",
        "-@g.us",
        "++15550100001",
    ] {
        let answer = tenant.post("/v1/messages", &json!({"to": to, "body": "a"})).await;
        names(&answer, "to", "invalid_recipient", to);
    }
    let both = tenant.post("/v1/messages", &json!({"to": "nobody", "body": "", "media": {}})).await;
    let named: Vec<String> = fields(&both).into_iter().map(|(field, _)| field).collect();
    assert_eq!(named, ["to", "body", "media"], "every broken rule at once");

    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let request = tenant.request(Method::POST, "/v1/messages").header("content-type", kind);
        refused(&Client::send(request.body("{}")).await, 415, "unsupported_media_type");
    }
    let none_sent = tenant.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(none_sent, json!({"data": [], "next_cursor": null}), "nothing of it was kept");

    for body in ["a".repeat(5000), "é".repeat(5000), "👍".repeat(5000), "\u{202e}\u{1}\n\t".to_owned()] {
        let kept = accepted(tenant.post("/v1/messages", &json!({"session_id": session, "to": TO, "body": body})).await);
        assert_eq!(text(&kept, "body"), body);
        let read = tenant.get(&format!("/v1/messages/{}", text(&kept, "id"))).await.expect(StatusCode::OK);
        assert_eq!(text(&read, "body"), body);
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_too_large_is_refused_before_it_is_read() {
    let world = World::new().await;
    let node = world.node_with(&[Role::Api], |_| {});
    let tenant = world.tenant(&node.base, "one").await;
    // The client may still be writing when it is refused, and then sees the answer or a broken connection.
    let body = format!("{{\"to\":\"{TO}\",\"body\":\"{}\"}}", "a".repeat(10_000_000));
    let request = tenant.request(Method::POST, "/v1/messages").header("content-type", "application/json").body(body);
    match request.send().await {
        Ok(response) => assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE),
        Err(fault) => assert!(fault.is_request(), "{fault:?}"),
    }
    let body = format!("{{\"to\":\"{TO}\",\"body\":\"{}\"}}", "a".repeat(1024 * 1024));
    refused(&raw(&tenant, body).await, 413, "payload_too_large");
    let body = format!("{{\"to\":\"{TO}\",\"body\":\"{}\"}}", "a".repeat(1024 * 1024 - 100));
    names(&raw(&tenant, body).await, "body", "too_long", "as large as may be");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_is_the_tenants_own() {
    let world = World::new().await;
    let node = world.node();
    let (one, two) = (world.tenant(&node.base, "one").await, world.tenant(&node.base, "two").await);
    let message = json!({"to": TO, "body": "a"});
    names(&one.post("/v1/messages", &message).await, "session_id", "required", "no session yet");

    let (first, _) = one.session("first").await;
    let kept = accepted(one.post("/v1/messages", &message).await);
    assert_eq!(text(&kept, "session_id"), first, "the only one");

    // Somebody else's session and none at all are told apart by nobody.
    let with = |session: &str| json!({"session_id": session, "to": TO, "body": "a"});
    let foreign = two.post("/v1/messages", &with(&first)).await;
    let nobodys = two.post("/v1/messages", &with("01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c")).await;
    refused(&foreign, 404, "not_found");
    let without_id = |answer: &Answer| {
        let mut body = answer.body.clone();
        body.as_object_mut().unwrap().remove("request_id");
        body
    };
    assert_eq!(without_id(&foreign), without_id(&nobodys));
    names(&two.post("/v1/messages", &message).await, "session_id", "required", "the other tenant's is not meant");

    let (second, _) = one.session("second").await;
    names(&one.post("/v1/messages", &message).await, "session_id", "required", "two to choose from");
    assert_eq!(text(&accepted(one.post("/v1/messages", &with(&second)).await), "session_id"), second);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_open_what_they_are_for() {
    let world = World::new().await;
    let (node, other) = (world.node(), world.node_with(&[Role::Api], |_| {}));
    let tenant = world.tenant(&node.base, "one").await;
    tenant.session("only").await;
    let message = json!({"to": TO, "body": "a"});
    let platform = world.platform(&node.base);

    let create = |scopes: Value| json!({"name": "key", "scopes": scopes});
    let made = tenant.post("/v1/api-keys", &create(json!(["messages:read"]))).await.expect(StatusCode::CREATED);
    let reader = tenant.with_key(text(&made, "key"));
    refused(&reader.post("/v1/messages", &message).await, 403, "forbidden");
    reader.get("/v1/messages").await.expect(StatusCode::OK);
    let made = tenant.post("/v1/api-keys", &create(json!(["messages:write"]))).await.expect(StatusCode::CREATED);
    let writer = tenant.with_key(text(&made, "key"));
    accepted(writer.post("/v1/messages", &message).await);
    refused(&writer.get("/v1/messages").await, 403, "forbidden");

    // Gone at once where it was revoked, and within a second everywhere else.
    let elsewhere = writer.at(&other.base);
    accepted(elsewhere.post("/v1/messages", &message).await);
    let path = format!("/v1/api-keys/{}", text(&made, "id"));
    assert!(Client::send(tenant.request(Method::DELETE, &path)).await.status.is_success());
    refused(&writer.post("/v1/messages", &message).await, 401, "unauthorized");
    eventually(Duration::from_secs(1), "the key to be refused by the other node", async || {
        (elsewhere.post("/v1/messages", &message).await.status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;

    refused(&platform.post("/v1/messages", &message).await, 403, "tenant_required");
    let own = tenant.get("/v1/tenant").await.expect(StatusCode::OK);
    let named = |id: &str| platform.request(Method::POST, "/v1/messages").header("x-tenant-id", id).json(&message);
    let kept = accepted(Client::send(named(text(&own, "id"))).await);
    assert_eq!(kept["tenant_id"], own["id"]);
    for nobody in ["01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "one", ""] {
        refused(&Client::send(named(nobody)).await, 404, "not_found");
    }
    // A tenant's key acts for its own tenant, whatever a header says.
    let stray =
        tenant.request(Method::POST, "/v1/messages").header("x-tenant-id", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c");
    assert_eq!(accepted(Client::send(stray.json(&message)).await)["tenant_id"], own["id"]);

    for key in ["", "x", "sb_nothing", &"k".repeat(600)] {
        refused(&tenant.with_key(key).post("/v1/messages", &message).await, 401, "unauthorized");
    }
    other.node.stop().await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_has_one_effect() {
    let world = World::new().await;
    let node = world.node();
    let (one, two) = (world.tenant(&node.base, "one").await, world.tenant(&node.base, "two").await);
    one.session("only").await;
    two.session("only").await;
    let send = async |client: &Client, key: &str, body: &str| {
        let request = client.request(Method::POST, "/v1/messages").header("content-type", "application/json");
        Client::send(request.header("idempotency-key", key).body(body.to_owned())).await
    };
    let body = r#"{"to":"+15550100001","body":"é","metadata":{"a":1,"b":[true,null]}}"#;
    let first = send(&one, "k-1", body).await;
    assert_eq!(first.header("idempotency-replayed"), "");
    let (location, first) = (first.header("location").to_owned(), accepted(first));
    let message = one.message_with(text(&first, "id"), "read").await;
    assert_eq!(message["status"], "read");

    // Written in another way it is the same request, and it gets the first answer, however far the message is by now.
    let again = "{ \"metadata\": {\"b\": [true, null], \"a\": 1},\n\t\"body\": \"\\u00e9\", \"to\": \"+15550100001\" }";
    let replay = send(&one, "k-1", again).await;
    assert_eq!((replay.header("idempotency-replayed"), replay.header("location")), ("true", location.as_str()));
    assert_eq!(accepted(replay), first);

    for other in [
        r#"{"to":"+15550100001","body":"e","metadata":{"a":1,"b":[true,null]}}"#,
        r#"{"to":"+15550100001","body":"é","metadata":{"a":1,"b":[null,true]}}"#,
        r#"{"to":"+15550100001","body":"é"}"#,
    ] {
        refused(&send(&one, "k-1", other).await, 422, "idempotency_key_reused");
    }
    names(&send(&one, "k-2", r#"{"to":"+15550100001"}"#).await, "body", "required", "a refusal keeps no key");
    accepted(send(&one, "k-2", body).await);
    for key in ["", "a b", &"x".repeat(256)] {
        names(&send(&one, key, body).await, "Idempotency-Key", "invalid_value", key);
    }
    accepted(send(&one, &"x".repeat(255), body).await);

    let theirs = send(&two, "k-1", body).await;
    assert_eq!(theirs.header("idempotency-replayed"), "");
    assert_ne!(accepted(theirs)["id"], first["id"]);

    // Many at once: one message, one answer.
    let racing = futures_util::future::join_all((0..16).map(|_| send(&one, "k-3", body))).await;
    let mut ids: Vec<String> = racing
        .into_iter()
        .filter(|answer| answer.body["code"] != "request_in_progress")
        .map(|answer| text(&accepted(answer), "id").to_owned())
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let list = one.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(list["data"].as_array().unwrap().len(), 4);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_answered_although_the_request_is_not_valid_any_more() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    tenant.session("first").await;
    let send = async || {
        let request = tenant.request(Method::POST, "/v1/messages").header("idempotency-key", "once");
        Client::send(request.json(&json!({"to": TO, "body": "a"}))).await
    };
    let first = accepted(send().await);
    // With a second session the request would not be valid any more; its answer is.
    tenant.session("second").await;
    let replay = send().await;
    assert_eq!(replay.header("idempotency-replayed"), "true", "{:?}", replay.body);
    assert_eq!(accepted(replay), first);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_is_the_message_as_it_was_accepted() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let metadata = json!({"order": 4711, "deep": {"list": [1, 2.5, "x", null, true]}, "é": "👍"});
    for (priority, to, shown) in [
        ("high", "+1 (555) 010-0001", "+15550100001"),
        ("normal", "15550100001@c.us", "+15550100001"),
        ("bulk", "120363000000000000@g.us", "120363000000000000@g.us"),
        ("normal", "99999999999@lid", "99999999999@lid"),
        ("normal", "120363@newsletter", "120363@newsletter"),
    ] {
        let body = json!({"to": to, "type": "text", "body": "hi", "priority": priority, "metadata": metadata});
        let request = tenant.request(Method::POST, "/v1/messages").header("x-request-id", "my-id_1.2");
        let answer = Client::send(request.json(&body)).await;
        assert_eq!(answer.header("x-request-id"), "my-id_1.2");
        let kept = accepted(answer);
        for (member, value) in [
            ("to", shown),
            ("priority", priority),
            ("status", "queued"),
            ("direction", "outbound"),
            ("type", "text"),
            ("body", "hi"),
            ("session_id", session.as_str()),
        ] {
            assert_eq!(kept[member], value, "{member} of {kept}");
        }
        assert_eq!((&kept["metadata"], &kept["attempts"], &kept["ack"]), (&metadata, &json!(0), &Value::Null));
        assert!(text(&kept, "created_at").ends_with('Z'));
        let read = tenant.get(&format!("/v1/messages/{}", text(&kept, "id"))).await.expect(StatusCode::OK);
        for member in ["id", "tenant_id", "session_id", "to", "body", "metadata", "created_at", "priority"] {
            assert_eq!(read[member], kept[member], "{member}");
        }
    }
    let all = world.simulator.control().ledger_when(|ledger| ledger.entries.len() >= 5);
    let ledger = tokio::time::timeout(PATIENCE, all).await.expect("all to arrive");
    assert_eq!(ledger.texts(&external).len(), 5);
    node.node.stop().await;
}
