//! Webhooks as WAHA posts them.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha512;
use switchboard::simulator::{Engine, WebhookFaults};

use super::Bench;
use super::receiver::Hook;

fn signed(hook: &Hook) -> bool {
    let mut mac = Hmac::<Sha512>::new_from_slice(b"hook-key").unwrap();
    mac.update(&hook.raw);
    hook.header("x-webhook-hmac") == Some(hex::encode(mac.finalize().into_bytes()).as_str())
}

/// The members of an object in the order they are written, at every depth that a capture has, `_data` left out.
fn members(raw: &[u8]) -> String {
    let text = String::from_utf8(raw.to_vec()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let mut names: Vec<(usize, String)> = Vec::new();
    for part in [&value, &value["payload"], &value["environment"]] {
        for name in part.as_object().unwrap().keys() {
            names.push((text.find(&format!("\"{name}\":")).unwrap(), name.clone()));
        }
    }
    names.sort();
    names.dedup_by(|one, other| one.1 == other.1);
    names.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" ")
}

fn capture(name: &str) -> (Vec<String>, Vec<u8>) {
    let path = format!("{}/tests/fixtures/waha-captures/{name}.http", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let names = head.lines().skip(1).map(|line| line.split(':').next().unwrap().to_ascii_lowercase()).collect();
    (names, body.trim_end().as_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_headers_are_those_of_the_captures() {
    let bench = Bench::start(Engine::Noweb).await;
    let mut session = bench.session_config();
    session.as_object_mut().unwrap().remove("metadata");
    session["webhooks"][0].as_object_mut().unwrap().remove("customHeaders");
    bench.post("/api/sessions", &json!({"name": "main", "config": session})).await;
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    bench.simulator.control().scan("main").unwrap();
    bench.simulator.control().working("main").await;
    bench.send("main", "15550101234", "hi", "3EB0").await;
    bench.simulator.control().inbound_text("main", "15550101234", "hello in").unwrap();
    let own = |hook: &Hook| hook.event() == "message.any" && hook.body["payload"]["fromMe"] == true;
    let captured = [
        ("STARTING", bench.receiver.wait("STARTING", |hook| hook.status() == Some("STARTING")).await),
        ("SCAN_QR_CODE", bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await),
        ("WORKING", bench.receiver.wait("WORKING", |hook| hook.status() == Some("WORKING")).await),
        ("message.any", bench.receiver.wait("own", own).await),
        ("message", bench.receiver.wait("inbound", |hook| hook.event() == "message").await),
    ];
    for (name, hook) in &captured {
        let (headers, body) = capture(name);
        let expected = members(&body).replace("session metadata", "session");
        assert_eq!(members(&hook.raw), expected, "{name}");
        for header in
            headers.iter().filter(|name| !["connection", "accept-encoding", "x-custom"].contains(&name.as_str()))
        {
            assert!(hook.header(header).is_some(), "{name} lacks {header}");
        }
        assert!(signed(hook), "{name}");
        assert_eq!(hook.header("user-agent"), Some("WAHA/2026.7.1"));
        assert_eq!(hook.header("x-webhook-timestamp"), Some(hook.body["timestamp"].to_string().as_str()));
        assert_eq!(hook.header("x-webhook-hmac-algorithm"), Some("sha512"));
        let id = hook.body["id"].as_str().unwrap();
        assert!(id.starts_with("evt_01") && id.len() == 30, "{id}");
    }
    let raw_data = |body: &Value| body["payload"]["_data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for (name, hook) in captured.iter().filter(|(name, _)| name.starts_with("message")) {
        let (_, body) = capture(name);
        assert_eq!(raw_data(&hook.body), raw_data(&serde_json::from_slice(&body).unwrap()), "{name}");
    }
    // One incoming message has one event id under both names.
    let message = &captured[4].1;
    let twin =
        bench.receiver.wait("twin", |hook| hook.event() == "message.any" && hook.body["id"] == message.body["id"]);
    assert_eq!(twin.await.body["payload"], message.body["payload"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_repeat_ids_time_and_bytes_and_end() {
    let bench = Bench::start(Engine::Noweb).await;
    // 4xx too is tried again; five retries were asked for, so the sixth refusal is the last.
    bench
        .receiver
        .answer_to("STARTING", &[(404, None), (500, None), (503, Some(2)), (400, None), (302, None), (500, None)]);
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    let attempts = bench.receiver.wait_for("six attempts", 6, |hook| hook.status() == Some("STARTING")).await;
    for attempt in &attempts {
        assert_eq!(attempt.raw, attempts[0].raw);
        for name in ["x-webhook-request-id", "x-webhook-timestamp", "x-webhook-hmac", "x-custom"] {
            assert_eq!(attempt.header(name), attempts[0].header(name));
        }
    }
    assert_eq!(attempts[0].header("x-custom"), Some("abc"));
    assert_eq!(attempts[0].body["metadata"], json!({"tenant": "t1"}));
    bench.receiver.wait("the next code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    let all = bench.receiver.seen();
    assert_eq!(all.iter().filter(|hook| hook.status() == Some("STARTING")).count(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_what_waits_for_a_retry() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.receiver.answer_to("STARTING", &[(500, None)]);
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    let first = bench.receiver.wait("STARTING", |hook| hook.status() == Some("STARTING")).await;
    bench.simulator.control().restart();
    // The retry was due 1 s after the start, which is before the session can be WORKING.
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    bench.simulator.control().scan("main").unwrap();
    bench.receiver.wait("WORKING", |hook| hook.status() == Some("WORKING")).await;
    let seen = bench.receiver.seen();
    assert_eq!(seen.iter().filter(|hook| hook.body["id"] == first.body["id"]).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_go_wrong_on_demand() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let only = |faults: WebhookFaults| WebhookFaults { event: Some("message.any".to_owned()), ..faults };
    let control = bench.simulator.control();

    control.webhook_faults(only(WebhookFaults { duplicate: 1.0, ..WebhookFaults::default() }));
    bench.send("main", "15550100003", "twice", "").await;
    let twice = bench.receiver.wait_for("two", 2, |hook| hook.body["payload"]["body"] == "twice").await;
    assert_eq!(twice[0].header("x-webhook-request-id"), twice[1].header("x-webhook-request-id"));

    control.webhook_faults(only(WebhookFaults { bad_hmac: 1.0, ..WebhookFaults::default() }));
    bench.send("main", "15550100003", "forged", "").await;
    assert!(!signed(&bench.receiver.wait("forged", |hook| hook.body["payload"]["body"] == "forged").await));

    control.webhook_faults(only(WebhookFaults { truncated: 1.0, ..WebhookFaults::default() }));
    bench.send("main", "15550100003", "cut", "").await;
    let cut = bench.receiver.wait("cut", |hook| hook.body == Value::Null).await;
    assert!(cut.raw.starts_with(b"{\"id\":\"evt_"));

    control.webhook_faults(only(WebhookFaults { drop: 1.0, ..WebhookFaults::default() }));
    bench.send("main", "15550101234", "lost", "3EB0LOST").await;
    bench.receiver.wait("read", |hook| hook.ack_of("3EB0LOST") == Some(3)).await;
    assert!(bench.receiver.seen().iter().all(|hook| hook.body["payload"]["body"] != "lost"));
}
