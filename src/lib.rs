//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod broker;
pub mod domain;
