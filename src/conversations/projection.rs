//! From the event log to contacts and conversations.
//!
//! Guarantee: every message that came in, and every one that WhatsApp has of those that went out, is counted exactly once, in the one
//! conversation of its session with its person or group. It is a [`follower`](crate::events::follower) of the log: no event is passed
//! over, and what a batch changes and the move of the cursor past it share one transaction; so a batch that is taken again, after a
//! crash or an error, finds nothing of its first time. What is shown of a conversation depends on its messages alone, not on the order
//! of their events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::watch;

use super::count;
use super::write::{self, Row};
use crate::app::{App, EventBell};
use crate::contacts::{self, Because, Sighting};
use crate::db::{DbError, Prepare, SystemConn, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, ConversationId, MessageId, SessionId, TenantId};
use crate::domain::person;
use crate::events::follower::{Event, Follow, Follower, Step};

static FOLLOWER: Follower = Follower {
    cursor: "conversations",
    lag: "switchboard_conversations_lag_seconds",
    batch: 1000,
    rest: Duration::ZERO,
    bell: Some(EventBell::conversations),
    failed: "conversations could not be brought up to date",
};

struct Projection;

impl Follow for Projection {
    async fn step(&self, app: &App) -> Result<Step, DbError> {
        step(app).await
    }
}

/// Keeps contacts and conversations up to date until `stop` becomes true (or its sender is gone). Any number of nodes may run it.
pub async fn run(app: App, stop: watch::Receiver<bool>) {
    FOLLOWER.run(&app, &Projection, stop).await;
}

/// Takes one batch of events, if no other node is doing so.
///
/// # Errors
/// When the database does not answer; nothing has changed then.
pub async fn step(app: &App) -> Result<Step, DbError> {
    let (now, chance) = (app.clock.now(), &app.chance);
    let started = tokio::time::Instant::now();
    let (step, messages) = app.db.system(async |conn: &mut SystemConn| step_in(conn, chance, now).await).await?;
    FOLLOWER.tell_lag(step, now);
    if step.events > 0 {
        metrics::counter!("switchboard_conversation_messages_total")
            .increment(u64::try_from(messages).unwrap_or_default());
        metrics::histogram!("switchboard_conversations_seconds").record(started.elapsed().as_secs_f64());
    }
    Ok(step)
}

/// Takes one batch in the caller's transaction; answers also how many messages were counted because of it.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn step_in(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
) -> Result<(Step, usize), DbError> {
    let (batch, step) = FOLLOWER.take(conn, now).await?;
    let messages = messages(conn, &batch).await?;
    apply(conn, chance, now, &messages).await?;
    Ok((step, messages.len()))
}

#[derive(QueryableByName)]
struct Message {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Bool)]
    inbound: bool,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Timestamptz)]
    moment: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    waha_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    sender_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    alternative_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    sender_name: Option<String>,
    #[diesel(sql_type = Bool)]
    was_read: bool,
    #[diesel(sql_type = Bool)]
    backfilled: bool,
}

/// How far a message is told to be by an event of this type, if it is among those that count.
fn rank(kind: &str) -> Option<u8> {
    Some(match kind {
        "message.received" | "message.sent" => 0,
        "message.delivered" => 1,
        "message.read" => 2,
        "message.played" => 3,
        _ => return None,
    })
}

