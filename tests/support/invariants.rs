//! What must hold in the database whenever nothing is under way.

use std::time::Duration;

use super::{World, eventually};

/// Every step of every message; the first one of a message that was accepted or received is its row.
macro_rules! steps {
    () => {
        "(SELECT t.tenant_id, t.message_id, t.id, t.status FROM message_transitions t WHERE t.cause <> 'moved' UNION ALL
          SELECT m.tenant_id, m.id, 0, CASE WHEN m.scheduled_at > m.created_at THEN 'scheduled' ELSE 'queued' END
          FROM messages m WHERE m.direction = 'outbound' AND m.source IS NULL UNION ALL
          SELECT m.tenant_id, m.id, 0, 'received' FROM messages m WHERE m.direction = 'inbound' AND NOT m.is_stub) t"
    };
}

/// Each names the rows that break one rule.
const RULES: [(&str, &str); 9] = [
    (
        "a lane counts what waits in it",
        "SELECT l.session_id::text FROM lanes l WHERE l.queued <> (SELECT count(*) FROM messages m WHERE m.session_id = l.session_id AND (m.status = 'queued' OR m.requeued) AND m.held_because IS NULL)",
    ),
    (
        "a lane with something to do has a time to do it",
        "SELECT l.session_id::text FROM lanes l WHERE l.ready_at IS NULL AND l.paused_because IS NULL
            AND (l.in_flight IS NOT NULL OR EXISTS (SELECT FROM messages m WHERE m.session_id = l.session_id AND (m.status = 'queued' OR m.requeued) AND m.held_because IS NULL))",
    ),
    ("a paused lane is never due", "SELECT l.session_id::text FROM lanes l WHERE l.paused_because IS NOT NULL AND l.ready_at IS NOT NULL"),
    (
        "what is in flight is not settled",
        "SELECT m.id::text || ' ' || m.status FROM lanes l JOIN messages m ON m.tenant_id = l.tenant_id AND m.id = l.in_flight
          WHERE m.status NOT IN ('queued', 'sending')",
    ),
    (
        "a message has its last transition's status",
        concat!(
            "SELECT m.id::text || ' ' || m.status FROM messages m LEFT JOIN (
                SELECT DISTINCT ON (t.message_id) t.message_id, t.status FROM ",
            steps!(),
            " ORDER BY t.message_id, t.id DESC) l ON l.message_id = m.id WHERE l.status IS DISTINCT FROM m.status"
        ),
    ),
    (
        "no step is taken twice, except trying again",
        concat!(
            "SELECT t.message_id::text || ' ' || t.status FROM ",
            steps!(),
            " WHERE t.status <> 'sending' AND NOT EXISTS (
                SELECT FROM message_transitions r WHERE r.message_id = t.message_id AND r.cause = 'retried')
              GROUP BY t.message_id, t.status HAVING count(*) > 1"
        ),
    ),
    (
        "each step has one event, except scheduled and sending",
        concat!(
            "SELECT s.message_id::text || ' ' || s.status FROM (SELECT t.message_id, t.status, count(*) AS steps FROM ",
            steps!(),
            " WHERE t.status NOT IN ('scheduled', 'sending') GROUP BY t.message_id, t.status) s
              LEFT JOIN (SELECT message_id, type, count(*) AS told FROM events GROUP BY message_id, type) e
                     ON e.message_id = s.message_id AND e.type = 'message.' || s.status
              WHERE e.told IS DISTINCT FROM s.steps"
        ),
    ),
    (
        "an error is shown for what failed or is being tried",
        "SELECT m.id::text || ' ' || m.status || ' ' || coalesce(m.error_code, '-') FROM messages m
          WHERE (m.status = 'failed') <> (m.error_code IS NOT NULL) AND m.status <> 'sending'",
    ),
    ("no ack is left behind", "SELECT e.waha_message_id FROM early_acks e JOIN messages m USING (session_id, waha_message_id)"),
];

/// Waits until every rule holds.
pub async fn hold(world: &World) {
    hold_in(&world.db.connect().await).await;
}

/// The same in the database of `client`, which may see everything.
pub async fn hold_in(client: &tokio_postgres::Client) {
    for (rule, query) in RULES {
        let mut broken = Vec::new();
        let holds = eventually(Duration::from_secs(20), rule, async || {
            let rows = client.query(query, &[]).await.unwrap();
            broken = rows.iter().map(|row| row.get::<_, String>(0)).collect();
            broken.is_empty().then_some(())
        });
        if tokio::time::timeout(Duration::from_secs(15), holds).await.is_err() {
            panic!("broken: {rule}: {broken:?}");
        }
    }
}
