//! Accepting a message: the group commit behind `POST /v1/messages`.
//!
//! Guarantee: when [`Acceptor::accept`] answers, the message, its lane's turn, its first transition, its event and its
//! idempotency key are committed together, or none of them is. A repeat under the same key finds the first answer, on
//! whatever node it arrives. The batch is written in the system role with explicit tenant ids; the composite keys make a
//! session of another tenant impossible even there.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bytea, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::group_commit::{BatchWriter, GroupCommit, GroupCommitError};
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, MessageId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::messages::row::MessageRow;
use crate::messages::view::{Message, Priority};
use crate::waha;

/// How long the first answer to an Idempotency-Key is kept.
pub const KEY_LIFETIME: TimeDelta = TimeDelta::hours(24);

/// The name of this operation among the idempotency keys.
const OPERATION: &str = "messages.create";

/// A valid request to send a text, not yet accepted.
#[derive(Debug)]
pub struct Draft {
    /// Whose message.
    pub tenant: TenantId,
    /// By which session.
    pub session: SessionId,
    /// Whether the session's engine takes our message id.
    pub honours_message_id: bool,
    /// The session's own number, if known.
    pub from: Option<String>,
    /// To whom.
    pub chat: ChatId,
    /// The text.
    pub body: String,
    /// How urgent.
    pub priority: Priority,
    /// The tenant's own data.
    pub metadata: serde_json::Value,
    /// The request's Idempotency-Key and what it was used for.
    pub idempotency: Option<KeyUse>,
}

/// An Idempotency-Key with the fingerprint of the request that carries it.
#[derive(Clone, Debug)]
pub struct KeyUse {
    /// The key.
    pub key: String,
    /// SHA-256 over the operation and the canonical body.
    pub fingerprint: [u8; 32],
}

/// What the caller gets.
#[derive(Debug)]
pub struct Accepted {
    /// The message.
    pub id: MessageId,
    /// The resource as JSON, exactly as first answered.
    pub json: Bytes,
    /// Whether this is the first answer again.
    pub replayed: bool,
}

