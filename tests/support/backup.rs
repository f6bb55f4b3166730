//! Writes backup directories as the program does, without a cluster: the bytes of the sealed files are made up, all the rest is real.
//!
//! Use it with `#[path = "support/backup.rs"] mod backup;`.
#![allow(dead_code, reason = "each test root uses its own part")]

use std::path::{Path, PathBuf};

use etcd_dr::{
    durable::PendingDir,
    record::{
        Agreement, BackupId, EtcdId, Index, Member, ProofLevel, ProofRecord, Reread, Seconds, Sha256Hex, Versions,
        names,
    },
    sign::{PublicKey, SecretKey, Sums, Trusted},
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

/// The store of every golden backup, until a test says otherwise.
pub const STORE: &str = "5d0c4d5e-store";
/// The cluster of every golden backup, until a test says otherwise.
pub const CLUSTER: EtcdId = EtcdId(0xcdf8_181e_3277_8409);

/// A time in RFC 3339.
pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub fn sha256(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex(Sha256::digest(bytes).into())
}

/// Renames, as somebody with a shell would.
#[allow(clippy::disallowed_methods, reason = "this is what the program has to find out")]
pub fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

/// A signing key in a directory of its own.
pub fn key() -> SecretKey {
    let dir = tempfile::tempdir().unwrap();
    SecretKey::generate(&dir.path().join("signing.key")).unwrap()
}

/// Trusts exactly these.
pub fn trusting(keys: &[&SecretKey]) -> Trusted {
    Trusted::new(keys.iter().map(|key| PublicKey::clone(key.public())).collect())
}

/// What is about to be written; change any field first.
#[derive(Debug, Clone)]
pub struct Golden {
    pub index: Index,
    /// Every file that is signed but `backup.json`, with its bytes.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Golden {
    /// Three members that agree, proved `open`, made at `created_at`; the bytes differ between any two times.
    pub fn at(created_at: &str) -> Self {
        let created_at = time(created_at);
        let id = BackupId::new(created_at, 0x7f3a);
        let mut files = vec![(names::RECOVERY.to_owned(), format!("# Recovery of {id}\n").into_bytes())];
        let members = ["k8s", "k8s-cp2", "k8s-cp3"].map(|name| {
            let bytes = format!("sealed {name} {id} {}", "x".repeat(4096)).into_bytes();
            let member = member(name, &bytes);
            files.push((member.file.clone().unwrap(), bytes));
            member
        });
        let index = Index {
            schema: Index::SCHEMA.to_owned(),
            path: PathBuf::from("/backup/etcd").join(id.as_str()),
            id,
            store_id: STORE.to_owned(),
            cluster_id: CLUSTER,
            cluster_name: "homelab".to_owned(),
            host: "k8s-cp3".to_owned(),
            created_at,
            finished_at: created_at + jiff::SignedDuration::from_secs(40),
            proof: ProofLevel::Open,
            agreement: Some(Agreement::Agrees),
            partial: false,
            primary: Some("k8s".to_owned()),
            members: members.into(),
            archives: Vec::new(),
            resources: None,
            bundle_complete: None,
            cross_check: None,
            findings: Vec::new(),
            warnings: Vec::new(),
            recipients: vec!["age1example".to_owned(), "run".to_owned()],
            versions: Versions { etcd_dr: "0.1.0".to_owned(), etcd: vec!["3.6.6".to_owned()] },
            reason: None,
        };
        Self { index, files }
    }

    /// One that belongs to the real store at `store`.
    pub fn in_store(store: &Path, created_at: Timestamp) -> Self {
        let marker: etcd_dr::record::Marker =
            serde_json::from_slice(&std::fs::read(store.join(names::MARKER)).unwrap()).unwrap();
        let mut golden = Self::at(&created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        golden.index.store_id = marker.id;
        golden.index.cluster_id = marker.lineage[0];
        golden
    }

    /// The same with another result of the run's own proof.
    pub fn proved(mut self, level: ProofLevel) -> Self {
        self.index.proof = level;
        self
    }

    /// Writes it below `store` under its id, signed by `key`.
    pub fn write(&self, store: &Path, key: &SecretKey) -> PathBuf {
        self.write_with(store, key, |_sums| {})
    }

    /// The same, with `SHA256SUMS` changed before it is signed.
    pub fn write_with(&self, store: &Path, key: &SecretKey, change: impl FnOnce(&mut Sums)) -> PathBuf {
        let pending = PendingDir::create(store, self.index.id.as_str()).unwrap();
        let index = serde_json::to_vec_pretty(&self.index).unwrap();
        let files = self.files.iter().map(|(name, bytes)| (name.as_str(), bytes)).chain([(names::INDEX, &index)]);
        let mut sums = Sums::default();
        for (name, bytes) in files {
            pending.write(name, bytes).unwrap();
            sums.0.insert(name.to_owned(), sha256(bytes));
        }
        change(&mut sums);
        let sums = sums.to_string();
        pending.write(names::SUMS, sums.as_bytes()).unwrap();
        let signature = key.sign(sums.as_bytes(), &format!("backup {}", self.index.id)).unwrap();
        pending.write(names::SIGNATURE, signature.as_bytes()).unwrap();
        pending.publish(self.index.id.as_str()).unwrap()
    }
}

/// A member that gave `sealed`.
pub fn member(name: &str, sealed: &[u8]) -> Member {
    Member {
        name: name.to_owned(),
        id: EtcdId(u64::try_from(name.len()).unwrap()),
        endpoint: Some(format!("https://{name}:2379")),
        peer_urls: vec![format!("https://{name}:2380")],
        version: Some("3.6.6".to_owned()),
        learner: false,
        status_revision: Some(8_123_456),
        revision: None,
        compact_revision: None,
        hash_kv: None,
        agreement: Some(Agreement::Agrees),
        file: Some(format!("etcd-{name}.db.zst.age")),
        plain_bytes: Some(20480),
        sealed_bytes: Some(u64::try_from(sealed.len()).unwrap()),
        plain_sha256: Some(sha256(b"plain")),
        sealed_sha256: Some(sha256(sealed)),
        trailer_sha256: Some(sha256(b"trailer")),
        seconds: Some(Seconds(1200)),
        error: None,
        proof: ProofLevel::Open,
        reread: Some(Reread::Cache),
        alarms: Vec::new(),
    }
}

/// A later proof of the backup in `dir`.
pub fn proof_of(dir: &Path, level: ProofLevel, ok: bool, made_at: &str) -> ProofRecord {
    ProofRecord {
        schema: ProofRecord::SCHEMA.to_owned(),
        backup: dir.file_name().unwrap().to_str().unwrap().parse().unwrap(),
        sums_sha256: sha256(&std::fs::read(dir.join(names::SUMS)).unwrap()),
        level,
        ok,
        made_at: time(made_at),
        host: "elsewhere".to_owned(),
        files: Vec::new(),
        etcd_dr: "0.1.0".to_owned(),
    }
}
