//! What WAHA tells, applied to a database of its own: order, repetition, engines, and what is derived.

mod derived;
mod engines;
mod happenings;
mod order;
mod stand;
