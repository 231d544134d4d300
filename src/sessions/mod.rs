//! WhatsApp sessions and the WAHA servers they live on: what should be, what WAHA says, and the step between them.

pub mod change;
pub mod create;
pub mod directory;
pub mod qr;
pub mod numbers;
pub mod queries;
pub mod queue;
pub mod reconcile;
pub mod restriction;
pub mod servers;
pub mod status;
pub mod view;
