//! Sessions: create, list, change, delete, each with the time it takes WAHA.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answers::Answer;
use super::ids;
use super::routes::{Call, Route};
use super::session::{Me, Session, Status};
use super::webhooks::EVENT_NAMES;
use super::world::World;

/// How long a running session takes to stop, and to stop and log out.
const STOPPING: Duration = Duration::from_secs(3);
const LOGGING_OUT: Duration = Duration::from_secs(4);
/// How long a call waits for another lifecycle call of the same session.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_NAME: usize = 54;
/// Members that are kept of a configuration; others are dropped without a word.
const CONFIG_MEMBERS: [&str; 9] =
    ["metadata", "webhooks", "proxy", "ignore", "client", "debug", "noweb", "gows", "webjs"];

#[derive(Serialize)]
struct Info<'a> {
    name: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Value>,
    me: Option<Arc<Me>>,
    presence: Option<()>,
    timestamps: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<Value>,
}

fn info(session: &Session, with_engine: Option<super::Engine>) -> Value {
    let status = session.current();
    let stopped = status == Status::Stopped;
    let timestamps = match session.activity() {
        _ if stopped => json!({"activity": null}),
        Some(activity) => json!({"activity": activity}),
        None => json!({}),
    };
    let info = Info {
        name: &session.name,
        status,
        config: session.config(),
        me: session.me().filter(|_| matches!(status, Status::Working | Status::Stopped)),
        presence: None,
        timestamps,
        engine: with_engine.map(|engine| if stopped { json!({}) } else { json!({"engine": engine}) }),
    };
    serde_json::to_value(&info).unwrap_or_default()
}

pub(super) fn health() -> Answer {
    let details = json!({
        "mediaFiles.space": {"status": "up", "path": "/tmp/whatsapp-files", "diskPath": "/", "free": 10_000_000_000u64, "threshold": 104_857_600},
        "sessionsFiles.space": {"status": "up", "path": "/app/.sessions", "diskPath": "/", "free": 10_000_000_000u64, "threshold": 104_857_600},
    });
    Answer::of(200, &json!({"status": "ok", "info": details, "error": {}, "details": details}))
}

pub(super) fn server_status(world: &World) -> Answer {
    let started = world.started_at();
    let uptime = world.now().timestamp_millis().saturating_sub(started).max(0);
    Answer::of(200, &json!({"startTimestamp": started, "uptime": uptime, "worker": {"id": ""}}))
}

pub(super) fn list(world: &World, call: &Call) -> Answer {
    let all = call.parameter("all") == Some("true");
    let mut sessions: Vec<Arc<Session>> = world.sessions().values().cloned().collect();
    sessions.retain(|session| all || session.current() != Status::Stopped);
    sessions.sort_by(|one, other| one.name.cmp(&other.name));
    Answer::of(200, &sessions.iter().map(|session| info(session, None)).collect::<Vec<_>>())
}

pub(super) fn get(world: &World, session: Option<&Session>) -> Answer {
    session.map_or_else(Answer::session_not_found, |session| Answer::of(200, &info(session, Some(world.engine))))
}

pub(super) fn me(session: Option<&Session>, name: &str) -> Answer {
    match session.filter(|session| session.current() != Status::Stopped) {
        None => Answer::nest(
            404,
            &format!(
                "We didn't find a session with name '{name}'.\nPlease start it first by using POST /api/sessions/{name}/start request"
            ),
        ),
        Some(session) => session.me().map_or_else(|| Answer::empty(200), |me| Answer::of(200, &*me)),
    }
}

pub(super) fn create(world: &Arc<World>, call: &Call) -> Answer {
    let body = if call.body.is_null() { json!({}) } else { call.body.clone() };
    let wrong = check(&body);
    if !wrong.is_empty() {
        return Answer::invalid(&wrong);
    }
    let name = match body.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => format!("session_{}", ids::ulid(world.now(), &world.chance)),
    };
    let session = {
        let mut sessions = world.sessions_mut();
        if sessions.contains_key(name.as_str()) {
            return Answer::nest(422, &format!("Session '{name}' already exists. Use PUT to update it."));
        }
        let session = Session::new(world, &name, config_of(&body));
        sessions.insert(Arc::clone(&session.name), Arc::clone(&session));
        session
    };
    world.changed.send_replace(());
    if body.get("start").and_then(Value::as_bool).unwrap_or(true) {
        session.begin(world);
    }
    Answer::of(201, &info(&session, Some(world.engine)))
}

