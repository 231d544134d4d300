//! The record of every change: its transition and, where a tenant may care, its event, in the transaction of the change.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::EventId;
use crate::domain::status::Status;
use crate::events::log::{self, NewEvent};
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
    let tenants: Vec<_> = changes.iter().map(|change| change.message.tenant_id).collect();
    let messages: Vec<_> = changes.iter().map(|change| change.message.id).collect();
    let statuses: Vec<_> = changes.iter().map(|change| change.status.as_str()).collect();
    let times: Vec<_> = changes.iter().map(|change| change.at).collect();
    let causes: Vec<_> = changes.iter().map(|change| change.cause.as_str()).collect();
    let attempts: Vec<_> = changes.iter().map(|change| change.attempt).collect();
    sql("INSERT INTO message_transitions (tenant_id, message_id, status, at, cause, attempt) \
         SELECT t, m, s, a, c, n FROM unnest($1, $2, $3, $4, $5, $6) WITH ORDINALITY AS i (t, m, s, a, c, n, o) ORDER BY o")
    .bind::<Array<SqlUuid>, _>(tenants)
    .bind::<Array<SqlUuid>, _>(messages)
    .bind::<Array<Text>, _>(statuses)
    .bind::<Array<Timestamptz>, _>(times)
    .bind::<Array<Text>, _>(causes)
    .bind::<Array<Nullable<Integer>>, _>(attempts)
    .prepared()
    .execute(conn)
    .await?;
    let events: Vec<NewEvent> = changes
        .iter()
        .filter_map(|change| {
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
        })
        .collect();
    if events.is_empty() { Ok(()) } else { log::append(conn, &events).await }
}
