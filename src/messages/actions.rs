//! What can be done with messages that WhatsApp has: edit, revoke, react, mark as read, forward.
//!
//! WhatsApp is asked first, within a bounded time, and what it did is written down after that together with its event. Who gets
//! no answer asks again: each of these leaves things as the first time did.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::conversations;
use crate::db::{DbError, Prepare, TenantConn, sql};
use crate::domain::chance::Chance;
use crate::domain::content::{Content, Kind};
use crate::domain::ids::{EventId, MessageId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::domain::status::Status;
use crate::events::log::{self, NewEvent};
use crate::messages::accept::Draft;
use crate::messages::facts::{self, Target};
use crate::messages::queries;
use crate::messages::reactions;
use crate::messages::row::{MessageRow, message_columns, whatsapp_id};
use crate::messages::view::Message;
use crate::messages::withdraw::{self, Withdrawn};
use crate::sessions::directory::{DirectoryError, ServerEntry, SessionEntry};
use crate::waha::CallError;

/// How long WAHA's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Clone)]
pub enum Action {
    /// Another text or caption, for everyone.
    Edit(String),
    /// Taken back for everyone, and deleted here.
    Revoke,
    /// This emoji, or none when it is empty.
    React(String),
    /// The sender may see that it was read.
    MarkRead,
}

// The text of a message belongs in no log.
impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.done())
    }
}

