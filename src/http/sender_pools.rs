//! `/v1/sender-pools`: named sets of sessions to send by.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use serde::Deserialize;
use utoipa::{OpenApi, ToSchema};

use super::{
    Body, Caller, Created, Cursor, IdempotencyHeader, IfMatch, IfMatchHeader, List, MaybeIdempotencyKey, Once, Page,
    PageParams, Path, Problem, Rules, once_tenant, versioned,
};
use crate::app::App;
use crate::db::{DbError, TenantConn};
use crate::domain::ids::{SenderPoolId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::identity::scope::Scope;
use crate::messages::pool::{self, ChooseError, NAME_TAKEN, SenderPool};
use crate::sessions::directory::SessionEntry;

const COLLECTION: &str = "/v1/sender-pools";
const MOST_SESSIONS: usize = 500;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sender-pools").route(web::post().to(create)).route(web::get().to(list))).service(
        web::resource("/sender-pools/{id}")
            .route(web::get().to(get))
            .route(web::patch().to(patch))
            .route(web::delete().to(delete)),
    );
}

#[derive(OpenApi)]
#[openapi(paths(create, list, get, patch, delete))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// A pool to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "support", "session_ids": []}))]
struct NewSenderPool {
    /// 1 to 100 characters, unique within the tenant, not in the form of an id.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Its sessions; each once.
    #[schema(max_items = 500)]
    session_ids: Vec<SessionId>,
}

/// What is to change of a pool; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "sales"}))]
struct SenderPoolPatch {
    /// 1 to 100 characters, unique within the tenant, not in the form of an id.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// Takes the place of the old list. What waits in a session that leaves the pool stays there.
    #[schema(max_items = 500)]
    session_ids: Option<Vec<SessionId>>,
}

fn check(name: Option<&str>, sessions: Option<&[SessionId]>) -> Result<(), Problem> {
    let mut rules = Rules::new();
    if let Some(name) = name {
        rules.name("name", name, 100);
        let is_id = name.parse::<SenderPoolId>().is_ok();
        rules.check(!is_id, "name", "invalid_value", "must not have the form of an id");
    }
    if let Some(sessions) = sessions {
        rules.check(sessions.len() <= MOST_SESSIONS, "session_ids", "too_many", "must have at most 500 sessions");
        let mut sorted = sessions.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        rules.check(sorted.len() == sessions.len(), "session_ids", "invalid_value", "must name each session once");
    }
    rules.finish()
}

async fn check_known(conn: &mut TenantConn, sessions: &[SessionId]) -> Result<(), Problem> {
    match pool::unknown_sessions(conn, sessions).await?.first() {
        Some(unknown) => Err(Problem::invalid("session_ids", "not_found", format!("there is no session {unknown}"))),
        None => Ok(()),
    }
}

fn name_taken(fault: DbError) -> Problem {
    if fault.is_duplicate_of(NAME_TAKEN) {
        return Problem::conflict("A sender pool of this name exists").field("name", "taken", "is taken");
    }
    fault.into()
}

impl From<ChooseError> for Problem {
    fn from(fault: ChooseError) -> Self {
        match fault {
            ChooseError::Unknown => Self::invalid("pool", "not_found", "there is no such sender pool"),
            ChooseError::Empty => {
                Self::conflict("The sender pool has no sessions").field("pool", "empty", "has no sessions to send by")
            }
            ChooseError::Database(fault) => fault.into(),
            ChooseError::Directory(fault) => fault.into(),
        }
    }
}

/// The session by which a message of this pool goes to `chat`.
pub(super) async fn choose(
    app: &App,
    tenant: TenantId,
    pool: &str,
    chat: &ChatId,
) -> Result<(SenderPoolId, Arc<SessionEntry>), Problem> {
    let (parts, pool, chat) = (app.clone(), pool.to_owned(), chat.clone());
    Ok(app.detached(async move { pool::choose(&parts, tenant, &pool, &chat).await }).await??)
}

