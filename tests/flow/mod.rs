//! The way of a message, end to end.

mod first_message;
mod gap_fill;
mod media;
mod moving;
mod pairing;
mod pairing_page;
mod pools;
mod two_nodes;
mod webhook_keys;
