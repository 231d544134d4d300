//! WhatsApp's own brakes: the timelock on writing to new people, and the quota of new chats.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Until when the account may not write to people it has no conversation with (error 463).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timelock {
    /// Seconds since 1970; it does not lift by itself here.
    pub until: i64,
}

/// How many new people the account may write to in a cycle; beyond that they are refused like under a [`Timelock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capping {
    /// So many.
    pub total: u32,
    /// So many of them so far.
    #[serde(default)]
    pub used: u32,
    /// Start of the cycle, in seconds since 1970.
    #[serde(default)]
    pub cycle_start: i64,
    /// End of the cycle, in seconds since 1970.
    #[serde(default)]
    pub cycle_end: i64,
}

/// What holds for one session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Brakes {
    pub timelock: Option<Timelock>,
    pub capping: Option<Capping>,
}

impl Brakes {
    /// Whether a first message to somebody new is refused.
    pub fn refuse_cold(&self) -> bool {
        self.timelock.is_some() || self.capping.is_some_and(|capping| capping.used >= capping.total)
    }
}

/// `reachoutTimelock` as WAHA shows it; `isActive: false` when there is none.
pub(super) fn timelock_json(timelock: Option<Timelock>) -> Value {
    match timelock {
        Some(Timelock { until }) => {
            json!({"isActive": true, "timeEnforcementEnds": until, "enforcementType": "DEFAULT"})
        }
        None => json!({"isActive": false}),
    }
}

/// `messageCapping` as WAHA shows it; a quota of -1 when there is none.
pub(super) fn capping_json(capping: Option<Capping>) -> Value {
    let Some(capping) = capping else {
        return json!({"cappingStatus": "NONE", "totalQuota": -1, "usedQuota": 0});
    };
    let Capping { total, used, cycle_start, cycle_end } = capping;
    let status = match (u64::from(used) * 100).checked_div(u64::from(total)) {
        None | Some(100..) => "CAPPED",
        Some(90..) => "SECOND_WARNING",
        Some(75..) => "FIRST_WARNING",
        Some(_) => "NONE",
    };
    json!({
        "cappingStatus": status,
        "totalQuota": total,
        "usedQuota": used,
        "cycleStart": cycle_start,
        "cycleEnd": cycle_end,
    })
}
