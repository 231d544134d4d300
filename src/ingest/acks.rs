//! Acknowledgements: how far a message came, as a monotone maximum.
//!
//! Acks arrive repeated, reversed and before the answer to the send. Each moves its message forward or does nothing; one for
//! an id that no message has yet is kept and applied when the message learns its id.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::domain::status::{Ack, Status};
use crate::ingest::evidence::ReadOnPhone;
use crate::messages::changes::{self, Change};
use crate::messages::facts::Target;
use crate::messages::row::{MessageRow, message_columns};

/// One acknowledgement of an own message.
#[derive(Clone, Debug)]
pub struct AckEvent {
    /// Whose session.
    pub tenant: TenantId,
    /// The session that sent the message.
    pub session: SessionId,
    /// The message's bare WhatsApp id.
    pub waha_message_id: String,
    /// How far it came.
    pub ack: Ack,
    /// When.
    pub at: DateTime<Utc>,
    /// Concluded from something else: it moves the message on and is no acknowledgement of WhatsApp's.
    pub inferred: bool,
}

/// Applies `acks`; what belongs to no known message is kept for later. Answers how many messages moved.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn apply(conn: &mut AsyncPgConnection, chance: &Chance, acks: Vec<AckEvent>) -> Result<usize, DbError> {
    let mut highest: HashMap<(SessionId, String), AckEvent> = HashMap::with_capacity(acks.len());
    for ack in acks {
        let key = (ack.session, ack.waha_message_id.clone());
        match highest.get_mut(&key) {
            Some(known) if supersedes(known.ack, ack.ack) => *known = ack,
            Some(_) => {}
            None => {
                highest.insert(key, ack);
            }
        }
    }
    if highest.is_empty() {
        return Ok(0);
    }
    let known = lock_messages(conn, &highest).await?;
    let mut steps: Vec<(AckEvent, MessageId, Vec<Status>, Status)> = Vec::new();
    for message in known {
        let Some(ack) = highest.remove(&(message.session_id, message.waha_message_id)) else { continue };
        let Ok(status) = message.status.parse::<Status>() else { continue };
        let path = status.after_ack(ack.ack);
        let news = message.ack.and_then(Ack::from_level).is_none_or(|known| supersedes(known, ack.ack));
        // A failure that the engine reports is only news while nothing better is known; what was concluded is none by itself.
        if !path.is_empty() || (news && ack.ack != Ack::Error && !ack.inferred) {
            let last = path.last().copied().unwrap_or(status);
            steps.push((ack, message.id, path, last));
        }
    }
    // What is left belongs to no message yet.
    keep_early(conn, highest.into_values().filter(|ack| !ack.inferred).collect()).await?;
    advance(conn, chance, steps).await
}

/// Applies what was kept for `messages`, which have just learnt their WhatsApp ids.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn apply_early(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    messages: &[&MessageRow],
) -> Result<(), DbError> {
    let (mut sessions, mut ids) = (Vec::new(), Vec::new());
    for message in messages {
        if let Some(id) = message.waha_message_id.as_deref() {
            sessions.push(message.session_id);
            ids.push(id);
        }
    }
    if sessions.is_empty() {
        return Ok(());
    }
    let kept: Vec<EarlyAck> = sql("DELETE FROM early_acks e USING unnest($1, $2) AS i (session_id, id) \
         WHERE e.session_id = i.session_id AND e.waha_message_id = i.id \
         RETURNING e.tenant_id, e.session_id, e.waha_message_id, e.ack, e.at")
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(ids)
    .prepared()
    .load(conn)
    .await?;
    apply(conn, chance, kept.into_iter().filter_map(EarlyAck::into_event).collect()).await?;
    Ok(())
}

/// Applies what was kept for the messages `targets`, which have just come; answers which of them, having come from outside, were
/// read on the phone already.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn take_up(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    targets: &[Target],
) -> Result<Vec<ReadOnPhone>, DbError> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let kept: Vec<TakenUp> = sql("DELETE FROM early_acks e USING unnest($1, $2) AS i (session_id, id), messages m \
         WHERE e.session_id = i.session_id AND e.waha_message_id = i.id \
           AND m.session_id = e.session_id AND m.waha_message_id = e.waha_message_id AND m.tenant_id = e.tenant_id \
         RETURNING e.tenant_id, e.session_id, e.waha_message_id, e.ack, e.at, m.direction = 'inbound' AS inbound")
    .bind::<Array<SqlUuid>, _>(targets.iter().map(|target| target.session).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(targets.iter().map(|target| target.waha_message_id.as_str()).collect::<Vec<_>>())
    .prepared()
    .load(&mut *conn)
    .await?;
    let (inbound, own): (Vec<TakenUp>, Vec<TakenUp>) = kept.into_iter().partition(|kept| kept.inbound);
    apply(conn, chance, own.into_iter().filter_map(|kept| kept.ack.into_event()).collect()).await?;
    let read =
        inbound.into_iter().filter(|kept| kept.ack.ack >= Ack::Read.level()).map(|TakenUp { ack, .. }| ReadOnPhone {
            target: Target { tenant: ack.tenant_id, session: ack.session_id, waha_message_id: ack.waha_message_id },
            at: ack.at,
        });
    Ok(read.collect())
}

