//! Asking a WAHA server how it fares: whether it answers, whether it takes the gateway's key, what it runs and since when.

use chrono::{DateTime, Utc};

use super::servers::ServerHealth;
use crate::waha::{CallError, Server, ServerVersion, WahaClient};

/// What a server said when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How it fares.
    pub health: ServerHealth,
    /// What it runs, if it said so.
    pub version: Option<ServerVersion>,
    /// Since when it runs, if it said so.
    pub started_at: Option<DateTime<Utc>>,
}

/// Asks `server` with three cheap calls at once: `/ping`, its version, which takes the key, and since when it runs. It is
/// healthy when all three are answered. Takes a few seconds at the most. `None` when this process is stopping.
pub async fn probe(waha: &WahaClient, server: &Server) -> Option<Probe> {
    let (ping, version, status) =
        tokio::join!(waha.ping(server), waha.server_version(server), waha.server_status(server));
    let faults = [ping.err(), version.as_ref().err().cloned(), status.as_ref().err().cloned()];
    let health = health_of(&faults)?;
    Some(Probe { health, version: version.ok(), started_at: status.ok().map(|status| status.started_at) })
}

fn health_of(faults: &[Option<CallError>]) -> Option<ServerHealth> {
    let any = |wanted: &CallError| faults.iter().flatten().any(|fault| fault == wanted);
    if any(&CallError::Stopping) {
        return None;
    }
    Some(if any(&CallError::Unauthorized) {
        ServerHealth::Unauthorized
    } else if faults.iter().all(Option::is_none) {
        ServerHealth::Healthy
    } else {
        ServerHealth::Unreachable
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_is_what_answers_everything() {
        use CallError::{NotFound, Stopping, TimedOut, Unauthorized, Unreachable};
        for (faults, health) in [
            ([None, None, None], Some(ServerHealth::Healthy)),
            ([Some(Unreachable), Some(Unreachable), Some(Unreachable)], Some(ServerHealth::Unreachable)),
            ([None, None, Some(TimedOut)], Some(ServerHealth::Unreachable)),
            ([Some(NotFound), None, None], Some(ServerHealth::Unreachable)),
            ([None, Some(Unauthorized), Some(TimedOut)], Some(ServerHealth::Unauthorized)),
            ([Some(Unauthorized), Some(Unauthorized), Some(Unauthorized)], Some(ServerHealth::Unauthorized)),
            ([None, Some(Stopping), None], None),
        ] {
            assert_eq!(health_of(&faults), health, "{faults:?}");
        }
    }
}
