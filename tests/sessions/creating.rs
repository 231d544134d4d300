//! A place, the rows, and whose they are.

use futures_util::future::join_all;
use switchboard::db::DbError;
use switchboard::sessions::create::{CreateError, create_in};
use switchboard::sessions::queries;
use switchboard::sessions::servers::PlaceWish;
use switchboard::waha::Engine;

use super::stand::{Stand, insert_server, session};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_waits_with_its_lane_held() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    let server = stand.server(5).await;
    let row = stand.create(tenant, session("support")).await.unwrap();
    assert_eq!((row.name.as_str(), row.status.as_str(), row.desired.as_str()), ("support", "starting", "started"));
    assert_eq!(row.external_session_id, format!("sb_{}", row.id.to_string().replace('-', "")));
    assert_eq!((row.waha_server_id, row.engine.as_str(), row.queued, row.version), (server, "NOWEB", 0, 1));
    assert_eq!(row.pacing, serde_json::json!({"min_gap_ms": 1000, "jitter_ms": 500, "typing": false}));
    let key = stand.webhook_key(tenant, row.id).await;
    assert_eq!((key.len(), hex::decode(&key).unwrap().len()), (64, 32));
    let lanes = "SELECT count(*) FROM lanes WHERE paused_because = 'session_not_working' AND min_gap_ms = 1000 \
                 AND jitter_ms = 500 AND ready_at IS NULL";
    assert_eq!(stand.count(lanes).await, 1);
    assert_eq!(stand.count("SELECT count(*) FROM waha_sessions WHERE reconcile_at IS NOT NULL").await, 1);

    let mut idle = session("later");
    idle.start = false;
    let idle = stand.create(tenant, idle).await.unwrap();
    assert_eq!((idle.status.as_str(), idle.desired.as_str()), ("stopped", "stopped"));
    assert_eq!(stand.count("SELECT count(*) FROM waha_sessions WHERE reconcile_at IS NOT NULL").await, 1);
    assert_ne!(stand.webhook_key(tenant, idle.id).await, key);
    assert_eq!(stand.count("SELECT sessions::bigint FROM waha_servers").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_created_takes_no_place() {
    let stand = Stand::new().await;
    let (a, b) = (stand.tenant("a").await, stand.tenant("b").await);
    assert!(matches!(stand.create(a, session("x")).await, Err(CreateError::NoRoom(_))));
    stand.server(2).await;
    stand.create(a, session("x")).await.unwrap();
    assert!(matches!(stand.create(a, session("x")).await, Err(CreateError::NameTaken)));
    let mut gows = session("y");
    gows.wish.engine = Some(Engine::Gows);
    assert!(matches!(
        stand.create(a, gows).await,
        Err(CreateError::NoRoom(PlaceWish { engine: Some(Engine::Gows), .. }))
    ));
    assert_eq!(stand.count("SELECT sessions::bigint FROM waha_servers").await, 1);
    stand.create(b, session("x")).await.expect("a name is the tenant's own");
    assert!(matches!(stand.create(b, session("z")).await, Err(CreateError::NoRoom(_))));
    assert_eq!(stand.count("SELECT count(*) FROM lanes").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_never_exceed_the_capacity() {
    let stand = Stand::new().await;
    let tenant = stand.tenant("a").await;
    for (name, capacity) in [("one", 7), ("two", 9), ("three", 4)] {
        insert_server(&stand.app, name, "http://127.0.0.1:1", Engine::Gows, capacity).await;
    }
    let (here, there) = (&stand.app, stand.another_node());
    let created = join_all((0..50).map(|index| {
        let app = if index % 2 == 0 { here.clone() } else { there.clone() };
        async move { switchboard::sessions::create::create(&app, tenant, session(&format!("s{index}"))).await }
    }))
    .await;
    let placed = created.iter().filter(|created| created.is_ok()).count();
    assert_eq!(placed, 20, "all the room is used");
    assert!(created.iter().all(|created| matches!(created, Ok(_) | Err(CreateError::NoRoom(_)))), "{created:?}");
    assert_eq!(stand.count("SELECT count(*) FROM waha_servers WHERE sessions = capacity").await, 3);
    let miscounted = "SELECT count(*) FROM waha_servers v WHERE v.sessions <> \
                      (SELECT count(*) FROM waha_sessions s WHERE s.waha_server_id = v.id)";
    assert_eq!(stand.count(miscounted).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_session_is_not_there() {
    let stand = Stand::new().await;
    let (a, b) = (stand.tenant("a").await, stand.tenant("b").await);
    stand.server(5).await;
    let of_a = stand.create(a, session("x")).await.unwrap();
    assert!(stand.find(a, of_a.id).await.is_some());
    assert!(stand.find(b, of_a.id).await.is_none());
    let listed = stand.app.db.tenant(b, async |conn| queries::list(conn, None, 10).await).await.unwrap();
    assert!(listed.is_empty());
    let now = stand.app.clock.now();
    let wanted = stand
        .app
        .db
        .tenant(b, async move |conn| queries::want(conn, of_a.id, queries::Wish::Stop, "me", now).await)
        .await
        .unwrap();
    assert!(wanted.is_none());
    assert_eq!(stand.find(a, of_a.id).await.unwrap().desired, "started");
}

#[tokio::test(flavor = "multi_thread")]
async fn narrowed_to_a_tenant_the_database_refuses_everything_else() {
    let stand = Stand::new().await;
    let (a, b) = (stand.tenant("a").await, stand.tenant("b").await);
    stand.server(5).await;
    let of_a = stand.create(a, session("x")).await.unwrap();
    // Another tenant's row can neither be seen nor written, and neither can the table of servers.
    for (statement, expected) in [
        ("SELECT 1 / (count(*) = 0)::int FROM waha_sessions", None),
        ("SELECT count(*) FROM waha_servers", Some("permission denied")),
        ("UPDATE lanes SET tenant_id = tenant_id WHERE false", None),
    ] {
        let done: Result<(), DbError> = stand
            .app
            .db
            .system(async |conn| {
                let mut narrowed = conn.narrow_to(b).await?;
                diesel_async::SimpleAsyncConnection::batch_execute(&mut *narrowed, statement).await?;
                narrowed.widen().await
            })
            .await;
        match expected {
            None => done.unwrap_or_else(|fault| panic!("{statement}: {fault}")),
            Some(text) => assert!(done.unwrap_err().to_string().contains(text), "{statement}"),
        }
    }
    let stolen = format!(
        "INSERT INTO lanes (tenant_id, session_id, waha_server_id, next_slot_at, min_gap_ms, jitter_ms, created_at, updated_at) \
         VALUES ('{a}', '{}', '{}', now(), 0, 0, now(), now())",
        of_a.id, of_a.waha_server_id
    );
    let refused: Result<(), DbError> = stand
        .app
        .db
        .system(async move |conn| {
            let mut narrowed = conn.narrow_to(b).await?;
            diesel_async::SimpleAsyncConnection::batch_execute(&mut *narrowed, &stolen).await?;
            Ok(())
        })
        .await;
    assert!(refused.unwrap_err().to_string().contains("row-level security"));
    // The rest of the transaction is above tenants again, and so is the next one on the same connection.
    let new = session("y");
    let seen = stand
        .app
        .db
        .system(async |conn| {
            create_in(conn, &stand.app, b, &new).await?;
            let sessions =
                diesel_async::RunQueryDsl::execute(diesel::sql_query("SELECT id FROM waha_sessions"), &mut **conn);
            Ok::<_, CreateError>(sessions.await.map_err(DbError::from)?)
        })
        .await
        .unwrap();
    assert_eq!(seen, 2);
}
