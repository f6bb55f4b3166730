//! Decisions: pure in (facts, policy, now); no I/O and no clock; each carries its reasons.

pub mod agreement;
pub mod known_bad;
pub mod primary;
pub mod restore;
pub mod retention;
