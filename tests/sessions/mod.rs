//! Sessions: created, brought to life, followed and shown.

mod counter;
mod creating;
mod doors;
mod lifecycle;
mod outages;
mod placing;
mod liveness;
mod pairing;
mod reconciling;
mod stand;
mod steering;
mod ward;