/// Why a message was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The session was deleted meanwhile.
    #[error("no such session")]
    NoSuchSession,
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// Nothing was written; try again.
    #[error(transparent)]
    NotWritten(#[from] GroupCommitError),
    /// The first answer could not be read.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The process is going away.
    #[error(transparent)]
    Stopping(#[from] tokio::task::JoinError),
}

/// A draft on its way into the database.
pub struct Item {
    row: MessageRow,
    event_id: EventId,
    json: String,
    idempotency: Option<KeyUse>,
}

/// Accepts messages; clones share one writer.
#[derive(Clone, Debug)]
pub struct Acceptor {
    commits: GroupCommit<Writer>,
}

impl Acceptor {
    /// Callers that may wait at once, and the largest batch.
    const DEPTH: usize = 20_000;
    const MOST: usize = 500;

    /// Starts the writer on the current runtime. `committed` is called after each commit.
    pub fn start(db: Db, committed: impl Fn() + Send + Sync + 'static) -> Self {
        let writer = Writer { db, committed: Box::new(committed) };
        Self { commits: GroupCommit::start("accept", writer, Self::DEPTH, Self::MOST) }
    }

    /// Accepts `draft`.
    ///
    /// # Errors
    /// [`AcceptError`]; except where the database went away during the commit itself, nothing was written.
    pub async fn accept(&self, app: &App, draft: Draft) -> Result<Accepted, AcceptError> {
        let item = item(draft, app.clock.now(), &app.chance);
        let (tenant, id) = (item.row.tenant_id, item.row.id);
        let json = Bytes::from(item.json.clone());
        let idempotency = item.idempotency.clone();
        match (self.commits.write(item).await?, idempotency) {
            (Answer::Accepted, _) => Ok(Accepted { id, json, replayed: false }),
            (Answer::NoSuchSession, _) => Err(AcceptError::NoSuchSession),
            (Answer::KeyTaken, None) => Err(AcceptError::KeyReused),
            (Answer::KeyTaken, Some(key)) => {
                let db = app.db.clone();
                let first = app.detached(async move { first_answer(&db, tenant, &key).await }).await??;
                // Taken a moment ago and gone now: it has just expired.
                first.ok_or_else(|| DbError::Contended("the key expired".to_owned()).into())
            }
        }
    }
}

/// The first answer to the request that carried the key `used`, if there was one.
///
/// # Errors
/// When the key came with another request, or the database does not answer.
pub async fn first_answer(db: &Db, tenant: TenantId, used: &KeyUse) -> Result<Option<Accepted>, AcceptError> {
    #[derive(QueryableByName)]
    struct First {
        #[diesel(sql_type = Bytea)]
        fingerprint: Vec<u8>,
        #[diesel(sql_type = SqlUuid)]
        resource_id: MessageId,
        #[diesel(sql_type = Bytea)]
        response: Vec<u8>,
    }
    let first: Vec<First> = db
        .tenant(tenant, async |conn| {
            Ok::<_, DbError>(
                sql("SELECT fingerprint, resource_id, response FROM idempotency_keys WHERE tenant_id = $1 AND operation = $2 AND key = $3")
                    .bind::<SqlUuid, _>(tenant)
                    .bind::<Text, _>(OPERATION)
                    .bind::<Text, _>(&used.key)
                    .prepared()
                    .load(&mut **conn)
                    .await?,
            )
        })
        .await?;
    let Some(first) = first.into_iter().next() else { return Ok(None) };
    if first.fingerprint != used.fingerprint {
        return Err(AcceptError::KeyReused);
    }
    Ok(Some(Accepted { id: first.resource_id, json: first.response.into(), replayed: true }))
}

fn item(draft: Draft, now: DateTime<Utc>, chance: &Chance) -> Item {
    let row = MessageRow {
        tenant_id: draft.tenant,
        id: MessageId::fresh(now, chance),
        session_id: draft.session,
        direction: "outbound".to_owned(),
        status: "queued".to_owned(),
        priority: draft.priority.order(),
        message_type: "text".to_owned(),
        to_msisdn: draft.chat.phone(),
        chat_id: draft.chat.as_str().to_owned(),
        from_msisdn: draft.from,
        body: Some(draft.body),
        media_url: None,
        reply_to: None,
        metadata: draft.metadata,
        // Fixed before the first attempt and stored, so that every attempt carries the same one.
        waha_message_id: draft.honours_message_id.then(|| waha::new_message_id(chance)),
        ack: None,
        attempts: 0,
        error_code: None,
        error_message: None,
        scheduled_at: None,
        expires_at: None,
        sent_at: None,
        delivered_at: None,
        read_at: None,
        played_at: None,
        failed_at: None,
        created_at: now,
        updated_at: now,
    };
    let json = Message::from(&row).to_json();
    Item { row, event_id: EventId::fresh(now, chance), json, idempotency: draft.idempotency }
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Committed.
    Accepted,
    /// The session does not exist any more; nothing was written.
    NoSuchSession,
    /// The key was there before; nothing was written.
    KeyTaken,
}

/// Writes batches of accepted messages.
pub struct Writer {
    db: Db,
    committed: Box<dyn Fn() + Send + Sync>,
}

// Sorted locks (lanes first, then keys) keep concurrent batches of several nodes from deadlocking.
const ACCEPT: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) WITH ORDINALITY AS i (
        tenant_id, id, session_id, priority, chat_id, to_msisdn, from_msisdn, body, metadata, waha_message_id,
        created_at, event_id, json, key, fingerprint, position)
), lane AS (
    SELECT l.tenant_id, l.session_id FROM lanes l
    WHERE l.session_id IN (SELECT session_id FROM input) AND l.paused_because IS DISTINCT FROM 'session_deleted'
    ORDER BY l.session_id FOR UPDATE
), live AS MATERIALIZED (
    SELECT i.* FROM input i JOIN lane USING (tenant_id, session_id)
), kept AS (
    INSERT INTO idempotency_keys
        (tenant_id, operation, key, fingerprint, resource_id, status_code, response, created_at, expires_at)
    SELECT tenant_id, 'messages.create', key, fingerprint, id, 202, convert_to(json, 'UTF8'), created_at,
           created_at + interval '24 hours'
    FROM live WHERE key IS NOT NULL ORDER BY tenant_id, key
    ON CONFLICT DO NOTHING
    RETURNING resource_id
), accepted AS MATERIALIZED (
    SELECT * FROM live WHERE key IS NULL OR id IN (SELECT resource_id FROM kept)
), message AS (
    INSERT INTO messages (tenant_id, id, session_id, direction, status, priority, message_type, chat_id, to_msisdn,
                          from_msisdn, body, metadata, waha_message_id, created_at, updated_at)
    SELECT tenant_id, id, session_id, 'outbound', 'queued', priority, 'text', chat_id, to_msisdn, from_msisdn, body,
           metadata::jsonb, waha_message_id, created_at, created_at
    FROM accepted ORDER BY position
), transition AS (
    INSERT INTO message_transitions (tenant_id, message_id, status, at, cause)
    SELECT tenant_id, id, 'queued', created_at, 'accepted' FROM accepted ORDER BY position
), event AS (
    INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
    SELECT tenant_id, event_id, 'message.queued', created_at, session_id, id, json FROM accepted ORDER BY position
), turn AS (
    UPDATE lanes l SET
        queued = l.queued + a.messages,
        ready_at = CASE WHEN l.in_flight IS NULL AND l.paused_because IS NULL
                        THEN coalesce(l.ready_at, greatest(l.next_slot_at, a.at)) ELSE l.ready_at END,
        updated_at = a.at
    FROM (SELECT session_id, count(*)::int AS messages, max(created_at) AS at FROM accepted GROUP BY session_id) a
    WHERE l.session_id = a.session_id
)
SELECT i.id, CASE WHEN a.id IS NOT NULL THEN 0 WHEN l.id IS NULL THEN 1 ELSE 2 END::int2 AS answer
FROM input i LEFT JOIN accepted a USING (id) LEFT JOIN live l USING (id)
ORDER BY i.position";

