//! Whose turn it is, on a clock that tests move.

mod due;
mod fairness;
mod flow;
mod pace;
mod plans;
mod stand;
