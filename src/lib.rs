//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod delivery;
pub mod domain;
pub mod waha;
