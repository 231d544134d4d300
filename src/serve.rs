//! A running node: which roles it plays, and how it ends.
//!
//! Ending is orderly: the node says that it is draining, takes no more requests, lets running attempts and deliveries end
//! within the drain time, and closes its connections. Whatever does not end in time is found by the other nodes, as after a
//! crash.

use std::net::TcpListener;
use std::str::FromStr;
use std::time::Duration;

use chrono::TimeDelta;
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::broker::LinkState;
use crate::db::{DbError, Prepare, sql};
use crate::{
    conversations, delivery, dispatch, events, http, ingest, media, messages, retention, search, sending, sessions,
};

/// What closing the broker's connection may take, even when the drain time is over.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A part of the work that a node can take on. Every role can run on many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The HTTP doors.
    Api,
    /// Turn-taking, and keeping sessions as they should be.
    Dispatch,
    /// Handing messages to WAHA.
    Send,
    /// Applying what WAHA tells.
    Ingest,
    /// Telling tenants.
    Deliver,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Api, Self::Dispatch, Self::Send, Self::Ingest, Self::Deliver];
}

impl FromStr for Role {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "api" => Self::Api,
            "dispatch" => Self::Dispatch,
            "send" => Self::Send,
            "ingest" => Self::Ingest,
            "deliver" => Self::Deliver,
            _ => return Err("a role is one of api, dispatch, send, ingest, deliver"),
        })
    }
}

/// A node at work.
#[derive(Debug)]
pub struct Node {
    app: App,
    stop: watch::Sender<bool>,
    roles: JoinSet<()>,
    upkeep: JoinSet<()>,
    doors: Vec<http::Running>,
}

impl Node {
    /// Starts `roles` on the current runtime. `api` and `metrics` are where the doors listen.
    ///
    /// # Errors
    /// When a listener cannot be used.
    pub fn start(
        app: App,
        roles: &[Role],
        api: Option<TcpListener>,
        metrics: Option<TcpListener>,
        options: http::Options,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut node =
            Self { app: app.clone(), stop, roles: JoinSet::new(), upkeep: JoinSet::new(), doors: Vec::new() };
        node.upkeep.spawn(app.generation.clone().follow(app.db.clone()));
        node.upkeep.spawn(keep_time(app.clone()));
        node.upkeep.spawn(keep_house(app.clone()));
        node.upkeep.spawn(watch_broker(app.clone()));
        for role in roles {
            match role {
                Role::Api => {
                    if let Some(listener) = metrics.as_ref() {
                        node.doors.push(http::serve_metrics(listener.try_clone()?)?);
                    }
                    if let Some(listener) = api.as_ref() {
                        node.doors.push(http::serve(app.clone(), listener.try_clone()?, options)?);
                    }
                }
                Role::Dispatch => {
                    node.roles.spawn(dispatch::run(app.clone(), stopped.clone()));
                    node.roles.spawn(sessions::reconcile::run(app.clone(), stopped.clone()));
                    node.roles.spawn(sessions::liveness::run(app.clone(), stopped.clone()));
                    node.roles.spawn(messages::pool_moves::run(app.clone(), stopped.clone()));
                    node.roles.spawn(retention::run(app.clone(), stopped.clone()));
                }
                Role::Send => {
                    node.roles.spawn(sending::run(app.clone(), stopped.clone()));
                }
                Role::Ingest => {
                    node.roles.spawn(ingest::run(app.clone(), stopped.clone()));
                    node.roles.spawn(media::arrivals::run(app.clone(), stopped.clone()));
                    node.roles.spawn(conversations::projection::run(app.clone(), stopped.clone()));
                    node.roles.spawn(ingest::gap_fill::run(app.clone(), stopped.clone()));
                }
                Role::Deliver => {
                    let publisher = events::live::publisher(&app);
                    node.roles.spawn(events::fan_out::run(app.clone(), Some(publisher), stopped.clone()));
                    node.roles.spawn(search::index::run(app.clone(), stopped.clone()));
                    let (app, stopped) = (app.clone(), stopped.clone());
                    node.roles.spawn(async move {
                        if let Err(fault) = delivery::worker::run(app, stopped).await {
                            tracing::error!(%fault, "webhooks cannot be delivered");
                        }
                    });
                }
            }
        }
        Ok(node)
    }

    /// Ends the node in order, within its drain time.
    pub async fn stop(mut self) {
        let limit = self.app.config.timings.drain;
        let deadline = Instant::now() + limit;
        self.app.health.start_draining();
        self.stop.send_replace(true);
        // At the same time, since they share the time: a client that never ends its request takes nothing from the attempts.
        let doors = join_all(self.doors.drain(..).map(http::Running::stop));
        let roles = async { while self.roles.join_next().await.is_some() {} };
        let (doors, roles) = tokio::join!(timeout_at(deadline, doors), timeout_at(deadline, roles));
        if doors.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        if roles.is_err() {
            tracing::warn!("some work did not end in time; other nodes find it when its leases run out");
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.app.broker.stop_within(left.max(LAST_WORDS)).await;
        self.upkeep.shutdown().await;
        self.app.db.close();
    }
}

/// Sets the clock by the database's, so that the leases of nodes with differing clocks agree.
///
/// # Errors
/// When the database does not answer.
pub async fn set_clock(app: &App) -> Result<(), DbError> {
    let asked = tokio::time::Instant::now();
    let now = app.db.now().await?;
    let travelled = TimeDelta::from_std(asked.elapsed() / 2).unwrap_or_default();
    let off = (now + travelled) - app.clock.now();
    metrics::gauge!("switchboard_clock_offset_seconds").set(off.as_seconds_f64());
    // Smaller differences are the network's noise.
    if off.abs() > TimeDelta::milliseconds(20) {
        app.clock.set(now + travelled);
    }
    Ok(())
}

async fn keep_time(app: App) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        if let Err(fault) = set_clock(&app).await {
            tracing::debug!(%fault, "the database's clock could not be read");
        }
    }
}

/// Tells `/readyz` how the broker is.
async fn watch_broker(app: App) {
    let mut link = app.broker.state();
    loop {
        app.health.set_broker(*link.borrow_and_update() == LinkState::Connected);
        if link.changed().await.is_err() {
            return;
        }
    }
}

/// Closes idle connections, and removes idempotency keys that have expired and files that were deleted.
async fn keep_house(app: App) {
    loop {
        tokio::time::sleep(Duration::from_secs(15)).await;
        app.db.close_idle(&app.config.database);
        if let Err(fault) = forget_keys(&app).await {
            tracing::debug!(%fault, "expired idempotency keys could not be removed");
        }
        if let Err(fault) = media::purge(&app).await {
            tracing::debug!(%fault, "deleted files could not be removed");
        }
    }
}

/// Removes the idempotency keys that have expired: all of them, in pieces, so that no piece holds anybody up.
///
/// # Errors
/// When the database does not answer.
pub async fn forget_keys(app: &App) -> Result<(), DbError> {
    const PIECE: usize = 5000;
    let now = app.clock.now();
    loop {
        let forgotten = app
            .db
            .system(async |conn| {
                sql("DELETE FROM idempotency_keys WHERE (tenant_id, operation, key) IN \
                     (SELECT tenant_id, operation, key FROM idempotency_keys WHERE expires_at < $1 LIMIT 5000)")
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await
                .map_err(DbError::from)
            })
            .await?;
        if forgotten < PIECE {
            return Ok(());
        }
    }
}
