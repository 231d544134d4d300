//! Counting a conversation's messages anew: the rare way, when what was counted so far has to be told apart.
//!
//! The projection counts a message when it comes to its event, which may be a moment after the message is there. So that nothing is
//! counted twice, a message is left out here as long as the projection still has it ahead. Who holds the tenant's lock sees the
//! cursor and the conversations as one batch of the projection left them.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{ContactId, ConversationId, MessageId, SessionId, TenantId};
use crate::domain::person;

/// The messages that the projection of the tenant `$1` still has ahead.
macro_rules! ahead {
    () => {
        "WITH ahead AS MATERIALIZED ( \
             SELECT e.message_id FROM event_cursors k \
             JOIN events e ON e.tenant_id = $1 AND e.xact >= k.xact AND (e.xact, e.seq) > (k.xact, k.seq) \
             WHERE k.name = 'conversations' AND e.message_id IS NOT NULL AND (e.type IN ('message.received', 'message.sent') \
                OR e.type IN ('message.delivered', 'message.read', 'message.played') AND NOT EXISTS ( \
                    SELECT FROM message_transitions t WHERE t.tenant_id = e.tenant_id AND t.message_id = e.message_id \
                       AND t.status = ANY(CASE e.type WHEN 'message.delivered' THEN ARRAY['sent'] \
                                                      WHEN 'message.read' THEN ARRAY['sent', 'delivered'] \
                                                      ELSE ARRAY['sent', 'delivered', 'read'] END)))) "
    };
}

/// The ids under which `contact` may write, as chats.
pub(super) async fn chats_of(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    contact: ContactId,
) -> Result<Vec<String>, DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        key: String,
    }
    let rows: Vec<Row> = sql("SELECT key FROM contact_ids WHERE tenant_id = $1 AND contact_id = $2")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(contact)
        .prepared()
        .load(conn)
        .await?;
    Ok(rows.iter().flat_map(|row| person::chat_ids(&row.key)).collect())
}

/// The chats of each of the `conversations`.
async fn chats(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    conversations: &[ConversationId],
) -> Result<(Vec<ConversationId>, Vec<String>), DbError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: ConversationId,
        #[diesel(sql_type = Text)]
        key: String,
    }
    let rows: Vec<Row> = sql("SELECT c.id, coalesce(i.key, c.chat_id) AS key FROM conversations c \
         LEFT JOIN contact_ids i ON i.tenant_id = c.tenant_id AND i.contact_id = c.contact_id \
         WHERE c.tenant_id = $1 AND c.id = ANY($2)")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(conversations)
    .prepared()
    .load(conn)
    .await?;
    Ok(rows.into_iter().flat_map(|row| person::chat_ids(&row.key).into_iter().map(move |chat| (row.id, chat))).unzip())
}

/// Counts anew what is unread in `conversations`: what came in after their `last_read_at`.
pub(super) async fn unread(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    conversations: &[ConversationId],
) -> Result<(), DbError> {
    if conversations.is_empty() {
        return Ok(());
    }
    let (ids, chats) = chats(conn, tenant, conversations).await?;
    sql(concat!(
        ahead!(),
        ", counted AS ( \
             SELECT w.id, count(m.id)::int AS unread FROM unnest($2, $3) AS w (id, chat_id) \
             JOIN conversations c ON c.tenant_id = $1 AND c.id = w.id \
             LEFT JOIN LATERAL ( \
                 SELECT m.id FROM messages m \
                 WHERE m.tenant_id = $1 AND m.session_id = c.session_id AND m.chat_id = w.chat_id \
                   AND coalesce(m.occurred_at, m.created_at) > coalesce(c.last_read_at, '-infinity') \
                   AND m.direction = 'inbound' AND NOT m.is_stub AND m.id NOT IN (SELECT message_id FROM ahead)) m ON true \
             GROUP BY w.id) \
         UPDATE conversations c SET unread_count = n.unread, updated_at = $4 FROM counted n \
         WHERE c.tenant_id = $1 AND c.id = n.id AND c.unread_count <> n.unread"
    ))
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Text>, _>(chats)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// What to count: the messages of some chats of a session.
pub(super) struct Ask<'a> {
    pub session: SessionId,
    pub chats: &'a [String],
    /// What came in until then is read.
    pub read: Option<DateTime<Utc>>,
}

/// What a conversation's messages come to.
#[derive(Clone, QueryableByName)]
pub(super) struct Stats {
    #[diesel(sql_type = Integer)]
    place: i32,
    #[diesel(sql_type = BigInt)]
    pub messages: i64,
    #[diesel(sql_type = Integer)]
    pub unread: i32,
    #[diesel(sql_type = SqlUuid)]
    pub last_id: MessageId,
    #[diesel(sql_type = Timestamptz)]
    pub last_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    pub last_waha_id: String,
    #[diesel(sql_type = Text)]
    pub chat_id: String,
}

/// Counts everything anew, for each of `asked`; `None` where there is nothing.
pub(super) async fn all(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    asked: &[Ask<'_>],
) -> Result<Vec<Option<Stats>>, DbError> {
    let (mut places, mut sessions, mut chats, mut reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (place, ask) in (0_i32..).zip(asked) {
        for chat in ask.chats {
            places.push(place);
            sessions.push(ask.session);
            chats.push(chat.as_str());
            reads.push(ask.read);
        }
    }
    let rows: Vec<Stats> = sql(concat!(
        ahead!(),
        ", counted AS ( \
             SELECT w.place, m.id, coalesce(m.occurred_at, m.created_at) AS moment, coalesce(m.waha_message_id, '') AS waha_id, m.chat_id, \
                    m.direction = 'inbound' AND coalesce(m.occurred_at, m.created_at) > coalesce(w.read, '-infinity') AS unread \
             FROM unnest($2, $3, $4, $5) AS w (place, session_id, chat_id, read) \
             JOIN messages m ON m.tenant_id = $1 AND m.session_id = w.session_id AND m.chat_id = w.chat_id \
             WHERE CASE m.direction WHEN 'inbound' THEN NOT m.is_stub ELSE m.status IN ('sent', 'delivered', 'read', 'played') END \
               AND m.id NOT IN (SELECT message_id FROM ahead)) \
         SELECT DISTINCT ON (place) place, count(*) OVER w AS messages, (count(*) FILTER (WHERE unread) OVER w)::int AS unread, \
                id AS last_id, moment AS last_at, waha_id AS last_waha_id, chat_id \
         FROM counted WINDOW w AS (PARTITION BY place) \
         ORDER BY place, moment DESC, waha_id COLLATE \"C\" DESC, id DESC"
    ))
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<Integer>, _>(places)
    .bind::<Array<SqlUuid>, _>(sessions)
    .bind::<Array<Text>, _>(chats)
    .bind::<Array<Nullable<Timestamptz>>, _>(reads)
    .prepared()
    .load(conn)
    .await?;
    let mut answers: Vec<Option<Stats>> = asked.iter().map(|_| None).collect();
    for row in rows {
        if let Some(answer) = usize::try_from(row.place).ok().and_then(|place| answers.get_mut(place)) {
            *answer = Some(row);
        }
    }
    Ok(answers)
}
