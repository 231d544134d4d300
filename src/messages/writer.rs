//! Writing what was accepted: one statement for whatever is waiting.

use std::hash::{DefaultHasher, Hash, Hasher};

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bytea, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{EventId, MessageId, TenantId};
use crate::messages::accept::KeyUse;
use crate::messages::row::MessageRow;

/// A message on its way into the database.
pub(super) struct Item {
    pub row: MessageRow,
    pub event_id: EventId,
    pub json: String,
    pub idempotency: Option<KeyUse>,
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Committed.
    Accepted,
    /// The session does not exist any more; nothing was written.
    NoSuchSession,
    /// The key was there before; nothing was written.
    KeyTaken,
    /// The reference was there before, on this message; nothing was written.
    ReferenceTaken(Option<MessageId>),
}

/// Writes batches of accepted messages.
pub(super) struct Writer {
    db: Db,
    committed: Box<dyn Fn() + Send + Sync>,
}

impl Writer {
    /// Writes to `db`, and calls `committed` after each commit.
    pub(super) fn new(db: Db, committed: impl Fn() + Send + Sync + 'static) -> Self {
        Self { db, committed: Box::new(committed) }
    }
}

// Sorted locks (lanes first, then keys) keep concurrent batches of several nodes from deadlocking; two that bring the same
// references in another order are told apart by the database, and the loser is written again.
//
// The first step of a message is not written down: its row says when it was accepted, and whether it was scheduled. A
// scheduled message takes no turn and tells of nothing yet. One of high priority makes the dispatcher look at its lane now,
// whatever the others there are waiting for (a window, a cap).
const ACCEPT: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
                         $23, $24) WITH ORDINALITY AS i (
        tenant_id, id, session_id, status, priority, message_type, chat_id, to_msisdn, from_msisdn, body, content, media_url,
        reply_to, metadata, waha_message_id, scheduled_at, expires_at, client_reference, pool_id, created_at, event_id, json,
        key, fingerprint, position)
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
), fresh AS MATERIALIZED (
    SELECT * FROM live WHERE key IS NULL OR id IN (SELECT resource_id FROM kept)
), message AS (
    INSERT INTO messages (tenant_id, id, session_id, direction, status, priority, message_type, chat_id, to_msisdn,
                          from_msisdn, body, content, media_url, reply_to, metadata, waha_message_id, scheduled_at,
                          expires_at, client_reference, pool_id, created_at, updated_at)
    SELECT tenant_id, id, session_id, 'outbound', status, priority, message_type, chat_id, to_msisdn, from_msisdn, body,
           content::jsonb, media_url, reply_to, metadata::jsonb, waha_message_id, scheduled_at, expires_at,
           client_reference, pool_id, created_at, created_at
    FROM fresh ORDER BY position
    ON CONFLICT (tenant_id, client_reference) WHERE client_reference IS NOT NULL DO NOTHING
    RETURNING id
), accepted AS MATERIALIZED (
    SELECT f.* FROM fresh f JOIN message USING (id)
), event AS (
    INSERT INTO events (tenant_id, id, type, at, session_id, message_id, data)
    SELECT tenant_id, event_id, 'message.queued', created_at, session_id, id, json
    FROM accepted WHERE status = 'queued' ORDER BY position
), turn AS (
    UPDATE lanes l SET
        queued = l.queued + a.messages,
        ready_at = CASE WHEN l.in_flight IS NOT NULL OR l.paused_because IS NOT NULL THEN l.ready_at
                        WHEN a.urgent THEN least(l.ready_at, greatest(l.next_slot_at, a.at))
                        ELSE coalesce(l.ready_at, greatest(l.next_slot_at, a.at)) END,
        updated_at = a.at
    FROM (SELECT session_id, count(*)::int AS messages, max(created_at) AS at, min(priority) = 0 AS urgent
          FROM accepted WHERE status = 'queued' GROUP BY session_id) a
    WHERE l.session_id = a.session_id
)
SELECT CASE WHEN a.id IS NOT NULL THEN 0 WHEN l.id IS NULL THEN 1 WHEN f.id IS NULL THEN 2 ELSE 3 END::int2 AS answer
FROM input i LEFT JOIN accepted a USING (id) LEFT JOIN live l USING (id) LEFT JOIN fresh f USING (id)
ORDER BY i.position";

#[derive(QueryableByName)]
struct Outcome {
    #[diesel(sql_type = SmallInt)]
    answer: i16,
}

#[derive(QueryableByName)]
struct Holder {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = Text)]
    client_reference: String,
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
}

impl BatchWriter for Writer {
    type Item = Item;
    type Answer = Answer;

