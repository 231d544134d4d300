//! Sessions: created, brought to life, followed and shown.

pub mod counter;
mod creating;
mod doors;
mod lifecycle;
mod outages;
mod placing;
mod liveness;
mod pairing;
mod reconciling;
pub mod stand;
mod steering;
pub mod ward;
mod webhook_keys;
