//! Writing what was accepted: one statement for whatever is waiting.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bytea, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::db::group_commit::BatchWriter;
use crate::db::{Db, DbError, Prepare, sql};
use crate::domain::ids::{EventId, MessageId, TenantId};
use crate::messages::accept::KeyUse;
use crate::messages::row::MessageRow;

/// A message on its way into the database.
pub(super) struct Entry {
    pub row: MessageRow,
    pub event_id: EventId,
    pub json: Arc<str>,
}

/// A request on its way into the database: all of its messages are written in one transaction.
pub(super) struct Item {
    pub tenant: TenantId,
    pub entries: Vec<Entry>,
    pub idempotency: Option<KeyUse>,
    /// What is kept as the key's resource: the message, or the batch.
    pub resource: Uuid,
    pub answer: Answers,
    pub asked_at: DateTime<Utc>,
}

/// Makes the answer to a batch from what became of its messages.
pub(super) type Say = dyn Fn(&[Fate]) -> String + Send + Sync;

/// How a request is answered, once it is known what became of its messages.
#[derive(Clone)]
pub(super) enum Answers {
    /// As its one message. A request whose message is refused keeps no key.
    One,
    /// Message by message, whatever became of each.
    Each(Arc<Say>),
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Committed.
    Accepted,
    /// The session does not exist any more; nothing was written.
    NoSuchSession,
    /// The reference was there before, on this message; nothing was written.
    ReferenceTaken(Option<MessageId>),
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Committed, or refused message by message.
    Done(Vec<Fate>),
    /// The key was there before; nothing was written.
    KeyTaken,
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
                         $23) WITH ORDINALITY AS i (
        request, tenant_id, id, session_id, status, priority, message_type, chat_id, to_msisdn, from_msisdn, body, content,
        media_url, reply_to, metadata, waha_message_id, scheduled_at, expires_at, client_reference, pool_id, created_at,
        event_id, json, position)
), asked AS (
    SELECT * FROM unnest($24, $25, $26, $27, $28, $29, $30, $31) AS a (
        request, tenant_id, operation, key, fingerprint, resource_id, response, created_at)
), lane AS (
    SELECT l.tenant_id, l.session_id FROM lanes l
    WHERE l.session_id IN (SELECT session_id FROM input) AND l.paused_because IS DISTINCT FROM 'session_deleted'
    ORDER BY l.session_id FOR UPDATE
), live AS MATERIALIZED (
    SELECT i.* FROM input i JOIN lane USING (tenant_id, session_id)
), wanted AS MATERIALIZED (
    SELECT * FROM asked WHERE operation = 'messages.batch' OR request IN (SELECT request FROM live)
), kept AS (
    INSERT INTO idempotency_keys
        (tenant_id, operation, key, fingerprint, resource_id, status_code, response, created_at, expires_at)
    SELECT tenant_id, operation, key, fingerprint, resource_id, 202, convert_to(response, 'UTF8'), created_at,
           created_at + interval '24 hours'
    FROM wanted ORDER BY tenant_id, operation, key
    ON CONFLICT DO NOTHING
    RETURNING resource_id
), repeated AS MATERIALIZED (
    SELECT request FROM wanted WHERE resource_id NOT IN (SELECT resource_id FROM kept)
), fresh AS MATERIALIZED (
    SELECT * FROM live WHERE request NOT IN (SELECT request FROM repeated)
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
SELECT i.request, i.position,
       CASE WHEN a.id IS NOT NULL THEN 0 WHEN l.id IS NULL AND r.request IS NULL THEN 1 WHEN f.id IS NULL THEN 2 ELSE 3 END::int2 AS answer
FROM input i LEFT JOIN accepted a USING (id) LEFT JOIN live l USING (id) LEFT JOIN fresh f USING (id)
    LEFT JOIN repeated r ON r.request = i.request
UNION ALL
SELECT request, 0, 2::int2 FROM repeated WHERE request NOT IN (SELECT request FROM input)
ORDER BY 2";

#[derive(QueryableByName)]
struct Outcome {
    #[diesel(sql_type = Integer)]
    request: i32,
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
                let mut answers: Vec<Answer> = items.iter().map(|_| Answer::Done(Vec::new())).collect();
                let mut refused = false;
                for outcome in insert(conn, items).await? {
                    let place = usize::try_from(outcome.request).unwrap_or(usize::MAX);
                    let Some(answer) = answers.get_mut(place) else { continue };
                    let fate = match outcome.answer {
                        0 => Fate::Accepted,
                        1 => Fate::NoSuchSession,
                        3 => Fate::ReferenceTaken(None),
                        _ => {
                            *answer = Answer::KeyTaken;
                            continue;
                        }
                    };
                    refused |= fate != Fate::Accepted;
                    if let Answer::Done(fates) = answer {
                        fates.push(fate);
                    }
                }
                if refused {
                    settle_refused(conn, items, &mut answers).await?;
                }
                Ok::<_, DbError>(answers)
            })
            .await?;
        (self.committed)();
        Ok(answers)
    }

    fn weight(&self, item: &Item) -> usize {
        item.entries.len().max(1)
    }

    fn conflict(&self, earlier: &Item, later: &Item) -> bool {
        match (&earlier.idempotency, &later.idempotency) {
            (Some(one), Some(two)) => {
                earlier.tenant == later.tenant && one.operation == two.operation && one.key == two.key
            }
            _ => false,
        }
    }

    fn conflict_key(&self, item: &Item) -> Option<u64> {
        let used = item.idempotency.as_ref()?;
        let mut hasher = DefaultHasher::new();
        (item.tenant, used.operation, &used.key).hash(&mut hasher);
        Some(hasher.finish())
    }
}

