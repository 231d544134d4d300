//! `/v1/webhook-endpoints`: where a tenant's events are delivered, and what became of the deliveries.

use actix_web::http::StatusCode;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::{
    Body, Caller, Code, Created, Cursor, IdempotencyHeader, IfMatch, IfMatchHeader, List, MaybeIdempotencyKey, Once,
    Page, PageParams, Path, Problem, fingerprint, nullable, once_tenant, versioned,
};
use crate::app::App;
use crate::delivery::endpoints::{self, Change, Endpoint, EndpointError, NewEndpoint};
use crate::delivery::replay::{self, Attempt, Replay};
use crate::domain::ids::{EndpointId, EventId};
use crate::identity::scope::Scope;

const COLLECTION: &str = "/v1/webhook-endpoints";

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/webhook-endpoints").route(web::post().to(create)).route(web::get().to(list)))
        .service(
            web::resource("/webhook-endpoints/{id}")
                .route(web::get().to(one))
                .route(web::patch().to(patch))
                .route(web::delete().to(delete)),
        )
        .service(web::resource("/webhook-endpoints/{id}/secret").route(web::get().to(secret)))
        .service(web::resource("/webhook-endpoints/{id}/rotate-secret").route(web::post().to(rotate_secret)))
        .service(web::resource("/webhook-endpoints/{id}/test").route(web::post().to(test)))
        .service(web::resource("/webhook-endpoints/{id}/attempts").route(web::get().to(attempts)))
        .service(web::resource("/webhook-endpoints/{id}/replay").route(web::post().to(replay_events)));
}

#[derive(OpenApi)]
#[openapi(paths(create, list, one, patch, delete, secret, rotate_secret, test, attempts, replay_events))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// An endpoint to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewWebhookEndpoint, example = json!({
    "url": "https://example.com/hooks/whatsapp", "event_types": ["message.*"], "description": "orders"
}))]
struct New {
    /// Where deliveries go: `https`, a public address, at most 2048 characters.
    #[schema(format = "uri", max_length = 2048)]
    url: String,
    /// What it is told of: types of events, groups such as `message.*`, or `*`; at least one.
    #[schema(min_items = 1, max_items = 50)]
    event_types: Vec<String>,
    /// At most 500 characters.
    #[schema(max_length = 500)]
    description: Option<String>,
}

/// What is to change of an endpoint; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"enabled": true}))]
struct WebhookEndpointPatch {
    /// Where deliveries go.
    #[schema(format = "uri", max_length = 2048)]
    url: Option<String>,
    /// What it is told of; takes the place of the old list.
    #[schema(min_items = 1, max_items = 50)]
    event_types: Option<Vec<String>>,
    /// At most 500 characters; null removes it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, max_length = 500)]
    description: Option<Option<String>>,
    /// Whether deliveries are made. Enabling it again forgets its failures; what was pending when it was disabled can be
    /// replayed.
    enabled: Option<bool>,
}

/// What is to be delivered again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"since": "2026-11-20T00:00:00Z", "only_failed": true}))]
struct ReplayRequest {
    /// Events that happened at this moment or later.
    since: DateTime<Utc>,
    /// Events that happened before this moment; up to now, if left out.
    until: Option<DateTime<Utc>>,
    /// Only deliveries that failed. Otherwise every event the endpoint is subscribed to, delivered ones too.
    #[serde(default)]
    #[schema(default = false)]
    only_failed: bool,
}

/// An endpoint with its secret.
#[derive(Serialize, ToSchema)]
struct WebhookEndpointWithSecret {
    #[serde(flatten)]
    endpoint: Endpoint,
    /// Verifies the signatures of deliveries (Standard Webhooks).
    #[schema(example = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")]
    secret: String,
}

/// The secret of an endpoint.
#[derive(Serialize, ToSchema)]
struct WebhookSecret {
    /// Verifies the signatures of deliveries (Standard Webhooks).
    #[schema(example = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")]
    secret: String,
}

impl From<SecretString> for WebhookSecret {
    fn from(secret: SecretString) -> Self {
        Self { secret: secret.expose_secret().to_owned() }
    }
}

/// A test event that was written.
#[derive(Serialize, ToSchema)]
struct TestEvent {
    /// The event; also its `webhook-id`.
    event_id: EventId,
}

/// What a replay has begun.
#[derive(Serialize, ToSchema)]
struct Replayed {
    /// How many deliveries will be made again.
    #[schema(example = 12)]
    count: u64,
}

impl From<EndpointError> for Problem {
    fn from(fault: EndpointError) -> Self {
        match fault {
            EndpointError::NotFound => Self::not_found(),
            EndpointError::Stale => Self::new(
                Code::PreconditionFailed,
                "Another version is current; read the endpoint again before changing it",
            ),
            EndpointError::Disabled => Self::conflict("The endpoint is disabled; enable it first"),
            EndpointError::Invalid { field, code, message } => Self::invalid(field, code, message),
            EndpointError::Keyring(fault) => {
                tracing::error!(%fault, "an endpoint's secrets cannot be used");
                Self::new(Code::Internal, "The request failed; its id finds it in the log")
            }
            EndpointError::Db(fault) => fault.into(),
        }
    }
}

