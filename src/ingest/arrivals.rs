//! Messages that WhatsApp tells of, from outside or written on the phone: one row per (session, bare WhatsApp id), whatever
//! repeats.
//!
//! A message that could not be decrypted is kept as a stub and told of when its content comes. One that is told under a hidden id
//! and under a number ends under the number, in either order.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::ingest::vcard;
use crate::media;
use crate::messages::row::{MessageRow, message_columns};
use crate::waha::{Beyond, WahaMessage};

/// A message that WhatsApp tells of.
#[derive(Debug)]
pub struct Arrival {
    /// Whose session.
    pub tenant: TenantId,
    /// The session it went through.
    pub session: SessionId,
    /// The session's own number.
    pub own_phone: Option<String>,
    /// When WAHA told of it.
    pub at: DateTime<Utc>,
    /// The message.
    pub message: WahaMessage,
    /// Whether it was found by reading back.
    pub backfilled: bool,
}

/// Both ids of a person, the number's first where it is known.
struct Ids<'a> {
    id: &'a str,
    other: Option<&'a str>,
}

impl<'a> Ids<'a> {
    fn of(told: &'a str, other: Option<&'a str>) -> Self {
        match other.filter(|other| *other != told) {
            Some(number) if told.ends_with("@lid") && number.ends_with("@c.us") => {
                Self { id: number, other: Some(told) }
            }
            other => Self { id: told, other },
        }
    }

    fn phone(&self) -> Option<String> {
        ChatId::parse(self.id).ok()?.phone()
    }
}

impl Arrival {
    fn kind(&self) -> &'static str {
        let mime = self.message.media.as_ref().and_then(|media| media.mime_type.as_deref()).unwrap_or_default();
        match (&self.message.beyond, mime.split('/').next()) {
            (Beyond::Place { .. }, _) => "location",
            (Beyond::Cards(_), _) => "contact",
            (Beyond::Poll { .. }, _) => "poll",
            _ if !self.message.has_media && self.message.body.is_none() => "unknown",
            _ if !self.message.has_media => "text",
            (_, Some("image")) => "image",
            (_, Some("video")) => "video",
            (_, Some("audio")) => "voice",
            _ => "document",
        }
    }

    fn is_group(&self) -> bool {
        self.message.chat_id.ends_with("@g.us")
    }

    /// The chat; in a group the alternative id is its writer's.
    fn chat(&self) -> Ids<'_> {
        let other = self.message.alternative_id.as_deref().filter(|_| !self.is_group());
        Ids::of(&self.message.chat_id, other)
    }

    fn sender(&self) -> Option<Ids<'_>> {
        let sender = self.message.sender.as_deref().filter(|_| !self.message.from_me)?;
        Some(Ids::of(sender, self.message.alternative_id.as_deref()))
    }

    /// The other side's id that [`Arrival::sender`] is not told under: the writer's, or of an own message the chat's.
    fn other_id(&self) -> Option<&str> {
        if self.message.from_me { self.chat().other } else { self.sender().and_then(|sender| sender.other) }
    }

    fn direction(&self) -> &'static str {
        if self.message.from_me { "outbound" } else { "inbound" }
    }

    fn to(&self) -> Option<String> {
        if self.message.from_me { self.chat().phone() } else { self.own_phone.clone() }
    }

    fn from(&self) -> Option<String> {
        if self.message.from_me { self.own_phone.clone() } else { self.sender().and_then(|sender| sender.phone()) }
    }

    fn body(&self) -> Option<String> {
        let body = self.message.body.as_deref().or(match &self.message.beyond {
            Beyond::Poll { question, .. } => Some(question),
            _ => None,
        });
        body.map(|body| body.replace('\0', ""))
    }

    fn content(&self) -> Option<String> {
        let content = match &self.message.beyond {
            Beyond::Place { latitude, longitude, name } => {
                json!({"location": {"latitude": latitude, "longitude": longitude, "name": name}})
            }
            Beyond::Cards(cards) => json!({"contacts": cards.iter().map(|card| vcard::read(card)).collect::<Vec<_>>()}),
            Beyond::Poll { question, options, multiple } => {
                json!({"poll": {"question": question, "options": options, "multiple": multiple}})
            }
            Beyond::Nothing => json!({"media": media::arrivals::pending(&self.message)?}),
        };
        Some(storable(&content))
    }

    /// When it was written.
    pub fn moment(&self) -> DateTime<Utc> {
        self.message.timestamp.unwrap_or(self.at)
    }

    fn key(&self) -> (SessionId, &str) {
        (self.session, &self.message.bare_id)
    }

    /// Whether it says more than `other`, which has the same id.
    fn supersedes(&self, other: &Self) -> bool {
        let worth =
            |arrival: &Self| (!arrival.message.is_stub(), !arrival.chat().id.ends_with("@lid"), !arrival.backfilled);
        worth(self) > worth(other)
    }
}