/// Applies kept acks whose message has learnt its id at the same moment as they came; forgets those that nobody claimed for
/// a day. Answers how many were taken up.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn sweep_early(conn: &mut AsyncPgConnection, chance: &Chance, now: DateTime<Utc>) -> Result<usize, DbError> {
    // Only the transactions that ran at the same moment missed each other, so old ones (of messages that somebody typed on
    // the phone) need not be looked at again.
    let kept: Vec<EarlyAck> = sql("DELETE FROM early_acks e USING messages m \
         WHERE e.created_at > now() - interval '5 minutes' AND m.session_id = e.session_id AND m.waha_message_id = e.waha_message_id AND m.tenant_id = e.tenant_id \
           AND m.direction = 'outbound' \
         RETURNING e.tenant_id, e.session_id, e.waha_message_id, e.ack, e.at")
    .prepared()
    .load(conn)
    .await?;
    sql("DELETE FROM early_acks WHERE created_at < $1 - interval '1 day'")
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
    let taken = kept.len();
    apply(conn, chance, kept.into_iter().filter_map(EarlyAck::into_event).collect()).await?;
    Ok(taken)
}

/// Whether `new` says more than `known`: pending, error, server, device, read, played. WhatsApp's server either refuses a
/// message or takes it; once it has taken it, an error is old news.
fn supersedes(known: Ack, new: Ack) -> bool {
    match (known, new) {
        (Ack::Error, _) => new >= Ack::Server,
        (_, Ack::Error) => known < Ack::Server,
        _ => new > known,
    }
}

#[derive(QueryableByName)]
struct EarlyAck {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    waha_message_id: String,
    #[diesel(sql_type = SmallInt)]
    ack: i16,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct TakenUp {
    #[diesel(embed)]
    ack: EarlyAck,
    #[diesel(sql_type = Bool)]
    inbound: bool,
}

impl EarlyAck {
    fn into_event(self) -> Option<AckEvent> {
        Some(AckEvent {
            tenant: self.tenant_id,
            session: self.session_id,
            waha_message_id: self.waha_message_id,
            ack: Ack::from_level(self.ack)?,
            at: self.at,
            inferred: false,
        })
    }
}

/// What decides on the next step of a message.
#[derive(QueryableByName)]
struct Known {
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = Text)]
    waha_message_id: String,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Nullable<SmallInt>)]
    ack: Option<i16>,
}

async fn lock_messages(
    conn: &mut AsyncPgConnection,
    acks: &HashMap<(SessionId, String), AckEvent>,
) -> Result<Vec<Known>, DbError> {
    let (sessions, ids): (Vec<_>, Vec<_>) = acks.keys().map(|(session, id)| (*session, id.as_str())).unzip();
    Ok(sql("SELECT m.session_id, m.id, m.waha_message_id, m.status, m.ack \
         FROM messages m JOIN unnest($1, $2) AS i (session_id, id) \
           ON m.session_id = i.session_id AND m.waha_message_id = i.id AND m.direction = 'outbound' \
         ORDER BY m.tenant_id, m.id FOR UPDATE OF m")
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(ids)
    .prepared()
    .load(conn)
    .await?)
}

