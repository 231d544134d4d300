//! The pool hands out clean, living connections, whatever happened to them before.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use switchboard::db::{Db, DbConfig, DbError};
use switchboard::domain::ids::TenantId;
use tokio::sync::Notify;
use uuid::Uuid;

use super::rows::seed;
use crate::support::{TcpProxy, TestDb, eventually};

/// What a transaction sees of itself.
#[derive(Debug, QueryableByName)]
pub struct Facts {
    #[diesel(sql_type = Integer)]
    pub pid: i32,
    #[diesel(sql_type = Text)]
    pub role: String,
    #[diesel(sql_type = Text)]
    pub tenant: String,
    #[diesel(sql_type = BigInt)]
    pub tenants: i64,
    #[diesel(sql_type = BigInt)]
    pub messages: i64,
}

/// Asks the transaction about itself.
pub async fn facts(conn: &mut AsyncPgConnection) -> Result<Facts, DbError> {
    let query = diesel::sql_query(
        "SELECT pg_backend_pid() AS pid, current_user::text AS role,
                coalesce(current_setting('app.tenant_id', true), '') AS tenant,
                (SELECT count(*) FROM tenants) AS tenants, (SELECT count(*) FROM messages) AS messages",
    );
    Ok(query.get_result(conn).await?)
}

async fn rename(conn: &mut AsyncPgConnection, name: &str) -> Result<usize, DbError> {
    let query = diesel::sql_query("UPDATE tenants SET description = $1").bind::<Text, _>(name);
    Ok(query.execute(conn).await?)
}

#[derive(QueryableByName)]
struct Renamed {
    #[diesel(sql_type = BigInt)]
    renamed: i64,
}

async fn renamed(pool: &Db) -> i64 {
    pool.system(async |conn| {
        let query = diesel::sql_query("SELECT count(description) AS renamed FROM tenants");
        let row: Renamed = query.get_result(&mut **conn).await.map_err(DbError::from)?;
        Ok::<_, DbError>(row.renamed)
    })
    .await
    .unwrap()
}

