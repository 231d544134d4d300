//! What follows from events once they are applied, in transactions of its own: what locks messages must not lock lanes after that.

use std::collections::BTreeSet;
use std::mem;

use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::events::live;
use crate::events::log::NewEvent;
use crate::ingest::sorted::{Ringing, Sorted};
use crate::sessions::calls;
use crate::sessions::restriction::{self, Finding};

/// What is left to do of a batch.
#[derive(Default)]
pub struct Aftermath {
    restrictions: Vec<Finding>,
    rejections: BTreeSet<(TenantId, SessionId)>,
    presence: Vec<NewEvent>,
    ringing: Vec<Ringing>,
}

/// Takes it out of `sorted`.
pub fn take(sorted: &mut Sorted) -> Aftermath {
    Aftermath {
        restrictions: mem::take(&mut sorted.restrictions),
        rejections: mem::take(&mut sorted.rejections),
        presence: mem::take(&mut sorted.presence),
        ringing: mem::take(&mut sorted.ringing),
    }
}

/// Does it; nobody waits for it.
pub fn follow(app: &App, after: Aftermath) {
    let Aftermath { restrictions, rejections, presence, ringing } = after;
    if !presence.is_empty() {
        live::tell(app, presence);
    }
    for call in ringing {
        app.spawn(calls::turn_down(app.clone(), call.tenant, call.session, call.call));
    }
    if restrictions.is_empty() && rejections.is_empty() {
        return;
    }
    let parts = app.clone();
    app.spawn(async move {
        let mut noted = restriction::note(&parts, &restrictions).await;
        for (tenant, session) in rejections {
            noted = noted.and(restriction::after_rejection(&parts, tenant, session).await);
        }
        if let Err(fault) = noted {
            tracing::warn!(%fault, "ingest: a restriction could not be noted");
        }
    });
}
