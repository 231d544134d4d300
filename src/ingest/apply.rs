//! Applying WAHA's events, many in one transaction.
//!
//! Guarantee: an event that was kept is applied at least once, and a repeat changes nothing: messages are unique by (session,
//! bare id), acks are a monotone maximum, a session's status follows its latest report. An event that cannot be read, or that
//! the database refuses by itself, goes to the dead letters with its cause and holds up no other.

use std::collections::BTreeSet;
use std::mem;
use std::time::Duration;

use diesel_async::AsyncPgConnection;

use crate::app::App;
use crate::broker::Verdict;
use crate::broker::envelope::InboundEvent;
use crate::db::{DbError, SystemConn};
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::status::Ack;
use crate::ingest::acks::{self, AckEvent};
use crate::ingest::inbound::{self, Inbound};
use crate::sessions::liveness::vitals::{self, Signs};
use crate::sessions::restriction::{self, Finding};
use crate::sessions::status::{self, Observation, Source};
use crate::waha;
use crate::waha::webhook::{Payload, WebhookEvent};

/// Events sorted by what they change.
#[derive(Default)]
struct Sorted {
    messages: Vec<Inbound>,
    acks: Vec<AckEvent>,
    statuses: Vec<Observation>,
    /// Through which sessions something came from WhatsApp.
    signs: Signs,
    /// What WAHA told of restricted accounts, to be looked at after the rest is committed.
    restrictions: Vec<Finding>,
    /// Sessions with messages that WhatsApp rejected; likewise.
    rejections: BTreeSet<(TenantId, SessionId)>,
}

/// Applies `events` and answers each one's verdict. Waits while the database is away.
pub async fn apply_all(app: &App, events: &[InboundEvent]) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(events.len());
    // Halves are tried when the whole is refused, until the culprit stands alone.
    let mut parts = vec![events];
    while let Some(part) = parts.pop() {
        match apply_part(app, part).await {
            Ok(()) => verdicts.extend(part.iter().map(|_| Verdict::Done)),
            Err(fault) if fault.is_transient() => {
                tracing::warn!(%fault, "ingest: waiting for the database");
                tokio::time::sleep(Duration::from_millis(500)).await;
                parts.push(part);
            }
            Err(fault) if part.len() > 1 => {
                tracing::warn!(%fault, events = part.len(), "ingest: a batch was refused; trying its halves");
                let (left, right) = part.split_at(part.len() / 2);
                parts.push(right);
                parts.push(left);
            }
            Err(fault) => {
                tracing::error!(%fault, "ingest: an event cannot be applied; it goes to the dead letters");
                verdicts.push(Verdict::Dead);
            }
        }
    }
    verdicts
}

async fn apply_part(app: &App, events: &[InboundEvent]) -> Result<(), DbError> {
    let mut sorted = sort(app, events)?;
    let (restrictions, rejections) = (mem::take(&mut sorted.restrictions), mem::take(&mut sorted.rejections));
    let now = app.clock.now();
    app.db.system(async |conn: &mut SystemConn| apply_sorted(app, conn, now, sorted).await).await?;
    look_for_restrictions(app, restrictions, rejections);
    app.wake.events.notify_one();
    app.wake.dispatch.notify_one();
    Ok(())
}

/// Applies `events` in the caller's transaction, for events that leave their store in the same one.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn apply_in(app: &App, conn: &mut AsyncPgConnection, events: &[InboundEvent]) -> Result<(), DbError> {
    let sorted = sort(app, events)?;
    apply_sorted(app, conn, app.clock.now(), sorted).await
}

/// In transactions of their own: what locks messages must not lock lanes after that.
fn look_for_restrictions(app: &App, told: Vec<Finding>, rejections: BTreeSet<(TenantId, SessionId)>) {
    if told.is_empty() && rejections.is_empty() {
        return;
    }
    let parts = app.clone();
    app.spawn(async move {
        let mut noted = restriction::note(&parts, &told).await;
        for (tenant, session) in rejections {
            noted = noted.and(restriction::after_rejection(&parts, tenant, session).await);
        }
        if let Err(fault) = noted {
            tracing::warn!(%fault, "ingest: a restriction could not be noted");
        }
    });
}

