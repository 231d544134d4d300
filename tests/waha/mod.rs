//! WAHA's side of the wire: captured webhooks, and servers that answer, break off or hang.

mod captures;
mod events;
mod server;
mod wire;
