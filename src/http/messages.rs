//! `/v1/messages`: send, list, look at one and at its history.

use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::{
    Body, Caller, Code, Cursor, FieldError, MaybeIdempotencyKey, Page, Path, Problem, parse_query, query_pairs,
    sender_pools,
};
use crate::app::App;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::recipient::{ChatId, InvalidRecipient};
use crate::domain::status::Status;
use crate::identity::scope::Scope;
use crate::messages::accept::{self, AcceptError, Accepted, Draft, KeyUse};
use crate::messages::queries::{self, Filter, Transition};
use crate::messages::view::{Message, Priority};
use crate::sessions::directory::{DirectoryError, Only, SessionEntry};

/// Characters in a text, at the most.
const MOST_TEXT: usize = 5000;
/// What a message can be, in either direction.
const KINDS: [&str; 8] = ["text", "image", "video", "voice", "document", "location", "contact", "poll"];
/// Bytes of JSON in `metadata`, at the most.
const MOST_METADATA: usize = 16 * 1024;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/messages").route(web::post().to(send)).route(web::get().to(list)))
        .service(web::resource("/messages/{id}").route(web::get().to(one)))
        .service(web::resource("/messages/{id}/transitions").route(web::get().to(transitions)));
}

/// The operations of this file, described.
#[derive(OpenApi)]
#[openapi(paths(send, list, one, transitions), components(schemas(Message<'_>)))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A message to be sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"to": "+15550100001", "body": "Your order has left the house.", "metadata": {"order": "4711"}}))]
pub(super) struct SendMessage {
    /// The session to send by; may be left out when the tenant has exactly one.
    session_id: Option<SessionId>,
    /// Instead of `session_id`: the name or the id of a sender pool, one of whose sessions sends it. All messages to one
    /// recipient are sent by the same one, as long as it works.
    #[schema(max_length = 100, example = json!(null))]
    pool: Option<String>,
    /// The recipient: a phone number in E.164, with or without `+` and separators, or a WhatsApp id (`…@c.us`, `…@g.us`,
    /// `…@lid`, `…@newsletter`).
    #[schema(example = "+15550100001")]
    to: String,
    /// The kind of content; `text` is the default.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// The text, 1 to 5000 characters.
    #[schema(min_length = 1, max_length = 5000)]
    body: Option<String>,
    /// How urgent; `normal` is the default.
    #[serde(default)]
    priority: Priority,
    /// Your own data, an object of at most 16 KiB; shown with the message and its events.
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Option<Map<String, Value>>,
}

struct Valid {
    pool: Option<String>,
    chat: ChatId,
    body: String,
    priority: Priority,
    metadata: Value,
}

impl SendMessage {
    /// The session asked for and the rest, checked; every fault is named.
    fn check(self) -> Result<(Option<SessionId>, Valid), Problem> {
        let mut errors = Vec::new();
        let chat = ChatId::parse(&self.to).map_err(|fault| {
            let code = match fault {
                InvalidRecipient::Empty => "required",
                InvalidRecipient::NoCountryCode => "no_country_code",
                InvalidRecipient::Length | InvalidRecipient::Shape => "invalid_recipient",
            };
            errors.push(FieldError::new("to", code, fault.to_string()));
        });
        if self.kind.as_deref().is_some_and(|kind| kind != "text") {
            errors.push(FieldError::new("type", "unsupported", "must be `text`"));
        }
        let body = self.body.unwrap_or_default();
        match body.chars().count() {
            0 => errors.push(FieldError::new("body", "required", "must have 1 to 5000 characters")),
            1..=MOST_TEXT => {}
            _ => errors.push(FieldError::new("body", "too_long", "must have 1 to 5000 characters")),
        }
        if self.pool.is_some() && self.session_id.is_some() {
            errors.push(FieldError::new("pool", "invalid_combination", "must not be given together with `session_id`"));
        }
        let metadata = Value::Object(self.metadata.unwrap_or_default());
        if metadata.to_string().len() > MOST_METADATA {
            errors.push(FieldError::new("metadata", "too_long", "must be at most 16 KiB of JSON"));
        }
        match chat {
            Ok(chat) if errors.is_empty() => {
                Ok((self.session_id, Valid { pool: self.pool, chat, body, priority: self.priority, metadata }))
            }
            _ => Err(Problem::validation(errors)),
        }
    }
}

