//! One attempt: from a turn to what it proved.

use std::time::Duration;

use chrono::TimeDelta;

use crate::app::App;
use crate::domain::ids::WahaServerId;
use crate::sending::claim::{Before, Claimed};
use crate::sending::outcome::{Doubt, Outcome};
use crate::sessions::directory::{ServerEntry, SessionEntry};
use crate::sessions::status;
use crate::waha::{CallError, NotSent, SendOutcome, SendText, SessionStatus};

/// Attempts of a message that cannot even be put into a request, at the most.
const MOST_ATTEMPTS: i32 = 8;

/// Attempts of which nobody knows whether they sent, at the most: a message that makes its engine fail must not hold up its
/// session for ever.
const MOST_DOUBTS: i16 = 8;

/// Workers that may die on one message.
const MOST_DEATHS: i16 = 3;

/// Which way the message goes.
#[derive(Debug)]
pub struct Way {
    /// The session.
    pub session: std::sync::Arc<SessionEntry>,
    /// Its server.
    pub server: std::sync::Arc<ServerEntry>,
}

/// Finds the way; `None` when session or server are gone.
///
/// # Errors
/// When the directory cannot be read.
pub async fn find_way(
    app: &App,
    claimed: &Claimed,
    server: WahaServerId,
) -> Result<Option<Way>, crate::sessions::directory::DirectoryError> {
    let session = app.directory.session(claimed.turn.tenant_id, claimed.turn.session_id).await?;
    let server = app.directory.server(server).await?;
    Ok(session.zip(server).map(|(session, server)| Way { session, server }))
}

/// Hands the message over, unless an earlier attempt did or may have done so where that cannot be repeated.
pub async fn make(app: &App, claimed: &Claimed, way: Option<&Way>) -> Outcome {
    let Some(way) = way else {
        return Outcome::Failed {
            error: ("session_deleted", "The session was deleted before the message left.".to_owned()),
        };
    };
    if claimed.worker_deaths >= MOST_DEATHS {
        return Outcome::Failed {
            error: (
                "quarantined",
                format!("Sending was broken off {} times; the message is set aside.", claimed.worker_deaths),
            ),
        };
    }
    if claimed.before == Before::Doubt
        && let Some(outcome) = reconcile(app, claimed, way).await
    {
        return outcome;
    }
    send(app, claimed, way).await
}

/// Reads back whether an attempt of unknown outcome reached the engine. `None`: it may be sent (again) with the same id.
async fn reconcile(app: &App, claimed: &Claimed, way: &Way) -> Option<Outcome> {
    let repeatable = way.server.engine.honours_message_id() && way.server.engine.can_read_back_by_bare_id();
    let id = claimed.waha_message_id.as_deref().filter(|_| repeatable);
    let Some(id) = id else { return Some(unconfirmed()) };
    match app.waha.message_by_id(&way.server.server, &way.session.external_name, "all", id).await {
        Ok(Some(_)) => Some(Outcome::HandedOver { waha_message_id: Some(id.to_owned()) }),
        // Not proof of absence; but the same id makes a repeat harmless.
        Ok(None) | Err(CallError::NotFound | CallError::Unsupported(_) | CallError::Rule(_)) => None,
        Err(fault) => {
            // A server that is away (a proxy then answers in its place) is waited for; one that fails is asked only so often.
            let fails = matches!(fault, CallError::Server { status, .. } if !(502..=504).contains(&status));
            if fails && claimed.doubts >= MOST_DOUBTS - 1 {
                return Some(unconfirmed());
            }
            Some(Outcome::Retry {
                at: app.clock.now() + backoff(app, claimed.attempt),
                doubt: if fails { Doubt::Fresh } else { Doubt::Earlier },
                error: ("reconciling", fault.to_string()),
            })
        }
    }
}

fn unconfirmed() -> Outcome {
    Outcome::Failed {
        error: (
            "unconfirmed",
            "The message may or may not have been sent, and nothing can tell. Send it again only if that is acceptable."
                .to_owned(),
        ),
    }
}

