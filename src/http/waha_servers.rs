//! `/v1/waha-servers`: for platform keys.

use actix_web::http::StatusCode;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;
use utoipa::{OpenApi, ToSchema};

use super::{
    Body, Caller, Code, Created, Cursor, IdempotencyHeader, IfMatch, IfMatchHeader, List, MaybeIdempotencyKey, Once,
    Page, PageParams, Path, Problem, Rules, forget_now, nullable, once_system, versioned,
};
use crate::app::App;
use crate::db::{DbError, SystemConn};
use crate::domain::ids::WahaServerId;
use crate::sessions::directory::api_key_purpose;
use crate::sessions::probe::{self, Probe};
use crate::sessions::servers::{self, NAME_TAKEN, NewWahaServer, ServerHealth, WahaServer, WahaServerChange};
use crate::waha::{Engine, Server};

const COLLECTION: &str = "/v1/waha-servers";
const MOST_CAPACITY: i32 = 100_000;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/waha-servers").route(web::post().to(create)).route(web::get().to(list))).service(
        web::resource("/waha-servers/{id}")
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

/// A server to be registered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewWahaServer, example = json!({
    "name": "waha-1", "base_url": "http://waha-1:3000", "api_key": "change-me", "engine": "GOWS", "capacity": 100
}))]
struct NewServer {
    /// 1 to 100 characters, unique.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Where WAHA's API is: `http` or `https`, without credentials, query and fragment.
    #[schema(value_type = String, format = "uri")]
    base_url: String,
    /// WAHA's key; kept sealed and never shown.
    #[schema(value_type = String, format = "password", min_length = 1, max_length = 512)]
    api_key: SecretString,
    /// The engine its sessions run on: `WEBJS`, `WPP`, `NOWEB` or `GOWS`.
    #[schema(value_type = String, pattern = "^(WEBJS|WPP|NOWEB|GOWS)$")]
    engine: Engine,
    /// How many sessions it may hold: 0 to 100000.
    #[schema(minimum = 0, maximum = 100_000)]
    capacity: i32,
    /// What sessions may ask for in the place they are given: at most 20 labels, each of 1 to 50 characters out of
    /// `a-z 0-9 _ . : -`.
    #[serde(default)]
    #[schema(max_items = 20)]
    labels: Vec<String>,
    /// Servers of one group share their session storage: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    storage_group: Option<String>,
}

/// What is to change of a server; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"draining": true}))]
struct WahaServerPatch {
    /// 1 to 100 characters, unique.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// Where WAHA's API is.
    #[schema(value_type = Option<String>, format = "uri")]
    base_url: Option<String>,
    /// WAHA's key.
    #[schema(value_type = Option<String>, format = "password", min_length = 1, max_length = 512)]
    api_key: Option<SecretString>,
    /// Another engine; only while no session lives there.
    #[schema(value_type = Option<String>, pattern = "^(WEBJS|WPP|NOWEB|GOWS)$")]
    engine: Option<Engine>,
    /// 0 to 100000. Below the present number of sessions no new one is placed; none is moved.
    #[schema(minimum = 0, maximum = 100_000)]
    capacity: Option<i32>,
    /// Take the place of the old labels; sessions that are there already stay.
    #[schema(max_items = 20)]
    labels: Option<Vec<String>>,
    /// Another group of servers that share their session storage; null: none.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 100)]
    storage_group: Option<Option<String>>,
    /// Whether it gets no new sessions.
    draining: Option<bool>,
}

