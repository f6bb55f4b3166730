//! `init` makes a store: the directory, its marker and journal, and the key that signs. It is the only thing that begins one.
//!
//! What is there is kept: a key, a marker, and every file that is not ours. A store that lost its marker or journal gets them back from
//! what is left, and the report says what is gone. Planning changes nothing; acting on a plan that has nothing to do changes nothing either.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    at::{At as _, PathError},
    cleaners, durable, plaintext,
    record::{BackupId, EtcdId, Index, Journal, Marker, Sha256Hex, names},
    sign::{self, PublicKey, SecretKey, Sums, Trusted},
    store::{self, JournalState, Lock, guard, journal},
};

/// What is asked.
#[derive(Debug)]
pub struct Request<'a> {
    /// The store's directory.
    pub store: &'a Path,
    /// `signing.secret_key_file`.
    pub signing_key: &'a Path,
    /// The keys whose backups may speak where the marker is gone; the public half of the signing key is added.
    pub trusted: &'a Trusted,
    /// A cluster id to add to the lineage.
    pub accept_cluster: Option<EtcdId>,
    /// Where cron's and systemd's files are looked for: `/`, but in tests.
    pub system_root: &'a Path,
    /// The time.
    pub now: Timestamp,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory, its marker or its permissions.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The signing key.
    #[error(transparent)]
    Sign(#[from] sign::Error),
}

impl From<guard::Error> for Error {
    fn from(error: guard::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Self::Store(error.into())
    }
}

impl Error {
    /// What to do, with a command that can be pasted.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Sign(sign::Error::BadSecretKey { path, .. }) => {
                let path = guard::shell_quote(Path::new(path));
                Some(format!("keep it aside with `mv {path} {path}.old`, then run `etcd-dr init` again"))
            }
            Self::Sign(_) => None,
        }
    }
}

/// What `init` answers (contract.md, 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitReport {
    /// The store's directory.
    pub store: PathBuf,
    /// The store's own id.
    pub store_id: String,
    /// The key that signs, as `trusted` and `minisign -P` take it; null in a plan that has yet to make it.
    pub public_key: Option<String>,
    /// What was made or changed, or would be.
    pub created: Vec<PathBuf>,
    /// Names in the store that are not ours.
    pub foreign: Vec<String>,
    /// What a person should see to.
    pub warnings: Vec<String>,
}

/// What `init` would do, and what it found.
#[derive(Debug)]
pub struct Plan {
    store: PathBuf,
    store_id: String,
    key_path: PathBuf,
    public_key: Option<PublicKey>,
    dirs: Vec<PathBuf>,
    write_public_key: bool,
    journal: Option<NewJournal>,
    marker: Option<NewMarker>,
    foreign: Vec<String>,
    warnings: Vec<String>,
}

/// A journal that is to be written, in the place of a damaged one or of none.
#[derive(Debug)]
struct NewJournal {
    journal: Journal,
    keep_damaged: bool,
}

#[derive(Debug)]
struct NewMarker {
    marker: Marker,
    /// A marker is there, and gets one more cluster.
    replaces: bool,
}

impl Plan {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.created().is_empty()
    }

    /// The plan as `--dry-run` shows it.
    #[must_use]
    pub fn report(&self) -> InitReport {
        InitReport {
            store: self.store.clone(),
            store_id: self.store_id.clone(),
            public_key: self.public_key.as_ref().map(PublicKey::to_base64),
            created: self.created(),
            foreign: self.foreign.clone(),
            warnings: self.warnings.clone(),
        }
    }

    fn created(&self) -> Vec<PathBuf> {
        let mut created = self.dirs.clone();
        created.extend(self.public_key.is_none().then(|| self.key_path.clone()));
        created.extend(self.write_public_key.then(|| self.store.join(names::PUBLIC_KEY)));
        created.extend(self.journal.as_ref().map(|_| self.store.join(names::JOURNAL)));
        created.extend(self.marker.as_ref().map(|_| self.store.join(names::MARKER)));
        created
    }
}

/// Plans and acts.
///
/// # Errors
/// As [`plan`] and [`execute`].
pub fn init(request: &Request<'_>) -> Result<InitReport, Error> {
    execute(plan(request)?)
}

