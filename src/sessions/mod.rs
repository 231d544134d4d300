//! WhatsApp sessions: what should be, what WAHA says, and the step between them.

pub mod directory;
pub mod status;
pub mod view;
