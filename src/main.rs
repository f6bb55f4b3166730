//! The `etcd-dr` binary: see the library's documentation.

fn main() {}
