//! Restore: gather facts, ask [`crate::plan::restore`], write, reopen and compare, move aside, publish.

mod compare;
mod execute;
mod ground;
mod host;
mod living;
mod publish;
mod sink;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use self::execute::{Done, execute};
use crate::{
    at::PathError,
    catalog::Catalog,
    etcd::{
        Series,
        bbolt::Db,
        data_dir,
        mvcc::AlarmKind,
        survey::{Survey, Wants, survey},
    },
    plan::restore::{self, Asked, Recorded, Refusal, RestorePlan, Seen, SourceFacts},
    policy::Policy,
    record::BackupId,
    seal::{Identities, Plain},
    source::{self, Bytes, Source},
    store::Store,
};

/// Kubernetes is known by the first two segments of its keys.
const WANTS: Wants = Wants { depth: 2, largest: 0 };

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The source cannot be used.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The plan says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The snapshot is no database, or not whole, or not what the index says.
    #[error("{} is not to be restored from\n  {problem}", path.display())]
    Unsound {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
        /// Another backup to turn to.
        other: Option<BackupId>,
    },
    /// etcd's own SHA-256 at the end of the snapshot is missing or does not fit.
    #[error("{}: {problem}", path.display())]
    Trailer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Whether there is none at all, as in a copied database.
        missing: bool,
    },
    /// A release whose form is not known here.
    #[error("{} was written by etcd {version}; this version writes data directories of etcd 3.4, 3.5 and 3.6", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its storage version.
        version: String,
    },
    /// The data directories could not be written.
    #[error("the database was not written: {0}")]
    Write(#[from] data_dir::Error),
    /// What was written is not what was read.
    #[error("{} was written and read again, and is not what was to be written\n  {problem}\n  it was removed; nothing has a final name", path.display())]
    Differs {
        /// The file under its temporary name.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Another restore is at work at the same place.
    #[error("another restore writes there: it holds {}", path.display())]
    Busy {
        /// Its directory.
        path: PathBuf,
    },
    /// An etcd was started meanwhile.
    #[error("{} is in use since this restore began\n  nothing was changed", path.display())]
    Started {
        /// The data directory.
        path: PathBuf,
    },
    /// The caller's cancellation came first.
    #[error("interrupted")]
    Interrupted,
}

/// What a restore is asked to do, and what it finds ready.
pub struct Request<'a> {
    /// The flags.
    pub asked: &'a Asked,
    /// A plan that was made before.
    pub plan: Option<RestorePlan>,
    /// What is restored.
    pub source: &'a Source,
    /// What opens it, where it is sealed.
    pub identities: Option<&'a Identities>,
    /// Where the opened copy lies while it is read.
    pub scratch_dir: &'a Path,
    /// `--skip-hash-check`.
    pub skip_trailer: bool,
    /// How the cluster that was backed up is reached.
    pub policy: &'a Policy,
    /// The store, where it is at hand: its journal and its backups know of later revisions.
    pub store: Option<(&'a Store, &'a Catalog)>,
    /// This host's name.
    pub host: &'a str,
    /// Random digits for a fresh token.
    pub salt: u64,
    /// The time of the run.
    pub now: Timestamp,
    /// Ends the run.
    pub cancel: &'a CancellationToken,
}

/// A plan, and the opened source that it was made of.
#[derive(Debug)]
pub struct Ready {
    /// What is to be done.
    pub plan: RestorePlan,
    /// The source's database.
    pub db: Db<Bytes>,
    /// What it holds.
    pub survey: Survey,
}

/// Opens the source, looks at the hosts and the ground, and decides.
///
/// # Errors
/// [`Error`]; nothing was changed.
pub async fn plan(request: &Request<'_>) -> Result<Ready, Error> {
    let (db, digests, survey) = tokio::task::block_in_place(|| open(request))?;
    let facts = facts(request, &digests, &survey)?;
    let answers = living::ask(request, &facts).await;
    let mut seen = seen(request);
    seen.extend(answers.seen);
    let here = {
        let urls = facts.members.iter().flat_map(|member| &member.peer_urls);
        let hosts: Vec<&str> = urls.filter_map(|url| host_of(url)).collect();
        // Only asked where nobody was named: a name server that is down would only be waited for.
        let unnamed = request.asked.member.is_none() && request.asked.output_dir.is_none();
        let hosts = if unnamed { hosts } else { Vec::new() };
        tokio::task::block_in_place(|| host::here(request.host, hosts.into_iter()))
    };
    let draft = match &request.plan {
        Some(plan) => restore::repeat(plan.clone(), request.asked, &facts, &here)?,
        None => restore::draft(request.asked, &facts, &seen, &here, &token(request))?,
    };
    let grounds = draft.written().map(ground::of).collect::<Result<Vec<_>, PathError>>()?;
    let plan = draft.settle(&grounds, &answers.living, request.now)?;
    Ok(Ready { plan, db, survey })
}

fn token(request: &Request<'_>) -> String {
    let id = request.source.backup.as_ref().map(|backup| format!("{}-", backup.index.id)).unwrap_or_default();
    format!("etcd-dr-{id}{:016x}", request.salt)
}

/// The host part of a URL.
fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.rsplit_once(':').map(|(host, _)| host)
}

