//! Accepting a message: the group commit behind `POST /v1/messages`.
//!
//! Guarantee: when [`Acceptor::accept`] answers, the message (which is the record of its first step), its lane's turn, its
//! event and its idempotency key are committed together, or none of them is. A repeat under the same key finds the first
//! answer, on whatever node it arrives. The batch is written in the system role with explicit tenant ids; the composite keys
//! make a session of another tenant impossible even there.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Bytea, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::db::group_commit::{GroupCommit, GroupCommitError};
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::content::{Content, Kind};
use crate::domain::ids::{EventId, MessageId, SenderPoolId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::domain::status::Status;
use crate::messages::row::MessageRow;
use crate::messages::view::{Message, Priority};
use crate::messages::writer::{Answer, Answers, Entry, Fate, Item, Say, Writer};
use crate::waha;

/// How long the first answer to an Idempotency-Key is kept.
pub const KEY_LIFETIME: TimeDelta = TimeDelta::hours(24);

/// Accepting one message, among the idempotency keys.
pub const CREATE: &str = "messages.create";
/// Accepting a batch, among the idempotency keys.
pub const BATCH: &str = "messages.batch";

/// Forwarding a message, among the idempotency keys.
pub const FORWARD: &str = "messages.forward";

/// A valid request to send a message, not yet accepted.
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
    /// What kind of message.
    pub kind: Kind,
    /// The text or caption.
    pub body: Option<String>,
    /// What it says beyond that.
    pub content: Content,
    /// Where its file is fetched from.
    pub media_url: Option<String>,
    /// The message it answers.
    pub reply_to: Option<MessageId>,
    /// How urgent.
    pub priority: Priority,
    /// Not to leave before; a time that has passed means at once.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Not to leave after.
    pub expires_at: Option<DateTime<Utc>>,
    /// The tenant's own id of the message.
    pub client_reference: Option<String>,
    /// The pool that the session was chosen from.
    pub pool: Option<SenderPoolId>,
    /// The tenant's own data.
    pub metadata: serde_json::Value,
    /// The request's Idempotency-Key and what it was used for.
    pub idempotency: Option<KeyUse>,
}

impl Draft {
    /// A text of normal priority, to be sent at once.
    #[must_use]
    pub fn text(tenant: TenantId, session: SessionId, chat: ChatId, body: impl Into<String>) -> Self {
        Self {
            tenant,
            session,
            honours_message_id: true,
            from: None,
            chat,
            kind: Kind::Text,
            body: Some(body.into()),
            content: Content::default(),
            media_url: None,
            reply_to: None,
            priority: Priority::Normal,
            scheduled_at: None,
            expires_at: None,
            client_reference: None,
            pool: None,
            metadata: serde_json::Value::Object(serde_json::Map::new()),
            idempotency: None,
        }
    }
}

// It holds text and numbers, which belong in no log.
impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("tenant", &self.tenant).field("session", &self.session).finish_non_exhaustive()
    }
}

