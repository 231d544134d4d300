//! Calls to a session's number: nobody is there to take them, so they can be turned down.

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{SessionId, TenantId};
use crate::waha::IncomingCall;

/// Turns `call` down if the session's `config.reject_calls` says so. A call that is over, or was turned down before, stays as it
/// is, so a repeat is harmless.
pub async fn turn_down(app: App, tenant: TenantId, session: SessionId, call: IncomingCall) {
    match wanted(&app, tenant, session).await {
        Ok(false) => return,
        Ok(true) => {}
        Err(fault) => {
            tracing::warn!(%fault, %session, "a session's setting for calls cannot be read");
            return;
        }
    }
    let Ok(Some(entry)) = app.directory.session(tenant, session).await else { return };
    let Ok(Some(server)) = app.directory.server(entry.server).await else { return };
    match app.waha.reject_call(&server.server, &entry.external_name, &call.from, &call.id).await {
        Ok(()) => metrics::counter!("switchboard_calls_rejected_total").increment(1),
        Err(fault) => tracing::info!(%fault, %session, "a call could not be turned down"),
    }
}

async fn wanted(app: &App, tenant: TenantId, session: SessionId) -> Result<bool, DbError> {
    #[derive(QueryableByName)]
    struct Setting {
        #[diesel(sql_type = Bool)]
        rejects: bool,
    }
    let found: Vec<Setting> = app
        .db
        .system(async |conn| {
            let text = "SELECT config @> '{\"reject_calls\": true}' AS rejects FROM waha_sessions WHERE tenant_id = $1 AND id = $2";
            let rows = sql(text).bind::<SqlUuid, _>(tenant).bind::<SqlUuid, _>(session).prepared().load(&mut **conn).await?;
            Ok::<_, DbError>(rows)
        })
        .await?;
    Ok(found.into_iter().any(|setting| setting.rejects))
}
