//! `/v1/conversations`: what was written with whom, session by session.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::{Body, Caller, Cursor, IfMatch, IfMatchHeader, List, Page, PageParams, Path, Problem, Query, versioned};
use crate::app::App;
use crate::contacts;
use crate::conversations::queries::{self, Filter};
use crate::conversations::view::{Conversation, ConversationDetails};
use crate::conversations::{self, MarkedRead};
use crate::db::{DbError, TenantConn};
use crate::domain::ids::{ContactId, ConversationId, SessionId};
use crate::identity::scope::Scope;
use crate::messages::view::Message;

const KINDS: [&str; 4] = ["direct", "group", "channel", "broadcast"];

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/conversations").route(web::get().to(list)))
        .service(web::resource("/conversations/{id}").route(web::get().to(get)).route(web::patch().to(patch)))
        .service(web::resource("/conversations/{id}/messages").route(web::get().to(messages)))
        .service(web::resource("/conversations/{id}/read").route(web::post().to(read)));
}

#[derive(OpenApi)]
#[openapi(paths(list, get, patch, messages, read))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Which conversations to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListConversations {
    /// Of this session.
    session_id: Option<SessionId>,
    /// `direct`, `group`, `channel` or `broadcast`.
    kind: Option<String>,
    /// `true`: with something unread in them; `false`: without.
    unread: Option<bool>,
    /// With this contact.
    contact_id: Option<ContactId>,
    /// Active ones, or those that were put aside.
    is_active: Option<bool>,
    /// How many at most: 1 to 200, default 50.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

/// List conversations
///
/// Those with the latest messages first. One conversation for each session and person or group, whichever ids the messages came under.
#[utoipa::path(get, path = "/v1/conversations", tag = "Conversations", operation_id = "list_conversations", params(ListConversations),
    responses((status = 200, description = "A page of conversations", body = List<Conversation>)))]
async fn list(app: web::Data<App>, caller: Caller, query: Query<ListConversations>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let ListConversations { session_id, kind, unread, contact_id, is_active, limit, cursor } = query.0;
    let page = Page::new(limit, cursor.as_deref())?;
    if kind.as_deref().is_some_and(|kind| !KINDS.contains(&kind)) {
        return Err(Problem::invalid("kind", "invalid_value", format!("must be one of {}", KINDS.join(", "))));
    }
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts
                .db
                .tenant(tenant, async move |conn: &mut TenantConn| {
                    // The id of a contact that was merged means the one it is now.
                    let contact_id = match contact_id {
                        Some(id) => Some(contacts::current(conn, tenant, id).await?.unwrap_or(id)),
                        None => None,
                    };
                    let filter = Filter { session_id, kind, unread, contact_id, is_active };
                    queries::list(conn, &filter, after, page.fetch()).await
                })
                .await
        })
        .await??;
    let place = |row: &Conversation| Cursor { at: row.last_message_at.unwrap_or(row.created_at), id: row.id.0 };
    Ok(HttpResponse::Ok().json(page.answer(rows, place)))
}

async fn details(conn: &mut TenantConn, id: ConversationId) -> Result<Option<ConversationDetails>, DbError> {
    let Some(conversation) = queries::find(conn, id).await? else { return Ok(None) };
    let participants = queries::participants(conn, &conversation).await?;
    Ok(Some(ConversationDetails { conversation, participants }))
}

/// Look at a conversation
///
/// With its contact, or with who is in the group. The id of a conversation that became part of another one answers that.
#[utoipa::path(get, path = "/v1/conversations/{id}", tag = "Conversations", operation_id = "get_conversation",
    params(("id" = ConversationId, Path, description = "The conversation")),
    responses((status = 200, description = "The conversation", body = ConversationDetails)))]
async fn get(app: web::Data<App>, caller: Caller, id: Path<ConversationId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let found = app
        .detached(
            async move { parts.db.tenant(tenant, async move |conn: &mut TenantConn| details(conn, id.0).await).await },
        )
        .await??;
    let details = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(&details, details.conversation.version))
}

