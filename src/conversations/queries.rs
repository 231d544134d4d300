//! Reading conversations, always as one tenant; and what a tenant changes of them.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::view::{Conversation, Participant};
use crate::app::App;
use crate::contacts;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{ContactId, ConversationId, SessionId, TenantId};
use crate::domain::person;
use crate::messages::row::{MessageRow, message_columns};

/// Which conversations to list; what is absent does not narrow.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this session.
    pub session_id: Option<SessionId>,
    /// `direct`, `group`, `channel` or `broadcast`.
    pub kind: Option<String>,
    /// With something unread in them, or without.
    pub unread: Option<bool>,
    /// With this contact.
    pub contact_id: Option<ContactId>,
    /// Active, or put aside.
    pub is_active: Option<bool>,
}

macro_rules! select {
    () => {
        "SELECT c.id, c.tenant_id, c.session_id, c.kind, c.contact_id, \
                CASE WHEN p.id IS NOT NULL THEN jsonb_build_object('id', p.id, 'name', p.name, 'push_name', p.push_name, \
                                                                   'phone', p.phone, 'lid', p.lid) END AS contact, \
                c.chat_id, coalesce(p.name, p.push_name, g.subject, c.name) AS name, c.last_message_id, c.last_message_at, \
                c.message_count, c.unread_count, c.last_read_at, c.is_active, c.version, c.created_at, c.updated_at \
         FROM conversations c LEFT JOIN contacts p ON p.tenant_id = c.tenant_id AND p.id = c.contact_id \
         LEFT JOIN group_subjects g ON g.tenant_id = c.tenant_id AND g.session_id = c.session_id AND g.chat_id = c.chat_id \
         WHERE c.tenant_id = $1 AND c.deleted_at IS NULL"
    };
}

/// The text of [`list`] with these filters, and with or without a place to go on from.
#[must_use]
pub fn list_text(filter: &Filter, after: bool) -> String {
    let mut text = select!().to_owned();
    let mut place = 1;
    let mut next = || {
        place += 1;
        place
    };
    for (given, column) in [
        (filter.session_id.is_some(), "session_id"),
        (filter.contact_id.is_some(), "contact_id"),
        (filter.kind.is_some(), "kind"),
        (filter.is_active.is_some(), "is_active"),
    ] {
        if given {
            text.push_str(&format!(" AND c.{column} = ${}", next()));
        }
    }
    match filter.unread {
        Some(true) => text.push_str(" AND c.unread_count > 0"),
        Some(false) => text.push_str(" AND c.unread_count = 0"),
        None => {}
    }
    if after {
        text.push_str(&format!(" AND (c.last_message_at, c.id) < (${}, ${})", next(), next()));
    }
    text.push_str(&format!(" ORDER BY c.last_message_at DESC, c.id DESC LIMIT ${}", next()));
    text
}

/// Conversations that pass `filter`, those with the latest messages first, from behind `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    conn: &mut TenantConn,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Conversation>, DbError> {
    // The text varies with the filters in use, so that each combination gets the plan of its index.
    let tenant = conn.tenant();
    let mut query = diesel::sql_query(list_text(filter, after.is_some())).into_boxed::<Pg>().bind::<SqlUuid, _>(tenant);
    if let Some(session) = filter.session_id {
        query = query.bind::<SqlUuid, _>(session);
    }
    if let Some(contact) = filter.contact_id {
        query = query.bind::<SqlUuid, _>(contact);
    }
    if let Some(kind) = &filter.kind {
        query = query.bind::<Text, _>(kind.clone());
    }
    if let Some(active) = filter.is_active {
        query = query.bind::<Bool, _>(active);
    }
    if let Some((at, id)) = after {
        query = query.bind::<Timestamptz, _>(at).bind::<SqlUuid, _>(id);
    }
    Ok(query.bind::<BigInt, _>(limit).load(&mut **conn).await?)
}

/// The conversation `id`, if this tenant has it; of one that became part of another that other one.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut TenantConn, id: ConversationId) -> Result<Option<Conversation>, DbError> {
    #[derive(QueryableByName)]
    struct Gone {
        #[diesel(sql_type = SqlUuid)]
        session_id: SessionId,
        #[diesel(sql_type = SqlUuid)]
        contact_id: ContactId,
    }
    let tenant = conn.tenant();
    let found: Vec<Conversation> = sql(concat!(select!(), " AND c.id = $2"))
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(id)
        .prepared()
        .load(&mut **conn)
        .await?;
    if let Some(found) = found.into_iter().next() {
        return Ok(Some(found));
    }
    let gone: Vec<Gone> = sql("SELECT session_id, contact_id FROM conversations \
         WHERE tenant_id = $1 AND id = $2 AND deleted_at IS NOT NULL AND contact_id IS NOT NULL")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .prepared()
    .load(&mut **conn)
    .await?;
    let Some(gone) = gone.into_iter().next() else { return Ok(None) };
    let Some(contact) = contacts::current(conn, tenant, gone.contact_id).await? else { return Ok(None) };
    let found: Vec<Conversation> = sql(concat!(select!(), " AND c.session_id = $2 AND c.contact_id = $3"))
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(gone.session_id)
        .bind::<SqlUuid, _>(contact)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(found.into_iter().next())
}

