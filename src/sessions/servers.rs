//! The registry of WAHA servers.
