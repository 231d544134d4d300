//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod db;
pub mod domain;
