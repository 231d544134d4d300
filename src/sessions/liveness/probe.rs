//! Asking WhatsApp something through a session.

use std::time::Duration;

use crate::app::App;
use crate::domain::ids::{SessionId, TenantId, WahaServerId};
use crate::sessions::liveness::verdict::Answer;
use crate::waha::CallError;

/// How long an answer may take: far longer than WhatsApp does, far shorter than the engine's own patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether WhatsApp answers: is the session's own number registered? That needs WhatsApp, changes nothing and is not cached.
///
/// A failure alone may be the WAHA server's, so the server is asked something as well that it knows by itself.
pub(super) async fn ask(app: &App, tenant: TenantId, session: SessionId, server: WahaServerId) -> Answer {
    let unasked = |why: &dyn std::fmt::Display| Answer::Unasked(why.to_string());
    let (session, server) = match (app.directory.session(tenant, session).await, app.directory.server(server).await) {
        (Ok(Some(session)), Ok(Some(server))) => (session, server),
        (Err(fault), _) | (_, Err(fault)) => return unasked(&fault),
        _ => return unasked(&"the session is gone"),
    };
    let name = session.external_name.as_str();
    let Some(phone) = session.phone.as_deref() else {
        // Not known yet who it is: then WAHA must know.
        return match in_time(app, app.waha.me(&server.server, name)).await {
            Ok(Some(_)) => Answer::Alive,
            Ok(None) => Answer::Silent("it works without an account".to_owned()),
            Err(fault) => unasked(&fault),
        };
    };
    let digits = phone.trim_start_matches('+');
    let fault = match in_time(app, app.waha.check_exists(&server.server, name, digits)).await {
        Ok(_) => return Answer::Alive,
        Err(fault) => fault,
    };
    match fault {
        CallError::Server { .. } | CallError::TimedOut => {
            match in_time(app, app.waha.server_version(&server.server)).await {
                Ok(_) => Answer::Silent(fault.to_string()),
                Err(fault) => unasked(&fault),
            }
        }
        fault => unasked(&fault),
    }
}

async fn in_time<T>(app: &App, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    tokio::select! {
        answer = call => answer,
        () = app.clock.sleep(PATIENCE) => Err(CallError::TimedOut),
    }
}
