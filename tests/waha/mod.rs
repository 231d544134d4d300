//! WAHA's side of the wire: captured webhooks, and servers that answer, break off or hang.

mod arbitrary;
mod captures;
mod contract;
mod events;
pub mod server;
mod wire;
