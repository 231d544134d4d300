//! `/v1/api-keys`: a tenant's own keys. A key can be given no more than its maker may do.

use actix_web::http::StatusCode;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use chrono::{DateTime, TimeDelta, Utc};
use diesel_async::AsyncPgConnection;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{
    Body, Caller, Code, Created, Cursor, IdempotencyHeader, List, MaybeBody, MaybeIdempotencyKey, Once, Page,
    PageParams, Path, Problem, Rules, forget_now, once_tenant,
};
use crate::app::App;
use crate::domain::ids::{ApiKeyId, TenantId};
use crate::identity::api_keys::{self, ApiKey, NewApiKey};
use crate::identity::keys::{KeyKind, mint};
use crate::identity::scope::{Scope, Scopes};

const COLLECTION: &str = "/v1/api-keys";

/// Longest time a rotated key may live on, in seconds: a week.
const MOST_GRACE: u32 = 7 * 24 * 3600;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/api-keys").route(web::post().to(create)).route(web::get().to(list)))
        .service(web::resource("/api-keys/{id}").route(web::delete().to(revoke)))
        .service(web::resource("/api-keys/{id}/rotate").route(web::post().to(rotate)));
}

#[derive(OpenApi)]
#[openapi(paths(create, list, rotate, revoke))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A key to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewApiKey, example = json!({"name": "backend", "scopes": ["messages:write", "messages:read"]}))]
struct NewKey {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// What it may do; at least one.
    #[schema(min_items = 1)]
    scopes: Vec<Scope>,
    /// When it ends by itself; in the future.
    expires_at: Option<DateTime<Utc>>,
}

/// A tenant's key to be created from above.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "first", "scopes": ["*"]}))]
pub(super) struct FirstApiKey {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub(super) name: String,
    /// What it may do; everything, if left out.
    #[schema(min_items = 1)]
    pub(super) scopes: Option<Vec<Scope>>,
    /// When it ends by itself; in the future.
    pub(super) expires_at: Option<DateTime<Utc>>,
}

/// How a key is to be rotated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"grace_seconds": 3600}))]
struct Rotation {
    /// How long the old key works on: 0 (the default) to 604800.
    #[schema(minimum = 0, maximum = 604_800, default = 0)]
    grace_seconds: Option<u32>,
}

/// A key with its secret; shown once.
#[derive(Serialize, ToSchema)]
pub(super) struct ApiKeyWithSecret {
    #[serde(flatten)]
    shown: ApiKey,
    /// The key itself. It is shown in this answer and never again.
    #[schema(example = "swb_4fT0aZ81kQpX_0000000000000000000000000000000000000000000Ab3dE9")]
    key: String,
}

/// A new key as asked for, if no rule is broken.
pub(super) fn checked(
    app: &App,
    tenant: TenantId,
    name: String,
    scopes: Scopes,
    expires_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<NewApiKey, Problem> {
    let mut rules = Rules::new();
    rules.name("name", &name, 100);
    rules.check(scopes != Scopes::default(), "scopes", "required", "must name at least one scope");
    if let Some(at) = expires_at {
        rules.future("expires_at", at, now);
    }
    rules.finish()?;
    Ok(NewApiKey { id: ApiKeyId::fresh(now, &app.chance), tenant, name, scopes, expires_at })
}

/// Mints and writes a key, and makes the answer that shows it.
pub(super) async fn create_key(
    app: &App,
    conn: &mut AsyncPgConnection,
    new: &NewApiKey,
    now: DateTime<Utc>,
) -> Result<Created, Problem> {
    let minted = mint(KeyKind::Tenant, &app.chance);
    let shown = api_keys::insert(conn, new, &minted, now).await?;
    let answer = ApiKeyWithSecret { shown, key: minted.key.expose_secret().to_owned() };
    Created::new(StatusCode::CREATED, new.id.0, &answer)
}

fn more_than_own() -> Problem {
    Problem::new(Code::Forbidden, "A key cannot be given scopes that these credentials do not have")
}

/// Create an API key
///
/// The answer is the only one that shows `key`. Needs `users:write`, and every scope that the new key gets.
#[utoipa::path(post, path = "/v1/api-keys", tag = "API keys", operation_id = "create_api_key", params(IdempotencyHeader),
    request_body = NewKey, responses((status = 201, description = "Created", body = ApiKeyWithSecret)))]
