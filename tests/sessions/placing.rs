//! Which WAHA server a session is given, and how many sessions there may be.

use diesel_async::SimpleAsyncConnection;
use futures_util::future::join_all;
use serde_json::{Value, json};
use switchboard::db::DbError;
use switchboard::sessions::servers::{self, PlaceWish};
use switchboard::waha::Engine;

use super::stand::{PATIENCE, PLATFORM_KEY, Stand, insert_server};
use crate::support::eventually;
use crate::support::said_waha::{KEY, SaidWaha};

/// Name, and what differs from a healthy GOWS server with ten places, none of them taken.
type Row = (&'static str, &'static str);

const DRAINING: &str = "draining = true";
const UNKNOWN: &str = "health = 'unknown'";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_to_the_server_that_fits() {
    let stand = Stand::new().await;
    let any = PlaceWish::default();
    let engine = |engine| PlaceWish { engine: Some(engine), ..PlaceWish::default() };
    let labels = |labels: &[&str]| PlaceWish {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..PlaceWish::default()
    };
    let both = PlaceWish { engine: Some(Engine::Noweb), ..labels(&["eu"]) };
    let table: &[(&str, &[Row], &PlaceWish, Option<&str>)] = &[
        ("no server", &[], &any, None),
        ("one", &[("a", "")], &any, Some("a")),
        ("most room", &[("a", "sessions = 3"), ("b", "sessions = 2")], &any, Some("b")),
        (
            "most room counts places, not shares",
            &[("a", "capacity = 100, sessions = 95"), ("b", "capacity = 6")],
            &any,
            Some("b"),
        ),
        ("full", &[("a", "sessions = 10")], &any, None),
        ("above a capacity that was lowered", &[("a", "capacity = 2, sessions = 3")], &any, None),
        ("no capacity", &[("a", "capacity = 0")], &any, None),
        ("draining", &[("a", DRAINING)], &any, None),
        ("past one that drains", &[("a", DRAINING), ("b", "sessions = 9")], &any, Some("b")),
        ("unreachable", &[("a", "health = 'unreachable'")], &any, None),
        ("unauthorized", &[("a", "health = 'unauthorized'")], &any, None),
        ("never asked", &[("a", UNKNOWN)], &any, Some("a")),
        ("healthy before never asked", &[("a", UNKNOWN), ("b", "sessions = 9")], &any, Some("b")),
        ("deleted", &[("a", "deleted_at = now()")], &any, None),
        ("the engine", &[("a", ""), ("b", "engine = 'NOWEB', sessions = 9")], &engine(Engine::Noweb), Some("b")),
        ("no such engine", &[("a", "")], &engine(Engine::Wpp), None),
        ("a label", &[("a", ""), ("b", "labels = '{eu}', sessions = 9")], &labels(&["eu"]), Some("b")),
        (
            "all labels",
            &[("a", "labels = '{eu}'"), ("b", "labels = '{x,eu,gpu}', sessions = 9")],
            &labels(&["eu", "gpu"]),
            Some("b"),
        ),
        ("only some labels", &[("a", "labels = '{eu}'"), ("b", "labels = '{gpu}'")], &labels(&["eu", "gpu"]), None),
        ("no label asked for", &[("a", "labels = '{eu}'")], &any, Some("a")),
        ("engine and label", &[("a", "labels = '{eu}'"), ("b", "engine = 'NOWEB'")], &both, None),
        (
            "engine with label",
            &[("a", "labels = '{eu}'"), ("b", "engine = 'NOWEB', labels = '{eu}'")],
            &both,
            Some("b"),
        ),
        ("the label is full", &[("a", ""), ("b", "labels = '{eu}', sessions = 10")], &labels(&["eu"]), None),
        ("one session only", &[("a", "limitations = '{single_session}'")], &any, None),
        ("webhooks nobody can trust", &[("a", "limitations = '{no_media,no_webhook_hmac}'")], &any, None),
        ("another engine than it says", &[("a", "limitations = '{wrong_engine}'")], &any, None),
        ("limits that one can live with", &[("a", "limitations = '{no_own_message_ids,no_media}'")], &any, Some("a")),
        (
            "past one that is too old",
            &[("a", "limitations = '{single_session}'"), ("b", "sessions = 9")],
            &any,
            Some("b"),
        ),
    ];
    for (what, rows, wish, expected) in table {
        let mut text = "DELETE FROM waha_servers;".to_owned();
        for (name, differs) in *rows {
            text += &format!(
                "INSERT INTO waha_servers (id, name, base_url, api_key_sealed, engine, capacity, health, created_at, updated_at)
                 VALUES (gen_random_uuid(), '{name}', 'http://127.0.0.1:1', '', 'GOWS', 10, 'healthy', now(), now());"
            );
            if !differs.is_empty() {
                text += &format!("UPDATE waha_servers SET {differs} WHERE name = '{name}';");
            }
        }
        stand.owner().await.batch_execute(&text).await.unwrap();
        let (now, wish) = (stand.app.clock.now(), (*wish).clone());
        let before = taken(&stand).await;
        let placed = stand.app.db.system(async move |conn| servers::place(conn, &wish, now).await).await.unwrap();
        let added: Vec<String> =
            taken(&stand).await.into_iter().filter(|row| !before.contains(row)).map(|(name, _)| name).collect();
        assert_eq!(added.first().map(String::as_str), *expected, "{what}");
        assert_eq!((added.len(), placed.is_some()), (usize::from(expected.is_some()), expected.is_some()), "{what}");
    }
}

