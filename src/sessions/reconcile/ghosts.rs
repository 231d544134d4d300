//! Sessions of ours that a WAHA server has and should not have.
//!
//! Ours are those that post to this service. One that was deleted is removed, again if need be. One that lives on another server
//! by now is stopped, as two servers that run one session cost it its pairing. One that nobody knows may be known again once the
//! right backup is restored: it is stopped and keeps its pairing.

use std::collections::HashMap;

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::WahaServerId;
use crate::sessions::directory::ServerEntry;
use crate::waha::{SessionInfo, SessionStatus};

/// Removed in one round at the most, as each takes WAHA some seconds.
const AT_ONCE: usize = 5;

#[derive(QueryableByName)]
struct Placed {
    #[diesel(sql_type = Text)]
    external_session_id: String,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Bool)]
    removed: bool,
}

/// Stops or removes those of the sessions `listed` by the server that should not be there. `known` were placed there before it was
/// asked.
pub(super) async fn lay<'a>(
    app: &App,
    server: &ServerEntry,
    known: impl Iterator<Item = &'a str>,
    listed: &[SessionInfo],
) -> Result<(), DbError> {
    let known: std::collections::HashSet<&str> = known.collect();
    let hook = format!("{}/hooks/waha/{}", app.config.public_url.as_str().trim_end_matches('/'), server.id);
    let strangers: Vec<&SessionInfo> =
        listed.iter().filter(|info| !known.contains(info.name.as_str()) && info.posts_to(&hook)).collect();
    if strangers.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = strangers.iter().map(|info| info.name.as_str()).collect();
    let placed: Vec<Placed> = app
        .db
        .system(async |conn| {
            let text = "SELECT external_session_id, waha_server_id, removed_at IS NOT NULL AS removed FROM waha_sessions \
                        WHERE external_session_id = ANY($1)";
            Ok::<_, DbError>(sql(text).bind::<Array<Text>, _>(names).prepared().load(&mut **conn).await?)
        })
        .await?;
    let placed: HashMap<&str, &Placed> = placed.iter().map(|row| (row.external_session_id.as_str(), row)).collect();
    let mut ended = 0;
    for info in strangers {
        let row = placed.get(info.name.as_str());
        let here = row.is_some_and(|row| row.waha_server_id == server.id);
        let outcome = match row {
            // It came to be here after the look into the database.
            Some(row) if here && !row.removed => continue,
            Some(row) if here && row.removed => app.waha.delete(&server.server, &info.name).await,
            _ if info.status == SessionStatus::Stopped => continue,
            _ => app.waha.stop(&server.server, &info.name).await,
        };
        metrics::counter!("switchboard_ghost_sessions_ended_total").increment(u64::from(outcome.is_ok()));
        match outcome {
            Ok(()) => {
                tracing::warn!(server_id = %server.id, session = %info.name, "reconcile: a ghost session was ended");
            }
            Err(fault) => {
                tracing::warn!(server_id = %server.id, session = %info.name, %fault, "reconcile: a ghost session stays");
            }
        }
        ended += 1;
        if ended == AT_ONCE {
            break;
        }
    }
    Ok(())
}