/// Notes what is wrong with `text`; answers it in the form in which it is kept, without a slash at its end.
fn check_base_url(rules: &mut Rules, text: &str) -> String {
    const FIELD: &str = "base_url";
    match Url::parse(text) {
        Ok(url) if text.len() <= 2000 => {
            rules.check(
                matches!(url.scheme(), "http" | "https") && url.has_host(),
                FIELD,
                "invalid_value",
                "must begin with http:// or https://",
            );
            let bare = url.username().is_empty() && url.password().is_none();
            rules.check(bare, FIELD, "invalid_value", "must not hold credentials");
            let plain = url.query().is_none() && url.fragment().is_none();
            rules.check(plain, FIELD, "invalid_value", "must have neither query nor fragment");
            url.as_str().trim_end_matches('/').to_owned()
        }
        Ok(_) => {
            rules.broken(FIELD, "too_long", "must have at most 2000 characters");
            String::new()
        }
        Err(_) => {
            rules.broken(FIELD, "invalid_value", "must be a URL such as http://waha-1:3000");
            String::new()
        }
    }
}

fn check_api_key(rules: &mut Rules, key: &SecretString) {
    let key = key.expose_secret();
    let fits = (1..=512).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    rules.check(fits, "api_key", "invalid_value", "must be 1 to 512 visible ASCII characters");
}

fn check_capacity(rules: &mut Rules, capacity: i32) {
    rules.check((0..=MOST_CAPACITY).contains(&capacity), "capacity", "out_of_range", "must be from 0 to 100000");
}

fn name_taken(fault: DbError) -> Problem {
    if fault.is_duplicate_of(NAME_TAKEN) {
        return Problem::conflict("A WAHA server of this name exists").field("name", "taken", "is taken");
    }
    fault.into()
}

/// What the server said must go with what is said of it.
fn check_probe(probe: &Probe, engine: Engine) -> Result<(), Problem> {
    if probe.health == ServerHealth::Unauthorized {
        return Err(Problem::invalid("api_key", "refused", "is not accepted by the WAHA server"));
    }
    match probe.version.as_ref().and_then(|version| version.engine) {
        Some(running) if running != engine => {
            Err(Problem::invalid("engine", "wrong_engine", format!("must be {running}, which the WAHA server runs")))
        }
        _ => Ok(()),
    }
}

/// Asks a WAHA server how it fares. `None` when it cannot be asked: it then is registered unseen.
async fn probed(app: &App, base_url: &str, api_key: SecretString) -> Result<Option<Probe>, Problem> {
    let Ok(base_url) = base_url.parse() else { return Ok(None) };
    let (parts, server) = (app.clone(), Server { base_url, api_key });
    let probe = app.detached(async move { probe::probe(&parts.waha, &server).await }).await?;
    // One that does not answer may be one that is still to be started; the next poll tells.
    Ok(probe.filter(|probe| probe.health != ServerHealth::Unreachable))
}

/// Register a WAHA server
///
/// It is asked at once what it runs, which takes some seconds at the most. A key that it refuses and an engine that it does not run
/// are refused here, too; what its version cannot do is said in `limitations`. One that does not answer is registered all the
/// same, with the health `unknown`, and asked again every few seconds. The key is sealed and never shown again. New sessions go
/// to the healthy server with most room.
#[utoipa::path(post, path = "/v1/waha-servers", tag = "WAHA servers", operation_id = "create_waha_server",
    params(IdempotencyHeader), request_body = NewServer,
    responses((status = 201, description = "Registered", body = WahaServer)))]
async fn create(
    app: web::Data<App>,
    caller: Caller,
    key: MaybeIdempotencyKey,
    body: Body<NewServer>,
) -> Result<HttpResponse, Problem> {
    const OPERATION: &str = "waha_servers.create";
    caller.platform()?;
    let once = Once { operation: OPERATION, key: key.0, fingerprint: body.fingerprint(OPERATION), secret: false };
    let new = body.into_inner();
    let mut rules = Rules::new();
    rules.name("name", &new.name, 100);
    let base_url = check_base_url(&mut rules, &new.base_url);
    check_api_key(&mut rules, &new.api_key);
    check_capacity(&mut rules, new.capacity);
    let labels = rules.labels("labels", new.labels);
    if let Some(group) = &new.storage_group {
        rules.name("storage_group", group, 100);
    }
    rules.finish()?;
    let probe = probed(&app, &base_url, new.api_key.clone()).await?;
    let now = app.clock.now();
    let id = WahaServerId::fresh(now, &app.chance);
    let server = NewWahaServer {
        id,
        name: new.name,
        base_url,
        api_key_sealed: app.sealer.seal(&api_key_purpose(id), new.api_key.expose_secret().as_bytes()),
        engine: new.engine,
        capacity: new.capacity,
        labels,
        storage_group: new.storage_group,
    };
    let created = once_system(&app, None, once, async move |conn| {
        let engine = server.engine;
        let mut server = servers::insert(conn, &server, now).await.map_err(name_taken)?;
        if let Some(probe) = &probe {
            check_probe(probe, engine)?;
            server = noted(conn, id, engine, probe, now).await?;
        }
        Created::new(StatusCode::CREATED, id.0, &server)
    })
    .await?;
    Ok(created.response(COLLECTION))
}

