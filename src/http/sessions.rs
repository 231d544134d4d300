//! `/v1/sessions`: WhatsApp numbers, paired or to be paired.

use actix_web::http::StatusCode;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Responder};
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{OpenApi, ToSchema};

use super::proxies::ProxyBody;
use super::{
    Body, Caller, Code, Created, Cursor, IdempotencyHeader, IfMatch, IfMatchHeader, MaybeIdempotencyKey, Once, Page,
    PageParams, Path, Problem, Rules, nullable, once_system, versioned,
};
use crate::app::App;
use crate::db::{DbError, TenantConn};
use crate::dispatch::pacing::{Pacing, WarmUp};
use crate::dispatch::windows::Windows;
use crate::domain::ids::SessionId;
use crate::guard::Guard;
use crate::identity::scope::Scope;
use crate::sessions::change::{self, NAME_TAKEN, Settings};
use crate::sessions::create::{self, CreateError, NewSession};
use crate::sessions::proxy;
use crate::sessions::queries;
use crate::sessions::removal;
use crate::sessions::servers::PlaceWish;
use crate::sessions::view::{Session, SessionRow, ShownProxy};
use crate::waha::Engine;

const COLLECTION: &str = "/v1/sessions";
/// Bytes of JSON in `config` and in `metadata`, at the most.
const MOST_JSON: usize = 16 * 1024;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/sessions").route(web::post().to(create)).route(web::get().to(list))).service(
        web::resource("/sessions/{id}")
            .route(web::get().to(get))
            .route(web::patch().to(patch))
            .route(web::delete().to(delete)),
    );
}

#[derive(OpenApi)]
#[openapi(paths(create, list, get, patch, delete), components(schemas(Session<'_>, ShownProxy)))]
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
    /// When normal and bulk messages may leave; left out: always.
    windows: Option<Windows>,
    /// Whether a recipient's number is checked with WhatsApp before the first message to it; true unless said otherwise.
    #[serde(default = "yes")]
    #[schema(default = true)]
    check_numbers: bool,
    /// Labels that its WAHA server must have, all of them: at most 20, each of 1 to 50 characters out of `a-z 0-9 _ . : -`.
    #[serde(default)]
    #[schema(max_items = 20)]
    labels: Vec<String>,
    /// What its connection to WhatsApp goes through; left out: nothing.
    proxy: Option<ProxyBody>,
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
    fn check(self, guard: Guard) -> Result<NewSession, Problem> {
        let (config, metadata) = (Value::Object(self.config), Value::Object(self.metadata));
        let mut rules = Rules::new();
        rules.name("name", &self.name, 100);
        check_pacing(&mut rules, &self.pacing);
        check_windows(&mut rules, self.windows.as_ref());
        rules.object("config", &config, MOST_JSON);
        rules.object("metadata", &metadata, MOST_JSON);
        let labels = rules.labels("labels", self.labels);
        if let Some(proxy) = &self.proxy {
            proxy.check(&mut rules, guard);
        }
        rules.finish()?;
        let Self { name, engine, start, pacing, windows, check_numbers, .. } = self;
        let (wish, proxy) = (PlaceWish { engine, labels }, self.proxy.map(ProxyBody::into_proxy));
        Ok(NewSession { name, wish, start, pacing, windows, check_numbers, config, metadata, proxy })
    }
}

fn check_pacing(rules: &mut Rules, pacing: &Pacing) {
    for (field, rule) in pacing.faults() {
        rules.broken(&format!("pacing.{field}"), "out_of_range", rule);
    }
}

fn check_windows(rules: &mut Rules, windows: Option<&Windows>) {
    for (field, rule) in windows.map(Windows::faults).unwrap_or_default() {
        rules.broken(&format!("windows.{field}"), "invalid_value", rule);
    }
}