/// The chats that the messages of `conversation` may stand in.
///
/// # Errors
/// When the database does not answer.
pub async fn chats(conn: &mut TenantConn, conversation: &Conversation) -> Result<Vec<String>, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        key: String,
    }
    let Some(contact) = conversation.contact_id else { return Ok(vec![conversation.chat_id.clone()]) };
    let tenant = conn.tenant();
    let rows: Vec<Row> = sql("SELECT key FROM contact_ids WHERE tenant_id = $1 AND contact_id = $2 ORDER BY key")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(contact)
        .prepared()
        .load(&mut **conn)
        .await?;
    Ok(rows.iter().flat_map(|row| person::chat_ids(&row.key)).collect())
}

macro_rules! messages {
    ($after:literal) => {
        concat!(
            "SELECT ",
            message_columns!(),
            " FROM unnest($3) AS w (chat_id) CROSS JOIN LATERAL ( \
                 SELECT o.* FROM messages o \
                 WHERE o.tenant_id = $1 AND o.session_id = $2 AND o.chat_id = w.chat_id AND o.deleted_at IS NULL",
            $after,
            "    ORDER BY (CASE WHEN o.occurred_at IS NULL THEN o.created_at ELSE o.occurred_at END) DESC, o.id DESC LIMIT $4) m \
              ORDER BY (CASE WHEN m.occurred_at IS NULL THEN m.created_at ELSE m.occurred_at END) DESC, m.id DESC LIMIT $4"
        )
    };
}

/// The messages of some chats of a session, newest first. Each chat is walked by itself along its index, and no further than to
/// where the page may end.
pub const MESSAGES: &str = messages!("");
/// As [`MESSAGES`], from behind a place on.
pub const MESSAGES_AFTER: &str =
    messages!(" AND ((CASE WHEN o.occurred_at IS NULL THEN o.created_at ELSE o.occurred_at END), o.id) < ($5, $6)");

/// When a message was written: where it stands in its conversation.
#[must_use]
pub fn moment(message: &MessageRow) -> DateTime<Utc> {
    message.occurred_at.unwrap_or(message.created_at)
}

/// The messages of `conversation`, newest first, from behind `after` on.
///
/// # Errors
/// When the database does not answer.
pub async fn messages(
    conn: &mut TenantConn,
    conversation: &Conversation,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<MessageRow>, DbError> {
    let tenant = conn.tenant();
    let chats = chats(conn, conversation).await?;
    let query = sql(if after.is_some() { MESSAGES_AFTER } else { MESSAGES })
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(conversation.session_id)
        .bind::<Array<Text>, _>(chats)
        .bind::<BigInt, _>(limit);
    Ok(match after {
        None => query.prepared().load(&mut **conn).await?,
        Some((at, id)) => query.bind::<Timestamptz, _>(at).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?,
    })
}

/// Who is or was in the group of `conversation`.
///
/// # Errors
/// When the database does not answer.
pub async fn participants(conn: &mut TenantConn, conversation: &Conversation) -> Result<Vec<Participant>, DbError> {
    if conversation.contact_id.is_some() {
        return Ok(Vec::new());
    }
    let tenant = conn.tenant();
    Ok(sql("SELECT p.wa_id, i.contact_id, coalesce(c.name, c.push_name) AS name, c.phone, p.role, p.left_at \
         FROM conversation_participants p \
         LEFT JOIN contact_ids i ON i.tenant_id = p.tenant_id AND i.key = p.person \
         LEFT JOIN contacts c ON c.tenant_id = i.tenant_id AND c.id = i.contact_id \
         WHERE p.tenant_id = $1 AND p.session_id = $2 AND p.chat_id = $3 ORDER BY p.left_at IS NOT NULL, p.person LIMIT 5000")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(conversation.session_id)
    .bind::<Text, _>(&conversation.chat_id)
    .prepared()
    .load(&mut **conn)
    .await?)
}

/// Makes the conversation `id` active, or puts it aside.
///
/// # Errors
/// When the database does not answer.
pub async fn set_active(
    conn: &mut TenantConn,
    now: DateTime<Utc>,
    id: ConversationId,
    active: bool,
) -> Result<(), DbError> {
    let tenant = conn.tenant();
    sql("UPDATE conversations SET is_active = $3, version = version + 1, updated_at = $4 \
         WHERE tenant_id = $1 AND id = $2 AND is_active <> $3")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(id)
    .bind::<Bool, _>(active)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(&mut **conn)
    .await?;
    Ok(())
}

/// The status of a session; `deleted` when it is.
pub(super) async fn session_status(app: &App, tenant: TenantId, session: SessionId) -> Result<String, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<Text>)]
        status: Option<String>,
    }
    let rows: Vec<Row> = app
        .db
        .tenant(tenant, async move |conn: &mut TenantConn| {
            let rows = sql("SELECT CASE WHEN deleted_at IS NULL AND desired <> 'deleted' THEN status END AS status \
                 FROM waha_sessions WHERE tenant_id = $1 AND id = $2")
            .bind::<SqlUuid, _>(tenant)
            .bind::<SqlUuid, _>(session)
            .prepared()
            .load(&mut **conn)
            .await?;
            Ok::<_, DbError>(rows)
        })
        .await?;
    Ok(rows.into_iter().next().and_then(|row| row.status).unwrap_or_else(|| "deleted".to_owned()))
}
