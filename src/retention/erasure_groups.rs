//! What others wrote in groups that an erased person is in: their number is taken out of it, and what was quoted of them.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::erasure_steps::{PIECE, Running};
use super::person::Person;
use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{MessageId, SessionId};

/// The group that is walked through, and the last message that was looked at.
#[derive(Serialize, Deserialize)]
struct Place {
    session: SessionId,
    chat: String,
    at: Option<DateTime<Utc>>,
    id: Option<Uuid>,
}

#[derive(QueryableByName)]
struct Group {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    chat_id: String,
}

#[derive(QueryableByName)]
struct Looked {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Changed {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
}

/// Looks at some messages of a group; answers where to go on, `None` when all groups were walked through.
pub(super) async fn step(
    conn: &mut AsyncPgConnection,
    running: &Running,
    person: &Person,
) -> Result<Option<Value>, DbError> {
    let Some(pattern) = &person.pattern else { return Ok(None) };
    let place: Option<Place> = running.place.clone().and_then(|place| serde_json::from_value(place).ok());
    let place = match place {
        Some(place) => place,
        None => match next_group(conn, running, person, None).await? {
            Some(group) => group,
            None => return Ok(None),
        },
    };
    let looked: Vec<Looked> = sql("SELECT id, (CASE WHEN occurred_at IS NULL THEN created_at ELSE occurred_at END) AS at FROM messages \
         WHERE tenant_id = $1 AND session_id = $2 AND chat_id = $3 \
           AND ($4::timestamptz IS NULL OR ((CASE WHEN occurred_at IS NULL THEN created_at ELSE occurred_at END), id) < ($4, $5)) \
         ORDER BY (CASE WHEN occurred_at IS NULL THEN created_at ELSE occurred_at END) DESC, id DESC LIMIT $6")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<SqlUuid, _>(place.session)
    .bind::<Text, _>(&place.chat)
    .bind::<Nullable<Timestamptz>, _>(place.at)
    .bind::<Nullable<SqlUuid>, _>(place.id)
    .bind::<BigInt, _>(PIECE)
    .prepared()
    .load(conn)
    .await?;
    let next = match looked.last() {
        Some(last) => Some(Place { at: Some(last.at), id: Some(last.id.0), ..place }),
        None => next_group(conn, running, person, Some(&place)).await?,
    };
    blot(conn, running, person, pattern, &looked).await?;
    Ok(next.and_then(|next| serde_json::to_value(next).ok()))
}

/// The first group of the person's behind `after`.
async fn next_group(
    conn: &mut AsyncPgConnection,
    running: &Running,
    person: &Person,
    after: Option<&Place>,
) -> Result<Option<Place>, DbError> {
    let groups: Vec<Group> = sql("SELECT session_id, chat_id FROM ( \
             SELECT session_id, chat_id FROM conversation_participants WHERE tenant_id = $1 AND person = ANY($2) \
             UNION SELECT session_id, chat_id FROM messages WHERE tenant_id = $1 AND sender_id = ANY($3) AND sender_id <> chat_id \
             UNION SELECT session_id, chat_id FROM messages WHERE tenant_id = $1 AND sender_alternative_id = ANY($3) \
                   AND sender_alternative_id IS NOT NULL AND sender_id <> chat_id) g \
         WHERE chat_id LIKE '%@g.us' AND ($4::uuid IS NULL OR (session_id, chat_id) > ($4, $5)) ORDER BY session_id, chat_id LIMIT 1")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<Text>, _>(&person.keys)
    .bind::<Array<Text>, _>(&person.ids)
    .bind::<Nullable<SqlUuid>, _>(after.map(|place| place.session))
    .bind::<Nullable<Text>, _>(after.map(|place| place.chat.as_str()))
    .prepared()
    .load(conn)
    .await?;
    Ok(groups.into_iter().next().map(|group| Place {
        session: group.session_id,
        chat: group.chat_id,
        at: None,
        id: None,
    }))
}

/// Blots the person out of what `looked` say. What still waits to be sent stays as it was accepted.
async fn blot(
    conn: &mut AsyncPgConnection,
    running: &Running,
    person: &Person,
    pattern: &str,
    looked: &[Looked],
) -> Result<(), DbError> {
    if looked.is_empty() {
        return Ok(());
    }
    let changed: Vec<Changed> = sql("UPDATE messages m SET raw_payload = NULL, body = regexp_replace(m.body, $3, 'erased', 'g'), \
             original_body = regexp_replace(m.original_body, $3, 'erased', 'g'), \
             content = regexp_replace(m.content::text, $3, 'erased', 'g')::jsonb \
         WHERE m.tenant_id = $1 AND m.id = ANY($2) AND m.status NOT IN ('scheduled', 'queued', 'sending') \
           AND (m.raw_payload::text ~ $3 OR m.body ~ $3 OR m.original_body ~ $3 OR m.content::text ~ $3 \
                OR (m.raw_payload IS NOT NULL AND EXISTS ( \
                    SELECT 1 FROM messages q WHERE q.session_id = m.session_id AND q.waha_message_id = m.quoted_waha_id \
                      AND (q.sender_id = ANY($4) OR q.sender_alternative_id = ANY($4))))) \
         RETURNING m.id")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(looked.iter().map(|message| message.id).collect::<Vec<_>>())
    .bind::<Text, _>(pattern)
    .bind::<Array<Text>, _>(&person.ids)
    .prepared()
    .load(conn)
    .await?;
    let changed: Vec<MessageId> = changed.into_iter().map(|message| message.id).collect();
    if changed.is_empty() {
        return Ok(());
    }
    sql("UPDATE message_edits e SET body = regexp_replace(e.body, $3, 'erased', 'g') FROM messages m \
         WHERE m.tenant_id = $1 AND m.id = ANY($2) AND e.session_id = m.session_id AND e.waha_message_id = m.waha_message_id \
           AND e.tenant_id = m.tenant_id AND e.body ~ $3")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(&changed)
    .bind::<Text, _>(pattern)
    .prepared()
    .execute(conn)
    .await?;
    sql("UPDATE message_search s SET document = message_words(m.body) FROM messages m \
         WHERE m.tenant_id = $1 AND m.id = ANY($2) AND s.tenant_id = m.tenant_id AND s.message_id = m.id AND m.body IS NOT NULL")
    .bind::<SqlUuid, _>(running.tenant_id)
    .bind::<Array<SqlUuid>, _>(&changed)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
