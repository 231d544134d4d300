//! `/v1/tenants`: for platform keys.

use actix_web::http::StatusCode;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::api_keys::{ApiKeyWithSecret, FirstApiKey, create_key};
use super::{
    Body, Caller, Created, Cursor, IdempotencyHeader, IfMatch, IfMatchHeader, List, MaybeIdempotencyKey, Once, Page,
    PageParams, Path, Problem, Rules, forget_now, nullable, once_system, versioned,
};
use crate::app::App;
use crate::db::DbError;
use crate::domain::ids::TenantId;
use crate::identity::scope::Scopes;
use crate::retention::settings::{DAYS, NAMES};
use crate::tenants::{self, NAME_TAKEN, Tenant, TenantChange, TenantStatus};

const COLLECTION: &str = "/v1/tenants";
const MOST_SETTINGS: usize = 16 * 1024;
pub(super) const MOST_DESCRIPTION: usize = 1000;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/tenants").route(web::post().to(create)).route(web::get().to(list)))
        .service(
            web::resource("/tenants/{id}")
                .route(web::get().to(get))
                .route(web::patch().to(patch))
                .route(web::delete().to(delete)),
        )
        .service(web::resource("/tenants/{id}/restore").route(web::post().to(restore)))
        .service(web::resource("/tenants/{id}/api-keys").route(web::post().to(create_api_key)));
}

#[derive(OpenApi)]
#[openapi(paths(create, list, get, patch, delete, restore, create_api_key))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A tenant to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "acme", "description": "Acme Ltd", "settings": {}}))]
struct NewTenant {
    /// 1 to 100 characters, unique.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// At most 1000 characters.
    #[schema(max_length = 1000)]
    description: Option<String>,
    /// An object of at most 16 KiB. The gateway reads its member `retention`: for how many days things are kept, 1 to 3650 or null for
    /// the default: `content_days` (texts and files of messages; kept for good), `raw_payload_days` (30), `events_days` (30, with
    /// their deliveries), `attempts_days` (30).
    #[schema(value_type = Option<Object>)]
    settings: Option<Value>,
    /// How many sessions it may have: 0 to 1000000; left out or null: as many as there is room for.
    #[schema(minimum = 0, maximum = 1_000_000)]
    max_sessions: Option<i32>,
}

/// What is to change of a tenant; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"description": "Acme Ltd", "status": "inactive"}))]
struct TenantPatch {
    /// 1 to 100 characters, unique.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// `inactive` refuses the tenant's keys.
    status: Option<TenantStatus>,
    /// At most 1000 characters; null removes it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, max_length = 1000)]
    description: Option<Option<String>>,
    /// Takes the place of the old settings. An object of at most 16 KiB. The gateway reads its member `retention`: for how many days things are kept, 1 to 3650 or null for
    /// the default: `content_days` (texts and files of messages; kept for good), `raw_payload_days` (30), `events_days` (30, with
    /// their deliveries), `attempts_days` (30).
    #[schema(value_type = Option<Object>)]
    settings: Option<Value>,
    /// How many sessions it may have: 0 to 1000000; null: as many as there is room for. Those it has stay, however many.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 1_000_000)]
    max_sessions: Option<Option<i32>>,
}

/// The settings that the gateway itself reads have their rules; the rest is the tenant's own.
pub(super) fn check_settings(rules: &mut Rules, settings: &Value) {
    rules.object("settings", settings, MOST_SETTINGS);
    super::media::check_settings(rules, settings);
    let Some(retention) = settings.get("retention") else { return };
    let Some(members) = retention.as_object() else {
        rules.broken("settings.retention", "invalid_type", "must be an object");
        return;
    };
    for (name, days) in members {
        let field = format!("settings.retention.{name}");
        if !NAMES.contains(&name.as_str()) {
            rules.broken(&field, "unknown_field", format!("is none of {}", NAMES.join(", ")));
        } else if !days.is_null() {
            let fits = days.as_u64().and_then(|days| u32::try_from(days).ok()).is_some_and(|days| DAYS.contains(&days));
            let rule = format!("must be a whole number of days from {} to {}, or null", DAYS.start(), DAYS.end());
            rules.check(fits, &field, "out_of_range", &rule);
        }
    }
}

