//! A message as the API and its events show it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::domain::content::{ContactCard, Location, MediaContent, Poll};
use crate::domain::ids::{MessageId, SenderPoolId, SessionId, TenantId};
use crate::messages::row::MessageRow;

/// How urgent an outbound message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Leaves before everything else of its session.
    High,
    /// Leaves in its turn.
    #[default]
    Normal,
    /// Leaves when nothing else waits.
    Bulk,
}

impl Priority {
    /// As the database keeps it: the smaller, the sooner.
    #[must_use]
    pub const fn order(self) -> i16 {
        match self {
            Self::High => 0,
            Self::Normal => 1,
            Self::Bulk => 2,
        }
    }

    const fn from_order(order: i16) -> Self {
        match order {
            0 => Self::High,
            2 => Self::Bulk,
            _ => Self::Normal,
        }
    }
}

/// Why a message failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageError<'a> {
    /// Stable code.
    #[schema(example = "refused")]
    pub code: &'a str,
    /// For people.
    pub message: &'a str,
}

/// A message, inbound or outbound.
#[derive(Serialize, ToSchema)]
pub struct Message<'a> {
    /// The message's id (UUID v7).
    pub id: MessageId,
    /// The tenant it belongs to.
    pub tenant_id: TenantId,
    /// The session it goes out or came in by.
    pub session_id: SessionId,
    /// `outbound` or `inbound`.
    #[schema(example = "outbound")]
    pub direction: &'a str,
    /// `scheduled`, `queued`, `sending`, `sent`, `delivered`, `read`, `played`, `failed`, `cancelled`, `expired`; inbound:
    /// `received`. `sending` lasts until WhatsApp's server has acknowledged the message.
    #[schema(example = "queued")]
    pub status: &'a str,
    /// The kind of content.
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub kind: &'a str,
    /// The recipient: E.164 with `+`, or a WhatsApp id where there is no number.
    #[schema(example = "+15550100001")]
    pub to: Option<&'a str>,
    /// The sender: E.164 with `+`, or a WhatsApp id where there is no number.
    pub from: Option<&'a str>,
    /// The WhatsApp chat.
    #[schema(example = "15550100001@c.us")]
    pub chat_id: &'a str,
    /// Outbound: `api`, or `app` when it was written on the phone or another linked device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "api")]
    pub source: Option<&'a str>,
    /// Inbound: who wrote it, as a WhatsApp id; in a group its participant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<&'a str>,
    /// Inbound: the name that its writer goes by on WhatsApp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_name: Option<&'a str>,
    /// When it was written, as WhatsApp says, to the second; absent for what was accepted here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<DateTime<Utc>>,
    /// Whether no webhook told of it: it was found when the chat was read back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub backfilled: bool,
    /// Whether it counts as delivered because the recipient answered, and not because WhatsApp said so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub delivery_inferred: bool,
    /// Text or caption.
    #[schema(example = "Your order has left the house.")]
    pub body: Option<&'a str>,
    /// Where the media is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_url: Option<&'a str>,
    /// The file of an image, video, voice message or document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<MediaContent>)]
    pub media: Option<&'a Value>,
    /// The place of a location.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Location>)]
    pub location: Option<&'a Value>,
    /// The cards of a contact.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<ContactCard>>)]
    pub contacts: Option<&'a Value>,
    /// The question of a poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Poll>)]
    pub poll: Option<&'a Value>,
    /// Who is mentioned, as WhatsApp ids, or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["15550100001@c.us"]))]
    pub mentions: Option<&'a Value>,
    /// Whether the first link of the text gets a preview; absent: it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bool>)]
    pub link_preview: Option<&'a Value>,
    /// How urgent.
    pub priority: Priority,
    /// WhatsApp's bare message id.
    pub waha_message_id: Option<&'a str>,
    /// WhatsApp's latest acknowledgement: −1 error, 0 pending, 1 server, 2 device, 3 read, 4 played.
    pub ack: Option<i16>,
    /// How often handing it to WhatsApp was begun.
    pub attempts: i32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<MessageError<'a>>,
    /// The tenant's own data.
    pub metadata: &'a Value,
    /// The message it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
    /// Not to leave before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Not to leave after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Your own id of the message, unique among all of yours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_reference: Option<&'a str>,
    /// The pool of sessions that it was given to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<SenderPoolId>,
    /// When it was accepted or received.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When WhatsApp's server had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<DateTime<Utc>>,
    /// When it reached the recipient's device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<DateTime<Utc>>,
    /// When it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_at: Option<DateTime<Utc>>,
    /// When it was played.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub played_at: Option<DateTime<Utc>>,
    /// When it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<DateTime<Utc>>,
    /// How often its text was changed on WhatsApp; see `/v1/messages/{id}/edits`.
    #[serde(skip_serializing_if = "is_zero")]
    pub edits: i32,
    /// When its text was last changed on WhatsApp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edited_at: Option<DateTime<Utc>>,
    /// When it was revoked on WhatsApp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<DateTime<Utc>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &i32) -> bool {
    *number == 0
}

impl<'a> From<&'a MessageRow> for Message<'a> {
    fn from(row: &'a MessageRow) -> Self {
        let beyond = |member: &str| row.content.as_ref().and_then(|content| content.get(member));
        let outbound = row.direction == "outbound";
        let peer =
            |number: &'a Option<String>, is_peer: bool| number.as_deref().or(is_peer.then_some(row.chat_id.as_str()));
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            session_id: row.session_id,
            direction: &row.direction,
            status: &row.status,
            kind: &row.message_type,
            to: peer(&row.to_msisdn, outbound),
            from: peer(&row.from_msisdn, !outbound),
            chat_id: &row.chat_id,
            source: outbound.then(|| row.source.as_deref().unwrap_or("api")),
            sender_id: row.sender_id.as_deref(),
            sender_name: row.sender_name.as_deref(),
            occurred_at: row.occurred_at,
            backfilled: row.backfilled,
            delivery_inferred: row.delivery_inferred,
            body: row.body.as_deref(),
            media_url: row.media_url.as_deref(),
            media: beyond("media"),
            location: beyond("location"),
            contacts: beyond("contacts"),
            poll: beyond("poll"),
            mentions: beyond("mentions"),
            link_preview: beyond("link_preview"),
            priority: Priority::from_order(row.priority),
            waha_message_id: row.waha_message_id.as_deref(),
            ack: row.ack,
            attempts: row.attempts,
            error: row
                .error_code
                .as_deref()
                .map(|code| MessageError { code, message: row.error_message.as_deref().unwrap_or_default() }),
            metadata: &row.metadata,
            reply_to: row.reply_to,
            scheduled_at: row.scheduled_at,
            expires_at: row.expires_at,
            client_reference: row.client_reference.as_deref(),
            pool_id: row.pool_id,
            created_at: row.created_at,
            updated_at: row.updated_at,
            sent_at: row.sent_at,
            delivered_at: row.delivered_at,
            read_at: row.read_at,
            played_at: row.played_at,
            failed_at: row.failed_at,
            edits: row.edits,
            edited_at: row.edited_at,
            revoked_at: row.revoked_at,
        }
    }
}

impl Message<'_> {
    /// The resource as JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings, numbers and a JSON value always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}
