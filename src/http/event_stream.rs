//! `/v1/events/stream`: what happens, as it happens.
//!
//! A stream reads the log, in the log's order, from where its client was: so it misses nothing and repeats nothing, whatever
//! node it is on and whatever the broker does. What comes over the broker only says that it is time to read on; but for presence,
//! which is in no log and goes out as it comes, without an id.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderMap;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use utoipa::OpenApi;

use super::caller::Credential;
use super::events::{patterns, unknown_place};
use super::sse::{self, Frames, Gone, HEARTBEAT};
use super::{Caller, Code, Problem, Query};
use crate::app::App;
use crate::broker::ConsumerHandle;
use crate::db::DbError;
use crate::domain::ids::{SessionId, TenantId};
use crate::events::query::{self, After, Event, Position};
use crate::events::types::{self, PRESENCE};
use crate::events::view;
use crate::identity::scope::Scope;
use crate::media::slots::Slot;
use crate::sessions::{qr, queries};

/// Events read at once.
const BATCH: i64 = 100;
/// How long a stream waits for the bell before it looks by itself: often at first, until the bell is sure to ring.
const FIRST_LOOKS: Duration = Duration::from_millis(500);
/// See [`FIRST_LOOKS`].
const LOOKS: Duration = Duration::from_secs(5);
/// How long the first looks last.
const SETTLING: Duration = Duration::from_secs(5);
/// How long a stream may wait for the QR code of an event.
const CODE_WITHIN: Duration = Duration::from_secs(2);
/// How long it does without codes after one that did not come in time.
const WITHOUT_CODES: Duration = Duration::from_secs(30);
/// Presence that may wait for a client.
const PASSING: usize = 64;
/// How long a client waits before it comes again.
const RETRY: Duration = Duration::from_secs(2);

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/events/stream").route(web::get().to(stream)));
}

#[derive(OpenApi)]
#[openapi(paths(stream))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Which events are streamed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StreamParams {
    /// Types of events or groups such as `message.*`, separated by commas; all, if left out.
    #[serde(rename = "type")]
    #[param(example = "session.*,message.received")]
    kind: Option<String>,
    /// Where to begin, unless `Last-Event-ID` says it: after the event with this id, or after this time (RFC 3339). With what
    /// happens from now on, if left out.
    #[param(example = "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c")]
    after: Option<String>,
}

/// Stream events
///
/// Server-sent events, each with its `id`, its type as `event`, and the event as in the list as `data`; a comment every 15 s. A
/// client that comes again with `Last-Event-ID` misses none and sees none twice. The stream ends when its key is revoked or
/// the node stops: come again then.
///
/// A `session.qr` event whose code is still on show carries it as `data.qr.value`, for keys with the scope `sessions:read`,
/// provided that the WAHA server gives it in time. It is a credential: it is here and in `GET /v1/sessions/{id}/qr` only, in no
/// list of events and no webhook.
#[utoipa::path(get, path = "/v1/events/stream", tag = "Events", operation_id = "stream_events",
    params(StreamParams, ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen", example = "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c")),
    responses((status = 200, description = "The events, as they happen", body = String, content_type = "text/event-stream",
        example = "id: 01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c\nevent: session.qr\ndata: {\"id\":\"01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c\",\"type\":\"session.qr\",\"timestamp\":\"2026-11-21T09:30:00Z\",\"data\":{}}\n\n")))]
async fn stream(
    app: web::Data<App>,
    caller: Caller,
    params: Query<StreamParams>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let StreamParams { kind, after } = params.0;
    let patterns = patterns(kind.as_deref())?;
    let place = match (last_event_id(request.headers())?, after) {
        (Some(id), _) => Some(id),
        (None, Some(after)) => {
            Some(after.parse().map_err(|_| unknown_place("must be the id of an event or a time in RFC 3339 form"))?)
        }
        (None, None) => None,
    };
    let Some(slot) = app.streams.take(tenant, Duration::from_millis(100)).await else {
        return Err(Problem::new(Code::RateLimited, "Too many live streams are open at once"));
    };
    let parts = App::clone(&app);
    let credential = Credential::of(&request).ok_or_else(|| Problem::new(Code::Internal, "No credential"))?;
    let shows_codes = caller.scopes().allow(Scope::SessionsRead);
    let position = app.detached(async move { begin(&parts, tenant, place).await }).await??;
    let (frames, response) = sse::open();
    let parts = App::clone(&app);
    app.spawn(async move {
        let mut reader = Reader { app: parts, tenant, patterns, position, shows_codes, no_codes_until: None };
        // Either way the stream is over.
        let _gone = reader.run(&frames, &credential, slot).await;
    });
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<After>, Problem> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let rule = || Problem::invalid("Last-Event-ID", "invalid_value", "must be the id of an event");
    id.map(|id| Some(After::Event(id))).ok_or_else(rule)
}

/// The place to begin at.
async fn begin(app: &App, tenant: TenantId, place: Option<After>) -> Result<Position, Problem> {
    let found = app.db.tenant(tenant, async move |conn| query::place(conn, place).await).await?;
    found.ok_or_else(|| Problem::invalid("after", "invalid_value", "names no event"))
}

/// Rings when the broker has something for a tenant, until it is dropped.
struct Bell {
    rings: Arc<Notify>,
    /// What is told in passing only.
    passing: mpsc::Receiver<Bytes>,
    listener: ConsumerHandle,
    app: App,
}

