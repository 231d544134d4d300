//! Settling a doubt: did an earlier attempt reach the engine?
//!
//! Where the engine carries our id, the message is asked for by it, and one that is not there is sent again under the same id,
//! which is harmless. Elsewhere a repeat would be a second message: the chat is searched for exactly one message that can be
//! ours, and if there is none the tenant is told that nobody knows. Not finding it proves nothing.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::db::{DbError, Prepare, sql};
use crate::domain::content::Kind;
use crate::domain::failure::FailureCode;
use crate::sending::Tools;
use crate::sending::attempt::{MOST_DOUBTS, Way, backoff};
use crate::sending::breaker::Sign;
use crate::sending::claim::Claimed;
use crate::sending::compose::Parts;
use crate::sending::outcome::{Doubt, Outcome};
use crate::waha::{CallError, MessageFilter, Source, WahaMessage};

/// Looks into the chat before a message counts as unconfirmed; an engine may show it late.
const LOOKS: i32 = 3;
/// Between the clocks of WAHA and the gateway.
const SKEW: TimeDelta = TimeDelta::seconds(60);
/// The newest own messages of the chat that are looked at.
const PAGE: u32 = 20;

/// Nobody can tell whether the message was sent.
pub(super) fn unconfirmed() -> Outcome {
    Outcome::Failed {
        code: FailureCode::Unconfirmed,
        detail:
            "The message may or may not have been sent, and nothing can tell. Send it again only if that is acceptable."
                .to_owned(),
    }
}

/// Reads back whether an attempt of unknown outcome reached the engine. `None`: it may be sent (again) with the same id.
pub(super) async fn settle(
    tools: &Tools,
    claimed: &Claimed,
    way: &Way,
    parts: &Parts,
    keeps_ids: bool,
) -> Option<Outcome> {
    let now = tools.app.clock.now();
    let by_id = claimed.waha_message_id.as_deref().filter(|_| way.server.engine.can_read_back_by_bare_id());
    let found = match by_id {
        Some(id) => tools.app.waha.message_by_id(&way.server.server, &way.session.external_name, "all", id).await,
        None => Ok(None),
    };
    match found {
        Ok(Some(_)) => {
            // Whoever answers is alive; that this cannot be written down is no matter here.
            let _written = tools.breaker.record(&tools.app.db, way.server.id, now, Sign::Alive).await;
            return Some(Outcome::HandedOver { waha_message_id: by_id.map(str::to_owned), chat_id: None });
        }
        Ok(None) | Err(CallError::NotFound | CallError::Unsupported(_) | CallError::Rule(_)) => {}
        Err(fault) => return Some(wait(tools, claimed, way, &fault).await),
    }
    if keeps_ids && by_id.is_some() {
        // Not proof of absence; but the same id makes a repeat harmless, unless it is too late for one.
        return claimed.expires_at.is_some_and(|at| at <= now).then(unconfirmed);
    }
    match search(tools, claimed, way, parts).await {
        Ok(Some(id)) => Some(Outcome::HandedOver { waha_message_id: Some(id), chat_id: None }),
        Ok(None) if claimed.tries > LOOKS => Some(unconfirmed()),
        Ok(None) => Some(Outcome::Retry {
            at: now + TimeDelta::seconds(1) + backoff(&tools.app, claimed.tries),
            doubt: Doubt::Earlier,
            counts: true,
            error: ("reconciling", "The message is looked for in its chat.".to_owned()),
        }),
        Err(Fault::Waha(CallError::NotFound | CallError::Unsupported(_) | CallError::Rule(_))) => Some(unconfirmed()),
        Err(Fault::Waha(fault)) => Some(wait(tools, claimed, way, &fault).await),
        Err(Fault::Database(fault)) => Some(Outcome::Retry {
            at: now + TimeDelta::seconds(1),
            doubt: Doubt::Earlier,
            counts: false,
            error: ("reconciling", fault.to_string()),
        }),
    }
}

