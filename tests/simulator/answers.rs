//! Authentication, error bodies and server calls, word for word as captured.

use reqwest::Method;
use serde_json::{Value, json};
use switchboard::simulator::{Engine, SimulatorConfig};

use super::{Bench, config};

async fn text(response: reqwest::Response) -> (u16, String) {
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_but_ping_wants_the_key() {
    let bench = Bench::start(Engine::Noweb).await;
    let bare = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = bench.simulator.url();
    let ping = bare.get(format!("{url}/ping")).send().await.unwrap();
    assert_eq!(text(ping).await, (200, r#"{"message":"pong"}"#.to_owned()));
    for path in ["/health", "/api/sessions", "/api/server/version", "/_simulator/ledger", "/nowhere"] {
        for key in [None, Some("wrong")] {
            let request = bare.get(format!("{url}{path}"));
            let request = key.into_iter().fold(request, |request, key| request.header("X-Api-Key", key));
            let refused = text(request.send().await.unwrap()).await;
            assert_eq!(refused, (401, r#"{"message":"Unauthorized","statusCode":401}"#.to_owned()), "{path}");
        }
    }
    let by_query = bare.get(format!("{url}/api/sessions?x-api-key={}", super::KEY)).send().await.unwrap();
    assert_eq!(by_query.status(), 200);
    let echoed = bench.request(Method::GET, "/ping").header("x-request-id", "r-1").send().await.unwrap();
    assert_eq!(echoed.headers()["x-request-id"], "r-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_worded_as_captured() {
    let bench = Bench::start(Engine::Noweb).await;
    let cases = [
        ("GET", "/api/nope", "", 404, r#"{"message":"Cannot GET /api/nope","error":"Not Found","statusCode":404}"#),
        (
            "PATCH",
            "/api/sessions/default",
            "",
            404,
            r#"{"message":"Cannot PATCH /api/sessions/default","error":"Not Found","statusCode":404}"#,
        ),
        (
            "GET",
            "/api/sessions/default",
            "",
            404,
            r#"{"message":"Session not found","error":"Not Found","statusCode":404}"#,
        ),
        (
            "POST",
            "/api/sessions",
            r#"{"name":"#,
            400,
            r#"{"message":"Unexpected end of JSON input","error":"Bad Request","statusCode":400}"#,
        ),
        (
            "POST",
            "/api/sessions",
            r#"{"name":"bad name!"}"#,
            400,
            r#"{"message":["Session name can only contain alphanumeric characters, hyphens, and underscores (a-z, A-Z, 0-9, -, _) or be empty"],"error":"Bad Request","statusCode":400}"#,
        ),
        (
            "POST",
            "/api/sessions",
            r#"{"name":"a","start":"yes"}"#,
            400,
            r#"{"message":["start must be a boolean value"],"error":"Bad Request","statusCode":400}"#,
        ),
        (
            "POST",
            "/api/sendText",
            r#"{"chatId":"11111111111@c.us","text":"hi"}"#,
            400,
            r#"{"message":"Session name is required","error":"Bad Request","statusCode":400}"#,
        ),
        (
            "POST",
            "/api/sendText",
            r#"{"session":"x","chatId":"11111111111@c.us","text":"hi"}"#,
            422,
            r#"{"error":"Session \"x\" does not exist","session":"x"}"#,
        ),
        (
            "GET",
            "/api/sessions/default/me",
            "",
            404,
            r#"{"message":"We didn't find a session with name 'default'.\nPlease start it first by using POST /api/sessions/default/start request","error":"Not Found","statusCode":404}"#,
        ),
    ];
    for (method, path, body, status, expected) in cases {
        let request = bench.request(method.parse().unwrap(), path).body(body.to_owned());
        assert_eq!(text(request.send().await.unwrap()).await, (status, expected.to_owned()), "{method} {path}");
    }
    bench.create("default").await;
    let again = bench.post("/api/sessions", &json!({"name": "default"})).await;
    let exists = r#"{"message":"Session 'default' already exists. Use PUT to update it.","error":"Unprocessable Entity","statusCode":422}"#;
    assert_eq!(text(again).await, (422, exists.to_owned()));
    let unknown_event = json!({"name": "b", "config": {"webhooks": [{"url": "not a url", "events": ["nope"]}]}});
    let (status, body) = text(bench.post("/api/sessions", &unknown_event).await).await;
    assert_eq!(status, 400);
    assert!(body.starts_with(r#"{"message":["config.webhooks.0.url must be a URL address","config.webhooks.0.each value in events must be one of the following values: session.status, message, "#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_member_is_an_echoing_500() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let answer = bench.post("/api/sendText", &json!({"session": "main", "text": "hi"})).await;
    assert_eq!(answer.status(), 500);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["exception"]["message"], "Cannot read properties of undefined (reading 'includes')");
    assert_eq!(body["request"]["body"], json!({"session": "main", "text": "hi"}));
    assert_eq!(body["version"]["engine"], "NOWEB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_and_a_restart_show() {
    let bench = Bench::start_with(SimulatorConfig { version: "2026.3.4".to_owned(), ..config() }).await;
    let version = r#"{"version":"2026.3.4","engine":"NOWEB","tier":"CORE","browser":null,"platform":"linux/x64","worker":{"id":null}}"#;
    assert_eq!(text(bench.get("/api/server/version").await).await, (200, version.to_owned()));
    assert_eq!(text(bench.get("/api/version").await).await, (200, version.to_owned()));
    let started =
        async || bench.get("/api/server/status").await.json::<Value>().await.unwrap()["startTimestamp"].clone();
    let before = started().await;
    assert_eq!(started().await, before);
    bench.simulator.control().restart();
    assert_ne!(started().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_simulator_answers_no_more() {
    let bench = Bench::start(Engine::Noweb).await;
    let url = bench.simulator.url();
    bench.simulator.stop().await;
    assert!(reqwest::get(format!("{url}/ping")).await.is_err());
}
