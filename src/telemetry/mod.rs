//! What operators see: logs, metrics, trace context.

pub mod trace;