/// Notes what the server said; answers it as it then is.
async fn noted(
    conn: &mut SystemConn,
    id: WahaServerId,
    engine: Engine,
    probe: &Probe,
    now: DateTime<Utc>,
) -> Result<WahaServer, Problem> {
    servers::record_health(conn, id, engine, probe, now).await?;
    servers::find(conn, id).await?.ok_or_else(Problem::not_found)
}

/// List WAHA servers
///
/// Newest first, with health and load.
#[utoipa::path(get, path = "/v1/waha-servers", tag = "WAHA servers", operation_id = "list_waha_servers",
    params(PageParams), responses((status = 200, description = "A page of servers", body = List<WahaServer>)))]
async fn list(app: web::Data<App>, caller: Caller, page: Page) -> Result<impl Responder, Problem> {
    caller.platform()?;
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts.db.system(async move |conn| servers::list(conn, after, page.fetch()).await).await
        })
        .await??;
    Ok(web::Json(page.answer(rows, |server| Cursor { at: server.created_at, id: server.id.0 })))
}

/// Show a WAHA server
///
/// `version` counts the changes of this resource; WAHA's own version is `waha_version`.
#[utoipa::path(get, path = "/v1/waha-servers/{id}", tag = "WAHA servers", operation_id = "get_waha_server",
    params(("id" = WahaServerId, Path, description = "The server")),
    responses((status = 200, description = "The server", body = WahaServer)))]
async fn get(app: web::Data<App>, caller: Caller, id: Path<WahaServerId>) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let parts = App::clone(&app);
    let found =
        app.detached(async move { parts.db.system(async move |conn| servers::find(conn, id.0).await).await }).await??;
    let server = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(&server, server.version))
}

/// Change a WAHA server
///
/// With `draining` it gets no new sessions; those it has stay. With another address, key or engine it is asked what it runs, as
/// when it is registered.
#[utoipa::path(patch, path = "/v1/waha-servers/{id}", tag = "WAHA servers", operation_id = "update_waha_server",
    params(("id" = WahaServerId, Path, description = "The server"), IfMatchHeader), request_body = WahaServerPatch,
    responses((status = 200, description = "The server as it is now", body = WahaServer)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<WahaServerId>,
    if_match: IfMatch,
    body: Body<WahaServerPatch>,
) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let id = id.0;
    let new = body.into_inner();
    let mut rules = Rules::new();
    if let Some(name) = &new.name {
        rules.name("name", name, 100);
    }
    let base_url = new.base_url.as_deref().map(|text| check_base_url(&mut rules, text));
    if let Some(key) = &new.api_key {
        check_api_key(&mut rules, key);
    }
    if let Some(capacity) = new.capacity {
        check_capacity(&mut rules, capacity);
    }
    let labels = new.labels.map(|labels| rules.labels("labels", labels));
    if let Some(Some(group)) = &new.storage_group {
        rules.name("storage_group", group, 100);
    }
    rules.finish()?;
    let asked = new.api_key.clone();
    let change = WahaServerChange {
        name: new.name,
        base_url,
        api_key_sealed: new.api_key.map(|key| app.sealer.seal(&api_key_purpose(id), key.expose_secret().as_bytes())),
        engine: new.engine,
        capacity: new.capacity,
        labels,
        storage_group: new.storage_group,
        draining: new.draining,
    };
    let probed = probed_anew(&app, id, &change, asked).await?;
    let (parts, now) = (App::clone(&app), app.clock.now());
    let server = app
        .detached(async move {
            let changed = parts
                .db
                .system(async move |conn| {
                    let old = servers::lock(conn, id).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(old.version)?;
                    if change.engine.is_some_and(|engine| engine.as_str() != old.engine) && old.sessions > 0 {
                        return Err(Problem::conflict("Sessions live on this server; its engine cannot change"));
                    }
                    let changed = servers::update(conn, id, &change, now).await.map_err(name_taken)?;
                    match &probed {
                        // What was changed meanwhile was not asked about; the next poll tells.
                        Some((version, probe)) if *version == old.version => {
                            let engine = changed.engine.parse().map_err(|_| unreadable(id))?;
                            check_probe(probe, engine)?;
                            noted(conn, id, engine, probe, now).await
                        }
                        _ => Ok(changed),
                    }
                })
                .await?;
            forget_now(&parts).await;
            Ok::<_, Problem>(changed)
        })
        .await??;
    Ok(versioned(&server, server.version))
}

