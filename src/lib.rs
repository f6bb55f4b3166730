//! etcd-dr: backups of every member of an etcd cluster, sealed, signed and proved.
