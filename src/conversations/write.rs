//! Conversations as the database keeps them, and how they are written.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{ContactId, ConversationId, MessageId, SessionId, TenantId};

/// A conversation.
#[derive(Clone, QueryableByName)]
pub(super) struct Row {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub id: ConversationId,
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub contact_id: Option<ContactId>,
    #[diesel(sql_type = Text)]
    pub chat_id: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub last_message_id: Option<MessageId>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_message_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_waha_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    pub message_count: i64,
    #[diesel(sql_type = Integer)]
    pub unread_count: i32,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_read_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub is_active: bool,
}

impl Row {
    /// Where the last message stands; later ones are greater.
    pub(super) fn last(&self) -> (Option<DateTime<Utc>>, &str) {
        (self.last_message_at, self.last_waha_id.as_deref().unwrap_or_default())
    }

    /// Whether everything that came in is read.
    pub(super) fn all_read(&self) -> bool {
        self.last_read_at.is_some() && self.last_read_at >= self.last_message_at
    }
}

macro_rules! conversation_columns {
    () => {
        "c.tenant_id, c.id, c.session_id, c.kind, c.contact_id, c.chat_id, c.last_message_id, c.last_message_at, c.last_waha_id, \
         c.message_count, c.unread_count, c.last_read_at, c.is_active"
    };
}

/// The conversations of these sessions with these people, and in these chats of groups and the like.
pub(super) async fn find(
    conn: &mut AsyncPgConnection,
    people: &[(SessionId, ContactId)],
    chats: &[(SessionId, &str)],
) -> Result<Vec<Row>, DbError> {
    Ok(sql(concat!(
        "SELECT ",
        conversation_columns!(),
        " FROM unnest($1, $2) AS w (session_id, contact_id) CROSS JOIN LATERAL ( \
              SELECT * FROM conversations c \
              WHERE c.session_id = w.session_id AND c.contact_id = w.contact_id AND c.deleted_at IS NULL OFFSET 0) c \
          UNION ALL SELECT ",
        conversation_columns!(),
        " FROM unnest($3, $4) AS w (session_id, chat_id) CROSS JOIN LATERAL ( \
              SELECT * FROM conversations c \
              WHERE c.session_id = w.session_id AND c.chat_id = w.chat_id AND c.contact_id IS NULL AND c.deleted_at IS NULL OFFSET 0) c"
    ))
    .bind::<Array<SqlUuid>, _>(people.iter().map(|(session, _)| *session).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(people.iter().map(|(_, contact)| *contact).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(chats.iter().map(|(session, _)| *session).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(chats.iter().map(|(_, chat)| *chat).collect::<Vec<_>>())
    .prepared()
    .load(conn)
    .await?)
}

/// The live conversation `id`.
pub(super) async fn one(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    id: ConversationId,
) -> Result<Option<Row>, DbError> {
    let rows: Vec<Row> = sql(concat!(
        "SELECT ",
        conversation_columns!(),
        " FROM conversations c WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL"
    ))
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(conn)
    .await?;
    Ok(rows.into_iter().next())
}

/// The live conversations with any of `contacts`.
pub(super) async fn with_contacts(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    contacts: &[ContactId],
) -> Result<Vec<Row>, DbError> {
    Ok(sql(concat!(
        "SELECT ",
        conversation_columns!(),
        " FROM conversations c WHERE c.tenant_id = $1 AND c.contact_id = ANY($2) AND c.deleted_at IS NULL ORDER BY c.id"
    ))
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(contacts)
    .prepared()
    .load(conn)
    .await?)
}

const INSERT: &str = "\
INSERT INTO conversations (tenant_id, id, session_id, kind, contact_id, chat_id, last_message_id, last_message_at, last_waha_id,
                           message_count, unread_count, last_read_at, is_active, created_at, updated_at)
SELECT i.*, $14, $14 FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) AS i";

// In the order of the columns of INSERT, so that both take the same rows. The version is for what a tenant changes.
const UPDATE: &str = "\
UPDATE conversations c SET
    chat_id = i.chat_id, last_message_id = i.last_message_id, last_message_at = i.last_message_at, last_waha_id = i.last_waha_id,
    message_count = i.message_count, unread_count = i.unread_count, last_read_at = i.last_read_at, is_active = i.is_active,
    contact_id = i.contact_id, version = c.version + (c.contact_id IS DISTINCT FROM i.contact_id OR c.is_active <> i.is_active)::int,
    deleted_at = NULL, updated_at = $14
FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) AS i (
    tenant_id, id, session_id, kind, contact_id, chat_id, last_message_id, last_message_at, last_waha_id, message_count, unread_count,
    last_read_at, is_active)
WHERE c.tenant_id = i.tenant_id AND c.id = i.id";

pub(super) async fn insert(conn: &mut AsyncPgConnection, now: DateTime<Utc>, rows: &[Row]) -> Result<(), DbError> {
    run(conn, now, INSERT, rows).await
}

pub(super) async fn update(conn: &mut AsyncPgConnection, now: DateTime<Utc>, rows: &[Row]) -> Result<(), DbError> {
    run(conn, now, UPDATE, rows).await
}

async fn run(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    text: &'static str,
    rows: &[Row],
) -> Result<(), DbError> {
    fn column<'a, T>(rows: &'a [Row], of: impl Fn(&'a Row) -> T) -> Vec<T> {
        rows.iter().map(of).collect()
    }
    if rows.is_empty() {
        return Ok(());
    }
    sql(text)
        .bind::<Array<SqlUuid>, _>(column(rows, |row| row.tenant_id))
        .bind::<Array<SqlUuid>, _>(column(rows, |row| row.id))
        .bind::<Array<SqlUuid>, _>(column(rows, |row| row.session_id))
        .bind::<Array<Text>, _>(column(rows, |row| row.kind.as_str()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(rows, |row| row.contact_id))
        .bind::<Array<Text>, _>(column(rows, |row| row.chat_id.as_str()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(rows, |row| row.last_message_id))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.last_message_at))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.last_waha_id.as_deref()))
        .bind::<Array<BigInt>, _>(column(rows, |row| row.message_count))
        .bind::<Array<Integer>, _>(column(rows, |row| row.unread_count))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.last_read_at))
        .bind::<Array<Bool>, _>(column(rows, |row| row.is_active))
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

/// Puts conversations away that others took the place of.
pub(super) async fn delete(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    ids: &[ConversationId],
) -> Result<(), DbError> {
    if ids.is_empty() {
        return Ok(());
    }
    sql("UPDATE conversations SET deleted_at = $3, updated_at = $3, version = version + 1 WHERE tenant_id = $1 AND id = ANY($2)")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}
