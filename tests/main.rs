//! The tests that need more than one module: one binary, so that everything is linked once.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that goes wrong says so and ends"
)]

mod api;
mod broker;
mod cli;
mod contacts;
mod delivery;
mod dispatch;
mod faults;
mod flow;
mod ingest;
mod isolation;
mod retention;
mod schema;
mod sessions;
mod simulator;
mod support;
mod waha;
