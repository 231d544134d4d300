//! The server: authentication, faults, and the way from a request to its answer.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::header;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use secrecy::ExposeSecret;
use serde_json::Value;

use super::answers::{self, Answer};
use super::faults::Fault;
use super::routes::{self, Call, Found, Route};
use super::sends::{self, PostGuard};
use super::session::Session;
use super::world::World;
use super::{content, control, files, lifecycle, pairing, read_back, troubles};

/// Media come as base64 in the body; this is more than WhatsApp takes.
const LARGEST_BODY: usize = 64 * 1024 * 1024;

pub(super) fn serve(listener: TcpListener, world: Arc<World>) -> io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::from(Arc::clone(&world)))
            .app_data(web::PayloadConfig::new(LARGEST_BODY))
            .default_service(web::to(answer))
    })
    .workers(2)
    .keep_alive(Duration::from_secs(60))
    .client_disconnect_timeout(Duration::from_millis(100))
    .shutdown_timeout(0)
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

async fn answer(request: HttpRequest, raw: Bytes, world: web::Data<World>) -> HttpResponse {
    let world = world.into_inner();
    let is_control = request.path().starts_with("/_simulator/");
    if world.is_down() && !is_control {
        return answers::reset();
    }
    let mut response = decide(&request, raw, world).await;
    if let Some(id) = request.headers().get("x-request-id") {
        response.headers_mut().insert(header::HeaderName::from_static("x-request-id"), id.clone());
    }
    response
}

async fn decide(request: &HttpRequest, raw: Bytes, world: Arc<World>) -> HttpResponse {
    let (method, path) = (request.method().as_str(), request.path());
    let query = routes::query(request.query_string());
    if path != "/ping" && !authorized(request, &query, &world) {
        return Answer::unauthorized().into_response();
    }
    let Some(found) = routes::find(method, path) else {
        return Answer::unknown_route(method, &with_query(request)).into_response();
    };
    let body = if raw.is_empty() {
        Value::Null
    } else {
        match serde_json::from_slice(&raw) {
            Ok(body) => body,
            Err(error) => return Answer::nest(400, bad_json(&error)).into_response(),
        }
    };
    let accepts_json = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    let call = Call { method: method.to_owned(), path: with_query(request), query, raw, body, accepts_json };
    act(world, found, Arc::new(call)).await
}

fn with_query(request: &HttpRequest) -> String {
    request.uri().path_and_query().map_or_else(|| request.path().to_owned(), ToString::to_string)
}

fn bad_json(error: &serde_json::Error) -> &'static str {
    if error.is_eof() { "Unexpected end of JSON input" } else { "Unexpected token in JSON" }
}

fn authorized(request: &HttpRequest, query: &[(String, String)], world: &World) -> bool {
    let header = request.headers().get("x-api-key").and_then(|key| key.to_str().ok());
    let given = header.or_else(|| query.iter().find(|(name, _)| name == "x-api-key").map(|(_, key)| key.as_str()));
    given == Some(world.api_key.expose_secret())
}

/// The call under the faults that strike it.
async fn act(world: Arc<World>, found: Found, call: Arc<Call>) -> HttpResponse {
    if let Route::Control(name) = &found.route {
        return control::answer(&world, name, &call).into_response();
    }
    let session_name = found.session.as_deref().or_else(|| call.text("session")).or_else(|| call.parameter("session"));
    let session = session_name.and_then(|name| world.session(name));
    let named = match found.route {
        Route::CreateSession => call.text("name"),
        _ => session_name,
    };
    let name = named.unwrap_or_default();
    let post = PostGuard::begin(&world, &found.route, name, session.as_deref(), &call);
    let fault = world.faults.strike(&call.method, found.template, named, &world.chance);
    if let Some(refusal) = fault.and_then(|fault| before(&world, fault, name, session.as_deref(), &call)) {
        return finish(post, refusal);
    }
    match fault {
        Some(Fault::HangWithoutSend) => return std::future::pending().await,
        Some(Fault::ResetBefore) => return answers::reset(),
        _ => {}
    }
    // On the runtime that outlives requests: a caller that hangs up does not undo what it asked for.
    let index = post.as_ref().map(PostGuard::index);
    let answer = if session.as_ref().is_some_and(|session| needs_no_wait(&found.route, session, &call)) {
        perform(Arc::clone(&world), found.route, session, Arc::clone(&call), index, fault, name.to_owned()).await
    } else {
        let (world_of_task, call_of_task, name) = (Arc::clone(&world), Arc::clone(&call), name.to_owned());
        let task = perform(world_of_task, found.route, session, call_of_task, index, fault, name);
        match world.runtime.spawn(task).await {
            Ok(answer) => answer,
            Err(_) => return answers::reset(),
        }
    };
    after(&world, fault, &call, answer, post).await
}

