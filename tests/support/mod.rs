//! What tests share: a database of their own, processes, faults on the wire, and waiting without sleeping.
#![allow(dead_code, unused_imports, reason = "a helper is kept for the tests that will need it")]

pub mod browser;
pub mod database;
pub mod file_keeper;
pub mod invariants;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod said_waha;
mod selftest;
pub mod sse;
pub mod truth;
pub mod wait;
pub mod world;

pub use browser::Browser;
pub use database::TestDb;
pub use file_keeper::FileKeeper;
pub use process::{Process, free_port};
pub use proxy::TcpProxy;
pub use receiver::{Answer, Receiver};
pub use sse::Stream;
pub use wait::{eventually, hurry};
pub use world::World;
