//! `/v1/sessions`, by way of real connections.

use serde_json::{Value, json};
use switchboard::waha::Engine;

use super::stand::{Stand, insert_server, session};

#[tokio::test(flavor = "multi_thread")]
async fn created_listed_looked_at() {
    let stand = Stand::new().await;
    let doors = stand.open();
    let (a, b) = (stand.tenant("a").await, stand.tenant("b").await);
    let server = stand.server(5).await;
    let (key, other) = (doors.key(a, &["*"]).await, doors.key(b, &["*"]).await);

    let body = json!({"name": "support", "pacing": {"min_gap_ms": 0, "jitter_ms": 0}, "metadata": {"team": "x"}, "config": {"a": 1}});
    let post = |key: &str, idempotency: &str, body: &Value| {
        doors.request("POST", "/v1/sessions", key).header("Idempotency-Key", idempotency).json(body)
    };
    let created = doors.send(post(&key, "k1", &body)).await.expect(201);
    let resource = created.json();
    assert_eq!(
        (&resource["name"], &resource["status"], &resource["engine"], &resource["queued"], &resource["version"]),
        (&json!("support"), &json!("starting"), &json!("NOWEB"), &json!(0), &json!(1))
    );
    assert_eq!(resource["pacing"], json!({"min_gap_ms": 0, "jitter_ms": 0, "typing": false}));
    assert_eq!((&resource["metadata"], &resource["config"]), (&json!({"team": "x"}), &json!({"a": 1})));
    assert_eq!((&resource["tenant_id"], &resource["waha_server_id"]), (&json!(a), &json!(server)));
    let path = format!("/v1/sessions/{}", resource["id"].as_str().unwrap());
    assert_eq!(created.header("location"), Some(path.as_str()));
    for secret in ["webhook_key", "desired", "hmac"] {
        assert!(!created.json().as_object().unwrap().contains_key(secret));
    }

    let again = doors.send(post(&key, "k1", &body)).await.expect(201);
    assert_eq!((again.json(), again.header("idempotency-replayed")), (resource.clone(), Some("true")));
    assert_eq!(doors.send(post(&key, "k1", &json!({"name": "z"}))).await.problem(422).0, "idempotency_key_reused");
    assert_eq!(doors.send(post(&key, "k2", &body)).await.problem(409), ("conflict".into(), "name".into()));
    assert_eq!(stand.count("SELECT sessions::bigint FROM waha_servers").await, 1, "refusals take no place");
    doors.send(post(&other, "k1", &body)).await.expect(201);

    let got = doors.get(&path, &key).await.expect(200);
    assert_eq!((got.json(), got.header("etag")), (resource.clone(), Some("\"1\"")));
    assert_eq!(doors.get(&path, &other).await.problem(404).0, "not_found");
    assert_eq!(doors.get("/v1/sessions/nonsense", &key).await.problem(404).0, "not_found");

    for name in ["two", "three"] {
        doors.post("/v1/sessions", &key, json!({"name": name, "start": false})).await.expect(201);
    }
    let first = doors.get("/v1/sessions?limit=2", &key).await.expect(200).json();
    let names = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first), ["three", "two"]);
    assert_eq!(first["data"][0]["status"], "stopped");
    let next = format!("/v1/sessions?limit=2&cursor={}", first["next_cursor"].as_str().unwrap());
    let second = doors.get(&next, &key).await.expect(200).json();
    assert_eq!((names(&second), &second["next_cursor"]), (vec!["support".to_owned()], &Value::Null));
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_is_a_conflict_that_says_so() {
    let stand = Stand::new().await;
    let doors = stand.open();
    let tenant = stand.tenant("a").await;
    let key = doors.key(tenant, &["sessions:write"]).await;
    insert_server(&stand.app, "x", "http://127.0.0.1:1", Engine::Noweb, 0).await;
    let answer = doors.post("/v1/sessions", &key, json!({"name": "a", "engine": "WEBJS"})).await;
    assert_eq!(answer.problem(409).0, "conflict");
    assert!(answer.json()["detail"].as_str().unwrap().contains("No WAHA server with the engine WEBJS has room"));
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_session_is_refused_by_name() {
    let stand = Stand::new().await;
    let doors = stand.open();
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let key = doors.key(tenant, &["sessions:write"]).await;
    let with = |field: &str, value: Value| {
        let mut body = json!({"name": "a"});
        body[field] = value;
        body
    };
    for (body, field) in [
        (json!({}), "name"),
        (with("name", json!("")), "name"),
        (with("name", json!("x".repeat(101))), "name"),
        (with("name", json!(1)), "name"),
        (with("engine", json!("gows")), "engine"),
        (with("engine", json!("VENOM")), "engine"),
        (with("start", json!("yes")), "start"),
        (with("pacing", json!({"min_gap_ms": -1})), "pacing.min_gap_ms"),
        (with("pacing", json!({"jitter_ms": 86_400_001})), "pacing.jitter_ms"),
        (with("pacing", json!({"speed": 1})), "pacing.speed"),
        (with("config", json!([])), "config"),
        (with("metadata", json!("x")), "metadata"),
        (with("metadata", json!({"x": "y".repeat(16 * 1024)})), "metadata"),
        (with("webhook_key", json!("x")), "webhook_key"),
    ] {
        let answer = doors.post("/v1/sessions", &key, body.clone()).await;
        assert_eq!(answer.problem(422), ("validation_failed".into(), field.into()), "{body}");
    }
    let longest = json!({"name": "ü".repeat(100), "pacing": {"min_gap_ms": 86_400_000}});
    doors.post("/v1/sessions", &key, longest).await.expect(201);
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_are_asked_for() {
    let stand = Stand::new().await;
    let doors = stand.open();
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let row = stand.create(tenant, session("a")).await.unwrap();
    let (reads, writes, none) = (
        doors.key(tenant, &["sessions:read"]).await,
        doors.key(tenant, &["sessions:write"]).await,
        doors.key(tenant, &["messages:write"]).await,
    );
    let path = format!("/v1/sessions/{}", row.id);
    for (method, path, allowed, status) in [
        ("GET", "/v1/sessions".to_owned(), &reads, 200),
        ("GET", path.clone(), &reads, 200),
        ("GET", format!("{path}/qr"), &reads, 409),
        ("POST", format!("{path}/start"), &writes, 202),
        ("POST", format!("{path}/stop"), &writes, 202),
    ] {
        let call = async |key: &str| doors.send(doors.request(method, &path, key)).await;
        call(allowed).await.expect(status);
        for refused in [&reads, &writes, &none] {
            if refused != allowed {
                assert_eq!(call(refused).await.problem(403).0, "forbidden", "{method} {path}");
            }
        }
        assert_eq!(call("swb_nobody").await.problem(401).0, "unauthorized");
    }
    assert_eq!(doors.post("/v1/sessions", &reads, json!({"name": "b"})).await.problem(403).0, "forbidden");
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_is_shown_while_there_is_one() {
    let stand = Stand::new().await;
    let doors = stand.open();
    let (tenant, other) = (stand.tenant("a").await, stand.tenant("b").await);
    stand.server(5).await;
    let (key, foreign) = (doors.key(tenant, &["*"]).await, doors.key(other, &["*"]).await);
    let row = stand.create(tenant, session("a")).await.unwrap();
    let path = format!("/v1/sessions/{}/qr", row.id);
    let early = doors.get(&path, &key).await;
    assert_eq!(early.problem(409).0, "conflict");
    assert!(early.json()["detail"].as_str().unwrap().contains("starting"));

    let node = Stand::reconcile(&stand.app);
    stand.becomes(tenant, row.id, "scan_qr").await;
    let shown = doors.get(&path, &key).await.expect(200);
    assert_eq!(shown.header("cache-control"), Some("no-store"));
    let body = shown.json();
    let value = body["value"].as_str().unwrap().to_owned();
    let expires: chrono::DateTime<chrono::Utc> = body["expires_at"].as_str().unwrap().parse().unwrap();
    assert!(!value.is_empty() && expires > stand.app.clock.now());
    assert_eq!(body.as_object().unwrap().len(), 2);

    let picture = |accept: &'static str| doors.request("GET", &path, &key).header("Accept", accept);
    let png = doors.send(picture("image/png")).await.expect(200);
    assert_eq!((png.header("content-type"), png.header("cache-control")), (Some("image/png"), Some("no-store")));
    let reader = png::Decoder::new(std::io::Cursor::new(&png.bytes)).read_info().unwrap();
    assert_eq!(reader.info().width, reader.info().height);
    for (accept, kind) in [
        ("image/avif, image/*;q=0.8", "image/png"),
        ("application/json, image/png", "application/json"),
        ("image/png;q=0.1, application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
    ] {
        let answer = doors.send(picture(accept)).await.expect(200);
        assert_eq!(answer.header("content-type"), Some(kind), "{accept}");
    }
    assert_eq!(doors.get(&path, &foreign).await.problem(404).0, "not_found");
    let kept = format!("SELECT count(*) FROM waha_sessions s WHERE s::text LIKE '%{}%'", value.replace('\'', "''"));
    assert_eq!(stand.count(&kept).await, 0);

    stand.simulator.control().scan(&row.external_session_id).unwrap();
    stand.becomes(tenant, row.id, "working").await;
    assert_eq!(doors.get(&path, &key).await.problem(409).0, "conflict");
    // WAHA's word counts where ours is late.
    let late = "UPDATE waha_sessions SET status = 'scan_qr'";
    node.stop().await;
    stand.sql().await.batch_execute(late).await.unwrap();
    let answer = doors.get(&path, &key).await;
    assert_eq!(answer.problem(409).0, "conflict");
    assert!(answer.json()["detail"].as_str().unwrap().contains("working"));
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_and_stop_are_wishes() {
    let stand = Stand::new().await;
    let doors = stand.open();
    let tenant = stand.tenant("a").await;
    stand.server(5).await;
    let key = doors.key(tenant, &["*"]).await;
    let node = Stand::reconcile(&stand.app);
    let created = doors.post("/v1/sessions", &key, json!({"name": "a", "start": false})).await.expect(201).json();
    let id = created["id"].as_str().unwrap().parse().unwrap();
    let path = format!("/v1/sessions/{id}");
    let order = async |order: &str| doors.send(doors.request("POST", &format!("{path}/{order}"), &key)).await;
    let answer = order("start").await.expect(202).json();
    assert_eq!((&answer["id"], &answer["version"]), (&created["id"], &json!(2)));
    stand.becomes(tenant, id, "scan_qr").await;
    order("start").await.expect(202);
    order("stop").await.expect(202);
    stand.becomes(tenant, id, "stopped").await;
    stand.settled().await;
    assert_eq!(doors.get(&path, &key).await.expect(200).json()["status"], "stopped");
    let nobody = "/v1/sessions/01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c/stop";
    assert_eq!(doors.send(doors.request("POST", nobody, &key)).await.problem(404).0, "not_found");
    node.stop().await;
    doors.close().await;
}
