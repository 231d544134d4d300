//! Settling messages that wait: cancelled or expired, with their transitions and events.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::status::Status;
use crate::messages::changes;
use crate::messages::row::{MessageRow, message_columns};

/// Where a message waits.
#[derive(Clone, Copy, Debug, QueryableByName)]
pub struct Waiting {
    /// Whose.
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// Which.
    #[diesel(sql_type = SqlUuid)]
    pub id: MessageId,
    /// In whose queue.
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
}

// What is queued and in flight was not claimed, as the claim changes its status under the lane's lock: the turn is taken back,
// and the higher fence refuses its claim.
const SETTLE: &str = concat!(
    "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3) AS i (tenant_id, id, session_id)
), lane AS MATERIALIZED (
    SELECT l.session_id FROM lanes l WHERE l.session_id IN (SELECT session_id FROM input) ORDER BY l.session_id FOR UPDATE
), message AS MATERIALIZED (
    SELECT m.tenant_id, m.id, m.status, m.held_because
    FROM input i JOIN lane USING (session_id) JOIN messages m ON m.tenant_id = i.tenant_id AND m.id = i.id
    WHERE m.session_id = i.session_id AND m.status IN ('scheduled', 'queued')
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), changed AS (
    UPDATE messages m SET status = $4, held_because = NULL, updated_at = $5
    FROM message b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.*, b.status = 'queued' AND b.held_because IS NULL AS waited
), turn AS (
    UPDATE lanes l SET
        queued = greatest(l.queued - c.waited, 0),
        in_flight = CASE WHEN l.in_flight = ANY(c.ids) THEN NULL ELSE l.in_flight END,
        fence = l.fence + coalesce(l.in_flight = ANY(c.ids), false)::int,
        lease_until = CASE WHEN l.in_flight = ANY(c.ids) THEN NULL ELSE l.lease_until END,
        ready_at = CASE WHEN l.in_flight = ANY(c.ids) IS NOT TRUE THEN l.ready_at
                        WHEN l.paused_because IS NULL AND l.queued > c.waited THEN greatest(l.next_slot_at, $5) END,
        updated_at = $5
    FROM (
        SELECT session_id, count(*) FILTER (WHERE waited)::int AS waited, array_agg(id) AS ids FROM changed GROUP BY session_id
    ) c
    WHERE l.session_id = c.session_id
)
SELECT ",
    message_columns!(),
    " FROM changed m"
);

/// Gives those of `waiting` that still wait the final status `status`, and records it. Answers them, in the order in
/// which they were accepted.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn settle(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    waiting: &[Waiting],
    status: Status,
    cause: &str,
) -> Result<Vec<MessageRow>, DbError> {
    if waiting.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows: Vec<MessageRow> = sql(SETTLE)
        .bind::<Array<SqlUuid>, _>(waiting.iter().map(|message| message.tenant_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(waiting.iter().map(|message| message.id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(waiting.iter().map(|message| message.session_id).collect::<Vec<_>>())
        .bind::<Text, _>(status.as_str())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    rows.sort_by_key(|row| (row.created_at, row.id));
    changes::record_all(conn, chance, now, &rows, status, cause).await?;
    Ok(rows)
}
