//! The registry of WAHA servers.

use serde_json::{Value, json};
use switchboard::db::DbError;
use switchboard::domain::ids::WahaServerId;
use switchboard::sessions::directory::api_key_purpose;
use switchboard::sessions::probe::Probe;
use switchboard::sessions::servers::{self, PlaceWish, ServerHealth};
use switchboard::waha::{Engine, ServerVersion};

use super::Stand;
use super::stand::PLATFORM_KEY;

fn server(name: &str, capacity: i32) -> Value {
    json!({ "name": name, "base_url": "http://127.0.0.1:3000/", "api_key": "hunter2-key", "engine": "GOWS", "capacity": capacity })
}

async fn register(stand: &Stand, body: Value) -> (WahaServerId, String) {
    let made = stand.post("/v1/waha-servers", PLATFORM_KEY, body).await.expect(201);
    (made.json()["id"].as_str().unwrap().parse().unwrap(), made.header("location").unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_registered_changed_and_removed() {
    let stand = Stand::new().await;
    let (id, path) = register(&stand, server("waha-1", 2)).await;
    let shown = stand.get(&path, PLATFORM_KEY).await.expect(200).json();
    for (field, value) in [
        ("base_url", json!("http://127.0.0.1:3000")),
        ("health", json!("unknown")),
        ("sessions", json!(0)),
        ("draining", json!(false)),
        ("waha_version", json!(null)),
        ("version", json!(1)),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    let list = stand.get("/v1/waha-servers", PLATFORM_KEY).await.expect(200);
    assert!(!list.text.contains("hunter2") && !list.text.contains("api_key"), "{}", list.text);
    let sql = stand.sql().await;
    let sealed: Vec<u8> = sql.query_one("SELECT api_key_sealed FROM waha_servers", &[]).await.unwrap().get(0);
    assert_eq!(stand.app.sealer.open(&api_key_purpose(id), &sealed).unwrap(), b"hunter2-key");

    stand.post("/v1/waha-servers", PLATFORM_KEY, server("waha-1", 2)).await.refused(409, "conflict");
    let patch = async |body| stand.call("PATCH", &path, PLATFORM_KEY, Some(body)).await;
    let changed = patch(json!({ "draining": true, "capacity": 5, "api_key": "other-key" })).await.expect(200).json();
    assert_eq!((&changed["draining"], &changed["capacity"], &changed["version"]), (&json!(true), &json!(5), &json!(2)));
    let stale = stand.request("PATCH", &path).bearer_auth(PLATFORM_KEY).header("if-match", "\"1\"");
    stand.send(stale.json(&json!({ "capacity": 1 }))).await.refused(412, "precondition_failed");

    sql.execute("UPDATE waha_servers SET sessions = 1", &[]).await.unwrap();
    stand.call("DELETE", &path, PLATFORM_KEY, None).await.refused(409, "conflict");
    patch(json!({ "engine": "NOWEB" })).await.refused(409, "conflict");
    sql.execute("UPDATE waha_servers SET sessions = 0", &[]).await.unwrap();
    assert_eq!(patch(json!({ "engine": "NOWEB" })).await.expect(200).json()["engine"], "NOWEB");
    stand.call("DELETE", &path, PLATFORM_KEY, None).await.expect(204);
    stand.get(&path, PLATFORM_KEY).await.refused(404, "not_found");
    register(&stand, server("waha-1", 2)).await;
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_server_is_refused_by_name() {
    let stand = Stand::new().await;
    for (field, value) in [
        ("base_url", json!("ftp://x")),
        ("base_url", json!("waha-1:3000")),
        ("base_url", json!("")),
        ("base_url", json!("http://user:pass@x")),
        ("base_url", json!("http://x/?a=b")),
        ("base_url", json!("http://x/#a")),
        ("base_url", json!(format!("http://x/{}", "y".repeat(2000)))),
        ("base_url", json!(3)),
        ("api_key", json!("")),
        ("api_key", json!("a b")),
        ("api_key", json!("x".repeat(513))),
        ("engine", json!("gows")),
        ("engine", json!("VENOM")),
        ("capacity", json!(-1)),
        ("capacity", json!(100_001)),
        ("capacity", json!(1.5)),
        ("capacity", json!(9_999_999_999_i64)),
        ("health", json!("healthy")),
        ("name", json!("")),
    ] {
        let mut body = server("x", 1);
        body[field] = value;
        let answer = stand.post("/v1/waha-servers", PLATFORM_KEY, body).await;
        answer.refused_field(field);
        assert!(!answer.text.contains("hunter2") && !answer.text.contains("pass"), "{}", answer.text);
    }
    stand.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_where_there_is_room_and_never_beyond() {
    let stand = Stand::new().await;
    let app = &stand.app;
    let now = app.clock.now();
    let (small, _) = register(&stand, server("small", 2)).await;
    let (large, _) = register(&stand, server("large", 5)).await;
    let place = async |engine: Option<Engine>| {
        app.db
            .system(async move |conn| {
                let placed = servers::place(conn, &PlaceWish { engine, labels: Vec::new() }, now).await?;
                Ok::<_, DbError>(placed.map(|placed| placed.0))
            })
            .await
            .unwrap()
    };
    assert_eq!(place(None).await, Some(large), "most room");
    let healthy = async |id, health| {
        let record = async move |conn: &mut switchboard::db::SystemConn| {
            let version = ServerVersion {
                version: "2026.7.1".to_owned(),
                engine: Some(Engine::Gows),
                tier: Some("CORE".to_owned()),
            };
            let probe = Probe { health, version: Some(version), started_at: None };
            servers::record_health(conn, id, Engine::Gows, &probe, now).await
        };
        app.db.system(record).await.unwrap();
    };
    healthy(small, ServerHealth::Healthy).await;
    assert_eq!(place(None).await, Some(small), "known to be healthy comes first");
    assert_eq!(place(Some(Engine::Noweb)).await, None, "no server of that engine");
    healthy(large, ServerHealth::Unreachable).await;
    assert_eq!((place(None).await, place(None).await), (Some(small), None));
    healthy(large, ServerHealth::Healthy).await;
    let shown = stand.get(&format!("/v1/waha-servers/{large}"), PLATFORM_KEY).await.json();
    assert_eq!((&shown["health"], &shown["waha_version"]), (&json!("healthy"), &json!("2026.7.1")));

    // Four places are left; of ten at once four get one.
    let placed = futures_util::future::join_all((0..10).map(|_| place(Some(Engine::Gows)))).await;
    assert_eq!(placed.iter().filter(|placed| **placed == Some(large)).count(), 4);
    app.db.system(async |conn| servers::release(conn, small, now).await).await.unwrap();
    assert_eq!(place(None).await, Some(small));
    stand.end().await;
}