/// The session that a request means.
async fn session_for(app: &App, tenant: TenantId, asked: Option<SessionId>) -> Result<Arc<SessionEntry>, Problem> {
    let none = |code: &str, message: &str| Problem::invalid("session_id", code, message);
    if let Some(id) = asked {
        let found = match app.directory.known_session(tenant, id) {
            Some(entry) => Some(entry),
            None => {
                let parts = app.clone();
                app.detached(async move { parts.directory.session(tenant, id).await }).await??
            }
        };
        return found.ok_or_else(|| Problem::not_found().field("session_id", "not_found", "there is no such session"));
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

/// Send a message
///
/// The message is kept before the answer is given: whatever happens afterwards, it is sent once, in the order of acceptance
/// within its session and priority, and ends in exactly one final state. Repeat a request whose answer you did not get with
/// the same `Idempotency-Key`.
#[utoipa::path(post, path = "/v1/messages", tag = "Messages", operation_id = "send_message", request_body = SendMessage,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept for 24 hours")),
    responses(
        (status = 202, description = "Accepted and kept", body = Message<'_>,
         headers(("Location" = String, description = "Where the message can be looked at"),
                 ("Idempotency-Replayed" = String, description = "`true` when this is the first answer again"))),
    ))]
pub(super) async fn send(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    request: Body<SendMessage>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let idempotency = key.0.map(|key| KeyUse { key: key.0, fingerprint: request.fingerprint("messages.create") });
    let (asked, valid) = request.into_inner().check()?;
    let way = match &valid.pool {
        Some(pool) => sender_pools::choose(&app, tenant, pool, &valid.chat).await.map(|(pool, by)| (Some(pool), by)),
        None => session_for(&app, tenant, asked).await.map(|by| (None, by)),
    };
    let (pool, session) = match way {
        Ok(way) => way,
        Err(problem) => return replayed(&app, tenant, idempotency, problem).await,
    };
    let draft = Draft {
        honours_message_id: session.engine.honours_message_id(),
        from: session.phone.clone(),
        pool,
        priority: valid.priority,
        metadata: valid.metadata,
        idempotency,
        ..Draft::text(tenant, session.id, valid.chat, valid.body)
    };
    let repeat = draft.idempotency.clone();
    let accepted = match app.acceptor.accept(&app, draft).await {
        Err(fault @ AcceptError::NoSuchSession) => return replayed(&app, tenant, repeat, fault.into()).await,
        accepted => accepted?,
    };
    metrics::counter!("switchboard_messages_accepted_total").increment(u64::from(!accepted.replayed));
    Ok(answer(accepted))
}

/// A repeat gets the first answer even if the same request would be refused by now, since its session was deleted or is not
/// the only one any more; everything else gets `problem`.
async fn replayed(
    app: &App,
    tenant: TenantId,
    used: Option<KeyUse>,
    problem: Problem,
) -> Result<HttpResponse, Problem> {
    let Some(used) = used else { return Err(problem) };
    let parts = app.clone();
    let first = app.detached(async move { accept::first_answer(&parts.db, tenant, &used).await }).await??;
    first.map(answer).ok_or(problem)
}

fn answer(accepted: Accepted) -> HttpResponse {
    let mut response = HttpResponse::Accepted();
    response
        .content_type("application/json")
        .insert_header((header::LOCATION, format!("/v1/messages/{}", accepted.id)));
    if accepted.replayed {
        response.insert_header(("Idempotency-Replayed", "true"));
    }
    response.body(accepted.json)
}

/// Which messages to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListMessages {
    /// Of this session.
    session_id: Option<SessionId>,
    /// `inbound` or `outbound`.
    direction: Option<String>,
    /// In this status.
    status: Option<String>,
    /// To this number or WhatsApp id.
    to: Option<String>,
    /// From this number or WhatsApp id.
    from: Option<String>,
    /// Of this kind.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Created at or after this time.
    created_after: Option<DateTime<Utc>>,
    /// Created before this time.
    created_before: Option<DateTime<Utc>>,
    /// How many at most: 1 to 200, default 50.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

impl ListMessages {
    fn filter(self, metadata: Vec<(String, String)>) -> Result<Filter, Problem> {
        let one_of = |field: &str, value: &Option<String>, allowed: &[&str]| match value {
            Some(value) if !allowed.contains(&value.as_str()) => {
                Err(Problem::invalid(field, "invalid_value", format!("must be one of {}", allowed.join(", "))))
            }
            _ => Ok(()),
        };
        one_of("direction", &self.direction, &["inbound", "outbound"])?;
        one_of("status", &self.status, &Status::ALL.map(Status::as_str))?;
        one_of("type", &self.kind, &KINDS)?;
        for (field, at) in [("created_after", self.created_after), ("created_before", self.created_before)] {
            // RFC 3339 knows no others, and the database not all that chrono reads.
            if at.is_some_and(|at| !(0..=9999).contains(&chrono::Datelike::year(&at))) {
                return Err(Problem::invalid(field, "out_of_range", "must be in the years 0 to 9999"));
            }
        }
        let mut filter = Filter {
            session_id: self.session_id,
            direction: self.direction,
            status: self.status,
            kind: self.kind,
            created_after: self.created_after,
            created_before: self.created_before,
            metadata,
            ..Filter::default()
        };
        for (field, value, direction) in [("to", self.to, "outbound"), ("from", self.from, "inbound")] {
            let Some(value) = value else { continue };
            let chat = ChatId::parse(&value)
                .map_err(|fault| Problem::invalid(field, "invalid_recipient", fault.to_string()))?;
            match (chat.phone(), field) {
                (Some(phone), "to") => filter.to = Some(phone),
                (Some(phone), _) => filter.from = Some(phone),
                (None, _) => {
                    filter.chat_id = Some(chat.as_str().to_owned());
                    filter.direction.get_or_insert_with(|| direction.to_owned());
                }
            }
        }
        Ok(filter)
    }
}

