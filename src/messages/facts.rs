//! What WhatsApp tells of messages after they were written: edits, revocations, reactions and votes.
//!
//! Guarantee: each is kept under its message's WhatsApp id, whether the message is there or not, and what a message shows is
//! derived from all that is kept. So neither the order nor the repetition of what is told changes where it ends, and each change
//! has one event.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::contacts;
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::domain::person;
use crate::events::log::{self, NewEvent};
use crate::messages::reactions::{self, Reaction};
use crate::messages::row::{MessageRow, message_columns};
use crate::messages::view::Message;
use crate::messages::votes::{self, Vote};

/// An own edit that the API made and the one that WAHA tells of are the same within this time.
const ECHO: TimeDelta = TimeDelta::minutes(2);

/// Which message something is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Whose.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// The message's bare WhatsApp id.
    pub waha_message_id: String,
}

/// Another text of a message.
#[derive(Clone)]
pub struct Edit {
    /// Which message.
    pub target: Target,
    /// The edit's own id.
    pub edit_id: String,
    /// The text it has since.
    pub body: Option<String>,
    /// When it was made.
    pub at: DateTime<Utc>,
    /// When WAHA told of it.
    pub reported_at: DateTime<Utc>,
    /// Whether the session's own account made it.
    pub own: bool,
}

/// The id of an edit that was found by reading back, where WhatsApp's own is not told.
pub const READ_BACK: &str = "read_back:";
/// The id of an edit that was made through the API.
pub const BY_API: &str = "api:";

/// Everything of a batch.
#[derive(Default)]
pub struct Facts {
    /// Other texts.
    pub edits: Vec<Edit>,
    /// Messages that were taken back, and when that was told.
    pub revocations: Vec<(Target, DateTime<Utc>)>,
    /// Reactions.
    pub reactions: Vec<Reaction>,
    /// Votes.
    pub votes: Vec<Vote>,
}

impl Facts {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.revocations.is_empty() && self.reactions.is_empty() && self.votes.is_empty()
    }
}

/// Facts that were waiting for their messages.
#[derive(Default)]
pub struct Waiting {
    /// Messages with edits or revocations.
    pub changed: Vec<Target>,
    /// Messages with reactions.
    pub reacted: Vec<Target>,
}

/// Keeps `facts` and brings the messages that they are about up to date, together with those that were `waiting`.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn apply(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    facts: Facts,
    waiting: Waiting,
) -> Result<(), DbError> {
    let mut changed: HashSet<Target> = waiting.changed.into_iter().collect();
    keep_edits(conn, now, &facts.edits).await?;
    changed.extend(facts.edits.into_iter().map(|edit| edit.target));
    keep_revocations(conn, now, &facts.revocations).await?;
    changed.extend(facts.revocations.into_iter().map(|(target, _)| target));
    derive(conn, chance, now, changed.into_iter().collect()).await?;
    reactions::apply(conn, chance, now, facts.reactions, &waiting.reacted).await?;
    votes::apply(conn, chance, now, facts.votes).await
}

/// Locks the messages `targets` in the order that all keep, for a transaction that changes some of them more than once.
///
/// # Errors
/// When the database does not answer.
pub async fn lock(conn: &mut AsyncPgConnection, mut targets: Vec<(SessionId, &str)>) -> Result<(), DbError> {
    if targets.is_empty() {
        return Ok(());
    }
    targets.sort_unstable();
    targets.dedup();
    let (sessions, ids): (Vec<_>, Vec<_>) = targets.into_iter().unzip();
    sql("SELECT FROM messages m JOIN unnest($1, $2) AS i (session_id, waha_message_id) USING (session_id, waha_message_id) \
         ORDER BY m.tenant_id, m.id FOR UPDATE OF m")
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(ids)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// Session, id: the columns that name messages.
pub(super) fn names<'a>(targets: impl Iterator<Item = &'a Target> + Clone) -> (Vec<SessionId>, Vec<&'a str>) {
    (
        targets.clone().map(|target| target.session).collect(),
        targets.map(|target| target.waha_message_id.as_str()).collect(),
    )
}

