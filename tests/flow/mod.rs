//! The way of a message, end to end.

mod first_message;
mod media;
mod pools;
mod two_nodes;
