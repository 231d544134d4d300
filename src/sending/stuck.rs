//! Sessions that take messages and send none: working in name only, or refusing everything until they are restarted.
//!
//! Several messages in a row without an acknowledgement of WhatsApp's server, or with the same refusal of the engine, have the
//! session restarted: once, and not again before a cool-down has passed, since restarts are no cure for what else may be wrong.
//! Its messages wait meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId};
use crate::sessions::status::{self, Observation};
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
    let starting = Observation { tenant, session, status: SessionStatus::Starting, reported_at: None, me: None };
    status::observe(conn, &app.chance, now, &starting).await?;
    metrics::counter!("switchboard_stuck_sessions_restarted_total").increment(1);
    tracing::warn!(tenant_id = %tenant, session_id = %session, "a session is stuck; it is restarted");
    Ok(true)
}

/// Has the session restarted in a transaction of its own. Answers whether it will be.
///
/// # Errors
/// When the database does not answer.
pub async fn restart_alone(app: &App, tenant: TenantId, session: SessionId) -> Result<bool, DbError> {
    let now = app.clock.now();
    let wanted = app
        .db
        .system(async |conn| {
            status::lock_lanes(conn, &[session]).await?;
            restart(app, conn, now, tenant, session).await
        })
        .await?;
    if wanted {
        app.wake.sessions.notify_one();
        app.wake.events.notify_one();
    }
    Ok(wanted)
}

/// The same refusal of one message after the other, by session; clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<HashMap<SessionId, (String, i32)>>>);

impl Refusals {
    /// Sessions that are counted at once; beyond that the counts begin anew.
    const MOST: usize = 10_000;

    /// Counts a refusal; answers how many of that wording came in a row.
    pub fn count(&self, session: SessionId, wording: &str) -> i32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= Self::MOST {
            counts.clear();
        }
        let entry = counts.entry(session).or_default();
        if entry.0 == wording {
            entry.1 = entry.1.saturating_add(1);
        } else {
            *entry = (wording.to_owned(), 1);
        }
        entry.1
    }

    /// Something else happened: the count begins anew.
    pub fn forget(&self, session: SessionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }
}
