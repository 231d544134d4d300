//! What is read: on the phone, and by way of the API.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::count;
use super::queries;
use super::view::Conversation;
use super::write::{self, Row};
use crate::app::App;
use crate::contacts;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::ids::{ContactId, ConversationId, MessageId, SessionId, TenantId};
use crate::domain::person;
use crate::messages::row::whatsapp_id;
use crate::sessions::directory::DirectoryError;
use crate::waha::CallError;

/// How long WAHA's answers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Notes that what had come into these chats until these moments is read. A moment that is older than what is known changes nothing,
/// and a chat of which the projection does not know yet is passed over: it learns from the messages' own `read_at`. Takes the
/// tenants' locks; for the system role.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn note_read(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    reads: &[(TenantId, SessionId, &str, DateTime<Utc>)],
) -> Result<(), DbError> {
    #[derive(QueryableByName)]
    struct Known {
        #[diesel(sql_type = SqlUuid)]
        tenant_id: TenantId,
        #[diesel(sql_type = Text)]
        key: String,
        #[diesel(sql_type = SqlUuid)]
        contact_id: ContactId,
    }
    if reads.is_empty() {
        return Ok(());
    }
    contacts::lock_all(conn, reads.iter().map(|(tenant, ..)| *tenant)).await?;
    let keys: Vec<(TenantId, String)> =
        reads.iter().filter_map(|(tenant, _, chat, _)| Some((*tenant, person::key(chat)?))).collect();
    let known: Vec<Known> =
        sql("SELECT DISTINCT i.tenant_id, i.key, i.contact_id FROM unnest($1, $2) AS w (tenant_id, key) \
         CROSS JOIN LATERAL (SELECT * FROM contact_ids i WHERE i.tenant_id = w.tenant_id AND i.key = w.key OFFSET 0) i")
        .bind::<Array<SqlUuid>, _>(keys.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
        .prepared()
        .load(conn)
        .await?;
    let known: BTreeMap<(TenantId, String), ContactId> =
        known.into_iter().map(|row| ((row.tenant_id, row.key), row.contact_id)).collect();
    let (mut people, mut chats) = (BTreeMap::new(), BTreeMap::new());
    for (tenant, session, chat, moment) in reads {
        let until = match person::key(chat) {
            Some(key) => {
                let Some(contact) = known.get(&(*tenant, key)) else { continue };
                people.entry((*session, *contact)).or_insert(*moment)
            }
            None => chats.entry((*session, *chat)).or_insert(*moment),
        };
        *until = (*until).max(*moment);
    }
    let rows =
        write::find(conn, &people.keys().copied().collect::<Vec<_>>(), &chats.keys().copied().collect::<Vec<_>>())
            .await?;
    let read = rows.into_iter().filter_map(|row| {
        let until = match row.contact_id {
            Some(contact) => people.get(&(row.session_id, contact)),
            None => chats.get(&(row.session_id, row.chat_id.as_str())),
        };
        Some((row.clone(), *until?))
    });
    let read: Vec<(Row, DateTime<Utc>)> = read.collect();
    read_until(conn, now, read).await
}

async fn read_until(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    read: Vec<(Row, DateTime<Utc>)>,
) -> Result<(), DbError> {
    let mut changed = Vec::new();
    let mut recount: BTreeMap<TenantId, Vec<ConversationId>> = BTreeMap::new();
    for (mut row, until) in read {
        if row.last_read_at >= Some(until) {
            continue;
        }
        row.last_read_at = Some(until);
        if row.all_read() {
            row.unread_count = 0;
        } else if row.unread_count > 0 {
            recount.entry(row.tenant_id).or_default().push(row.id);
        }
        changed.push(row);
    }
    write::update(conn, now, &changed).await?;
    for (tenant, conversations) in recount {
        count::unread(conn, now, tenant, &conversations).await?;
    }
    Ok(())
}

/// What came of marking a conversation as read.
pub struct MarkedRead {
    /// The conversation after that.
    pub conversation: Conversation,
    /// Why WhatsApp, and with it the other side, was not told; `None`: it was, or there was nothing to tell.
    pub untold: Option<String>,
}

/// A message that came in and was not read.
#[derive(QueryableByName)]
struct Unread {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Timestamptz)]
    moment: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    whatsapp_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    participant: Option<String>,
}

// The newest of each chat: engines mark what is older along with them.
const UNREAD: &str = concat!(
    "SELECT m.id, m.chat_id, coalesce(m.occurred_at, m.created_at) AS moment, ",
    whatsapp_id!("m"),
    " AS whatsapp_id, CASE WHEN m.chat_id LIKE '%@g.us' THEN coalesce(m.raw_payload ->> 'participant', m.sender_id) END AS participant
     FROM unnest($3) AS w (chat_id) CROSS JOIN LATERAL (
         SELECT o.* FROM messages o
         WHERE o.tenant_id = $1 AND o.session_id = $2 AND o.chat_id = w.chat_id
           AND (CASE WHEN o.occurred_at IS NULL THEN o.created_at ELSE o.occurred_at END) > coalesce($4, '-infinity') AND o.direction = 'inbound' AND o.deleted_at IS NULL
         ORDER BY (CASE WHEN o.occurred_at IS NULL THEN o.created_at ELSE o.occurred_at END) DESC, o.id DESC LIMIT 50) m
     ORDER BY moment DESC"
);

