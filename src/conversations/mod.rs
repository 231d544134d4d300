//! Conversations: what was written in a session with one person, or in one group.
//!
//! They are a projection of the event log ([`projection`]), so that neither intake nor sending waits for them. A person who goes by
//! several ids has one conversation per session, whichever of them a message came under.

mod count;
mod joining;
pub mod projection;
pub mod queries;
mod reading;
pub mod view;
mod write;

pub use joining::{join, part};
pub use reading::{MarkedRead, mark_read, note_read};

/// What a chat is with, by its WhatsApp id; `None` for what is no chat.
fn kind(chat_id: &str) -> Option<&'static str> {
    match chat_id.split_once('@')?.1 {
        "g.us" => Some("group"),
        "newsletter" => Some("channel"),
        "broadcast" => Some("broadcast"),
        _ => crate::domain::person::key(chat_id).map(|_| "direct"),
    }
}
