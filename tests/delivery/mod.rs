//! Events and webhooks, on a real database and real sockets.

mod endpoints;
mod events;
mod guard;
mod http;
mod support;
mod worker;
