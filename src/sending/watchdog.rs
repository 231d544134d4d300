//! Looking after messages that were handed over and not acknowledged by WhatsApp's server.
//!
//! After the acknowledgement's time is up the message is read back: an acknowledgement found there is evidence like any other.
//! Where the engine carries our id, the message is then sent once more under the same id, through its lane, so that order and
//! pace hold; without an acknowledgement of that either it has failed, `no_server_ack`. Elsewhere it is never sent again and fails
//! after twice the time. An acknowledgement that comes later supersedes the failure.
//!
//! Any number of nodes may run this: whatever is done holds only for the message as it was read, so the second one to do it
//! does nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::app::App;
use crate::db::{DbError, Prepare, sql};
use crate::domain::content::Kind;
use crate::domain::failure::FailureCode;
use crate::domain::ids::{MessageId, SessionId, TenantId, WahaServerId};
use crate::domain::status::{Ack, Status};
use crate::ingest::acks::{self, AckEvent};
use crate::messages::changes::{self, Change};
use crate::messages::row::{MessageRow, message_columns};
use crate::sending::Tools;
use crate::sessions::liveness::{restart, vitals};
use crate::sessions::status;
use crate::waha::{self, CallError};

/// Read back at once, per server.
const AT_ONCE: usize = 8;

#[derive(Clone, QueryableByName)]
struct Unacked {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = SqlUuid)]
    waha_server_id: WahaServerId,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Text)]
    message_type: String,
    #[diesel(sql_type = Bool)]
    forwards: bool,
    #[diesel(sql_type = Nullable<Text>)]
    waha_message_id: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    handed_over_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = SmallInt)]
    resends: i16,
}

// A session that is not working gets no acknowledgements, and a server that is away cannot be asked.
const UNACKED: &str = "\
SELECT m.tenant_id, m.session_id, m.id, l.waha_server_id, m.chat_id, m.message_type,
       coalesce(m.content ? 'forwards', false) AS forwards, m.waha_message_id, m.handed_over_at, m.expires_at, m.resends
FROM messages m
JOIN lanes l ON l.tenant_id = m.tenant_id AND l.session_id = m.session_id
JOIN waha_servers v ON v.id = l.waha_server_id
WHERE m.status = 'sending' AND m.handed_over_at <= $1 AND m.attempt_state = 'none' AND NOT m.requeued
  AND m.held_because IS NULL AND m.deleted_at IS NULL AND l.stopped_because IS NULL
  AND (v.breaker_open_until IS NULL OR v.breaker_open_until <= $2)
ORDER BY m.handed_over_at LIMIT 500";

/// Looks after messages until `stop` turns true.
pub async fn run(tools: Tools, mut stop: watch::Receiver<bool>) {
    let patience = tools.app.config.sending.ack_timeout;
    let nap = (patience / 8).clamp(Duration::from_millis(100), Duration::from_secs(5));
    let mut looked: HashMap<MessageId, DateTime<Utc>> = HashMap::new();
    while !*stop.borrow() {
        if let Err(fault) = round(&tools, &mut looked).await {
            tracing::warn!(%fault, "watchdog: the messages without an acknowledgement cannot be read");
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tools.app.clock.sleep(nap) => {}
        }
    }
}

