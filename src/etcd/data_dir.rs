//! A member's data directory as a restore writes it.