/// A page of messages.
#[derive(Serialize, ToSchema)]
struct MessageList<'a> {
    /// The messages, newest first.
    data: Vec<Message<'a>>,
    /// Hand it in as `cursor` for the next page; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List messages
///
/// Newest first, in both directions. Narrow the list by the parameters, and by your own data with `metadata.<key>=<value>`.
#[utoipa::path(get, path = "/v1/messages", tag = "Messages", operation_id = "list_messages", params(ListMessages),
    responses((status = 200, description = "A page of messages", body = MessageList<'_>)))]
pub(super) async fn list(app: web::Data<App>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let mut metadata = Vec::new();
    let mut pairs = query_pairs(&request)?;
    pairs.retain(|(name, value)| match name.strip_prefix("metadata.") {
        Some(key) if !key.is_empty() => {
            metadata.push((key.to_owned(), value.clone()));
            false
        }
        _ => true,
    });
    let query: ListMessages = parse_query(&pairs)?;
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let filter = query.filter(metadata)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|cursor| (cursor.at, cursor.id));
            parts.db.tenant(tenant, async |conn| queries::list(conn, &filter, after, page.fetch()).await).await
        })
        .await??;
    let list = page.answer(rows, |row| Cursor { at: row.created_at, id: row.id.0 });
    Ok(HttpResponse::Ok()
        .json(MessageList { data: list.data.iter().map(Message::from).collect(), next_cursor: list.next_cursor }))
}

/// Look at a message
///
/// The message as it is now.
#[utoipa::path(get, path = "/v1/messages/{id}", tag = "Messages", operation_id = "get_message",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "The message", body = Message<'_>)))]
pub(super) async fn one(app: web::Data<App>, caller: Caller, id: Path<MessageId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let row = app
        .detached(async move { parts.db.tenant(tenant, async |conn| queries::find(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(Message::from(&row)))
}

/// The history of a message.
#[derive(Serialize, ToSchema)]
struct Transitions {
    /// Its steps, oldest first.
    data: Vec<Transition>,
}

/// Look at a message's history
///
/// Every step with its time and cause, oldest first.
#[utoipa::path(get, path = "/v1/messages/{id}/transitions", tag = "Messages", operation_id = "get_message_transitions",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "The steps", body = Transitions,
               example = json!({"data": [{"status": "queued", "at": "2026-11-21T09:00:00.000000Z", "cause": "accepted"}]}))))]
pub(super) async fn transitions(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let data = app
        .detached(async move { parts.db.tenant(tenant, async |conn| queries::transitions(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(Transitions { data }))
}

impl From<AcceptError> for Problem {
    fn from(fault: AcceptError) -> Self {
        match fault {
            AcceptError::NoSuchSession => {
                Self::not_found().field("session_id", "not_found", "there is no such session")
            }
            AcceptError::ReferenceTaken(by) => {
                let by = by.map(|id| format!(": {id}")).unwrap_or_default();
                Self::conflict(format!("A message with this client_reference exists already{by}")).field(
                    "client_reference",
                    "taken",
                    "must be unique among all of your messages",
                )
            }
            AcceptError::KeyReused => {
                Self::new(Code::IdempotencyKeyReused, "This Idempotency-Key came with another body before")
            }
            AcceptError::NotWritten(fault) => fault.into(),
            AcceptError::Database(fault) => fault.into(),
            AcceptError::Stopping(fault) => fault.into(),
        }
    }
}

impl From<DirectoryError> for Problem {
    fn from(fault: DirectoryError) -> Self {
        match fault {
            DirectoryError::Database(fault) => fault.into(),
            DirectoryError::Sealed(_) | DirectoryError::Unreadable(_) => {
                tracing::error!(%fault, "the directory cannot be read");
                Self::new(Code::Internal, "The request failed; its id finds it in the log")
            }
        }
    }
}
