//! `/v1/sessions`: WhatsApp numbers, paired or to be paired.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, Accept, Header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Responder};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{OpenApi, ToSchema};

use super::{
    Body, Caller, Code, Created, Cursor, IdempotencyHeader, MaybeIdempotencyKey, Once, Page, PageParams, Path, Problem,
    ProblemBody, Rules, once_system, versioned,
};
use crate::app::App;
use crate::domain::ids::SessionId;
use crate::identity::scope::Scope;
use crate::sessions::create::{self, CreateError, NewSession};
use crate::sessions::qr::{self, QrError};
use crate::sessions::queries::{self, Desired};
use crate::sessions::view::{Pacing, Session};
use crate::waha::{CallError, Engine};

const COLLECTION: &str = "/v1/sessions";
/// Bytes of JSON in `config` and in `metadata`, at the most.
const MOST_JSON: usize = 16 * 1024;
/// The longest gap between two messages, in milliseconds: a day.
const MOST_GAP: i32 = 86_400_000;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions").route(web::post().to(create)).route(web::get().to(list)))
        .service(web::resource("/sessions/{id}").route(web::get().to(get)))
        .service(web::resource("/sessions/{id}/qr").route(web::get().to(show_qr)))
        .service(web::resource("/sessions/{id}/start").route(web::post().to(start)))
        .service(web::resource("/sessions/{id}/stop").route(web::post().to(stop)));
}

#[derive(OpenApi)]
#[openapi(paths(create, list, get, show_qr, start, stop), components(schemas(Session<'_>)))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A session to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewSession, example = json!({
    "name": "support", "engine": "GOWS", "pacing": {"min_gap_ms": 1000, "jitter_ms": 500}, "metadata": {"team": "support"}
}))]
struct CreateSession {
    /// 1 to 100 characters, unique among your sessions.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// The engine to run it on: `WEBJS`, `WPP`, `NOWEB` or `GOWS`. Left out, the server with most room decides.
    #[schema(value_type = Option<String>, pattern = "^(WEBJS|WPP|NOWEB|GOWS)$")]
    engine: Option<Engine>,
    /// Whether to start it right away, which leads to the QR code; true unless said otherwise.
    #[serde(default = "yes")]
    #[schema(default = true)]
    start: bool,
    /// How fast its messages may leave.
    #[serde(default)]
    pacing: Pacing,
    /// Your own settings of the session: an object of at most 16 KiB.
    #[serde(default)]
    #[schema(value_type = Object)]
    config: Map<String, Value>,
    /// Your own data: an object of at most 16 KiB; shown with the session and its events.
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

const fn yes() -> bool {
    true
}

impl CreateSession {
    fn check(self) -> Result<NewSession, Problem> {
        let (config, metadata) = (Value::Object(self.config), Value::Object(self.metadata));
        let mut rules = Rules::new();
        rules.name("name", &self.name, 100);
        for (field, gap) in [("pacing.min_gap_ms", self.pacing.min_gap_ms), ("pacing.jitter_ms", self.pacing.jitter_ms)]
        {
            rules.check((0..=MOST_GAP).contains(&gap), field, "out_of_range", "must be from 0 to 86400000");
        }
        rules.object("config", &config, MOST_JSON);
        rules.object("metadata", &metadata, MOST_JSON);
        rules.finish()?;
        let Self { name, engine, start, pacing, .. } = self;
        Ok(NewSession { name, engine, start, pacing, config, metadata })
    }
}

/// Create a session
///
/// It gets a place on a WAHA server at once; 409 when none has room. With `start` it is started there in the background:
/// follow its `status` to `scan_qr`, show the QR code to the phone, and it becomes `working`.
#[utoipa::path(post, path = "/v1/sessions", tag = "Sessions", operation_id = "create_session",
    params(IdempotencyHeader), request_body = CreateSession,
    responses((status = 201, description = "Created", body = Session<'_>,
        headers(("Location" = String, description = "Where the session can be looked at"),
                ("Idempotency-Replayed" = String, description = "`true` when this is the first answer again")))))]
async fn create(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    body: Body<CreateSession>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "sessions.create";
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.fingerprint(OPERATION), secret: false };
    let new = body.into_inner().check()?;
    let parts = App::clone(&app);
    let created = once_system(&app, Some(tenant), once, async move |conn| {
        let row = create::create_in(conn, &parts, tenant, &new).await?;
        Created::new(StatusCode::CREATED, row.id.0, &Session::from(&row))
    })
    .await?;
    if !created.replayed {
        let parts = App::clone(&app);
        app.detached(async move { create::announce(&parts).await }).await?;
    }
    Ok(created.response(COLLECTION))
}

/// A page of sessions.
#[derive(Serialize, ToSchema)]
struct SessionList<'a> {
    /// The sessions, newest first.
    data: Vec<Session<'a>>,
    /// Hand it in as `cursor` for the next page; null on the last one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List sessions
///
/// Newest first.
#[utoipa::path(get, path = "/v1/sessions", tag = "Sessions", operation_id = "list_sessions", params(PageParams),
    responses((status = 200, description = "A page of sessions", body = SessionList<'_>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts.db.tenant(tenant, async move |conn| queries::list(conn, after, page.fetch()).await).await
        })
        .await??;
    let rows = page.answer(rows, |row| Cursor { at: row.created_at, id: row.id.0 });
    let data = rows.data.iter().map(Session::from).collect();
    Ok(HttpResponse::Ok().json(SessionList { data, next_cursor: rows.next_cursor }))
}

/// Look at a session
///
/// The session as it is now.
#[utoipa::path(get, path = "/v1/sessions/{id}", tag = "Sessions", operation_id = "get_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 200, description = "The session", body = Session<'_>)))]
async fn get(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let row = app
        .detached(async move { parts.db.tenant(tenant, async move |conn| queries::find(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(versioned(&Session::from(&row), row.version))
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

impl From<CreateError> for Problem {
    fn from(fault: CreateError) -> Self {
        match fault {
            CreateError::NoRoom(_) => {
                let mut detail = fault.to_string();
                if let Some(first) = detail.get_mut(..1) {
                    first.make_ascii_uppercase();
                }
                Self::conflict(detail)
            }
            CreateError::NameTaken => {
                Self::conflict("A session of this name exists").field("name", "taken", "is taken")
            }
            CreateError::Database(fault) => fault.into(),
        }
    }
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
