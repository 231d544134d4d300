//! Many callers share a commit, and none of them pays for another's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::sql_types::{Array, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use futures_util::future::join_all;
use switchboard::db::group_commit::{BatchWriter, GroupCommit, GroupCommitError};
use switchboard::db::{Db, DbConfig, DbError, Prepare, sql};
use tokio_postgres::Client;
use uuid::Uuid;

use super::rows::seed;
use crate::support::{TcpProxy, TestDb, eventually};

/// Writes messages, as accepting them does: the item is a message's id and its session's.
struct Messages {
    db: Db,
    tenant: Uuid,
    transactions: Arc<AtomicU32>,
}

impl BatchWriter for Messages {
    type Item = (Uuid, Uuid);
    type Answer = Uuid;

    async fn write(&self, items: &[Self::Item]) -> Result<Vec<Self::Answer>, DbError> {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        let (ids, sessions): (Vec<Uuid>, Vec<Uuid>) = items.iter().copied().unzip();
        let tenant = self.tenant;
        self.db
            .system(async |conn| {
                sql("INSERT INTO messages (tenant_id, id, session_id, direction, status, message_type, chat_id, created_at,
                                           updated_at)
                     SELECT $1, id, session_id, 'outbound', 'queued', 'text', 'c', now(), now()
                       FROM unnest($2, $3) AS new (id, session_id)")
                .bind::<SqlUuid, _>(tenant)
                .bind::<Array<SqlUuid>, _>(&ids)
                .bind::<Array<SqlUuid>, _>(&sessions)
                .prepared()
                .execute(&mut **conn)
                .await?;
                Ok::<_, DbError>(())
            })
            .await?;
        Ok(ids)
    }
}

struct Setting {
    group: GroupCommit<Messages>,
    transactions: Arc<AtomicU32>,
    client: Client,
    session: Uuid,
    /// Of another tenant: messages for it are refused.
    foreign_session: Uuid,
}

impl Setting {
    fn transactions(&self) -> u32 {
        AtomicU32::load(&self.transactions, Ordering::Relaxed)
    }
}

async fn set_up(db: &TestDb, config: &DbConfig) -> Setting {
    let client = db.connect().await;
    let seeded = seed(&client).await;
    let [session, foreign_session] =
        [0, 1].map(|tenant: usize| seeded.rows[tenant]["waha_sessions"]["id"].trim_matches('\'').parse().unwrap());
    let transactions = Arc::new(AtomicU32::new(0));
    let writer =
        Messages { db: Db::open(config).unwrap(), tenant: seeded.tenants[0], transactions: Arc::clone(&transactions) };
    // The first use opens a connection, which is not what is measured here.
    writer.db.now().await.unwrap();
    Setting { group: GroupCommit::start("test", writer, 1000, 256), transactions, client, session, foreign_session }
}

async fn stored(client: &Client) -> Vec<Uuid> {
    client.batch_execute("SET app.tenant_id = '00000000-0000-0000-0000-00000000000a'").await.unwrap();
    let rows =
        client.query("SELECT id::text FROM messages WHERE message_type = 'text' ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0).parse().unwrap()).collect()
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(1000 + number as u128)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_callers_share_few_commits() {
    let db = TestDb::create().await;
    let set = set_up(&db, &db.config()).await;
    let answers = join_all((0..64).map(|n| set.group.write((id(n), set.session)))).await;
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), id(n), "everybody gets his own answer");
    }
    assert_eq!(stored(&set.client).await.len(), 64);
    let transactions = set.transactions();
    assert!(transactions <= 8, "64 callers needed {transactions} transactions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_item_fails_its_own_caller_only() {
    let db = TestDb::create().await;
    let set = set_up(&db, &db.config()).await;
    let bad = 13;
    let calls = (0..64).map(|n| {
        let session = if n == bad { set.foreign_session } else { set.session };
        set.group.write((id(n), session))
    });
    for (n, answer) in join_all(calls).await.into_iter().enumerate() {
        match answer {
            Ok(answer) => assert!(n != bad && answer == id(n)),
            Err(GroupCommitError::Database(fault)) => {
                assert!(n == bad && matches!(*fault, DbError::Refused(_)), "caller {n}: {fault}");
            }
            Err(other) => panic!("caller {n}: {other}"),
        }
    }
    let expected: Vec<Uuid> = (0..64).filter(|n| *n != bad).map(id).collect();
    assert_eq!(stored(&set.client).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_database_answers_everybody_and_comes_back() {
    let db = TestDb::create().await;
    let proxy = TcpProxy::start(db.server()).await;
    let config = DbConfig { connect_timeout: Duration::from_millis(500), ..db.config_through(proxy.addr()) };
    let set = set_up(&db, &config).await;
    proxy.cut();
    for answer in join_all((0..32).map(|n| set.group.write((id(n), set.session)))).await {
        assert!(
            matches!(&answer, Err(GroupCommitError::Database(fault)) if matches!(**fault, DbError::Unavailable(_))),
            "{answer:?}"
        );
    }
    assert!(stored(&set.client).await.is_empty());
    assert!(set.transactions() <= 32, "an absent database is no reason to split a batch");
    proxy.restore();
    eventually(Duration::from_secs(5), "writing to work again", async || {
        set.group.write((id(100), set.session)).await.ok()
    })
    .await;
    assert_eq!(stored(&set.client).await, [id(100)]);
}
