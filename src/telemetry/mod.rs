//! What operators see: logs and metrics. Neither holds message text, phone numbers, QR values or keys.

pub mod logs;
pub mod metrics;
pub mod trace;
