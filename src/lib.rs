//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod app;
pub mod config;
pub mod db;
pub mod domain;
pub mod events;
pub mod identity;
pub mod messages;
pub mod simulator;
pub mod waha;
