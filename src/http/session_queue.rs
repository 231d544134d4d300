//! `/v1/sessions/{id}/queue`: what waits, and withdrawing it.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::{Caller, Path, Problem};
use crate::app::App;
use crate::domain::ids::SessionId;
use crate::identity::scope::Scope;
use crate::sessions::queue;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions/{id}/queue").route(web::get().to(show)).route(web::delete().to(empty)));
}

#[derive(OpenApi)]
#[openapi(paths(show, empty))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// What waits in a session's queue.
#[derive(Serialize, ToSchema)]
#[schema(as = SessionQueue, example = json!({
    "session_id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c", "total": 1203, "counts": {"high": 0, "normal": 3, "bulk": 1200},
    "scheduled": 12, "held": {"restricted": 0, "new_chats_per_day": 40}, "oldest_at": "2026-11-21T09:30:20Z",
    "oldest_age_seconds": 341, "next_at": "2026-11-21T09:36:01Z"
}))]
struct QueueView {
    /// The session.
    session_id: SessionId,
    /// Messages that wait for their turn: the sum of `counts`.
    total: i64,
    /// The same by priority.
    counts: Counts,
    /// Messages whose `scheduled_at` is still to come.
    scheduled: i64,
    /// Messages that wait although their turn came, by cause. They hold up nobody.
    held: HeldCounts,
    /// When the oldest message that waits for its turn or is held was accepted.
    #[schema(required)]
    oldest_at: Option<DateTime<Utc>>,
    /// How long ago that is, in seconds.
    #[schema(required)]
    oldest_age_seconds: Option<i64>,
    /// When the next one may leave, as far as is known now; null when nothing waits or sending is paused.
    #[schema(required)]
    next_at: Option<DateTime<Utc>>,
}

/// How many of each priority.
#[derive(Serialize, ToSchema)]
#[schema(as = QueueCounts)]
struct Counts {
    /// High ones.
    high: i64,
    /// Normal ones.
    normal: i64,
    /// Bulk ones.
    bulk: i64,
}

/// How many are held, by cause.
#[derive(Serialize, ToSchema)]
#[schema(as = QueueHeld)]
struct HeldCounts {
    /// To people who never wrote, while WhatsApp restricts the session.
    restricted: i64,
    /// To people who never wrote, above the cap of the session's pacing.
    new_chats_per_day: i64,
}

/// Look at a session's queue
///
/// How many messages wait, by priority, and since when.
#[utoipa::path(get, path = "/v1/sessions/{id}/queue", tag = "Sessions", operation_id = "get_session_queue",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 200, description = "What waits", body = QueueView)))]
async fn show(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let (id, parts) = (id.0, App::clone(&app));
    let found = app
        .detached(async move { parts.db.tenant(tenant, async move |conn| queue::show(conn, id).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    let now = app.clock.now();
    Ok(HttpResponse::Ok().json(QueueView {
        session_id: id,
        total: found.high + found.normal + found.bulk,
        counts: Counts { high: found.high, normal: found.normal, bulk: found.bulk },
        scheduled: found.scheduled,
        held: HeldCounts { restricted: found.restricted, new_chats_per_day: found.new_chats_per_day },
        oldest_at: found.oldest,
        oldest_age_seconds: found.oldest.map(|oldest| (now - oldest).num_seconds().max(0)),
        next_at: found.next,
    }))
}

/// What was cancelled.
#[derive(Serialize, ToSchema)]
#[schema(as = QueueEmptied, example = json!({"cancelled": 1203}))]
struct Emptied {
    /// Messages that were cancelled.
    cancelled: usize,
}

/// Empty a session's queue
///
/// Cancels what waits: queued, held and scheduled messages that were accepted before the request. What is being handed over
/// right now is not stopped. Each cancelled message has its `message.cancelled` event.
#[utoipa::path(delete, path = "/v1/sessions/{id}/queue", tag = "Sessions", operation_id = "empty_session_queue",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 200, description = "How many were cancelled", body = Emptied)))]
async fn empty(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let (id, parts) = (id.0, App::clone(&app));
    let cancelled =
        app.detached(async move { queue::empty(&parts, tenant, id).await }).await??.ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(Emptied { cancelled }))
}