/// An Idempotency-Key with the fingerprint of the request that carries it.
#[derive(Clone, Debug)]
pub struct KeyUse {
    /// What it was used for: [`CREATE`], [`BATCH`] or [`FORWARD`].
    pub operation: &'static str,
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

/// What the caller gets for a batch.
#[derive(Debug)]
pub struct AcceptedBatch {
    /// The answer as JSON, exactly as first given.
    pub json: Bytes,
    /// How many messages were accepted now.
    pub accepted: u64,
    /// Whether this is the first answer again.
    pub replayed: bool,
}

/// Why a message was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The session was deleted meanwhile.
    #[error("no such session")]
    NoSuchSession,
    /// The tenant has a message with this `client_reference` already: the one with this id.
    #[error("a message has this client_reference already")]
    ReferenceTaken(Option<MessageId>),
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
        let writer = Writer::new(db, committed);
        Self { commits: GroupCommit::start("accept", writer, Self::DEPTH, Self::MOST) }
    }

    /// Accepts `draft`.
    ///
    /// # Errors
    /// [`AcceptError`]; except where the database went away during the commit itself, nothing was written.
    pub async fn accept(&self, app: &App, draft: Draft) -> Result<Accepted, AcceptError> {
        let (tenant, now, idempotency) = (draft.tenant, app.clock.now(), draft.idempotency.clone());
        let entry = entry(draft, now, &app.chance);
        let (id, json) = (entry.row.id, Bytes::copy_from_slice(entry.json.as_bytes()));
        let (resource, answer, used) = (id.0, Answers::One, idempotency.clone());
        let item = Item { tenant, entries: vec![entry], idempotency, resource, answer, asked_at: now };
        match self.commits.write(item).await? {
            Answer::KeyTaken => self.first(app, tenant, used).await,
            Answer::Done(fates) => match fates.as_slice().first() {
                Some(Fate::Accepted) => Ok(Accepted { id, json, replayed: false }),
                Some(Fate::ReferenceTaken(by)) => Err(AcceptError::ReferenceTaken(*by)),
                Some(Fate::NoSuchSession) | None => Err(AcceptError::NoSuchSession),
            },
        }
    }

    /// Accepts `drafts`, in their order and in one transaction, each for itself. `say` makes the answer from what became of
    /// each, with the message as it was accepted.
    ///
    /// # Errors
    /// As [`Acceptor::accept`]; what concerns one message alone is told to `say`.
    pub async fn accept_batch(
        &self,
        app: &App,
        tenant: TenantId,
        drafts: Vec<Draft>,
        idempotency: Option<KeyUse>,
        say: impl Fn(&[(Fate, Arc<str>)]) -> String + Send + Sync + 'static,
    ) -> Result<AcceptedBatch, AcceptError> {
        let now = app.clock.now();
        let entries: Vec<Entry> = drafts.into_iter().map(|draft| entry(draft, now, &app.chance)).collect();
        let messages: Vec<Arc<str>> = entries.iter().map(|entry| Arc::clone(&entry.json)).collect();
        let say: Arc<Say> = Arc::new(move |fates: &[Fate]| {
            say(&fates.iter().copied().zip(messages.iter().map(Arc::clone)).collect::<Vec<_>>())
        });
        let (resource, used) = (app.chance.uuid(now), idempotency.clone());
        let answer = Answers::Each(Arc::clone(&say));
        let nothing_to_do = entries.is_empty() && idempotency.is_none();
        let item = Item { tenant, entries, idempotency, resource, answer, asked_at: now };
        let fates = if nothing_to_do {
            Vec::new()
        } else {
            match self.commits.write(item).await? {
                Answer::Done(fates) => fates,
                Answer::KeyTaken => {
                    let first = self.first(app, tenant, used).await?;
                    return Ok(AcceptedBatch { json: first.json, accepted: 0, replayed: true });
                }
            }
        };
        let accepted = fates.iter().filter(|fate| **fate == Fate::Accepted).count().try_into().unwrap_or(u64::MAX);
        Ok(AcceptedBatch { json: say(&fates).into(), accepted, replayed: false })
    }

    async fn first(&self, app: &App, tenant: TenantId, used: Option<KeyUse>) -> Result<Accepted, AcceptError> {
        let used = used.ok_or(AcceptError::KeyReused)?;
        let db = app.db.clone();
        let first = app.detached(async move { first_answer(&db, tenant, &used).await }).await??;
        // Taken a moment ago and gone now: it has just expired.
        first.ok_or_else(|| DbError::Contended("the key expired".to_owned()).into())
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
                    .bind::<Text, _>(used.operation)
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

fn entry(draft: Draft, now: DateTime<Utc>, chance: &Chance) -> Entry {
    let status = if draft.scheduled_at.is_some_and(|at| at > now) { Status::Scheduled } else { Status::Queued };
    let row = MessageRow {
        tenant_id: draft.tenant,
        id: MessageId::fresh(now, chance),
        session_id: draft.session,
        direction: "outbound".to_owned(),
        status: status.as_str().to_owned(),
        priority: draft.priority.order(),
        message_type: draft.kind.as_str().to_owned(),
        to_msisdn: draft.chat.phone(),
        chat_id: draft.chat.as_str().to_owned(),
        from_msisdn: draft.from,
        body: draft.body,
        media_url: draft.media_url,
        reply_to: draft.reply_to,
        metadata: draft.metadata,
        // Fixed before the first attempt and stored, so that every attempt carries the same one.
        waha_message_id: draft.honours_message_id.then(|| waha::new_message_id(chance)),
        ack: None,
        attempts: 0,
        error_code: None,
        error_message: None,
        scheduled_at: draft.scheduled_at,
        expires_at: draft.expires_at,
        sent_at: None,
        delivered_at: None,
        read_at: None,
        played_at: None,
        failed_at: None,
        created_at: now,
        updated_at: now,
        // Names, numbers and texts always serialise.
        content: (!draft.content.is_empty()).then(|| serde_json::to_value(&draft.content).unwrap_or_default()),
        client_reference: draft.client_reference,
        pool_id: draft.pool,
        edited_at: None,
        revoked_at: None,
        source: None,
        occurred_at: None,
        sender_id: None,
        sender_name: None,
        backfilled: false,
        delivery_inferred: false,
        edits: 0,
        quoted_waha_id: None,
    };
    let json = Message::from(&row).to_json().into();
    Entry { row, event_id: EventId::fresh(now, chance), json }
}
