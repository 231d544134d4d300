//! WhatsApp sessions and the WAHA servers they live on: what should be, what WAHA says, and the step between them.

pub mod directory;
pub mod servers;
pub mod status;
pub mod view;
