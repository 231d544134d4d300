//! The event log: what tenants are told about, and everything that reads it.
//!
//! An event is written in the transaction of the change it tells of ([`log`]), so there is one for each committed change
//! and none for a change that was rolled back. Readers take events in one order that never has a gap ([`query`]),
//! and so do those in the background who follow the log ([`follower`]). One of these, [`fan_out`], hands events to webhook
//! endpoints and to live streams.

pub mod fan_out;
pub mod follower;
pub mod live;
pub mod log;
pub mod query;
pub mod types;
pub mod view;