impl Action {
    const fn done(&self) -> &'static str {
        match self {
            Self::Edit(_) => "edited",
            Self::Revoke => "revoked",
            Self::React(_) => "reacted to",
            Self::MarkRead => "marked as read",
        }
    }
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// This tenant has no such message.
    #[error("no such message")]
    NotFound,
    /// The state of the message or its session does not allow it; says why.
    #[error("{0}")]
    NotNow(String),
    /// The new text is longer than a caption may be.
    #[error("the caption is too long")]
    CaptionTooLong,
    /// A message can be forwarded by its own session only.
    #[error("another session")]
    OtherSession,
    /// WAHA did not do it.
    #[error(transparent)]
    Waha(#[from] CallError),
    /// The database did not.
    #[error(transparent)]
    Database(#[from] DbError),
    /// Session or server could not be looked up.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

fn not_now<T>(why: impl Into<String>) -> Result<T, Denied> {
    Err(Denied::NotNow(why.into()))
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(embed)]
    message: MessageRow,
    #[diesel(sql_type = Nullable<Text>)]
    whatsapp_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    participant: Option<String>,
    #[diesel(sql_type = Text)]
    session_status: String,
    #[diesel(sql_type = Bool)]
    session_deleted: bool,
}

const FIND: &str = concat!(
    "SELECT ",
    message_columns!(),
    ", ",
    whatsapp_id!("m"),
    " AS whatsapp_id,
       m.raw_payload ->> 'participant' AS participant,
       s.status AS session_status, s.deleted_at IS NOT NULL OR s.desired = 'deleted' AS session_deleted
     FROM messages m JOIN waha_sessions s ON s.tenant_id = m.tenant_id AND s.id = m.session_id
     WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL"
);

/// The message and its session, if WhatsApp has the message. `done` is what is to be done, as in "cannot be done".
async fn find(app: &App, tenant: TenantId, id: MessageId, done: &str) -> Result<(Found, Arc<SessionEntry>), Denied> {
    let found: Vec<Found> = app
        .db
        .tenant(tenant, async |conn| {
            let rows = sql(FIND).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(id).prepared().load(&mut **conn).await?;
            Ok::<_, DbError>(rows)
        })
        .await?;
    let found = found.into_iter().next().ok_or(Denied::NotFound)?;
    let row = &found.message;
    let there = matches!(
        row.status.parse(),
        Ok(Status::Sent | Status::Delivered | Status::Read | Status::Played | Status::Received)
    );
    if !there {
        return not_now(format!("A message that is {} cannot be {done}: it has to be sent", row.status));
    }
    if found.whatsapp_id.is_none() {
        return not_now(format!("A message whose WhatsApp id is not known cannot be {done}"));
    }
    let session = if found.session_deleted { None } else { app.directory.session(tenant, row.session_id).await? };
    match session {
        Some(session) => Ok((found, session)),
        None => not_now("The session of the message was deleted"),
    }
}

/// Does `action` with the message `id` and answers the message after it.
///
/// # Errors
/// [`Denied`]. Without WAHA's answer nothing is written down; it may have been done nevertheless, and can be asked for again.
pub async fn act(app: &App, tenant: TenantId, id: MessageId, action: Action) -> Result<MessageRow, Denied> {
    let (found, session) = find(app, tenant, id, action.done()).await?;
    check(&found.message, &action)?;
    // Revoked by an earlier request that could not finish.
    if found.message.revoked_at.is_none() {
        if found.session_status != "working" {
            let status = &found.session_status;
            return not_now(format!("The session of the message has to be working; it is {status}"));
        }
        let Some(server) = app.directory.server(session.server).await? else {
            return not_now("The WAHA server of the session was removed");
        };
        let call = ask(app, &found, &session, &server, &action);
        tokio::time::timeout(PATIENCE, call).await.unwrap_or(Err(CallError::TimedOut))?;
    }
    let (now, chance) = (app.clock.now(), &app.chance);
    let action = &action;
    let written = app.db.tenant(tenant, async |conn| record(conn, chance, now, id, action).await).await?;
    app.wake.events.notify_one();
    if let (Action::MarkRead, Some(row)) = (action, &written) {
        let read = (tenant, row.session_id, row.chat_id.as_str(), row.occurred_at.unwrap_or(row.created_at));
        app.db.system(async |conn| conversations::note_read(conn, now, &[read]).await).await?;
    }
    written.ok_or(Denied::NotFound)
}

fn check(row: &MessageRow, action: &Action) -> Result<(), Denied> {
    let outbound = row.direction == "outbound";
    match action {
        Action::Edit(_) | Action::Revoke if !outbound => {
            return not_now(format!("Only messages that you sent can be {}", action.done()));
        }
        Action::MarkRead if outbound => return not_now("Only messages that you received can be marked as read"),
        Action::Revoke => return Ok(()),
        _ => {}
    }
    if row.revoked_at.is_some() {
        return not_now(format!("A message that was revoked cannot be {}", action.done()));
    }
    if let Action::Edit(body) = action {
        match row.message_type.parse() {
            Ok(Kind::Text) => {}
            Ok(Kind::Image | Kind::Video | Kind::Document) if body.chars().count() > Kind::MOST_CAPTION => {
                return Err(Denied::CaptionTooLong);
            }
            Ok(Kind::Image | Kind::Video | Kind::Document) => {}
            _ => return not_now(format!("A message of type {} has no text that can be edited", row.message_type)),
        }
    }
    Ok(())
}

async fn ask(
    app: &App,
    found: &Found,
    session: &SessionEntry,
    server: &ServerEntry,
    action: &Action,
) -> Result<(), CallError> {
    let (waha, server, session) = (&app.waha, &server.server, session.external_name.as_str());
    let id = found.whatsapp_id.as_deref().unwrap_or_default();
    let chat = found.message.chat_id.as_str();
    match action {
        Action::Edit(body) => waha.edit_message(server, session, chat, id, body).await,
        Action::Revoke => waha.revoke_message(server, session, chat, id).await,
        Action::React(emoji) => waha.react(server, session, id, emoji).await,
        Action::MarkRead => waha.mark_read(server, session, chat, id, found.participant.as_deref()).await,
    }
}

/// What WhatsApp knows the message by.
fn target(row: &MessageRow) -> Option<Target> {
    let waha_message_id = row.waha_message_id.clone()?;
    Some(Target { tenant: row.tenant_id, session: row.session_id, waha_message_id })
}

/// Writes down what WhatsApp did. A repeat changes nothing and tells nobody.
/// `None` when the message was deleted meanwhile.
async fn record(
    conn: &mut TenantConn,
    chance: &Chance,
    now: DateTime<Utc>,
    id: MessageId,
    action: &Action,
) -> Result<Option<MessageRow>, DbError> {
    let tenant = conn.tenant();
    let (changed, kind): (Vec<MessageRow>, _) = match action {
        Action::Edit(body) => {
            // WAHA tells of it, too: whoever comes first writes it down, with its event.
            if let Some(target) = queries::find(conn, id).await?.as_ref().and_then(target) {
                facts::edit(conn, chance, now, target, body).await?;
            }
            return queries::find(conn, id).await;
        }
        Action::Revoke => {
            // Also of one that was deleted meanwhile: the recipient does not have it any more, whoever hid it here.
            let deleted = match withdraw::delete(conn, chance, now, id).await? {
                Withdrawn::Done(row) => Some(*row),
                Withdrawn::TooLate(_) | Withdrawn::NotFound => None,
            };
            let text = concat!(
                "UPDATE messages m SET revoked_at = $3, updated_at = $3 \
                 WHERE m.tenant_id = $1 AND m.id = $2 AND m.revoked_at IS NULL RETURNING ",
                message_columns!()
            );
            let update = sql(text).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now);
            let revoked: Vec<MessageRow> = update.prepared().load(&mut **conn).await?;
            if revoked.is_empty() {
                return Ok(deleted);
            }
            (revoked, "message.revoked")
        }
        Action::React(emoji) => {
            let Some(row) = queries::find(conn, id).await? else { return Ok(None) };
            let news = match target(&row) {
                Some(target) => reactions::react(conn, now, target, emoji).await?,
                None => false,
            };
            if !news {
                return Ok(Some(row));
            }
            (vec![row], "message.reaction")
        }
        Action::MarkRead => {
            // The tenant's own doing, of which no event tells.
            let text = concat!(
                "UPDATE messages m SET read_at = $3, updated_at = $3 \
                 WHERE m.tenant_id = $1 AND m.id = $2 AND m.deleted_at IS NULL AND m.read_at IS NULL RETURNING ",
                message_columns!()
            );
            let update = sql(text).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now);
            let read: Vec<MessageRow> = update.prepared().load(&mut **conn).await?;
            return match read.into_iter().next() {
                Some(row) => Ok(Some(row)),
                None => queries::find(conn, id).await,
            };
        }
    };
    let Some(row) = changed.into_iter().next() else { return queries::find(conn, id).await };
    let event = NewEvent {
        tenant,
        id: EventId::fresh(now, chance),
        kind,
        at: now,
        session_id: Some(row.session_id),
        message_id: Some(id),
        data: data(&row, action),
    };
    log::append(conn, &[event]).await?;
    Ok(Some(row))
}

