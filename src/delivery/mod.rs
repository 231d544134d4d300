//! Webhooks to tenants.
//!
//! **Guarantee:** a request to a tenant's address is signed with every secret valid at that moment, and never reaches an address
//! that is not public: the address is checked as it stands in the URL and again, on every answer of the DNS, where the
//! connection is made.

pub mod guard;
pub mod schedule;
pub mod sign;