#[derive(QueryableByName)]
struct Outcome {
    #[diesel(sql_type = SmallInt)]
    answer: i16,
}

impl BatchWriter for Writer {
    type Item = Item;
    type Answer = Answer;

    async fn write(&self, items: &[Item]) -> Result<Vec<Answer>, DbError> {
        fn column<'a, T>(items: &'a [Item], of: impl Fn(&'a Item) -> T) -> Vec<T> {
            items.iter().map(of).collect()
        }
        let outcomes: Vec<Outcome> = self
            .db
            .system(async |conn| {
                Ok::<_, DbError>(
                    sql(ACCEPT)
                        .bind::<Array<SqlUuid>, _>(column(items, |item| item.row.tenant_id))
                        .bind::<Array<SqlUuid>, _>(column(items, |item| item.row.id))
                        .bind::<Array<SqlUuid>, _>(column(items, |item| item.row.session_id))
                        .bind::<Array<SmallInt>, _>(column(items, |item| item.row.priority))
                        .bind::<Array<Text>, _>(column(items, |item| item.row.chat_id.as_str()))
                        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.to_msisdn.as_deref()))
                        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.from_msisdn.as_deref()))
                        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.body.as_deref()))
                        .bind::<Array<Text>, _>(column(items, |item| item.row.metadata.to_string()))
                        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.waha_message_id.as_deref()))
                        .bind::<Array<Timestamptz>, _>(column(items, |item| item.row.created_at))
                        .bind::<Array<SqlUuid>, _>(column(items, |item| item.event_id))
                        .bind::<Array<Text>, _>(column(items, |item| item.json.as_str()))
                        .bind::<Array<Nullable<Text>>, _>(column(items, |item| {
                            item.idempotency.as_ref().map(|used| used.key.as_str())
                        }))
                        .bind::<Array<Nullable<Bytea>>, _>(column(items, |item| {
                            item.idempotency.as_ref().map(|used| used.fingerprint.as_slice())
                        }))
                        .prepared()
                        .load(&mut **conn)
                        .await?,
                )
            })
            .await?;
        (self.committed)();
        Ok(outcomes
            .iter()
            .map(|outcome| match outcome.answer {
                0 => Answer::Accepted,
                1 => Answer::NoSuchSession,
                _ => Answer::KeyTaken,
            })
            .collect())
    }

    fn conflict(&self, earlier: &Item, later: &Item) -> bool {
        match (&earlier.idempotency, &later.idempotency) {
            (Some(one), Some(two)) => earlier.row.tenant_id == later.row.tenant_id && one.key == two.key,
            _ => false,
        }
    }

    fn conflict_key(&self, item: &Item) -> Option<u64> {
        let used = item.idempotency.as_ref()?;
        let mut hasher = DefaultHasher::new();
        (item.row.tenant_id, &used.key).hash(&mut hasher);
        Some(hasher.finish())
    }
}