/// What the event shows.
fn data(row: &MessageRow, action: &Action) -> String {
    match action {
        Action::React(emoji) => reactions::reaction_data(row, "", emoji),
        _ => Message::from(row).to_json(),
    }
}

/// The draft of a message that forwards the message `id` to `chat`; by its own session, which alone can show it to WhatsApp.
///
/// # Errors
/// [`Denied`].
pub async fn forward(
    app: &App,
    tenant: TenantId,
    id: MessageId,
    chat: ChatId,
    by: Option<SessionId>,
) -> Result<Draft, Denied> {
    let (found, session) = find(app, tenant, id, "forwarded").await?;
    let row = found.message;
    if by.is_some_and(|by| by != row.session_id) {
        return Err(Denied::OtherSession);
    }
    if row.revoked_at.is_some() {
        return not_now("A message that was revoked cannot be forwarded");
    }
    let Ok(kind) = row.message_type.parse() else {
        return not_now(format!("A message of type {} cannot be forwarded", row.message_type));
    };
    let content = Content { forwards: found.whatsapp_id, mentions: Vec::new(), link_preview: None, ..row.content() };
    Ok(Draft {
        honours_message_id: session.engine.honours_message_id(),
        from: session.phone.clone(),
        kind,
        body: row.body,
        media_url: row.media_url,
        content,
        ..Draft::text(tenant, session.id, chat, "")
    })
}
