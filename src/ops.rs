//! Operations: each gathers facts, asks [`crate::plan`], and does. They never call each other.

pub mod backup;
pub mod hold;
pub mod init;
pub mod inspect;
pub mod prune;
pub mod restore;
pub mod verify;
