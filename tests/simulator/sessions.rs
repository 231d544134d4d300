//! States, pairing and the time they take.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use switchboard::simulator::{Engine, SimulatorConfig};

use super::{Bench, config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_codes_expire_and_the_session_fails() {
    let bench = Bench::start_with(SimulatorConfig { time_scale: 200.0, ..config() }).await;
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    bench.receiver.wait("FAILED", |hook| hook.status() == Some("FAILED")).await;
    let mut points: Vec<(i64, String)> = bench
        .receiver
        .seen()
        .iter()
        .filter_map(|hook| Some((hook.body["timestamp"].as_i64()?, hook.status()?.to_owned())))
        .collect();
    points.sort();
    let statuses: Vec<&str> = points.iter().map(|(_, status)| status.as_str()).collect();
    let scan = "SCAN_QR_CODE";
    assert_eq!(statuses, ["STARTING", scan, scan, scan, scan, scan, scan, "FAILED"]);
    // 60 s and 20 s at two hundred times the speed.
    let lifetimes: Vec<i64> = points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(lifetimes[1] >= 299, "{lifetimes:?}");
    assert!(lifetimes[2..].iter().all(|life| (99..290).contains(life)), "{lifetimes:?}");
    let info: Value = bench.get("/api/sessions/main").await.json().await.unwrap();
    assert_eq!((&info["status"], &info["me"]), (&json!("FAILED"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_code_comes_in_three_forms_and_changes() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    let value = async || {
        let raw: Value = bench.get("/api/main/auth/qr?format=raw").await.json().await.unwrap();
        raw["value"].as_str().unwrap().to_owned()
    };
    let first = value().await;
    assert!(first.starts_with("2@") && first.split(',').count() == 4);
    let png = bench.get("/api/main/auth/qr").await;
    assert_eq!(png.headers()["content-type"], "image/png");
    let png = png.bytes().await.unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    let json = bench.request(Method::GET, "/api/main/auth/qr").header("Accept", "application/json");
    let json: Value = json.send().await.unwrap().json().await.unwrap();
    assert_eq!(json["mimetype"], "image/png");
    let code = bench.post("/api/main/auth/request-code", &json!({"phoneNumber": "15550100001"})).await;
    assert_eq!(code.status(), 201);
    assert_eq!(code.json::<Value>().await.unwrap()["code"].as_str().unwrap().len(), 9);
    bench.receiver.wait_for("another code", 2, |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    assert_ne!(value().await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_states_are_waited_for_and_then_refused() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.create("main").await;
    let refused = async |path: &str| {
        let begun = Instant::now();
        let answer = if path == "/api/sendText" {
            bench.send("main", "15550100001", "hi", "").await
        } else {
            bench.get(path).await
        };
        assert_eq!(answer.status(), 422);
        (answer.text().await.unwrap(), begun.elapsed())
    };
    let body = |status: &str, expected: &str| {
        format!(
            r#"{{"error":"Session status is not as expected. Try again later or restart the session","session":"main","status":"{status}","expected":["{expected}"]}}"#
        )
    };
    // 5 s when nothing runs, 10 s when the status is another; fifty times as fast.
    let (text, took) = refused("/api/sendText").await;
    assert_eq!(text, body("STOPPED", "WORKING"));
    assert!(took >= Duration::from_millis(99), "{took:?}");
    bench.post("/api/sessions/main/start", &Value::Null).await;
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    let (text, took) = refused("/api/sendText").await;
    assert_eq!(text, body("SCAN_QR_CODE", "WORKING"));
    assert!(took >= Duration::from_millis(199), "{took:?}");
    bench.simulator.control().scan("main").unwrap();
    bench.simulator.control().working("main").await;
    assert_eq!(refused("/api/main/auth/qr").await.0, body("WORKING", "SCAN_QR_CODE"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifecycle_calls_answer_as_captured() {
    let bench = Bench::start(Engine::Noweb).await;
    bench.working("main").await;
    let call = async |method: Method, path: &str| {
        let answer = bench.request(method, path).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let status_of = |text: &str| serde_json::from_str::<Value>(text).unwrap()["status"].clone();

    let (code, text) = call(Method::POST, "/api/sessions/main/start").await;
    assert_eq!(code, 422);
    assert!(text.starts_with(r#"{"message":"Session 'main' is already started.""#));
    let me: Value = bench.get("/api/sessions/main/me").await.json().await.unwrap();
    assert_eq!(me["id"], "15550200000@c.us");

    let (code, text) = call(Method::POST, "/api/sessions/main/stop").await;
    assert_eq!((code, status_of(&text)), (201, json!("STOPPED")));
    let info: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&info["engine"], &info["timestamps"]), (&json!({}), &json!({"activity": null})));
    assert_eq!(info["config"]["webhooks"][0]["hmac"]["key"], "hook-key");
    assert_eq!(call(Method::POST, "/api/sessions/main/stop").await.0, 201);
    assert_eq!(call(Method::GET, "/api/sessions").await, (200, "[]".to_owned()));
    assert_ne!(call(Method::GET, "/api/sessions?all=true").await, (200, "[]".to_owned()));

    // Paired once, it goes straight to WORKING.
    assert_eq!(call(Method::POST, "/api/sessions/main/start").await.0, 201);
    bench.simulator.control().working("main").await;
    let (code, text) = call(Method::POST, "/api/sessions/main/restart").await;
    assert_eq!((code, status_of(&text)), (201, json!("STARTING")));
    bench.simulator.control().working("main").await;

    let update = bench.request(Method::PUT, "/api/sessions/main").json(&json!({"config": {"debug": true, "wrong": 1}}));
    let update = update.send().await.unwrap();
    assert_eq!(update.status(), 200);
    let info: Value = update.json().await.unwrap();
    assert_eq!((&info["status"], &info["config"]), (&json!("STARTING"), &json!({"debug": true})));

    let (code, text) = call(Method::POST, "/api/sessions/main/logout").await;
    assert_eq!((code, status_of(&text)), (201, json!("STARTING")));
    assert_eq!(call(Method::GET, "/api/sessions/main/me").await, (200, String::new()));
    assert_eq!(call(Method::DELETE, "/api/sessions/main").await, (200, String::new()));
    assert_eq!(call(Method::DELETE, "/api/sessions/main").await, (200, String::new()));
    assert_eq!(call(Method::GET, "/api/sessions/main").await.0, 404);
    assert_eq!(call(Method::POST, "/api/sessions/main/stop").await, (201, String::new()));
    let codes = bench.receiver.seen().iter().filter(|hook| hook.status() == Some("SCAN_QR_CODE")).count();
    assert_eq!(codes, 1, "only the first start needed a scan while there were webhooks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passkey_is_asked_for_and_confirmed() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let bench = Bench::start(Engine::Gows).await;
    bench.create("main").await;
    bench.post("/api/sessions/main/start", &Value::Null).await;
    bench.receiver.wait("a code", |hook| hook.status() == Some("SCAN_QR_CODE")).await;
    let challenge = "/api/main/auth/passkey/challenge";
    assert_eq!(bench.get(challenge).await.status(), 422, "nothing is pending");
    let wanted = json!({"session": "main", "confirm": true});
    assert_eq!(bench.post("/_simulator/passkey", &wanted).await.status(), 204);
    assert_eq!(bench.post("/_simulator/scan", &json!({"session": "main"})).await.status(), 204);
    let hook = bench.receiver.wait("the request", |hook| hook.status() == Some("PASSKEY_REQUIRED")).await;
    let pending: Value = bench.get(challenge).await.json().await.unwrap();
    assert_eq!((&hook.body["payload"]["data"], &pending["rpId"]), (&pending, &json!("web.whatsapp.com")));

    let assertion = |challenge: &Value, origin: &str| {
        let said = json!({"type": "webauthn.get", "challenge": challenge, "origin": origin}).to_string();
        json!({"id": "a", "rawId": "a", "type": "public-key", "response": {
            "clientDataJSON": URL_SAFE_NO_PAD.encode(said), "authenticatorData": "AA", "signature": "AA"}})
    };
    let (path, web) = ("/api/main/auth/passkey", "https://web.whatsapp.com");
    assert_eq!(bench.post(path, &json!({"id": "a"})).await.status(), 400);
    assert_eq!(bench.post(path, &assertion(&json!("another"), web)).await.status(), 422);
    assert_eq!(bench.post(path, &assertion(&pending["challenge"], "https://else.example")).await.status(), 422);
    assert_eq!(bench.post(path, &assertion(&pending["challenge"], web)).await.status(), 201);
    let hook = bench.receiver.wait("the code", |hook| hook.status() == Some("PASSKEY_CONFIRMATION_REQUIRED")).await;
    let code: Value = bench.get("/api/main/auth/passkey/confirmation").await.json().await.unwrap();
    assert_eq!(hook.body["payload"]["data"], code);
    assert_eq!(bench.post("/api/main/auth/passkey/confirm", &Value::Null).await.status(), 201);
    bench.simulator.control().working("main").await;
    assert_eq!(bench.get(challenge).await.status(), 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_pairs_itself_when_asked_to() {
    let bench = Bench::start_with(SimulatorConfig { auto_pair: true, time_scale: 50.0, ..config() }).await;
    bench.post("/api/sessions", &json!({"name": "main"})).await;
    bench.simulator.control().working("main").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_phone_ends_a_session_and_a_restart_brings_the_others_back() {
    let bench = Bench::start(Engine::Noweb).await;
    for name in ["gone", "kept"] {
        bench.working(name).await;
    }
    bench.simulator.control().phone_logout("gone").unwrap();
    bench.receiver.wait("FAILED", |hook| hook.status() == Some("FAILED")).await;
    bench.simulator.control().restart_after(Duration::from_millis(200));
    assert!(bench.request(Method::GET, "/ping").send().await.is_err());
    bench.simulator.control().working("kept").await;
    let sessions = bench.simulator.control().sessions();
    assert!(sessions.iter().any(|session| session.name == "kept" && session.status == "WORKING"));
    assert!(sessions.iter().any(|session| session.name == "gone" && session.me.is_none()));
}
