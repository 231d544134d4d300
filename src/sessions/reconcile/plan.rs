//! The one next step of a session, from what is wanted, what was written down of it, and what WAHA says.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};

use crate::config::Fleet;
use crate::domain::ids::WahaServerId;
use crate::sessions::queries::Desired;
use crate::waha::SessionStatus;

/// A session that failed is restarted only after this, so that the failure of many at once is noticed first.
const AFTER_FAILURE: TimeDelta = TimeDelta::seconds(60);
/// The time over which the gateway's own restarts are counted.
const HOUR: TimeDelta = TimeDelta::hours(1);

/// What a session at WAHA lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is not there: create and start it.
    Create,
    /// It is stopped: start it.
    Start,
    /// It is stopped, and set up otherwise than wanted: set it up anew.
    Update,
    /// It runs and should not: stop it.
    Stop,
    /// It runs in name only, or its restart is wanted.
    Restart,
    /// It is to be unlinked from the phone.
    Logout,
    /// It was deleted: unlink and remove it.
    Delete,
    /// It was deleted and is gone: give its place back.
    Release,
    /// It is stopped where it was: let it live on another server.
    Move,
    /// It is as desired, or on its way there.
    Nothing,
}

impl Step {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Update => "update",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Logout => "logout",
            Self::Delete => "delete",
            Self::Release => "release",
            Self::Move => "move",
            Self::Nothing => "nothing",
        }
    }

    /// Whether the engine connects to WhatsApp because of it, which only so many sessions of a server do at once.
    pub(super) const fn starts(self) -> bool {
        matches!(self, Self::Create | Self::Start | Self::Restart)
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This, now.
    Step(Step),
    /// A restart of the gateway's own, now.
    OwnRestart,
    /// Something, but not yet.
    Later,
}

/// What is wanted of a session, and what was written down of it.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Wishes {
    #[diesel(sql_type = Text)]
    pub desired: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub restart_wanted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub logout_wanted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Text)]
    pub waha_status: String,
    #[diesel(sql_type = Timestamptz)]
    pub waha_status_since: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub paired_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Array<Timestamptz>)]
    pub restarts: Vec<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub failure_restarted: bool,
    #[diesel(sql_type = Nullable<Text>)]
    pub phone: Option<String>,
    /// Whether it has to leave its server and keeps its pairing only if it stays.
    #[diesel(sql_type = Bool)]
    pub needs_rescan: bool,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub move_to: Option<WahaServerId>,
    /// Whether the server it moves to has its pairing.
    #[diesel(sql_type = Bool)]
    pub storage_shared: bool,
}

/// The columns of [`Wishes`] from the alias `s` (session), its server `v` and the one it moves to, `t`.
macro_rules! wish_columns {
    () => {
        "s.desired, s.restart_wanted_at, s.logout_wanted_at, s.waha_status, s.waha_status_since, s.paired_at, s.restarts, \
         s.failure_restarted, s.phone, s.needs_rescan, s.move_to, \
         coalesce(v.storage_group = t.storage_group, false) AS storage_shared"
    };
}
pub(super) use wish_columns;

/// A session as WAHA has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Its state.
    pub status: SessionStatus,
    /// Whether it is set up otherwise than wanted.
    pub drifted: bool,
}

/// The next step for a session that WAHA has as `found`; `None` when WAHA does not have it. `held_back` while many sessions have
/// failed at once, which no restart mends.
pub(super) fn next(wishes: &Wishes, found: Option<Found>, now: DateTime<Utc>, fleet: &Fleet, held_back: bool) -> Next {
    let Some(desired) = Desired::from_name(&wishes.desired) else { return Next::Step(Step::Nothing) };
    let Some(found) = found else { return Next::Step(without(wishes, desired)) };
    let stopped = found.status == SessionStatus::Stopped;
    Next::Step(match desired {
        Desired::Deleted => Step::Delete,
        // Shared, its pairing must stay where it is. Else there is nothing worth keeping, and nothing may be left behind.
        Desired::Started | Desired::Stopped if wishes.move_to.is_some() && !wishes.storage_shared => Step::Delete,
        Desired::Started | Desired::Stopped if wishes.move_to.is_some() => {
            if stopped {
                Step::Move
            } else {
                Step::Stop
            }
        }
        Desired::Started | Desired::Stopped if wishes.logout_wanted_at.is_some() => Step::Logout,
        Desired::Stopped => {
            if stopped {
                Step::Nothing
            } else {
                Step::Stop
            }
        }
        Desired::Started if stopped => {
            if found.drifted {
                Step::Update
            } else {
                Step::Start
            }
        }
        Desired::Started => return running(wishes, found.status, now, fleet, held_back),
    })
}

