//! `GET /v1/messages`, one message, and its history.

use std::collections::HashSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::World;
use crate::support::eventually;
use crate::support::world::{Client, PATIENCE, text};

/// The texts of what a query lists, newest first.
async fn listed(client: &Client, query: &str) -> Vec<String> {
    let list = client.get(&format!("/v1/messages?{query}")).await.expect(StatusCode::OK);
    list["data"].as_array().unwrap().iter().map(|message| text(message, "body").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_filter_narrows() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let ((one, external), (two, _)) = (tenant.session("one").await, tenant.session("two").await);
    let mut sent: Vec<Value> = Vec::new();
    for (session, to, body, metadata) in [
        (&one, "+15550101001", "a", json!({"order": "4711", "n": 5})),
        (&one, "+15550101002", "b", json!({"order": "4712", "n": 5, "ok": true})),
        (&two, "+15550101001", "c", json!({"order": "4711", "x y.z": "é&="})),
        (&two, "120363000000000000@g.us", "d", json!({})),
    ] {
        let message = json!({"session_id": session, "to": to, "body": body, "metadata": metadata});
        sent.push(tenant.post("/v1/messages", &message).await.expect(StatusCode::ACCEPTED));
    }
    world.simulator.control().inbound_text(&external, "15550107777", "in").unwrap();
    eventually(PATIENCE, "the reply", async || (listed(&tenant, "").await.len() == 5).then_some(())).await;
    for message in &sent[..3] {
        tenant.message_with(text(message, "id"), "read").await;
    }
    let third = text(&sent[2], "created_at");
    let later = third.replace('Z', "%2B00:00");
    let elsewhere = chrono::DateTime::parse_from_rfc3339(third)
        .unwrap()
        .with_timezone(&chrono::FixedOffset::east_opt(7200).unwrap())
        .to_rfc3339()
        .replace('+', "%2B");

    for (query, expected) in [
        (String::new(), "in d c b a"),
        (format!("session_id={one}"), "in b a"),
        (format!("session_id={}", one.to_uppercase()), "in b a"),
        (format!("session_id={two}&to=%2B15550101001"), "c"),
        ("direction=inbound".to_owned(), "in"),
        ("direction=outbound".to_owned(), "d c b a"),
        ("status=received".to_owned(), "in"),
        ("status=failed".to_owned(), ""),
        ("status=read&to=15550101002".to_owned(), "b"),
        ("to=%2B15550101001".to_owned(), "c a"),
        ("to=15550101001".to_owned(), "c a"),
        // A plus sign that nobody encoded is a space.
        ("to=+15550101001".to_owned(), "c a"),
        ("to=%2B1+(555)+010-1001".to_owned(), "c a"),
        ("to=15550101001@c.us".to_owned(), "c a"),
        ("to=120363000000000000%40g.us".to_owned(), "d"),
        ("from=%2B1-555-010-7777".to_owned(), "in"),
        ("from=15550107777@c.us".to_owned(), "in"),
        ("from=15550107778".to_owned(), ""),
        ("type=text".to_owned(), "in d c b a"),
        ("type=image".to_owned(), ""),
        (format!("created_after={third}&direction=outbound"), "d c"),
        (format!("created_before={third}"), "b a"),
        (format!("created_before={later}"), "b a"),
        (format!("created_before={elsewhere}"), "b a"),
        (format!("created_after={third}&created_before={third}"), ""),
        ("created_after=9999-12-31T23:59:59Z".to_owned(), ""),
        ("metadata.order=4711".to_owned(), "c a"),
        ("metadata.order=4711&metadata.n=5".to_owned(), "a"),
        ("metadata.n=5".to_owned(), "b a"),
        ("metadata.ok=true".to_owned(), "b"),
        ("metadata.ok=false".to_owned(), ""),
        ("metadata.x%20y.z=%C3%A9%26%3D".to_owned(), "c"),
        ("metadata.nothing=".to_owned(), ""),
        (format!("session_id={one}&direction=outbound&status=read&type=text&metadata.order=4712"), "b"),
        ("session_id=01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c".to_owned(), ""),
    ] {
        assert_eq!(listed(&tenant, &query).await.join(" "), expected, "{query}");
    }

    let other = world.tenant(&node.base, "two").await;
    assert!(listed(&other, &format!("session_id={one}")).await.is_empty(), "another tenant sees nothing");

    for (query, field) in [
        ("session_id=first", "session_id"),
        ("session_id=", "session_id"),
        ("direction=sideways", "direction"),
        ("status=gone", "status"),
        ("status=", "status"),
        ("to=nobody", "to"),
        ("to=", "to"),
        ("from=0123456", "from"),
        ("type=carrier-pigeon", "type"),
        ("created_after=yesterday", "created_after"),
        ("created_before=2026-13-01T00:00:00Z", "created_before"),
        ("created_before=1700000000", "created_before"),
        ("created_after=-100000-01-01T00:00:00Z", "created_after"),
        ("created_before=%2B200000-01-01T00:00:00Z", "created_before"),
        ("colour=red", "colour"),
        ("metadata=x", "metadata"),
        ("metadata.=x", "metadata."),
        ("metadata.a=%00", "metadata.a"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=", "cursor"),
        ("status=read&status=sent", "status"),
    ] {
        let answer = tenant.get(&format!("/v1/messages?{query}")).await;
        assert_eq!(answer.body["code"], "validation_failed", "{query}: {:?}", answer.body);
        assert_eq!(answer.body["errors"][0]["field"], field, "{query}: {:?}", answer.body);
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_stay_in_place_while_rows_are_added() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("only").await;
    for n in 0..25 {
        tenant.send_text(&session, "+15550101001", &format!("{n}")).await;
    }
    let (mut seen, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let query = cursor.map_or_else(|| "limit=10".to_owned(), |cursor| format!("limit=10&cursor={cursor}"));
        let page = tenant.get(&format!("/v1/messages?{query}")).await.expect(StatusCode::OK);
        seen.extend(page["data"].as_array().unwrap().iter().map(|message| text(message, "body").to_owned()));
        pages += 1;
        tenant.send_text(&session, "+15550101001", "later").await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    let expected: Vec<String> = (0..25).rev().map(|n| n.to_string()).collect();
    assert_eq!((seen, pages), (expected, 3), "each once, newest first");

    // As many as there are, exactly: no page follows.
    let all = tenant.get("/v1/messages?limit=28").await.expect(StatusCode::OK);
    assert_eq!((all["data"].as_array().unwrap().len(), &all["next_cursor"]), (28, &Value::Null));
    let most = tenant.get("/v1/messages?limit=200").await.expect(StatusCode::OK);
    assert_eq!(most["data"].as_array().unwrap().len(), 28);
    let ids: HashSet<&str> = most["data"].as_array().unwrap().iter().map(|message| text(message, "id")).collect();
    assert_eq!(ids.len(), 28);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_and_its_history() {
    let world = World::new().await;
    let node = world.node();
    let (tenant, other) = (world.tenant(&node.base, "one").await, world.tenant(&node.base, "two").await);
    let (session, _) = tenant.session("only").await;
    let message = tenant.send_text(&session, "+15550101001", "a").await;
    let id = text(&message, "id");
    let read = tenant.message_with(id, "read").await;
    for member in ["sent_at", "delivered_at", "read_at", "waha_message_id"] {
        assert!(read[member].is_string(), "{member} of {read}");
    }
    assert_eq!((&read["ack"], &read["attempts"]), (&json!(3), &json!(1)));

    let steps = tenant.get(&format!("/v1/messages/{id}/transitions")).await.expect(StatusCode::OK);
    let steps = steps["data"].as_array().unwrap();
    let statuses: Vec<&str> = steps.iter().map(|step| text(step, "status")).collect();
    assert_eq!(statuses, ["queued", "sending", "sent", "delivered", "read"]);
    assert!(steps.is_sorted_by_key(|step| text(step, "at").to_owned()), "oldest first: {steps:?}");
    assert!(steps.iter().all(|step| text(step, "at").ends_with('Z') && !text(step, "cause").is_empty()));
    assert_eq!(steps[1]["attempt"], 1);

    for path in ["", "/transitions"] {
        for id in ["01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "x", "1", "%00", "%ff", "null", "01994f3e"] {
            let answer = tenant.get(&format!("/v1/messages/{id}{path}")).await;
            assert_eq!(
                (answer.status, &answer.body["code"]),
                (StatusCode::NOT_FOUND, &json!("not_found")),
                "{id}{path}"
            );
        }
        let foreign = other.get(&format!("/v1/messages/{id}{path}")).await;
        assert_eq!((foreign.status, &foreign.body["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
        let answer = Client::send(tenant.request(Method::PUT, &format!("/v1/messages/{id}{path}"))).await;
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed"))
        );
        assert!(answer.header("allow").contains("GET"), "{:?}", answer.headers);
    }
    let answer = Client::send(tenant.request(Method::DELETE, "/v1/messages")).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(answer.header("allow").contains("GET") && answer.header("allow").contains("POST"));
    node.node.stop().await;
}
