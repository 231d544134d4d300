//! The one restart of a session that is stuck or dead.
//!
//! Whoever finds it so, sending or a look at its vitals, asks here: once, and not again before a cool-down has passed, since
//! restarts are no cure for what else may be wrong. Its messages wait meanwhile.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId};
use crate::sessions::status::{self, Observation, Source};
use crate::waha::SessionStatus;

// The cool-down is the lane's, so that no two nodes restart one session.
const RESTART: &str = "\
WITH lane AS (
    UPDATE lanes SET restarted_at = $3, unacked = 0, updated_at = $3
    WHERE tenant_id = $1 AND session_id = $2 AND stopped_because IS NULL AND (restarted_at IS NULL OR restarted_at <= $4)
    RETURNING tenant_id, session_id
)
UPDATE waha_sessions s SET restart_wanted_at = $3, reconcile_at = $3, reconcile_failures = 0 FROM lane
WHERE s.tenant_id = lane.tenant_id AND s.id = lane.session_id AND s.desired = 'started' AND s.deleted_at IS NULL";

// What was repeated to a session that sends nothing was not repeated at all. What somebody holds is being acknowledged.
const ANOTHER_CHANCE: &str = "\
UPDATE messages m SET resends = 0 FROM (
    SELECT tenant_id, id FROM messages
    WHERE tenant_id = $1 AND session_id = $2 AND status = 'sending' AND handed_over_at IS NOT NULL AND resends > 0 AND NOT requeued
    ORDER BY tenant_id, id FOR UPDATE SKIP LOCKED
) u WHERE m.tenant_id = u.tenant_id AND m.id = u.id";

/// Has the session restarted, unless that was done a short while ago. In the caller's transaction, which has locked nothing but
/// the session's lane. Answers whether it will be; then ring `app.wake.sessions`.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn restart(
    app: &App,
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    session: SessionId,
) -> Result<bool, DbError> {
    let cool_down = TimeDelta::from_std(app.config.sending.stuck_cool_down).unwrap_or(TimeDelta::minutes(10));
    let wanted = sql(RESTART)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(session)
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(now - cool_down)
        .prepared()
        .execute(conn)
        .await?;
    if wanted == 0 {
        return Ok(false);
    }
    sql(ANOTHER_CHANCE).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(session).prepared().execute(conn).await?;
    // What waits in the lane waits for the restart.
    let (status, source) = (SessionStatus::Starting, Source::Stuck);
    let starting = Observation { tenant, session, status, reported_at: None, me: None, source };
    status::observe(conn, &app.chance, now, &starting).await?;
    metrics::counter!("switchboard_stuck_sessions_restarted_total").increment(1);
    tracing::warn!(tenant_id = %tenant, session_id = %session, "a session is stuck; it is restarted");
    Ok(true)
}
