//! The record of every change: its transition and, where a tenant may care, its event, in the transaction of the change.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::EventId;
use crate::domain::status::Status;
use crate::events::log::NewEvent;
use crate::messages::row::MessageRow;
use crate::messages::view::Message;

/// One step of one message.
#[derive(Debug)]
pub struct Change<'a> {
    /// The message after the change.
    pub message: &'a MessageRow,
    /// The status it has now.
    pub status: Status,
    /// When.
    pub at: DateTime<Utc>,
    /// Why, in a few words without personal data: `accepted`, `ack 2`, `attempt 1 handed over`.
    pub cause: String,
    /// The attempt that caused it.
    pub attempt: Option<i32>,
}

/// Records `changes`, in their order.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn record(conn: &mut AsyncPgConnection, chance: &Chance, changes: &[Change<'_>]) -> Result<(), DbError> {
    if changes.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(steps: &'a [(&'a Change<'a>, Option<NewEvent>)], of: impl Fn(&'a Change<'a>) -> T) -> Vec<T> {
        steps.iter().map(|(change, _)| of(change)).collect()
    }
    fn event<'a, T>(steps: &'a [(&'a Change<'a>, Option<NewEvent>)], of: impl Fn(&'a NewEvent) -> T) -> Vec<Option<T>> {
        steps.iter().map(|(_, event)| event.as_ref().map(&of)).collect()
    }
    let steps: Vec<(&Change<'_>, Option<NewEvent>)> =
        changes.iter().map(|change| (change, event_of(change, chance))).collect();
    sql(RECORD)
        .bind::<Array<SqlUuid>, _>(column(&steps, |change| change.message.tenant_id))
        .bind::<Array<SqlUuid>, _>(column(&steps, |change| change.message.id))
        .bind::<Array<SqlUuid>, _>(column(&steps, |change| change.message.session_id))
        .bind::<Array<Text>, _>(column(&steps, |change| change.status.as_str()))
        .bind::<Array<Timestamptz>, _>(column(&steps, |change| change.at))
        .bind::<Array<Text>, _>(column(&steps, |change| change.cause.as_str()))
        .bind::<Array<Nullable<Integer>>, _>(column(&steps, |change| change.attempt))
        .bind::<Array<Nullable<SqlUuid>>, _>(event(&steps, |event| event.id))
        .bind::<Array<Nullable<Text>>, _>(event(&steps, |event| event.kind))
        .bind::<Array<Nullable<Text>>, _>(event(&steps, |event| event.data.as_str()))
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

/// Records that all of `rows` took the same step at the same moment, which no attempt caused.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn record_all(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    at: DateTime<Utc>,
    rows: &[MessageRow],
    status: Status,
    cause: &str,
) -> Result<(), DbError> {
    let changes: Vec<Change<'_>> =
        rows.iter().map(|message| Change { message, status, at, cause: cause.to_owned(), attempt: None }).collect();
    record(conn, chance, &changes).await
}

// Both in one statement: what is recorded of a step costs as many round trips whether it has an event or not.
const RECORD: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) WITH ORDINALITY AS i (
        tenant_id, message_id, session_id, status, at, cause, attempt, event_id, kind, data, position)
), transition AS (
    INSERT INTO message_transitions (tenant_id, message_id, status, at, cause, attempt)
    SELECT tenant_id, message_id, status, at, cause, attempt FROM input ORDER BY position
)
INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
SELECT tenant_id, event_id, kind, at, session_id, message_id, data FROM input WHERE event_id IS NOT NULL ORDER BY position";

/// The event that tells a tenant of `change`, where there is one.
fn event_of(change: &Change<'_>, chance: &Chance) -> Option<NewEvent> {
    let kind = change.status.event_type()?;
    let view = Message { status: change.status.as_str(), ..Message::from(change.message) };
    Some(NewEvent {
        tenant: change.message.tenant_id,
        id: EventId::fresh(change.at, chance),
        kind,
        at: change.at,
        session_id: Some(change.message.session_id),
        message_id: Some(change.message.id),
        data: view.to_json(),
    })
}
