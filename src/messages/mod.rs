//! Messages: accepting them, changing their status, reading them.
//!
//! A 202 is sent only after the message, its lane's turn and its event are committed together. Every
//! later change goes through [`changes`], which keeps the history and tells the tenant in the transaction of the change.

pub mod accept;
pub mod actions;
pub mod changes;
pub mod facts;
pub mod history;
pub mod votes;
pub mod pool;
pub mod pool_moves;
pub mod queries;
pub mod reactions;
pub mod retry;
pub mod row;
pub mod settle;
pub mod view;
pub mod withdraw;
pub mod writer;
