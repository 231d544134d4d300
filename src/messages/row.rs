//! A message as the database keeps it.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use serde::Deserialize;

use crate::domain::content::Content;
use crate::domain::ids::{MessageId, SenderPoolId, SessionId, TenantId};

/// The columns of [`MessageRow`] from the alias `m`, for the statements that answer whole messages.
macro_rules! message_columns {
    () => {
        "m.tenant_id, m.id, m.session_id, m.direction, m.status, m.priority, m.message_type, m.chat_id, m.to_msisdn, \
         m.from_msisdn, m.body, m.media_url, m.reply_to, m.metadata, m.waha_message_id, m.ack, m.attempts, m.error_code, \
         m.error_message, m.scheduled_at, m.expires_at, m.sent_at, m.delivered_at, m.read_at, m.played_at, m.failed_at, \
         m.created_at, m.updated_at, m.content, m.client_reference, m.pool_id, m.edited_at, m.revoked_at, \
         m.source, m.occurred_at, m.sender_id, m.sender_name, m.backfilled, m.delivery_inferred, m.edits, m.quoted_waha_id"
    };
}
pub(crate) use message_columns;

/// WhatsApp's id, whole, of the message under this alias: as the engine said it, else put together as engines do.
macro_rules! whatsapp_id {
    ($m:literal) => {
        concat!(
            "coalesce(CASE WHEN left(",
            $m,
            ".raw_payload ->> 'id', 5) IN ('true_', 'false') THEN ",
            $m,
            ".raw_payload ->> 'id' END, ",
            $m,
            ".raw_payload -> 'id' ->> '_serialized', ",
            "(",
            $m,
            ".direction = 'outbound')::text || '_' || ",
            $m,
            ".chat_id || '_' || ",
            $m,
            ".waha_message_id)"
        )
    };
}
pub(crate) use whatsapp_id;

/// A message as the database keeps it; the meaning of each field is that of the API's resource.
#[derive(Clone, QueryableByName)]
#[expect(missing_docs, reason = "documented on the resource, view::Message")]
pub struct MessageRow {
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    #[diesel(sql_type = SqlUuid)]
    pub id: MessageId,
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    #[diesel(sql_type = Text)]
    pub direction: String,
    #[diesel(sql_type = Text)]
    pub status: String,
    #[diesel(sql_type = SmallInt)]
    pub priority: i16,
    #[diesel(sql_type = Text)]
    pub message_type: String,
    #[diesel(sql_type = Text)]
    pub chat_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub to_msisdn: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub from_msisdn: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub body: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub media_url: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub reply_to: Option<MessageId>,
    #[diesel(sql_type = Jsonb)]
    pub metadata: serde_json::Value,
    #[diesel(sql_type = Nullable<Text>)]
    pub waha_message_id: Option<String>,
    #[diesel(sql_type = Nullable<SmallInt>)]
    pub ack: Option<i16>,
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    pub error_code: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub error_message: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub scheduled_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub sent_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub delivered_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub read_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub played_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub failed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
    /// What the message says beyond its body: [`Content`] as JSON.
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub content: Option<serde_json::Value>,
    #[diesel(sql_type = Nullable<Text>)]
    pub client_reference: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub pool_id: Option<SenderPoolId>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub edited_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub revoked_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub source: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub occurred_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub sender_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub sender_name: Option<String>,
    #[diesel(sql_type = Bool)]
    pub backfilled: bool,
    #[diesel(sql_type = Bool)]
    pub delivery_inferred: bool,
    #[diesel(sql_type = Integer)]
    pub edits: i32,
    #[diesel(sql_type = Nullable<Text>)]
    pub quoted_waha_id: Option<String>,
}

impl MessageRow {
    /// What the message says beyond its body.
    #[must_use]
    pub fn content(&self) -> Content {
        // Only `Content` is ever written there.
        self.content.as_ref().and_then(|content| Content::deserialize(content).ok()).unwrap_or_default()
    }
}

// A message holds text and numbers, which belong in no log.
impl std::fmt::Debug for MessageRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessageRow").field("id", &self.id).field("status", &self.status).finish_non_exhaustive()
    }
}
