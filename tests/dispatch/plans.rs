//! The statements of the hot path stay walks along an index, however many lanes and messages there are.

use switchboard::dispatch::lanes::TAKE_TURNS;
use switchboard::dispatch::limits::LOCK_DUE;

use super::stand::{PLAIN, Stand};

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_ten_thousand_lanes_and_a_long_queue_takes_index_scans() {
    let stand = Stand::new("2026-11-23T10:00:00Z").await;
    let long = stand.lane(PLAIN).await;
    stand.queue(long, 20_000, 2).await;
    let many = format!(
        "INSERT INTO waha_sessions (tenant_id, id, name, external_session_id, waha_server_id, status, status_at, desired, engine,
                                    webhook_key_sealed, pacing, created_at, updated_at)
         SELECT '{tenant}', gen_random_uuid(), 's' || n, 's' || n, '{server}', 'working', now(), 'started', 'NOWEB', '', '{{}}', now(), now()
         FROM generate_series(1, 10000) n;
         INSERT INTO lanes (tenant_id, session_id, waha_server_id, ready_at, next_slot_at, min_gap_ms, jitter_ms, queued, created_at, updated_at)
         SELECT s.tenant_id, s.id, s.waha_server_id, timestamptz '2026-11-23T10:00:00Z' + random() * interval '1 hour', now(), 1000, 0, 1, now(), now()
         FROM waha_sessions s WHERE NOT EXISTS (SELECT FROM lanes l WHERE l.session_id = s.id);
         INSERT INTO messages (tenant_id, id, session_id, direction, message_type, chat_id, body, created_at, updated_at, status)
         SELECT tenant_id, gen_random_uuid(), session_id, 'outbound', 'text', '1@c.us', 'x', now(), now(), 'queued' FROM lanes;
         ANALYZE lanes; ANALYZE messages; ANALYZE waha_servers",
        tenant = stand.tenant,
        server = stand.server,
    );
    stand.sql.batch_execute(&many).await.unwrap();
    stand
        .sql
        .batch_execute(&format!(
            "PREPARE lock_due (timestamptz, int8) AS {LOCK_DUE};
             PREPARE take_turns (uuid[], timestamptz[], bool[], timestamptz, timestamptz, timestamptz[]) AS {TAKE_TURNS}"
        ))
        .await
        .unwrap();
    for mode in ["force_generic_plan", "force_custom_plan"] {
        stand.sql.batch_execute(&format!("SET plan_cache_mode = {mode}")).await.unwrap();
        let plan = explain(&stand, "EXECUTE lock_due ('2026-11-23T10:00:30Z', 500)").await;
        // By the index, in its order; a handful may be sorted.
        assert!(plan.contains("lanes_ready") && !plan.contains("Seq Scan on lanes"), "{mode}: {plan}");
        assert!(
            mode == "force_custom_plan" || plan.contains("Index Scan using lanes_ready on lanes l"),
            "{mode}: {plan}"
        );
        let take = format!(
            "EXECUTE take_turns (ARRAY['{long}']::uuid[], ARRAY[NULL]::timestamptz[], ARRAY[true], now(), now(), ARRAY[NULL]::timestamptz[])"
        );
        let plan = explain(&stand, &take).await;
        assert!(plan.contains("Index Scan using messages_queue on messages"), "{mode}: {plan}");
        assert!(!plan.contains("Seq Scan on messages") && !plan.contains("Seq Scan on lanes"), "{mode}: {plan}");
    }
    // What it comes to: the head of a long queue is found without walking through them.
    let started = std::time::Instant::now();
    assert!(stand.turn().await.contains(&first(&stand, long).await));
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
}

async fn first(stand: &Stand, session: uuid::Uuid) -> uuid::Uuid {
    stand
        .text(&format!("SELECT id FROM messages WHERE session_id = '{session}' ORDER BY priority, seq LIMIT 1"))
        .await
        .parse()
        .unwrap()
}

async fn explain(stand: &Stand, statement: &str) -> String {
    stand.rows(&format!("EXPLAIN {statement}")).await.join("\n")
}
