//! `/v1/events`: what happened, in order.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::{Caller, Page, Problem, Query};
use crate::app::App;
use crate::domain::ids::EventId;
use crate::events::query::{self, After, Event, Position};
use crate::events::{types, view};
use crate::identity::scope::Scope;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/events").route(web::get().to(list)));
}

#[derive(OpenApi)]
#[openapi(paths(list))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Which events are asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventParams {
    /// Types of events or groups such as `message.*`, separated by commas; all, if left out.
    #[serde(rename = "type")]
    #[param(example = "message.delivered,message.read")]
    kind: Option<String>,
    /// Where to begin: after the event with this id, or after this time (RFC 3339). From the first event, if left out.
    #[param(example = "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c")]
    after: Option<String>,
    /// How many at most: 1 to 200, default 50.
    #[param(minimum = 1, maximum = 200, default = 50, example = 50)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before; then `after` is not looked at.
    cursor: Option<String>,
}

/// Something that happened.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
struct EventView {
    /// The event; also the `webhook-id` of its deliveries.
    id: EventId,
    /// Its type.
    #[serde(rename = "type")]
    #[schema(example = "message.delivered")]
    kind: String,
    /// When it happened.
    timestamp: DateTime<Utc>,
    /// The resource as the API shows it.
    #[schema(value_type = Object)]
    data: Value,
}

/// A page of events.
#[derive(Serialize, ToSchema)]
struct EventList {
    /// The events, oldest first.
    data: Vec<EventView>,
    /// Hand it in as `cursor` for the next page; null when there is no more yet: ask again later, `after` the last event.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List events
///
/// Oldest first, and always in the same order: whoever goes on after the last event it has seen misses none.
#[utoipa::path(get, path = "/v1/events", tag = "Events", operation_id = "list_events", params(EventParams),
    responses((status = 200, description = "A page of events", body = EventList)))]
async fn list(app: web::Data<App>, caller: Caller, params: Query<EventParams>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let EventParams { kind, after, limit, cursor } = params.0;
    let limit = Page::new(limit, None)?.limit;
    let patterns = patterns(kind.as_deref())?;
    let after = match (cursor, after) {
        (Some(cursor), _) => {
            let position = cursor.parse::<Position>();
            let bad = |_| Problem::invalid("cursor", "invalid_value", "is not a cursor of this list");
            After::Position(position.map_err(bad)?)
        }
        (None, Some(after)) => {
            after.parse().map_err(|_| unknown_place("must be the id of an event or a time in RFC 3339 form"))?
        }
        (None, None) => After::Position(Position::START),
    };
    let parts = App::clone(&app);
    let found = app
        .detached(async move {
            parts.db.tenant(tenant, async move |conn| query::list(conn, after, &patterns, limit + 1).await).await
        })
        .await??;
    let events = found.ok_or_else(|| unknown_place("names no event"))?;
    Ok(HttpResponse::Ok().content_type("application/json").body(page(&events, limit)))
}

pub(super) fn unknown_place(rule: &str) -> Problem {
    Problem::invalid("after", "invalid_value", rule)
}

pub(super) fn patterns(list: Option<&str>) -> Result<Vec<String>, Problem> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let patterns: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
    if patterns.iter().all(|pattern| types::is_pattern(pattern)) {
        return Ok(patterns);
    }
    let rule = format!("must be `*`, a group such as `message.*`, or one of: {}", types::TYPES.join(", "));
    Err(Problem::invalid("type", "invalid_value", rule))
}

/// The events' own JSON, put together without reading it again.
fn page(events: &[Event], limit: i64) -> String {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let shown = events.get(..limit).unwrap_or(events);
    let mut text = String::with_capacity(shown.iter().map(|event| event.data.len() + 160).sum::<usize>() + 64);
    text.push_str("{\"data\":[");
    for (index, event) in shown.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        view::write_envelope(&mut text, event.id, &event.kind, event.at, &event.data);
    }
    text.push_str("],\"next_cursor\":");
    match shown.last().filter(|_| events.len() > shown.len()) {
        Some(last) => {
            text.push('"');
            text.push_str(&last.position.to_string());
            text.push('"');
        }
        None => text.push_str("null"),
    }
    text.push('}');
    text
}