// An own edit of what was sent through the API is told by the API's answer and by a webhook, in either order. What was read
// back gives way to what is told.
const KEEP_EDITS: &str = "\
WITH input AS (
    SELECT DISTINCT ON (session_id, waha_message_id, edit_id) *
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS i (tenant_id, session_id, waha_message_id, edit_id, body, at, reported_at, own)
    ORDER BY session_id, waha_message_id, edit_id
), superseded AS (
    DELETE FROM message_edits WHERE ctid = ANY(ARRAY(
        SELECT e.ctid FROM input i CROSS JOIN LATERAL (
            SELECT e.ctid FROM message_edits e WHERE e.session_id = i.session_id AND e.waha_message_id = i.waha_message_id
               AND e.body IS NOT DISTINCT FROM i.body AND e.edit_id LIKE 'read\\_back:%' OFFSET 0) e
        WHERE i.edit_id NOT LIKE 'read\\_back:%'))
)
INSERT INTO message_edits (tenant_id, session_id, waha_message_id, edit_id, body, edited_at, reported_at, created_at)
SELECT tenant_id, session_id, waha_message_id, edit_id, body, at, reported_at, $9
FROM input i
WHERE NOT (own AND EXISTS (
    SELECT FROM messages m WHERE m.session_id = i.session_id AND m.waha_message_id = i.waha_message_id AND m.source IS NULL
) AND EXISTS (
    SELECT FROM (
        SELECT e.body FROM message_edits e WHERE e.session_id = i.session_id AND e.waha_message_id = i.waha_message_id
          AND e.reported_at BETWEEN i.reported_at - $10 AND i.reported_at + $10
        ORDER BY e.edited_at DESC, e.reported_at DESC LIMIT 1
    ) latest WHERE latest.body IS NOT DISTINCT FROM i.body))
ON CONFLICT DO NOTHING";