/// `json` as text that Postgres takes: it keeps no NUL.
fn storable(json: &Value) -> String {
    fn without_nul(json: &Value) -> Value {
        match json {
            Value::String(text) => Value::String(text.replace('\0', "")),
            Value::Array(items) => items.iter().map(without_nul).collect(),
            Value::Object(members) => members
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.replace('\0', ""), without_nul(value)))
                .collect(),
            scalar => scalar.clone(),
        }
    }
    let text = json.to_string();
    // The escape may also be the end of an escaped backslash and plain text, so the text itself cannot be cut.
    if text.contains("\\u0000") || text.contains(":null") { without_nul(json).to_string() } else { text }
}

/// What became of the messages of a batch.
#[derive(Default)]
pub struct Stored {
    /// Rows that are new to the tenant, in their order: new ones with content, and stubs whose content came.
    pub fresh: Vec<MessageRow>,
    /// Those that could not be decrypted yet.
    pub stubs: usize,
    /// How many of the rows were found by reading back.
    pub backfilled: usize,
    /// Messages that were stored before and read back with another text: session, id, text.
    pub changed: Vec<ReadBackText>,
}

/// A message whose text was read back and is another than the one that is stored.
#[derive(QueryableByName)]
pub struct ReadBackText {
    /// Whose.
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// The session.
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    /// The bare WhatsApp id.
    #[diesel(sql_type = Text)]
    pub waha_message_id: String,
    /// The text it has now.
    #[diesel(sql_type = Text)]
    pub body: String,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(embed)]
    message: MessageRow,
    #[diesel(sql_type = Bool)]
    is_stub: bool,
}

#[derive(QueryableByName)]
struct Amended {
    #[diesel(embed)]
    message: MessageRow,
    /// Was a stub, and is none any more.
    #[diesel(sql_type = Bool)]
    completed: bool,
}

macro_rules! input {
    () => {
        "unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) WITH ORDINALITY AS i (\
            tenant_id, id, session_id, direction, kind, chat_id, to_msisdn, from_msisdn, body, content, raw, waha_message_id, ack, \
            occurred_at, sender_id, sender_alternative_id, sender_name, quoted_waha_id, backfilled, is_stub, position)"
    };
}

