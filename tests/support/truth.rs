//! Whether what is stored is what happened: the simulator's ledger against the rows of a session, message by message.

use std::collections::BTreeMap;
use std::time::Duration;

use switchboard::simulator::{Control, ConversationMessage, Direction};
use tokio_postgres::Client;

use super::eventually;

/// One message, as either side has it in the end. What both sides come to tell is added here, in [`of_simulator`] and in
/// [`of_database`], and is compared from then on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The bare id.
    pub id: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// `api`, or `app` for what somebody typed.
    pub source: String,
    /// The chat, by number.
    pub chat: String,
    /// Text or caption, as it is now; of one that was taken back nothing, since nobody may have heard it before.
    pub text: String,
    /// As the API calls it: `received`, `sent`, `read`, … What was concluded from an answer alone, WAHA never said.
    pub status: String,
    /// Whether it was taken back.
    pub revoked: bool,
    /// Emoji by person; the session's own account is nobody.
    pub reactions: BTreeMap<String, String>,
}

/// What happened in `external`, WAHA's name of a session, in the order of ids.
pub fn of_simulator(control: &Control, external: &str) -> Vec<Line> {
    let Ok(conversations) = control.conversation(external) else { return Vec::new() };
    let line = |message: &ConversationMessage| Line {
        id: message.id.clone(),
        direction: if message.direction == Direction::Inbound { "inbound" } else { "outbound" }.to_owned(),
        source: message.source.to_owned(),
        chat: message.chat.clone(),
        text: if message.revoked { String::new() } else { message.text.clone() },
        status: match (message.direction, message.ack) {
            (Direction::Inbound, _) => "received",
            (_, -1) => "failed",
            (_, 0) => "sending",
            (_, 1) => "sent",
            (_, 2) => "delivered",
            (_, 3) => "read",
            _ => "played",
        }
        .to_owned(),
        revoked: message.revoked,
        reactions: if message.revoked { BTreeMap::new() } else { message.reactions.clone() },
    };
    let mut lines: Vec<Line> = conversations.messages().map(line).collect();
    lines.sort();
    lines
}

/// What is stored of the session `session`, likewise; a message that is there twice is there twice.
pub async fn of_database(client: &Client, session: &str) -> Vec<Line> {
    let rows = client
        .query(
            "SELECT coalesce(m.waha_message_id, ''), m.direction, CASE WHEN m.direction = 'inbound' THEN 'app' ELSE coalesce(m.source, 'api') END,
                    m.chat_id, CASE WHEN m.revoked_at IS NULL THEN coalesce(m.body, '') ELSE '' END,
                    CASE WHEN m.delivery_inferred THEN 'sent' ELSE m.status END, m.revoked_at IS NOT NULL,
                    ARRAY(SELECT r.person FROM message_reactions r WHERE r.session_id = m.session_id AND r.waha_message_id = m.waha_message_id
                          AND r.emoji <> '' AND m.revoked_at IS NULL ORDER BY r.person),
                    ARRAY(SELECT r.emoji FROM message_reactions r WHERE r.session_id = m.session_id AND r.waha_message_id = m.waha_message_id
                          AND r.emoji <> '' AND m.revoked_at IS NULL ORDER BY r.person)
               FROM messages m WHERE m.session_id::text = $1",
            &[&session],
        )
        .await
        .unwrap();
    let mut lines: Vec<Line> = rows
        .iter()
        .map(|row| Line {
            id: row.get(0),
            direction: row.get(1),
            source: row.get(2),
            chat: row.get(3),
            text: row.get(4),
            status: row.get(5),
            revoked: row.get(6),
            reactions: row.get::<_, Vec<String>>(7).into_iter().zip(row.get::<_, Vec<String>>(8)).collect(),
        })
        .collect();
    lines.sort();
    lines
}

/// The lines in which both differ; empty when they are equal.
pub fn difference(happened: &[Line], stored: &[Line]) -> Vec<String> {
    let missing = happened.iter().filter(|line| !stored.contains(line)).map(|line| format!("not stored: {line:?}"));
    let unheard = stored.iter().filter(|line| !happened.contains(line)).map(|line| format!("never happened: {line:?}"));
    let mut differences: Vec<String> = missing.chain(unheard).collect();
    if differences.is_empty() && happened.len() != stored.len() {
        differences.push(format!("{} messages are stored as {} rows", happened.len(), stored.len()));
    }
    differences
}

/// Waits until what is stored of the sessions (their ids here and their names at WAHA) is what happened; panics with the differences.
pub async fn holds(client: &Client, control: &Control, sessions: &[(String, String)], patience: Duration) {
    for (session, external) in sessions {
        let mut differences = Vec::new();
        let waiting = eventually(patience * 2, "the truth", async || {
            differences = difference(&of_simulator(control, external), &of_database(client, session).await);
            differences.is_empty().then_some(())
        });
        if tokio::time::timeout(patience, waiting).await.is_err() {
            differences.truncate(10);
            panic!("{external}: {differences:#?}");
        }
    }
    told_once(client).await;
}

/// Every inbound message has been told of once, however often it was heard.
async fn told_once(client: &Client) {
    let rows = client
        .query(
            "SELECT m.waha_message_id, count(e.seq) FROM messages m
               LEFT JOIN events e ON e.tenant_id = m.tenant_id AND e.message_id = m.id AND e.type = 'message.received'
              WHERE m.direction = 'inbound' GROUP BY m.tenant_id, m.id, m.waha_message_id HAVING count(e.seq) <> 1",
            &[],
        )
        .await
        .unwrap();
    let odd: Vec<(Option<String>, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(odd.is_empty(), "told more or less often than once: {odd:?}");
}
