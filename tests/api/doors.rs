//! What holds for every route: bad input is refused by name, and every answer says who it is.

use std::time::Duration;

use actix_web::web::{self, ServiceConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Stand;
use super::stand::{Answer, PLATFORM_KEY};

/// A route that panics, in the handler and in the work that it has done elsewhere.
pub fn more_routes(cfg: &mut ServiceConfig) {
    async fn in_handler() -> &'static str {
        panic!("secret of the test")
    }
    async fn elsewhere(app: web::Data<switchboard::app::App>) -> Result<&'static str, switchboard::http::Problem> {
        app.detached(async { panic!("secret of the test") }).await?;
        Ok("not reached")
    }
    cfg.route("/test/panic", web::get().to(in_handler)).route("/test/panic/elsewhere", web::get().to(elsewhere));
}

async fn raw(stand: &Stand, body: impl Into<reqwest::Body>) -> Answer {
    let request = stand.request("POST", "/v1/tenants").bearer_auth(PLATFORM_KEY);
    stand.send(request.header("content-type", "application/json").body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_by_name() {
    let stand = Stand::new().await;
    for text in ["", "{", "{\"name\":", "not json", "{\"name\":\"\\ud800\"}", "{\"name\":\"\\udc00\\ud800\"}", "{}{}"] {
        raw(&stand, text).await.refused(400, "malformed_json");
    }
    raw(&stand, b"{\"name\":\"\xff\xfe\"}".to_vec()).await.refused(400, "malformed_json");
    raw(&stand, "[".repeat(200_000)).await.refused(400, "malformed_json");
    for (text, field, code) in [
        ("{}", "name", "required"),
        ("[]", "(body)", "invalid_type"),
        ("null", "(body)", "invalid_type"),
        ("{\"name\":1}", "name", "invalid_type"),
        ("{\"name\":null}", "name", "invalid_type"),
        ("{\"name\":\"a\",\"nmae\":1}", "nmae", "unknown_field"),
        ("{\"name\":\"a\",\"settings\":[]}", "settings", "invalid_type"),
        ("{\"name\":\"a\\u0000b\"}", "name", "invalid_character"),
        ("{\"name\":\"a\",\"settings\":{\"x\":[\"\\u0000\"]}}", "settings.x[0]", "invalid_character"),
        ("{\"name\":\"a\",\"settings\":{\"x\\u0000\":1}}", "settings.x\u{fffd}", "invalid_character"),
        ("{\"name\":\"a\",\"settings\":{\"n\":1e400}}", "", ""),
        ("{\"name\":\"\"}", "name", "required"),
        ("{\"name\":\"  \"}", "name", "required"),
        ("{\"name\":\"a\\nb\"}", "name", "invalid_character"),
    ] {
        let answer = raw(&stand, text).await;
        if field.is_empty() {
            answer.refused(400, "malformed_json");
        } else {
            answer.refused_field(field);
            assert_eq!(answer.json()["errors"][0]["code"], code, "{text}");
        }
    }
    raw(&stand, json!({ "name": "x".repeat(101) }).to_string()).await.refused_field("name");
    raw(&stand, json!({ "name": "é".repeat(100) }).to_string()).await.expect(201);
    let both = raw(&stand, json!({ "name": "", "description": "x".repeat(1001) }).to_string()).await;
    assert_eq!(both.json()["errors"].as_array().unwrap().len(), 2, "every broken rule at once");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_type_and_a_size() {
    let stand = Stand::new().await;
    let post = || stand.request("POST", "/v1/tenants").bearer_auth(PLATFORM_KEY);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
        stand.send(post().header("content-type", kind).body("{}")).await.refused(415, "unsupported_media_type");
    }
    stand.send(post().body("{\"name\":\"a\"}")).await.refused(415, "unsupported_media_type");
    let packed = post().header("content-type", "application/json").header("content-encoding", "gzip").body("x");
    stand.send(packed).await.refused(415, "unsupported_media_type");
    let good = post().header("content-type", "application/json; charset=utf-8").body("{\"name\":\"typed\"}");
    stand.send(good).await.expect(201);

    // Announced as too large, the body is refused without being read; the client may still be writing it.
    let head = format!(
        "POST /v1/tenants HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {PLATFORM_KEY}\r\ncontent-type: application/json\r\n\
         content-length: 10000000\r\n\r\n"
    );
    assert!(exchange(&stand, &[head.as_bytes()]).await.starts_with("HTTP/1.1 413"));
    // Without announcement, it is refused when it has become too large.
    let head = head.replace("content-length: 10000000", "transfer-encoding: chunked");
    let chunk = format!("80000\r\n{}\r\n", " ".repeat(0x80000));
    let answer = exchange(&stand, &[head.as_bytes(), chunk.as_bytes(), chunk.as_bytes(), chunk.as_bytes()]).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("payload_too_large"), "{answer}");
    let largest = format!("{{\"name\":\"large\",\"description\":\"{}\"}}", "x".repeat(1024 * 1024 - 40));
    raw(&stand, largest).await.refused_field("description");
    stand.end().await;
}

/// Sends `parts` on a connection of their own and reads what comes back, as far as it comes.
async fn exchange(stand: &Stand, parts: &[&[u8]]) -> String {
    let address = stand.base.trim_start_matches("http://");
    let mut wire = tokio::net::TcpStream::connect(address).await.unwrap();
    for part in parts {
        if wire.write_all(part).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains("request_id") {
        match tokio::time::timeout(Duration::from_secs(5), wire.read(&mut chunk)).await.unwrap() {
            Ok(read) if read > 0 => answer.extend_from_slice(&chunk[..read]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_paths_queries_and_methods() {
    let stand = Stand::new().await;
    for path in ["/", "/v1", "/v1/nothing", "/v2/tenants", "/docs/nothing.js", "/healthz/"] {
        stand.get(path, PLATFORM_KEY).await.refused(404, "not_found");
        stand.send(stand.request("GET", path)).await.refused(404, "not_found");
    }
    for id in
        ["x", "%00", "1", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3", "%ff", "a%2Fb", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"]
    {
        stand.get(&format!("/v1/tenants/{id}"), PLATFORM_KEY).await.refused(404, "not_found");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=1.5", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("offset=3", "offset"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%00", "cursor"),
        ("limit=1&limit=2", "limit"),
    ] {
        stand.get(&format!("/v1/tenants?{query}"), PLATFORM_KEY).await.refused_field(field);
    }
    let answer = stand.call("PUT", "/v1/tenants", PLATFORM_KEY, Some(json!({}))).await;
    answer.refused(405, "method_not_allowed");
    let allowed = answer.header("allow").unwrap();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
    stand.call("BREW", "/healthz", PLATFORM_KEY, None).await.refused(405, "method_not_allowed");
    for key in [String::new(), " ".to_owned(), "a b".to_owned(), "x".repeat(256)] {
        let request = stand.request("POST", "/v1/tenants").bearer_auth(PLATFORM_KEY).header("idempotency-key", key);
        stand.send(request.json(&json!({ "name": "never" }))).await.refused_field("Idempotency-Key");
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_an_answer() {
    let stand = Stand::new().await;
    for path in ["/test/panic", "/test/panic/elsewhere"] {
        let answer = stand.send(stand.request("GET", path).header("x-request-id", "req-1")).await;
        answer.refused(500, "internal");
        assert_eq!(answer.header("x-request-id"), Some("req-1"));
        assert!(!answer.text.contains("secret"), "the cause is not shown");
    }
    stand.send(stand.request("GET", "/healthz")).await.expect(200);
    let metrics = stand.send(stand.request("GET", "/metrics")).await.expect(200).text;
    assert!(metrics.contains("http_panics_total 2"), "{metrics}");
    assert!(
        metrics.contains("http_requests_total{method=\"GET\",route=\"/test/panic\",status=\"500\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("http_request_duration_seconds_bucket"), "{metrics}");
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_ids() {
    let stand = Stand::new().await;
    let with = |id: &'static str| stand.request("GET", "/healthz").header("x-request-id", id);
    assert_eq!(stand.send(with("My.req_1-2")).await.header("x-request-id"), Some("My.req_1-2"));
    let made = stand.send(with("not sane!")).await.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 36, "an id of our own: {made}");
    assert_ne!(stand.send(stand.request("GET", "/healthz")).await.header("x-request-id").unwrap(), made);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness() {
    let stand = Stand::new().await;
    let ready = async || {
        let answer = stand.send(stand.request("GET", "/readyz")).await;
        (answer.status, answer.json()["status"].as_str().unwrap().to_owned())
    };
    stand.app.health.set_broker(true);
    assert_eq!(ready().await, (200, "ok".to_owned()));
    stand.app.health.set_broker(false);
    assert_eq!(ready().await, (200, "degraded".to_owned()), "messages are still accepted");
    stand.app.db.close();
    assert_eq!(ready().await, (503, "unavailable".to_owned()));
    stand.send(stand.request("GET", "/healthz")).await.expect(200);
    let answer = stand.get("/v1/tenants", PLATFORM_KEY).await;
    answer.refused(503, "unavailable");
    assert!(answer.header("retry-after").is_some());

    let node = stand.another_node();
    node.app.health.start_draining();
    node.send(node.request("GET", "/readyz")).await.expect(503);
    node.end().await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself_offline() {
    let stand = Stand::new().await;
    let document = stand.send(stand.request("GET", "/openapi.json")).await.expect(200).json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(
        document["paths"]["/v1/tenants"]["post"]["responses"]["422"]["$ref"],
        "#/components/responses/validation_failed"
    );

    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = client.get(format!("{}/docs", stand.base)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (308, "/docs/"));
    let page = stand.send(stand.request("GET", "/docs/")).await.expect(200);
    assert!(page.header("content-security-policy").unwrap().contains("script-src 'self'"));
    assert!(!page.text.contains("//unpkg") && !page.text.contains("https://cdn"), "nothing from elsewhere");
    let script = stand.send(stand.request("GET", "/docs/swagger-initializer.js")).await.expect(200);
    assert!(script.text.contains("/openapi.json"), "{}", script.text);
    stand.send(stand.request("GET", "/docs/swagger-ui-bundle.js")).await.expect(200);
    let errors = stand.send(stand.request("GET", "/docs/errors")).await.expect(200);
    assert!(errors.text.contains("id=\"idempotency_key_reused\""));
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_below_v1_is_reached_without_credentials() {
    let stand = Stand::new().await;
    let document = stand.send(stand.request("GET", "/openapi.json")).await.json();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let open = operation["security"] == json!([{}]) || operation["security"] == json!([]);
            if open || !path.starts_with("/v1/") {
                continue;
            }
            let path = path.replace("{id}", "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c").replace("{phone}", "15550100001");
            let request = stand.request(&method.to_uppercase(), &path).json(&json!({ "unknown": 1 }));
            stand.send(request).await.refused(401, "unauthorized");
            tried += 1;
        }
    }
    assert!(tried >= 18, "{tried} operations");
    // Written in another way, it is the same door.
    for path in ["/v1/%74enants", "/%76%31/tenants", "/v1/./tenants", "//v1/tenants", "/v1//tenants"] {
        let status = stand.send(stand.request("GET", path)).await.status;
        assert!(matches!(status, 401 | 404), "{path}: {status}");
    }
    stand.get("/v1/%74enants", PLATFORM_KEY).await.expect(200);
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_can_have_a_port_of_their_own() {
    let stand = Stand::new().await;
    let running = switchboard::http::serve_metrics(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let get =
        async |path: &str| reqwest::get(format!("http://{}{path}", running.address)).await.unwrap().status().as_u16();
    assert_eq!((get("/metrics").await, get("/v1/tenants").await), (200, 404));
    running.stop().await;
    stand.end().await;
}

#[test]
fn every_documented_example_is_taken_by_its_type() {
    // Examples that contradict their schema mislead; the routes' own DTOs are private, so the schema is asked.
    let document = switchboard::http::openapi::document();
    let mut tried = 0;
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let Some(example) = schema.get("example") else { continue };
        let whole = json!({ "$ref": format!("#/components/schemas/{name}"), "components": document["components"] });
        let validator = jsonschema::validator_for(&whole).unwrap();
        let faults: Vec<Value> = validator.iter_errors(example).map(|fault| json!(fault.to_string())).collect();
        assert!(faults.is_empty(), "{name}: {faults:?}");
        tried += 1;
    }
    assert!(tried >= 10, "{tried} examples");
}
