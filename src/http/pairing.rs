//! `/v1/sessions/{id}/…`: pairing, by QR code, by a code that is typed, by a link to a page, or by passkey.
//!
//! Everything shown here is a credential: answers are not to be cached, and nothing of them is logged.

mod page;
mod passkey;
mod progress;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, Accept, Header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{
    Body, Caller, Code, Created, IdempotencyHeader, MaybeBody, MaybeIdempotencyKey, Once, Path, Problem, ProblemBody,
    once_tenant,
};
use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::identity::scope::Scope;
use crate::sessions::pairing::{self, PairingError};
use crate::sessions::pairing_link::Pass;
use crate::sessions::qr::{self, QrError};
use crate::sessions::queries;
use crate::waha::CallError;

/// How long a link can be used, in seconds: unless said otherwise, at the least, at the most.
const LINK_DEFAULT: i64 = 900;
const LINK_LEAST: i64 = 60;
const LINK_MOST: i64 = 3600;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions/{id}/qr").route(web::get().to(show_qr)))
        .service(web::resource("/sessions/{id}/pairing-code").route(web::post().to(code)))
        .service(web::resource("/sessions/{id}/pairing-link").route(web::post().to(link)))
        .configure(passkey::routes);
}

/// The routes of the page, which are not below `/v1` and take the link's token for all credentials.
pub(super) fn page_routes(cfg: &mut ServiceConfig) {
    page::routes(cfg);
}

#[derive(OpenApi)]
#[openapi(paths(show_qr, code, link))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    let mut api = Api::openapi();
    api.merge(passkey::openapi());
    api.merge(page::openapi());
    api
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
/// The code to scan right now, as text; with `Accept: image/png` as a picture; with `Accept: text/plain` drawn for a terminal,
/// in half blocks with ANSI colours. WhatsApp replaces it, the first after 60 seconds and each further one after 20, which is a
/// `session.qr` event: fetch it again then. 409 unless the session is `scan_qr`.
#[utoipa::path(get, path = "/v1/sessions/{id}/qr", tag = "Sessions", operation_id = "get_session_qr",
    params(("id" = SessionId, Path, description = "The session")),
    responses(
        (status = 200, description = "The code", content(
            (QrCode = "application/json", example = json!({"value": "2@…", "expires_at": "2026-11-21T09:30:20Z"})),
            (String = "image/png"), (String = "text/plain"))),
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
    let mut response = secret();
    response.insert_header((header::VARY, "Accept"));
    Ok(match wanted_form(&request) {
        Form::Json => response.json(QrAnswer { value: &code.value, expires_at: code.expires_at }),
        Form::Picture => response.content_type("image/png").body(code.png()?),
        Form::Terminal => response.content_type("text/plain; charset=utf-8").body(code.terminal()?),
    })
}

/// 200 with something that nobody may keep.
fn secret() -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    response
}

/// The forms of a QR code.
#[derive(Clone, Copy)]
enum Form {
    Json,
    Picture,
    Terminal,
}

/// The form that the caller would rather have.
fn wanted_form(request: &HttpRequest) -> Form {
    let Ok(accept) = Accept::parse(request) else { return Form::Json };
    accept
        .ranked()
        .iter()
        .find_map(|mime| match (mime.type_().as_str(), mime.subtype().as_str()) {
            ("image", "png" | "*") => Some(Form::Picture),
            ("text", "plain" | "*") => Some(Form::Terminal),
            ("application", "json" | "*") | ("*", "*") => Some(Form::Json),
            _ => None,
        })
        .unwrap_or(Form::Json)
}

/// The phone to be paired.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"phone": "+15550100001"}))]
struct PairingCodeRequest {
    /// Its number in E.164, with or without `+` and separators.
    #[schema(example = "+15550100001")]
    phone: String,
}

/// A code to type into the phone.
#[derive(ToSchema)]
#[schema(as = PairingCode, example = json!({"code": "ABCD-EFGH"}))]
#[expect(dead_code, reason = "describes the answer")]
struct PairingCode {
    /// What to type. A credential: show it, keep it nowhere.
    code: String,
}

/// What is sent of such a code.
#[derive(Serialize)]
struct CodeAnswer<'a> {
    #[serde(serialize_with = "exposed")]
    code: &'a SecretString,
}

