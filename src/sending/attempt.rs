//! One attempt: from a turn to what it proved.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::app::App;
use crate::domain::failure::FailureCode;
use crate::domain::ids::WahaServerId;
use crate::sending::Tools;
use crate::sending::breaker::Sign;
use crate::sending::claim::{Before, Claimed, Number};
use crate::sending::compose::{self, Parts, Unfit};
use crate::sending::outcome::{Doubt, Outcome};
use crate::sending::reconcile::{self, unconfirmed};
use crate::sending::{stuck, typing};
use crate::sessions::directory::{DirectoryError, ServerEntry, SessionEntry};
use crate::sessions::numbers::{self, Registration};
use crate::sessions::status;
use crate::waha::{CallError, NotSent, Outgoing, RefusalCode, SendOutcome, SessionStatus, Unknown};

/// Attempts of a message that reached WAHA and did not send it, at the most.
const MOST_ATTEMPTS: i32 = 8;

/// Attempts of which nobody knows whether they sent, at the most: a message that makes its engine fail must not hold up its
/// session for ever.
pub(super) const MOST_DOUBTS: i16 = 8;

/// Workers that may die on one message.
const MOST_DEATHS: i16 = 3;

/// Attempts that wait for a number check that does not succeed; then the message is sent without one.
const MOST_CHECKS: i32 = 4;

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
pub async fn find_way(app: &App, claimed: &Claimed, server: WahaServerId) -> Result<Option<Way>, DirectoryError> {
    let session = app.directory.session(claimed.turn.tenant_id, claimed.turn.session_id).await?;
    let server = app.directory.server(server).await?;
    Ok(session.zip(server).map(|(session, server)| Way { session, server }))
}

/// Hands the message over, unless an earlier attempt did or may have done so where that cannot be repeated.
pub async fn make(tools: &Tools, claimed: &Claimed, way: Option<&Way>) -> Outcome {
    let failed = |code: FailureCode, detail: &str| Outcome::Failed { code, detail: detail.to_owned() };
    let Some(way) = way else {
        return failed(FailureCode::SessionDeleted, "The session was deleted before the message left.");
    };
    if claimed.worker_deaths >= MOST_DEATHS {
        let detail = format!("Sending was broken off {} times; the message is set aside.", claimed.worker_deaths);
        return failed(FailureCode::Quarantined, &detail);
    }
    let parts = match Parts::read(claimed) {
        Ok(parts) => parts,
        Err(unfit) => return give_up(tools, claimed, unfit),
    };
    let endpoint = parts.endpoint();
    let foreign = match tools.foreign.seen_at(way.server.id, endpoint).await {
        Ok(foreign) => foreign,
        Err(fault) => return later(tools, claimed, TimeDelta::seconds(1), ("not_sent", fault.to_string())),
    };
    let keeps_ids = way.server.honours_message_id() && !foreign;
    let outcome = match claimed.before {
        Before::Doubt => reconcile::settle(tools, claimed, way, &parts, keeps_ids).await,
        Before::Nothing => None,
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => send(tools, claimed, way, parts, foreign).await,
    };
    bounded(claimed, outcome, tools.app.clock.now())
}

/// Puts the end to tries that lead nowhere.
fn bounded(claimed: &Claimed, outcome: Outcome, now: DateTime<Utc>) -> Outcome {
    let Outcome::Retry { at, doubt, counts, error } = outcome else { return outcome };
    let late =
        claimed.expires_at.is_some_and(|expires| if doubt == Doubt::None { at >= expires } else { now >= expires });
    if late && !claimed.resend {
        return if doubt == Doubt::None { Outcome::Expired } else { unconfirmed() };
    }
    if counts && claimed.tries >= MOST_ATTEMPTS {
        return match doubt {
            Doubt::None => Outcome::Failed {
                code: FailureCode::Undeliverable,
                detail: format!("Given up after {} attempts: {}", claimed.tries, error.1),
            },
            Doubt::Earlier | Doubt::Fresh => unconfirmed(),
        };
    }
    Outcome::Retry { at, doubt, counts, error }
}

