//! The doors, over real connections to a real database.

mod contacts;
mod conversations;
mod credentials;
mod doors;
mod hooks;
mod media;
mod idempotency;
mod message_actions;
mod message_media;
mod messages;
mod messages_batch;
mod messages_kinds;
mod messages_listed;
mod messages_steps;
mod operations;
mod paging;
mod registering;
mod search;
mod sender_pools;
mod stand;
mod tenants;
mod waha_servers;

pub use stand::Stand;
