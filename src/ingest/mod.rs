//! What WAHA tells us.

pub mod acks;