/// What is to change of a session; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"pacing": {"min_gap_ms": 2000, "per_day": 500}, "windows": null}))]
struct SessionPatch {
    /// 1 to 100 characters, unique among your sessions.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// Changed field by field.
    pacing: Option<PacingPatch>,
    /// Takes the place of the old windows; null removes them.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Windows>)]
    windows: Option<Option<Windows>>,
    /// Whether a recipient's number is checked with WhatsApp before the first message to it.
    check_numbers: Option<bool>,
    /// Takes the place of the old proxy, password and all, from the session's next start on; null removes it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<ProxyBody>)]
    proxy: Option<Option<ProxyBody>>,
    /// Takes the place of the old settings: an object of at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    config: Option<Map<String, Value>>,
    /// Takes the place of the old data: an object of at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

/// What is to change of a session's pacing; what is left out stays, null goes back to the default.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"min_gap_ms": 2000, "per_day": null}))]
struct PacingPatch {
    /// The smallest gap between two messages, in milliseconds. It is counted from the last send.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 86_400_000)]
    min_gap_ms: Option<Option<i32>>,
    /// The most that chance adds to each gap, in milliseconds.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 86_400_000)]
    jitter_ms: Option<Option<i32>>,
    /// Messages in any 60 seconds at the most.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 1_000_000)]
    per_minute: Option<Option<i32>>,
    /// Messages in any 60 minutes at the most.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 1_000_000)]
    per_hour: Option<Option<i32>>,
    /// Messages in any 24 hours at the most.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 1_000_000)]
    per_day: Option<Option<i32>>,
    /// First messages to people who never wrote, in any 24 hours at the most.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>, minimum = 0, maximum = 1_000_000)]
    new_chats_per_day: Option<Option<i32>>,
    /// Whether the recipient sees "typing…" before a text.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<bool>)]
    typing: Option<Option<bool>>,
    /// How `per_day` grows in the first days.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<WarmUp>)]
    warm_up: Option<Option<WarmUp>>,
}

impl PacingPatch {
    fn applied_to(self, old: Pacing) -> Pacing {
        let default = Pacing::default();
        Pacing {
            min_gap_ms: self.min_gap_ms.map_or(old.min_gap_ms, |new| new.unwrap_or(default.min_gap_ms)),
            jitter_ms: self.jitter_ms.map_or(old.jitter_ms, |new| new.unwrap_or(default.jitter_ms)),
            per_minute: self.per_minute.unwrap_or(old.per_minute),
            per_hour: self.per_hour.unwrap_or(old.per_hour),
            per_day: self.per_day.unwrap_or(old.per_day),
            new_chats_per_day: self.new_chats_per_day.unwrap_or(old.new_chats_per_day),
            typing: self.typing.map_or(old.typing, |new| new.unwrap_or(default.typing)),
            warm_up: self.warm_up.unwrap_or(old.warm_up),
        }
    }
}

impl SessionPatch {
    /// The settings that `old` has with this change.
    fn applied_to(self, old: &SessionRow) -> Result<Settings, Problem> {
        let kept = old.settings().map_err(|fault| {
            tracing::error!(session_id = %old.id, %fault, "a session's settings cannot be read");
            Problem::new(Code::Internal, "The session's settings cannot be read")
        })?;
        let new = Settings {
            name: self.name.unwrap_or(kept.name),
            pacing: self.pacing.map_or(kept.pacing, |patch| patch.applied_to(kept.pacing)),
            windows: self.windows.unwrap_or(kept.windows),
            check_numbers: self.check_numbers.unwrap_or(kept.check_numbers),
            config: self.config.map_or(kept.config, Value::Object),
            metadata: self.metadata.map_or(kept.metadata, Value::Object),
        };
        let mut rules = Rules::new();
        rules.name("name", &new.name, 100);
        check_pacing(&mut rules, &new.pacing);
        check_windows(&mut rules, new.windows.as_ref());
        rules.object("config", &new.config, MOST_JSON);
        rules.object("metadata", &new.metadata, MOST_JSON);
        rules.finish()?;
        Ok(new)
    }
}

/// Create a session
///
/// It gets a place on a WAHA server at once; 409 when none that is as asked for has room, 429 `quota_exceeded` when the
/// tenant's `max_sessions` is reached. With `start` it is started there in the background:
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
    let new = body.into_inner().check(Guard::new(app.config.allow_private_targets))?;
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

/// Change a session
///
/// Name, pacing, windows, number check, proxy, settings and data. A change acts on what is queued already: the next message leaves
/// by the new pacing and windows, and a new gap is counted from the last send. Another proxy is used from the next start on.
#[utoipa::path(patch, path = "/v1/sessions/{id}", tag = "Sessions", operation_id = "update_session",
    params(("id" = SessionId, Path, description = "The session"), IfMatchHeader), request_body = SessionPatch,
    responses((status = 200, description = "The session as it is now", body = Session<'_>)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<SessionId>,
    if_match: IfMatch,
    body: Body<SessionPatch>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let (id, mut patch) = (id.0, body.into_inner());
    if let Some(Some(proxy)) = &patch.proxy {
        let mut rules = Rules::new();
        proxy.check(&mut rules, Guard::new(app.config.allow_private_targets));
        rules.finish()?;
    }
    let proxy = patch.proxy.take().map(|proxy| proxy.map(ProxyBody::into_proxy));
    let (parts, now) = (App::clone(&app), app.clock.now());
    let row = app
        .detached(async move {
            let (chance, sealer) = (parts.chance.clone(), parts.sealer.clone());
            let row = parts
                .db
                .tenant(tenant, async move |conn| {
                    let old = change::lock(conn, id).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(old.version)?;
                    let new = patch.applied_to(&old)?;
                    let before =
                        old.settings().ok().map(|settings| (settings.pacing.min_gap_ms, settings.pacing.jitter_ms));
                    let changed = before != Some((new.pacing.min_gap_ms, new.pacing.jitter_ms));
                    let millis = |millis: i32| std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0));
                    let gap = millis(new.pacing.min_gap_ms) + chance.jitter(millis(new.pacing.jitter_ms));
                    let gap = TimeDelta::from_std(gap).ok().filter(|_| changed);
                    if let Some(proxy) = &proxy {
                        proxy::set(conn, &sealer, id, proxy.as_ref()).await?;
                    }
                    change::update(conn, id, &new, gap, now).await.map_err(name_taken)
                })
                .await?;
            parts.wake.dispatch.notify_one();
            Ok::<_, Problem>(row)
        })
        .await??;
    Ok(versioned(&Session::from(&row), row.version))
}

