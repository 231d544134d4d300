//! The reconciler: WAHA is brought to what the gateway wants.
//!
//! Guarantee: as long as a node runs this and the WAHA server answers, every session ends up as desired, whatever was lost on
//! the way: a step that failed, a node that died, a WAHA server that forgot its sessions. Any number of nodes may run it; one
//! at a time acts on a session (a lease, `reconcile_lease`), and one at a time polls a server (`poll_at`). A node that dies
//! holds neither for longer than its lease.
//!
//! Two parts. `steps` takes the sessions that have to be looked at (`reconcile_at`), asks WAHA (`act`), does the one step that
//! is missing (`plan`) and looks again until nothing is. `polls` asks every server now and then how it fares and what its
//! sessions do, follows their statuses, removes what should not be there (`ghosts`), and has the steps look at those that are
//! not as desired.
//!
//! Only so many sessions of a server start at once (`starting_since` is such a place, `start_queued_at` the wait for one), so
//! that a server that was restarted is not brought down again by its own sessions. What hangs while starting and what failed is
//! restarted within bounds; a session that waits for its scan is left alone. A configuration that is not as wanted is mended
//! when that costs no connection.

mod act;
mod ghosts;
mod plan;
mod polls;
mod steps;

use tokio::sync::watch;

use crate::app::App;

/// Reconciles until `stop` turns true; steps that have begun are ended first.
pub async fn run(app: App, stop: watch::Receiver<bool>) {
    tokio::join!(steps::run(app.clone(), stop.clone()), polls::run(app, stop));
}
