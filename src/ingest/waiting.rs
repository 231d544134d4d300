//! What was waiting for a message that has come: changes and reactions told before it, acknowledgements, and answers to it.

use std::collections::HashMap;

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{MessageId, SessionId, TenantId};
use crate::messages::facts::{self, Target};
use crate::messages::row::MessageRow;

/// What waits for messages that are new.
#[derive(Default)]
pub struct Waiting {
    /// Edits, revocations and reactions.
    pub facts: facts::Waiting,
    /// Acknowledgements.
    pub acked: Vec<Target>,
    /// Answers.
    quoted: Vec<Target>,
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    session_id: SessionId,
    #[diesel(sql_type = Text)]
    waha_message_id: String,
    #[diesel(sql_type = Bool)]
    changed: bool,
    #[diesel(sql_type = Bool)]
    reacted: bool,
    #[diesel(sql_type = Bool)]
    acked: bool,
    #[diesel(sql_type = Bool)]
    quoted: bool,
}

// Fenced off, so that each message is looked for by its key: no plan may read a table whole, however small it was once.
const FIND: &str = "\
SELECT * FROM (
    SELECT i.*,
           EXISTS (SELECT FROM message_edits e WHERE e.session_id = i.session_id AND e.waha_message_id = i.waha_message_id OFFSET 0)
           OR EXISTS (SELECT FROM message_revocations r WHERE r.session_id = i.session_id AND r.waha_message_id = i.waha_message_id OFFSET 0) AS changed,
           EXISTS (SELECT FROM message_reactions r WHERE r.session_id = i.session_id AND r.waha_message_id = i.waha_message_id OFFSET 0) AS reacted,
           EXISTS (SELECT FROM early_acks a WHERE a.session_id = i.session_id AND a.waha_message_id = i.waha_message_id OFFSET 0) AS acked,
           EXISTS (SELECT FROM messages q WHERE q.session_id = i.session_id AND q.quoted_waha_id = i.waha_message_id AND q.reply_to IS NULL OFFSET 0) AS quoted
    FROM unnest($1, $2, $3) AS i (tenant_id, session_id, waha_message_id)
) found WHERE changed OR reacted OR acked OR quoted";

/// Looks what waits for `rows`.
///
/// # Errors
/// When the database does not answer.
pub async fn find(conn: &mut AsyncPgConnection, rows: &[MessageRow]) -> Result<Waiting, DbError> {
    let mut waiting = Waiting::default();
    if rows.is_empty() {
        return Ok(waiting);
    }
    let found: Vec<Found> = sql(FIND)
        .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.tenant_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.session_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(
            rows.iter().map(|row| row.waha_message_id.as_deref().unwrap_or_default()).collect::<Vec<_>>(),
        )
        .prepared()
        .load(conn)
        .await?;
    for Found { tenant_id, session_id, waha_message_id, changed, reacted, acked, quoted } in found {
        let target = Target { tenant: tenant_id, session: session_id, waha_message_id };
        let places = [
            (changed, &mut waiting.facts.changed),
            (reacted, &mut waiting.facts.reacted),
            (acked, &mut waiting.acked),
            (quoted, &mut waiting.quoted),
        ];
        for (waits, place) in places {
            if waits {
                place.push(target.clone());
            }
        }
    }
    Ok(waiting)
}

#[derive(QueryableByName)]
struct Linked {
    #[diesel(sql_type = SqlUuid)]
    id: MessageId,
    #[diesel(sql_type = SqlUuid)]
    reply_to: MessageId,
}

const LINK: &str = "\
WITH link AS (
    SELECT m.tenant_id, m.id, o.id AS original
    FROM unnest($1, $2) AS i (session_id, waha_message_id)
    CROSS JOIN LATERAL (
        SELECT * FROM messages o WHERE o.session_id = i.session_id AND o.waha_message_id = i.waha_message_id OFFSET 0) o
    JOIN messages m ON m.session_id = o.session_id AND m.tenant_id = o.tenant_id AND m.quoted_waha_id = o.waha_message_id
    WHERE m.reply_to IS NULL AND m.id <> o.id
    ORDER BY m.tenant_id, m.id FOR UPDATE OF m
)
UPDATE messages m SET reply_to = l.original FROM link l WHERE m.tenant_id = l.tenant_id AND m.id = l.id
RETURNING m.id, m.reply_to";

/// Links answers with what they answer: those among `rows`, and those that were there before what they answer.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn link_replies(
    conn: &mut AsyncPgConnection,
    rows: &mut [MessageRow],
    waiting: &Waiting,
) -> Result<(), DbError> {
    let quoted = rows.iter().filter_map(|row| Some((row.session_id, row.quoted_waha_id.clone()?)));
    let came = waiting.quoted.iter().map(|target| (target.session, target.waha_message_id.clone()));
    let mut originals: Vec<(SessionId, String)> = quoted.chain(came).collect();
    if originals.is_empty() {
        return Ok(());
    }
    originals.sort_unstable();
    originals.dedup();
    let (sessions, ids): (Vec<_>, Vec<_>) = originals.into_iter().unzip();
    let linked: Vec<Linked> =
        sql(LINK).bind::<Array<SqlUuid>, _>(sessions).bind::<Array<Text>, _>(ids).prepared().load(conn).await?;
    let linked: HashMap<MessageId, MessageId> = linked.into_iter().map(|link| (link.id, link.reply_to)).collect();
    for row in rows {
        row.reply_to = linked.get(&row.id).copied().or(row.reply_to);
    }
    Ok(())
}
