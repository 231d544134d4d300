//! Another master key: everything sealed is sealed anew, while nodes run, however often it is broken off.

use std::collections::BTreeMap;

use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use switchboard::config::MasterKey;
use switchboard::domain::chance::Chance;
use switchboard::identity::rotate::{SealedColumn, Tally, reseal_some};
use switchboard::identity::seal::{Sealer, UnsealError};
use switchboard::sealed;

use super::{good, run};
use crate::support::world::{Client, text};
use crate::support::{World, free_port};

/// The key of [`World::settings`].
const OLD: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const NEW: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const OTHER: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn sealer(key: &str, previous: &[&str]) -> Sealer {
    let previous: Vec<MasterKey> = previous.iter().map(|key| key.parse().unwrap()).collect();
    Sealer::new(&key.parse().unwrap(), Chance::from_system()).with_previous(&previous)
}

fn with_keys(world: &World, key: &str, previous: &str) -> BTreeMap<String, String> {
    let mut settings = world.settings(free_port());
    settings.insert("SWITCHBOARD_MASTER_KEY".to_owned(), key.to_owned());
    settings.insert("SWITCHBOARD_MASTER_KEY_PREVIOUS".to_owned(), previous.to_owned());
    settings
}

/// Every sealed value: its column, its place, itself.
async fn values(world: &World) -> Vec<(SealedColumn, String, Vec<u8>)> {
    let sql = world.db.connect().await;
    let mut values = Vec::new();
    for column in sealed::COLUMNS {
        // Nothing begins with this mark, so all are stale.
        let (mark, none): (&[u8], Vec<String>) = (b"no mark", Vec::new());
        for row in sql.query(column.stale, &[&mark, &none, &1000_i64]).await.unwrap() {
            values.push((column, row.get(0), row.get(1)));
        }
    }
    values
}

/// How many values open under exactly `sealer`'s keys; a value that does not must be under another one.
async fn opened_by(world: &World, sealer: &Sealer) -> usize {
    let open = |(column, place, value): &(SealedColumn, String, Vec<u8>)| {
        let opened = sealer.open(&column.purpose_at(place), value);
        assert!(matches!(opened, Ok(_) | Err(UnsealError::OtherKey)), "{} {place}: {opened:?}", column.name);
        opened.is_ok()
    };
    values(world).await.iter().map(open).filter(|opened| *opened).count()
}

struct Sealed {
    tenant: Client,
    endpoint: String,
    secret: String,
    key_body: Value,
    first_key: Value,
}

/// Something in every column.
async fn fill(world: &World, base: &str) -> Sealed {
    let tenant = world.tenant(base, "acme").await;
    for name in ["one", "two", "three"] {
        let proxy = json!({"server": "127.0.0.1:3128", "username": "u", "password": "p"});
        let body = json!({"name": name, "start": false, "proxy": proxy});
        tenant.post("/v1/sessions", &body).await.expect(StatusCode::CREATED);
    }
    let rotated = good(&["admin", "rotate-webhook-keys", "--all"], &world.settings(free_port())).await;
    assert_eq!(rotated, "3 rotated, 0 skipped");
    let body = json!({"url": "http://127.0.0.1:4999/", "event_types": ["*"]});
    let made = tenant.post("/v1/webhook-endpoints", &body).await.expect(StatusCode::CREATED);
    let key_body = json!({"name": "once", "scopes": ["messages:read"]});
    let request = tenant.request(Method::POST, "/v1/api-keys").header("Idempotency-Key", "a:b").json(&key_body);
    let first_key = Client::send(request).await.expect(StatusCode::CREATED);
    let (endpoint, secret) = (text(&made, "id").to_owned(), text(&made, "secret").to_owned());
    Sealed { tenant, endpoint, secret, key_body, first_key }
}