/// An answer that may have been given before, to a request that makes no resource of its own.
fn answer(created: Created) -> HttpResponse {
    let mut response = HttpResponse::build(created.status);
    response.content_type("application/json");
    if created.replayed {
        response.insert_header(("Idempotency-Replayed", "true"));
    }
    response.body(created.body)
}

/// Create a webhook endpoint
///
/// From now on it gets every event that it is subscribed to. The answer shows the `secret` that signs the deliveries.
#[utoipa::path(post, path = "/v1/webhook-endpoints", tag = "Webhook endpoints", operation_id = "create_webhook_endpoint",
    params(IdempotencyHeader), request_body = New,
    responses((status = 201, description = "Created", body = WebhookEndpointWithSecret)))]
async fn create(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    body: Body<New>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "webhook_endpoints.create";
    let tenant = caller.tenant(Scope::WebhooksWrite)?;
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.fingerprint(OPERATION), secret: true };
    let New { url, event_types, description } = body.into_inner();
    let parts = App::clone(&app);
    let created = once_tenant(&app, tenant, once, async move |conn| {
        let new = NewEndpoint { url, event_types, description };
        let (endpoint, secret) = endpoints::create(&parts, conn, new).await?;
        let id = endpoint.id.0;
        let shown = WebhookEndpointWithSecret { endpoint, secret: secret.expose_secret().to_owned() };
        Created::new(StatusCode::CREATED, id, &shown)
    })
    .await?;
    Ok(created.response(COLLECTION))
}

/// List webhook endpoints
///
/// Newest first, without their secrets.
#[utoipa::path(get, path = "/v1/webhook-endpoints", tag = "Webhook endpoints", operation_id = "list_webhook_endpoints",
    params(PageParams), responses((status = 200, description = "A page of endpoints", body = List<Endpoint>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    let tenant = caller.tenant(Scope::WebhooksRead)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let before = page.after.map(|after| (after.at, EndpointId(after.id)));
            parts.db.tenant(tenant, async move |conn| endpoints::list(conn, before, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |endpoint| Cursor { at: endpoint.created_at, id: endpoint.id.0 })))
}

/// Show a webhook endpoint
///
/// With the reason and the time of its failure, if it has one.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{id}", tag = "Webhook endpoints", operation_id = "get_webhook_endpoint",
    params(("id" = EndpointId, Path, description = "The endpoint")),
    responses((status = 200, description = "The endpoint", body = Endpoint)))]
async fn one(app: web::Data<App>, caller: Caller, id: Path<EndpointId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::WebhooksRead)?;
    let parts = App::clone(&app);
    let endpoint = app
        .detached(async move { parts.db.tenant(tenant, async move |conn| endpoints::get(conn, id.0).await).await })
        .await??;
    Ok(versioned(&endpoint, endpoint.version))
}

/// Change a webhook endpoint
///
/// Its address, its events, its description, and whether it is enabled.
#[utoipa::path(patch, path = "/v1/webhook-endpoints/{id}", tag = "Webhook endpoints", operation_id = "update_webhook_endpoint",
    params(("id" = EndpointId, Path, description = "The endpoint"), IfMatchHeader), request_body = WebhookEndpointPatch,
    responses((status = 200, description = "The endpoint as it is now", body = Endpoint)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<EndpointId>,
    if_match: IfMatch,
    body: Body<WebhookEndpointPatch>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::WebhooksWrite)?;
    let WebhookEndpointPatch { url, event_types, description, enabled } = body.into_inner();
    let change = Change { url, event_types, description, enabled };
    let parts = App::clone(&app);
    let endpoint = app
        .detached(async move {
            let app = &parts;
            let work = async move |conn: &mut _| endpoints::change(app, conn, id.0, if_match.0, change).await;
            parts.db.tenant(tenant, work).await
        })
        .await??;
    Ok(versioned(&endpoint, endpoint.version))
}

/// Delete a webhook endpoint
///
/// Nothing more is delivered to it.
#[utoipa::path(delete, path = "/v1/webhook-endpoints/{id}", tag = "Webhook endpoints", operation_id = "delete_webhook_endpoint",
    params(("id" = EndpointId, Path, description = "The endpoint")),
    responses((status = 204, description = "Deleted")))]
async fn delete(app: web::Data<App>, caller: Caller, id: Path<EndpointId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::WebhooksWrite)?;
    let parts = App::clone(&app);
    app.detached(async move {
        let app = &parts;
        parts.db.tenant(tenant, async move |conn| endpoints::delete(app, conn, id.0).await).await
    })
    .await??;
    Ok(HttpResponse::NoContent().finish())
}