/// Binds the columns of [`input`] and, last, the moment.
macro_rules! bind {
    ($text:expr, $arrivals:expr, $ids:expr, $now:expr) => {{
        fn column<'a, T>(arrivals: &'a [&'a Arrival], of: impl Fn(&'a Arrival) -> T) -> Vec<T> {
            arrivals.iter().map(|arrival| of(arrival)).collect()
        }
        let arrivals: &[&Arrival] = $arrivals;
        sql($text)
            .bind::<Array<SqlUuid>, _>(column(arrivals, |arrival| arrival.tenant))
            .bind::<Array<SqlUuid>, _>($ids)
            .bind::<Array<SqlUuid>, _>(column(arrivals, |arrival| arrival.session))
            .bind::<Array<Text>, _>(column(arrivals, Arrival::direction))
            .bind::<Array<Text>, _>(column(arrivals, Arrival::kind))
            .bind::<Array<Text>, _>(column(arrivals, |arrival| arrival.chat().id))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, Arrival::to))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, Arrival::from))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, Arrival::body))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, Arrival::content))
            .bind::<Array<Text>, _>(column(arrivals, |arrival| storable(&arrival.message.raw)))
            .bind::<Array<Text>, _>(column(arrivals, |arrival| arrival.message.bare_id.as_str()))
            .bind::<Array<Nullable<SmallInt>>, _>(column(arrivals, |arrival| arrival.message.ack))
            .bind::<Array<Timestamptz>, _>(column(arrivals, Arrival::moment))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, |arrival| arrival.sender().map(|sender| sender.id)))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, Arrival::other_id))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, |arrival| {
                let name = arrival.message.push_name.as_deref().filter(|_| !arrival.message.from_me);
                name.map(|name| name.replace('\0', ""))
            }))
            .bind::<Array<Nullable<Text>>, _>(column(arrivals, |arrival| arrival.message.reply_to.as_deref()))
            .bind::<Array<Bool>, _>(column(arrivals, |arrival| arrival.backfilled))
            .bind::<Array<Bool>, _>(column(arrivals, |arrival| arrival.message.is_stub()))
            .bind::<Timestamptz, _>($now)
    }};
}

// An own message whose id is not known may be the echo of one that is being handed over, where the engine chooses the id, or
// of one of which nobody knows whether it went.
const INSERT: &str = concat!(
    "\
WITH m AS (
    INSERT INTO messages AS m (tenant_id, id, session_id, direction, status, message_type, chat_id, to_msisdn, from_msisdn,
                               body, content, raw_payload, waha_message_id, ack, sent_at, occurred_at, sender_id,
                               sender_alternative_id, sender_name, quoted_waha_id, backfilled, is_stub, source, created_at, updated_at)
    SELECT tenant_id, id, session_id, direction, CASE direction WHEN 'inbound' THEN 'received' ELSE 'sent' END, kind, chat_id,
           to_msisdn, from_msisdn, body, content::jsonb, raw::jsonb, waha_message_id,
           CASE direction WHEN 'inbound' THEN ack ELSE 1 END, occurred_at, occurred_at, sender_id,
           sender_alternative_id, sender_name, quoted_waha_id, backfilled, is_stub,
           CASE direction WHEN 'outbound' THEN 'app' END, $21, $21
    FROM ",
    input!(),
    "
    WHERE direction = 'inbound' OR NOT EXISTS (
        SELECT FROM messages o
        WHERE o.session_id = i.session_id AND o.chat_id = i.chat_id AND o.direction = 'outbound' AND o.waha_message_id IS NULL
          AND o.attempts > 0 AND o.source IS NULL AND o.status IN ('queued', 'sending', 'failed')
          AND o.body IS NOT DISTINCT FROM i.body AND o.created_at > $21 - interval '1 day' OFFSET 0)
    ORDER BY session_id, waha_message_id
    ON CONFLICT (session_id, waha_message_id) WHERE waha_message_id IS NOT NULL DO NOTHING
    RETURNING m.*
)
SELECT ",
    message_columns!(),
    ", m.is_stub FROM m ORDER BY m.seq"
);

