//! Counting all sessions: which ones came to work, which ceased to, and how many there are of each kind.
//!
//! Every node does it; rows that another one is changing are left to that one.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::sessions::liveness::alarm;
use crate::sessions::liveness::verdict::Verdict;

/// After a session comes to work, its first look.
const FIRST_LOOK: TimeDelta = TimeDelta::minutes(2);

const ENLIST: &str = "\
INSERT INTO session_vitals (tenant_id, session_id, verdict_since, created_at, updated_at)
SELECT s.tenant_id, s.id, $1, $1, $1 FROM waha_sessions s
WHERE s.deleted_at IS NULL
  AND NOT EXISTS (SELECT FROM session_vitals v WHERE v.tenant_id = s.tenant_id AND v.session_id = s.id)
ORDER BY s.id ON CONFLICT DO NOTHING";

// What is watched is working; one that is being restarted because it is dead stays so until it works again or turns out otherwise.
const FOLLOW: &str = "\
WITH m AS (
    SELECT v.tenant_id, v.session_id, n.seen FROM session_vitals v
    JOIN waha_sessions s ON s.tenant_id = v.tenant_id AND s.id = v.session_id, LATERAL (
        SELECT CASE WHEN s.deleted_at IS NOT NULL OR s.desired <> 'started' THEN 'idle'
                    WHEN s.waha_status IN ('working', 'starting', 'failed') THEN s.waha_status ELSE 'idle' END AS seen
    ) n
    WHERE v.seen <> n.seen
    ORDER BY v.session_id FOR NO KEY UPDATE OF v SKIP LOCKED
)
UPDATE session_vitals v SET
    seen = m.seen,
    watched_since = CASE WHEN m.seen = 'working' THEN $1 END,
    worked_until = CASE WHEN v.seen = 'working' THEN $1 ELSE v.worked_until END,
    failed_at = CASE WHEN m.seen = 'failed' THEN $1 END,
    probe_at = CASE WHEN v.verdict = 'dead' AND m.seen IN ('working', 'starting') THEN coalesce(v.probe_at, $2)
                    WHEN m.seen = 'working' THEN $2 END,
    verdict = CASE WHEN v.verdict = 'dead' AND m.seen IN ('working', 'starting') THEN v.verdict ELSE 'healthy' END,
    verdict_since = CASE WHEN v.verdict = 'healthy' OR v.verdict = 'dead' AND m.seen IN ('working', 'starting')
                         THEN v.verdict_since ELSE $1 END,
    evidence = CASE WHEN v.verdict = 'dead' AND m.seen IN ('working', 'starting') THEN v.evidence ELSE '[]' END,
    reported_at = CASE WHEN v.verdict = 'dead' AND m.seen IN ('working', 'starting') THEN v.reported_at END,
    failed_probes = 0,
    failed_calls = 0,
    updated_at = $1
FROM m WHERE v.tenant_id = m.tenant_id AND v.session_id = m.session_id";

const COUNT: &str = "\
SELECT s.engine, s.status, v.verdict, count(*) AS sessions,
       count(*) FILTER (WHERE v.seen = 'failed' AND v.failed_at > $1 AND v.worked_until >= v.failed_at - interval '5 minutes') AS failed,
       count(*) FILTER (WHERE v.seen = 'working' OR v.worked_until > $2) AS worked
FROM session_vitals v JOIN waha_sessions s ON s.tenant_id = v.tenant_id AND s.id = v.session_id
WHERE s.deleted_at IS NULL GROUP BY s.engine, s.status, v.verdict";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    engine: String,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Text)]
    verdict: String,
    #[diesel(sql_type = BigInt)]
    sessions: i64,
    #[diesel(sql_type = BigInt)]
    failed: i64,
    #[diesel(sql_type = BigInt)]
    worked: i64,
}

/// How many sessions of an engine failed of late, and how many worked of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Toll {
    /// Turned FAILED within [`alarm::WITHIN`], having worked before.
    pub failed: i64,
    /// Work, or did within [`alarm::WORKED`].
    pub worked: i64,
}

/// Follows all sessions, raises or ends the alarm, and sets the gauges.
pub(super) async fn take(app: &App, now: DateTime<Utc>) -> Result<(), DbError> {
    let rows: Vec<Row> = app
        .db
        .system(async |conn: &mut SystemConn| {
            sql(ENLIST).bind::<Timestamptz, _>(now).prepared().execute(&mut **conn).await?;
            sql(FOLLOW)
                .bind::<Timestamptz, _>(now)
                .bind::<Timestamptz, _>(now + FIRST_LOOK)
                .prepared()
                .execute(&mut **conn)
                .await?;
            Ok::<_, DbError>(
                sql(COUNT)
                    .bind::<Timestamptz, _>(now - alarm::WITHIN)
                    .bind::<Timestamptz, _>(now - alarm::WORKED)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    let mut tolls: BTreeMap<String, Toll> = BTreeMap::new();
    let (mut statuses, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
    for row in rows {
        *statuses.entry(row.status.clone()).or_insert(0) += row.sessions;
        if row.status == "working" {
            *verdicts.entry(row.verdict).or_insert(0) += row.sessions;
        }
        let toll = tolls.entry(row.engine).or_default();
        toll.failed += row.failed;
        toll.worked += row.worked;
    }
    // Also those that none is in any more.
    for status in ["starting", "scan_qr", "working", "failed", "stopped"] {
        gauge("switchboard_sessions", "status", status, statuses.get(status).copied());
    }
    for verdict in [Verdict::Healthy, Verdict::Suspect, Verdict::Dead] {
        gauge("switchboard_working_sessions", "verdict", verdict.as_str(), verdicts.get(verdict.as_str()).copied());
    }
    alarm::follow(app, now, &tolls).await
}

fn gauge(name: &'static str, label: &'static str, value: &'static str, count: Option<i64>) {
    let count = count.unwrap_or(0) as f64;
    metrics::gauge!(name, label => value).set(count);
}