/// Update, start, stop, restart and logout of one session.
pub(super) async fn change(world: &Arc<World>, route: &Route, session: Option<Arc<Session>>, call: &Call) -> Answer {
    let Some(session) = session else {
        return if *route == Route::Stop { Answer::empty(201) } else { Answer::session_not_found() };
    };
    let wrong = if *route == Route::UpdateSession { check(&call.body) } else { Vec::new() };
    if !wrong.is_empty() {
        return Answer::invalid(&wrong);
    }
    let Some(_turn) = turn(world, &session).await else { return busy() };
    if session.is_deleted() {
        return Answer::session_not_found();
    }
    let running = session.current() != Status::Stopped;
    match route {
        Route::Start if running => {
            return Answer::nest(422, &format!("Session '{}' is already started.", session.name));
        }
        Route::Start => session.begin(world),
        Route::Stop => halt(world, &session, STOPPING).await,
        Route::Restart => {
            halt(world, &session, STOPPING).await;
            session.begin(world);
        }
        Route::Logout => {
            halt(world, &session, LOGGING_OUT).await;
            session.forget(world);
            if running {
                session.begin(world);
            }
        }
        _ => {
            session.configure(world, config_of(&call.body));
            if running {
                halt(world, &session, STOPPING).await;
                session.begin(world);
            }
        }
    }
    let status = if *route == Route::UpdateSession { 200 } else { 201 };
    Answer::of(status, &info(&session, Some(world.engine)))
}

pub(super) async fn delete(world: &Arc<World>, session: Option<Arc<Session>>) -> Answer {
    let Some(session) = session else { return Answer::empty(200) };
    let Some(_turn) = turn(world, &session).await else { return busy() };
    halt(world, &session, LOGGING_OUT).await;
    session.forget(world);
    session.delete();
    let mut sessions = world.sessions_mut();
    if sessions.get(&session.name).is_some_and(|known| Arc::ptr_eq(known, &session)) {
        sessions.remove(&session.name);
    }
    Answer::empty(200)
}

async fn halt(world: &Arc<World>, session: &Session, takes: Duration) {
    if session.current() != Status::Stopped {
        session.end(world);
        world.pause(takes).await;
    }
}

async fn turn<'a>(world: &World, session: &'a Session) -> Option<tokio::sync::MutexGuard<'a, ()>> {
    tokio::select! {
        turn = session.lifecycle.lock() => Some(turn),
        () = world.pause(LOCK_PATIENCE) => None,
    }
}

/// The session's lock is taken for too long.
pub(super) fn busy() -> Answer {
    Answer::json(500, r#"{"statusCode":500,"message":"Internal server error"}"#)
}

fn config_of(body: &Value) -> Option<Value> {
    let given = body.get("config")?.as_object()?;
    let kept = given.iter().filter(|(name, _)| CONFIG_MEMBERS.contains(&name.as_str()));
    Some(Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>()))
}

/// What the validation pipe objects to.
fn check(body: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    match body.get("name") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) => {
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                wrong.push("Session name can only contain alphanumeric characters, hyphens, and underscores (a-z, A-Z, 0-9, -, _) or be empty".to_owned());
            }
            if name.len() > LONGEST_NAME {
                wrong.push(format!("name must be shorter than or equal to {LONGEST_NAME} characters"));
            }
        }
        Some(_) => wrong.push("name must be a string".to_owned()),
    }
    if body.get("start").is_some_and(|start| !start.is_boolean() && !start.is_null()) {
        wrong.push("start must be a boolean value".to_owned());
    }
    let hooks = body.pointer("/config/webhooks").and_then(Value::as_array);
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        let url = hook.get("url").and_then(Value::as_str).and_then(|url| url::Url::parse(url).ok());
        if url.is_none_or(|url| !matches!(url.scheme(), "http" | "https")) {
            wrong.push(format!("config.webhooks.{index}.url must be a URL address"));
        }
        let events = hook.get("events").and_then(Value::as_array);
        let known = |event: &Value| {
            event
                .as_str()
                .is_some_and(|event| event.ends_with(".*") || EVENT_NAMES.split(", ").any(|name| name == event))
        };
        if events.is_none_or(|events| !events.iter().all(known)) {
            wrong.push(format!(
                "config.webhooks.{index}.each value in events must be one of the following values: {EVENT_NAMES}"
            ));
        }
    }
    wrong
}
