//! Withdrawing what waits: cancel and delete.
//!
//! Whoever takes a message out of its lane holds the lane, as the claim does: of a cancellation and a claim at the same
//! moment one comes first, and the other finds its work done or its chance gone.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::MessageId;
use crate::domain::status::Status;
use crate::messages::queries;
use crate::messages::row::{MessageRow, message_columns};
use crate::messages::settle::{self, Waiting};

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

// The lanes are not known before the messages are looked at; `settle` leaves alone what has gone to another one since.
const WAITING: &str = "SELECT tenant_id, id, session_id FROM messages \
     WHERE tenant_id = $1 AND id = ANY($2) AND status IN ('scheduled', 'queued') AND deleted_at IS NULL";

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
    let waiting: Vec<Waiting> = sql(WAITING)
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<Array<SqlUuid>, _>(ids)
        .prepared()
        .load(&mut **conn)
        .await?;
    settle::settle(conn, chance, now, &waiting, Status::Cancelled, BY_TENANT).await
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
        Some(row) if waits(&row) => return Err(moved()),
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
         WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL AND m.status NOT IN ('scheduled', 'queued', 'sending') RETURNING ",
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
    match queries::find(conn, id).await? {
        None => Ok(Withdrawn::NotFound),
        Some(row) if waits(&row) => Err(moved()),
        Some(row) => Ok(Withdrawn::TooLate(Box::new(row))),
    }
}

fn waits(row: &MessageRow) -> bool {
    matches!(row.status.parse(), Ok(Status::Scheduled | Status::Queued))
}

/// It went to another session of its pool at this very moment.
fn moved() -> DbError {
    DbError::Contended("the message has just moved to another session".to_owned())
}
