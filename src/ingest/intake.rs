//! The door for WAHA's webhooks: verify, keep, answer.
//!
//! Guarantee: a 200 is given only after the raw event is confirmed by the broker or committed to the spool. Only when both
//! are away is WAHA told to come again.

use bytes::Bytes;
use chrono::TimeDelta;

use crate::app::App;
use crate::broker::PublishError;
use crate::broker::envelope::InboundEvent;
use crate::domain::ids::WahaServerId;
use crate::sessions::directory::DirectoryError;
use crate::waha::webhook;

/// Messages that are told of so much later are history: after a silence, an engine tells of thousands of them at once, and what
/// happens now does not wait behind them.
const HISTORY: TimeDelta = TimeDelta::minutes(10);

/// Why an event was not kept.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// No such WAHA server.
    #[error("no such WAHA server")]
    UnknownServer,
    /// Not signed with the key of the session it names, or no event at all.
    #[error("the signature does not fit")]
    BadSignature,
    /// Neither broker nor database can keep it now.
    #[error("it cannot be kept now")]
    NotKept,
}

impl From<DirectoryError> for IntakeError {
    fn from(fault: DirectoryError) -> Self {
        tracing::warn!(%fault, "intake: the directory cannot be read");
        Self::NotKept
    }
}

/// Verifies and keeps the event `body` that `server` posted under `signature`.
///
/// # Errors
/// [`IntakeError`].
pub async fn receive(app: &App, server: WahaServerId, signature: &str, body: Bytes) -> Result<(), IntakeError> {
    if app.directory.server(server).await?.is_none() {
        return Err(IntakeError::UnknownServer);
    }
    // An unknown session answers as a wrong signature does.
    let peek = webhook::session_name(&body).ok_or(IntakeError::BadSignature)?;
    let session = app.directory.session_named(server, &peek.session).await?.ok_or(IntakeError::BadSignature)?;
    if !webhook::verify(&session.webhook_keys(app.clock.now()), &body, signature) {
        return Err(IntakeError::BadSignature);
    }
    let glance = webhook::glance(&peek.event, &body);
    // A fourth of what WAHA posts about sent messages, and it says nothing new.
    if session.engine.honours_message_id() && glance.is_pending_echo {
        metrics::counter!("switchboard_ingest_echoes_total").increment(1);
        return Ok(());
    }
    let event = InboundEvent {
        tenant_id: session.tenant,
        session_id: session.id,
        waha_server_id: server,
        received_at: app.clock.now(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let is_history = glance.written_at.is_some_and(|at| event.received_at - at > HISTORY);
    match publish(app, event.clone(), is_history).await {
        Ok(()) => Ok(()),
        Err(fault) => {
            tracing::debug!(%fault, "intake: spooling");
            metrics::counter!("switchboard_ingest_spooled_total").increment(1);
            app.spool.write(event).await.map_err(|fault| {
                tracing::warn!(%fault, "intake: neither broker nor database can keep an event");
                IntakeError::NotKept
            })
        }
    }
}

/// Puts `event` on the road to the consumers, together with others.
async fn publish(app: &App, event: InboundEvent, is_history: bool) -> Result<(), PublishError> {
    if !app.broker.is_connected() {
        return Err(PublishError::Disconnected);
    }
    let road = if is_history { &app.history_road } else { &app.road };
    road.write(event).await.unwrap_or(Err(PublishError::Disconnected))
}
