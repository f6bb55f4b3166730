//! Revisions, records, HashKV.
