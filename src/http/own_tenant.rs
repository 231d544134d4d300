//! `/v1/tenant`: the caller's own tenant.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use serde::Deserialize;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::tenants::{MOST_DESCRIPTION, check_settings};
use super::{Body, Caller, IfMatch, IfMatchHeader, Problem, Rules, nullable, versioned};
use crate::app::App;
use crate::identity::scope::Scope;
use crate::tenants::{self, Tenant};

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/tenant").route(web::get().to(get)).route(web::patch().to(patch)));
}

#[derive(OpenApi)]
#[openapi(paths(get, patch))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// What a tenant may change of itself; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"settings": {"locale": "de", "retention": {"content_days": 365}}}))]
struct OwnTenantPatch {
    /// At most 1000 characters; null removes it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, max_length = 1000)]
    description: Option<Option<String>>,
    /// Takes the place of the old settings; an object of at most 16 KiB. The gateway reads two of its members. `media.max_bytes` is
    /// the size of the largest file that is kept of a received message, at most 67108864 (64 MiB), which is the default.
    /// `retention` says for how many days things are kept, 1 to 3650 or null for the default: `content_days` (texts and files of
    /// messages; kept for good), `raw_payload_days` (30), `events_days` (30, with their deliveries), `attempts_days` (30).
    #[schema(value_type = Option<Object>)]
    settings: Option<Value>,
}

/// Show the own tenant
///
/// Any key of the tenant may.
#[utoipa::path(get, path = "/v1/tenant", tag = "Tenant", operation_id = "get_own_tenant",
    responses((status = 200, description = "The tenant", body = Tenant)))]
async fn get(app: web::Data<App>, caller: Caller) -> Result<HttpResponse, Problem> {
    let id = caller.any_scope()?;
    let parts = App::clone(&app);
    let found = app
        .detached(async move { parts.db.tenant(id, async move |conn| tenants::find(conn, id).await).await })
        .await??;
    let tenant = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(&tenant, tenant.version))
}

/// Change the own tenant
///
/// Description and settings; needs the scope `*`. Name and `max_sessions` are changed from above.
#[utoipa::path(patch, path = "/v1/tenant", tag = "Tenant", operation_id = "update_own_tenant", params(IfMatchHeader),
    request_body = OwnTenantPatch, responses((status = 200, description = "The tenant as it is now", body = Tenant)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    if_match: IfMatch,
    body: Body<OwnTenantPatch>,
) -> Result<HttpResponse, Problem> {
    let id = caller.tenant(Scope::All)?;
    let new = body.into_inner();
    let mut rules = Rules::new();
    rules.text("description", new.description.iter().flatten().next().map_or("", String::as_str), MOST_DESCRIPTION);
    if let Some(settings) = &new.settings {
        check_settings(&mut rules, settings);
    }
    rules.finish()?;
    let (parts, now) = (App::clone(&app), app.clock.now());
    let tenant = app
        .detached(async move {
            parts
                .db
                .tenant(id, async move |conn| {
                    let version = tenants::lock(conn, id).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(version)?;
                    Ok::<_, Problem>(tenants::update_own(conn, new.description, new.settings.as_ref(), now).await?)
                })
                .await
        })
        .await??;
    Ok(versioned(&tenant, tenant.version))
}
