//! `POST /v1/messages/batch`.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use switchboard::serve::Role;

use super::messages_kinds::still;
use crate::support::World;
use crate::support::world::{Answer, Client, text};

const TO: &str = "+15550101001";

async fn send(client: &Client, key: Option<&str>, body: &Value) -> Answer {
    let request = client.request(Method::POST, "/v1/messages/batch").json(body);
    Client::send(match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    })
    .await
}

/// The items of an answer: status, and the text sent or the field refused.
#[track_caller]
fn items(answer: &Answer) -> Vec<(u64, String)> {
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{:?}", answer.body);
    let items = answer.body["data"].as_array().unwrap();
    for (index, item) in items.iter().enumerate() {
        assert_eq!(item["index"], index);
        assert_ne!(item["message"].is_object(), item["problem"].is_object(), "{item}");
    }
    items
        .iter()
        .map(|item| {
            let said = item["message"]["body"].as_str().map(str::to_owned);
            let error = &item["problem"]["errors"][0];
            let refused = || format!("{} {}", text(error, "field"), text(error, "code"));
            (item["status"].as_u64().unwrap(), said.unwrap_or_else(refused))
        })
        .collect()
}

fn list(items: &[(u64, String)]) -> Vec<(u64, &str)> {
    items.iter().map(|(status, said)| (*status, said.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_ones_are_kept_and_bad_ones_named() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let message = |body: &str| json!({"to": TO, "body": body});
    let batch = json!({"messages": [
        message("0"),
        {"to": TO},
        message("2"),
        {"to": TO, "body": "a\u{0}"},
        {"to": TO, "body": "4", "client_reference": "r"},
        {"to": TO, "body": "5", "client_reference": "r"},
        {"to": TO, "body": "6", "session_id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"},
        "seven",
        {"to": TO, "body": "8", "colour": "red"},
        {"to": TO, "type": "poll", "poll": {"question": "9", "options": ["a", "a"]}},
        {"to": TO, "body": "10", "reply_to": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"},
        message("11"),
    ]});
    let answer = send(&tenant, None, &batch).await;
    let expected = [
        (202, "0"),
        (422, "body required"),
        (202, "2"),
        (422, "body invalid_character"),
        (202, "4"),
        (409, "client_reference taken"),
        (404, "session_id not_found"),
        (422, "(body) invalid_type"),
        (422, "colour unknown_field"),
        (422, "poll.options[1] duplicate"),
        (422, "reply_to not_found"),
        (202, "11"),
    ];
    assert_eq!(list(&items(&answer)), expected);
    let held = &answer.body["data"][4]["message"]["id"];
    assert!(text(&answer.body["data"][5]["problem"], "detail").contains(held.as_str().unwrap()));
    assert_eq!(answer.body["data"][1]["problem"]["request_id"], answer.header("x-request-id"));
    let kept = tenant.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(kept["data"].as_array().unwrap().len(), 4);
    let row = world
        .db
        .connect()
        .await
        .query_one("SELECT queued FROM lanes WHERE session_id::text = $1", &[&session])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 4);

    for (body, field) in [
        (json!({}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": {}}), "messages"),
        (json!({"messages": vec![json!({}); 1001]}), "messages"),
        (json!({"messages": [message("a")], "to": []}), "to"),
        (json!([]), "(body)"),
        (json!({"template": "Hi {{name", "to": [{"to": TO}]}), "template"),
        (json!({"template": "", "to": [{"to": TO}]}), "template"),
        (json!({"template": 1, "to": [{"to": TO}]}), "template"),
        (json!({"template": "a".repeat(5001), "to": [{"to": TO}]}), "template"),
        (json!({"template": "a"}), "to"),
        (json!({"template": "a", "to": []}), "to"),
        (json!({"template": "a", "to": [{"to": TO}], "body": "b"}), "body"),
        (
            json!({"template": "a", "to": [{"to": TO}], "type": "voice", "media": {"url": "https://example.com"}}),
            "template",
        ),
        (json!({"template": "a", "to": [{"to": TO}], "type": "image", "media": {"data": "aGk="}}), "media.data"),
        (json!({"template": "a", "to": [{"to": TO}], "expires_at": "2020-01-01T00:00:00Z"}), "expires_at"),
    ] {
        let answer = send(&tenant, None, &body).await;
        assert_eq!(
            (answer.status, &answer.body["errors"][0]["field"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(field)),
            "{:?}",
            answer.body
        );
    }
    let large = json!({"messages": [message(&"a".repeat(1024 * 1024))]});
    assert_eq!(send(&tenant, None, &large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_filled_in_for_each_recipient() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let batch = json!({
        "template": "Hi {{ name }}, {{n}} {left}",
        "session_id": session,
        "priority": "bulk",
        "metadata": {"campaign": "c"},
        "to": [
            {"to": TO, "variables": {"name": "{{n}}", "n": 2}, "client_reference": "t-1"},
            {"to": TO, "variables": {"name": "Ann"}},
            {"to": TO, "variables": {"name": "Ann", "n": null}},
            {"to": "0171 1", "variables": {"name": "Ann", "n": 1}},
            {"to": TO, "variables": {"name": "x".repeat(5000), "n": true}},
            {"to": TO, "variables": {"name": "", "n": true}, "metadata": {"own": 1}},
            {"to": TO, "variables": {}, "body": "x"},
        ],
    });
    let answer = send(&tenant, None, &batch).await;
    let expected = [
        (202, "Hi {{n}}, 2 {left}"),
        (422, "variables.n required"),
        (422, "variables.n invalid_type"),
        (422, "to no_country_code"),
        (422, "variables too_long"),
        (202, "Hi , true {left}"),
        (422, "body unknown_field"),
    ];
    assert_eq!(list(&items(&answer)), expected);
    let message = |index: usize| &answer.body["data"][index]["message"];
    assert_eq!((text(message(0), "priority"), text(message(0), "client_reference")), ("bulk", "t-1"));
    assert_eq!((&message(0)["metadata"], &message(5)["metadata"]), (&json!({"campaign": "c"}), &json!({"own": 1})));
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_repeated_without_effect() {
    let world = World::new().await;
    let (node, tenant, _) = still(&world).await;
    let second = world.node_with(&[Role::Api], |_| {});
    let taken = json!({"to": TO, "body": "taken", "client_reference": "taken"});
    tenant.post("/v1/messages", &taken).await.expect(StatusCode::ACCEPTED);
    let mut messages: Vec<Value> = (0..20).map(|n| json!({"to": TO, "body": n.to_string()})).collect();
    messages.extend([taken, json!({"to": TO})]);
    let batch = json!({ "messages": messages });
    // At once, at two nodes, and later: one effect, one answer.
    let racing = futures_util::future::join_all((0..6).map(|n| {
        let client = tenant.at(if n % 2 == 0 { &node.base } else { &second.base });
        let batch = &batch;
        async move { send(&client, Some("all"), batch).await }
    }))
    .await;
    let again = send(&tenant, Some("all"), &batch).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    for answer in &racing {
        assert_eq!(
            (answer.status, &answer.body["data"][3]["message"]),
            (StatusCode::ACCEPTED, &again.body["data"][3]["message"])
        );
        assert_eq!(answer.body["data"].as_array().unwrap().len(), 22);
    }
    assert_eq!(racing.iter().filter(|answer| answer.header("idempotency-replayed") != "true").count(), 1);
    let found = items(&again);
    assert_eq!((found[20].0, found[21].0), (409, 422));
    let list = tenant.get("/v1/messages").await.expect(StatusCode::OK);
    assert_eq!(list["data"].as_array().unwrap().len(), 21);

    let other = send(&tenant, Some("all"), &json!({"messages": [{"to": TO, "body": "x"}]})).await;
    assert_eq!(text(&other.body, "code"), "idempotency_key_reused");
    // A batch of bad ones only has an answer to repeat, too.
    let bad = json!({"messages": [{"to": TO}]});
    let first = send(&tenant, Some("bad"), &bad).await;
    let again = send(&tenant, Some("bad"), &bad).await;
    assert_eq!((&first.body, again.header("idempotency-replayed")), (&again.body, "true"));
    second.node.stop().await;
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_leaves_in_its_order() {
    let world = World::new().await;
    let (node, tenant, session) = still(&world).await;
    let messages: Vec<Value> = (0..1000).map(|n| json!({"to": TO, "body": format!("{n}")})).collect();
    // Two of them and a crowd of single ones at once.
    let batch = json!({ "messages": messages });
    let singles = futures_util::future::join_all((0..20).map(|_| tenant.send_text(&session, TO, "single")));
    let (one, two, _) = tokio::join!(send(&tenant, None, &batch), send(&tenant, None, &batch), singles);
    let sql = world.db.connect().await;
    for answer in [one, two] {
        assert!(items(&answer).iter().enumerate().all(|(n, item)| *item == (202, n.to_string())));
        let ids: BTreeSet<&str> =
            answer.body["data"].as_array().unwrap().iter().map(|item| text(&item["message"], "id")).collect();
        let rows =
            sql.query("SELECT id::text, body FROM messages WHERE body <> 'single' ORDER BY seq", &[]).await.unwrap();
        let order: Vec<String> =
            rows.iter().filter(|row| ids.contains(row.get::<_, &str>(0))).map(|row| row.get(1)).collect();
        assert_eq!(order, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    let row = sql.query_one("SELECT queued FROM lanes WHERE session_id::text = $1", &[&session]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 2020);
    node.node.stop().await;
}
