//! Everything that needs more than one module: one binary, so that it is linked once.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that goes wrong may stop")]

mod api;
mod delivery;
mod simulator;
mod waha;