/// Create a sender pool
///
/// A named set of sessions. A message with `pool` instead of `session_id` is sent by one of them: the one that wrote to the
/// recipient before, else the least loaded that works. What waits when a session fails or is restricted moves to another one,
/// unless it may have been sent.
#[utoipa::path(post, path = "/v1/sender-pools", tag = "Sender pools", operation_id = "create_sender_pool",
    params(IdempotencyHeader), request_body = NewSenderPool,
    responses((status = 201, description = "Created", body = SenderPool)))]
async fn create(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    body: Body<NewSenderPool>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "sender_pools.create";
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.fingerprint(OPERATION), secret: false };
    let NewSenderPool { name, session_ids } = body.into_inner();
    check(Some(&name), Some(&session_ids))?;
    let now = app.clock.now();
    let id = SenderPoolId::fresh(now, &app.chance);
    let created = once_tenant(&app, tenant, once, async move |conn| {
        check_known(conn, &session_ids).await?;
        let pool = pool::insert(conn, id, &name, &session_ids, now).await.map_err(name_taken)?;
        Created::new(StatusCode::CREATED, id.0, &pool)
    })
    .await?;
    Ok(created.response(COLLECTION))
}

/// List sender pools
///
/// Newest first.
#[utoipa::path(get, path = "/v1/sender-pools", tag = "Sender pools", operation_id = "list_sender_pools",
    params(PageParams), responses((status = 200, description = "A page of pools", body = List<SenderPool>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts.db.tenant(tenant, async move |conn| pool::list(conn, after, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |pool| Cursor { at: pool.created_at, id: pool.id.0 })))
}

/// Show a sender pool
///
/// With its sessions.
#[utoipa::path(get, path = "/v1/sender-pools/{id}", tag = "Sender pools", operation_id = "get_sender_pool",
    params(("id" = SenderPoolId, Path, description = "The pool")),
    responses((status = 200, description = "The pool", body = SenderPool)))]
async fn get(app: web::Data<App>, caller: Caller, id: Path<SenderPoolId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsRead)?;
    let parts = App::clone(&app);
    let found = app
        .detached(async move { parts.db.tenant(tenant, async move |conn| pool::find(conn, id.0).await).await })
        .await??;
    let pool = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(&pool, pool.version))
}

/// Change a sender pool
///
/// Its name and its sessions.
#[utoipa::path(patch, path = "/v1/sender-pools/{id}", tag = "Sender pools", operation_id = "update_sender_pool",
    params(("id" = SenderPoolId, Path, description = "The pool"), IfMatchHeader), request_body = SenderPoolPatch,
    responses((status = 200, description = "The pool as it is now", body = SenderPool)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SenderPoolId>,
    if_match: IfMatch,
    body: Body<SenderPoolPatch>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let SenderPoolPatch { name, session_ids } = body.into_inner();
    check(name.as_deref(), session_ids.as_deref())?;
    let (parts, now, id) = (App::clone(&app), app.clock.now(), id.0);
    let pool = app
        .detached(async move {
            parts
                .db
                .tenant(tenant, async move |conn| {
                    let version = pool::lock(conn, id).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(version)?;
                    check_known(conn, session_ids.as_deref().unwrap_or_default()).await?;
                    let changed = pool::update(conn, id, name.as_deref(), session_ids.as_deref(), now).await;
                    changed.map_err(name_taken)?.ok_or_else(Problem::not_found)
                })
                .await
        })
        .await??;
    Ok(versioned(&pool, pool.version))
}

/// Delete a sender pool
///
/// Its sessions stay, and so does what waits in them.
#[utoipa::path(delete, path = "/v1/sender-pools/{id}", tag = "Sender pools", operation_id = "delete_sender_pool",
    params(("id" = SenderPoolId, Path, description = "The pool")),
    responses((status = 204, description = "Deleted")))]
async fn delete(app: web::Data<App>, caller: Caller, id: Path<SenderPoolId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let (parts, now) = (App::clone(&app), app.clock.now());
    let deleted = app
        .detached(async move { parts.db.tenant(tenant, async move |conn| pool::delete(conn, id.0, now).await).await })
        .await??;
    if deleted { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found()) }
}
