//! Backups of every member of an etcd cluster: sealed, signed, proved sound before they count; and the way back.
//!
//! # A backup
//!
//! One directory in a store. It is written as `.partial-<id>/`, synced, and gets its name by one rename, so what has a name is whole.
//! Stock tools read all of it: `minisign -V`, `sha256sum -c`, `age -d | zstd -d`, `etcdutl`.
//!
//! ```text
//! /backup/etcd/                      the store: 0700, marked by .etcd-dr-store.json, with its journal, holds and lock
//!   20261122T020000Z-7f3a/           one backup
//!     etcd-<member>.db.zst.age       the snapshot of one member
//!     backup.json                    the index: cluster, members, revisions, digests, proof, what failed
//!     RECOVERY.md                    how this cluster is brought back, with and without etcd-dr
//!     SHA256SUMS, SHA256SUMS.minisig digests of all of the above, and the signature that vouches for them
//!     proofs/                        later proofs, each signed
//! ```
//!
//! # How `backup` gets there
//!
//! ```text
//! etcd ──stream──▶ SHA-256 ──▶ zstd ──▶ age ──▶ disk          the plaintext and the sealed bytes are both hashed on the way
//!                     ▲                           │
//!                     └── equal? ◀── zstd ◀── age ◀┘           read back, past the page cache where the file system allows it
//!                                      │
//!                                      ▼
//!                    scratch ──▶ pages, records, HashKV        an encrypted file without a name; nothing of it is left
//!                                             │
//!        every member's live HashKV ──▶ equal? ◀── the other files, at revisions that both can compute
//! ```
//!
//! Each run makes an age identity in memory and adds its recipient to the policy's, so it opens what it wrote without the operator's
//! identity, and forgets it. One member streams at a time, the leader last; the proof of one overlaps the stream of the next. The digest
//! that etcd appends to a snapshot is compared with the data. No plaintext and no key reaches a disk.
//!
//! A *proof level* says what was seen: `digest` (signature, digests, no file missing and none beside), then `open` (it decrypts to what
//! was streamed), then `sound` (the database is whole, and equal to what the members answer). `boot` and `serve` have names already and are
//! not built. `verify` judges with the same code and adds a dated, signed record. A member that gave nothing makes a backup *partial*: kept,
//! named, and never a success. Members that differ are named, all kept and marked; the *primary* is a file of the majority, and where there is
//! none, a person has to choose.
//!
//! # How `restore` gives it back
//!
//! ```text
//! sealed file ──▶ scratch ──walk──▶ rows ──▶ bulk writer ──┬──▶ member 1's database      one read writes all members
//!                   │                (membership, bump)    ├──▶ member 2's               each with its own log and snap file
//!                   └── HashKV = backup.json's?            └──▶ member 3's
//!                                                                 │
//!                        HashKV of the written rows = source's? ◀─┘  read back from the disk; only then is anything renamed
//! ```
//!
//! What is decided is a value (`plan::restore`), printed by `--dry-run`, carried to the other hosts as `--plan`. The revision is raised above
//! every one that the journal, the backups or the members that answer know of, and everything before it marked as compacted, so that
//! clients list anew. What stands at a target is moved aside, never removed.
//!
//! # Rooms
//!
//! Data and knowledge flow down this list. A room knows those below it and none above it, and the operations in `ops` do not know each
//! other; `tests/layers.rs` reads the list from here.
//!
//! ```rooms
//! main       the umask, the TLS provider, the clock, the exit
//! cli        what was asked, and how the answer is shown; words and exit codes of errors; the only code that prints
//! run        one scheduled run: a backup, then retention
//! ops        backup, hold, init, inspect, prune, restore, verify: gather facts, ask plan, act
//! plan       decisions, pure in (facts, policy, now), each with its reasons; no I/O and no clock
//! source     the one snapshot that is restored or inspected: found, believed, opened
//! catalog    what exists in a store, believed only as far as it is signed
//! endpoint   one member's client: status, member list, snapshot stream, HashKV
//! recovery   RECOVERY.md
//! proof      the evidence for one level, on the bytes that are stored
//! cleaners   cron lines, timers and tmpfiles rules that delete in a store
//! plaintext  unencrypted snapshots beside the backups
//! store      marker, lock, journal, holds, and the guard over owners and modes
//! seal       the pipe and back, the one place that finishes streams; identities and recipients
//! scratch    the encrypted, unlinked copy of a plaintext that must be read at random
//! sign       SHA256SUMS and minisign
//! durable    temporary name, mode, fsync, rename, fsync of the directory; the only code that renames
//! policy     flags, environment and file, validated into types; the only code that reads the environment
//! at         no I/O error without its path
//! record     the contract on disk and in JSON: types, names, versions; no I/O
//! etcd       etcd's own bytes: bbolt, MVCC, HashKV, WAL, snap file, data directory; knows nothing of the rest
//! ```
//!
//! # Words
//!
//! | say | meaning | not |
//! | --- | --- | --- |
//! | member; voting member, learner, leader | an entry in etcd's member list: ID, name, peer URLs, client URLs | node (Kubernetes' word), peer, instance, replica, master |
//! | endpoint | a client URL that is dialled; behind a VIP it is *some* member | host, server, address |
//! | revision, compact revision | MVCC's cluster-wide counter | version, generation, index |
//! | HashKV | etcd's hash of the key space at a revision, as seen at a compact revision | "hash" or "checksum" alone |
//! | digest, trailer | SHA-256 of a file; the 32 bytes of it that etcd appends to a snapshot | "hash" or "checksum" alone |
//! | snapshot | the database as the Maintenance API streams it | backup, dump, image |
//! | backup, store, catalog | our directory; where it is written; the list | archive, repo, remote |
//! | lineage | the cluster ids that a store has accepted | |
//! | journal | the ids that a store has published and pruned, and the highest revisions seen | log, history |
//! | majority | more than half of the voting members of the list, equal to each other | quorum, which is raft's |
//! | candidate, primary | the file that the others are held against; the file that a restore uses | master, best |
//! | source | what a restore or `inspect` reads | input |
//! | bump | what a restore adds to the revision | offset |
//! | data directory, WAL, snap file | etcd's `--data-dir`, its log, `member/snap/*.snap` | workdir |
//! | prune | drop old backups | clean up, gc, purge |
//! | hold, release | pin a backup against pruning; take the pin back | lock, protect, keep |
//! | recipient, identity; seal, open | age's public and private half; our pipe there and back | public key, private key, encrypt |
//! | index | `backup.json` | manifest, which is the YAML of a Kubernetes object |
//! | proof level, proved, partial | see above; reached the policy's `min_proof`; lacks a member | status, healthy, valid |

pub mod at;
pub mod catalog;
pub mod cleaners;
pub mod cli;
pub mod durable;
pub mod endpoint;
pub mod etcd;
pub mod ops;
pub mod plaintext;
pub mod plan;
pub mod policy;
pub mod proof;
pub mod record;
pub mod recovery;
pub mod run;
pub mod scratch;
pub mod seal;
pub mod sign;
pub mod source;
pub mod store;
