//! Webhooks to tenants, after Standard Webhooks.
//!
//! **Guarantee:** a delivery is attempted at least once, with the same `webhook-id` each time, until the endpoint has
//! answered 2xx, the schedule is used up, or the endpoint is disabled or deleted; what makes a repeat harmless is that id.
//! A request is signed with every secret valid at that moment, and never reaches an address that is not public: the address
//! is checked as it stands in the URL and again, on every answer of the DNS, where the connection is made. An endpoint that
//! hangs or fails uses up its own slots and nobody else's.
//!
//! ```text
//! events::fan_out ─> webhook_deliveries ─> claim ─> attempt ─> outcome ─> webhook_attempts, next try, health of the endpoint
//! ```

mod attempt;
mod claim;
pub mod endpoints;
pub mod guard;
mod keyring;
mod outcome;
pub mod replay;
pub mod schedule;
pub mod sign;
pub mod worker;
