//! From a tenant's request to WhatsApp and back.

use reqwest::StatusCode;
use serde_json::json;
use standardwebhooks::Webhook;

use crate::support::world::{PATIENCE, text};
use crate::support::{Receiver, World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_travels_the_whole_way_and_the_tenant_learns_of_it() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let receiver = Receiver::start();
    let endpoint = json!({"url": receiver.url("/hook"), "event_types": ["message.*"]});
    let endpoint = tenant.post("/v1/webhook-endpoints", &endpoint).await.expect(StatusCode::CREATED);
    let (session, external) = tenant.session("first").await;

    let sent = tenant.send_text(&session, "+1 (555) 010-0007", "Hello").await;
    assert_eq!((text(&sent, "status"), text(&sent, "to")), ("queued", "+15550100007"));
    let id = text(&sent, "id");
    let read = tenant.message_with(id, "read").await;
    assert_eq!((read["attempts"].as_i64(), read["ack"].as_i64()), (Some(1), Some(3)));
    assert_eq!(tenant.history(id).await, ["queued", "sending", "sent", "delivered", "read"]);
    let ledger = world.simulator.control().ledger();
    assert_eq!(ledger.bubbles("Hello"), 1);
    assert_eq!(ledger.entry(&external, text(&read, "waha_message_id")).unwrap().post_count, 1);

    // The reply comes in, and both directions are told by signed webhooks.
    let inbound = eventually(PATIENCE, "the reply to be stored", async || {
        let list = tenant.get("/v1/messages?direction=inbound").await.expect(StatusCode::OK);
        list["data"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((text(&inbound, "status"), text(&inbound, "from")), ("received", "+15550100007"));
    let received = receiver.wait_for(6).await;
    let verifier = Webhook::new(text(&endpoint, "secret")).unwrap();
    let mut kinds = Vec::new();
    for webhook in &received {
        let headers: reqwest::header::HeaderMap =
            webhook.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        verifier.verify(&webhook.body, &headers).unwrap();
        kinds.push(text(&webhook.json(), "type").to_owned());
    }
    kinds.sort();
    let expected =
        ["message.delivered", "message.queued", "message.read", "message.received", "message.sent"].map(str::to_owned);
    kinds.dedup();
    assert_eq!(kinds, expected);
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_of_the_request_is_answered_as_the_first_and_sends_nothing() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, _) = tenant.session("first").await;
    let body = json!({"session_id": session, "to": "+15550100001", "body": "once"});
    let post = || async {
        let request =
            tenant.request(reqwest::Method::POST, "/v1/messages").header("Idempotency-Key", "order-1").json(&body);
        crate::support::world::Client::send(request).await
    };
    let answers = futures_util::future::join_all((0..20).map(|_| post())).await;
    let first: Vec<_> = answers.iter().filter(|answer| answer.header("Idempotency-Replayed") != "true").collect();
    assert_eq!(first.len(), 1, "one request is the first");
    assert!(answers.iter().all(|answer| answer.status == StatusCode::ACCEPTED && answer.body == first[0].body));
    let other = json!({"session_id": session, "to": "+15550100001", "body": "another"});
    let request =
        tenant.request(reqwest::Method::POST, "/v1/messages").header("Idempotency-Key", "order-1").json(&other);
    let answer = crate::support::world::Client::send(request).await;
    assert_eq!(
        (answer.status, text(&answer.body, "code")),
        (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused")
    );
    tenant.message_with(text(&first[0].body, "id"), "read").await;
    assert_eq!(world.simulator.control().ledger().bubbles("once"), 1);
    node.node.stop().await;
}
