//! `/v1/sessions/{id}/…`: starting and stopping, pausing and resuming, and the history.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::{Caller, Cursor, MaybeBody, Page, PageParams, Path, Problem, Rules, versioned};
use crate::app::App;
use crate::db::{DbError, TenantConn};
use crate::domain::ids::{SessionId, TenantId};
use crate::identity::scope::Scope;
use crate::ingest::gap_fill;
use crate::sessions::change;
use crate::sessions::queries::{self, Wish};
use crate::sessions::timeline::{self, Entry};
use crate::sessions::view::Session;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions/{id}/start").route(web::post().to(start)))
        .service(web::resource("/sessions/{id}/stop").route(web::post().to(stop)))
        .service(web::resource("/sessions/{id}/restart").route(web::post().to(restart)))
        .service(web::resource("/sessions/{id}/logout").route(web::post().to(logout)))
        .service(web::resource("/sessions/{id}/gap-fill").route(web::post().to(fill_gap)))
        .service(web::resource("/sessions/{id}/timeline").route(web::get().to(timeline)))
        .service(web::resource("/sessions/{id}/pause").route(web::post().to(pause)))
        .service(web::resource("/sessions/{id}/resume").route(web::post().to(resume)));
}

#[derive(OpenApi)]
#[openapi(paths(start, stop, restart, logout, fill_gap, timeline, pause, resume))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Start a session
///
/// The answer says that it is wanted; the session follows in the background. One that runs already is left alone; one that
/// has failed begins anew, which shows QR codes if it is not paired any more.
#[utoipa::path(post, path = "/v1/sessions/{id}/start", tag = "Sessions", operation_id = "start_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be started", body = Session<'_>)))]
async fn start(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    want(&app, &caller, id.0, Wish::Start).await
}

/// Stop a session
///
/// The answer says that it is wanted; the session follows in the background. Its pairing is kept, and what waits in its
/// queue leaves once it works again.
#[utoipa::path(post, path = "/v1/sessions/{id}/stop", tag = "Sessions", operation_id = "stop_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be stopped", body = Session<'_>)))]
async fn stop(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    want(&app, &caller, id.0, Wish::Stop).await
}

/// Restart a session
///
/// The answer says that it is wanted; the session follows in the background, within two minutes of its pairing only when these
/// are over, as a restart could lose it. Its pairing is kept, and what waits in its queue leaves once it works again.
#[utoipa::path(post, path = "/v1/sessions/{id}/restart", tag = "Sessions", operation_id = "restart_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be restarted", body = Session<'_>)))]
async fn restart(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    want(&app, &caller, id.0, Wish::Restart).await
}

/// Log a session out
///
/// It is unlinked from the phone, in the background. One that should run then shows QR codes, to be paired with the same phone
/// or another one; what waits in its queue leaves once it works again.
#[utoipa::path(post, path = "/v1/sessions/{id}/logout", tag = "Sessions", operation_id = "logout_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be unlinked", body = Session<'_>)))]
async fn logout(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    want(&app, &caller, id.0, Wish::Logout).await
}

async fn want(app: &App, caller: &Caller, id: SessionId, wish: Wish) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let (parts, now, actor) = (app.clone(), app.clock.now(), caller.actor().to_string());
    let row = app
        .detached(async move {
            let wanted = async |conn: &mut TenantConn| queries::want(conn, id, wish, &actor, now).await;
            let row = parts.db.tenant(tenant, wanted).await?;
            parts.wake.sessions.notify_one();
            Ok::<_, Problem>(row)
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Accepted().json(Session::from(&row)))
}

