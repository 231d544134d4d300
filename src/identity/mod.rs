//! Who calls, and what they may do.

pub mod api_keys;
pub mod keys;
pub mod rotate;
pub mod scope;
pub mod seal;
pub mod signed;
