//! `/pair/{token}`: the pairing page, for whoever holds the phone.
//!
//! The token is all the credentials there are, and it opens nothing but this: how far this session's pairing is, its QR code, a
//! pairing code, and new codes once it has failed. A token that is tampered with, has expired, or whose session is gone gets the
//! same answer as one that never was. The page loads nothing from anywhere else and may be framed by nobody.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, HttpResponseBuilder};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use utoipa::OpenApi;

use super::progress::{Progress, State};
use super::{CodeAnswer, code_for, digits_of, secret};
use crate::app::App;
use crate::http::{Body, Code, Path, Problem, sse};
use crate::sessions::pairing;
use crate::sessions::pairing_link::Pass;
use crate::sessions::queries;
use crate::sessions::view::SessionRow;

const PAGE: &str = include_str!("page.html");
const GONE: &str = include_str!("gone.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/pair/{token}").route(web::get().to(page)))
        .service(web::resource("/pair/{token}/events").route(web::get().to(events)))
        .service(web::resource("/pair/{token}/restart").route(web::post().to(restart)))
        .service(web::resource("/pair/{token}/code").route(web::post().to(code)));
}

#[derive(OpenApi)]
#[openapi(paths(page))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Whose link it is, and the session as it is.
async fn guest(app: &App, token: &str) -> Result<Option<(Pass, SessionRow)>, Problem> {
    let Some(pass) = app.pairing_links.read(token, app.clock.now()) else { return Ok(None) };
    let parts = app.clone();
    let found = app
        .detached(async move {
            parts.db.tenant(pass.tenant, async move |conn| queries::find(conn, pass.session).await).await
        })
        .await??;
    Ok(found.map(|row| (pass, row)))
}

/// Show the pairing page
///
/// For a browser, with a link of `POST /v1/sessions/{id}/pairing-link`: the QR code as it changes, how far pairing is, and success.
/// A link that is wrong or has expired, or whose session is gone, shows nothing.
#[utoipa::path(get, path = "/pair/{token}", tag = "Sessions", operation_id = "show_pairing_page", security(()),
    params(("token" = String, Path, description = "The end of the link")),
    responses((status = 200, description = "The page", body = String, content_type = "text/html"),
              (status = 404, description = "A page that says that the link cannot be used", body = String, content_type = "text/html")))]
async fn page(app: web::Data<App>, token: Path<String>) -> Result<HttpResponse, Problem> {
    let nonce = STANDARD.encode(app.chance.bytes::<16>());
    let (status, page) = match guest(&app, &token.0).await? {
        Some(_) => (StatusCode::OK, PAGE),
        None => (StatusCode::NOT_FOUND, GONE),
    };
    let body = page.replace("{{style}}", STYLE).replace("{{script}}", SCRIPT).replace("{{nonce}}", &nonce);
    Ok(guarded(status, &nonce).content_type("text/html; charset=utf-8").body(body))
}

fn guarded(status: StatusCode, nonce: &str) -> HttpResponseBuilder {
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = HttpResponse::build(status);
    response
        .insert_header((header::CONTENT_SECURITY_POLICY, policy))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::X_FRAME_OPTIONS, "DENY"))
        .insert_header(("Cross-Origin-Opener-Policy", "same-origin"))
        .insert_header(("X-Robots-Tag", "noindex, nofollow, noarchive"));
    response
}

/// How pairing goes, as it goes.
async fn events(app: web::Data<App>, token: Path<String>) -> Result<HttpResponse, Problem> {
    let (pass, _) = guest(&app, &token.0).await?.ok_or_else(Problem::not_found)?;
    let Some(slot) = app.streams.take(pass.tenant, Duration::from_millis(100)).await else {
        return Err(Problem::new(Code::RateLimited, "The page is open too often; close some of them"));
    };
    let (frames, response) = sse::open();
    let progress = Progress::new(App::clone(&app), pass);
    app.spawn(async move {
        // Either way the stream is over.
        let _gone = progress.run(&frames, slot).await;
    });
    Ok(response)
}

/// New codes, once the last has expired or pairing has failed.
async fn restart(app: web::Data<App>, token: Path<String>) -> Result<HttpResponse, Problem> {
    let (pass, row) = guest(&app, &token.0).await?.ok_or_else(Problem::not_found)?;
    if !matches!(State::of(&row, &pass, false), State::Expired | State::Failed) {
        return Err(Problem::conflict("There are new codes only once the last has expired"));
    }
    let parts = App::clone(&app);
    app.detached(async move { pairing::restart(&parts, pass.tenant, pass.session).await }).await??;
    Ok(HttpResponse::Accepted().insert_header((header::CACHE_CONTROL, "no-store")).finish())
}

/// The number to be paired.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Number {
    phone: String,
}

/// A code to type instead of a scan.
async fn code(app: web::Data<App>, token: Path<String>, body: Body<Number>) -> Result<HttpResponse, Problem> {
    let (pass, row) = guest(&app, &token.0).await?.ok_or_else(Problem::not_found)?;
    if State::of(&row, &pass, false) != State::Scan {
        return Err(Problem::conflict("There are codes only while a scan is waited for"));
    }
    let digits = digits_of(&body.into_inner().phone)?;
    let code = code_for(&app, pass.tenant, pass.session, digits).await?;
    Ok(secret().json(CodeAnswer { code: &code }))
}
