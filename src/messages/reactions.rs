//! Reactions: the latest of each person to each message counts.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::messages::facts::{Target, keys_of, lock, messages_of, names};
use crate::messages::row::MessageRow;
use crate::messages::view::Message;

/// Somebody's reaction to a message.
#[derive(Clone)]
pub struct Reaction {
    /// Which message.
    pub target: Target,
    /// Whose, as a WhatsApp id; `None`: the session's own account.
    pub person: Option<String>,
    /// The emoji; empty when it was taken back.
    pub emoji: String,
    /// When.
    pub at: DateTime<Utc>,
    /// When WAHA told of it.
    pub reported_at: DateTime<Utc>,
}

#[derive(Clone, QueryableByName)]
struct KeptReaction {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    waha_message_id: String,
    #[diesel(sql_type = Text)]
    person: String,
    #[diesel(sql_type = Text)]
    emoji: String,
}

/// Keeps `reactions` and tells of those that change something, and of those that `waiting` messages have.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub(super) async fn apply(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    reactions: Vec<Reaction>,
    waiting: &[Target],
) -> Result<(), DbError> {
    let mut news = keep_reactions(conn, now, reactions).await?;
    news.extend(kept_reactions(conn, waiting).await?);
    tell_reactions(conn, chance, now, news).await
}

const KEEP_REACTIONS: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7) AS i (tenant_id, session_id, waha_message_id, person, emoji, at, reported_at)
), old AS MATERIALIZED (
    SELECT r.session_id, r.waha_message_id, r.person, r.emoji FROM input i CROSS JOIN LATERAL (
        SELECT * FROM message_reactions r
        WHERE r.session_id = i.session_id AND r.waha_message_id = i.waha_message_id AND r.person = i.person OFFSET 0) r
), kept AS (
    INSERT INTO message_reactions AS r (tenant_id, session_id, waha_message_id, person, emoji, reacted_at, reported_at, created_at, updated_at)
    SELECT tenant_id, session_id, waha_message_id, person, emoji, at, reported_at, $8, $8 FROM input
    ORDER BY session_id, waha_message_id, person
    ON CONFLICT (session_id, waha_message_id, person) DO UPDATE SET
        emoji = excluded.emoji, reacted_at = excluded.reacted_at, reported_at = excluded.reported_at, updated_at = excluded.updated_at
    WHERE (excluded.reacted_at, excluded.reported_at, excluded.emoji) > (r.reacted_at, r.reported_at, r.emoji)
    RETURNING r.*
)
SELECT k.tenant_id, k.session_id, k.waha_message_id, k.person, k.emoji
FROM kept k LEFT JOIN old o USING (session_id, waha_message_id, person) WHERE coalesce(o.emoji, '') <> k.emoji";

/// Keeps the latest reaction of each person to each message; answers what changed by that.
async fn keep_reactions(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    reactions: Vec<Reaction>,
) -> Result<Vec<KeptReaction>, DbError> {
    if reactions.is_empty() {
        return Ok(Vec::new());
    }
    let people = reactions.iter().map(|reaction| (reaction.target.tenant, reaction.person.as_deref()));
    let keys = keys_of(conn, people).await?;
    let mut latest: BTreeMap<(&Target, &str), &Reaction> = BTreeMap::new();
    for (reaction, key) in reactions.iter().zip(&keys) {
        let rank = |one: &Reaction| (one.at, one.reported_at, one.emoji.clone());
        latest
            .entry((&reaction.target, key))
            .and_modify(|known| {
                if rank(reaction) > rank(known) {
                    *known = reaction;
                }
            })
            .or_insert(reaction);
    }
    let (sessions, ids) = names(latest.keys().map(|(target, _)| *target));
    Ok(sql(KEEP_REACTIONS)
        .bind::<Array<SqlUuid>, _>(latest.keys().map(|(target, _)| target.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(sessions)
        .bind::<Array<Text>, _>(ids)
        .bind::<Array<Text>, _>(latest.keys().map(|(_, key)| *key).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(latest.values().map(|one| one.emoji.replace('\0', "")).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(latest.values().map(|one| one.at).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(latest.values().map(|one| one.reported_at).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?)
}

/// Keeps the session's own reaction, made through the API; answers whether it is another than before.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn react(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    target: Target,
    emoji: &str,
) -> Result<bool, DbError> {
    lock(conn, vec![(target.session, &target.waha_message_id)]).await?;
    let reaction = Reaction { target, person: None, emoji: emoji.to_owned(), at: now, reported_at: now };
    Ok(!keep_reactions(conn, now, vec![reaction]).await?.is_empty())
}

async fn kept_reactions(conn: &mut AsyncPgConnection, targets: &[Target]) -> Result<Vec<KeptReaction>, DbError> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let (sessions, ids) = names(targets.iter());
    Ok(sql("SELECT r.tenant_id, r.session_id, r.waha_message_id, r.person, r.emoji \
         FROM unnest($1, $2) AS i (session_id, waha_message_id) CROSS JOIN LATERAL ( \
             SELECT * FROM message_reactions r \
             WHERE r.session_id = i.session_id AND r.waha_message_id = i.waha_message_id AND r.emoji <> '' OFFSET 0) r")
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(ids)
    .prepared()
    .load(conn)
    .await?)
}

async fn tell_reactions(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    news: Vec<KeptReaction>,
) -> Result<(), DbError> {
    if news.is_empty() {
        return Ok(());
    }
    let (sessions, ids) = news.iter().map(|one| (one.session_id, one.waha_message_id.as_str())).unzip();
    let messages = messages_of(conn, sessions, ids).await?;
    let told = news.iter().filter_map(|one| {
        let message = messages.get(&(one.session_id, one.waha_message_id.clone()))?;
        Some(NewEvent {
            tenant: one.tenant_id,
            id: EventId::fresh(now, chance),
            kind: "message.reaction",
            at: now,
            session_id: Some(one.session_id),
            message_id: Some(message.id),
            data: reaction_data(message, &one.person, &one.emoji),
        })
    });
    log::append(conn, &told.collect::<Vec<_>>()).await
}

/// The message with the reaction, as the event shows them.
#[must_use]
pub fn reaction_data(message: &MessageRow, person: &str, emoji: &str) -> String {
    // Strings, numbers and a JSON value always serialise.
    let mut data = serde_json::to_value(Message::from(message)).unwrap_or_default();
    if let Value::Object(members) = &mut data {
        let mut reaction = json!({"emoji": emoji, "from_me": person.is_empty()});
        if let Some(reaction) = reaction.as_object_mut()
            && !person.is_empty()
        {
            reaction.insert("person".to_owned(), json!(person));
        }
        members.insert("reaction".to_owned(), reaction);
    }
    data.to_string()
}
