//! Reading what was told of a message after it was written, always as one tenant.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use utoipa::ToSchema;

use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{ContactId, MessageId};
use crate::messages::queries;

/// One text of a message.
#[derive(Debug, Serialize, ToSchema)]
pub struct Version {
    /// 0: as it was first written.
    #[schema(example = 1)]
    pub version: usize,
    /// Text or caption.
    pub body: Option<String>,
    /// Since when it was this.
    pub at: DateTime<Utc>,
}

/// A person's reaction to a message.
#[derive(Debug, Serialize, ToSchema, QueryableByName)]
pub struct Reaction {
    /// The emoji.
    #[diesel(sql_type = Text)]
    #[schema(example = "👍")]
    pub emoji: String,
    /// Whether the session's own account reacted.
    #[diesel(sql_type = diesel::sql_types::Bool)]
    pub from_me: bool,
    /// Who reacted, as a WhatsApp id; absent for the own account.
    #[diesel(sql_type = Nullable<Text>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "15550100001@c.us")]
    pub person: Option<String>,
    /// The contact, if there is one.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact_id: Option<ContactId>,
    /// When.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
}

/// A person's vote in a poll.
#[derive(Debug, Serialize, ToSchema, QueryableByName)]
pub struct Vote {
    /// What was chosen.
    #[diesel(sql_type = Array<Text>)]
    pub options: Vec<String>,
    /// Whether the session's own account voted.
    #[diesel(sql_type = diesel::sql_types::Bool)]
    pub from_me: bool,
    /// Who voted, as a WhatsApp id; absent for the own account.
    #[diesel(sql_type = Nullable<Text>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "15550100001@c.us")]
    pub person: Option<String>,
    /// The contact, if there is one.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact_id: Option<ContactId>,
    /// When.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Told {
    #[diesel(sql_type = Nullable<Text>)]
    body: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// The texts that the message `id` has had, oldest first; `None` if this tenant has no such message.
///
/// # Errors
/// When the database does not answer.
pub async fn versions(conn: &mut TenantConn, id: MessageId) -> Result<Option<Vec<Version>>, DbError> {
    let texts: Vec<Told> = sql("SELECT body, at FROM ( \
            SELECT CASE WHEN m.edits = 0 THEN m.body ELSE m.original_body END AS body, coalesce(m.occurred_at, m.created_at) AS at, \
                   0 AS later, '-infinity'::timestamptz AS reported_at, '' AS edit_id \
            FROM messages m WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL \
            UNION ALL \
            SELECT e.body, e.edited_at, 1, e.reported_at, e.edit_id \
            FROM messages m JOIN message_edits e USING (tenant_id, session_id, waha_message_id) \
            WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL) t ORDER BY later, at, reported_at, edit_id")
    .bind::<SqlUuid, _>(conn.tenant())
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    if texts.is_empty() {
        return Ok(None);
    }
    let numbered = texts.into_iter().enumerate().map(|(version, Told { body, at })| Version { version, body, at });
    Ok(Some(numbered.collect()))
}

/// The reactions to the message `id`, latest first; `None` if this tenant has no such message.
///
/// # Errors
/// When the database does not answer.
pub async fn reactions(conn: &mut TenantConn, id: MessageId) -> Result<Option<Vec<Reaction>>, DbError> {
    if queries::find(conn, id).await?.is_none() {
        return Ok(None);
    }
    Ok(Some(
        sql("SELECT r.emoji, r.person = '' AS from_me, nullif(r.person, '') AS person, c.contact_id, r.reacted_at AS at \
             FROM messages m JOIN message_reactions r USING (tenant_id, session_id, waha_message_id) \
             LEFT JOIN contact_ids c ON c.tenant_id = r.tenant_id AND c.key = r.person \
             WHERE m.tenant_id = $1 AND m.id = $2 AND r.emoji <> '' ORDER BY r.reacted_at DESC, r.person")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?,
    ))
}

/// The votes in the poll `id`, latest first; `None` if this tenant has no such message.
///
/// # Errors
/// When the database does not answer.
pub async fn votes(conn: &mut TenantConn, id: MessageId) -> Result<Option<Vec<Vote>>, DbError> {
    if queries::find(conn, id).await?.is_none() {
        return Ok(None);
    }
    Ok(Some(
        sql("SELECT v.options, v.person = '' AS from_me, nullif(v.person, '') AS person, c.contact_id, v.voted_at AS at \
             FROM messages m JOIN poll_votes v USING (tenant_id, session_id, waha_message_id) \
             LEFT JOIN contact_ids c ON c.tenant_id = v.tenant_id AND c.key = v.person \
             WHERE m.tenant_id = $1 AND m.id = $2 AND v.options <> '{}' ORDER BY v.voted_at DESC, v.person")
        .bind::<SqlUuid, _>(conn.tenant())
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?,
    ))
}