/// A server that is away (a proxy then answers in its place) is waited for; one that fails is asked only so often.
async fn wait(tools: &Tools, claimed: &Claimed, way: &Way, fault: &CallError) -> Outcome {
    let now = tools.app.clock.now();
    let sign = match fault {
        CallError::Unreachable | CallError::TimedOut => Sign::Failing,
        CallError::Server { status: 502..=504, .. } => Sign::Failing,
        _ => Sign::Silent,
    };
    if let Err(fault) = tools.breaker.record(&tools.app.db, way.server.id, now, sign).await {
        tracing::debug!(%fault, "sending: a circuit breaker could not be written down");
    }
    let fails = matches!(fault, CallError::Server { status, .. } if !(502..=504).contains(status));
    let too_late = claimed.expires_at.is_some_and(|at| at <= now);
    if too_late || (fails && claimed.doubts >= MOST_DOUBTS - 1) {
        return unconfirmed();
    }
    Outcome::Retry {
        at: now + backoff(&tools.app, claimed.tries),
        doubt: if fails { Doubt::Fresh } else { Doubt::Earlier },
        counts: fails,
        error: ("reconciling", fault.to_string()),
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Waha(#[from] CallError),
    #[error(transparent)]
    Database(#[from] DbError),
}

/// The id of the one message in the chat that can only be this one.
async fn search(tools: &Tools, claimed: &Claimed, way: &Way, parts: &Parts) -> Result<Option<String>, Fault> {
    let since = claimed.created_at - SKEW;
    let filter =
        MessageFilter { limit: Some(PAGE), from_me: Some(true), since: Some(since), ..MessageFilter::default() };
    let chat = claimed.chat_id.as_str();
    let messages = tools.app.waha.messages(&way.server.server, &way.session.external_name, chat, &filter).await?;
    let alike: Vec<String> = messages
        .into_iter()
        .filter(|message| can_be(message, claimed, parts, since))
        .map(|message| message.bare_id)
        .collect();
    if alike.is_empty() {
        return Ok(None);
    }
    let claims = claims(tools, claimed, &alike, since).await?;
    let free: Vec<String> = alike.into_iter().filter(|id| !claims.taken.contains(id)).collect();
    // Another message with the same words whose fate is open may be the one that was found.
    match free.as_slice() {
        [only] if claims.rivals == 0 => Ok(Some(only.clone())),
        _ => Ok(None),
    }
}

/// Whether `message` says what this one says, in the same way and not before it was accepted.
fn can_be(message: &WahaMessage, claimed: &Claimed, parts: &Parts, since: DateTime<Utc>) -> bool {
    let says = message.body.as_deref().unwrap_or_default().trim();
    let same = match parts.kind {
        _ if parts.content.forwards.is_some() => false,
        Kind::Text => !message.has_media && says == claimed.body.trim(),
        // A file without words could be any other file.
        Kind::Image | Kind::Video | Kind::Document => {
            message.has_media && !claimed.body.is_empty() && says == claimed.body.trim()
        }
        Kind::Poll => parts.content.poll.as_ref().is_some_and(|poll| says == poll.question.trim()),
        Kind::Voice | Kind::Location | Kind::Contact => false,
    };
    same && message.from_me
        && message.source != Some(Source::App)
        && message.timestamp.is_none_or(|written| written >= since)
}

struct Claims {
    taken: Vec<String>,
    rivals: i64,
}

#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = Text)]
    waha_message_id: String,
}

#[derive(QueryableByName)]
struct Rivals {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

async fn claims(tools: &Tools, claimed: &Claimed, ids: &[String], since: DateTime<Utc>) -> Result<Claims, DbError> {
    let turn = &claimed.turn;
    tools
        .app
        .db
        .system(async |conn| {
            let taken: Vec<Taken> = sql("SELECT waha_message_id FROM messages \
                 WHERE session_id = $1 AND waha_message_id = ANY($2) AND tenant_id = $3 AND id <> $4")
            .bind::<SqlUuid, _>(turn.session_id)
            .bind::<Array<Text>, _>(ids)
            .bind::<SqlUuid, _>(turn.tenant_id)
            .bind::<SqlUuid, _>(turn.message_id)
            .prepared()
            .load(&mut **conn)
            .await?;
            let rivals: Rivals = sql("SELECT count(*) AS count FROM messages \
                 WHERE tenant_id = $1 AND session_id = $2 AND created_at > $5 - interval '1 hour' AND id <> $3 \
                 AND direction = 'outbound' AND chat_id = $4 AND body IS NOT DISTINCT FROM $6 AND waha_message_id IS NULL \
                 AND status IN ('sending', 'failed') AND (attempt_state <> 'none' OR error_code = 'unconfirmed' \
                 OR handed_over_at IS NOT NULL)")
            .bind::<SqlUuid, _>(turn.tenant_id)
            .bind::<SqlUuid, _>(turn.session_id)
            .bind::<SqlUuid, _>(turn.message_id)
            .bind::<Text, _>(&claimed.chat_id)
            .bind::<Timestamptz, _>(since)
            .bind::<Text, _>(&claimed.body)
            .prepared()
            .get_result(&mut **conn)
            .await?;
            let taken = taken.into_iter().map(|row| row.waha_message_id).collect();
            Ok::<_, DbError>(Claims { taken, rivals: rivals.count })
        })
        .await
}
