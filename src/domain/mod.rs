//! Pure types: what the words of the API mean, independent of doors, database and network.

pub mod chance;
pub mod clock;
pub mod content;
pub mod emoji;
pub mod failure;
pub mod ids;
pub mod person;
pub mod recipient;
pub mod status;
pub mod template;