const AMEND: &str = concat!(
    "\
WITH input AS (
    SELECT * FROM ",
    input!(),
    "
), old AS (
    SELECT m.tenant_id, m.id, m.is_stub, i.position
    FROM messages m JOIN input i ON i.session_id = m.session_id AND i.waha_message_id = m.waha_message_id AND i.direction = m.direction
    WHERE (m.direction = 'inbound' OR m.source = 'app') AND m.erased_at IS NULL
      AND ((m.is_stub AND NOT i.is_stub) OR (m.chat_id LIKE '%@lid' AND i.chat_id LIKE '%@c.us')
           OR (m.sender_id LIKE '%@lid' AND i.sender_id LIKE '%@c.us'))
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
)
UPDATE messages m SET
    chat_id = CASE WHEN m.chat_id LIKE '%@lid' THEN i.chat_id ELSE m.chat_id END,
    sender_id = CASE WHEN i.sender_id LIKE '%@c.us' OR m.sender_id IS NULL THEN i.sender_id ELSE m.sender_id END,
    sender_alternative_id = CASE WHEN m.sender_id LIKE '%@lid' AND i.sender_id LIKE '%@c.us' THEN m.sender_id
                                 ELSE coalesce(m.sender_alternative_id, i.sender_alternative_id) END,
    to_msisdn = coalesce(m.to_msisdn, i.to_msisdn),
    from_msisdn = coalesce(m.from_msisdn, i.from_msisdn),
    sender_name = coalesce(m.sender_name, i.sender_name),
    message_type = CASE WHEN o.is_stub THEN i.kind ELSE m.message_type END,
    body = CASE WHEN o.is_stub THEN i.body ELSE m.body END,
    content = CASE WHEN o.is_stub THEN i.content::jsonb ELSE m.content END,
    raw_payload = CASE WHEN o.is_stub THEN i.raw::jsonb ELSE m.raw_payload END,
    ack = CASE WHEN o.is_stub THEN i.ack ELSE m.ack END,
    quoted_waha_id = CASE WHEN o.is_stub THEN i.quoted_waha_id ELSE m.quoted_waha_id END,
    backfilled = CASE WHEN o.is_stub THEN i.backfilled ELSE m.backfilled END,
    is_stub = m.is_stub AND i.is_stub,
    updated_at = $21
FROM old o JOIN input i USING (position)
WHERE m.tenant_id = o.tenant_id AND m.id = o.id
RETURNING ",
    message_columns!(),
    ", o.is_stub AND NOT m.is_stub AS completed"
);

const CHANGED: &str = "\
SELECT m.tenant_id, m.session_id, m.waha_message_id, i.body
FROM unnest($1, $2, $3) AS i (session_id, waha_message_id, body)
JOIN messages m ON m.session_id = i.session_id AND m.waha_message_id = i.waha_message_id
WHERE m.body <> i.body AND NOT m.is_stub AND m.erased_at IS NULL AND m.message_type IN ('text', 'image', 'video', 'document')
  AND m.original_body IS DISTINCT FROM i.body
  AND NOT EXISTS (SELECT FROM message_edits e WHERE e.session_id = m.session_id AND e.waha_message_id = m.waha_message_id AND e.body = i.body OFFSET 0)";

/// Stores what is new among `arrivals`.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn store(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    arrivals: &[Arrival],
) -> Result<Stored, DbError> {
    let mut best: HashMap<(SessionId, &str), usize> = HashMap::with_capacity(arrivals.len());
    let mut chosen: Vec<&Arrival> = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        match best.entry(arrival.key()) {
            Entry::Vacant(entry) => {
                entry.insert(chosen.len());
                chosen.push(arrival);
            }
            Entry::Occupied(entry) => {
                if let Some(known) = chosen.get_mut(*entry.get())
                    && arrival.supersedes(known)
                {
                    *known = arrival;
                }
            }
        }
    }
    if chosen.is_empty() {
        return Ok(Stored::default());
    }
    let fresh_ids = |count: usize| (0..count).map(|_| MessageId::fresh(now, chance)).collect::<Vec<_>>();
    let inserted: Vec<Row> = bind!(INSERT, &chosen, fresh_ids(chosen.len()), now).prepared().load(&mut *conn).await?;
    let mut stored = Stored::default();
    let (stubs, fresh): (Vec<Row>, Vec<Row>) = inserted.into_iter().partition(|row| row.is_stub);
    let new: HashSet<(SessionId, String)> = stubs
        .iter()
        .chain(&fresh)
        .filter_map(|row| Some((row.message.session_id, row.message.waha_message_id.clone()?)))
        .collect();
    stored.backfilled = stubs.iter().chain(&fresh).filter(|row| row.message.backfilled).count();
    stored.stubs = stubs.len();
    stored.fresh = fresh.into_iter().map(|row| row.message).collect();
    // The rest was there before: rare, but for repeats.
    if new.len() == chosen.len() {
        return Ok(stored);
    }
    let is_new = |arrival: &Arrival| new.contains(&(arrival.session, arrival.message.bare_id.clone()));
    let known: Vec<&Arrival> = chosen.into_iter().filter(|arrival| !is_new(arrival)).collect();
    if known.is_empty() {
        return Ok(stored);
    }
    let amended: Vec<Amended> = bind!(AMEND, &known, fresh_ids(known.len()), now).prepared().load(&mut *conn).await?;
    stored.fresh.extend(amended.into_iter().filter(|row| row.completed).map(|row| row.message));
    let (mut sessions, mut ids, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    for arrival in known.iter().filter(|arrival| arrival.backfilled && !arrival.message.revoked) {
        if let Some(body) = arrival.body() {
            sessions.push(arrival.session);
            ids.push(arrival.message.bare_id.as_str());
            bodies.push(body);
        }
    }
    if !sessions.is_empty() {
        stored.changed = sql(CHANGED)
            .bind::<Array<SqlUuid>, _>(sessions)
            .bind::<Array<Text>, _>(ids)
            .bind::<Array<Text>, _>(bodies)
            .prepared()
            .load(&mut *conn)
            .await?;
    }
    Ok(stored)
}