/// What is to change of a conversation; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"is_active": false}))]
struct ConversationPatch {
    /// false puts it aside, until a message comes in.
    is_active: Option<bool>,
}

/// Change a conversation
///
/// Puts it aside, or takes it up again.
#[utoipa::path(patch, path = "/v1/conversations/{id}", tag = "Conversations", operation_id = "update_conversation",
    params(("id" = ConversationId, Path, description = "The conversation"), IfMatchHeader), request_body = ConversationPatch,
    responses((status = 200, description = "The conversation as it is now", body = ConversationDetails)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<ConversationId>,
    if_match: IfMatch,
    body: Body<ConversationPatch>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let ConversationPatch { is_active } = body.into_inner();
    let (parts, now) = (App::clone(&app), app.clock.now());
    let details = app
        .detached(async move {
            parts
                .db
                .tenant(tenant, async move |conn: &mut TenantConn| {
                    contacts::lock(conn, tenant).await?;
                    let found = queries::find(conn, id.0).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(found.version)?;
                    if let Some(active) = is_active {
                        queries::set_active(conn, now, found.id, active).await?;
                    }
                    details(conn, found.id).await?.ok_or_else(Problem::not_found)
                })
                .await
        })
        .await??;
    Ok(versioned(&details, details.conversation.version))
}

/// A page of a conversation.
#[derive(Serialize, ToSchema)]
struct ConversationMessages<'a> {
    /// The messages, newest first.
    data: Vec<Message<'a>>,
    /// Hand it in as `cursor` for the next page; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List the messages of a conversation
///
/// Newest first by the time they were written, in both directions, under whichever ids of the person they came or went.
#[utoipa::path(get, path = "/v1/conversations/{id}/messages", tag = "Conversations", operation_id = "list_conversation_messages",
    params(("id" = ConversationId, Path, description = "The conversation"), PageParams),
    responses((status = 200, description = "A page of messages", body = ConversationMessages<'_>)))]
async fn messages(
    app: web::Data<App>,
    caller: Caller,
    id: Path<ConversationId>,
    page: Page,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts
                .db
                .tenant(tenant, async move |conn: &mut TenantConn| {
                    let Some(conversation) = queries::find(conn, id.0).await? else { return Ok(None) };
                    queries::messages(conn, &conversation, after, page.fetch()).await.map(Some)
                })
                .await
        })
        .await??;
    let list =
        page.answer(rows.ok_or_else(Problem::not_found)?, |row| Cursor { at: queries::moment(row), id: row.id.0 });
    let data = list.data.iter().map(Message::from).collect();
    Ok(HttpResponse::Ok().json(ConversationMessages { data, next_cursor: list.next_cursor }))
}

/// A conversation after it was marked as read.
#[derive(Serialize, ToSchema)]
struct ReadConversation {
    /// The conversation.
    #[serde(flatten)]
    conversation: Conversation,
    /// Whether WhatsApp was told, so that the other side can see it (or there was nothing to tell).
    whatsapp_told: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "The session is not working; it is scan_qr")]
    whatsapp_detail: Option<String>,
}

/// Mark a conversation as read
///
/// Everything in it is read then, up to its latest message. Where the session works, the other side may see it, too; where not, it is
/// noted here alone, and the answer says so.
#[utoipa::path(post, path = "/v1/conversations/{id}/read", tag = "Conversations", operation_id = "read_conversation",
    params(("id" = ConversationId, Path, description = "The conversation")),
    responses((status = 200, description = "It is read", body = ReadConversation)))]
async fn read(app: web::Data<App>, caller: Caller, id: Path<ConversationId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let parts = App::clone(&app);
    let marked = app.detached(async move { conversations::mark_read(&parts, tenant, id.0).await }).await??;
    let MarkedRead { conversation, untold } = marked.ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(ReadConversation {
        conversation,
        whatsapp_told: untold.is_none(),
        whatsapp_detail: untold,
    }))
}