fn single(db: &TestDb) -> Db {
    Db::open(&DbConfig { max_connections: 1, ..db.config() }).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_died_in_the_pool_is_replaced() {
    let db = TestDb::create().await;
    let admin = db.connect().await;
    let pool = single(&db);
    for _ in 0..5 {
        let before = pool.system(async |conn| facts(conn).await).await.unwrap();
        // No waiting in between: the pool may or may not know of it yet, and must cope with both.
        let killed = admin.query_one("SELECT pg_terminate_backend($1, 5000)", &[&before.pid]).await.unwrap();
        assert!(killed.get::<_, bool>(0));
        let after = pool.tenant(TenantId(Uuid::from_u128(1)), async |conn| facts(conn).await).await.unwrap();
        assert_ne!(after.pid, before.pid);
        assert_eq!(after.role, "switchboard_tenant");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_dies_in_a_transaction_fails_it_and_no_other() {
    let db = TestDb::create().await;
    let admin = db.connect().await;
    seed(&admin).await;
    let pool = single(&db);
    let failed: Result<(), DbError> = pool
        .system(async |conn| {
            rename(conn, "lost").await?;
            let pid = facts(conn).await?.pid;
            admin.query_one("SELECT pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
            rename(conn, "lost too").await?;
            Ok(())
        })
        .await;
    assert!(failed.as_ref().is_err_and(DbError::is_transient), "{failed:?}");
    assert_eq!(renamed(&pool).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_takes_the_transaction_back() {
    let db = TestDb::create().await;
    seed(&db.connect().await).await;
    let pool = single(&db);
    let failed: Result<(), DbError> = pool
        .system(async |conn| {
            assert_eq!(rename(conn, "never").await?, 2);
            Err(DbError::Refused("on purpose".to_owned()))
        })
        .await;
    assert!(matches!(failed, Err(DbError::Refused(_))));
    assert_eq!(renamed(&pool).await, 0);
    let failed: Result<(), DbError> = pool
        .system(async |conn| {
            rename(conn, "never").await?;
            diesel::sql_query("INSERT INTO event_cursors VALUES ('fan_out', 0, 0, now())").execute(&mut **conn).await?;
            Ok(())
        })
        .await;
    assert!(failed.is_err(), "{failed:?}");
    assert_eq!(renamed(&pool).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_leaves_nothing_behind() {
    let db = TestDb::create().await;
    seed(&db.connect().await).await;
    let pool = single(&db);
    let panicking = pool.clone();
    let task = tokio::spawn(async move {
        let result: Result<(), DbError> = panicking
            .system(async |conn| {
                rename(conn, "never").await?;
                panic!("on purpose")
            })
            .await;
        result
    });
    assert!(task.await.is_err_and(|fault| fault.is_panic()));
    assert_eq!(renamed(&pool).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_transaction_leaves_nothing_behind() {
    let db = TestDb::create().await;
    let admin = db.connect().await;
    let [us, _] = seed(&admin).await.tenants;
    let pool = single(&db);

    // In the middle of the work.
    let (cancelled, reached) = (pool.clone(), std::sync::Arc::new(Notify::new()));
    let there = std::sync::Arc::clone(&reached);
    let task = tokio::spawn(async move {
        let result: Result<(), DbError> = cancelled
            .tenant(TenantId(us), async |conn| {
                rename(conn, "never").await?;
                there.notify_one();
                std::future::pending().await
            })
            .await;
        result
    });
    reached.notified().await;
    task.abort();
    assert!(task.await.is_err_and(|fault| fault.is_cancelled()));
    let after = pool.system(async |conn| facts(conn).await).await.unwrap();
    assert_eq!((after.role.as_str(), after.tenant.as_str()), ("switchboard_system", ""));
    assert_eq!(renamed(&pool).await, 0);

    // At every moment at which it waits for something: after its first step, its second, and so on.
    let mut finished = 0;
    for steps in 0..60 {
        let result = {
            let work = pool.tenant(TenantId(us), async |conn| {
                facts(conn).await?;
                facts(conn).await
            });
            tokio::pin!(work);
            let mut polls = 0;
            std::future::poll_fn(|context| {
                polls += 1;
                match work.as_mut().poll(context) {
                    std::task::Poll::Ready(result) => std::task::Poll::Ready(Some(result)),
                    std::task::Poll::Pending if polls > steps => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => std::task::Poll::Pending,
                }
            })
            .await
        };
        finished += u32::from(result.transpose().unwrap().is_some());
        let after = pool.system(async |conn| facts(conn).await).await.unwrap();
        assert_eq!((after.role.as_str(), after.tenant.as_str()), ("switchboard_system", ""), "cancelled after {steps}");
        assert_eq!(after.tenants, 2, "cancelled after {steps}");
    }
    assert!(finished > 0 && finished < 60, "some were cancelled and some were not: {finished} finished");
    eventually(Duration::from_secs(5), "abandoned transactions to end", async || {
        let open = admin
            .query_one(
                "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'",
                &[],
            )
            .await
            .unwrap();
        (open.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_away_is_used_again() {
    let db = TestDb::create().await;
    let proxy = TcpProxy::start(db.server()).await;
    let config = DbConfig {
        connect_timeout: Duration::from_millis(500),
        acquire_timeout: Duration::from_secs(2),
        ..db.config_through(proxy.addr())
    };
    let pool = Db::open(&config).unwrap();
    pool.now().await.unwrap();
    proxy.cut();
    for _ in 0..3 {
        let away = pool.now().await;
        assert!(matches!(away, Err(DbError::Unavailable(_))), "{away:?}");
    }
    proxy.restore();
    eventually(Duration::from_secs(5), "the database to be used again", async || pool.now().await.ok()).await;
}
