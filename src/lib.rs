//! Switchboard: a multi-tenant WhatsApp gateway.

pub mod app;
pub mod broker;
pub mod config;
pub mod db;
pub mod delivery;
pub mod dispatch;
pub mod domain;
pub mod events;
pub mod http;
pub mod identity;
pub mod ingest;
pub mod messages;
pub mod sending;
pub mod serve;
pub mod sessions;
pub mod simulator;
pub mod telemetry;
pub mod tenants;
pub mod waha;
