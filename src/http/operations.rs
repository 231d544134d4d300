//! For operators and browsers, without credentials: health, metrics and the API's own description.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::problem::{Code, Problem};
use crate::app::App;

/// How long `/readyz` waits for the database.
const PATIENCE: Duration = Duration::from_secs(2);

/// Everything the pages of `/docs` may load comes from here; the page's own styles are inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; font-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/healthz").route(web::get().to(healthz)).route(web::head().to(healthz)))
        .service(web::resource("/readyz").route(web::get().to(readyz)).route(web::head().to(readyz)))
        .service(web::resource("/openapi.json").route(web::get().to(openapi_json)))
        .service(web::resource("/docs").route(web::get().to(docs_redirect)))
        .service(web::resource("/docs/errors").route(web::get().to(error_codes)))
        .service(web::resource("/docs/{file:.*}").route(web::get().to(docs)));
}

pub(super) fn metrics_route(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/metrics").route(web::get().to(metrics)));
}

/// The operations of this file, described.
#[derive(OpenApi)]
#[openapi(paths(healthz, readyz, metrics, openapi_json))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// That the process answers.
#[derive(Serialize, ToSchema)]
struct Alive {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether the process is alive
///
/// Answers as long as the process runs, whatever else is down.
#[utoipa::path(get, path = "/healthz", tag = "Operations", operation_id = "healthz", security(()),
    responses((status = 200, description = "Alive", body = Alive)))]
async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Alive { status: "ok" })
}

/// How this node fares.
#[derive(Serialize, ToSchema)]
struct Readiness {
    /// `ok`, `degraded` (requests are accepted, but wait), or `unavailable`.
    #[schema(example = "ok")]
    status: &'static str,
    /// What was looked at.
    checks: Checks,
}

/// What readiness depends on.
#[derive(Serialize, ToSchema)]
struct Checks {
    /// `up` or `down`; without it nothing can be accepted.
    #[schema(example = "up")]
    postgres: &'static str,
    /// `up`, `down` or `unused`; without it messages are accepted and wait.
    #[schema(example = "up")]
    broker: &'static str,
    /// True when this node is about to stop.
    draining: bool,
}

/// Whether the process should get requests
///
/// Only Postgres being away, or a stop that has begun, makes it unready; with the broker away it is degraded.
#[utoipa::path(get, path = "/readyz", tag = "Operations", operation_id = "readyz", security(()),
    responses((status = 200, description = "Ready, perhaps degraded", body = Readiness),
              (status = 503, description = "Not ready", body = Readiness)))]
async fn readyz(app: web::Data<App>) -> HttpResponse {
    let parts = App::clone(&app);
    let asking = app.detached(async move { parts.db.now().await.is_ok() });
    let postgres = matches!(tokio::time::timeout(PATIENCE, asking).await, Ok(Ok(true)));
    let broker = app.health.broker();
    let draining = app.health.is_draining();
    let ready = postgres && !draining;
    let status = match (ready, broker) {
        (false, _) => "unavailable",
        (true, Some(false)) => "degraded",
        (true, _) => "ok",
    };
    let checks = Checks {
        postgres: if postgres { "up" } else { "down" },
        broker: broker.map_or("unused", |up| if up { "up" } else { "down" }),
        draining,
    };
    let mut response = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    if !ready {
        response.insert_header((header::RETRY_AFTER, 1));
    }
    response.insert_header((header::CACHE_CONTROL, "no-store")).json(Readiness { status, checks })
}

/// Metrics
///
/// In Prometheus' text format. Served on a port of its own when `SWITCHBOARD_METRICS_BIND` is set.
#[utoipa::path(get, path = "/metrics", tag = "Operations", operation_id = "metrics", security(()),
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain; version=0.0.4",
               example = "http_requests_total{method=\"GET\",route=\"/healthz\",status=\"200\"} 1\n")))]
async fn metrics() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(crate::telemetry::metrics::render())
}

static DOCUMENT: LazyLock<String> = LazyLock::new(super::openapi::render);

/// This document
///
/// OpenAPI 3.1, with the events that webhook endpoints receive under `webhooks`.
#[utoipa::path(get, path = "/openapi.json", tag = "Operations", operation_id = "openapi", security(()),
    responses((status = 200, description = "The OpenAPI document", body = serde_json::Value,
               example = json!({"openapi": "3.1.0", "info": {"title": "Switchboard", "version": "0.1.0"}, "paths": {}}))))]
async fn openapi_json() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(DOCUMENT.as_str())
}

async fn docs_redirect() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "/docs/")).finish()
}

static SWAGGER: LazyLock<Arc<utoipa_swagger_ui::Config<'static>>> =
    LazyLock::new(|| Arc::new(utoipa_swagger_ui::Config::from("/openapi.json")));

async fn docs(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let file = request.match_info().query("file");
    match utoipa_swagger_ui::serve(file, Arc::clone(&SWAGGER)) {
        Ok(Some(file)) => Ok(HttpResponse::Ok()
            .content_type(file.content_type)
            .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
            .insert_header((header::REFERRER_POLICY, "no-referrer"))
            .body(file.bytes.into_owned())),
        Ok(None) => Err(Problem::not_found()),
        Err(fault) => {
            tracing::error!(%fault, "a page of the documentation cannot be served");
            Err(Problem::new(Code::Internal, "The page cannot be served"))
        }
    }
}

/// The page that the `type` of every problem points to.
async fn error_codes() -> HttpResponse {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Switchboard: errors</title><h1>Errors</h1><table>\
         <tr><th>code<th>status<th>meaning",
    );
    for code in Code::ALL {
        let (word, status, title) = (code.as_str(), code.status().as_u16(), code.title());
        page.push_str(&format!("<tr id=\"{word}\"><td><code>{word}</code><td>{status}<td>{title}"));
    }
    page.push_str("</table></html>");
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
        .body(page)
}
