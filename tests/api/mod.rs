//! The doors, over real connections to a real database.

mod credentials;
mod doors;
mod idempotency;
mod paging;
mod stand;
mod tenants;
mod waha_servers;

pub use stand::Stand;
