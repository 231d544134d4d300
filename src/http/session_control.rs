//! `/v1/sessions/{id}/…`: starting and stopping, pausing and resuming, and the QR code.

use actix_web::http::header::{self, Accept, Header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{Caller, Code, MaybeBody, Path, Problem, ProblemBody, Rules, versioned};
use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::identity::scope::Scope;
use crate::sessions::change;
use crate::sessions::qr::{self, QrError};
use crate::sessions::queries::{self, Desired};
use crate::sessions::view::Session;
use crate::waha::CallError;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions/{id}/qr").route(web::get().to(show_qr)))
        .service(web::resource("/sessions/{id}/start").route(web::post().to(start)))
        .service(web::resource("/sessions/{id}/stop").route(web::post().to(stop)))
        .service(web::resource("/sessions/{id}/pause").route(web::post().to(pause)))
        .service(web::resource("/sessions/{id}/resume").route(web::post().to(resume)));
}

#[derive(OpenApi)]
#[openapi(paths(start, stop, pause, resume, show_qr))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Start a session
///
/// The answer says that it is wanted; the session follows in the background. One that runs already is left alone.
#[utoipa::path(post, path = "/v1/sessions/{id}/start", tag = "Sessions", operation_id = "start_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be started", body = Session<'_>)))]
async fn start(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    want(&app, &caller, id.0, Desired::Started).await
}

/// Stop a session
///
/// The answer says that it is wanted; the session follows in the background. Its pairing is kept, and what waits in its
/// queue leaves once it works again.
#[utoipa::path(post, path = "/v1/sessions/{id}/stop", tag = "Sessions", operation_id = "stop_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 202, description = "It will be stopped", body = Session<'_>)))]
async fn stop(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    want(&app, &caller, id.0, Desired::Stopped).await
}

async fn want(app: &App, caller: &Caller, id: SessionId, desired: Desired) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let (parts, now) = (app.clone(), app.clock.now());
    let row = app
        .detached(async move {
            let row = parts.db.tenant(tenant, async move |conn| queries::want(conn, id, desired, now).await).await?;
            parts.wake.sessions.notify_one();
            Ok::<_, Problem>(row)
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Accepted().json(Session::from(&row)))
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

/// A QR code to scan with the phone.
#[derive(ToSchema)]
#[schema(as = QrCode, example = json!({"value": "2@…", "expires_at": "2026-11-21T09:30:20Z"}))]
#[expect(dead_code, reason = "describes the answer")]
struct QrCode {
    /// What the picture says. A credential: show it, keep it nowhere.
    value: String,
    /// When the next code replaces it.
    expires_at: DateTime<Utc>,
}

/// What is sent of a code.
#[derive(Serialize)]
struct QrAnswer<'a> {
    #[serde(serialize_with = "exposed")]
    value: &'a SecretString,
    expires_at: DateTime<Utc>,
}

fn exposed<S: serde::Serializer>(value: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose_secret())
}

/// Show the QR code
///
/// The code to scan right now, as text or, with `Accept: image/png`, as a picture. WhatsApp replaces it every 20 to 60
/// seconds: fetch it again when it expires. 409 unless the session is `scan_qr`.
#[utoipa::path(get, path = "/v1/sessions/{id}/qr", tag = "Sessions", operation_id = "get_session_qr",
    params(("id" = SessionId, Path, description = "The session")),
    responses(
        (status = 200, description = "The code", content(
            (QrCode = "application/json", example = json!({"value": "2@…", "expires_at": "2026-11-21T09:30:20Z"})),
            (String = "image/png"))),
        (status = 409, description = "The session is not scan_qr", body = ProblemBody<'_>, content_type = "application/problem+json")))]
async fn show_qr(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let code = app.detached(async move { qr::qr(&parts, tenant, id.0).await }).await??;
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store")).insert_header((header::VARY, "Accept"));
    if wants_picture(&request) {
        return Ok(response.content_type("image/png").body(code.png()?));
    }
    Ok(response.json(QrAnswer { value: &code.value, expires_at: code.expires_at }))
}

/// Whether the caller would rather have a picture than JSON.
fn wants_picture(request: &HttpRequest) -> bool {
    let Ok(accept) = Accept::parse(request) else { return false };
    accept
        .ranked()
        .iter()
        .find_map(|mime| match (mime.type_().as_str(), mime.subtype().as_str()) {
            ("image", "png" | "*") => Some(true),
            ("application", "json" | "*") | ("*", "*") => Some(false),
            _ => None,
        })
        .unwrap_or(false)
}

impl From<QrError> for Problem {
    fn from(fault: QrError) -> Self {
        match fault {
            QrError::NotFound => Self::not_found(),
            QrError::NotScanning(status) => {
                Self::conflict(format!("The session is {status}; there is a QR code only while it is scan_qr"))
            }
            QrError::Unavailable(CallError::Unauthorized | CallError::Rule(_) | CallError::Unsupported(_)) => {
                tracing::error!(%fault, "a QR code was refused");
                Self::new(Code::Unavailable, "The WAHA server of this session refuses to show the code").retry_after(30)
            }
            QrError::Unavailable(_) => {
                tracing::warn!(%fault, "a QR code could not be fetched");
                Self::new(Code::Unavailable, "The WAHA server of this session does not answer").retry_after(5)
            }
            QrError::Drawing => {
                tracing::error!("a QR code could not be drawn");
                Self::new(Code::Internal, "The code cannot be drawn; ask for it as JSON")
            }
            QrError::Database(fault) => fault.into(),
            QrError::Directory(fault) => fault.into(),
        }
    }
}
