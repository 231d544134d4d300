//! The reconciler: WAHA is brought to what the gateway wants.
//!
//! Guarantee: as long as a node runs this and the WAHA server answers, every session ends up as desired, whatever was lost on
//! the way: a step that failed, a node that died, a WAHA server that forgot its sessions. Any number of nodes may run it; one
//! at a time acts on a session (a lease, `reconcile_lease`), and one at a time polls a server (`poll_at`). A node that dies
//! holds neither for longer than its lease.
//!
//! Two parts. `steps` takes the sessions that have to be looked at (`reconcile_at`), asks WAHA, does the one step that is
//! missing and looks again until nothing is. `polls` asks every server now and then how it fares and what its sessions do,
//! follows their statuses, and has the steps look at those that are not as desired. A session that connects, waits for its
//! scan or has failed is left alone.

mod polls;
mod steps;

use tokio::sync::watch;

use crate::app::App;
use crate::sessions::queries::Desired;
use crate::waha::{SessionInfo, SessionStatus};

/// Reconciles until `stop` turns true; steps that have begun are ended first.
pub async fn run(app: App, stop: watch::Receiver<bool>) {
    tokio::join!(steps::run(app.clone(), stop.clone()), polls::run(app, stop));
}

/// What a session at WAHA lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is not there: create and start it.
    Create,
    /// It is stopped: start it.
    Start,
    /// It runs and should not: stop it.
    Stop,
    /// It runs in name only: restart it.
    Restart,
    /// It is as desired, or on its way there.
    Nothing,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Nothing => "nothing",
        }
    }
}

/// The next step for a session that WAHA reports as `found`; `None` when WAHA does not have it.
fn next_step(desired: Desired, found: Option<SessionStatus>) -> Step {
    match (desired, found) {
        (Desired::Started, None) => Step::Create,
        (Desired::Started, Some(SessionStatus::Stopped)) => Step::Start,
        // One that should not run need not be there: whoever wants it started has it created.
        (Desired::Started, Some(_)) | (Desired::Stopped, None | Some(SessionStatus::Stopped)) => Step::Nothing,
        (Desired::Stopped, Some(_)) => Step::Stop,
    }
}

/// The status that `found` stands for: one that WAHA does not have is about to be created, or simply not running.
fn status_of(desired: Desired, found: Option<&SessionInfo>) -> SessionStatus {
    match (found, desired) {
        (Some(info), _) => info.status,
        (None, Desired::Started) => SessionStatus::Starting,
        (None, Desired::Stopped) => SessionStatus::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_done() {
        use SessionStatus::{Failed, Other, PasskeyRequired, ScanQrCode, Starting, Stopped, Working};
        for (desired, found, step) in [
            (Desired::Started, None, Step::Create),
            (Desired::Started, Some(Stopped), Step::Start),
            (Desired::Stopped, None, Step::Nothing),
            (Desired::Stopped, Some(Stopped), Step::Nothing),
        ] {
            assert_eq!(next_step(desired, found), step, "{desired:?} {found:?}");
        }
        for status in [Starting, ScanQrCode, PasskeyRequired, Working, Failed, Other] {
            assert_eq!(next_step(Desired::Started, Some(status)), Step::Nothing, "{status}");
            assert_eq!(next_step(Desired::Stopped, Some(status)), Step::Stop, "{status}");
        }
    }
}
