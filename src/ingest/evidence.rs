//! What can be concluded of messages beside their acknowledgements: an answer shows that what it answers was delivered, and what
//! was read on the phone was read.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::status::Ack;
use crate::ingest::acks::{self, AckEvent};
use crate::messages::facts::Target;
use crate::messages::row::MessageRow;

/// A message that was read on the phone.
#[derive(Clone, Debug)]
pub struct ReadOnPhone {
    /// Which message.
    pub target: Target,
    /// When that was told.
    pub at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Undelivered {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    waha_message_id: String,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

// An acknowledgement comes within moments, if it comes at all: who answers a minute later has what was sent before.
const UNDELIVERED: &str = "\
SELECT m.tenant_id, m.session_id, m.waha_message_id, min(i.at) AS at
FROM unnest($1, $2, $3) AS i (session_id, chat_id, at) CROSS JOIN LATERAL (
    SELECT * FROM messages m WHERE m.session_id = i.session_id AND m.chat_id = i.chat_id
       AND m.direction = 'outbound' AND m.status IN ('sending', 'sent') AND m.waha_message_id IS NOT NULL
       AND coalesce(m.handed_over_at, m.occurred_at) < i.at - interval '1 minute' OFFSET 0) m
GROUP BY m.tenant_id, m.session_id, m.waha_message_id";

/// Takes what was sent to the writers of `rows` as delivered, where they write a minute later and no acknowledgement told so.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn infer_delivered(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    rows: &[MessageRow],
) -> Result<usize, DbError> {
    let answers: Vec<&MessageRow> =
        rows.iter().filter(|row| row.direction == "inbound" && !row.chat_id.ends_with("@g.us")).collect();
    if answers.is_empty() {
        return Ok(0);
    }
    let undelivered: Vec<Undelivered> = sql(UNDELIVERED)
        .bind::<Array<SqlUuid>, _>(answers.iter().map(|row| row.session_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(answers.iter().map(|row| row.chat_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(
            answers.iter().map(|row| row.occurred_at.unwrap_or(row.created_at)).collect::<Vec<_>>(),
        )
        .prepared()
        .load(&mut *conn)
        .await?;
    let inferred = undelivered.into_iter().map(|row| AckEvent {
        tenant: row.tenant_id,
        session: row.session_id,
        waha_message_id: row.waha_message_id,
        ack: Ack::Device,
        at: row.at,
        inferred: true,
    });
    acks::apply(conn, chance, inferred.collect()).await
}

const READ: &str = "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4) AS i (tenant_id, session_id, waha_message_id, at)
), known AS (
    SELECT m.tenant_id, m.id, i.at FROM messages m JOIN input i USING (session_id, waha_message_id)
    WHERE m.direction = 'inbound' ORDER BY m.tenant_id, m.id FOR UPDATE OF m
), marked AS (
    UPDATE messages m SET read_at = least(m.read_at, k.at), updated_at = greatest(m.updated_at, k.at)
    FROM known k WHERE m.tenant_id = k.tenant_id AND m.id = k.id AND (m.read_at IS NULL OR m.read_at > k.at)
    RETURNING m.tenant_id, m.session_id, m.chat_id, coalesce(m.occurred_at, m.created_at) AS moment
), early AS (
    INSERT INTO early_acks (tenant_id, session_id, waha_message_id, ack, at, created_at)
    SELECT i.tenant_id, i.session_id, i.waha_message_id, 3, i.at, now() FROM input i
    WHERE NOT EXISTS (SELECT FROM messages m WHERE m.session_id = i.session_id AND m.waha_message_id = i.waha_message_id)
    ORDER BY i.session_id, i.waha_message_id
    ON CONFLICT (session_id, waha_message_id) DO NOTHING
)
SELECT tenant_id, session_id, chat_id, max(moment) AS moment FROM marked GROUP BY tenant_id, session_id, chat_id";

#[derive(QueryableByName)]
struct ReadChat {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    chat_id: String,
    #[diesel(sql_type = Timestamptz)]
    moment: DateTime<Utc>,
}

/// Marks messages as read that were read on the phone; answers the chats (tenant, session, chat id) and up to which moment. What
/// is read before it is told of is kept and marked when it comes.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn read_on_phone(
    conn: &mut AsyncPgConnection,
    mut reads: Vec<ReadOnPhone>,
) -> Result<Vec<(TenantId, SessionId, String, DateTime<Utc>)>, DbError> {
    if reads.is_empty() {
        return Ok(Vec::new());
    }
    reads.sort_by(|one, two| (&one.target, one.at).cmp(&(&two.target, two.at)));
    reads.dedup_by(|later, earlier| later.target == earlier.target);
    let chats: Vec<ReadChat> = sql(READ)
        .bind::<Array<SqlUuid>, _>(reads.iter().map(|read| read.target.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(reads.iter().map(|read| read.target.session).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(reads.iter().map(|read| read.target.waha_message_id.as_str()).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(reads.iter().map(|read| read.at).collect::<Vec<_>>())
        .prepared()
        .load(conn)
        .await?;
    Ok(chats.into_iter().map(|chat| (chat.tenant_id, chat.session_id, chat.chat_id, chat.moment)).collect())
}
