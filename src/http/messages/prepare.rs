//! From a request to a draft: what it refers to is looked up, the tenant's own only.

use std::collections::HashMap;
use std::sync::Arc;

use crate::app::App;
use crate::domain::content::Kind;
use crate::domain::ids::{MediaId, MessageId, SessionId, TenantId};
use crate::domain::status::Status;
use crate::http::problem::{FieldError, Problem};
use crate::http::sender_pools;
use crate::media;
use crate::messages::accept::Draft;
use crate::messages::queries;
use crate::messages::row::MessageRow;
use crate::sessions::directory::{Only, SessionEntry};

use super::content;
use super::request::{Upload, Valid};

/// The session that a request means.
pub(super) async fn session_for(
    app: &App,
    tenant: TenantId,
    asked: Option<SessionId>,
) -> Result<Arc<SessionEntry>, Problem> {
    let none = |code: &str, message: &str| Problem::invalid("session_id", code, message);
    if let Some(id) = asked {
        let found = match app.directory.known_session(tenant, id) {
            Some(entry) => Some(entry),
            None => {
                let parts = app.clone();
                app.detached(async move { parts.directory.session(tenant, id).await }).await??
            }
        };
        return found.ok_or_else(no_such_session);
    }
    let only = match app.directory.known_only_session(tenant) {
        Some(only) => only,
        None => {
            let parts = app.clone();
            app.detached(async move { parts.directory.only_session(tenant).await }).await??
        }
    };
    match only {
        Only::One(entry) => Ok(entry),
        Only::None => Err(none("required", "there is no session yet; create one first")),
        Only::Several => Err(none("required", "must be given, since there are several sessions")),
    }
}

/// The session that a request names is not there.
pub(super) fn no_such_session() -> Problem {
    Problem::not_found().field("session_id", "not_found", "there is no such session")
}

/// What requests refer to, as far as it exists.
#[derive(Default)]
pub(super) struct Known {
    messages: HashMap<MessageId, MessageRow>,
    media: HashMap<MediaId, String>,
}

impl Known {
    /// Looks up, at once, what `requests` refer to.
    pub(super) async fn of<'a>(
        app: &App,
        tenant: TenantId,
        requests: impl Iterator<Item = &'a Valid> + Clone,
    ) -> Result<Self, Problem> {
        let messages: Vec<MessageId> = requests.clone().filter_map(|valid| valid.reply_to).collect();
        let media: Vec<MediaId> = requests.filter_map(|valid| valid.content.media.as_ref()?.id).collect();
        if messages.is_empty() && media.is_empty() {
            return Ok(Self::default());
        }
        let parts = app.clone();
        let known = app
            .detached(async move {
                parts
                    .db
                    .tenant(tenant, async |conn| {
                        let rows = queries::find_all(conn, &messages).await?;
                        let media = queries::media_types(conn, &media).await?;
                        Ok::<_, crate::db::DbError>(Self {
                            messages: rows.into_iter().map(|row| (row.id, row)).collect(),
                            media: media.into_iter().collect(),
                        })
                    })
                    .await
            })
            .await??;
        Ok(known)
    }
}

/// The draft of a request, once all that it refers to is found.
pub(super) async fn draft(app: &App, tenant: TenantId, mut valid: Valid, known: &Known) -> Result<Draft, Problem> {
    let (pool, session) = match &valid.pool {
        Some(pool) => {
            let (pool, session) = sender_pools::choose(app, tenant, pool, &valid.chat).await?;
            (Some(pool), session)
        }
        None => (None, session_for(app, tenant, valid.session).await?),
    };
    let mut errors = Vec::new();
    if let Some(id) = valid.reply_to {
        errors.extend(check_reply(&valid, session.id, known.messages.get(&id)));
    }
    if let Some(id) = valid.content.media.as_ref().and_then(|media| media.id) {
        match known.media.get(&id) {
            None => errors.push(FieldError::new("media.id", "not_found", "there is no such file")),
            Some(mime_type) if !content::suits(valid.kind, mime_type) => {
                errors.push(FieldError::new("media.id", "wrong_type", content::wanted(valid.kind)));
            }
            Some(_) => {}
        }
    }
    if !errors.is_empty() {
        return Err(Problem::validation(errors));
    }
    if let Some(upload) = valid.upload.take() {
        let id = keep(app, tenant, valid.kind, upload).await?;
        valid.content.media.get_or_insert_default().id = Some(id);
    }
    Ok(Draft {
        honours_message_id: session.engine.honours_message_id(),
        from: session.phone.clone(),
        pool,
        kind: valid.kind,
        body: valid.body,
        media_url: valid.content.media.as_ref().and_then(|media| media.url.clone()),
        content: valid.content,
        reply_to: valid.reply_to,
        priority: valid.priority,
        scheduled_at: valid.scheduled_at,
        expires_at: valid.expires_at,
        client_reference: valid.client_reference,
        metadata: valid.metadata,
        ..Draft::text(tenant, session.id, valid.chat, "")
    })
}

/// Stores the file that came with the request.
async fn keep(app: &App, tenant: TenantId, kind: Kind, upload: Upload) -> Result<MediaId, Problem> {
    let parts = app.clone();
    let Upload { bytes, mime_type, filename } = upload;
    let kept = app.detached(async move {
        media::keep_bytes(&parts, tenant, bytes, mime_type.as_deref(), filename.as_deref()).await
    });
    let kept = kept.await??;
    if content::suits(kind, &kept.mime_type) {
        return Ok(kept.id);
    }
    drop_file(app, tenant, kept.id).await;
    Err(Problem::invalid("media.data", "wrong_type", content::wanted(kind)))
}

/// Deletes a file that came with a request which did not become a message. What fails here stays in the tenant's list.
pub(super) async fn drop_file(app: &App, tenant: TenantId, id: MediaId) {
    let (parts, now) = (app.clone(), app.clock.now());
    let deleted =
        app.detached(async move { parts.db.tenant(tenant, async |conn| media::delete(conn, id, now).await).await });
    if !matches!(deleted.await, Ok(Ok(_))) {
        tracing::debug!("a file that came with a refused request stays stored");
    }
}

/// What stands against answering `message`.
fn check_reply(valid: &Valid, session: SessionId, message: Option<&MessageRow>) -> Option<FieldError> {
    let fault = |code: &str, text: &str| Some(FieldError::new("reply_to", code, text));
    let Some(message) = message else { return fault("not_found", "there is no such message") };
    if message.session_id != session {
        return fault("other_session", "must be a message of the same session");
    }
    // One chat can go by its number and by a hidden id.
    let outbound = message.direction == "outbound";
    let peer = if outbound { &message.to_msisdn } else { &message.from_msisdn };
    let same_person = !message.chat_id.ends_with("@g.us") && peer.is_some() && *peer == valid.chat.phone();
    if message.chat_id != valid.chat.as_str() && !same_person {
        return fault("other_chat", "must be a message of the same chat");
    }
    let never_sent = match message.status.parse() {
        Ok(Status::Cancelled | Status::Expired | Status::Failed) => true,
        // It will be there by then only if this one is later still.
        Ok(Status::Scheduled) => valid.scheduled_at <= message.scheduled_at,
        _ => false,
    };
    if never_sent {
        return fault("not_sent", "must be a message that was sent, or will be before this one");
    }
    None
}
