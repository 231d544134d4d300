//! Withdrawing what waits: cancel and delete.
//!
//! Whoever takes a message out of its lane holds the lane, as the claim does: of a cancellation and a claim at the same
//! moment one comes first, and the other finds its work done or its chance gone.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{MessageId, SessionId};
use crate::domain::status::Status;
use crate::messages::changes::{self, Change};
use crate::messages::queries;
use crate::messages::row::{MessageRow, message_columns};

/// The cause of a step that the tenant asked for.
const BY_TENANT: &str = "by the tenant";

/// What a request to withdraw one message led to.
#[derive(Debug)]
pub enum Withdrawn {
    /// It will not be sent.
    Done(Box<MessageRow>),
    /// Too late: it is being sent, or has come to another end.
    TooLate(Box<MessageRow>),
    /// This tenant has no such message.
    NotFound,
}

#[derive(QueryableByName)]
struct Locked {
    #[diesel(sql_type = SqlUuid)]
    #[expect(dead_code, reason = "the lock is what matters")]
    session_id: SessionId,
}

/// Locks the lanes of the messages `ids`, sorted, before anything of the messages is looked at.
pub(super) async fn lock_lanes(conn: &mut TenantConn, ids: &[MessageId]) -> Result<(), DbError> {
    let tenant = conn.tenant();
    let _locked: Vec<Locked> = sql("SELECT l.session_id FROM lanes l WHERE l.tenant_id = $1 AND l.session_id IN ( \
             SELECT m.session_id FROM messages m WHERE m.tenant_id = $1 AND m.id = ANY($2)) \
         ORDER BY l.session_id FOR UPDATE")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(ids)
    .prepared()
    .load(&mut **conn)
    .await?;
    Ok(())
}

// A statement of its own, so that its snapshot is younger than the locks. What is held waits outside of the queue's count, as
// what is scheduled does.
const CANCEL: &str = concat!(
    "\
WITH before AS (
    SELECT m.tenant_id, m.id, m.session_id, m.status = 'queued' AND m.held_because IS NULL AS counted FROM messages m
    WHERE m.tenant_id = $1 AND m.id = ANY($2) AND m.status IN ('scheduled', 'queued') AND m.deleted_at IS NULL
    ORDER BY m.tenant_id, m.id FOR UPDATE
), message AS (
    UPDATE messages m SET status = 'cancelled', held_because = NULL, updated_at = $3
    FROM before b WHERE m.tenant_id = b.tenant_id AND m.id = b.id
    RETURNING m.*
), turn AS (
    UPDATE lanes l SET queued = greatest(l.queued - c.messages, 0), updated_at = $3
    FROM (SELECT session_id, count(*)::int AS messages FROM before WHERE counted GROUP BY session_id) c
    WHERE l.tenant_id = $1 AND l.session_id = c.session_id
)
SELECT ",
    message_columns!(),
    " FROM message m ORDER BY m.seq"
);

/// Cancels those of the messages `ids` that still wait, and answers them.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn cancel_waiting(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    ids: &[MessageId],
) -> Result<Vec<MessageRow>, DbError> {
    lock_lanes(conn, ids).await?;
    let rows: Vec<MessageRow> = sql(CANCEL)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut **conn)
        .await?;
    let changes: Vec<Change<'_>> = rows
        .iter()
        .map(|message| Change {
            message,
            status: Status::Cancelled,
            at: now,
            cause: BY_TENANT.to_owned(),
            attempt: None,
        })
        .collect();
    changes::record(conn, chance, &changes).await?;
    Ok(rows)
}

/// Cancels the message `id`. One that is cancelled already stays so.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn cancel(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    id: MessageId,
) -> Result<Withdrawn, DbError> {
    if let Some(row) = cancel_waiting(conn, chance, now, &[id]).await?.pop() {
        return Ok(Withdrawn::Done(Box::new(row)));
    }
    Ok(match queries::find(conn, id).await? {
        None => Withdrawn::NotFound,
        Some(row) if row.status == Status::Cancelled.as_str() => Withdrawn::Done(Box::new(row)),
        Some(row) => Withdrawn::TooLate(Box::new(row)),
    })
}

/// Hides the message `id` from the tenant's lists for good; one that waits is cancelled first. One that is being sent right
/// now stays until it is known what became of it.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn delete(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    id: MessageId,
) -> Result<Withdrawn, DbError> {
    cancel_waiting(conn, chance, now, &[id]).await?;
    let rows: Vec<MessageRow> = sql(concat!(
        "UPDATE messages m SET deleted_at = $3, updated_at = $3 \
         WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL AND m.status <> 'sending' RETURNING ",
        message_columns!()
    ))
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .load(&mut **conn)
    .await?;
    if let Some(row) = rows.into_iter().next() {
        return Ok(Withdrawn::Done(Box::new(row)));
    }
    Ok(queries::find(conn, id).await?.map_or(Withdrawn::NotFound, |row| Withdrawn::TooLate(Box::new(row))))
}