async fn keep_edits(conn: &mut AsyncPgConnection, now: DateTime<Utc>, edits: &[Edit]) -> Result<(), DbError> {
    if edits.is_empty() {
        return Ok(());
    }
    let (sessions, ids) = names(edits.iter().map(|edit| &edit.target));
    sql(KEEP_EDITS)
        .bind::<Array<SqlUuid>, _>(edits.iter().map(|edit| edit.target.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(sessions)
        .bind::<Array<Text>, _>(ids)
        .bind::<Array<Text>, _>(edits.iter().map(|edit| edit.edit_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(
            edits.iter().map(|edit| edit.body.as_deref().map(|body| body.replace('\0', ""))).collect::<Vec<_>>(),
        )
        .bind::<Array<Timestamptz>, _>(edits.iter().map(|edit| edit.at).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(edits.iter().map(|edit| edit.reported_at).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(edits.iter().map(|edit| edit.own).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .bind::<diesel::sql_types::Interval, _>(ECHO)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}

async fn keep_revocations(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    revocations: &[(Target, DateTime<Utc>)],
) -> Result<(), DbError> {
    let mut earliest: BTreeMap<&Target, DateTime<Utc>> = BTreeMap::new();
    for (target, at) in revocations {
        earliest.entry(target).and_modify(|known| *known = (*known).min(*at)).or_insert(*at);
    }
    if earliest.is_empty() {
        return Ok(());
    }
    let (sessions, ids) = names(earliest.keys().copied());
    sql("INSERT INTO message_revocations AS r (tenant_id, session_id, waha_message_id, revoked_at, created_at) \
         SELECT t, s, i, at, $5 FROM unnest($1, $2, $3, $4) AS x (t, s, i, at) ORDER BY s, i \
         ON CONFLICT (session_id, waha_message_id) DO UPDATE SET revoked_at = excluded.revoked_at \
         WHERE excluded.revoked_at < r.revoked_at")
    .bind::<Array<SqlUuid>, _>(earliest.keys().map(|target| target.tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(ids)
    .bind::<Array<Timestamptz>, _>(earliest.values().copied().collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

const DERIVE: &str = concat!(
    "\
WITH target AS (
    SELECT * FROM unnest($1, $2) AS t (session_id, waha_message_id)
), old AS (
    SELECT m.tenant_id, m.id, m.session_id, m.waha_message_id, m.edits, m.revoked_at
    FROM messages m JOIN target USING (session_id, waha_message_id)
    WHERE NOT m.is_stub AND m.erased_at IS NULL
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
)
UPDATE messages m SET
    original_body = CASE WHEN e.count = 0 THEN m.original_body ELSE coalesce(m.original_body, m.body) END,
    body = CASE WHEN e.count = 0 THEN m.body ELSE e.body END,
    edits = CASE WHEN e.count = 0 THEN m.edits ELSE e.count END,
    edited_at = coalesce(e.edited_at, m.edited_at),
    revoked_at = least(m.revoked_at, r.revoked_at),
    updated_at = greatest(m.updated_at, $3)
FROM old o
CROSS JOIN LATERAL (
    SELECT count(*)::int AS count, max(e.edited_at) AS edited_at,
           (array_agg(e.body ORDER BY e.edited_at DESC, e.reported_at DESC, e.edit_id DESC))[1] AS body
    FROM message_edits e WHERE e.session_id = o.session_id AND e.waha_message_id = o.waha_message_id) e
LEFT JOIN LATERAL (
    SELECT * FROM message_revocations r
    WHERE r.session_id = o.session_id AND r.waha_message_id = o.waha_message_id OFFSET 0) r ON true
WHERE m.tenant_id = o.tenant_id AND m.id = o.id
  AND ((e.count > 0 AND (e.count <> o.edits OR e.body IS DISTINCT FROM m.body OR e.edited_at IS DISTINCT FROM m.edited_at))
       OR r.revoked_at < coalesce(o.revoked_at, 'infinity'))
RETURNING ",
    message_columns!(),
    ", e.count > o.edits AS edited, o.revoked_at IS NULL AND m.revoked_at IS NOT NULL AS revoked"
);

#[derive(QueryableByName)]
struct Derived {
    #[diesel(embed)]
    message: MessageRow,
    #[diesel(sql_type = Bool)]
    edited: bool,
    #[diesel(sql_type = Bool)]
    revoked: bool,
}

async fn derive(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    targets: Vec<Target>,
) -> Result<(), DbError> {
    if targets.is_empty() {
        return Ok(());
    }
    let (sessions, ids) = names(targets.iter());
    let derived: Vec<Derived> = sql(DERIVE)
        .bind::<Array<SqlUuid>, _>(sessions)
        .bind::<Array<Text>, _>(ids)
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    let mut events = Vec::new();
    for Derived { message, edited, revoked } in &derived {
        let kinds = [("message.edited", *edited), ("message.revoked", *revoked)];
        events.extend(kinds.into_iter().filter(|(_, happened)| *happened).map(|(kind, _)| NewEvent {
            tenant: message.tenant_id,
            id: EventId::fresh(now, chance),
            kind,
            at: now,
            session_id: Some(message.session_id),
            message_id: Some(message.id),
            data: Message::from(message).to_json(),
        }));
    }
    log::append(conn, &events).await
}

/// Each person of `people` by the key they are known by; the session's own account is the empty key.
pub(super) async fn keys_of(
    conn: &mut AsyncPgConnection,
    people: impl Iterator<Item = (TenantId, Option<&str>)>,
) -> Result<Vec<String>, DbError> {
    let keys: Vec<(TenantId, String)> = people
        .map(|(tenant, id)| (tenant, id.map(|id| person::key(id).unwrap_or_else(|| id.to_owned())).unwrap_or_default()))
        .collect();
    let wanted: Vec<_> = keys.iter().filter(|(_, key)| !key.is_empty()).cloned().collect();
    let known = contacts::canonical_keys(conn, &wanted).await?;
    Ok(keys.into_iter().map(|key| known.get(&key).cloned().unwrap_or(key.1)).collect())
}

/// Keeps an edit that was made through the API, and brings the message up to date.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn edit(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    target: Target,
    body: &str,
) -> Result<(), DbError> {
    lock(conn, vec![(target.session, &target.waha_message_id)]).await?;
    let edit = Edit {
        edit_id: format!("{BY_API}{}", chance.uuid(now)),
        target: target.clone(),
        body: Some(body.to_owned()),
        at: now,
        reported_at: now,
        own: true,
    };
    keep_edits(conn, now, &[edit]).await?;
    derive(conn, chance, now, vec![target]).await
}

/// The messages with these WhatsApp ids, as far as they are there.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn messages_of(
    conn: &mut AsyncPgConnection,
    sessions: Vec<SessionId>,
    ids: Vec<&str>,
) -> Result<HashMap<(SessionId, String), MessageRow>, DbError> {
    let rows: Vec<MessageRow> = sql(concat!(
        "SELECT ",
        message_columns!(),
        " FROM (SELECT DISTINCT * FROM unnest($1, $2) AS i (session_id, waha_message_id)) i CROSS JOIN LATERAL ( \
              SELECT * FROM messages m WHERE m.session_id = i.session_id AND m.waha_message_id = i.waha_message_id \
                 AND NOT m.is_stub AND m.erased_at IS NULL OFFSET 0) m"
    ))
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(ids)
    .prepared()
    .load(conn)
    .await?;
    let keyed = rows.into_iter().filter_map(|row| Some(((row.session_id, row.waha_message_id.clone()?), row)));
    Ok(keyed.collect())
}
