//! Reading messages: lists, one, its history.

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::App;
use crate::domain::content::Kind;
use crate::domain::failure::FailureCode;
use crate::domain::ids::{MessageId, SessionId};
use crate::domain::recipient::ChatId;
use crate::domain::status::Status;
use crate::http::{Caller, Cursor, Page, Path, Problem, parse_query, query_pairs};
use crate::identity::scope::Scope;
use crate::messages::queries::{self, Filter, Transition};
use crate::messages::view::Message;
use crate::search::query::search;

/// Which messages to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ListMessages {
    /// Of this session.
    pub(super) session_id: Option<SessionId>,
    /// `inbound` or `outbound`.
    pub(super) direction: Option<String>,
    /// In this status.
    pub(super) status: Option<String>,
    /// To this number or WhatsApp id.
    pub(super) to: Option<String>,
    /// From this number or WhatsApp id.
    pub(super) from: Option<String>,
    /// Of this kind.
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    /// Failed for this reason.
    pub(super) error_code: Option<String>,
    /// With your own id of it.
    pub(super) client_reference: Option<String>,
    /// Created at or after this time.
    pub(super) created_after: Option<DateTime<Utc>>,
    /// Created before this time.
    pub(super) created_before: Option<DateTime<Utc>>,
    /// With these words, in any language, accents aside: all of them, or as search engines have it: `or`, `"a phrase"`, `-without`.
    /// The last word may be the beginning of one. 1 to 256 characters.
    #[param(min_length = 1, max_length = 256, example = "invoice november")]
    pub(super) q: Option<String>,
    /// How many at most: 1 to 200, default 50.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub(super) limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    pub(super) cursor: Option<String>,
}

impl ListMessages {
    pub(super) fn filter(self, metadata: Vec<(String, String)>) -> Result<Filter, Problem> {
        let one_of = |field: &str, value: &Option<String>, allowed: &[&str]| match value {
            Some(value) if !allowed.contains(&value.as_str()) => {
                Err(Problem::invalid(field, "invalid_value", format!("must be one of {}", allowed.join(", "))))
            }
            _ => Ok(()),
        };
        one_of("direction", &self.direction, &["inbound", "outbound"])?;
        one_of("status", &self.status, &Status::ALL.map(Status::as_str))?;
        one_of("type", &self.kind, &Kind::ALL.map(Kind::as_str))?;
        let codes: Vec<&str> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
        one_of("error_code", &self.error_code, &codes)?;
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
            error_code: self.error_code,
            client_reference: self.client_reference,
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

/// A message of a list.
#[derive(Serialize, ToSchema)]
struct Listed<'a> {
    #[serde(flatten)]
    message: Message<'a>,
    /// Of a search: up to three passages with what was looked for, as HTML. The words stand between `<mark>` and `</mark>`; there is
    /// no other markup in it, whatever the message says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["Your <mark>invoice</mark> of <mark>November</mark> is attached."]))]
    highlights: Option<&'a [String]>,
}

/// A page of messages.
#[derive(Serialize, ToSchema)]
struct MessageList<'a> {
    /// The messages, newest first.
    data: Vec<Listed<'a>>,
    /// Hand it in as `cursor` for the next page; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List messages
///
/// Newest first, in both directions. Narrow the list by the parameters, and by your own data with `metadata.<key>=<value>`.
///
/// `q` searches the texts; a message is found a moment after it can be seen, an edit likewise. What was revoked or erased is not
/// found.
#[utoipa::path(get, path = "/v1/messages", tag = "Messages", operation_id = "list_messages", params(ListMessages),
    responses((status = 200, description = "A page of messages", body = MessageList<'_>)))]
pub(in crate::http) async fn list(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
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
    let mut query: ListMessages = parse_query(&pairs)?;
    let page = Page::new(query.limit, query.cursor.as_deref())?;
    let wanted = query.q.take();
    let filter = query.filter(metadata)?;
    let parts = App::clone(&app);
    if let Some(wanted) = wanted {
        if wanted.trim().is_empty() || wanted.chars().count() > 256 {
            return Err(Problem::invalid("q", "invalid_value", "must have 1 to 256 characters"));
        }
        let hits = app
            .detached(async move {
                let after = page.after.map(|cursor| (cursor.at, cursor.id));
                search(&parts.db, tenant, &wanted, &filter, after, page.fetch()).await
            })
            .await??;
        let list = page.answer(hits, |hit| Cursor { at: hit.message.created_at, id: hit.message.id.0 });
        let data = list.data.iter();
        let data = data
            .map(|hit| Listed { message: Message::from(&hit.message), highlights: Some(hit.highlights.as_slice()) })
            .collect();
        return Ok(HttpResponse::Ok().json(MessageList { data, next_cursor: list.next_cursor }));
    }
    let rows = app
        .detached(async move {
            let after = page.after.map(|cursor| (cursor.at, cursor.id));
            parts.db.tenant(tenant, async |conn| queries::list(conn, &filter, after, page.fetch()).await).await
        })
        .await??;
    let list = page.answer(rows, |row| Cursor { at: row.created_at, id: row.id.0 });
    let data = list.data.iter().map(|row| Listed { message: Message::from(row), highlights: None }).collect();
    Ok(HttpResponse::Ok().json(MessageList { data, next_cursor: list.next_cursor }))
}

/// Look at a message
///
/// The message as it is now.
#[utoipa::path(get, path = "/v1/messages/{id}", tag = "Messages", operation_id = "get_message",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "The message", body = Message<'_>)))]
pub(in crate::http) async fn one(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
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
pub(in crate::http) async fn transitions(
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
