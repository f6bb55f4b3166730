//! The encrypted, unlinked copy of a plaintext that must be read at random.
