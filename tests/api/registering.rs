//! What a WAHA server is asked when it is registered, and what is said about it.

use serde_json::{Value, json};

use super::Stand;
use super::stand::PLATFORM_KEY;
use crate::support::free_port;
use crate::support::said_waha::{KEY, SaidWaha};

fn server(name: &str, url: &str, engine: &str) -> Value {
    json!({"name": name, "base_url": url, "api_key": KEY, "engine": engine, "capacity": 10})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_asked_at_once_and_its_limitations_are_said() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("one").await;
    let key = stand.key(&tenant, &["*"]).await;
    let core = json!(["single_session", "no_webhook_hmac", "no_media"]);
    for (number, (version, engine, tier, limitations, placed)) in [
        ("2026.6.0", "GOWS", Some("CORE"), core.clone(), 409),
        ("2026.6.0", "NOWEB", None, core, 409),
        ("2026.4.2", "NOWEB", Some("PLUS"), json!(["no_own_message_ids"]), 201),
        ("2026.7.1", "WEBJS", Some("CORE"), json!(["no_own_message_ids"]), 201),
        ("2026.7.1", "GOWS", Some("CORE"), json!([]), 201),
    ]
    .into_iter()
    .enumerate()
    {
        let waha = SaidWaha::start(version, engine, tier);
        let made = stand.post("/v1/waha-servers", PLATFORM_KEY, server(&format!("w{number}"), &waha.url, engine)).await;
        let made = made.expect(201).json();
        assert_eq!(
            (&made["health"], &made["waha_version"], &made["reported_engine"], &made["limitations"]),
            (&json!("healthy"), &json!(version), &json!(engine), &limitations),
            "{version} {engine} {tier:?}"
        );
        assert!(made["last_seen_at"].is_string() && made["unreachable_since"].is_null(), "{made}");
        let path = format!("/v1/waha-servers/{}", made["id"].as_str().unwrap());
        assert_eq!(stand.get(&path, PLATFORM_KEY).await.expect(200).json(), made, "as it is shown later");

        let session = stand.post("/v1/sessions", &key, json!({"name": version, "start": false})).await;
        assert_eq!(session.status, placed, "{version} {engine} {tier:?}: {session:?}");
        if placed == 201 {
            assert_eq!(session.json()["waha_server_id"], made["id"]);
            stand.sql().await.execute("UPDATE waha_sessions SET deleted_at = now()", &[]).await.unwrap();
        }
        stand.call("PATCH", &path, PLATFORM_KEY, Some(json!({"draining": true}))).await.expect(200);
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_contradicts_is_refused_by_name() {
    let stand = Stand::new().await;
    let waha = SaidWaha::start("2026.7.1", "GOWS", Some("CORE"));
    let post = async |body: Value| stand.post("/v1/waha-servers", PLATFORM_KEY, body).await;
    let wrong = post(server("w", &waha.url, "NOWEB")).await;
    wrong.refused_field("engine");
    assert!(wrong.json()["detail"].as_str().unwrap().contains("GOWS"), "it says which: {wrong:?}");
    let mut refused = server("w", &waha.url, "GOWS");
    refused["api_key"] = json!("another-key");
    post(refused).await.refused_field("api_key");
    assert_eq!(stand.get("/v1/waha-servers", PLATFORM_KEY).await.json()["data"], json!([]), "nothing is left of them");

    let path = format!(
        "/v1/waha-servers/{}",
        post(server("w", &waha.url, "GOWS")).await.expect(201).json()["id"].as_str().unwrap()
    );
    let patch = async |body| stand.call("PATCH", &path, PLATFORM_KEY, Some(body)).await;
    patch(json!({"engine": "NOWEB"})).await.refused_field("engine");
    patch(json!({"api_key": "another-key"})).await.refused_field("api_key");
    let calls = waha.calls();
    let changed = patch(json!({"capacity": 3, "labels": ["eu"]})).await.expect(200).json();
    assert_eq!((&changed["health"], &changed["version"]), (&json!("healthy"), &json!(2)));
    assert_eq!(waha.calls(), calls, "asked only when it may make a difference");
    // The other way round: what the server says has changed, and the registry follows.
    waha.says("2026.7.2", "NOWEB", Some("CORE"));
    let changed = patch(json!({"engine": "NOWEB"})).await.expect(200).json();
    assert_eq!(
        (&changed["engine"], &changed["reported_engine"], &changed["waha_version"], &changed["health"]),
        (&json!("NOWEB"), &json!("NOWEB"), &json!("2026.7.2"), &json!("healthy"))
    );
    let other = SaidWaha::start("2026.6.0", "NOWEB", Some("CORE"));
    let changed = patch(json!({"base_url": other.url})).await.expect(200).json();
    assert_eq!(changed["limitations"], json!(["single_session", "no_webhook_hmac", "no_media"]));
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let changed = patch(json!({"base_url": nowhere})).await.expect(200).json();
    assert_eq!(
        (&changed["health"], &changed["limitations"], &changed["reported_engine"]),
        (&json!("unknown"), &json!([]), &json!(null)),
        "nothing is known of what is not there yet"
    );
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_answer_is_registered_unseen() {
    let stand = Stand::new().await;
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let half = SaidWaha::start("2026.7.1", "GOWS", None);
    half.fails(Some("/api/server/status"));
    for (name, url) in [("away", nowhere.as_str()), ("half", half.url.as_str())] {
        let made = stand.post("/v1/waha-servers", PLATFORM_KEY, server(name, url, "GOWS")).await.expect(201).json();
        assert_eq!((&made["health"], &made["waha_version"]), (&json!("unknown"), &json!(null)), "{name}");
        assert_eq!((&made["limitations"], &made["unreachable_since"]), (&json!([]), &json!(null)), "{name}");
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_whatever_the_server_says_by_then() {
    let stand = Stand::new().await;
    let waha = SaidWaha::start("2026.7.1", "GOWS", None);
    let post = async || {
        let request = stand.request("POST", "/v1/waha-servers").bearer_auth(PLATFORM_KEY);
        stand.send(request.header("idempotency-key", "k").json(&server("w", &waha.url, "GOWS"))).await
    };
    let first = post().await.expect(201).json();
    waha.says("2026.7.1", "WPP", None);
    let again = post().await.expect(201);
    assert_eq!((again.json(), again.header("idempotency-replayed")), (first, Some("true")));
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_groups_are_kept_and_checked() {
    let stand = Stand::new().await;
    let mut body = server("w", "http://127.0.0.1:1", "GOWS");
    body["labels"] = json!(["gdpr:strict", "eu", "eu"]);
    body["storage_group"] = json!("pg-1");
    let made = stand.post("/v1/waha-servers", PLATFORM_KEY, body).await.expect(201).json();
    assert_eq!((&made["labels"], &made["storage_group"]), (&json!(["eu", "gdpr:strict"]), &json!("pg-1")));
    let path = format!("/v1/waha-servers/{}", made["id"].as_str().unwrap());
    let patch = async |body| stand.call("PATCH", &path, PLATFORM_KEY, Some(body)).await;
    let changed = patch(json!({"labels": []})).await.expect(200).json();
    assert_eq!((&changed["labels"], &changed["storage_group"]), (&json!([]), &json!("pg-1")));
    assert_eq!(patch(json!({"storage_group": null})).await.expect(200).json()["storage_group"], json!(null));
    let twenty = |n: usize| (0..n).map(|n| format!("l{n}")).collect::<Vec<_>>();
    patch(json!({"labels": twenty(20)})).await.expect(200);
    for (value, field) in [
        (json!(["EU"]), "labels[0]"),
        (json!(["eu", ""]), "labels[1]"),
        (json!(["a b"]), "labels[0]"),
        (json!(["x".repeat(51)]), "labels[0]"),
        (json!(twenty(21)), "labels"),
    ] {
        patch(json!({"labels": value})).await.refused_field(field);
        let mut body = server("other", "http://127.0.0.1:1", "GOWS");
        body["labels"] = value;
        stand.post("/v1/waha-servers", PLATFORM_KEY, body).await.refused_field(field);
    }
    patch(json!({"storage_group": ""})).await.refused_field("storage_group");
    patch(json!({"limitations": []})).await.refused_field("limitations");
    stand.end().await;
}