fn check_quota(rules: &mut Rules, max_sessions: Option<i32>) {
    let fits = max_sessions.is_none_or(|most| (0..=1_000_000).contains(&most));
    rules.check(fits, "max_sessions", "out_of_range", "must be from 0 to 1000000");
}

fn name_taken(fault: DbError) -> Problem {
    if fault.is_duplicate_of(NAME_TAKEN) {
        return Problem::conflict("A tenant of this name exists").field("name", "taken", "is taken");
    }
    fault.into()
}

/// Create a tenant
///
/// Its first API key comes from `POST /v1/tenants/{id}/api-keys`.
#[utoipa::path(post, path = "/v1/tenants", tag = "Tenants", operation_id = "create_tenant", params(IdempotencyHeader),
    request_body = NewTenant, responses((status = 201, description = "Created", body = Tenant,
        headers(("Location" = String, description = "Its path")))))]
async fn create(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    body: Body<NewTenant>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "tenants.create";
    caller.platform()?;
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.fingerprint(OPERATION), secret: false };
    let new = body.into_inner();
    let mut rules = Rules::new();
    rules.name("name", &new.name, 100);
    rules.text("description", new.description.as_deref().unwrap_or_default(), MOST_DESCRIPTION);
    let settings = new.settings.unwrap_or_else(|| json!({}));
    check_settings(&mut rules, &settings);
    check_quota(&mut rules, new.max_sessions);
    rules.finish()?;
    let now = app.clock.now();
    let id = TenantId::fresh(now, &app.chance);
    let created = once_system(&app, None, once, async move |conn| {
        let description = new.description.as_deref();
        let tenant = tenants::insert(conn, id, &new.name, description, &settings, new.max_sessions, now)
            .await
            .map_err(name_taken)?;
        Created::new(StatusCode::CREATED, id.0, &tenant)
    })
    .await?;
    Ok(created.response(COLLECTION))
}

/// List tenants
///
/// Newest first, without the deleted ones.
#[utoipa::path(get, path = "/v1/tenants", tag = "Tenants", operation_id = "list_tenants", params(PageParams),
    responses((status = 200, description = "A page of tenants", body = List<Tenant>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    caller.platform()?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts.db.system(async move |conn| tenants::list(conn, after, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |tenant| Cursor { at: tenant.created_at, id: tenant.id.0 })))
}

/// Show a tenant
///
/// A deleted one is not found.
#[utoipa::path(get, path = "/v1/tenants/{id}", tag = "Tenants", operation_id = "get_tenant",
    params(("id" = TenantId, Path, description = "The tenant")),
    responses((status = 200, description = "The tenant", body = Tenant)))]
async fn get(app: web::Data<App>, caller: Caller, id: Path<TenantId>) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let parts = App::clone(&app);
    let found =
        app.detached(async move { parts.db.system(async move |conn| tenants::find(conn, id.0).await).await }).await??;
    let tenant = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(&tenant, tenant.version))
}

