//! Nothing is lost and nothing doubles, whatever crashes.

mod broker_away;
mod killed;