/// Opens the source, compares it with what was signed, and walks its database.
fn open(request: &Request<'_>) -> Result<(Db<Bytes>, Plain, Survey), Error> {
    let source = request.source;
    let path = &source.path;
    let other = || source.backup.as_ref().and_then(|backup| backup.other.clone());
    let unsound = |problem: String| Error::Unsound { path: path.clone(), problem, other: other() };
    let mut opened = source.open(request.identities, request.scratch_dir, request.cancel)?;
    let plain = opened.digest(path, request.cancel)?;
    // What is no database at all is said before its missing trailer is.
    let db = Db::open(opened.bytes).map_err(|damage| unsound(damage.to_string()))?;
    if !request.skip_trailer && !plain.trailer_is_right() {
        let missing = !db.has_trailer();
        let problem = if missing {
            "it does not end with the SHA-256 that etcd appends to a snapshot: a copied database, or one that was cut"
                .to_owned()
        } else {
            crate::proof::trailer_differs(&plain)
        };
        return Err(Error::Trailer { path: path.clone(), problem, missing });
    }
    let survey = survey(&db, &WANTS).map_err(|damage| unsound(damage.to_string()))?;
    if let Some(backup) = &source.backup {
        recorded(&backup.member, &survey).map_err(unsound)?;
    }
    Ok((db, plain, survey))
}

/// Compares a file with what its backup's index says of it. Backups of version 0.1.0 say nothing.
fn recorded(member: &crate::record::Member, found: &Survey) -> Result<(), String> {
    let differs = |what: &str, recorded: String, found: String| {
        if recorded == found { Ok(()) } else { Err(format!("its {what} is {found}, backup.json says {recorded}")) }
    };
    if let Some(revision) = member.revision {
        differs("revision", revision.to_string(), found.revision.to_string())?;
    }
    if let Some(compact) = member.compact_revision {
        differs("compact revision", compact.to_string(), found.compact_revision.to_string())?;
    }
    match member.hash_kv {
        Some(hash) => differs("HashKV", format!("{hash:08x}"), format!("{:08x}", found.hash_kv)),
        None => Ok(()),
    }
}

fn facts(request: &Request<'_>, plain: &Plain, survey: &Survey) -> Result<SourceFacts, Error> {
    let source = request.source;
    let (major, minor) = survey.schema;
    let newer = |_| Error::Newer { path: source.path.clone(), version: format!("{major}.{minor}") };
    let etcd: Series = format!("{major}.{minor}").parse().map_err(newer)?;
    let index = source.backup.as_ref().map(|backup| &backup.index);
    // The member list that the members gave: what a file of etcd 3.4 says of them may be older.
    let listed: Vec<Recorded> = index.map_or_else(Vec::new, |index| {
        let known = index.members.iter().filter(|member| !member.peer_urls.is_empty());
        known.map(|m| Recorded { name: m.name.clone(), peer_urls: m.peer_urls.clone(), learner: m.learner }).collect()
    });
    Ok(SourceFacts {
        source: source.name.clone(),
        backup: index.map(|index| index.id.clone()),
        from: source.backup.as_ref().map(|backup| backup.member.name.clone()),
        file: source.path.display().to_string(),
        sha256: plain.sha256,
        bytes: plain.bytes,
        revision: survey.revision,
        compact_revision: survey.compact_revision,
        hash_kv: Some(survey.hash_kv),
        etcd,
        cluster: index.map(|index| index.cluster_id),
        members: if listed.is_empty() { in_file(survey) } else { listed },
        alarms: alarms(survey),
        kubernetes: survey.prefixes.keys().any(|prefix| prefix.ends_with(b"/namespaces")),
    })
}

/// The members as the file has them.
fn in_file(survey: &Survey) -> Vec<Recorded> {
    let recorded = survey.members.values().map(|member| Recorded {
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        learner: member.learner,
    });
    recorded.collect()
}

/// Alarms, each kind once.
fn alarms(survey: &Survey) -> Vec<String> {
    let name = |kind| match kind {
        AlarmKind::NoSpace => "NOSPACE".to_owned(),
        AlarmKind::Corrupt => "CORRUPT".to_owned(),
        AlarmKind::Other(kind) => format!("of kind {kind}"),
    };
    let kinds: BTreeSet<AlarmKind> = survey.alarms.iter().map(|alarm| alarm.kind).collect();
    kinds.into_iter().map(name).collect()
}

/// The highest revisions that the store's journal and its backups know of.
fn seen(request: &Request<'_>) -> Vec<Seen> {
    let mut seen = Vec::new();
    if let Some((store, catalog)) = request.store {
        match store.journal() {
            Ok(state) => {
                // A store has one lineage: every cluster id in it is this cluster at some time.
                let highest = state.journal().and_then(|journal| journal.revisions.values().copied().max());
                seen.extend(highest.map(|revision| Seen { revision, by: "the journal".to_owned() }));
            }
            Err(error) => tracing::warn!("the journal is not asked for later revisions: {error}"),
        }
        let indexes = catalog.backups.iter().filter_map(|backup| backup.signed()).map(|signed| &signed.index);
        seen.extend(indexes.filter_map(highest));
    }
    seen.extend(request.source.backup.as_ref().and_then(|backup| highest(&backup.index)));
    seen
}

fn highest(index: &crate::record::Index) -> Option<Seen> {
    let revisions = index.members.iter().flat_map(|member| [member.revision, member.status_revision]);
    let revision = revisions.flatten().max()?;
    Some(Seen { revision, by: format!("backup {}", index.id) })
}
