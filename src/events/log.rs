//! Writing events, in the transaction of the change that they tell of.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{EventId, MessageId, SessionId, TenantId};

/// An event to be written.
#[derive(Clone)]
pub struct NewEvent {
    /// Who is told.
    pub tenant: TenantId,
    /// A fresh id, made when the event is written (its moment may be later than `at`, never earlier).
    pub id: EventId,
    /// One of [`super::types::TYPES`].
    pub kind: &'static str,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The session it speaks of.
    pub session_id: Option<SessionId>,
    /// The message it speaks of.
    pub message_id: Option<MessageId>,
    /// The resource as the API shows it: JSON, rendered once.
    pub data: String,
}

// `data` may hold message text and numbers, which belong in no log.
impl std::fmt::Debug for NewEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewEvent")
            .field("tenant", &self.tenant)
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// Writes `events`, in their order, with one statement. Ring `app.wake.events` after the commit.
///
/// # Errors
/// When the database refuses; the transaction is then lost.
pub async fn append(conn: &mut AsyncPgConnection, events: &[NewEvent]) -> Result<(), DbError> {
    write(conn, events, APPEND).await
}

/// The same for events whose ids follow from what they tell: one that is there already is not written again.
///
/// # Errors
/// When the database refuses; the transaction is then lost.
pub async fn append_once(conn: &mut AsyncPgConnection, events: &[NewEvent]) -> Result<(), DbError> {
    write(conn, events, APPEND_ONCE).await
}

macro_rules! append {
    ($rest:literal) => {
        concat!(
            "INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data) \
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::uuid[], $6::uuid[], $7::text[])",
            $rest
        )
    };
}
const APPEND: &str = append!("");
const APPEND_ONCE: &str = append!(" ON CONFLICT DO NOTHING");

async fn write(conn: &mut AsyncPgConnection, events: &[NewEvent], text: &'static str) -> Result<(), DbError> {
    if events.is_empty() {
        return Ok(());
    }
    sql(text)
        .bind::<Array<Uuid>, _>(events.iter().map(|event| event.tenant).collect::<Vec<_>>())
        .bind::<Array<Uuid>, _>(events.iter().map(|event| event.id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(events.iter().map(|event| event.kind).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(events.iter().map(|event| event.at).collect::<Vec<_>>())
        .bind::<Array<Nullable<Uuid>>, _>(events.iter().map(|event| event.session_id).collect::<Vec<_>>())
        .bind::<Array<Nullable<Uuid>>, _>(events.iter().map(|event| event.message_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(events.iter().map(|event| event.data.as_str()).collect::<Vec<_>>())
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}