/// Get a pairing code
///
/// A code to type into the phone with this number instead of scanning: in WhatsApp under *Linked devices*, *Link with phone number
/// instead*. It holds while the session is `scan_qr`; a new one replaces it. WhatsApp is choosy about such codes, so always offer
/// the QR code too: where none is to be had, the problem names its path. 409 unless the session is `scan_qr`; 429 after eight
/// in ten minutes.
#[utoipa::path(post, path = "/v1/sessions/{id}/pairing-code", tag = "Sessions", operation_id = "create_pairing_code",
    params(("id" = SessionId, Path, description = "The session")), request_body = PairingCodeRequest,
    responses((status = 200, description = "The code", body = PairingCode),
        (status = 409, description = "The session is not scan_qr, or WhatsApp gives no code", body = ProblemBody<'_>, content_type = "application/problem+json")))]
async fn code(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    body: Body<PairingCodeRequest>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let digits = digits_of(&body.into_inner().phone)?;
    let code = code_for(&app, tenant, id.0, digits).await?;
    Ok(secret().json(CodeAnswer { code: &code }))
}

/// The digits of a phone number.
fn digits_of(phone: &str) -> Result<String, Problem> {
    let invalid = |message: String| Problem::invalid("phone", "invalid_value", message);
    let chat = ChatId::parse(phone).map_err(|fault| invalid(fault.to_string()))?;
    let phone = chat.phone().ok_or_else(|| invalid("must be a phone number in E.164".to_owned()))?;
    Ok(phone.trim_start_matches('+').to_owned())
}

async fn code_for(app: &App, tenant: TenantId, session: SessionId, digits: String) -> Result<SecretString, Problem> {
    let parts = app.clone();
    let code = app.detached(async move { pairing::code(&parts, tenant, session, &digits).await }).await?;
    let qr = format!("scan the QR code instead: GET /v1/sessions/{session}/qr");
    code.map_err(|fault| match fault {
        PairingError::WrongStep(status) => Problem::conflict(format!(
            "The session is {status}; there are pairing codes only while it waits for a scan"
        )),
        PairingError::Refused(CallError::Unauthorized) | PairingError::Unavailable(_) => {
            tracing::warn!(session_id = %session, %fault, "a pairing code is not to be had");
            Problem::new(Code::Unavailable, format!("The WAHA server of this session gives no pairing code now; {qr}"))
                .retry_after(10)
        }
        PairingError::Refused(_) => {
            tracing::info!(session_id = %session, %fault, "a pairing code was refused");
            Problem::conflict(format!("WhatsApp gives no pairing code for this session; {qr}"))
        }
        fault => fault.into(),
    })
}

impl From<PairingError> for Problem {
    fn from(fault: PairingError) -> Self {
        match fault {
            PairingError::NotFound => Self::not_found(),
            PairingError::WrongStep(status) => Self::conflict(format!("The session is {status}")),
            PairingError::TooOften => {
                Self::new(Code::RateLimited, "Codes were asked for too often; wait some minutes").retry_after(300)
            }
            PairingError::Refused(CallError::Unauthorized) => {
                tracing::error!("a WAHA server refuses the gateway's key");
                Self::new(Code::Unavailable, "The WAHA server of this session cannot be used now").retry_after(30)
            }
            PairingError::Refused(_) => {
                tracing::info!(%fault, "a step of a pairing was refused");
                Self::conflict("WhatsApp refuses this step of the pairing")
            }
            PairingError::Unavailable(_) => {
                tracing::warn!(%fault, "a pairing cannot go on");
                Self::new(Code::Unavailable, "The WAHA server of this session does not answer").retry_after(5)
            }
            PairingError::Database(fault) => fault.into(),
            PairingError::Directory(fault) => fault.into(),
        }
    }
}

/// How long the link can be used.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"expires_in_seconds": 900}))]
struct PairingLinkRequest {
    /// For so many seconds: 60 to 3600, default 900.
    #[schema(minimum = 60, maximum = 3600, default = 900)]
    expires_in_seconds: Option<i64>,
}

/// A link to the pairing page.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"url": "https://gateway.example/pair/AZlPPm1P…", "expires_at": "2026-11-21T09:45:00Z"}))]
struct PairingLink {
    /// Where the page is, below the gateway's public address. Whoever has it can pair this session: hand it to nobody but
    /// whoever holds the phone.
    url: String,
    /// Until when it can be used.
    expires_at: DateTime<Utc>,
}

/// Make a link to the pairing page
///
/// For whoever holds the phone and has no access to the API: a page that shows the QR code as it changes, how far pairing has
/// come, and that it is done; with new codes on request and a pairing code to type. The link is for this session alone, and once
/// the session has been connected it shows nothing else. 409 while the session is connected.
#[utoipa::path(post, path = "/v1/sessions/{id}/pairing-link", tag = "Sessions", operation_id = "create_pairing_link",
    params(("id" = SessionId, Path, description = "The session"), IdempotencyHeader),
    request_body(content = Option<PairingLinkRequest>, example = json!({"expires_in_seconds": 900})),
    responses((status = 201, description = "The link", body = PairingLink,
        headers(("Idempotency-Replayed" = String, description = "`true` when this is the first answer again")))))]
async fn link(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    key: MaybeIdempotencyKey,
    body: MaybeBody<PairingLinkRequest>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "sessions.pairing_link";
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let session = id.0;
    // The same key for another session asks for something else.
    let operation = format!("{OPERATION}:{session}");
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.0.fingerprint(&operation), secret: true };
    let seconds = body.0.into_inner().expires_in_seconds.unwrap_or(LINK_DEFAULT);
    if !(LINK_LEAST..=LINK_MOST).contains(&seconds) {
        return Err(Problem::invalid("expires_in_seconds", "out_of_range", "must be from 60 to 3600"));
    }
    let parts = App::clone(&app);
    let created = once_tenant(&app, tenant, once, async move |conn| {
        let row = queries::find(conn, session).await?.ok_or_else(Problem::not_found)?;
        if row.status == "working" {
            return Err(Problem::conflict("The session is connected already"));
        }
        let made_at = parts.clock.now();
        let pass = Pass { tenant, session, made_at, expires_at: made_at + TimeDelta::seconds(seconds) };
        let link = PairingLink { url: parts.pairing_links.make(&pass).into(), expires_at: pass.expires_at };
        Created::new(StatusCode::CREATED, session.0, &link)
    })
    .await?;
    let mut response = HttpResponse::build(created.status);
    response.content_type("application/json").insert_header((header::CACHE_CONTROL, "no-store"));
    if created.replayed {
        response.insert_header(("Idempotency-Replayed", "true"));
    }
    Ok(response.body(created.body))
}

impl From<QrError> for Problem {
    fn from(fault: QrError) -> Self {
        match fault {
            QrError::NotFound => Self::not_found(),
            QrError::NotScanning(status) => Self::conflict(format!(
                "The session is {status}; there is a QR code only while it waits for a scan (scan_qr)"
            )),
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