async fn keep_early(conn: &mut AsyncPgConnection, mut acks: Vec<AckEvent>) -> Result<(), DbError> {
    // A bare "pending" says nothing that a message needs to learn later.
    acks.retain(|ack| ack.ack != Ack::Pending);
    if acks.is_empty() {
        return Ok(());
    }
    acks.sort_by(|one, two| (one.session, &one.waha_message_id).cmp(&(two.session, &two.waha_message_id)));
    sql("INSERT INTO early_acks (tenant_id, session_id, waha_message_id, ack, at, created_at) \
         SELECT t, s, i, a, at, now() FROM unnest($1, $2, $3, $4, $5) AS x (t, s, i, a, at) \
         ON CONFLICT (session_id, waha_message_id) DO UPDATE SET ack = excluded.ack, at = excluded.at, created_at = excluded.created_at \
         WHERE early_acks.ack < excluded.ack")
    .bind::<Array<SqlUuid>, _>(acks.iter().map(|ack| ack.tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(acks.iter().map(|ack| ack.session).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(acks.iter().map(|ack| ack.waha_message_id.as_str()).collect::<Vec<_>>())
    .bind::<Array<SmallInt>, _>(acks.iter().map(|ack| ack.ack.level()).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(acks.iter().map(|ack| ack.at).collect::<Vec<_>>())
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

// "Pending" settles no attempt: the engine has the message, WhatsApp perhaps not. With the first acknowledgement of WhatsApp's
// server the recipient is nobody new any more.
const ADVANCE: &str = concat!(
    "\
WITH input AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7) AS i (tenant_id, id, status, ack, at, first, inferred)
), message AS (
    UPDATE messages m SET
        status = i.status,
        ack = CASE WHEN i.inferred THEN m.ack ELSE i.ack END,
        delivery_inferred = i.inferred OR (m.delivery_inferred AND i.ack < 2),
        attempt_state = CASE WHEN i.ack = 0 THEN m.attempt_state ELSE 'none' END,
        requeued = m.requeued AND i.status = 'sending',
        held_because = CASE WHEN i.status = 'sending' THEN m.held_because END,
        sent_at = CASE WHEN i.status IN ('sent', 'delivered', 'read', 'played') THEN coalesce(m.sent_at, i.at) ELSE m.sent_at END,
        delivered_at = CASE WHEN i.status IN ('delivered', 'read', 'played') THEN coalesce(m.delivered_at, i.at) ELSE m.delivered_at END,
        read_at = CASE WHEN i.status IN ('read', 'played') THEN coalesce(m.read_at, i.at) ELSE m.read_at END,
        played_at = CASE WHEN i.status = 'played' THEN coalesce(m.played_at, i.at) ELSE m.played_at END,
        failed_at = CASE WHEN i.status = 'failed' THEN coalesce(m.failed_at, i.at) END,
        error_code = CASE WHEN i.status <> 'failed' THEN NULL WHEN m.status = 'failed' THEN m.error_code ELSE 'rejected_by_whatsapp' END,
        error_message = CASE WHEN i.status <> 'failed' THEN NULL WHEN m.status = 'failed' THEN m.error_message
                             ELSE 'WhatsApp reported an error for this message' END,
        updated_at = greatest(m.updated_at, i.at)
    FROM input i WHERE m.tenant_id = i.tenant_id AND m.id = i.id
    RETURNING m.*
), met AS (
    INSERT INTO known_chats (tenant_id, session_id, chat_id, first_outbound_at, created_at, updated_at)
    SELECT DISTINCT ON (m.session_id, m.chat_id) m.tenant_id, m.session_id, m.chat_id, i.at, i.at, i.at
    FROM message m JOIN input i USING (tenant_id, id) WHERE i.first AND m.direction = 'outbound'
    ORDER BY m.session_id, m.chat_id
    ON CONFLICT DO NOTHING
)
SELECT ",
    message_columns!(),
    " FROM message m"
);

async fn advance(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    steps: Vec<(AckEvent, MessageId, Vec<Status>, Status)>,
) -> Result<usize, DbError> {
    if steps.is_empty() {
        return Ok(0);
    }
    let rows: Vec<MessageRow> = sql(ADVANCE)
        .bind::<Array<SqlUuid>, _>(steps.iter().map(|(ack, ..)| ack.tenant).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(steps.iter().map(|(_, id, ..)| *id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(steps.iter().map(|(.., status)| status.as_str()).collect::<Vec<_>>())
        .bind::<Array<SmallInt>, _>(steps.iter().map(|(ack, ..)| ack.ack.level()).collect::<Vec<_>>())
        .bind::<Array<Timestamptz>, _>(steps.iter().map(|(ack, ..)| ack.at).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(steps.iter().map(|(_, _, path, _)| path.contains(&Status::Sent)).collect::<Vec<_>>())
        .bind::<Array<Bool>, _>(steps.iter().map(|(ack, ..)| ack.inferred).collect::<Vec<_>>())
        .prepared()
        .load(conn)
        .await?;
    let by_id: HashMap<MessageId, &MessageRow> = rows.iter().map(|row| (row.id, row)).collect();
    let mut changes = Vec::new();
    for (ack, id, path, _) in &steps {
        let Some(message) = by_id.get(id) else { continue };
        for status in path {
            let cause = format!("ack {}", ack.ack.level());
            changes.push(Change { message, status: *status, at: ack.at, cause, attempt: None });
        }
    }
    changes::record(conn, chance, &changes).await?;
    Ok(rows.len())
}
