//! Deliveries on the wire.

mod guard;
