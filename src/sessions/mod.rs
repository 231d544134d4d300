//! WhatsApp sessions and the WAHA servers they live on: what should be, what WAHA says, and the step between them.

pub mod calls;
pub mod change;
pub mod create;
pub mod directory;
pub mod liveness;
pub mod moving;
pub mod probe;
pub mod proxy;
pub mod qr;
pub mod numbers;
pub mod pairing;
pub mod pairing_link;
pub mod passkey;
pub mod queries;
pub mod queue;
pub mod reconcile;
pub mod removal;
pub mod restriction;
pub mod servers;
pub mod status;
pub mod timeline;
pub mod view;
pub mod webhook_keys;
