//! Switchboard: a multi-tenant WhatsApp gateway. What the API accepted reaches WhatsApp once, in order, at a pace that does
//! not get the number banned, and the tenant learns the truth about it, whatever crashes in between.
//!
//! # The way of a message
//!
//! ```text
//! tenant backend ── POST /v1/messages ──> http ──> messages::accept ──(group commit)──> Postgres: messages, lanes
//!                                                                                         │  202
//!         dispatch: whose turn is it? ──(confirmed)──> RabbitMQ: outbound.<waha server> <─┘
//!                                                               │
//!         sending: claim ─> WAHA (own message id) ─> outcome ──(group commit)──> Postgres
//!                                                               │
//! WAHA ── webhook ──> http ──> ingest: verify HMAC ──(confirmed)──> RabbitMQ: inbound ──> apply in batches ──> Postgres
//!                                                               │
//!         events: the change and its event row share one transaction
//!                       ├─> delivery: signed webhook to the tenant, retries, replay
//!                       └─> RabbitMQ: events (topic), for live streams
//! ```
//!
//! Postgres is the truth, RabbitMQ is the road: the broker can be stopped or wiped at any moment. The modules stand in the
//! order of the flow; imports point inwards: doors (`http`, `sending`, `ingest`, `delivery`) call the capabilities, these
//! call `db`, `broker` and `waha`, and `domain` imports nobody.

// What a process holds, and which parts of the work it does.
pub mod app;
pub mod serve;
pub mod sealed;

// The way of a message.
pub mod http;
pub mod messages;
pub mod dispatch;
pub mod broker;
pub mod sending;
pub mod waha;
pub mod ingest;
pub mod events;
pub mod delivery;

// What it passes through.
pub mod media;
pub mod contacts;
pub mod conversations;
pub mod search;
pub mod retention;
pub mod guard;
pub mod sessions;
pub mod tenants;
pub mod identity;

// What everything stands on.
pub mod config;
pub mod db;
pub mod domain;
pub mod telemetry;

// A WAHA that needs no phone; shares nothing with the client of the real one.
pub mod simulator;
