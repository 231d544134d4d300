//! Contacts and conversations, as messages and links make them.

mod merging;
mod nodes;
mod orders;
mod plans;
mod stand;
