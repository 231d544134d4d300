//! Sessions: created, brought to life, followed and shown.

mod counter;
mod creating;
mod doors;
mod reconciling;
mod stand;
mod steering;