/// Delete a session
///
/// It is gone at once; in the background it is stopped, unlinked from the phone and removed from its WAHA server. Its messages
/// are kept: those that wait are cancelled, or leave by another session of their pool.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "Sessions", operation_id = "delete_session",
    params(("id" = SessionId, Path, description = "The session")),
    responses((status = 204, description = "Deleted")))]
async fn delete(app: web::Data<App>, caller: Caller, id: Path<SessionId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::SessionsWrite)?;
    let (id, parts, now, actor) = (id.0, App::clone(&app), app.clock.now(), caller.actor().to_string());
    let deleted = app
        .detached(async move {
            let deleted = async |conn: &mut TenantConn| removal::delete(conn, id, &actor, now).await;
            let deleted = parts.db.tenant(tenant, deleted).await?;
            create::announce(&parts).await;
            Ok::<_, Problem>(deleted)
        })
        .await??;
    if deleted { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found()) }
}

fn name_taken(fault: DbError) -> Problem {
    if fault.is_duplicate_of(NAME_TAKEN) {
        return Problem::conflict("A session of this name exists").field("name", "taken", "is taken");
    }
    fault.into()
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
            CreateError::QuotaExceeded(most) => {
                let detail = format!("You may have {most} sessions and have them; delete one, or ask for more");
                Self::new(Code::QuotaExceeded, detail)
            }
            CreateError::NameTaken => {
                Self::conflict("A session of this name exists").field("name", "taken", "is taken")
            }
            CreateError::Database(fault) => fault.into(),
        }
    }
}
