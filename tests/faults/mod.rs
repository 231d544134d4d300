//! Nothing is lost and nothing doubles, whatever crashes.

mod acks;
mod broker_away;
mod database_away;
mod doubt;
mod gap_fill;
mod handing_over;
mod killed;
mod model;
mod outage;
mod pacing;
mod spool;
mod stopped;
mod table;
