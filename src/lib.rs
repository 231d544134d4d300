//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod app;
pub mod config;
pub mod db;
pub mod domain;
pub mod http;
pub mod identity;
pub mod sessions;
pub mod telemetry;
pub mod tenants;
