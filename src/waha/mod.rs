//! WAHA: the only home of what WAHA's API looks like.
//!
//! Calls go out through one [`WahaClient`]; what a send proved comes back as a [`SendOutcome`], what any other call answered as a
//! value or a [`CallError`]. WAHA's webhooks come in through [`webhook`]. Nothing outside this module sees WAHA's JSON.
//!
//! **Guarantee:** an outcome says *not sent* only when the message certainly did not reach WhatsApp. Whatever leaves a doubt is
//! [`SendOutcome::Unknown`], and no error, log line or `Debug` output built here carries message text, phone numbers, QR values
//! or keys.

mod answer;
mod calls;
mod client;
mod engine;
mod error;
mod features;
mod files;
mod happenings;
mod id;
mod message;
mod outgoing;
mod passkey;
mod read_back;
mod send;
mod session;
mod surrogates;
pub mod webhook;

pub use calls::{LidPair, MessageFilter, NumberCheck, ServerStatus, ServerVersion};
pub use client::{Server, Timeouts, WahaClient};
pub use engine::{Engine, SessionStatus, UnknownEngine};
pub use error::CallError;
pub use features::Limitation;
pub use files::{FileAddress, FileAnswer, FilePath};
pub use happenings::{
    CallStage, GroupChange, GroupHappening, GroupMember, GroupRole, IncomingCall, LabelChange, Presence, Vote,
};
pub use id::{bare_id, chat_of, new_message_id};
pub use message::{Beyond, KeptReaction, Media, Source, WahaMessage};
pub use outgoing::{
    ContactCard, FileSource, ForwardMessage, MediaFile, MediaKind, Outgoing, Poll, SendContacts, SendLocation,
    SendMedia, SendPoll, SendText, endpoint_of,
};
pub use read_back::{ChatOverview, MessagePage};
pub use send::{NotSent, RefusalCode, SendOutcome, Unknown};
pub use session::{Me, Proxy, Restriction, SessionInfo, SessionSpec, WEBHOOK_EVENTS};
