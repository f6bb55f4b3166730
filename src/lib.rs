//! etcd-dr: backups of every member of an etcd cluster, sealed, signed and proved.

pub mod at;
pub mod catalog;
pub mod cleaners;
pub mod cli;
pub mod durable;
pub mod endpoint;
pub mod ops;
pub mod plaintext;
pub mod plan;
pub mod policy;
pub mod proof;
pub mod record;
pub mod recovery;
pub mod run;
pub mod seal;
pub mod sign;
pub mod store;