/// Notes that the sessions of `rows` are in use. Whoever holds a session changes it anyhow, and waiting for it out of order could
/// be a circle.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn note_activity(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    rows: &[MessageRow],
) -> Result<(), DbError> {
    if rows.is_empty() {
        return Ok(());
    }
    sql("UPDATE waha_sessions SET last_activity_at = $2 WHERE id IN ( \
             SELECT id FROM waha_sessions WHERE id = ANY($1) \
             AND (last_activity_at IS NULL OR last_activity_at < $2 - interval '1 minute') FOR NO KEY UPDATE SKIP LOCKED)")
    .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.session_id).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

// A chat may go by two ids, a number and a hidden one; either may be written to later. To the minute is enough.
const REMEMBER: &str = "\
INSERT INTO known_chats AS k (tenant_id, session_id, chat_id, first_outbound_at, first_inbound_at, last_inbound_at, created_at, updated_at)
SELECT tenant_id, session_id, chat_id, min(at) FILTER (WHERE own), min(at) FILTER (WHERE NOT own), max(at) FILTER (WHERE NOT own), $6, $6
FROM unnest($1, $2, $3, $4, $5) AS i (tenant_id, session_id, chat_id, at, own)
GROUP BY tenant_id, session_id, chat_id ORDER BY session_id, chat_id
ON CONFLICT (session_id, chat_id) DO UPDATE SET
    first_outbound_at = coalesce(k.first_outbound_at, excluded.first_outbound_at),
    first_inbound_at = coalesce(k.first_inbound_at, excluded.first_inbound_at),
    last_inbound_at = greatest(k.last_inbound_at, excluded.last_inbound_at),
    updated_at = excluded.updated_at
WHERE (k.first_inbound_at IS NULL AND excluded.first_inbound_at IS NOT NULL)
   OR (k.first_outbound_at IS NULL AND excluded.first_outbound_at IS NOT NULL)
   OR k.last_inbound_at < excluded.last_inbound_at - interval '1 minute'";

/// Remembers who wrote to whom. After everything that locks messages: others lock known chats last, too.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn remember(conn: &mut AsyncPgConnection, now: DateTime<Utc>, arrivals: &[Arrival]) -> Result<(), DbError> {
    let mut met: Vec<(&Arrival, &str)> = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        let chat = arrival.chat();
        met.push((arrival, chat.id));
        met.extend(chat.other.map(|other| (arrival, other)));
    }
    if met.is_empty() {
        return Ok(());
    }
    sql(REMEMBER)
        .bind::<Array<SqlUuid>, _>(met.iter().map(|(arrival, _)| arrival.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(met.iter().map(|(arrival, _)| arrival.session).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(met.iter().map(|(_, chat)| *chat).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(met.iter().map(|(arrival, _)| arrival.at).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(met.iter().map(|(arrival, _)| arrival.message.from_me).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}
