//! Several nodes, and a node that dies: every message is counted once.

use std::sync::atomic::{AtomicBool, Ordering};

use switchboard::conversations::projection;
use switchboard::db::{DbError, SystemConn};

use super::stand::Stand;

/// Messages of 50 people and 5 groups, each with its event.
fn crowd(tenant: &super::stand::Tenant<'_>, messages: u32) -> String {
    let (id, session) = (tenant.id, tenant.session);
    format!(
        "WITH m AS (
             INSERT INTO messages (tenant_id, id, session_id, direction, status, message_type, chat_id, body, waha_message_id, sender_id,
                                   occurred_at, created_at, updated_at)
             SELECT '{id}', gen_random_uuid(), '{session}', 'inbound', 'received', 'text',
                    CASE WHEN n % 11 = 0 THEN (120363000000000000 + n % 5) || '@g.us' ELSE (15550100000 + n % 50) || '@c.us' END, 'x', 'W' || n,
                    (15550100000 + n % 50) || '@c.us', now() + n * interval '1 s', now(), now()
             FROM generate_series(1, {messages}) n RETURNING *),
         t AS (INSERT INTO message_transitions (tenant_id, message_id, status, at, cause) SELECT tenant_id, id, status, now(), 'test' FROM m)
         INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
         SELECT tenant_id, gen_random_uuid(), 'message.received', now(), session_id, id, '{{}}' FROM m"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_and_a_crash_count_each_message_once() {
    const MESSAGES: u32 = 7500;
    let stand = Stand::new().await;
    let tenant = stand.tenant().await;
    let other = stand.node();
    let done = AtomicBool::new(false);
    let work = async |app: &switchboard::app::App| {
        while !done.load(Ordering::Relaxed) {
            projection::step(app).await.unwrap();
        }
    };
    // A node that takes the cursor, and dies with it.
    let crashes = async {
        while !done.load(Ordering::Relaxed) {
            let crashed = stand.app.db.system(async |conn: &mut SystemConn| {
                let _taken =
                    switchboard::conversations::projection::step_in(conn, &stand.app.chance, stand.app.clock.now())
                        .await?;
                Err::<(), _>(DbError::Refused("the node died".to_owned()))
            });
            assert!(crashed.await.is_err());
            tokio::task::yield_now().await;
        }
    };
    let feed = async {
        for part in 0..10 {
            let mut sql = crowd(&tenant, MESSAGES / 10);
            sql = sql.replace("'W' || n", &format!("'W{part}-' || n"));
            stand.sql.batch_execute(&sql).await.unwrap();
        }
        stand.settle().await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(work(&stand.app), work(&other), crashes, feed);
    let sums = tenant
        .rows("SELECT sum(message_count)::int AS messages, sum(unread_count)::int AS unread, count(*)::int AS conversations FROM conversations WHERE tenant_id = $tenant")
        .await;
    assert_eq!(sums[0], serde_json::json!({"messages": MESSAGES, "unread": MESSAGES, "conversations": 55}));
    let contacts = tenant.rows("SELECT count(*)::int AS n FROM contacts WHERE tenant_id = $tenant").await;
    assert_eq!(contacts[0]["n"], 50);
    let wrong = tenant
        .rows(
            "SELECT c.chat_id, c.message_count, m.n FROM conversations c
             JOIN LATERAL (SELECT count(*) AS n, max(occurred_at) AS last FROM messages m WHERE m.session_id = c.session_id AND m.chat_id = c.chat_id) m ON true
             WHERE c.tenant_id = $tenant AND (c.message_count, c.last_message_at) IS DISTINCT FROM (m.n, m.last)",
        )
        .await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}
