//! The doors: routes by resource, extractors, `application/problem+json`, OpenAPI.
//!
//! A resource's file has `routes`, which adds its paths below `/v1`, and `openapi`, which describes them. Handlers take the
//! extractors of this module ([`Caller`], [`Body`], [`Path`], [`Query`], [`Page`], …) and answer `Result<_, Problem>`. Workers
//! of actix have runtimes of their own, so whatever touches the database or the network runs through [`App::detached`].
//!
//! Guarantee: every answer has a request id; every error, of whatever origin, is a problem document (the pages for people
//! excepted); nothing below `/v1` is reached without valid credentials.

mod alarms;
mod api_keys;
mod body;
mod caller;
mod contacts;
mod conversations;
mod erasures;
mod event_stream;
mod events;
mod export;
mod file_answer;
mod hooks;
mod media;
pub mod idempotency;
mod messages;
mod numbers;
mod observe;
pub mod openapi;
mod operations;
mod own_tenant;
mod pairing;
mod params;
pub mod problem;
mod proxies;
mod rules;
mod sender_pools;
mod session_control;
mod session_queue;
mod sessions;
mod sse;
mod tenants;
mod waha_servers;
mod webhook_endpoints;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::http::header;
use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, HttpServer};
use serde::Serialize;

pub use body::{Body, Json, MOST_BYTES, MaybeBody, fingerprint, from_json, nullable, read_raw};
pub use caller::{Actor, Caller};
pub use idempotency::{Created, Once, once_system, once_tenant};
pub use observe::RequestId;
pub use params::{
    Cursor, IdempotencyHeader, IdempotencyKey, IfMatch, IfMatchHeader, List, MaybeIdempotencyKey, Page, PageParams,
    Path, Query, parse_query, query_pairs,
};
pub use problem::{Code, FieldError, Problem, ProblemBody};
pub use rules::Rules;

use crate::app::App;

/// How long a connection may idle between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How the doors are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that read and write requests; default: one per core, 4 at the most.
    pub workers: usize,
    /// How long a graceful stop waits for running requests.
    pub shutdown_timeout: Duration,
    /// More routes; tests have one that panics.
    pub more: Option<fn(&mut ServiceConfig)>,
}

impl Default for Options {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, Into::into);
        Self { workers: cores.min(4), shutdown_timeout: Duration::from_secs(25), more: None }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    handle: ServerHandle,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Running {
    /// Stops listening, lets running requests end (within the shutdown timeout) and returns then.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        // The server has ended; how is of no interest any more.
        let _ended = self.task.await;
    }

    /// Returns when the server has ended by itself.
    ///
    /// # Errors
    /// When it failed.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.task).await.map_err(io::Error::other)?
    }
}

/// Serves the API on `listener` until [`Running::stop`]. Call it on the process-wide runtime.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(app: App, listener: TcpListener, options: Options) -> io::Result<Running> {
    let address = listener.local_addr()?;
    crate::telemetry::metrics::install();
    let more = options.more;
    let with_metrics = app.config.metrics_bind.is_none();
    let server = HttpServer::new(move || {
        actix_web::App::new()
            .app_data(web::Data::new(app.clone()))
            .wrap(from_fn(observe::observe))
            .configure(|cfg| routes(cfg, with_metrics))
            .configure(|cfg| more.into_iter().for_each(|more| more(cfg)))
            .default_service(web::to(unmatched))
    });
    let server = server
        .workers(options.workers)
        .shutdown_timeout(options.shutdown_timeout.as_secs())
        .keep_alive(KEEP_ALIVE)
        .disable_signals()
        .listen(listener)?;
    Ok(running(address, server.run()))
}

/// Serves `/metrics` alone, for `SWITCHBOARD_METRICS_BIND`.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve_metrics(listener: TcpListener) -> io::Result<Running> {
    let address = listener.local_addr()?;
    crate::telemetry::metrics::install();
    let server = HttpServer::new(|| {
        actix_web::App::new()
            .wrap(from_fn(observe::observe))
            .configure(operations::metrics_route)
            .default_service(web::to(unmatched))
    });
    let server = server.workers(1).shutdown_timeout(1).disable_signals().listen(listener)?;
    Ok(running(address, server.run()))
}

fn running(address: SocketAddr, server: Server) -> Running {
    let handle = server.handle();
    Running { address, handle, task: tokio::spawn(server) }
}

/// Every route of the API.
fn routes(cfg: &mut ServiceConfig, with_metrics: bool) {
    cfg.configure(operations::routes)
        .configure(hooks::routes)
        .configure(media::link_routes)
        .configure(pairing::page_routes);
    if with_metrics {
        cfg.configure(operations::metrics_route);
    }
    cfg.service(
        web::scope("/v1")
            .wrap(from_fn(caller::authenticate))
            .configure(messages::routes)
            .configure(media::routes)
            .configure(sessions::routes)
            .configure(sender_pools::routes)
            .configure(session_control::routes)
            .configure(pairing::routes)
            .configure(session_queue::routes)
            .configure(erasures::routes)
            .configure(numbers::routes)
            .configure(contacts::routes)
            .configure(conversations::routes)
            .configure(webhook_endpoints::routes)
            .configure(event_stream::routes)
            .configure(events::routes)
            .configure(tenants::routes)
            .configure(waha_servers::routes)
            .configure(alarms::routes)
            .configure(api_keys::routes)
            .configure(own_tenant::routes)
            .configure(export::routes),
    );
}

fn no_route() -> Problem {
    Problem::new(Code::NotFound, "There is no such path")
}

async fn unmatched() -> Result<HttpResponse, Problem> {
    Err(no_route())
}

/// 200 with `resource` and its version as `ETag`.
pub fn versioned(resource: &impl Serialize, version: i64) -> HttpResponse {
    HttpResponse::Ok().insert_header((header::ETAG, format!("\"{version}\""))).json(resource)
}

/// Empties this node's caches of what was just changed; the other nodes follow within a second by themselves. Runs on the
/// process-wide runtime, after the commit.
pub async fn forget_now(app: &App) {
    if let Err(fault) = app.generation.refresh(&app.db).await {
        tracing::debug!(%fault, "the caches are refreshed a little later");
    }
}