/// A node at `base` reads everything that was sealed.
async fn all_is_read(app: &switchboard::app::App, base: &str, sealed: &Sealed) {
    let tenant = sealed.tenant.at(base);
    let shown = tenant.get(&format!("/v1/webhook-endpoints/{}/secret", sealed.endpoint)).await.expect(StatusCode::OK);
    assert_eq!(text(&shown, "secret"), sealed.secret);
    let request = tenant.request(Method::POST, "/v1/api-keys").header("Idempotency-Key", "a:b").json(&sealed.key_body);
    let again = Client::send(request).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.expect(StatusCode::CREATED), sealed.first_key);
    let sessions = tenant.get("/v1/sessions").await.expect(StatusCode::OK);
    for session in sessions["data"].as_array().unwrap() {
        let (owner, id) = (text(session, "tenant_id").parse().unwrap(), text(session, "id").parse().unwrap());
        let entry = app.directory.session(owner, id).await.unwrap().unwrap();
        assert_eq!(entry.webhook_key.expose_secret().len(), 64);
        let proxied = session.get("proxy").is_some();
        let previous = entry.previous_webhook_key.as_ref().map(|previous| previous.key.expose_secret());
        assert_eq!(previous.map(Vec::len), proxied.then_some(64));
        assert_ne!(previous, Some(entry.webhook_key.expose_secret()));
        let password = entry.proxy.as_ref().and_then(|proxy| proxy.password.as_ref());
        assert_eq!(password.map(ExposeSecret::expose_secret), proxied.then_some("p"));
    }
    let servers = app.directory.all_servers().await.unwrap();
    assert_eq!(servers[0].server.api_key.expose_secret(), "simulator");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_master_key_takes_over_while_nodes_run() {
    let world = World::new().await;
    let old = world.node();
    let sealed = fill(&world, &old.base).await;
    let all = values(&world).await.len();
    let columns: Vec<&str> = sealed::COLUMNS.iter().map(|column| column.name).collect();
    let filled: Vec<&str> = {
        let values = values(&world).await;
        columns.iter().copied().filter(|name| values.iter().any(|value| value.0.name == *name)).collect()
    };
    assert_eq!(filled, columns, "there is something in every column");
    assert_eq!(opened_by(&world, &sealer(OLD, &[])).await, all);
    old.node.stop().await;

    // Nodes that know both keys; the old ones still seal under the old.
    let before = world.node_with(&switchboard::serve::Role::ALL, |config| {
        config.previous_master_keys = vec![NEW.parse().unwrap()];
    });
    let during = world.node_with(&switchboard::serve::Role::ALL, |config| {
        config.master_key = Some(NEW.parse().unwrap());
        config.previous_master_keys = vec![OLD.parse().unwrap()];
    });
    let body = json!({"name": "sealed under the new key", "start": false});
    sealed.tenant.at(&during.base).post("/v1/sessions", &body).await.expect(StatusCode::CREATED);
    assert_eq!(opened_by(&world, &sealer(NEW, &[])).await, 1);

    // Broken off after a few.
    let both = sealer(NEW, &[OLD]);
    let mut tally = Tally::default();
    for column in &sealed::COLUMNS[..2] {
        let app = &during.app;
        assert!(reseal_some(&app.db, &app.clock, &both, column, 1, &mut tally).await.unwrap());
    }
    assert_eq!((tally.resealed, opened_by(&world, &sealer(NEW, &[])).await), (2, 3));
    for node in [&before, &during] {
        node.app.generation.refresh(&node.app.db).await.unwrap();
        all_is_read(&node.app, &node.base, &sealed).await;
    }

    // Begun again, and once more; a value that opens under no key is named and left alone.
    let output = good(&["admin", "rotate-master-key", "--batch", "2"], &with_keys(&world, NEW, OLD)).await;
    for name in &columns {
        assert!(output.contains(&format!("{name}: ")), "{name} in {output}");
    }
    assert!(output.contains("Everything is under SWITCHBOARD_MASTER_KEY."), "{output}");
    assert_eq!(opened_by(&world, &sealer(NEW, &[])).await, all + 1);
    assert_eq!(opened_by(&world, &sealer(OLD, &[])).await, 0, "the old key alone opens nothing any more");
    let after = values(&world).await;
    let output = good(&["admin", "rotate-master-key"], &with_keys(&world, NEW, OLD)).await;
    assert_eq!(output.matches(": 0 sealed anew").count(), columns.len(), "{output}");
    let same = |a: &(SealedColumn, String, Vec<u8>), b: &(SealedColumn, String, Vec<u8>)| a.1 == b.1 && a.2 == b.2;
    assert!(
        values(&world).await.iter().all(|value| after.iter().any(|before| same(value, before))),
        "nothing is touched twice"
    );
    before.node.stop().await;
    during.node.stop().await;

    let alone =
        world.node_with(&switchboard::serve::Role::ALL, |config| config.master_key = Some(NEW.parse().unwrap()));
    all_is_read(&alone.app, &alone.base, &sealed).await;
    alone.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_opens_under_no_key_is_named_and_left_alone() {
    let world = World::new().await;
    let node = world.node();
    fill(&world, &node.base).await;
    let all = values(&world).await;
    let (code, output) = run(&["admin", "rotate-master-key"], &with_keys(&world, NEW, OTHER)).await;
    assert_ne!(code, 0);
    let server = &all.iter().find(|value| value.0.name == "waha_servers.api_key_sealed").unwrap().1;
    assert!(output.contains(&format!("waha_servers.api_key_sealed: {server} does not open")), "{output}");
    assert!(output.contains(&format!("{} sealed values do not open", all.len())), "{output}");
    assert_eq!(opened_by(&world, &sealer(OLD, &[])).await, all.len(), "they are as they were");
    let (code, output) = run(&["admin", "rotate-master-key"], &with_keys(&world, "", "")).await;
    assert!(code != 0 && output.contains("SWITCHBOARD_MASTER_KEY"), "{output}");
    node.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_meanwhile_is_not_lost() {
    let world = World::new().await;
    let node = world.node();
    let sealed = fill(&world, &node.base).await;
    let both = sealer(NEW, &[OLD]);
    let app = &node.app;
    // A secret is replaced while the rotation waits for the row.
    let endpoints = sealed::COLUMNS.iter().find(|column| column.name == "webhook_endpoints.secret_sealed").unwrap();
    let sql = world.db.connect().await;
    sql.batch_execute("BEGIN; SELECT FROM webhook_endpoints FOR UPDATE").await.unwrap();
    let rotating = {
        let (app, both) = (app.clone(), both.clone());
        let column = *endpoints;
        tokio::spawn(async move {
            let mut tally = Tally::default();
            let more = reseal_some(&app.db, &app.clock, &both, &column, 10, &mut tally).await.unwrap();
            (more, tally)
        })
    };
    // A transaction sees the others as they were when it first looked.
    let watching = world.db.connect().await;
    crate::support::eventually(crate::support::world::PATIENCE, "the rotation to wait", async || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
             AND query LIKE '%webhook_endpoints%'";
        let row = watching.query_one(waiting, &[]).await.unwrap();
        (row.get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    let id = &sealed.endpoint;
    let newer = sealer(OLD, &[]).seal(&endpoints.purpose_at(id), b"newer");
    sql.execute("UPDATE webhook_endpoints SET secret_sealed = $1", &[&newer]).await.unwrap();
    sql.batch_execute("COMMIT").await.unwrap();
    let (more, tally) = rotating.await.unwrap();
    assert!(more && tally == Tally::default(), "the value that was read is not there any more: {tally:?}");
    let mut tally = Tally::default();
    assert!(reseal_some(&app.db, &app.clock, &both, endpoints, 10, &mut tally).await.unwrap());
    assert_eq!(tally.resealed, 1);
    let value: Vec<u8> = sql.query_one("SELECT secret_sealed FROM webhook_endpoints", &[]).await.unwrap().get(0);
    assert_eq!(sealer(NEW, &[]).open(&endpoints.purpose_at(id), &value).unwrap(), b"newer");
    node.node.stop().await;
}

/// A sealed column that nobody rotates would be lost with the old key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sealed_column_is_known() {
    let db = crate::support::TestDb::create().await;
    let sql = db.connect().await;
    let rows = sql
        .query(
            "SELECT table_name || '.' || column_name FROM information_schema.columns
             WHERE table_schema = 'public' AND data_type = 'bytea' AND column_name LIKE '%sealed%'
             UNION ALL
             SELECT b.table_name || '.' || b.column_name FROM information_schema.columns f
             JOIN information_schema.columns b ON b.table_schema = 'public' AND b.table_name = f.table_name AND b.data_type = 'bytea'
             WHERE f.table_schema = 'public' AND f.column_name = 'sealed' AND b.column_name <> 'fingerprint'
             ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    let stored: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut known: Vec<&str> = sealed::COLUMNS.iter().map(|column| column.name).collect();
    known.sort_unstable();
    assert_eq!(stored, known);
}
