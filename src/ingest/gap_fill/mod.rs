//! Reading back what no webhook told of.
//!
//! WAHA forgets webhooks: when it restarts, when their attempts run out, and at times for no reason at all. So a session's
//! messages are read back after its server was started anew, whenever it comes to work, when it was so silent that it was
//! asked whether it is alive, every few hours, and when its tenant wants it (`due`).
//!
//! Guarantee: as long as one node runs this, everything that WAHA has of a session that works, written since the session
//! was created or within the last days, is stored within one interval. A fill covers everything since the end of the last complete
//! one, and some time before that: not since the last message that is stored, since one that was lost may be older. One node at
//! a time fills a session's gap (a lease); its progress is written down after each page, so that another one goes on where a
//! node died. To read a page twice changes nothing: messages are unique by (session, bare id), and whatever else is
//! found only moves forward ([`crate::ingest::apply::read_back`]). All nodes together call a server no more often, and at no more
//! places at once, than the settings say: a place is a lease that outlives its last call by that call's share of a minute.

mod due;
mod fill;
mod lids;
mod share;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::{describe_counter, describe_gauge};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::due::{Because, ask};
use crate::app::App;
use crate::db::DbError;

/// Fills under way on this node.
const MOST: usize = 16;
/// How often the shares of lost webhooks are computed.
const SHARES_EVERY: TimeDelta = TimeDelta::seconds(60);

/// Fills gaps until `stop` turns true; those under way are broken off at their next page.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let lookups = tokio::spawn(lids::run(app.clone(), stop.clone()));
    let mut fills = JoinSet::new();
    let mut shown: Option<DateTime<Utc>> = None;
    while !*stop.borrow() {
        while fills.try_join_next().is_some() {}
        let now = app.clock.now();
        if shown.is_none_or(|at| now - at >= SHARES_EVERY) {
            shown = Some(now);
            if let Err(fault) = share::show(&app).await {
                tracing::debug!(%fault, "gap fill: the shares of lost webhooks cannot be computed");
            }
        }
        if let Err(fault) = begin(&app, &mut fills, &stop).await {
            tracing::warn!(%fault, "gap fill: the sessions that are due cannot be read");
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = app.clock.sleep(app.config.gap_fill.every) => {}
            Some(_) = fills.join_next() => {}
        }
    }
    while fills.join_next().await.is_some() {}
    let _ended = lookups.await;
}

async fn begin(app: &App, fills: &mut JoinSet<()>, stop: &watch::Receiver<bool>) -> Result<(), DbError> {
    let now = app.clock.now();
    due::follow(app, now).await?;
    if fills.len() < MOST {
        for taken in due::take(app, now, MOST - fills.len()).await? {
            fills.spawn(fill::run(app.clone(), taken, stop.clone()));
        }
    }
    Ok(())
}

/// Says what this room's metrics mean.
pub fn describe_metrics() {
    describe_counter!("switchboard_gap_fills_total", "Fills that ended, by what they were done for and how they ended");
    describe_counter!(
        "switchboard_gap_fill_messages_total",
        "Messages that webhooks brought, and messages that had to be read back; counted as fills end"
    );
    describe_gauge!(
        "switchboard_missed_webhooks_share",
        "Of the messages of a WAHA server's sessions up to their last fill: the share that no webhook brought; every node shows all"
    );
    describe_counter!("switchboard_lid_lookups_total", "Questions whose number a hidden id is, by result");
}
