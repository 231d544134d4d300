//! Contacts as the API shows them.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::ids::{ContactId, ContactMergeId, ConversationId, SessionId, TenantId};

/// A person you are in touch with, under whatever ids WhatsApp knows them.
#[derive(Serialize, ToSchema, QueryableByName)]
pub struct Contact {
    /// The contact's id (UUID v7).
    #[diesel(sql_type = SqlUuid)]
    pub id: ContactId,
    /// The tenant it belongs to.
    #[diesel(sql_type = SqlUuid)]
    pub tenant_id: TenantId,
    /// Their number, where it is known: E.164 with `+`.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(example = "+15550100001")]
    pub phone: Option<String>,
    /// Their hidden id, where they have been met under it.
    #[diesel(sql_type = Nullable<Text>)]
    #[schema(example = "77000123@lid")]
    pub lid: Option<String>,
    /// The name you gave them.
    #[diesel(sql_type = Nullable<Text>)]
    pub name: Option<String>,
    /// The name they go by on WhatsApp.
    #[diesel(sql_type = Nullable<Text>)]
    pub push_name: Option<String>,
    /// Your tags.
    #[diesel(sql_type = Array<Text>)]
    pub tags: Vec<String>,
    /// Your notes.
    #[diesel(sql_type = Nullable<Text>)]
    pub notes: Option<String>,
    /// When they last wrote, to the minute.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_seen_at: Option<DateTime<Utc>>,
    /// Goes up with each change of what you or WhatsApp say of them.
    #[diesel(sql_type = BigInt)]
    pub version: i64,
    /// When they were first seen.
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    /// When the contact last changed.
    #[diesel(sql_type = Timestamptz)]
    pub updated_at: DateTime<Utc>,
}

/// Where a contact is reached.
#[derive(Serialize, ToSchema, QueryableByName)]
pub struct ContactChat {
    /// By this session.
    #[diesel(sql_type = SqlUuid)]
    pub session_id: SessionId,
    /// In this conversation.
    #[diesel(sql_type = SqlUuid)]
    pub conversation_id: ConversationId,
    /// Under this id, which WhatsApp used last.
    #[diesel(sql_type = Text)]
    #[schema(example = "15550100001@c.us")]
    pub chat_id: String,
}

/// Another contact that turned out to be this person.
#[derive(Serialize, ToSchema, QueryableByName)]
pub struct ContactMerge {
    /// The merge's id.
    #[diesel(sql_type = SqlUuid)]
    pub id: ContactMergeId,
    /// The contact that is a part of this one since then; its id answers this contact.
    #[diesel(sql_type = SqlUuid)]
    pub contact_id: ContactId,
    /// What told it: `message`, `lookup`, `send` or `tenant`.
    #[diesel(sql_type = Text)]
    #[schema(example = "message")]
    pub because: String,
    /// When.
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    /// When it was taken back.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undone_at: Option<DateTime<Utc>>,
}

/// A contact with everything that is known of it.
#[derive(Serialize, ToSchema)]
pub struct ContactDetails {
    /// The contact.
    #[serde(flatten)]
    pub contact: Contact,
    /// Every id they go by on WhatsApp.
    #[schema(example = json!(["15550100001@c.us", "77000123@lid"]))]
    pub wa_ids: Vec<String>,
    /// Where they are reached, session by session.
    pub chats: Vec<ContactChat>,
    /// The contacts that turned out to be this person, latest first.
    pub merges: Vec<ContactMerge>,
}
