//! The event log.
pub mod log;
