//! A tenant with a million queued messages delays nobody else.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::World;
use crate::support::world::{Client, text};

const SESSIONS: usize = 50;
const EACH: usize = 20_000;
const PROBES: usize = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_messages_of_one_tenant_do_not_delay_another() {
    let world = World::new().await;
    let node = world.node();
    let crowd = world.tenant(&node.base, "crowd").await;
    let single = world.tenant(&node.base, "single").await;
    let idle = single.session("idle").await.0;
    let mut sessions = Vec::new();
    for index in 0..SESSIONS {
        let body = json!({"name": format!("s{index}"), "pacing": {"min_gap_ms": 1000, "jitter_ms": 1000}});
        let created = crowd.post("/v1/sessions", &body).await.expect(reqwest::StatusCode::CREATED);
        sessions.push(text(&created, "id").to_owned());
    }
    for session in &sessions {
        crowd.working(session).await;
    }
    let sql = world.db.connect().await;
    let alone = waits(&single, &idle, &sql).await;

    // Loading takes the time of the indexes that have no part in it; the queue's own stays.
    let started = Instant::now();
    sql.batch_execute(&format!(
        "SET synchronous_commit = off;
         ALTER TABLE messages DROP CONSTRAINT messages_tenant_id_session_id_fkey;
         DROP INDEX messages_created, messages_session, messages_to, messages_from, messages_status;
         INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, to_msisdn, body, created_at, updated_at, status)
         SELECT l.tenant_id, gen_random_uuid(), l.session_id, 'outbound', 'text', '15550100' || l.n || '@c.us', NULL, 'x', now(), now(), 'queued'
         FROM generate_series(1, {EACH}) k, (
             SELECT tenant_id, session_id, 100 + row_number() OVER () AS n FROM lanes WHERE min_gap_ms = 1000) l;
         UPDATE lanes SET queued = {EACH}, ready_at = now() + random() * interval '1.5 s' WHERE min_gap_ms = 1000;
         ANALYZE messages; ANALYZE lanes"
    ))
    .await
    .unwrap();
    let loaded = started.elapsed();
    let before = sent(&sql).await;
    let beside = waits(&single, &idle, &sql).await;
    let left = sent(&sql).await - before;
    eprintln!(
        "{} messages loaded in {loaded:?}; alone {alone:?}, beside them {beside:?} (median of {PROBES}); {left} of them left meanwhile",
        SESSIONS * EACH
    );
    assert!(left > 0, "the others are sending, too");
    // Below some ten milliseconds it is the machine's noise that is measured.
    let limit = 2 * alone.max(Duration::from_millis(100));
    assert!(beside <= limit, "{beside:?} beside a million, {alone:?} alone");
    node.node.stop().await;
}

async fn sent(sql: &tokio_postgres::Client) -> i64 {
    // The lanes' own counts: walking through a million rows would be load of its own.
    let waiting = "SELECT sum(queued)::int8 FROM lanes WHERE min_gap_ms = 1000";
    let waiting: i64 = sql.query_one(waiting, &[]).await.unwrap().get(0);
    i64::try_from(SESSIONS * EACH).unwrap() - waiting
}

/// The median of how long a message waits from its acceptance to its claim.
async fn waits(tenant: &Client, session: &str, sql: &tokio_postgres::Client) -> Duration {
    let mut waits = Vec::new();
    for index in 0..PROBES {
        let message = tenant.send_text(session, "+15550101234", &index.to_string()).await;
        let id = text(&message, "id").to_owned();
        tenant.message_with(&id, "read").await;
        let query = format!(
            "SELECT (extract(epoch FROM t.at - m.created_at) * 1e6)::int8 FROM messages m
             JOIN message_transitions t ON t.tenant_id = m.tenant_id AND t.message_id = m.id
             WHERE m.tenant_id = '{}' AND m.id = '{id}' AND t.status = 'sending'",
            text(&message, "tenant_id")
        );
        let micros: i64 = sql.query_one(&query, &[]).await.unwrap().get(0);
        waits.push(Duration::from_micros(u64::try_from(micros).unwrap()));
    }
    waits.sort();
    waits[PROBES / 2]
}
