//! Votes in polls: the latest of each person counts.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Jsonb, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{EventId, SessionId, TenantId};
use crate::events::log::{self, NewEvent};
use crate::messages::facts::{Target, keys_of, messages_of, names};
use crate::messages::view::Message;

/// Somebody's vote: all that they chose.
#[derive(Clone)]
pub struct Vote {
    /// The poll's message.
    pub target: Target,
    /// Whose, as a WhatsApp id; `None`: the session's own account.
    pub person: Option<String>,
    /// What they chose; empty when the vote was taken back.
    pub options: Vec<String>,
    /// When.
    pub at: DateTime<Utc>,
    /// When WAHA told of it.
    pub reported_at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Kept {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    waha_message_id: String,
    #[diesel(sql_type = Text)]
    person: String,
    #[diesel(sql_type = Array<Text>)]
    options: Vec<String>,
}

// Lists of lists do not travel as arrays; each vote's options are a JSON array.
const KEEP: &str = "\
WITH input AS (
    SELECT tenant_id, session_id, waha_message_id, person, at, reported_at,
           ARRAY(SELECT jsonb_array_elements_text(options)) AS options
    FROM unnest($1, $2, $3, $4, $5, $6, $7) AS i (tenant_id, session_id, waha_message_id, person, options, at, reported_at)
), old AS MATERIALIZED (
    SELECT v.session_id, v.waha_message_id, v.person, v.options FROM input i CROSS JOIN LATERAL (
        SELECT * FROM poll_votes v
        WHERE v.session_id = i.session_id AND v.waha_message_id = i.waha_message_id AND v.person = i.person OFFSET 0) v
), kept AS (
    INSERT INTO poll_votes AS v (tenant_id, session_id, waha_message_id, person, options, voted_at, reported_at, created_at, updated_at)
    SELECT tenant_id, session_id, waha_message_id, person, options, at, reported_at, $8, $8 FROM input
    ORDER BY session_id, waha_message_id, person
    ON CONFLICT (session_id, waha_message_id, person) DO UPDATE SET
        options = excluded.options, voted_at = excluded.voted_at, reported_at = excluded.reported_at, updated_at = excluded.updated_at
    WHERE (excluded.voted_at, excluded.reported_at, excluded.options) > (v.voted_at, v.reported_at, v.options)
    RETURNING v.*
)
SELECT k.tenant_id, k.session_id, k.waha_message_id, k.person, k.options
FROM kept k LEFT JOIN old o USING (session_id, waha_message_id, person) WHERE coalesce(o.options, '{}') <> k.options";

/// Keeps `votes` and tells of those that change something.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub(super) async fn apply(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    mut votes: Vec<Vote>,
) -> Result<(), DbError> {
    if votes.is_empty() {
        return Ok(());
    }
    for vote in &mut votes {
        vote.options.iter_mut().for_each(|option| *option = option.replace('\0', ""));
        vote.options.sort_unstable();
        vote.options.dedup();
    }
    let keys = keys_of(conn, votes.iter().map(|vote| (vote.target.tenant, vote.person.as_deref()))).await?;
    let mut latest: BTreeMap<(&Target, &str), &Vote> = BTreeMap::new();
    for (vote, key) in votes.iter().zip(&keys) {
        let rank = |vote: &Vote| (vote.at, vote.reported_at, vote.options.clone());
        latest
            .entry((&vote.target, key))
            .and_modify(|known| {
                if rank(vote) > rank(known) {
                    *known = vote;
                }
            })
            .or_insert(vote);
    }
    let (sessions, ids) = names(latest.keys().map(|(target, _)| *target));
    let kept: Vec<Kept> = sql(KEEP)
        .bind::<Array<SqlUuid>, _>(latest.keys().map(|(target, _)| target.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(sessions)
        .bind::<Array<Text>, _>(ids)
        .bind::<Array<Text>, _>(latest.keys().map(|(_, key)| *key).collect::<Vec<_>>())
        .bind::<Array<Jsonb>, _>(latest.values().map(|vote| json!(vote.options)).collect::<Vec<Value>>())
        .bind::<Array<Timestamptz>, _>(latest.values().map(|vote| vote.at).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(latest.values().map(|vote| vote.reported_at).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(&mut *conn)
        .await?;
    if kept.is_empty() {
        return Ok(());
    }
    let (sessions, ids) = kept.iter().map(|vote| (vote.session_id, vote.waha_message_id.as_str())).unzip();
    let messages = messages_of(conn, sessions, ids).await?;
    let told = kept.iter().map(|vote| {
        let message = messages.get(&(vote.session_id, vote.waha_message_id.clone()));
        NewEvent {
            tenant: vote.tenant_id,
            id: EventId::fresh(now, chance),
            kind: "poll.vote",
            at: now,
            session_id: Some(vote.session_id),
            message_id: message.map(|message| message.id),
            data: json!({
                "session_id": vote.session_id,
                "waha_message_id": vote.waha_message_id,
                "message": message.map(Message::from),
                "vote": {
                    "options": vote.options,
                    "from_me": vote.person.is_empty(),
                    "person": Some(&vote.person).filter(|person| !person.is_empty()),
                },
            })
            .to_string(),
        }
    });
    log::append(conn, &told.collect::<Vec<_>>()).await
}