impl Bell {
    fn of(app: &App, tenant: TenantId) -> Self {
        let rings = Arc::new(Notify::new());
        let ring = Arc::clone(&rings);
        let (tell, passing) = mpsc::channel(PASSING);
        let listener = app.broker.subscribe_events(&format!("{tenant}.#"), move |delivery| {
            if delivery.routing_key.ends_with(PRESENCE) {
                // Who does not keep up misses some of it.
                let _full = tell.try_send(delivery.body);
            } else {
                ring.notify_one();
            }
            std::future::ready(())
        });
        Self { rings, passing, listener, app: app.clone() }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let listener = self.listener.clone();
        self.app.spawn(async move {
            listener.stop(Duration::from_secs(1)).await;
        });
    }
}

/// One client's way through the log.
struct Reader {
    app: App,
    tenant: TenantId,
    patterns: Vec<String>,
    position: Position,
    shows_codes: bool,
    no_codes_until: Option<Instant>,
}

impl Reader {
    async fn run(&mut self, frames: &Frames, credential: &Credential, _slot: Slot) -> Result<(), Gone> {
        let app = self.app.clone();
        let mut bell = Bell::of(&app, self.tenant);
        let began = Instant::now();
        let mut heard = Instant::now();
        frames.retry(RETRY).await?;
        loop {
            // A key that was revoked ends its streams, too.
            if !credential.is_valid(&app).await {
                return Ok(());
            }
            match self.read(frames).await? {
                Some(0) => {}
                Some(count) => {
                    heard = Instant::now();
                    if count >= BATCH {
                        continue;
                    }
                }
                // The database is away; the client need not notice.
                None => tokio::time::sleep(FIRST_LOOKS).await,
            }
            if heard.elapsed() >= HEARTBEAT {
                frames.comment().await?;
                heard = Instant::now();
            }
            let nap = if began.elapsed() < SETTLING { FIRST_LOOKS } else { LOOKS };
            tokio::select! {
                () = bell.rings.notified() => {}
                Some(event) = bell.passing.recv() => {
                    if let Ok(text) = std::str::from_utf8(&event)
                        && types::selects(&self.patterns, PRESENCE)
                    {
                        frames.event(None, PRESENCE, text).await?;
                        heard = Instant::now();
                    }
                }
                () = tokio::time::sleep(nap.min(HEARTBEAT.saturating_sub(heard.elapsed()))) => {}
                () = frames.gone() => return Err(Gone),
                () = app.health.drained() => return Ok(()),
            }
        }
    }

    /// Sends what is new; how many events were read, `None` when the log cannot be.
    async fn read(&mut self, frames: &Frames) -> Result<Option<i64>, Gone> {
        let (position, patterns) = (self.position, self.patterns.clone());
        let read = self.app.db.tenant(self.tenant, async move |conn| {
            let end = query::end(conn).await?;
            let events = query::list(conn, After::Position(position), &patterns, BATCH).await?;
            Ok::<_, DbError>((end, events.unwrap_or_default()))
        });
        let (end, events) = match read.await {
            Ok(read) => read,
            Err(fault) => {
                tracing::debug!(%fault, "a live stream waits for the database");
                return Ok(None);
            }
        };
        for event in &events {
            let data = self.with_code(event).await;
            let text = view::envelope(event.id, &event.kind, event.at, data.as_deref().unwrap_or(&event.data));
            frames.event(Some(&event.id.to_string()), &event.kind, &text).await?;
            self.position = event.position;
        }
        let count = i64::try_from(events.len()).unwrap_or(BATCH);
        if count < BATCH {
            // What lies between is of other types, and need not be passed by again.
            self.position = self.position.max(end);
        }
        Ok(Some(count))
    }

    /// The event's data with the QR code that it tells of, if that is still on show and may be seen here.
    async fn with_code(&mut self, event: &Event) -> Option<String> {
        let now = self.app.clock.now();
        let patient = self.no_codes_until.is_none_or(|until| until <= Instant::now());
        if event.kind != "session.qr" || !self.shows_codes || !patient {
            return None;
        }
        let mut data: Value = serde_json::from_str(&event.data).ok()?;
        let session: SessionId = data.get("id")?.as_str()?.parse().ok()?;
        let rotation = data.pointer("/qr/rotation")?.as_i64()?;
        let expires_at: DateTime<Utc> = data.pointer("/qr/expires_at")?.as_str()?.parse().ok()?;
        if expires_at <= now {
            return None;
        }
        let (app, tenant) = (self.app.clone(), self.tenant);
        let fetched = tokio::time::timeout(CODE_WITHIN, async move {
            let row = app.db.tenant(tenant, async move |conn| queries::find(conn, session).await).await.ok()??;
            // A later code has an event of its own.
            let current = row.status == "scan_qr" && i64::from(row.qr_shown) == rotation;
            if !current {
                return None;
            }
            qr::qr(&app, tenant, session).await.ok()
        });
        let code = match fetched.await {
            Ok(code) => code?,
            Err(_) => {
                self.no_codes_until = Some(Instant::now() + WITHOUT_CODES);
                return None;
            }
        };
        let member = data.pointer_mut("/qr")?.as_object_mut()?;
        member.insert("value".to_owned(), Value::String(code.value.expose_secret().to_owned()));
        Some(data.to_string())
    }
}