/// The messages that `batch` tells of for the first time: those that came in, and those that WhatsApp has of the others. An
/// outbound one is told of with each step that it takes, and the first of these steps counts.
async fn messages(conn: &mut AsyncPgConnection, batch: &[Event]) -> Result<Vec<Message>, DbError> {
    let mut first: BTreeMap<(TenantId, MessageId), (u8, &str)> = BTreeMap::new();
    for event in batch {
        let (Some(rank), Some(id)) = (rank(&event.kind), event.message_id) else { continue };
        let known = first.entry((event.tenant_id, id)).or_insert((rank, event.kind.as_str()));
        *known = (*known).min((rank, event.kind.as_str()));
    }
    if first.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sql("SELECT m.tenant_id, m.id, m.session_id, m.direction = 'inbound' AS inbound, m.chat_id, \
                coalesce(m.occurred_at, m.created_at) AS moment, coalesce(m.waha_message_id, '') AS waha_id, m.sender_id, \
                m.sender_alternative_id AS alternative_id, m.sender_name, m.read_at IS NOT NULL AS was_read, m.backfilled \
         FROM unnest($1, $2, $3) AS w (tenant_id, id, kind) \
         CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.tenant_id = w.tenant_id AND m.id = w.id OFFSET 0) m \
         WHERE CASE w.kind WHEN 'message.received' THEN m.direction = 'inbound' WHEN 'message.sent' THEN m.direction = 'outbound' \
               ELSE m.direction = 'outbound' AND NOT EXISTS ( \
                   SELECT FROM message_transitions t WHERE t.tenant_id = w.tenant_id AND t.message_id = w.id \
                      AND t.status = ANY(CASE w.kind WHEN 'message.delivered' THEN ARRAY['sent'] \
                                                     WHEN 'message.read' THEN ARRAY['sent', 'delivered'] \
                                                     ELSE ARRAY['sent', 'delivered', 'read'] END)) END \
         ORDER BY m.tenant_id, m.session_id, m.id")
    .bind::<Array<SqlUuid>, _>(first.keys().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(first.keys().map(|(_, id)| *id).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(first.values().map(|(_, kind)| *kind).collect::<Vec<_>>())
    .prepared()
    .load(conn)
    .await?)
}

async fn apply(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    messages: &[Message],
) -> Result<(), DbError> {
    if messages.is_empty() {
        return Ok(());
    }
    contacts::lock_all(conn, messages.iter().map(|message| message.tenant_id)).await?;
    let people: Vec<(&Message, Sighting<'_>)> =
        messages.iter().filter_map(|message| Some((message, sighting(message)?))).collect();
    let sightings: Vec<Sighting<'_>> = people.iter().map(|(_, sighting)| *sighting).collect();
    let found = contacts::resolve(conn, chance, now, Because::Message, &sightings).await?;
    let of: HashMap<MessageId, ContactId> =
        people.iter().zip(&found).filter_map(|((message, _), contact)| Some((message.id, (*contact)?))).collect();
    tell(conn, chance, now, messages, &of).await?;
    note_members(conn, now, messages).await
}

/// Who is seen in a message: whom the chat is with, or who wrote in it.
fn sighting(message: &Message) -> Option<Sighting<'_>> {
    let direct = super::kind(&message.chat_id)? == "direct";
    let id = match (direct, message.inbound) {
        (true, _) => message.chat_id.as_str(),
        (false, true) => message.sender_id.as_deref()?,
        (false, false) => return None,
    };
    // The account's own id is nobody's with whom it talks.
    let sender = message.sender_id.as_deref().filter(|_| message.inbound);
    let hidden = |id: &str| id.ends_with("@lid");
    let other =
        [message.alternative_id.as_deref(), sender].into_iter().flatten().find(|other| hidden(other) != hidden(id));
    Some(Sighting {
        tenant: message.tenant_id,
        id,
        other,
        name: message.sender_name.as_deref().filter(|_| message.inbound),
        wrote_at: message.inbound.then_some(message.moment),
    })
}

/// With whom a conversation is: a person, or by its chat.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum With<'a> {
    Person(ContactId),
    Chat(&'a str),
}

/// Puts `messages` into their conversations.
async fn tell(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    messages: &[Message],
    of: &HashMap<MessageId, ContactId>,
) -> Result<(), DbError> {
    let mut news: BTreeMap<(SessionId, With<'_>), Vec<&Message>> = BTreeMap::new();
    for message in messages {
        let with = match (super::kind(&message.chat_id), of.get(&message.id)) {
            (Some("direct"), Some(contact)) => With::Person(*contact),
            (Some("direct") | None, _) => continue,
            (Some(_), _) => With::Chat(&message.chat_id),
        };
        news.entry((message.session_id, with)).or_default().push(message);
    }
    let (mut people, mut chats) = (Vec::new(), Vec::new());
    for (session, with) in news.keys() {
        match with {
            With::Person(contact) => people.push((*session, *contact)),
            With::Chat(chat) => chats.push((*session, *chat)),
        }
    }
    let rows = write::find(conn, &people, &chats).await?;
    let mut known: HashMap<(SessionId, Option<ContactId>, String), Row> = rows
        .into_iter()
        .map(|row| {
            let chat = if row.contact_id.is_some() { String::new() } else { row.chat_id.clone() };
            ((row.session_id, row.contact_id, chat), row)
        })
        .collect();
    let (mut changed, mut made) = (Vec::new(), Vec::new());
    let mut recount: BTreeMap<TenantId, Vec<ConversationId>> = BTreeMap::new();
    for ((session, with), messages) in news {
        let (contact, chat) = match with {
            With::Person(contact) => (Some(contact), ""),
            With::Chat(chat) => (None, chat),
        };
        let Some(first) = messages.as_slice().first() else { continue };
        let found = known.remove(&(session, contact, chat.to_owned()));
        let is_known = found.is_some();
        let mut row = found.unwrap_or_else(|| empty(chance, now, contact, first));
        if count_in(&mut row, &messages) {
            recount.entry(row.tenant_id).or_default().push(row.id);
        }
        if is_known { changed.push(row) } else { made.push(row) }
    }
    write::update(conn, now, &changed).await?;
    write::insert(conn, now, &made).await?;
    for (tenant, conversations) in recount {
        count::unread(conn, now, tenant, &conversations).await?;
    }
    Ok(())
}

fn empty(chance: &Chance, now: DateTime<Utc>, contact: Option<ContactId>, first: &Message) -> Row {
    Row {
        tenant_id: first.tenant_id,
        id: ConversationId::fresh(now, chance),
        session_id: first.session_id,
        kind: super::kind(&first.chat_id).unwrap_or("direct").to_owned(),
        contact_id: contact,
        chat_id: first.chat_id.clone(),
        last_message_id: None,
        last_message_at: None,
        last_waha_id: None,
        message_count: 0,
        unread_count: 0,
        last_read_at: None,
        is_active: true,
    }
}

/// Counts `messages` in `row`; answers whether what is unread has to be counted anew.
fn count_in(row: &mut Row, messages: &[&Message]) -> bool {
    let read_before = row.last_read_at;
    for message in messages {
        row.message_count += 1;
        if row.last_message_id.is_none() || (Some(message.moment), message.waha_id.as_str()) > row.last() {
            row.last_message_id = Some(message.id);
            row.last_message_at = Some(message.moment);
            row.last_waha_id = Some(message.waha_id.clone());
            row.chat_id.clone_from(&message.chat_id);
        }
        if message.inbound && message.was_read {
            row.last_read_at = row.last_read_at.max(Some(message.moment));
        }
        // Somebody who writes again is heard again; what is only found again says nothing new.
        row.is_active |= message.inbound && !message.backfilled;
    }
    let fresh = messages.iter().filter(|message| message.inbound && Some(message.moment) > row.last_read_at).count();
    let earlier = row.unread_count;
    row.unread_count = earlier.saturating_add(i32::try_from(fresh).unwrap_or(i32::MAX));
    if row.all_read() {
        row.unread_count = 0;
        return false;
    }
    row.last_read_at != read_before && earlier > 0
}

/// Whoever writes in a group is in it.
async fn note_members(conn: &mut AsyncPgConnection, now: DateTime<Utc>, messages: &[Message]) -> Result<(), DbError> {
    let mut members: BTreeMap<(SessionId, &str, String), (&Message, &str)> = BTreeMap::new();
    for message in messages.iter().filter(|message| message.inbound && message.chat_id.ends_with("@g.us")) {
        let Some(id) = message.sender_id.as_deref() else { continue };
        let Some(key) = person::key(id) else { continue };
        let member = members.entry((message.session_id, &message.chat_id, key)).or_insert((message, id));
        if member.0.moment < message.moment {
            *member = (message, id);
        }
    }
    if members.is_empty() {
        return Ok(());
    }
    let keys: BTreeSet<(TenantId, String)> =
        members.iter().map(|((.., key), (message, _))| (message.tenant_id, key.clone())).collect();
    let names = contacts::canonical_keys(conn, &keys.into_iter().collect::<Vec<_>>()).await?;
    type Seen = (TenantId, DateTime<Utc>, String);
    let mut rows: BTreeMap<(SessionId, &str, String), Seen> = BTreeMap::new();
    for ((session, chat, key), (message, id)) in members {
        let person = names.get(&(message.tenant_id, key.clone())).cloned().unwrap_or(key);
        let wa_id = person::plain(id).unwrap_or_default();
        let row = rows.entry((session, chat, person)).or_insert((message.tenant_id, message.moment, wa_id));
        row.1 = row.1.max(message.moment);
    }
    // Nearly always everybody is known to be there: then nothing is locked or written.
    sql("INSERT INTO conversation_participants AS p (tenant_id, session_id, chat_id, person, wa_id, told_at, created_at, updated_at) \
         SELECT w.*, $7, $7 FROM unnest($1, $2, $3, $4, $5, $6) AS w (tenant_id, session_id, chat_id, person, wa_id, at) \
         WHERE NOT EXISTS (SELECT FROM conversation_participants o WHERE o.session_id = w.session_id AND o.chat_id = w.chat_id \
                              AND o.person = w.person AND (o.left_at IS NULL OR o.told_at >= w.at)) \
         ORDER BY w.session_id, w.chat_id, w.person \
         ON CONFLICT (session_id, chat_id, person) DO UPDATE SET left_at = NULL, told_at = excluded.told_at, updated_at = excluded.updated_at \
         WHERE p.left_at IS NOT NULL AND p.told_at < excluded.told_at")
    .bind::<Array<SqlUuid>, _>(rows.values().map(|(tenant, ..)| *tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(rows.keys().map(|(session, ..)| *session).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.keys().map(|(_, chat, _)| *chat).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.keys().map(|(.., person)| person.as_str()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(rows.values().map(|(.., wa_id)| wa_id.as_str()).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(rows.values().map(|(_, at, _)| *at).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
