//! What several tests share.

pub mod proxy;