async fn apply_sorted(
    app: &App,
    conn: &mut AsyncPgConnection,
    now: chrono::DateTime<chrono::Utc>,
    sorted: Sorted,
) -> Result<(), DbError> {
    // Lanes before messages, as everywhere.
    let sessions: Vec<_> = sorted.statuses.iter().map(|observation| observation.session).collect();
    if !sessions.is_empty() {
        status::lock_lanes(conn, &sessions).await?;
    }
    for observation in &sorted.statuses {
        status::observe(conn, &app.chance, now, observation).await?;
    }
    let stored = inbound::store(conn, &app.chance, now, &sorted.messages).await?;
    let moved = acks::apply(conn, &app.chance, sorted.acks).await?;
    inbound::remember(conn, now, &sorted.messages).await?;
    vitals::note(conn, now, &sorted.signs).await?;
    metrics::counter!("switchboard_ingest_messages_stored_total").increment(stored.try_into().unwrap_or(0));
    metrics::counter!("switchboard_ingest_acks_applied_total").increment(moved.try_into().unwrap_or(0));
    Ok(())
}

fn sort(app: &App, events: &[InboundEvent]) -> Result<Sorted, DbError> {
    let mut sorted = Sorted::default();
    for envelope in events {
        let event =
            WebhookEvent::parse(envelope.body.as_bytes()).map_err(|fault| DbError::Refused(fault.to_string()))?;
        let at = event.timestamp.unwrap_or(envelope.received_at);
        let (tenant, session) = (envelope.tenant_id, envelope.session_id);
        metrics::counter!("switchboard_ingest_events_total", "event" => label(&event.payload)).increment(1);
        match &event.payload {
            // Of what was sent through WAHA, WAHA tells by itself.
            Payload::Message(message) if message.from_me && message.ack.is_none_or(|ack| ack < 1) => {}
            Payload::Ack(ack) if ack.level == Some(0) => {}
            Payload::Reaction(waha::webhook::Reaction { from_me: true, .. })
            | Payload::Revoked(waha::webhook::Revoked { from_me: true, .. }) => {}
            Payload::Edited(edited) if edited.message.from_me => {}
            Payload::SessionStatus(_) | Payload::Other { .. } => {}
            Payload::Ack(_) => sorted.signs.ack(tenant, session),
            Payload::Message(_) | Payload::Reaction(_) | Payload::Edited(_) | Payload::Revoked(_) => {
                sorted.signs.inbound(tenant, session);
            }
        }
        match event.payload {
            Payload::SessionStatus(change) => {
                sorted
                    .restrictions
                    .extend(change.restriction.map(|told| restriction::finding(app, tenant, session, told)));
                sorted.statuses.push(Observation {
                    tenant,
                    session,
                    status: change.status,
                    reported_at: Some(at),
                    me: event.me,
                    source: Source::Webhook,
                });
            }
            Payload::Message(message) if message.from_me => {
                if let Some(ack) = message.ack.and_then(Ack::from_level) {
                    sorted.acks.push(AckEvent { tenant, session, waha_message_id: message.bare_id, ack, at });
                }
            }
            Payload::Message(message) => {
                let to = event.me.as_ref().and_then(crate::waha::Me::phone).map(|digits| format!("+{digits}"));
                sorted.messages.push(Inbound { tenant, session, to, at, message: *message });
            }
            Payload::Ack(ack) if ack.from_me => {
                if ack.level == Some(-1) {
                    sorted.rejections.insert((tenant, session));
                }
                // 463: WhatsApp says itself what the rejection means.
                if ack.level == Some(-1) && ack.error_code == Some(463) {
                    let told = waha::Restriction::Timelock { until: None };
                    sorted.restrictions.push(restriction::finding(app, tenant, session, told));
                }
                if let Some(level) = ack.level.and_then(Ack::from_level) {
                    sorted.acks.push(AckEvent { tenant, session, waha_message_id: ack.bare_id, ack: level, at });
                }
            }
            Payload::Ack(_)
            | Payload::Reaction(_)
            | Payload::Edited(_)
            | Payload::Revoked(_)
            | Payload::Other { .. } => {}
        }
    }
    sorted.statuses.sort_by_key(|observation| (observation.session, observation.reported_at));
    Ok(sorted)
}

const fn label(payload: &Payload) -> &'static str {
    match payload {
        Payload::SessionStatus(_) => "session.status",
        Payload::Message(_) => "message",
        Payload::Ack(_) => "message.ack",
        Payload::Reaction(_) => "message.reaction",
        Payload::Edited(_) => "message.edited",
        Payload::Revoked(_) => "message.revoked",
        Payload::Other { .. } => "other",
    }
}
