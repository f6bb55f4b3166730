//! The snap file.