/// Asks the server `id` how it fares with `change`, if that can make a difference. Answers what it said, and the version of the
/// resource that the question was built on.
async fn probed_anew(
    app: &web::Data<App>,
    id: WahaServerId,
    change: &WahaServerChange,
    api_key: Option<SecretString>,
) -> Result<Option<(i64, Probe)>, Problem> {
    if !change.needs_probe() {
        return Ok(None);
    }
    let parts = App::clone(app);
    let found = async move {
        let server = parts.db.system(async move |conn| servers::find(conn, id).await).await?;
        let server = server.ok_or_else(Problem::not_found)?;
        let known = parts.directory.server(id).await.map_err(|fault| {
            // Its key may have been sealed under a key that is lost: a new one can still be given.
            tracing::warn!(server_id = %id, %fault, "a WAHA server cannot be read");
        });
        Ok::<_, Problem>((server, known.ok().flatten().map(|entry| entry.server.api_key.clone())))
    };
    let (server, known) = app.detached(found).await??;
    let Some(api_key) = api_key.or(known) else { return Ok(None) };
    let base_url = change.base_url.as_deref().unwrap_or(&server.base_url);
    let probe = probed(app, base_url, api_key).await?;
    // Since when it runs is left to the polls, which look at its sessions when that changes.
    Ok(probe.map(|probe| (server.version, Probe { started_at: None, ..probe })))
}

fn unreadable(id: WahaServerId) -> Problem {
    tracing::error!(server_id = %id, "a WAHA server's engine cannot be read");
    Problem::new(Code::Internal, "The server's engine cannot be read")
}

/// Remove a WAHA server
///
/// 409 while sessions live there: drain it and move or delete them first.
#[utoipa::path(delete, path = "/v1/waha-servers/{id}", tag = "WAHA servers", operation_id = "delete_waha_server",
    params(("id" = WahaServerId, Path, description = "The server")),
    responses((status = 204, description = "Removed")))]
async fn delete(app: web::Data<App>, caller: Caller, id: Path<WahaServerId>) -> Result<HttpResponse, Problem> {
    caller.platform()?;
    let (id, parts, now) = (id.0, App::clone(&app), app.clock.now());
    app.detached(async move {
        parts
            .db
            .system(async move |conn| {
                let server = servers::lock(conn, id).await?.ok_or_else(Problem::not_found)?;
                if server.sessions > 0 {
                    let detail = format!("{} sessions live on this server", server.sessions);
                    return Err(Problem::conflict(detail));
                }
                Ok::<_, Problem>(servers::delete(conn, id, now).await?)
            })
            .await?;
        forget_now(&parts).await;
        Ok::<_, Problem>(())
    })
    .await??;
    Ok(HttpResponse::NoContent().finish())
}
