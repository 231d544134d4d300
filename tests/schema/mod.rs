//! The migrations and what the code believes of their result.

pub mod catalogue;
mod diesel_schema;
mod migrations;
