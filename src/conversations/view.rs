//! Conversations as the API shows them.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::ids::{ContactId, ConversationId, MessageId, SessionId, TenantId};

/// With whom a conversation is.
#[derive(Serialize, ToSchema)]
pub struct ConversationContact {
    /// The contact's id.
    id: ContactId,
    /// The name you gave them.
    name: Option<String>,
    /// The name they go by on WhatsApp.
    push_name: Option<String>,
    /// Their number: E.164 with `+`.
    #[schema(example = "+15550100001")]
    phone: Option<String>,
    /// Their hidden id.
    lid: Option<String>,
}

/// What was written in a session with one person, or in one group, channel or broadcast list.
#[derive(Serialize, ToSchema, QueryableByName)]
pub struct Conversation {
    /// The conversation's id (UUID v7).
    #[diesel(sql_type = SqlUuid)]
    pub id: ConversationId,
    /// The tenant it belongs to.
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// The session it is held by.
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    /// `direct`, `group`, `channel` or `broadcast`.
    #[diesel(sql_type = Text)]
    #[schema(example = "direct")]
    pub kind: String,
    /// direct: the contact that it is with.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub contact_id: Option<ContactId>,
    /// direct: how the contact is called and where they are reached.
    #[diesel(sql_type = Nullable<Jsonb>)]
    #[schema(value_type = Option<ConversationContact>)]
    pub contact: Option<serde_json::Value>,
    /// The chat as WhatsApp named it last. The messages may have come under other ids of the same person, too.
    #[diesel(sql_type = Text)]
    #[schema(example = "15550100001@c.us")]
    pub chat_id: String,
    /// What to call it: the name you gave the contact or the one they go by, or the group's subject.
    #[diesel(sql_type = Nullable<Text>)]
    pub name: Option<String>,
    /// The latest message, by the time it was written.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub last_message_id: Option<MessageId>,
    /// When that was written.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_message_at: Option<DateTime<Utc>>,
    /// How many messages came in, or went out and were taken by WhatsApp; revoked and erased ones included.
    #[diesel(sql_type = BigInt)]
    pub message_count: i64,
    /// How many came in after `last_read_at`.
    #[diesel(sql_type = Integer)]
    pub unread_count: i32,
    /// What was written until then is read.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_read_at: Option<DateTime<Utc>>,
    /// false once you have put it aside; a message that comes in makes it active again.
    #[diesel(sql_type = Bool)]
    pub is_active: bool,
    /// Goes up with each change that you make.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When its first message was seen.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

/// Somebody in a group.
#[derive(Serialize, ToSchema, QueryableByName)]
pub struct Participant {
    /// Their WhatsApp id.
    #[diesel(sql_type = Text)]
    #[schema(example = "15550100001@c.us")]
    pub wa_id: String,
    /// Their contact, where they are one.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact_id: Option<ContactId>,
    /// The name you gave them or, without one, the name they go by.
    #[diesel(sql_type = Nullable<Text>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Their number, where it is known.
    #[diesel(sql_type = Nullable<Text>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// `participant`, `admin` or `superadmin`.
    #[diesel(sql_type = Text)]
    #[schema(example = "participant")]
    pub role: String,
    /// When they left; absent while they are in the group.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_at: Option<DateTime<Utc>>,
}

/// A conversation with who is in it.
#[derive(Serialize, ToSchema)]
pub struct ConversationDetails {
    /// The conversation.
    #[serde(flatten)]
    pub conversation: Conversation,
    /// group: who is or was in it, as far as it is known.
    pub participants: Vec<Participant>,
}
