//! The truth about liveness: whether a session that says it works does work.
//!
//! Nothing that WAHA says of itself is proof. What counts is what came from WhatsApp ([`vitals`]): messages and acknowledgements.
//! A session that has been silent for far longer than it ever was, or whose sends are not acknowledged or not answered, is
//! suspect, and WhatsApp is asked a question through it. No answer twice in a row, or sends that stay stuck: it is dead, is
//! restarted once, and reported if that does not help. [`verdict`] decides, as a pure function.
//!
//! Guarantee: as long as one node runs this, a session that is working and wanted is looked at every few minutes, and at once
//! when its sends get stuck; a dead one is restarted at most once per death, within one budget with the restarts that stuck
//! sends cause (`lanes.restarted_at`), and the tenant is told at most once of each death and of the recovery from it. Any
//! number of nodes may run it; one at a time looks at a session (a lease, `session_vitals.probe_at`), and a node that dies
//! holds it no longer than that.
//!
//! Where many sessions fail within minutes it is WhatsApp's doing, not theirs: see [`alarm`].

pub mod alarm;
mod census;
mod looks;
mod probe;
pub mod restart;
pub mod verdict;
pub mod vitals;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::{describe_counter, describe_gauge};
use tokio::sync::watch;

use crate::app::App;

/// Counts and looks until `stop` turns true; looks that have begun are ended first.
pub async fn run(app: App, mut stop: watch::Receiver<bool>) {
    let mut looks = looks::Looks::default();
    let mut counted: Option<DateTime<Utc>> = None;
    while !*stop.borrow() {
        let now = app.clock.now();
        if counted.is_none_or(|at| now - at >= census_interval(&app)) {
            counted = Some(now);
            if let Err(fault) = census::take(&app, now).await {
                tracing::warn!(%fault, "liveness: the sessions cannot be counted");
            }
        }
        if let Err(fault) = looks.begin(&app).await {
            tracing::warn!(%fault, "liveness: the sessions cannot be looked at");
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = looks.ended() => {}
            () = app.clock.sleep(app.config.liveness.every) => {}
        }
    }
    looks.finish().await;
}

/// The sessions are counted at every look for work, but not more often than that while looks end.
fn census_interval(app: &App) -> TimeDelta {
    TimeDelta::from_std(app.config.liveness.every).unwrap_or(TimeDelta::seconds(5))
}

/// Says what this room's metrics mean.
pub fn describe_metrics() {
    describe_gauge!("switchboard_sessions", "Sessions, by status; every node that counts them counts all");
    describe_gauge!("switchboard_working_sessions", "Working sessions, by what is thought of them; likewise");
    describe_gauge!("switchboard_operator_alarms", "Alarms that have not ended, by kind; likewise");
    describe_counter!(
        "switchboard_session_probes_total",
        "Questions put to WhatsApp through suspect sessions, by result"
    );
    describe_counter!(
        "switchboard_stuck_sessions_restarted_total",
        "Sessions restarted because they were stuck or dead"
    );
    describe_counter!("switchboard_sessions_reported_total", "Sessions reported dead, and alive again");
}