/// Whether the call has its whole effect before its first wait, so that a hang-up cannot cut it.
fn needs_no_wait(route: &Route, session: &Session, call: &Call) -> bool {
    matches!(route, Route::Send(_))
        && session.current() == super::session::Status::Working
        && !content::is_fetched(call)
}

fn finish(post: Option<PostGuard>, answer: Answer) -> HttpResponse {
    if let Some(post) = post {
        post.answered(answer.status);
    }
    answer.into_response()
}

/// Answers that stand for the call's effect.
fn before(world: &World, fault: Fault, name: &str, session: Option<&Session>, call: &Call) -> Option<Answer> {
    Some(match fault {
        Fault::State422 => {
            let status = session.map(Session::current).filter(|status| *status != super::session::Status::Working);
            Answer::wrong_state(name, status.map_or("STARTING", super::session::Status::name), &["WORKING"])
        }
        Fault::Missing422 => Answer::session_missing(name),
        Fault::Unauthorized401 => Answer::unauthorized(),
        Fault::NotFound404 => Answer::nest(404, "Not Found"),
        Fault::BadRequest400 => Answer::invalid(&["chatId must be a string".to_owned()]),
        Fault::TooMany429 => Answer::nest(429, "Too Many Requests"),
        Fault::Error500Before => sends::connection_closed(world, call),
        Fault::Refused400 => sends::refused_by_whatsapp(world, call, 400),
        Fault::Locked500 => lifecycle::busy(),
        Fault::Locked422 => {
            Answer::nest(422, &format!("Session '{name}' is busy with another operation. Try again later."))
        }
        Fault::BadGateway502 => Answer::proxy_page(502),
        Fault::Unavailable503 => Answer::proxy_page(503),
        _ => return None,
    })
}

/// What the caller hears of an effect that took place.
async fn after(
    world: &World,
    fault: Option<Fault>,
    call: &Call,
    answer: Answer,
    post: Option<PostGuard>,
) -> HttpResponse {
    match fault {
        Some(Fault::HangAfterSend) => std::future::pending().await,
        Some(Fault::ResetAfterSend) => answers::reset(),
        Some(Fault::HalfResponse) => answer.into_half_response(),
        Some(Fault::Error500After) => finish(post, sends::connection_closed(world, call)),
        Some(Fault::BadGateway502After) => finish(post, Answer::proxy_page(502)),
        Some(Fault::GatewayTimeout504) => finish(post, Answer::proxy_page(504)),
        Some(Fault::DelayMs(millis)) => {
            world.clock.sleep(Duration::from_millis(millis)).await;
            finish(post, answer)
        }
        _ => finish(post, answer),
    }
}

async fn perform(
    world: Arc<World>,
    route: Route,
    session: Option<Arc<Session>>,
    call: Arc<Call>,
    post: Option<usize>,
    fault: Option<Fault>,
    name: String,
) -> Answer {
    match route {
        Route::Ping => Answer::json(200, r#"{"message":"pong"}"#),
        Route::Health => lifecycle::health(),
        Route::Version => Answer::json(200, world.environment.clone()),
        Route::ServerStatus => lifecycle::server_status(&world),
        Route::ServerStop => {
            troubles::restart(&world, &troubles::RestartPlan::default());
            Answer::json(201, r#"{"stopping":true}"#)
        }
        Route::ListSessions => lifecycle::list(&world, &call),
        Route::CreateSession => lifecycle::create(&world, &call),
        Route::GetSession => lifecycle::get(&world, session.as_deref()),
        Route::DeleteSession => lifecycle::delete(&world, session).await,
        Route::UpdateSession | Route::Start | Route::Stop | Route::Restart | Route::Logout => {
            lifecycle::change(&world, &route, session, &call).await
        }
        Route::File(path) => files::answer(&world, &path).await,
        Route::Me => lifecycle::me(session.as_deref(), &name),
        Route::CheckExists | Route::Reaction | Route::Gesture(_) if name.is_empty() => {
            Answer::nest(400, "Session name is required")
        }
        Route::Send(_) if name.is_empty() => Answer::nest(400, "Session name is required"),
        route => {
            let Some(session) = session else { return Answer::session_missing(&name) };
            match (route, post) {
                (Route::Send(endpoint), Some(post)) => sends::send(world, session, endpoint, call, post, fault).await,
                (Route::Qr, _) => pairing::qr(&world, &session, &call).await,
                (Route::RequestCode, _) => pairing::request_code(&world, &session).await,
                (
                    route @ (Route::PasskeyChallenge
                    | Route::Passkey
                    | Route::PasskeyConfirmation
                    | Route::PasskeyConfirm),
                    _,
                ) => pairing::passkey(&world, &session, &route, &call),
                (route, _) => read_back::answer(&world, &session, route, &call).await,
            }
        }
    }
}