    async fn write(&self, items: &[Item]) -> Result<Vec<Answer>, DbError> {
        let answers = self
            .db
            .system(async |conn| {
                let outcomes = insert(conn, items).await?;
                let mut answers: Vec<Answer> = outcomes
                    .iter()
                    .map(|outcome| match outcome.answer {
                        0 => Answer::Accepted,
                        1 => Answer::NoSuchSession,
                        2 => Answer::KeyTaken,
                        _ => Answer::ReferenceTaken(None),
                    })
                    .collect();
                if answers.contains(&Answer::ReferenceTaken(None)) {
                    settle_taken(conn, items, &mut answers).await?;
                }
                Ok::<_, DbError>(answers)
            })
            .await?;
        (self.committed)();
        Ok(answers)
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

fn column<'a, T>(items: &'a [Item], of: impl Fn(&'a Item) -> T) -> Vec<T> {
    items.iter().map(of).collect()
}

async fn insert(conn: &mut AsyncPgConnection, items: &[Item]) -> Result<Vec<Outcome>, DbError> {
    Ok(sql(ACCEPT)
        .bind::<Array<SqlUuid>, _>(column(items, |item| item.row.tenant_id))
        .bind::<Array<SqlUuid>, _>(column(items, |item| item.row.id))
        .bind::<Array<SqlUuid>, _>(column(items, |item| item.row.session_id))
        .bind::<Array<Text>, _>(column(items, |item| item.row.status.as_str()))
        .bind::<Array<SmallInt>, _>(column(items, |item| item.row.priority))
        .bind::<Array<Text>, _>(column(items, |item| item.row.message_type.as_str()))
        .bind::<Array<Text>, _>(column(items, |item| item.row.chat_id.as_str()))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.to_msisdn.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.from_msisdn.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.body.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.content.as_ref().map(ToString::to_string)))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.media_url.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(items, |item| item.row.reply_to))
        .bind::<Array<Text>, _>(column(items, |item| item.row.metadata.to_string()))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.waha_message_id.as_deref()))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(items, |item| item.row.scheduled_at))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(items, |item| item.row.expires_at))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.row.client_reference.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(items, |item| item.row.pool_id))
        .bind::<Array<Timestamptz>, _>(column(items, |item| item.row.created_at))
        .bind::<Array<SqlUuid>, _>(column(items, |item| item.event_id))
        .bind::<Array<Text>, _>(column(items, |item| item.json.as_str()))
        .bind::<Array<Nullable<Text>>, _>(column(items, |item| item.idempotency.as_ref().map(|used| used.key.as_str())))
        .bind::<Array<Nullable<Bytea>>, _>(column(items, |item| {
            item.idempotency.as_ref().map(|used| used.fingerprint.as_slice())
        }))
        .prepared()
        .load(conn)
        .await?)
}

/// Says which message holds each taken reference, and lets go of the keys of those that were refused for it: a refused
/// request keeps none.
async fn settle_taken(conn: &mut AsyncPgConnection, items: &[Item], answers: &mut [Answer]) -> Result<(), DbError> {
    let taken = || items.iter().zip(answers.iter()).filter(|(_, answer)| **answer == Answer::ReferenceTaken(None));
    let tenants: Vec<_> = taken().map(|(item, _)| item.row.tenant_id).collect();
    let references: Vec<_> =
        taken().map(|(item, _)| item.row.client_reference.as_deref().unwrap_or_default()).collect();
    let holders: Vec<Holder> =
        sql("SELECT m.tenant_id, m.client_reference, m.id FROM unnest($1, $2) AS i (tenant_id, client_reference) \
         JOIN messages m USING (tenant_id, client_reference)")
        .bind::<Array<SqlUuid>, _>(tenants)
        .bind::<Array<Text>, _>(references)
        .prepared()
        .load(conn)
        .await?;
    let keyed: Vec<_> =
        taken().filter_map(|(item, _)| Some((item.row.tenant_id, item.idempotency.as_ref()?.key.as_str()))).collect();
    if !keyed.is_empty() {
        sql("DELETE FROM idempotency_keys k USING unnest($1, $2) AS i (tenant_id, key) \
             WHERE k.tenant_id = i.tenant_id AND k.operation = 'messages.create' AND k.key = i.key")
        .bind::<Array<SqlUuid>, _>(keyed.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keyed.iter().map(|(_, key)| *key).collect::<Vec<_>>())
        .prepared()
        .execute(conn)
        .await?;
    }
    for (item, answer) in items.iter().zip(answers) {
        if *answer == Answer::ReferenceTaken(None) {
            let reference = item.row.client_reference.as_deref();
            let holder = holders.iter().find(|holder| {
                holder.tenant_id == item.row.tenant_id && Some(holder.client_reference.as_str()) == reference
            });
            *answer = Answer::ReferenceTaken(holder.map(|holder| holder.id));
        }
    }
    Ok(())
}