/// Show a webhook endpoint's secret
///
/// The current one, with which deliveries are verified.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{id}/secret", tag = "Webhook endpoints", operation_id = "get_webhook_secret",
    params(("id" = EndpointId, Path, description = "The endpoint")),
    responses((status = 200, description = "The secret", body = WebhookSecret)))]
async fn secret(app: web::Data<App>, caller: Caller, id: Path<EndpointId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::WebhooksRead)?;
    let parts = App::clone(&app);
    let secret = app
        .detached(async move {
            let app = &parts;
            parts.db.tenant(tenant, async move |conn| endpoints::secret(app, conn, id.0).await).await
        })
        .await??;
    Ok(HttpResponse::Ok().json(WebhookSecret::from(secret)))
}

/// Rotate a webhook endpoint's secret
///
/// For 24 hours deliveries are signed with the old secret as well.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{id}/rotate-secret", tag = "Webhook endpoints",
    operation_id = "rotate_webhook_secret",
    params(("id" = EndpointId, Path, description = "The endpoint"), IdempotencyHeader),
    responses((status = 200, description = "The new secret", body = WebhookSecret)))]
async fn rotate_secret(
    app: web::Data<App>,
    caller: Caller,
    id: Path<EndpointId>,
    key: MaybeIdempotencyKey,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "webhook_endpoints.rotate_secret";
    let tenant = caller.tenant(Scope::WebhooksWrite)?;
    let id = id.0;
    let fingerprint = fingerprint(&format!("{OPERATION} {id}"), &Value::Null);
    let once = Once { operation: OPERATION, key: key.0, fingerprint, secret: true };
    let parts = App::clone(&app);
    let created = once_tenant(&app, tenant, once, async move |conn| {
        let secret = endpoints::rotate_secret(&parts, conn, id).await?;
        Created::new(StatusCode::OK, id.0, &WebhookSecret::from(secret))
    })
    .await?;
    Ok(answer(created))
}

/// Send a test event
///
/// A `test.ping` event for this endpoint alone, whatever it is subscribed to.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{id}/test", tag = "Webhook endpoints", operation_id = "test_webhook_endpoint",
    params(("id" = EndpointId, Path, description = "The endpoint"), IdempotencyHeader),
    responses((status = 202, description = "The event is on its way", body = TestEvent)))]
async fn test(
    app: web::Data<App>,
    caller: Caller,
    id: Path<EndpointId>,
    key: MaybeIdempotencyKey,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "webhook_endpoints.test";
    let tenant = caller.tenant(Scope::WebhooksWrite)?;
    let id = id.0;
    let fingerprint = fingerprint(&format!("{OPERATION} {id}"), &Value::Null);
    let once = Once { operation: OPERATION, key: key.0, fingerprint, secret: false };
    let parts = App::clone(&app);
    let created = once_tenant(&app, tenant, once, async move |conn| {
        let event_id = replay::test(&parts, conn, id).await?;
        Created::new(StatusCode::ACCEPTED, event_id.0, &TestEvent { event_id })
    })
    .await?;
    app.wake.events.notify_one();
    app.wake.deliveries.notify_one();
    Ok(answer(created))
}

/// List delivery attempts
///
/// Of this endpoint, newest first, with the beginning of each answer.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{id}/attempts", tag = "Webhook endpoints",
    operation_id = "list_webhook_attempts",
    params(("id" = EndpointId, Path, description = "The endpoint"), PageParams),
    responses((status = 200, description = "A page of attempts", body = List<Attempt>)))]
async fn attempts(
    app: web::Data<App>,
    caller: Caller,
    id: Path<EndpointId>,
    page: Page,
) -> Result<impl Responder, Problem> {
    let tenant = caller.tenant(Scope::WebhooksRead)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let before = page.after.map(|after| (after.at, after.id));
            parts.db.tenant(tenant, async move |conn| replay::attempts(conn, id.0, before, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |attempt| Cursor { at: attempt.at, id: attempt.id })))
}

/// Replay events
///
/// Delivers events of a span of time again, each with its own `webhook-id` and a schedule of retries that starts anew.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{id}/replay", tag = "Webhook endpoints", operation_id = "replay_webhook_events",
    params(("id" = EndpointId, Path, description = "The endpoint")), request_body = ReplayRequest,
    responses((status = 202, description = "The deliveries are on their way", body = Replayed)))]
async fn replay_events(
    app: web::Data<App>,
    caller: Caller,
    id: Path<EndpointId>,
    body: Body<ReplayRequest>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::WebhooksWrite)?;
    let ReplayRequest { since, until, only_failed } = body.into_inner();
    let parts = App::clone(&app);
    let count = app
        .detached(async move { replay::replay(&parts, tenant, id.0, Replay { since, until, only_failed }).await })
        .await??;
    Ok(HttpResponse::Accepted().json(Replayed { count }))
}