async fn taken(stand: &Stand) -> Vec<(String, i32)> {
    let rows = stand.sql().await.query("SELECT name, sessions FROM waha_servers", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_taken_as_the_server_is_by_then() {
    let stand = Stand::new().await;
    let server = insert_server(&stand.app, "a", "http://127.0.0.1:1", Engine::Gows, 5).await;
    // Each change is made but not committed when the place is chosen; the taker waits for it.
    for change in
        ["draining = true", "engine = 'NOWEB'", "labels = '{}'", "limitations = '{wrong_engine}'", "capacity = 0"]
    {
        let sql = stand.sql().await;
        sql.execute("UPDATE waha_servers SET labels = '{eu}', engine = 'GOWS', limitations = '{}', capacity = 5, draining = false", &[])
            .await
            .unwrap();
        sql.batch_execute(&format!("BEGIN; UPDATE waha_servers SET {change}")).await.unwrap();
        let wish = PlaceWish { engine: Some(Engine::Gows), labels: vec!["eu".to_owned()] };
        let (app, now) = (stand.app.clone(), stand.app.clock.now());
        let placing =
            tokio::spawn(async move { app.db.system(async move |conn| servers::place(conn, &wish, now).await).await });
        let owner = stand.owner().await;
        eventually(PATIENCE, "the taker to wait", async || {
            let waiting =
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            (!owner.query(waiting, &[]).await.unwrap().is_empty()).then_some(())
        })
        .await;
        sql.batch_execute("COMMIT").await.unwrap();
        assert_eq!(placing.await.unwrap().unwrap(), None, "{change}");
    }
    let now = stand.app.clock.now();
    let take = async || stand.app.db.system(async move |conn| servers::take(conn, server, now).await).await.unwrap();
    assert!(!take().await, "no room");
    stand.sql().await.execute("UPDATE waha_servers SET capacity = 1", &[]).await.unwrap();
    assert!(take().await);
    assert!(!take().await, "the only place is taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_requests_at_once_get_the_twenty_places() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    for (name, capacity) in [("one", 13), ("two", 7)] {
        insert_server(&stand.app, name, "http://127.0.0.1:1", Engine::Gows, capacity).await;
    }
    let (here, there) = (stand.open(), stand.open_on(&stand.another_node()));
    let key = here.key(tenant, &["*"]).await;
    let answers = join_all((0..50).map(|number| {
        let doors = if number % 2 == 0 { &here } else { &there };
        doors.post("/v1/sessions", &key, json!({"name": format!("s{number}"), "start": false}))
    }))
    .await;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(created, 20, "all the room is used");
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(answer.problem(409).0, "conflict");
    }
    assert_eq!(stand.count("SELECT count(*) FROM waha_servers WHERE sessions = capacity").await, 2);
    assert_eq!(stand.count("SELECT count(*) FROM waha_sessions").await, 20);
    there.close().await;
    here.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_as_many_sessions_as_it_may() {
    let stand = Stand::new().await;
    let (a, b) = (stand.tenant("a").await, stand.tenant("b").await);
    insert_server(&stand.app, "w", "http://127.0.0.1:1", Engine::Gows, 100).await;
    let (here, there) = (stand.open(), stand.open_on(&stand.another_node()));
    let (key, other) = (here.key(a, &["*"]).await, here.key(b, &["*"]).await);
    let quota = async |most: Value| {
        let path = format!("/v1/tenants/{a}");
        let request = here.request("PATCH", &path, PLATFORM_KEY).json(&json!({"max_sessions": most}));
        here.send(request).await.expect(200).json()["max_sessions"].clone()
    };
    assert_eq!(quota(json!(7)).await, 7);
    let create = async |name: String| {
        let doors = if name.len().is_multiple_of(2) { &here } else { &there };
        doors.post("/v1/sessions", &key, json!({"name": name, "start": false})).await
    };
    let answers = join_all((0..20).map(|number| create("x".repeat(number + 1)))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 7);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(answer.problem(429).0, "quota_exceeded");
        assert!(answer.header("retry-after").is_some());
        assert!(answer.json()["detail"].as_str().unwrap().contains("7 sessions"));
    }
    assert_eq!(stand.count("SELECT sessions::bigint FROM waha_servers").await, 7, "what is refused takes no place");
    here.post("/v1/sessions", &other, json!({"name": "free", "start": false})).await.expect(201);

    stand
        .sql()
        .await
        .execute("UPDATE waha_sessions SET deleted_at = now() WHERE name = (SELECT max(name) FROM waha_sessions)", &[])
        .await
        .unwrap();
    create("again".to_owned()).await.expect(201);
    create("too many".to_owned()).await.problem(429);
    assert_eq!(quota(json!(3)).await, 3);
    create("below".to_owned()).await.problem(429);
    assert_eq!(
        stand
            .count(&format!("SELECT count(*) FROM waha_sessions WHERE tenant_id = '{a}' AND deleted_at IS NULL"))
            .await,
        7
    );
    assert_eq!(quota(Value::Null).await, Value::Null);
    create("unbounded".to_owned()).await.expect(201);
    there.close().await;
    here.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_a_proxy_are_the_sessions_own() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    insert_server(&stand.app, "plain", &stand.counter.url, Engine::Noweb, 50).await;
    let doors = stand.open();
    let key = doors.key(tenant, &["*"]).await;
    let refused =
        doors.post("/v1/sessions", &key, json!({"name": "x", "engine": "NOWEB", "labels": ["eu", "gpu"]})).await;
    assert_eq!(refused.problem(409).0, "conflict");
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("No WAHA server with the engine NOWEB and the labels eu, gpu has room"), "{detail}");
    stand.sql().await.execute("UPDATE waha_servers SET labels = '{eu}'", &[]).await.unwrap();

    let proxy = json!({"server": "proxy.example.net:3128", "username": "acme", "password": "hunter2-proxy"});
    let body = json!({"name": "x", "labels": ["eu", "eu"], "proxy": proxy});
    let made = doors.post("/v1/sessions", &key, body).await.expect(201);
    let shown = json!({"server": "proxy.example.net:3128", "username": "acme"});
    assert_eq!((&made.json()["labels"], &made.json()["proxy"]), (&json!(["eu"]), &shown));
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sessions/{id}");
    let entry = async || stand.app.directory.session(tenant, id.parse().unwrap()).await.unwrap().unwrap();
    let password = async || {
        use secrecy::ExposeSecret;
        entry().await.proxy.clone().and_then(|proxy| proxy.password).map(|password| password.expose_secret().to_owned())
    };
    assert_eq!(password().await.as_deref(), Some("hunter2-proxy"));

    // WAHA is told all of it.
    let node = Stand::reconcile(&stand.app);
    stand.becomes(tenant, id.parse().unwrap(), "scan_qr").await;
    let found = reqwest::Client::new()
        .get(format!("{}/api/sessions/{}", stand.simulator.url(), made.json()["external_session_id"].as_str().unwrap()))
        .header("x-api-key", stand.waha_key())
        .send()
        .await
        .unwrap();
    let found: Value = found.json().await.unwrap();
    assert_eq!(found["config"]["proxy"], proxy);
    node.stop().await;

    let patch = async |body: Value| doors.send(doors.request("PATCH", &path, &key).json(&body)).await;
    let version = doors.get(&path, &key).await.json()["version"].as_i64().unwrap();
    let changed = patch(json!({"proxy": {"server": "other.example.net:1080"}})).await.expect(200).json();
    assert_eq!(
        (&changed["proxy"], changed["version"].as_i64()),
        (&json!({"server": "other.example.net:1080"}), Some(version + 1))
    );
    eventually(PATIENCE, "the other proxy", async || password().await.is_none().then_some(())).await;
    assert_eq!(patch(json!({"metadata": {}})).await.expect(200).json()["proxy"], changed["proxy"], "left out it stays");
    let changed = patch(json!({"proxy": null})).await.expect(200).json();
    assert!(!changed.as_object().unwrap().contains_key("proxy"), "{changed}");
    eventually(PATIENCE, "no proxy", async || entry().await.proxy.is_none().then_some(())).await;
    for (proxy, field) in [
        (json!({"server": "http://proxy.example.net:1"}), "proxy.server"),
        (json!({"server": "10.0.0.1:3128"}), "proxy.server"),
        (json!({"server": "proxy.example.net:3128", "password": "x"}), "proxy.username"),
        (json!({"server": "proxy.example.net:3128", "port": 1}), "proxy.port"),
        (json!({}), "proxy.server"),
    ] {
        assert_eq!(patch(json!({"proxy": proxy})).await.problem(422), ("validation_failed".into(), field.into()));
        let made = doors.post("/v1/sessions", &key, json!({"name": "y", "proxy": proxy})).await;
        assert_eq!(made.problem(422), ("validation_failed".into(), field.into()));
    }
    let labels = doors.post("/v1/sessions", &key, json!({"name": "y", "labels": ["EU"]})).await;
    assert_eq!(labels.problem(422), ("validation_failed".into(), "labels[0]".into()));

    // The password is nowhere in the clear.
    let tables = stand
        .sql()
        .await
        .query("SELECT to_jsonb(s)::text FROM waha_sessions s UNION ALL SELECT to_jsonb(e)::text FROM events e", &[])
        .await
        .unwrap();
    assert!(tables.iter().all(|row| !row.get::<_, String>(0).contains("hunter2")));
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_polls_keep_up_with_what_a_server_says() {
    let stand = Stand::new().await;
    let waha = SaidWaha::start("2026.7.1", "GOWS", Some("CORE"));
    let doors = stand.open();
    let body = json!({"name": "w", "base_url": waha.url, "api_key": KEY, "engine": "GOWS", "capacity": 5});
    let made = doors.post("/v1/waha-servers", PLATFORM_KEY, body).await.expect(201).json();
    let path = format!("/v1/waha-servers/{}", made["id"].as_str().unwrap());
    let node = Stand::reconcile(&stand.app);
    let becomes = async |what: &str, holds: &dyn Fn(&Value) -> bool| {
        eventually(PATIENCE, what, async || {
            let shown = doors.get(&path, PLATFORM_KEY).await.json();
            holds(&shown).then_some(shown)
        })
        .await
    };
    waha.says("2026.6.0", "GOWS", Some("CORE"));
    let shown = becomes("the older version", &|shown| shown["waha_version"] == "2026.6.0").await;
    assert_eq!(shown["limitations"], json!(["single_session", "no_webhook_hmac", "no_media"]));
    let entry = stand.app.directory.server(made["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert!(entry.honours_message_id());
    waha.says("2026.3.1", "WEBJS", Some("PLUS"));
    let shown = becomes("another engine", &|shown| shown["reported_engine"] == "WEBJS").await;
    assert_eq!(shown["limitations"], json!(["no_own_message_ids", "wrong_engine"]));
    eventually(PATIENCE, "sending to know it", async || {
        let entry = stand.app.directory.server(entry.id).await.unwrap().unwrap();
        (!entry.honours_message_id()).then_some(())
    })
    .await;
    waha.says("2026.7.1", "GOWS", Some("CORE"));
    becomes("all is well", &|shown| shown["limitations"] == json!([])).await;

    // A server that answers some calls only is not healthy.
    waha.fails(Some("/ping"));
    let since = becomes("it is away", &|shown| shown["health"] == "unreachable").await["unreachable_since"].clone();
    assert!(since.is_string());
    let calls = waha.calls();
    eventually(PATIENCE, "it is asked again", async || (waha.calls() > calls + 6).then_some(())).await;
    let shown = doors.get(&path, PLATFORM_KEY).await.json();
    assert_eq!((&shown["unreachable_since"], &shown["version"]), (&since, &json!(1)), "since when it went away");
    waha.fails(None);
    let shown = becomes("it is back", &|shown| shown["health"] == "healthy").await;
    assert_eq!(shown["unreachable_since"], Value::Null);
    node.stop().await;
    doors.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_cannot_write_their_quota() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    let refused: Result<(), DbError> = stand
        .app
        .db
        .tenant(tenant, async |conn| {
            let text = "UPDATE tenants SET max_sessions = 9";
            SimpleAsyncConnection::batch_execute(&mut **conn, text).await.map_err(DbError::from)
        })
        .await;
    assert!(refused.unwrap_err().to_string().contains("permission denied"));
}