async fn unread(conn: &mut TenantConn, conversation: &Conversation) -> Result<Vec<Unread>, DbError> {
    let tenant = conn.tenant();
    let chats = queries::chats(conn, conversation).await?;
    Ok(sql(UNREAD)
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(conversation.session_id)
        .bind::<Array<Text>, _>(chats)
        .bind::<Nullable<Timestamptz>, _>(conversation.last_read_at)
        .prepared()
        .load(&mut **conn)
        .await?)
}

/// Marks everything in the conversation `id` as read, and lets the other side see it where the session works. What comes in
/// meanwhile stays unread. `None` if the tenant has no such conversation.
///
/// # Errors
/// When the database does not answer.
pub async fn mark_read(app: &App, tenant: TenantId, id: ConversationId) -> Result<Option<MarkedRead>, DbError> {
    let found = app
        .db
        .tenant(tenant, async move |conn: &mut TenantConn| {
            let Some(conversation) = queries::find(conn, id).await? else { return Ok(None) };
            let unread = unread(conn, &conversation).await?;
            Ok::<_, DbError>(Some((conversation, unread)))
        })
        .await?;
    let Some((conversation, unread)) = found else { return Ok(None) };
    let newest = unread.as_slice().first().map(|message| message.moment);
    let until = newest.max(conversation.last_message_at).max(conversation.last_read_at);
    let untold = if unread.is_empty() { None } else { tell_whatsapp(app, tenant, &conversation, &unread).await };
    let now = app.clock.now();
    let told: Vec<MessageId> =
        if untold.is_none() { unread.iter().map(|message| message.id).collect() } else { Vec::new() };
    let id = conversation.id;
    app.db
        .system(async move |conn| {
            // Messages before conversations, as everywhere.
            sql("UPDATE messages SET read_at = $3, updated_at = $3 WHERE tenant_id = $1 AND id IN ( \
                     SELECT id FROM messages WHERE tenant_id = $1 AND id = ANY($2) AND read_at IS NULL ORDER BY id FOR UPDATE)")
            .bind::<SqlUuid, _>(tenant)
            .bind::<Array<SqlUuid>, _>(told)
            .bind::<Timestamptz, _>(now)
            .prepared()
            .execute(&mut **conn)
            .await?;
            contacts::lock(conn, tenant).await?;
            let row = write::one(conn, tenant, id).await?;
            let read = row.zip(until).into_iter().collect();
            read_until(conn, now, read).await
        })
        .await?;
    let after = app.db.tenant(tenant, async move |conn: &mut TenantConn| queries::find(conn, id).await).await?;
    Ok(after.map(|conversation| MarkedRead { conversation, untold }))
}

/// Lets the writers of `unread` see that it was read; answers why not.
async fn tell_whatsapp(app: &App, tenant: TenantId, conversation: &Conversation, unread: &[Unread]) -> Option<String> {
    match tokio::time::timeout(PATIENCE, ask_waha(app, tenant, conversation, unread)).await {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some("The WAHA server of the session does not answer".to_owned()),
    }
}

async fn ask_waha(app: &App, tenant: TenantId, conversation: &Conversation, unread: &[Unread]) -> Result<(), String> {
    let unknown = |fault: DirectoryError| {
        tracing::warn!(%fault, "a session could not be looked up to mark a conversation as read");
        "The session could not be looked up".to_owned()
    };
    let session = app.directory.session(tenant, conversation.session_id).await.map_err(unknown)?;
    let Some(session) = session else { return Err("The session was deleted".to_owned()) };
    let status = queries::session_status(app, tenant, conversation.session_id)
        .await
        .map_err(|_| "The session could not be looked up".to_owned())?;
    if status != "working" {
        return Err(format!("The session is not working; it is {status}"));
    }
    let server = app.directory.server(session.server).await.map_err(unknown)?;
    let Some(server) = server else { return Err("The WAHA server of the session was removed".to_owned()) };
    // WhatsApp wants to know of each chat, and in a group of each writer.
    let mut calls: BTreeMap<(&str, Option<&str>), Vec<&str>> = BTreeMap::new();
    for message in unread {
        let Some(id) = message.whatsapp_id.as_deref() else { continue };
        calls.entry((&message.chat_id, message.participant.as_deref())).or_default().push(id);
    }
    for ((chat, participant), ids) in calls {
        let call = app.waha.mark_all_read(&server.server, &session.external_name, chat, &ids, participant);
        call.await.map_err(|fault| refused(&fault))?;
    }
    Ok(())
}

fn refused(fault: &CallError) -> String {
    match fault {
        CallError::State { status } => format!("The session is not working; it is {status} at WAHA"),
        CallError::Unreachable | CallError::TimedOut | CallError::Stopping => {
            "The WAHA server of the session does not answer".to_owned()
        }
        fault => {
            tracing::warn!(%fault, "a conversation could not be marked as read on WhatsApp");
            "The WAHA server of the session refused it".to_owned()
        }
    }
}