async fn create(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    body: Body<NewKey>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "api_keys.create";
    let tenant = caller.tenant(Scope::UsersWrite)?;
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.fingerprint(OPERATION), secret: true };
    let new = body.into_inner();
    let now = app.clock.now();
    let scopes: Scopes = new.scopes.into_iter().collect();
    let new = checked(&app, tenant, new.name, scopes, new.expires_at, now)?;
    if !caller.scopes().cover(scopes) {
        return Err(more_than_own());
    }
    let parts = App::clone(&app);
    let created = once_tenant(&app, tenant, once, async move |conn| create_key(&parts, conn, &new, now).await).await?;
    Ok(created.response(COLLECTION))
}

/// List API keys
///
/// Newest first, without the revoked ones; each by its prefix, with its last use to the minute.
#[utoipa::path(get, path = "/v1/api-keys", tag = "API keys", operation_id = "list_api_keys", params(PageParams),
    responses((status = 200, description = "A page of keys", body = List<ApiKey>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    let tenant = caller.tenant(Scope::UsersRead)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts.db.tenant(tenant, async move |conn| api_keys::list(conn, after, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |key| Cursor { at: key.created_at, id: key.id.0 })))
}

/// Rotate an API key
///
/// Makes a new key of the same name and scopes. The old one works on for `grace_seconds`, then ends.
#[utoipa::path(post, path = "/v1/api-keys/{id}/rotate", tag = "API keys", operation_id = "rotate_api_key",
    params(("id" = ApiKeyId, Path, description = "The key"), IdempotencyHeader), 
    request_body(content = Option<Rotation>, example = json!({"grace_seconds": 3600})),
    responses((status = 201, description = "The new key", body = ApiKeyWithSecret)))]
async fn rotate(
    app: web::Data<App>,
    caller: Caller,
    id: Path<ApiKeyId>,
    key: MaybeIdempotencyKey,
    body: MaybeBody<Rotation>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "api_keys.rotate";
    let tenant = caller.tenant(Scope::UsersWrite)?;
    let id = id.0;
    let fingerprint = body.0.fingerprint(&format!("{OPERATION} {id}"));
    let once = Once { operation: OPERATION, key: key.0, fingerprint, secret: true };
    let grace = body.0.into_inner().grace_seconds.unwrap_or(0);
    if grace > MOST_GRACE {
        return Err(Problem::invalid("grace_seconds", "out_of_range", "must be from 0 to 604800"));
    }
    let (parts, now, own) = (App::clone(&app), app.clock.now(), caller.scopes());
    let created = once_tenant(&app, tenant, once, async move |conn| {
        let old = api_keys::lock(conn, id).await?.ok_or_else(Problem::not_found)?;
        if old.expires_at.is_some_and(|at| at <= now) {
            return Err(Problem::conflict("The key has ended already"));
        }
        let scopes = old.scope_set();
        if !own.cover(scopes) {
            return Err(more_than_own());
        }
        api_keys::expire(conn, id, now + TimeDelta::seconds(i64::from(grace)), now).await?;
        let new = NewApiKey {
            id: ApiKeyId::fresh(now, &parts.chance),
            tenant,
            name: old.name,
            scopes,
            expires_at: old.expires_at,
        };
        create_key(&parts, conn, &new, now).await
    })
    .await?;
    let parts = App::clone(&app);
    app.detached(async move { forget_now(&parts).await }).await?;
    Ok(created.response(COLLECTION))
}

/// Revoke an API key
///
/// At once on this node, and within a second on every other.
#[utoipa::path(delete, path = "/v1/api-keys/{id}", tag = "API keys", operation_id = "revoke_api_key",
    params(("id" = ApiKeyId, Path, description = "The key")),
    responses((status = 204, description = "Revoked")))]
async fn revoke(app: web::Data<App>, caller: Caller, id: Path<ApiKeyId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::UsersWrite)?;
    let (parts, now) = (App::clone(&app), app.clock.now());
    let found = app
        .detached(async move {
            let found = parts.db.tenant(tenant, async move |conn| api_keys::revoke(conn, id.0, now).await).await?;
            forget_now(&parts).await;
            Ok::<_, Problem>(found)
        })
        .await??;
    if found { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found()) }
}