async fn send(app: &App, claimed: &Claimed, way: &Way) -> Outcome {
    let timeout = app.config.timings.send_timeout;
    // An attempt that could outlive its lease is not begun: another worker might begin its own.
    let left = (claimed.lease_until - app.clock.now()).to_std().unwrap_or(Duration::ZERO);
    if left < timeout {
        return Outcome::Retry {
            at: app.clock.now(),
            doubt: claimed.doubt(),
            error: ("late", "The worker was too slow to begin the attempt.".to_owned()),
        };
    }
    let text = SendText {
        session: way.session.external_name.clone(),
        chat_id: claimed.chat_id.clone(),
        text: claimed.body.clone(),
        id: claimed.waha_message_id.clone().filter(|_| way.server.engine.honours_message_id()),
        reply_to: None,
        mentions: Vec::new(),
        link_preview: None,
    };
    let request_id = claimed.turn.message_id.to_string();
    let outcome = app.waha.send_text(&way.server.server, &text, timeout, Some(&request_id)).await;
    if let SendOutcome::NotSent { why: NotSent::SessionNotWorking { .. } | NotSent::SessionMissing } = &outcome {
        note_session(app, claimed, &outcome).await;
    }
    judge(app, claimed, outcome)
}

/// The send knows better than the database how the session is: its lane waits until it works again.
async fn note_session(app: &App, claimed: &Claimed, outcome: &SendOutcome) {
    let status = match outcome {
        SendOutcome::NotSent { why: NotSent::SessionNotWorking { status } } => *status,
        _ => SessionStatus::Stopped,
    };
    let noted = status::found_not_working(app, claimed.turn.tenant_id, claimed.turn.session_id, status).await;
    if let Err(fault) = noted {
        tracing::debug!(session_id = %claimed.turn.session_id, %fault, "sending: a session's status could not be noted");
    }
}

/// What the tenant and the lane make of what the attempt proved.
fn judge(app: &App, claimed: &Claimed, outcome: SendOutcome) -> Outcome {
    let now = app.clock.now();
    match outcome {
        SendOutcome::Accepted { bare_id } => Outcome::HandedOver { waha_message_id: bare_id },
        SendOutcome::NotSent { why } => {
            let waits = matches!(why, NotSent::SessionNotWorking { .. } | NotSent::SessionMissing);
            // All else is the server's or the gateway's fault, never the message's, and passes: WAHA being away is a pause.
            if why == NotSent::NotBuilt && claimed.attempt >= MOST_ATTEMPTS {
                return Outcome::Failed {
                    error: ("undeliverable", format!("Given up after {} attempts: {why}.", claimed.attempt)),
                };
            }
            let pause = match &why {
                NotSent::Throttled { retry_after: Some(pause) } => {
                    TimeDelta::from_std(*pause).unwrap_or(TimeDelta::hours(1))
                }
                _ if waits => TimeDelta::seconds(5) + backoff(app, claimed.attempt),
                _ => backoff(app, claimed.attempt),
            };
            Outcome::Retry { at: now + pause, doubt: claimed.doubt(), error: ("not_sent", why.to_string()) }
        }
        SendOutcome::Refused { code, detail } => Outcome::Failed { error: (code.as_str(), detail) },
        SendOutcome::Restricted { detail } => Outcome::Failed { error: ("restricted", detail) },
        SendOutcome::Unknown { .. } if claimed.doubts >= MOST_DOUBTS - 1 => unconfirmed(),
        SendOutcome::Unknown { why } => Outcome::Retry {
            at: now + backoff(app, claimed.attempt),
            doubt: Doubt::Fresh,
            error: ("unknown_outcome", why.to_string()),
        },
    }
}

/// Full jitter under an exponential bound: 1 s, 2 s, 4 s … 60 s.
fn backoff(app: &App, attempt: i32) -> TimeDelta {
    let doublings = attempt.clamp(1, 7).unsigned_abs() - 1;
    let most = Duration::from_secs(1 << doublings).min(Duration::from_secs(60));
    TimeDelta::from_std(app.chance.jitter(most)).unwrap_or_default()
}
