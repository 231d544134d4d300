//! What operators and browsers see of a node at work, without credentials.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::World;
use crate::support::eventually;
use crate::support::world::{Client, PATIENCE, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stage_has_its_metrics_and_they_tell_no_secrets() {
    let world = World::new().await;
    let node = world.node();
    let tenant = world.tenant(&node.base, "one").await;
    let (session, external) = tenant.session("only").await;
    let message = tenant.send_text(&session, "+15550101234", "confidential").await;
    tenant.message_with(text(&message, "id"), "read").await;
    world.simulator.control().inbound_text(&external, "15550107777", "private").unwrap();
    let stranger = tenant.with_key("");
    let stages = [
        "http_requests_total",
        "http_request_duration_seconds_bucket",
        "switchboard_messages_accepted_total",
        "switchboard_group_commit_seconds_bucket",
        "switchboard_dispatch_turns_total",
        "switchboard_send_attempts_total",
        "switchboard_send_attempt_seconds_bucket",
        "switchboard_ingest_events_total",
        "switchboard_ingest_acks_applied_total",
        "switchboard_ingest_messages_stored_total",
        "switchboard_events_fanned_out_total",
    ];
    let metrics = eventually(PATIENCE, "every stage's metrics", async || {
        let Value::String(metrics) = stranger.get("/metrics").await.expect(StatusCode::OK) else { return None };
        let has = |stage: &&str| metrics.lines().any(|line| line.starts_with(*stage) && !line.ends_with(" 0"));
        stages.iter().all(has).then_some(metrics)
    })
    .await;
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        // The last two are flags.
        let units =
            ["_total", "_seconds", "_bytes", "_items", "_deliveries", "_sessions", "_alarms", "_up", "_blocked"];
        assert!(units.iter().any(|unit| name.ends_with(unit)), "{name} says no unit");
    }
    for secret in ["confidential", "private", "1555010", &tenant.key, &external, &session, "sbtest"] {
        assert!(!metrics.contains(secret), "{secret} in the metrics");
    }
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_is_complete_and_unknown_paths_are_problems() {
    let world = World::new().await;
    let node = world.node_with(&[switchboard::serve::Role::Api], |_| {});
    let stranger = world.platform(&node.base).with_key("");
    let document = stranger.get("/openapi.json").await.expect(StatusCode::OK);
    assert!(text(&document, "openapi").starts_with("3.1"));
    assert!(document["webhooks"].as_object().is_some_and(|webhooks| !webhooks.is_empty()));
    for (path, method) in
        [("/v1/messages", "post"), ("/v1/messages/{id}", "get"), ("/hooks/waha/{waha_server_id}", "post")]
    {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
    for path in ["/docs", "/docs/"] {
        let page = stranger.get(path).await;
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.header("content-type").starts_with("text/html"));
        let Value::String(html) = page.body else { panic!("{path} is a page") };
        let assets: Vec<&str> = ["src=\"", "href=\""]
            .iter()
            .flat_map(|start| html.split(start).skip(1).filter_map(|rest| rest.split('"').next()))
            .collect();
        assert!(assets.len() >= 4, "{assets:?}");
        for asset in assets {
            let path = format!("/docs/{}", asset.trim_start_matches("./"));
            assert_eq!(stranger.get(&path).await.status, StatusCode::OK, "{path}");
        }
    }
    for path in
        ["/", "/nothing", "/v1", "/v1/nothing", "/docs/nothing", "/docs/../metrics/x", "/metrics/x", "/favicon.ico"]
    {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let answer = Client::send(stranger.request(method.clone(), path)).await;
            let expected = if path.starts_with("/docs/nothing") && method != Method::GET { 405 } else { 404 };
            assert_eq!(answer.status.as_u16(), expected, "{method} {path}: {:?}", answer.body);
            assert_eq!(answer.header("content-type"), "application/problem+json", "{method} {path}");
            assert_eq!(answer.body["request_id"], answer.header("x-request-id"));
        }
    }
    assert_eq!(stranger.get("/healthz").await.expect(StatusCode::OK), json!({"status": "ok"}));
    node.node.stop().await;
}
