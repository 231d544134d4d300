//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod app;
pub mod config;
pub mod db;
pub mod delivery;
pub mod domain;
pub mod events;
pub mod identity;
