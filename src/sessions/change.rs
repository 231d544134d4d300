//! Changing a session: its settings, and whether its messages may leave.
//!
//! Guarantee: what the resource shows and what its lane does change in one transaction, and a change acts on what is queued
//! already: the next turn is decided by the new settings, and a new gap is counted from the last send.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::dispatch::pacing::Pacing;
use crate::dispatch::windows::Windows;
use crate::domain::ids::SessionId;
use crate::sessions::queries;
use crate::sessions::view::{SessionRow, session_columns};

/// The name of the unique constraint on names.
pub const NAME_TAKEN: &str = "waha_sessions_name";

/// A session's settings as they are to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tenant's name for it.
    pub name: String,
    /// How fast its messages may leave.
    pub pacing: Pacing,
    /// When normal and bulk messages may leave; `None`: always.
    pub windows: Option<Windows>,
    /// Whether recipients' numbers are checked before the first message.
    pub check_numbers: bool,
    /// The tenant's own settings of the session: an object.
    pub config: Value,
    /// The tenant's own data: an object.
    pub metadata: Value,
}

/// The session `id` with its lane locked, so that it can be changed by what it is.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut TenantConn, id: SessionId) -> Result<Option<SessionRow>, DbError> {
    // The lane first, as everywhere; in a statement of its own, so that the next one reads what was committed before.
    sql("SELECT FROM lanes WHERE tenant_id = $1 AND session_id = $2 FOR UPDATE")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .execute(&mut **conn)
        .await?;
    sql("SELECT FROM waha_sessions WHERE tenant_id = $1 AND id = $2 FOR NO KEY UPDATE")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .execute(&mut **conn)
        .await?;
    queries::find(conn, id).await
}

// What is in flight keeps its turn; all else is decided anew at the next look, which is due at once.
const UPDATE: &str = concat!(
    "\
WITH s AS (
    UPDATE waha_sessions SET
        name = $3, pacing = $4, windows = $5, check_numbers = $6, config = $7, metadata = $8,
        version = version + 1, updated_at = $9
    WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NULL
    RETURNING *
), l AS (
    UPDATE lanes l SET
        min_gap_ms = $10, jitter_ms = $11, per_minute = $12, per_hour = $13, per_day = $14, new_chats_per_day = $15,
        warm_up = $16, typing = $17, windows = $5, check_numbers = $6,
        next_slot_at = slot.at,
        ready_at = CASE WHEN l.paused_because IS NULL AND l.in_flight IS NULL AND l.queued > 0
                        THEN greatest(slot.at, $9) ELSE l.ready_at END,
        updated_at = $9
    FROM s, LATERAL (
        SELECT CASE WHEN $18 THEN coalesce(o.last_send_at + $19 * interval '1 microsecond', $9) ELSE o.next_slot_at END AS at
        FROM lanes o WHERE o.session_id = s.id
    ) slot
    WHERE l.tenant_id = s.tenant_id AND l.session_id = s.id
    RETURNING l.*
)
SELECT ",
    session_columns!(),
    " FROM s JOIN l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

/// Gives the session `id`, which is locked, these settings. `gap` is the gap from its last send on, where the gap changes.
///
/// # Errors
/// When the database refuses; a name that is taken is a duplicate of [`NAME_TAKEN`].
pub async fn update(
    conn: &mut TenantConn,
    id: SessionId,
    new: &Settings,
    gap: Option<TimeDelta>,
    now: DateTime<Utc>,
) -> Result<SessionRow, DbError> {
    let pacing = new.pacing;
    Ok(sql(UPDATE)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(&new.name)
        .bind::<Jsonb, _>(json(&pacing))
        .bind::<Nullable<Jsonb>, _>(new.windows.as_ref().map(json))
        .bind::<Bool, _>(new.check_numbers)
        .bind::<Jsonb, _>(&new.config)
        .bind::<Jsonb, _>(&new.metadata)
        .bind::<Timestamptz, _>(now)
        .bind::<Integer, _>(pacing.min_gap_ms)
        .bind::<Integer, _>(pacing.jitter_ms)
        .bind::<Nullable<Integer>, _>(pacing.per_minute)
        .bind::<Nullable<Integer>, _>(pacing.per_hour)
        .bind::<Nullable<Integer>, _>(pacing.per_day)
        .bind::<Nullable<Integer>, _>(pacing.new_chats_per_day)
        .bind::<Nullable<Jsonb>, _>(pacing.warm_up.as_ref().map(json))
        .bind::<Bool, _>(pacing.typing)
        .bind::<Bool, _>(gap.is_some())
        .bind::<BigInt, _>(gap.and_then(|gap| gap.num_microseconds()).unwrap_or(0))
        .prepared()
        .get_result(&mut **conn)
        .await?)
}

/// Settings as they are kept.
pub(crate) fn json(settings: &impl serde::Serialize) -> Value {
    // Numbers, words and dates always serialise.
    serde_json::to_value(settings).unwrap_or_default()
}

// Independent of what else holds the lane: it moves when neither does.
const PAUSE: &str = concat!(
    "\
WITH l AS (
    UPDATE lanes l SET
        tenant_paused_at = CASE WHEN $3 THEN coalesce(l.tenant_paused_at, $5) END,
        tenant_pause_reason = CASE WHEN $3 THEN $4 END,
        ready_at = CASE WHEN $3 OR l.stopped_because IS NOT NULL THEN NULL
                        WHEN l.tenant_paused_at IS NULL THEN l.ready_at
                        WHEN l.in_flight IS NOT NULL
                        THEN greatest(CASE WHEN l.claimed_fence = l.fence THEN l.lease_until END, l.next_slot_at, $5)
                        WHEN l.queued > 0 THEN greatest(l.next_slot_at, $5) END,
        updated_at = $5
    WHERE l.tenant_id = $1 AND l.session_id = $2
    RETURNING l.*
), s AS (
    UPDATE waha_sessions s SET version = s.version + 1, updated_at = $5
    WHERE s.tenant_id = $1 AND s.id = $2
    RETURNING *
)
SELECT ",
    session_columns!(),
    " FROM s JOIN l ON l.tenant_id = s.tenant_id AND l.session_id = s.id"
);

/// Lets no more messages of the session `id` leave, or lets them leave again. What is being handed over is not stopped.
/// `None` if this tenant has no such session.
///
/// # Errors
/// When the database does not answer.
pub async fn pause(
    conn: &mut TenantConn,
    id: SessionId,
    paused: bool,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Option<SessionRow>, DbError> {
    let Some(old) = lock(conn, id).await? else { return Ok(None) };
    // Nothing changes: the version stays.
    if old.tenant_paused_at.is_some() == paused && old.tenant_pause_reason.as_deref() == reason.filter(|_| paused) {
        return Ok(Some(old));
    }
    let row = sql(PAUSE)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .bind::<Bool, _>(paused)
        .bind::<Nullable<Text>, _>(reason)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .get_result(&mut **conn)
        .await?;
    Ok(Some(row))
}