async fn round(tools: &Tools, looked: &mut HashMap<MessageId, DateTime<Utc>>) -> Result<(), DbError> {
    let app = &tools.app;
    let now = app.clock.now();
    let patience = TimeDelta::from_std(app.config.sending.ack_timeout).unwrap_or(TimeDelta::minutes(1));
    let due: Vec<Unacked> = app
        .db
        .system(async |conn| {
            Ok::<_, DbError>(
                sql(UNACKED)
                    .bind::<Timestamptz, _>(now - patience)
                    .bind::<Timestamptz, _>(now)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    // One that is still waited for is not asked for all the time.
    looked.retain(|_, at| *at > now - patience / 2);
    let mut servers: HashMap<WahaServerId, Vec<Unacked>> = HashMap::new();
    for message in due {
        if let Entry::Vacant(place) = looked.entry(message.id) {
            place.insert(now);
            servers.entry(message.waha_server_id).or_default().push(message);
        }
    }
    // One server that does not answer holds up only its own messages.
    let servers = servers.into_values().map(|messages| async move {
        stream::iter(messages)
            .for_each_concurrent(AT_ONCE, async |message| {
                if let Err(fault) = look(tools, &message, now, patience).await {
                    tracing::debug!(message_id = %message.id, %fault, "watchdog: a message could not be looked after; it is tried again");
                }
            })
            .await;
    });
    futures_util::future::join_all(servers).await;
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Waha(#[from] CallError),
    #[error(transparent)]
    Database(#[from] DbError),
    #[error(transparent)]
    Directory(#[from] crate::sessions::directory::DirectoryError),
}

async fn look(tools: &Tools, message: &Unacked, now: DateTime<Utc>, patience: TimeDelta) -> Result<(), Fault> {
    let app = &tools.app;
    let Some(session) = app.directory.session(message.tenant_id, message.session_id).await? else { return Ok(()) };
    let Some(server) = app.directory.server(message.waha_server_id).await? else { return Ok(()) };
    if let Some(id) = &message.waha_message_id {
        let found = if server.engine.can_read_back_by_bare_id() {
            app.waha.message_by_id(&server.server, &session.external_name, "all", id).await
        } else {
            let whole = format!("true_{}_{id}", message.chat_id);
            app.waha.message_by_id(&server.server, &session.external_name, &message.chat_id, &whole).await
        };
        let ack = match found {
            Ok(found) => found.and_then(|found| found.ack).and_then(Ack::from_level),
            // Not there, or not to be had: that says nothing.
            Err(CallError::NotFound | CallError::Unsupported(_) | CallError::Rule(_)) => None,
            Err(fault) => return Err(fault.into()),
        };
        if let Some(ack) = ack.filter(|ack| *ack != Ack::Pending) {
            return Ok(apply(app, message, id, ack).await?);
        }
    }
    let endpoint = message.message_type.parse().map(|kind: Kind| waha::endpoint_of(kind, message.forwards));
    let keeps_ids = server.honours_message_id()
        && message.waha_message_id.is_some()
        && match endpoint {
            Ok(endpoint) => !tools.foreign.seen_at(server.id, endpoint).await?,
            Err(_) => false,
        };
    let in_time = message.expires_at.is_none_or(|expires| expires > now);
    if keeps_ids && in_time && message.resends == 0 {
        send_again(app, message, now).await?;
    } else if message.resends > 0 || message.handed_over_at <= now - patience * 2 {
        fail(app, message, now, !keeps_ids).await?;
    }
    Ok(())
}

async fn apply(app: &App, message: &Unacked, id: &str, ack: Ack) -> Result<(), DbError> {
    let event = AckEvent {
        tenant: message.tenant_id,
        session: message.session_id,
        waha_message_id: id.to_owned(),
        ack,
        at: app.clock.now(),
        inferred: false,
    };
    app.db.system(async |conn| acks::apply(conn, &app.chance, vec![event]).await).await?;
    app.wake.events.notify_one();
    Ok(())
}

const SEND_AGAIN: &str = "\
WITH m AS (
    UPDATE messages SET requeued = true, resends = resends + 1, updated_at = $4
    WHERE tenant_id = $1 AND id = $2 AND status = 'sending' AND handed_over_at = $3 AND resends = 0 AND NOT requeued
      AND held_because IS NULL AND attempt_state = 'none'
    RETURNING tenant_id, session_id
)
UPDATE lanes l SET
    queued = l.queued + 1,
    ready_at = CASE WHEN l.paused_because IS NULL THEN coalesce(l.ready_at, greatest(l.next_slot_at, $4)) END,
    updated_at = $4
FROM m WHERE l.tenant_id = m.tenant_id AND l.session_id = m.session_id";

async fn send_again(app: &App, message: &Unacked, now: DateTime<Utc>) -> Result<(), DbError> {
    let restarts = app
        .db
        .system(async |conn| {
            status::lock_lanes(conn, &[message.session_id]).await?;
            let again = sql(SEND_AGAIN)
                .bind::<SqlUuid, _>(message.tenant_id)
                .bind::<SqlUuid, _>(message.id)
                .bind::<Timestamptz, _>(message.handed_over_at)
                .bind::<Timestamptz, _>(now)
                .prepared()
                .execute(&mut **conn)
                .await?;
            if again == 0 {
                return Ok(false);
            }
            tracing::info!(message_id = %message.id, session_id = %message.session_id, "watchdog: no acknowledgement; the message is sent once more");
            metrics::counter!("switchboard_messages_resent_total").increment(1);
            count(app, conn, message, now).await
        })
        .await?;
    app.wake.dispatch.notify_one();
    if restarts {
        app.wake.sessions.notify_one();
    }
    Ok(())
}

const FAIL: &str = concat!(
    "WITH m AS (UPDATE messages m SET status = 'failed', failed_at = $4, error_code = $5, error_message = $6, updated_at = $4 \
     WHERE tenant_id = $1 AND id = $2 AND status = 'sending' AND handed_over_at = $3 AND NOT requeued \
     AND held_because IS NULL AND attempt_state = 'none' RETURNING m.*) SELECT ",
    message_columns!(),
    " FROM m"
);

async fn fail(app: &App, message: &Unacked, now: DateTime<Utc>, counts: bool) -> Result<(), DbError> {
    let code = FailureCode::NoServerAck;
    let detail = "WhatsApp's server has not acknowledged the message. It may still arrive.";
    let restarts = app
        .db
        .system(async |conn| {
            status::lock_lanes(conn, &[message.session_id]).await?;
            let rows: Vec<MessageRow> = sql(FAIL)
                .bind::<SqlUuid, _>(message.tenant_id)
                .bind::<SqlUuid, _>(message.id)
                .bind::<Timestamptz, _>(message.handed_over_at)
                .bind::<Timestamptz, _>(now)
                .bind::<Text, _>(code.as_str())
                .bind::<Text, _>(detail)
                .prepared()
                .load(&mut **conn)
                .await?;
            let changes: Vec<Change<'_>> = rows
                .iter()
                .map(|row| Change {
                    message: row,
                    status: Status::Failed,
                    at: now,
                    cause: code.as_str().to_owned(),
                    attempt: Some(row.attempts),
                })
                .collect();
            changes::record(conn, &app.chance, &changes).await?;
            if changes.is_empty() || !counts { Ok(false) } else { count(app, conn, message, now).await }
        })
        .await?;
    app.wake.events.notify_one();
    if restarts {
        app.wake.sessions.notify_one();
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Integer)]
    unacked: i32,
}

// An acknowledgement of any message of the session since shows that the session is alive: then this one alone is the matter.
const COUNT: &str = "\
UPDATE lanes l SET unacked = CASE WHEN EXISTS (
        SELECT FROM messages a WHERE a.tenant_id = l.tenant_id AND a.session_id = l.session_id
        AND a.created_at > $3 - interval '1 hour' AND a.sent_at >= $3)
    THEN 0 ELSE l.unacked + 1 END
WHERE l.tenant_id = $1 AND l.session_id = $2 RETURNING unacked";

/// Counts a message that was not acknowledged; after some in a row the session is restarted. The lane is locked.
async fn count(
    app: &App,
    conn: &mut AsyncPgConnection,
    message: &Unacked,
    now: DateTime<Utc>,
) -> Result<bool, DbError> {
    let counted: Vec<Count> = sql(COUNT)
        .bind::<SqlUuid, _>(message.tenant_id)
        .bind::<SqlUuid, _>(message.session_id)
        .bind::<Timestamptz, _>(message.handed_over_at)
        .prepared()
        .load(conn)
        .await?;
    if counted.iter().any(|count| count.unacked > 0) {
        vitals::look_now(conn, now, message.tenant_id, message.session_id).await?;
    }
    if counted.into_iter().all(|count| count.unacked < app.config.sending.stuck_after) {
        return Ok(false);
    }
    restart::restart(app, conn, now, message.tenant_id, message.session_id).await
}
