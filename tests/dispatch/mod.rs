//! Whose turn it is, on a clock that tests move.

mod due;
mod stand;