/// Read a session's messages back
///
/// Asks the WAHA server for everything since the last time and stores what webhooks did not bring, in the background. That is
/// done by itself every few hours, after restarts and reconnects, and when a session is unusually silent. A session that does
/// not work is read back once it works again.
#[utoipa::path(post, path = "/v1/sessions/{id}/gap-fill", tag = "Sessions", operation_id = "fill_session_gap",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be read back", body = Session<'_>)))]
async fn fill_gap(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let (id, parts, now) = (id.0, App::clone(&app), app.clock.now());
    let row = app
        .detached(async move {
            let asked = async |conn: &mut TenantConn| match queries::find(conn, id).await? {
                Some(row) => gap_fill::ask(conn, id, now).await.map(|()| Some(row)),
                None => Ok::<_, DbError>(None),
            };
            parts.db.tenant(tenant, asked).await
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Accepted().json(Session::from(&row)))
}

/// Something that happened to a session.
#[derive(Serialize, ToSchema)]
struct TimelineEntry {
    /// When.
    at: DateTime<Utc>,
    /// The session's `status` from then on.
    #[schema(example = "working")]
    status: String,
    /// The status that WAHA reported, which `status` follows only when an outage lasts for more than 30 s.
    #[schema(example = "starting")]
    waha_status: String,
    /// Why, for people.
    #[schema(example = "reported by WAHA")]
    cause: String,
    /// Who caused it: `waha`, `gateway`, `platform`, `platform_key:<id>` or `api_key:<id>`.
    #[schema(example = "waha")]
    actor: String,
}

/// A page of a session's history.
#[derive(Serialize, ToSchema)]
struct Timeline {
    /// What happened, newest first.
    data: Vec<TimelineEntry>,
    /// Hand it in as `cursor` for the next page; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Show what happened to a session
///
/// Every change of its status and everything that was asked for, with cause and actor, newest first. Changes that were over
/// within 30 s and so never showed are among them.
#[utoipa::path(get, path = "/v1/sessions/{id}/timeline", tag = "Sessions", operation_id = "get_session_timeline",
    params(("id" = SessionId, Path, description = "The session"), PageParams),
    responses((status = 200, description = "A page of its history", body = Timeline)))]
async fn timeline(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    page: Page,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let (id, parts) = (id.0, App::clone(&app));
    let rows = app
        .detached(async move {
            let before = page.after.and_then(|after| i64::try_from(after.id.as_u128()).ok());
            let listed = async |conn: &mut TenantConn| match queries::find(conn, id).await? {
                Some(_) => timeline::list(conn, id, before, page.fetch()).await.map(Some),
                None => Ok::<_, DbError>(None),
            };
            parts.db.tenant(tenant, listed).await
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    // The history is ordered by its own numbers.
    let place = |row: &Entry| Cursor { at: row.at, id: Uuid::from_u128(u128::from(row.id.unsigned_abs())) };
    let rows = page.answer(rows, place);
    let entry = |row: Entry| {
        let Entry { at, status, waha_status, cause, actor, .. } = row;
        TimelineEntry { at, status, waha_status, cause, actor }
    };
    let data = rows.data.into_iter().map(entry).collect();
    Ok(HttpResponse::Ok().json(Timeline { data, next_cursor: rows.next_cursor }))
}

/// Why sending is paused.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "the shop is closed"}))]
struct PauseSession {
    /// For people: at most 200 characters; shown with the session.
    #[schema(max_length = 200)]
    reason: Option<String>,
}

/// Pause sending
///
/// No more messages of the session leave until it is resumed; what is being handed over right now is not stopped. Messages
/// are accepted and wait in their order, and the session stays paired. Pausing is independent of the session's own status:
/// one that is paused and also stops working waits until it works again and is resumed.
#[utoipa::path(post, path = "/v1/sessions/{id}/pause", tag = "Sessions", operation_id = "pause_session",
    params(("id" = SessionId, Path, description = "The session")), 
    request_body(content = Option<PauseSession>, example = json!({"reason": "the shop is closed"})),
    responses((status = 200, description = "The session, paused", body = Session<'_>)))]
async fn pause(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    body: MaybeBody<PauseSession>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let PauseSession { reason } = body.0.into_inner();
    let mut rules = Rules::new();
    rules.text("reason", reason.as_deref().unwrap_or_default(), 200);
    rules.finish()?;
    set_paused(&app, tenant, id.0, true, reason).await
}

/// Resume sending
///
/// What waits leaves again, in its order and with the session's pacing. A session that is not paused is left alone.
#[utoipa::path(post, path = "/v1/sessions/{id}/resume", tag = "Sessions", operation_id = "resume_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 200, description = "The session, no longer paused", body = Session<'_>)))]
async fn resume(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    set_paused(&app, tenant, id.0, false, None).await
}

async fn set_paused(
    app: &App,
    tenant: TenantId,
    id: SessionId,
    paused: bool,
    reason: Option<String>,
) -> Result<HttpResponse, Problem> {
    let (parts, now) = (app.clone(), app.clock.now());
    let row = app
        .detached(async move {
            let row = parts
                .db
                .tenant(tenant, async move |conn| change::pause(conn, id, paused, reason.as_deref(), now).await)
                .await?;
            parts.wake.dispatch.notify_one();
            Ok::<_, Problem>(row)
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(versioned(&Session::from(&row), row.version))
}