/// Looks at what is there and says what is to be made. Changes nothing.
///
/// # Errors
/// [`store::Error::Unsafe`] for a directory or key that others may reach; [`store::Error::BadMarker`]; [`sign::Error::BadSecretKey`] for a key
/// that is there and cannot sign; what the system says.
pub fn plan(request: &Request<'_>) -> Result<Plan, Error> {
    let store = std::path::absolute(request.store).at(request.store)?;
    let key_path = std::path::absolute(request.signing_key).at(request.signing_key)?;
    let mut dirs = missing_dirs(&store)?;
    let exists = dirs.is_empty();
    if exists {
        guard::check_store(&store)?;
        store::refuse_backup(&store)?;
    } else {
        guard::check_parents(&store)?;
    }
    let public_key = existing_key(&key_path)?;
    if public_key.is_none()
        && let Some(parent) = key_path.parent()
    {
        guard::check_parents(&key_path)?;
        let more: Vec<PathBuf> = missing_dirs(parent)?.into_iter().filter(|dir| !dirs.contains(dir)).collect();
        dirs.extend(more);
    }
    let mut plan = Plan {
        store_id: String::new(),
        write_public_key: !exists || !holds_key(&store, public_key.as_ref()),
        journal: None,
        marker: None,
        foreign: if exists { store::foreign(&store)? } else { Vec::new() },
        warnings: Vec::new(),
        store,
        key_path,
        public_key,
        dirs,
    };
    if plan.write_public_key
        && let Some(old) = fs::read_to_string(plan.store.join(names::PUBLIC_KEY)).ok().and_then(|text| key_line(&text))
    {
        plan.warnings.push(format!(
            "backups here may be signed by {old}, which is not this host's key: list it under [signing] trusted, or they are not believed"
        ));
    }
    plan.marker_and_journal(request, exists)?;
    plan.look_around(request.system_root);
    Ok(plan)
}

/// Does what the plan says: keys and journal first and the marker last, so that what was interrupted is no store yet.
///
/// # Errors
/// [`store::Error::Locked`] while another run works there; what the system says.
pub fn execute(plan: Plan) -> Result<InitReport, Error> {
    let mut report = plan.report();
    if plan.is_empty() {
        return Ok(report);
    }
    for dir in &plan.dirs {
        durable::create_dir(dir)?;
    }
    let _lock = Lock::take(&plan.store)?;
    let public_key = match plan.public_key {
        Some(key) => key,
        None => SecretKey::generate(&plan.key_path)?.public().clone(),
    };
    if plan.write_public_key {
        let path = plan.store.join(names::PUBLIC_KEY);
        durable::replace(&path, public_key.to_file().as_bytes(), durable::FILE_MODE)?;
    }
    if let Some(NewJournal { journal, keep_damaged }) = &plan.journal {
        if *keep_damaged {
            report.created.push(journal::keep_aside(&plan.store)?);
        }
        journal::write(&plan.store, journal)?;
    }
    if let Some(NewMarker { marker, replaces }) = &plan.marker {
        let path = plan.store.join(names::MARKER);
        let text = store::to_json(marker, &path)?;
        let write = if *replaces { durable::replace } else { durable::create };
        write(&path, &text, durable::FILE_MODE)?;
        tracing::info!(store = %plan.store.display(), id = marker.id, "the store is marked");
    }
    report.public_key = Some(public_key.to_base64());
    Ok(report)
}

impl Plan {
    /// What of marker and journal is missing, and what they will say.
    fn marker_and_journal(&mut self, request: &Request<'_>, exists: bool) -> Result<(), Error> {
        let found = if exists { store::read_marker(&self.store)? } else { None };
        let state = if exists { journal::read_any(&self.store)? } else { JournalState::Missing };
        let present = if exists { store::backup_ids(&self.store)? } else { Vec::new() };
        let (mut marker, replaces) = match found {
            Some(marker) => (marker, true),
            None => (self.recover_marker(request, &state, &present), false),
        };
        let old_lineage = marker.lineage.len();
        if let Some(cluster) = request.accept_cluster
            && !marker.lineage.contains(&cluster)
        {
            marker.lineage.push(cluster);
        }
        self.store_id.clone_from(&marker.id);
        let is_its_own = state.journal().is_some_and(|journal| journal.store_id == marker.id);
        if !is_its_own {
            let mut journal = Journal::new(&marker.id);
            journal::reconcile(&mut journal, &present, request.now);
            if replaces || !present.is_empty() || state != JournalState::Missing {
                self.warnings.push(format!(
                    "{}: {}; it is begun anew from the backups that are there ({})",
                    self.store.display(),
                    state.problem().unwrap_or_else(|| "the journal belongs to another store".to_owned()),
                    present.len()
                ));
            }
            self.journal = Some(NewJournal { journal, keep_damaged: state != JournalState::Missing });
        }
        if !replaces || marker.lineage.len() > old_lineage {
            self.marker = Some(NewMarker { marker, replaces });
        }
        Ok(())
    }