/// For a session that WAHA does not have.
fn without(wishes: &Wishes, desired: Desired) -> Step {
    match desired {
        Desired::Deleted => Step::Release,
        _ if wishes.move_to.is_some() => Step::Move,
        Desired::Started => Step::Create,
        // One that should not run need not be there: whoever wants it started has it created.
        Desired::Stopped => Step::Nothing,
    }
}

/// For a session that runs, as it should.
fn running(wishes: &Wishes, status: SessionStatus, now: DateTime<Utc>, fleet: &Fleet, held_back: bool) -> Next {
    // What has failed has nothing left to lose.
    let paired =
        status != SessionStatus::Failed && wishes.paired_at.is_some_and(|at| at + fleet.restart_after_pairing > now);
    if wishes.restart_wanted_at.is_some() {
        return if paired { Next::Later } else { Next::Step(Step::Restart) };
    }
    // What the database says is about this status only if WAHA still says the same.
    let since = |name: &str| Some(wishes.waha_status_since).filter(|_| wishes.waha_status == name);
    let recent = wishes.restarts.iter().filter(|at| **at > now - HOUR).count();
    let due = match status {
        // Each restart that did not help doubles the time that the next one has.
        SessionStatus::Starting => since("starting").map(|since| {
            let since = wishes.restarts.iter().copied().fold(since, DateTime::max);
            let doublings = u32::try_from(recent).unwrap_or(u32::MAX).min(6);
            since + TimeDelta::from_std(fleet.start_deadline).unwrap_or(HOUR) * 2_i32.pow(doublings)
        }),
        // Once; what was never paired waits for somebody who scans.
        SessionStatus::Failed if wishes.phone.is_some() && !wishes.failure_restarted => {
            since("failed").map(|since| since + AFTER_FAILURE)
        }
        _ => None,
    };
    let Some(due) = due.filter(|_| !held_back) else { return Next::Step(Step::Nothing) };
    if due > now {
        return Next::Later;
    }
    if recent >= usize::try_from(fleet.restarts_per_hour).unwrap_or(usize::MAX) {
        return Next::Step(Step::Nothing);
    }
    if paired { Next::Later } else { Next::OwnRestart }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn wishes(desired: &str, waha_status: &str) -> Wishes {
        Wishes {
            desired: desired.to_owned(),
            restart_wanted_at: None,
            logout_wanted_at: None,
            waha_status: waha_status.to_owned(),
            waha_status_since: at(0),
            paired_at: Some(at(-3600)),
            restarts: Vec::new(),
            failure_restarted: false,
            phone: Some("+15550100001".to_owned()),
            needs_rescan: false,
            move_to: None,
            storage_shared: false,
        }
    }

    fn found(status: SessionStatus) -> Option<Found> {
        Some(Found { status, drifted: false })
    }

    #[track_caller]
    fn check(wishes: &Wishes, found: Option<Found>, now: i64, wanted: Next) {
        assert_eq!(next(wishes, found, at(now), &Fleet::default(), false), wanted, "{wishes:?} {found:?}");
    }

    #[test]
    fn only_what_is_missing_is_done() {
        use SessionStatus::{Failed, Other, PasskeyRequired, ScanQrCode, Starting, Stopped, Working};
        let (started, stopped, deleted) =
            (wishes("started", "working"), wishes("stopped", "working"), wishes("deleted", "working"));
        check(&started, None, 1, Next::Step(Step::Create));
        check(&started, found(Stopped), 1, Next::Step(Step::Start));
        check(&started, Some(Found { status: Stopped, drifted: true }), 1, Next::Step(Step::Update));
        check(&stopped, None, 1, Next::Step(Step::Nothing));
        check(&stopped, found(Stopped), 1, Next::Step(Step::Nothing));
        check(&deleted, None, 1, Next::Step(Step::Release));
        check(&deleted, found(Stopped), 1, Next::Step(Step::Delete));
        for status in [Starting, ScanQrCode, PasskeyRequired, Working, Failed, Other] {
            // A drift is worth no connection.
            check(&started, Some(Found { status, drifted: true }), 1, Next::Step(Step::Nothing));
            check(&stopped, found(status), 1, Next::Step(Step::Stop));
            check(&deleted, found(status), 1, Next::Step(Step::Delete));
        }
    }

    #[test]
    fn what_hangs_while_starting_is_restarted_after_ever_longer_times() {
        let mut wishes = wishes("started", "starting");
        let starting = found(SessionStatus::Starting);
        check(&wishes, starting, 89, Next::Later);
        check(&wishes, starting, 90, Next::OwnRestart);
        // The database's word is about another status.
        check(&wishes, found(SessionStatus::Working), 90, Next::Step(Step::Nothing));
        wishes.restarts = vec![at(90)];
        check(&wishes, starting, 90 + 179, Next::Later);
        check(&wishes, starting, 90 + 180, Next::OwnRestart);
        wishes.restarts = vec![at(-4000)];
        check(&wishes, starting, 90, Next::OwnRestart);
        wishes.restarts = vec![at(-1); 4];
        check(&wishes, starting, 1440, Next::Step(Step::Nothing));
        wishes.restarts.clear();
        wishes.paired_at = Some(at(0));
        check(&wishes, starting, 90, Next::Later);
        assert_eq!(next(&wishes, starting, at(500), &Fleet::default(), true), Next::Step(Step::Nothing));
    }

    #[test]
    fn what_failed_is_restarted_once_if_it_was_paired() {
        let mut wishes = wishes("started", "failed");
        let failed = found(SessionStatus::Failed);
        check(&wishes, failed, 59, Next::Later);
        check(&wishes, failed, 60, Next::OwnRestart);
        assert_eq!(next(&wishes, failed, at(60), &Fleet::default(), true), Next::Step(Step::Nothing));
        wishes.failure_restarted = true;
        check(&wishes, failed, 60, Next::Step(Step::Nothing));
        wishes.failure_restarted = false;
        wishes.phone = None;
        check(&wishes, failed, 60, Next::Step(Step::Nothing));
    }

    #[test]
    fn wishes_come_first_and_no_restart_follows_a_scan() {
        let mut wishes = wishes("started", "working");
        let working = found(SessionStatus::Working);
        wishes.restart_wanted_at = Some(at(0));
        check(&wishes, working, 1, Next::Step(Step::Restart));
        wishes.paired_at = Some(at(-100));
        check(&wishes, working, 1, Next::Later);
        wishes.logout_wanted_at = Some(at(0));
        check(&wishes, working, 1, Next::Step(Step::Logout));
        wishes.desired = "stopped".to_owned();
        check(&wishes, found(SessionStatus::Stopped), 1, Next::Step(Step::Logout));
        wishes.desired = "deleted".to_owned();
        check(&wishes, working, 1, Next::Step(Step::Delete));
    }

    #[test]
    fn a_move_begins_elsewhere_only_after_the_end_here() {
        let mut wishes = wishes("started", "working");
        wishes.move_to = Some(WahaServerId(uuid::Uuid::nil()));
        // Nothing to keep: nothing is left behind.
        check(&wishes, found(SessionStatus::ScanQrCode), 1, Next::Step(Step::Delete));
        wishes.storage_shared = true;
        check(&wishes, found(SessionStatus::Working), 1, Next::Step(Step::Stop));
        check(&wishes, found(SessionStatus::Starting), 1, Next::Step(Step::Stop));
        check(&wishes, found(SessionStatus::Stopped), 1, Next::Step(Step::Move));
        check(&wishes, None, 1, Next::Step(Step::Move));
    }
}
