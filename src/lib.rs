//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod domain;
pub mod waha;