/// A pause that does not count: nothing of the message left.
fn later(tools: &Tools, claimed: &Claimed, pause: TimeDelta, error: (&'static str, String)) -> Outcome {
    Outcome::Retry { at: tools.app.clock.now() + pause, doubt: claimed.doubt(), counts: false, error }
}

fn give_up(tools: &Tools, claimed: &Claimed, unfit: Unfit) -> Outcome {
    match unfit {
        Unfit::Never(code, detail) => Outcome::Failed { code, detail },
        Unfit::NotYet(why) => Outcome::Retry {
            at: tools.app.clock.now() + TimeDelta::seconds(1) + backoff(&tools.app, claimed.tries),
            doubt: claimed.doubt(),
            counts: true,
            error: ("not_sent", why),
        },
    }
}

async fn send(tools: &Tools, claimed: &Claimed, way: &Way, parts: Parts, foreign: bool) -> Outcome {
    let app = &tools.app;
    let chat = match chat_for(tools, claimed, way).await {
        Ok(chat) => chat,
        Err(outcome) => return outcome,
    };
    let endpoint = parts.endpoint();
    let id = claimed.waha_message_id.clone().filter(|_| way.server.honours_message_id());
    let message = match compose::compose(app, claimed, parts, &way.session.external_name, &chat, id.clone()).await {
        Ok(message) => message,
        Err(unfit) => return give_up(tools, claimed, unfit),
    };
    let timeout = app.config.timings.send_timeout;
    if claimed.typing && claimed.before == Before::Nothing {
        typing::show(app, way, &chat, &claimed.body, time_left(app, claimed).saturating_sub(timeout)).await;
    }
    // An attempt that could outlive its lease is not begun: another worker might begin its own.
    if time_left(app, claimed) < timeout {
        let error = ("late", "The worker was too slow to begin the attempt.".to_owned());
        return later(tools, claimed, TimeDelta::zero(), error);
    }
    let outcome = post(tools, claimed, way, &message, timeout).await;
    if let SendOutcome::Accepted { bare_id: Some(answered) } = &outcome
        && id.as_ref().is_some_and(|asked| asked != answered)
        && !foreign
    {
        tools.foreign.note(way.server.id, endpoint).await;
    }
    judge(tools, claimed, way, chat, outcome).await
}

fn time_left(app: &App, claimed: &Claimed) -> Duration {
    (claimed.lease_until - app.clock.now()).to_std().unwrap_or(Duration::ZERO)
}

async fn post(tools: &Tools, claimed: &Claimed, way: &Way, message: &Outgoing, timeout: Duration) -> SendOutcome {
    let app = &tools.app;
    let request_id = claimed.turn.message_id.to_string();
    let outcome = app.waha.send(&way.server.server, message, timeout, Some(&request_id)).await;
    if let SendOutcome::NotSent { why: NotSent::SessionNotWorking { .. } | NotSent::SessionMissing } = &outcome {
        let status = match &outcome {
            SendOutcome::NotSent { why: NotSent::SessionNotWorking { status } } => *status,
            _ => SessionStatus::Stopped,
        };
        note_session(app, claimed, status).await;
    }
    let recorded = tools.breaker.record(&app.db, way.server.id, app.clock.now(), sign(&outcome)).await;
    if let Err(fault) = recorded {
        tracing::debug!(%fault, "sending: a circuit breaker could not be written down");
    }
    outcome
}

/// What an attempt says about its server.
const fn sign(outcome: &SendOutcome) -> Sign {
    match outcome {
        SendOutcome::NotSent { why: NotSent::ConnectFailed } => Sign::Failing,
        SendOutcome::NotSent { why: NotSent::NotBuilt } => Sign::Silent,
        SendOutcome::Unknown { why } => match why {
            Unknown::TimedOut | Unknown::ConnectionBroke | Unknown::Proxy { .. } => Sign::Failing,
            Unknown::Stopping => Sign::Silent,
            Unknown::EngineTimedOut
            | Unknown::EngineConnectionClosed
            | Unknown::ServerError { .. }
            | Unknown::WhatsAppError { .. }
            | Unknown::BadAnswer => Sign::Alive,
        },
        SendOutcome::Accepted { .. }
        | SendOutcome::NotSent { .. }
        | SendOutcome::Refused { .. }
        | SendOutcome::Restricted { .. } => Sign::Alive,
    }
}

/// The chat to send to: WhatsApp's own id of a number that is written to for the first time.
async fn chat_for(tools: &Tools, claimed: &Claimed, way: &Way) -> Result<String, Outcome> {
    let not_registered = || Outcome::Failed {
        code: FailureCode::RecipientNotOnWhatsapp,
        detail: FailureCode::RecipientNotOnWhatsapp.meaning().to_owned(),
    };
    let phone = match (&claimed.number, claimed.before, &claimed.phone) {
        (Number::Chat(chat), ..) => return Ok(chat.clone()),
        (Number::NotRegistered, Before::Nothing, _) => return Err(not_registered()),
        (Number::Unknown, Before::Nothing, Some(phone)) => phone,
        // What may have been sent is not judged anew.
        _ => return Ok(claimed.chat_id.clone()),
    };
    match numbers::ask(&tools.app, &way.session, &way.server, phone).await {
        Ok(Registration::Registered(chat)) => Ok(chat),
        Ok(Registration::NotRegistered) => Err(not_registered()),
        Err(CallError::State { status }) => {
            note_session(&tools.app, claimed, status).await;
            let pause = TimeDelta::seconds(5) + backoff(&tools.app, claimed.tries);
            Err(later(tools, claimed, pause, ("not_sent", format!("The session is {status}."))))
        }
        Err(fault) if fault.is_transient() && claimed.tries <= MOST_CHECKS => {
            let away = matches!(fault, CallError::Unreachable);
            if away {
                let now = tools.app.clock.now();
                // Away for checks is away for sends.
                let _written = tools.breaker.record(&tools.app.db, way.server.id, now, Sign::Failing).await;
            }
            Err(Outcome::Retry {
                at: tools.app.clock.now() + TimeDelta::seconds(1) + backoff(&tools.app, claimed.tries),
                doubt: Doubt::None,
                counts: !away,
                error: ("checking_number", fault.to_string()),
            })
        }
        // The check is a help, not a condition.
        Err(fault) => {
            tracing::info!(message_id = %claimed.turn.message_id, %fault, "sending: a number could not be checked; the message is sent without that");
            Ok(claimed.chat_id.clone())
        }
    }
}

/// The send knows better than the database how the session is: its lane waits until it works again.
async fn note_session(app: &App, claimed: &Claimed, status: SessionStatus) {
    let noted = status::found_not_working(app, claimed.turn.tenant_id, claimed.turn.session_id, status).await;
    if let Err(fault) = noted {
        tracing::debug!(session_id = %claimed.turn.session_id, %fault, "sending: a session's status could not be noted");
    }
}

/// What the tenant and the lane make of what the attempt proved.
async fn judge(tools: &Tools, claimed: &Claimed, way: &Way, chat: String, outcome: SendOutcome) -> Outcome {
    let app = &tools.app;
    let now = app.clock.now();
    if !matches!(outcome, SendOutcome::Refused { .. }) {
        tools.refusals.forget(claimed.turn.session_id);
    }
    match &outcome {
        SendOutcome::Accepted { .. } => tools.calls.answered(claimed.turn.tenant_id, claimed.turn.session_id),
        SendOutcome::Unknown { .. } => tools.calls.failed(claimed.turn.tenant_id, claimed.turn.session_id),
        _ => {}
    }
    match outcome {
        SendOutcome::Accepted { bare_id } => Outcome::HandedOver {
            waha_message_id: bare_id,
            chat_id: Some(chat).filter(|chat| *chat != claimed.chat_id),
        },
        SendOutcome::NotSent { why } => {
            // All is the server's or the gateway's fault, never the message's, and passes: WAHA being away is a pause.
            let pause = match &why {
                NotSent::Throttled { retry_after: Some(pause) } => {
                    TimeDelta::from_std(*pause).unwrap_or(TimeDelta::hours(1))
                }
                NotSent::SessionNotWorking { .. } | NotSent::SessionMissing => {
                    TimeDelta::seconds(5) + backoff(app, claimed.tries)
                }
                NotSent::ConnectFailed | NotSent::Throttled { .. } | NotSent::Unauthorized | NotSent::NotBuilt => {
                    backoff(app, claimed.tries)
                }
            };
            Outcome::Retry {
                at: now + pause,
                doubt: claimed.doubt(),
                counts: why == NotSent::NotBuilt,
                error: ("not_sent", why.to_string()),
            }
        }
        SendOutcome::Refused { code, detail } => refused(tools, claimed, code, detail).await,
        SendOutcome::Restricted { .. } => Outcome::Restricted { until: restricted_until(app, way).await },
        SendOutcome::Unknown { .. } if claimed.doubts >= MOST_DOUBTS - 1 => unconfirmed(),
        SendOutcome::Unknown { why } => Outcome::Retry {
            at: now + backoff(app, claimed.tries),
            doubt: Doubt::Fresh,
            counts: true,
            error: ("unknown_outcome", why.to_string()),
        },
    }
}

/// A refusal is the message's fault, unless one message after the other is refused with the same words: then it is the engine's,
/// and the session is restarted. The message that shows it is tried again after that.
async fn refused(tools: &Tools, claimed: &Claimed, code: RefusalCode, detail: String) -> Outcome {
    let (tenant, session) = (claimed.turn.tenant_id, claimed.turn.session_id);
    if matches!(code, RefusalCode::InvalidRequest | RefusalCode::Rule | RefusalCode::WhatsApp(_)) {
        let in_a_row = tools.refusals.count(session, &detail);
        if in_a_row >= tools.app.config.sending.stuck_after {
            match stuck::restart_alone(&tools.app, tenant, session).await {
                Ok(true) => {
                    tools.refusals.forget(session);
                    let error = ("session_restarted", format!("The session is restarted: {detail}"));
                    return later(tools, claimed, TimeDelta::seconds(5), error);
                }
                Ok(false) => {}
                Err(fault) => {
                    tracing::debug!(%fault, session_id = %session, "sending: a stuck session could not be restarted");
                }
            }
        }
    }
    Outcome::Failed { code: failure_of(code), detail }
}

const fn failure_of(code: RefusalCode) -> FailureCode {
    match code {
        RefusalCode::InvalidRequest => FailureCode::InvalidRequest,
        RefusalCode::NotFound => FailureCode::NotFound,
        RefusalCode::Unsupported => FailureCode::Unsupported,
        RefusalCode::TooLarge => FailureCode::TooLarge,
        RefusalCode::Rule => FailureCode::RefusedByWaha,
        RefusalCode::WhatsApp(_) => FailureCode::RefusedByWhatsapp,
    }
}

/// When WhatsApp's restriction ends, if the server knows.
async fn restricted_until(app: &App, way: &Way) -> Option<DateTime<Utc>> {
    let info = app.waha.get_session(&way.server.server, &way.session.external_name).await.ok()??;
    info.restriction?.until()
}

/// Full jitter under an exponential bound: 1 s, 2 s, 4 s … 60 s.
pub(super) fn backoff(app: &App, attempt: i32) -> TimeDelta {
    let doublings = attempt.clamp(1, 7).unsigned_abs() - 1;
    let most = Duration::from_secs(1 << doublings).min(Duration::from_secs(60));
    TimeDelta::from_std(app.chance.jitter(most)).unwrap_or_default()
}