    /// A new marker, or one with the id and lineage that the journal and signed backups still tell.
    fn recover_marker(&mut self, request: &Request<'_>, state: &JournalState, present: &[BackupId]) -> Marker {
        let own = Trusted::new(self.public_key.clone().into_iter().collect());
        let keys = [request.trusted, &own];
        let indices: Vec<Index> = present.iter().filter_map(|id| trusted_index(&self.store, id, &keys)).collect();
        // The journal lies in the store itself, where only its owner writes; another store's backups may have been copied here.
        let known = state.journal().map(|journal| journal.store_id.clone());
        let id = known.or_else(|| indices.last().map(|index| index.store_id.clone()));
        let recovered = id.is_some();
        let id = id.unwrap_or_else(new_id);
        let mut lineage: Vec<EtcdId> = Vec::new();
        let signed = indices.iter().filter(|index| index.store_id == id).map(|index| index.cluster_id);
        let noted = state.journal().into_iter().flat_map(|journal| journal.revisions.keys().copied());
        for cluster in signed.chain(noted) {
            if !lineage.contains(&cluster) {
                lineage.push(cluster);
            }
        }
        let ever = state.journal().is_some_and(|journal| !journal.published.is_empty());
        let was_a_store = ever || !present.is_empty() || matches!(state, JournalState::Damaged(_));
        if was_a_store {
            self.warn_of_loss(state, present, recovered);
        }
        Marker { schema: Marker::SCHEMA.to_owned(), id, created_at: request.now, lineage }
    }

    fn warn_of_loss(&mut self, state: &JournalState, present: &[BackupId], recovered: bool) {
        let path = self.store.display();
        let id = if recovered { "its id was recovered" } else { "nothing trusted tells its id, so it gets a new one" };
        let mut warnings = vec![format!("{path} had lost its marker: something deletes files here; {id}")];
        let name = |ids: &[BackupId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let vanished = state.vanished(present);
        if !vanished.is_empty() {
            warnings.push(format!("{path}: published, never pruned, and gone: {}", name(&vanished)));
        }
        for id in present {
            let lost = store::lost_files(&self.store, id);
            if !lost.is_empty() {
                let lost: Vec<_> = lost.iter().map(|file| file.display().to_string()).collect();
                warnings.push(format!("{path}: files gone from a backup: {}", lost.join(", ")));
            }
        }
        self.warnings.extend(warnings);
    }

    /// Plaintext in the store, and whatever else deletes there.
    fn look_around(&mut self, system_root: &Path) {
        let plaintext = plaintext::scan(&self.store);
        let scan = cleaners::scan(system_root, &self.store);
        self.warnings.extend(plaintext.iter().map(ToString::to_string));
        self.warnings.extend(scan.cleaners.iter().map(ToString::to_string));
        if !scan.unread.is_empty() {
            let unread: Vec<_> = scan.unread.iter().map(|path| path.display().to_string()).collect();
            self.warnings.push(format!("not looked into for lines that delete backups: {}", unread.join(", ")));
        }
    }
}

/// The directories from the first that is missing down to `path`.
fn missing_dirs(path: &Path) -> Result<Vec<PathBuf>, PathError> {
    let mut missing = Vec::new();
    for dir in path.ancestors() {
        match fs::symlink_metadata(dir) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(dir.to_owned()),
            Err(error) => return Err(error).at(dir),
        }
    }
    missing.reverse();
    Ok(missing)
}

/// The public half of a signing key that is there already; one that cannot sign is an error.
fn existing_key(path: &Path) -> Result<Option<PublicKey>, Error> {
    match fs::symlink_metadata(path) {
        Ok(_) => {
            guard::check_secret_file(path)?;
            Ok(Some(SecretKey::load(path)?.public().clone()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path)?,
    }
}

/// Whether the store's copy of the public key is the signing key's.
/// The key in the text of a `.pub` file.
fn key_line(text: &str) -> Option<String> {
    let line = text.lines().find(|line| !line.starts_with("untrusted comment:"))?;
    PublicKey::from_key_or_file(line).ok().map(|key| key.to_base64())
}

fn holds_key(store: &Path, key: Option<&PublicKey>) -> bool {
    let copy = fs::read_to_string(store.join(names::PUBLIC_KEY)).ok();
    key.is_some_and(|key| copy == Some(key.to_file()))
}

/// A backup's index, if a trusted key signed it under this very name.
fn trusted_index(store: &Path, id: &BackupId, keys: &[&Trusted]) -> Option<Index> {
    let dir = store.join(id.as_str());
    let sums = fs::read_to_string(dir.join(names::SUMS)).ok()?;
    let signature = fs::read_to_string(dir.join(names::SIGNATURE)).ok()?;
    keys.iter().find(|trusted| trusted.verify(sums.as_bytes(), &signature).is_ok())?;
    let bytes = fs::read(dir.join(names::INDEX)).ok()?;
    let signed = *Sums::parse(&sums).ok()?.0.get(names::INDEX)?;
    let index: Index = serde_json::from_slice(&bytes).ok()?;
    (Sha256Hex(Sha256::digest(&bytes).into()) == signed && index.id == *id).then_some(index)
}

/// A random id in the form of a UUID, version 4.
fn new_id() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let cuts = [0..8, 8..12, 12..16, 16..20, 20..32];
    cuts.map(|cut| hex.get(cut).unwrap_or_default().to_owned()).join("-")
}
