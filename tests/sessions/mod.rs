//! Sessions: created, reconciled, shown.
