//! Sessions that take messages and send none: working in name only, or refusing everything until they are restarted.
//!
//! Several messages in a row without an acknowledgement of WhatsApp's server, or with the same refusal of the engine, have the
//! session restarted, within the budget of `sessions::liveness::restart`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::app::App;
use crate::db::DbError;
use crate::domain::ids::{SessionId, TenantId};
use crate::sessions::liveness::restart::restart;
use crate::sessions::status;

/// Has the session restarted in a transaction of its own. Answers whether it will be.
///
/// # Errors
/// When the database does not answer.
pub async fn restart_alone(app: &App, tenant: TenantId, session: SessionId) -> Result<bool, DbError> {
    let now = app.clock.now();
    let wanted = app
        .db
        .system(async |conn| {
            status::lock_lanes(conn, &[session]).await?;
            restart(app, conn, now, tenant, session).await
        })
        .await?;
    if wanted {
        app.wake.sessions.notify_one();
        app.wake.events.notify_one();
    }
    Ok(wanted)
}

/// The same refusal of one message after the other, by session; clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<HashMap<SessionId, (String, i32)>>>);

impl Refusals {
    /// Sessions that are counted at once; beyond that the counts begin anew.
    const MOST: usize = 10_000;

    /// Counts a refusal; answers how many of that wording came in a row.
    pub fn count(&self, session: SessionId, wording: &str) -> i32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= Self::MOST {
            counts.clear();
        }
        let entry = counts.entry(session).or_default();
        if entry.0 == wording {
            entry.1 = entry.1.saturating_add(1);
        } else {
            *entry = (wording.to_owned(), 1);
        }
        entry.1
    }

    /// Something else happened: the count begins anew.
    pub fn forget(&self, session: SessionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }
}
