//! etcd-dr: backups of every member of an etcd cluster, sealed, signed and proved.

pub mod at;
pub mod catalog;
pub mod cleaners;
pub mod durable;
pub mod ops;
pub mod plaintext;
pub mod plan;
pub mod policy;
pub mod record;
pub mod seal;
pub mod sign;
pub mod store;
