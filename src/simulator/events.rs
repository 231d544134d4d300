//! The names of events, and which engine knows them.

use super::Engine;

/// The events that are posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    SessionStatus,
    Message,
    MessageAny,
    MessageAck,
    MessageAckGroup,
    MessageReaction,
    MessageEdited,
    MessageRevoked,
    MessageWaiting,
    PollVote,
    PollVoteFailed,
    CallReceived,
    CallAccepted,
    CallRejected,
    GroupJoin,
    GroupLeave,
    GroupUpdate,
    GroupParticipants,
    PresenceUpdate,
    LabelUpsert,
    LabelDeleted,
    LabelChatAdded,
    LabelChatDeleted,
}

impl Event {
    pub const ALL: [Self; 23] = [
        Self::SessionStatus,
        Self::Message,
        Self::MessageAny,
        Self::MessageAck,
        Self::MessageAckGroup,
        Self::MessageReaction,
        Self::MessageEdited,
        Self::MessageRevoked,
        Self::MessageWaiting,
        Self::PollVote,
        Self::PollVoteFailed,
        Self::CallReceived,
        Self::CallAccepted,
        Self::CallRejected,
        Self::GroupJoin,
        Self::GroupLeave,
        Self::GroupUpdate,
        Self::GroupParticipants,
        Self::PresenceUpdate,
        Self::LabelUpsert,
        Self::LabelDeleted,
        Self::LabelChatAdded,
        Self::LabelChatDeleted,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::SessionStatus => "session.status",
            Self::Message => "message",
            Self::MessageAny => "message.any",
            Self::MessageAck => "message.ack",
            Self::MessageAckGroup => "message.ack.group",
            Self::MessageReaction => "message.reaction",
            Self::MessageEdited => "message.edited",
            Self::MessageRevoked => "message.revoked",
            Self::MessageWaiting => "message.waiting",
            Self::PollVote => "poll.vote",
            Self::PollVoteFailed => "poll.vote.failed",
            Self::CallReceived => "call.received",
            Self::CallAccepted => "call.accepted",
            Self::CallRejected => "call.rejected",
            Self::GroupJoin => "group.v2.join",
            Self::GroupLeave => "group.v2.leave",
            Self::GroupUpdate => "group.v2.update",
            Self::GroupParticipants => "group.v2.participants",
            Self::PresenceUpdate => "presence.update",
            Self::LabelUpsert => "label.upsert",
            Self::LabelDeleted => "label.deleted",
            Self::LabelChatAdded => "label.chat.added",
            Self::LabelChatDeleted => "label.chat.deleted",
        }
    }

    pub fn bit(self) -> u32 {
        1 << (self as u32)
    }

    /// Whether this engine tells of it. (WEBJS tells of a call that was rejected by way of the API only: see `circles`.)
    pub fn is_told_by(self, engine: Engine) -> bool {
        use Engine::{Gows, Noweb, Webjs, Wpp};
        match self {
            Self::MessageWaiting => engine == Webjs,
            Self::PollVoteFailed => engine != Wpp,
            Self::CallRejected => engine != Wpp,
            Self::CallAccepted | Self::LabelUpsert | Self::LabelDeleted => matches!(engine, Gows | Noweb),
            Self::LabelChatAdded | Self::LabelChatDeleted => engine != Webjs,
            _ => true,
        }
    }
}

/// Names WAHA accepts in a webhook's `events`.
pub(super) const EVENT_NAMES: &str = "session.status, message, message.reaction, message.any, message.ack, message.ack.group, message.waiting, message.revoked, message.edited, state.change, group.join, group.leave, group.v2.join, group.v2.leave, group.v2.update, group.v2.participants, presence.update, poll.vote, poll.vote.failed, chat.archive, call.received, call.accepted, call.rejected, label.upsert, label.deleted, label.chat.added, label.chat.deleted, event.response, event.response.failed, engine.event, *";
