//! Appending to the event log.
use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{EventId, MessageId, SessionId, TenantId};

/// An event to be written.
#[derive(Clone)]
#[expect(missing_docs, reason = "stub")]
pub struct NewEvent {
    pub tenant: TenantId,
    pub id: EventId,
    pub kind: &'static str,
    pub at: DateTime<Utc>,
    pub session_id: Option<SessionId>,
    pub message_id: Option<MessageId>,
    pub data: String,
}

/// Appends.
pub async fn append(conn: &mut AsyncPgConnection, events: &[NewEvent]) -> Result<(), DbError> {
    sql("INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data) \
         SELECT t, e, k, a, s, m, d FROM unnest($1, $2, $3, $4, $5, $6, $7) WITH ORDINALITY AS i (t, e, k, a, s, m, d, o) ORDER BY o")
    .bind::<Array<SqlUuid>, _>(events.iter().map(|event| event.tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(events.iter().map(|event| event.id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(events.iter().map(|event| event.kind).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(events.iter().map(|event| event.at).collect::<Vec<_>>())
    .bind::<Array<Nullable<SqlUuid>>, _>(events.iter().map(|event| event.session_id).collect::<Vec<_>>())
    .bind::<Array<Nullable<SqlUuid>>, _>(events.iter().map(|event| event.message_id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(events.iter().map(|event| event.data.as_str()).collect::<Vec<_>>())
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