impl Item {
    /// The answer that is kept, if `fates` became of its messages.
    pub(super) fn answer(&self, fates: &[Fate]) -> String {
        match &self.answer {
            Answers::One => self.entries.as_slice().first().map(|entry| entry.json.to_string()).unwrap_or_default(),
            Answers::Each(say) => say(fates),
        }
    }
}

async fn insert(conn: &mut AsyncPgConnection, items: &[Item]) -> Result<Vec<Outcome>, DbError> {
    let entries: Vec<(i32, &Entry)> =
        (0..).zip(items).flat_map(|(place, item)| item.entries.iter().map(move |entry| (place, entry))).collect();
    let keyed: Vec<(i32, &Item, &KeyUse)> =
        (0..).zip(items).filter_map(|(place, item)| Some((place, item, item.idempotency.as_ref()?))).collect();
    fn column<'a, T>(entries: &[(i32, &'a Entry)], of: impl Fn(&'a MessageRow) -> T) -> Vec<T> {
        entries.iter().map(|(_, entry)| of(&entry.row)).collect()
    }
    fn key_column<'a, T>(keyed: &[(i32, &'a Item, &'a KeyUse)], of: impl Fn(&'a Item, &'a KeyUse) -> T) -> Vec<T> {
        keyed.iter().map(|(_, item, used)| of(item, used)).collect()
    }
    let all_accepted = |item: &Item| item.answer(&vec![Fate::Accepted; item.entries.len()]);
    let created = |item: &Item| item.asked_at;
    Ok(sql(ACCEPT)
        .bind::<Array<Integer>, _>(entries.iter().map(|(place, _)| *place).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(column(&entries, |row| row.tenant_id))
        .bind::<Array<SqlUuid>, _>(column(&entries, |row| row.id))
        .bind::<Array<SqlUuid>, _>(column(&entries, |row| row.session_id))
        .bind::<Array<Text>, _>(column(&entries, |row| row.status.as_str()))
        .bind::<Array<SmallInt>, _>(column(&entries, |row| row.priority))
        .bind::<Array<Text>, _>(column(&entries, |row| row.message_type.as_str()))
        .bind::<Array<Text>, _>(column(&entries, |row| row.chat_id.as_str()))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.to_msisdn.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.from_msisdn.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.body.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.content.as_ref().map(ToString::to_string)))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.media_url.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(&entries, |row| row.reply_to))
        .bind::<Array<Text>, _>(column(&entries, |row| row.metadata.to_string()))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.waha_message_id.as_deref()))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(&entries, |row| row.scheduled_at))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(&entries, |row| row.expires_at))
        .bind::<Array<Nullable<Text>>, _>(column(&entries, |row| row.client_reference.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(&entries, |row| row.pool_id))
        .bind::<Array<Timestamptz>, _>(column(&entries, |row| row.created_at))
        .bind::<Array<SqlUuid>, _>(entries.iter().map(|(_, entry)| entry.event_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(entries.iter().map(|(_, entry)| &*entry.json).collect::<Vec<_>>())
        .bind::<Array<Integer>, _>(keyed.iter().map(|(place, ..)| *place).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(key_column(&keyed, |item, _| item.tenant))
        .bind::<Array<Text>, _>(key_column(&keyed, |_, used| used.operation))
        .bind::<Array<Text>, _>(key_column(&keyed, |_, used| used.key.as_str()))
        .bind::<Array<Bytea>, _>(key_column(&keyed, |_, used| used.fingerprint.as_slice()))
        .bind::<Array<SqlUuid>, _>(key_column(&keyed, |item, _| item.resource))
        .bind::<Array<Text>, _>(key_column(&keyed, |item, _| all_accepted(item)))
        .bind::<Array<Timestamptz>, _>(key_column(&keyed, |item, _| created(item)))
        .prepared()
        .load(conn)
        .await?)
}

/// Says which message holds each taken reference, and mends what was kept under the keys of these requests: a refused message
/// keeps no key, and the answer to a batch tells of those that were refused.
async fn settle_refused(conn: &mut AsyncPgConnection, items: &[Item], answers: &mut [Answer]) -> Result<(), DbError> {
    let (mut tenants, mut references) = (Vec::new(), Vec::new());
    for (item, answer) in items.iter().zip(answers.iter()) {
        let Answer::Done(fates) = answer else { continue };
        for (entry, _) in item.entries.iter().zip(fates).filter(|(_, fate)| **fate == Fate::ReferenceTaken(None)) {
            tenants.push(item.tenant);
            references.push(entry.row.client_reference.as_deref().unwrap_or_default());
        }
    }
    // Of another transaction or of this one, within the same batch.
    let holders: Vec<Holder> =
        sql("SELECT m.tenant_id, m.client_reference, m.id FROM unnest($1, $2) AS i (tenant_id, client_reference) \
             JOIN messages m USING (tenant_id, client_reference)")
        .bind::<Array<SqlUuid>, _>(tenants)
        .bind::<Array<Text>, _>(references)
        .prepared()
        .load(conn)
        .await?;
    let holders: HashMap<(TenantId, &str), MessageId> =
        holders.iter().map(|held| ((held.tenant_id, held.client_reference.as_str()), held.id)).collect();
    let mut mended = Vec::new();
    for (item, answer) in items.iter().zip(answers) {
        let Answer::Done(fates) = answer else { continue };
        for (entry, fate) in item.entries.iter().zip(fates.iter_mut()) {
            if let (Fate::ReferenceTaken(by), Some(reference)) = (fate, entry.row.client_reference.as_deref()) {
                *by = holders.get(&(item.tenant, reference)).copied();
            }
        }
        // A request of one that found no session has kept nothing.
        let mends = match &item.answer {
            Answers::One => fates.iter().any(|fate| matches!(fate, Fate::ReferenceTaken(_))),
            Answers::Each(_) => fates.iter().any(|fate| *fate != Fate::Accepted),
        };
        if let Some(used) = item.idempotency.as_ref().filter(|_| mends) {
            let kept = matches!(item.answer, Answers::Each(_)).then(|| item.answer(fates));
            mended.push((item.tenant, used, kept));
        }
    }
    if mended.is_empty() {
        return Ok(());
    }
    sql("WITH input AS (SELECT * FROM unnest($1, $2, $3, $4) AS i (tenant_id, operation, key, response)), \
              gone AS (DELETE FROM idempotency_keys k USING input i WHERE (k.tenant_id, k.operation, k.key) = \
                           (i.tenant_id, i.operation, i.key) AND i.response IS NULL) \
         UPDATE idempotency_keys k SET response = convert_to(i.response, 'UTF8') FROM input i \
         WHERE (k.tenant_id, k.operation, k.key) = (i.tenant_id, i.operation, i.key) AND i.response IS NOT NULL")
    .bind::<Array<SqlUuid>, _>(mended.iter().map(|(tenant, ..)| *tenant).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(mended.iter().map(|(_, used, _)| used.operation).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(mended.iter().map(|(_, used, _)| used.key.as_str()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(mended.iter().map(|(.., kept)| kept.as_deref()).collect::<Vec<_>>())
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
