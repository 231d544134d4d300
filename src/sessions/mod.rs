//! WhatsApp sessions and the servers that hold them.

pub mod servers;
