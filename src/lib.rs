//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod config;
pub mod db;
pub mod domain;
pub mod identity;