/// Change a tenant
///
/// Name, status, description, settings and `max_sessions`. An inactive tenant's keys answer 403.
#[utoipa::path(patch, path = "/v1/tenants/{id}", tag = "Tenants", operation_id = "update_tenant",
    params(("id" = TenantId, Path, description = "The tenant"), IfMatchHeader), request_body = TenantPatch,
    responses((status = 200, description = "The tenant as it is now", body = Tenant)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<TenantId>,
    if_match: IfMatch,
    body: Body<TenantPatch>,
) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let new = body.into_inner();
    let mut rules = Rules::new();
    if let Some(name) = &new.name {
        rules.name("name", name, 100);
    }
    rules.text("description", new.description.iter().flatten().next().map_or("", String::as_str), MOST_DESCRIPTION);
    if let Some(settings) = &new.settings {
        check_settings(&mut rules, settings);
    }
    check_quota(&mut rules, new.max_sessions.flatten());
    rules.finish()?;
    let change = TenantChange {
        name: new.name,
        status: new.status,
        description: new.description,
        settings: new.settings,
        max_sessions: new.max_sessions,
    };
    let (parts, now) = (App::clone(&app), app.clock.now());
    let tenant = app
        .detached(async move {
            let changed = parts
                .db
                .system(async move |conn| {
                    let version = tenants::lock(conn, id.0).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(version)?;
                    tenants::update(conn, id.0, &change, now).await.map_err(name_taken)
                })
                .await?;
            forget_now(&parts).await;
            Ok::<_, Problem>(changed)
        })
        .await??;
    Ok(versioned(&tenant, tenant.version))
}

/// Delete a tenant
///
/// Softly: its keys are refused at once, its data stays and comes back with `restore`.
#[utoipa::path(delete, path = "/v1/tenants/{id}", tag = "Tenants", operation_id = "delete_tenant",
    params(("id" = TenantId, Path, description = "The tenant")),
    responses((status = 204, description = "Deleted")))]
async fn delete(app: web::Data<App>, caller: Caller, id: Path<TenantId>) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let (parts, now) = (App::clone(&app), app.clock.now());
    let found = app
        .detached(async move {
            let found = parts.db.system(async move |conn| tenants::delete(conn, id.0, now).await).await?;
            forget_now(&parts).await;
            Ok::<_, Problem>(found)
        })
        .await??;
    if found { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found()) }
}

/// Restore a deleted tenant
///
/// Its keys work again. 409 when another tenant has taken the name meanwhile.
#[utoipa::path(post, path = "/v1/tenants/{id}/restore", tag = "Tenants", operation_id = "restore_tenant",
    params(("id" = TenantId, Path, description = "The tenant")),
    responses((status = 200, description = "The tenant", body = Tenant)))]
async fn restore(app: web::Data<App>, caller: Caller, id: Path<TenantId>) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let (parts, now) = (App::clone(&app), app.clock.now());
    let tenant = app
        .detached(async move {
            let restored =
                parts.db.system(async move |conn| tenants::restore(conn, id.0, now).await.map_err(name_taken)).await?;
            forget_now(&parts).await;
            Ok::<_, Problem>(restored)
        })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(versioned(&tenant, tenant.version))
}

/// Create a tenant's first API key
///
/// The answer is the only one that shows `key`. Without `scopes` the key may do everything.
#[utoipa::path(post, path = "/v1/tenants/{id}/api-keys", tag = "Tenants", operation_id = "create_tenant_api_key",
    params(("id" = TenantId, Path, description = "The tenant"), IdempotencyHeader), request_body = FirstApiKey,
    responses((status = 201, description = "Created", body = ApiKeyWithSecret)))]
async fn create_api_key(
    app: web::Data<App>,
    caller: Caller,
    id: Path<TenantId>,
    key: MaybeIdempotencyKey,
    body: Body<FirstApiKey>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "tenants.api_keys.create";
    caller.platform()?;
    let tenant = id.0;
    let fingerprint = body.fingerprint(&format!("{OPERATION} {tenant}"));
    let once = Once { operation: OPERATION, key: key.0, fingerprint, secret: true };
    let new = body.into_inner();
    let now = app.clock.now();
    let scopes = new.scopes.map_or(Scopes::EVERYTHING, |scopes| scopes.into_iter().collect());
    let new = super::api_keys::checked(&app, tenant, new.name, scopes, new.expires_at, now)?;
    let parts = App::clone(&app);
    let created = once_system(&app, None, once, async move |conn| {
        // Locked, so that the tenant is not deleted at the same moment.
        tenants::lock(conn, tenant).await?.ok_or_else(Problem::not_found)?;
        create_key(&parts, conn, &new, now).await
    })
    .await?;
    Ok(created.response("/v1/api-keys"))
}
