//! Messages that came in: one row per (session, bare WhatsApp id), whatever repeats.

use chrono::{DateTime, Utc};
use diesel::sql_types::{Array, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::recipient::ChatId;
use crate::domain::status::Status;
use crate::messages::changes;
use crate::messages::row::{MessageRow, message_columns};
use crate::waha::WahaMessage;

/// A message from outside.
#[derive(Debug)]
pub struct Inbound {
    /// Whose session.
    pub tenant: TenantId,
    /// The session it came in by.
    pub session: SessionId,
    /// The session's own number.
    pub to: Option<String>,
    /// When WAHA told of it.
    pub at: DateTime<Utc>,
    /// The message.
    pub message: WahaMessage,
}

impl Inbound {
    fn kind(&self) -> &'static str {
        let mime = self.message.media.as_ref().and_then(|media| media.mime_type.as_deref()).unwrap_or_default();
        match mime.split('/').next() {
            _ if !self.message.has_media => "text",
            Some("image") => "image",
            Some("video") => "video",
            Some("audio") => "voice",
            _ => "document",
        }
    }

    fn from(&self) -> Option<String> {
        ChatId::parse(self.message.sender.as_deref().unwrap_or(&self.message.chat_id)).ok()?.phone()
    }
}

/// `json` as text that Postgres takes: it keeps no NUL.
fn storable(json: &Value) -> String {
    fn without_nul(json: &Value) -> Value {
        match json {
            Value::String(text) => Value::String(text.replace('\0', "")),
            Value::Array(items) => items.iter().map(without_nul).collect(),
            Value::Object(members) => {
                members.iter().map(|(name, value)| (name.replace('\0', ""), without_nul(value))).collect()
            }
            scalar => scalar.clone(),
        }
    }
    let text = json.to_string();
    // The escape may also be the end of an escaped backslash and plain text, so the text itself cannot be cut.
    if text.contains("\\u0000") { without_nul(json).to_string() } else { text }
}

const INSERT: &str = concat!(
    "\
WITH m AS (
    INSERT INTO messages AS m (tenant_id, id, session_id, direction, status, message_type, chat_id, to_msisdn, from_msisdn,
                               body, raw_payload, waha_message_id, ack, sent_at, created_at, updated_at)
    SELECT tenant_id, id, session_id, 'inbound', 'received', kind, chat_id, to_msisdn, from_msisdn,
           body, raw::jsonb, waha_message_id, ack, sent_at, $13, $13
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) WITH ORDINALITY AS i (
        tenant_id, id, session_id, kind, chat_id, to_msisdn, from_msisdn, body, raw, waha_message_id, ack, sent_at, position)
    ORDER BY session_id, waha_message_id
    ON CONFLICT (session_id, waha_message_id) WHERE waha_message_id IS NOT NULL DO NOTHING
    RETURNING m.*
)
SELECT ",
    message_columns!(),
    " FROM m ORDER BY m.seq"
);

/// Stores what is new among `messages`; answers how many that were.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn store(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    messages: &[Inbound],
) -> Result<usize, DbError> {
    fn column<'a, T>(messages: &'a [Inbound], of: impl Fn(&'a Inbound) -> T) -> Vec<T> {
        messages.iter().map(of).collect()
    }
    if messages.is_empty() {
        return Ok(0);
    }
    let rows: Vec<MessageRow> = sql(INSERT)
        .bind::<Array<SqlUuid>, _>(column(messages, |inbound| inbound.tenant))
        .bind::<Array<SqlUuid>, _>(column(messages, |_| MessageId::fresh(now, chance)))
        .bind::<Array<SqlUuid>, _>(column(messages, |inbound| inbound.session))
        .bind::<Array<Text>, _>(column(messages, Inbound::kind))
        .bind::<Array<Text>, _>(column(messages, |inbound| inbound.message.chat_id.as_str()))
        .bind::<Array<Nullable<Text>>, _>(column(messages, |inbound| inbound.to.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(messages, Inbound::from))
        .bind::<Array<Nullable<Text>>, _>(column(messages, |inbound| {
            inbound.message.body.as_deref().map(|body| body.replace('\0', ""))
        }))
        .bind::<Array<Text>, _>(column(messages, |inbound| storable(&inbound.message.raw)))
        .bind::<Array<Text>, _>(column(messages, |inbound| inbound.message.bare_id.as_str()))
        .bind::<Array<Nullable<SmallInt>>, _>(column(messages, |inbound| inbound.message.ack))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(messages, |inbound| {
            Some(inbound.message.timestamp.unwrap_or(inbound.at))
        }))
        .bind::<Timestamptz, _>(now)
        .prepared()
        .load(conn)
        .await?;
    changes::record_all(conn, chance, now, &rows, Status::Received, "webhook").await?;
    // Whoever holds a session changes it anyhow, and waiting here, out of order, could be a circle.
    sql("UPDATE waha_sessions SET last_activity_at = $2 WHERE id IN ( \
             SELECT id FROM waha_sessions WHERE id = ANY($1) \
             AND (last_activity_at IS NULL OR last_activity_at < $2 - interval '1 minute') FOR NO KEY UPDATE SKIP LOCKED)")
    .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.session_id).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(rows.len())
}

// A chat may go by two ids, a number and a hidden one; either may be written to later. To the minute is enough.
const REMEMBER: &str = "\
INSERT INTO conversations AS k (tenant_id, session_id, chat_id, first_inbound_at, last_inbound_at, created_at, updated_at)
SELECT tenant_id, session_id, chat_id, min(at), max(at), $5, $5
FROM unnest($1, $2, $3, $4) AS i (tenant_id, session_id, chat_id, at)
GROUP BY tenant_id, session_id, chat_id ORDER BY session_id, chat_id
ON CONFLICT (session_id, chat_id) DO UPDATE SET
    first_inbound_at = coalesce(k.first_inbound_at, excluded.first_inbound_at),
    last_inbound_at = greatest(k.last_inbound_at, excluded.last_inbound_at),
    updated_at = excluded.updated_at
WHERE k.first_inbound_at IS NULL OR k.last_inbound_at < excluded.last_inbound_at - interval '1 minute'";

/// Remembers who wrote to whom. After everything that locks messages: others lock conversations last, too.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn remember(conn: &mut AsyncPgConnection, now: DateTime<Utc>, messages: &[Inbound]) -> Result<(), DbError> {
    let mut met: Vec<(&Inbound, &str)> = Vec::with_capacity(messages.len());
    for inbound in messages {
        met.push((inbound, inbound.message.chat_id.as_str()));
        met.extend(inbound.message.alternative_id.as_deref().map(|other| (inbound, other)));
    }
    if met.is_empty() {
        return Ok(());
    }
    sql(REMEMBER)
        .bind::<Array<SqlUuid>, _>(met.iter().map(|(inbound, _)| inbound.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(met.iter().map(|(inbound, _)| inbound.session).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(met.iter().map(|(_, chat)| *chat).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(met.iter().map(|(inbound, _)| inbound.at).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}
