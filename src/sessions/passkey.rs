//! Pairing by passkey: what WhatsApp asks for is handed to the tenant, and the tenant's answers to WhatsApp.
//!
//! The passkey belongs to WhatsApp's own site, so only whoever runs a browser there can use it. The gateway passes on and keeps
//! nothing of it.

use secrecy::SecretString;
use serde_json::{Map, Value};

use crate::app::App;
use crate::domain::ids::{SessionId, TenantId};
use crate::sessions::pairing::{PairingError, at_step};

/// What the session waits for.
#[derive(Debug)]
pub enum Asked {
    /// An assertion over this challenge.
    Assertion(Map<String, Value>),
    /// That this code is the one on the phone.
    Confirmation(SecretString),
}

/// What the session waits for.
///
/// # Errors
/// [`PairingError`]: [`PairingError::WrongStep`] unless it waits for a passkey.
pub async fn asked(app: &App, tenant: TenantId, session: SessionId) -> Result<Asked, PairingError> {
    let (row, server) = at_step(app, tenant, session, &["passkey", "passkey_confirmation"]).await?;
    let (server, name) = (&server.server, row.external_session_id.as_str());
    Ok(match row.pairing_step.as_deref() {
        Some("passkey") => Asked::Assertion(app.waha.passkey_challenge(server, name).await?),
        _ => Asked::Confirmation(app.waha.passkey_confirmation(server, name).await?),
    })
}

/// Passes an assertion on.
///
/// # Errors
/// [`PairingError`]: [`PairingError::WrongStep`] unless it waits for one.
pub async fn submit(
    app: &App,
    tenant: TenantId,
    session: SessionId,
    credential: &Map<String, Value>,
) -> Result<(), PairingError> {
    let (row, server) = at_step(app, tenant, session, &["passkey"]).await?;
    Ok(app.waha.submit_passkey(&server.server, &row.external_session_id, credential).await?)
}

/// Passes on that the codes are the same.
///
/// # Errors
/// [`PairingError`]: [`PairingError::WrongStep`] unless it waits for that.
pub async fn confirm(app: &App, tenant: TenantId, session: SessionId) -> Result<(), PairingError> {
    let (row, server) = at_step(app, tenant, session, &["passkey_confirmation"]).await?;
    Ok(app.waha.confirm_passkey(&server.server, &row.external_session_id).await?)
}
