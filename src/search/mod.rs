//! Full text search of a tenant's messages, in whatever language.
//!
//! [`index`] keeps the words of the messages; [`query`] finds messages by them and shows where they stand.

pub mod index;
pub mod query;
