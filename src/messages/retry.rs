//! Sending what failed once more: the same message, with its id, its place and its history.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::chance::Chance;
use crate::domain::failure::FailureCode;
use crate::domain::ids::MessageId;
use crate::domain::status::Status;
use crate::messages::changes;
use crate::messages::queries;
use crate::messages::row::{MessageRow, message_columns};

/// The cause of the step back into the queue: the only step to a lower rank that there is.
pub const RETRIED: &str = "retried";

/// What a request to retry one message led to.
#[derive(Debug)]
pub enum Retried {
    /// It waits again.
    Done(Box<MessageRow>),
    /// It did not fail, or has expired, or its session is gone.
    NotNow(Box<MessageRow>),
    /// This tenant has no such message.
    NotFound,
}

// What was counted about the attempts so far counts no more, so that they can be as many again; whoever asks for a retry has
// settled whether the message may have been sent. The id stays: where the engine carries it, a repeat is no second message.
const RETRY: &str = concat!(
    "\
WITH before AS (
    SELECT m.tenant_id, m.id, m.session_id FROM messages m
    JOIN lanes l ON l.tenant_id = m.tenant_id AND l.session_id = m.session_id
    WHERE m.tenant_id = $1 AND m.id = ANY($2) AND m.status = 'failed' AND m.direction = 'outbound' AND m.deleted_at IS NULL
      AND (m.expires_at IS NULL OR m.expires_at > $3) AND l.paused_because IS DISTINCT FROM 'session_deleted'
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), message AS (
    UPDATE messages m SET
        status = 'queued', error_code = NULL, error_message = NULL, failed_at = NULL, ack = NULL,
        attempt_state = 'none', worker_deaths = 0, doubts = 0, resends = 0, handed_over_at = NULL,
        requeued = false, held_because = NULL, attempts_before = m.attempts, updated_at = $3
    FROM before b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.*
), turn AS (
    UPDATE lanes l SET
        queued = l.queued + r.messages,
        ready_at = CASE WHEN l.in_flight IS NOT NULL OR l.paused_because IS NOT NULL THEN l.ready_at
                        ELSE least(l.ready_at, greatest(l.next_slot_at, $3)) END,
        updated_at = $3
    FROM (SELECT session_id, count(*)::int AS messages FROM before GROUP BY session_id) r
    WHERE l.tenant_id = $1 AND l.session_id = r.session_id
)
SELECT ",
    message_columns!(),
    " FROM message m ORDER BY m.seq"
);

/// Locks the lanes of the messages `ids`, sorted, before anything of the messages is looked at. What failed stays with its
/// session, so these are the lanes of its next turn.
async fn lock_lanes(conn: &mut TenantConn, ids: &[MessageId]) -> Result<(), DbError> {
    let tenant = conn.tenant();
    sql("SELECT FROM lanes l WHERE l.tenant_id = $1 AND l.session_id IN ( \
             SELECT m.session_id FROM messages m WHERE m.tenant_id = $1 AND m.id = ANY($2)) \
         ORDER BY l.session_id FOR UPDATE")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(ids)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}

/// Believes no longer that the numbers are not on WhatsApp for whose sake the messages `ids` failed.
async fn ask_again(conn: &mut TenantConn, now: DateTime<Utc>, ids: &[MessageId]) -> Result<(), DbError> {
    let tenant = conn.tenant();
    sql("UPDATE number_checks n SET expires_at = $3 FROM messages m \
         WHERE m.tenant_id = $1 AND m.id = ANY($2) AND m.status = 'failed' AND m.error_code = $4 \
           AND n.tenant_id = m.tenant_id AND n.phone = m.to_msisdn AND NOT n.registered AND n.expires_at > $3")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Timestamptz, _>(now)
    .bind::<Text, _>(FailureCode::RecipientNotOnWhatsapp.as_str())
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}

/// Puts those of the messages `ids` that failed back into the queue, each at its place, and answers them.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn retry_failed(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    ids: &[MessageId],
) -> Result<Vec<MessageRow>, DbError> {
    lock_lanes(conn, ids).await?;
    ask_again(conn, now, ids).await?;
    let rows: Vec<MessageRow> = sql(RETRY)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut **conn)
        .await?;
    changes::record_all(conn, chance, now, &rows, Status::Queued, RETRIED).await?;
    Ok(rows)
}

/// Puts the message `id` back into the queue, if it failed.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn retry(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    id: MessageId,
) -> Result<Retried, DbError> {
    if let Some(row) = retry_failed(conn, chance, now, &[id]).await?.pop() {
        return Ok(Retried::Done(Box::new(row)));
    }
    Ok(queries::find(conn, id).await?.map_or(Retried::NotFound, |row| Retried::NotNow(Box::new(row))))
}
