//! The second look: what stands where the plan writes, who lives, and whether there is room.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use jiff::{Timestamp, tz::TimeZone};

use super::{Draft, Moved, Refusal, RestorePlan, parent_of};

/// Bytes of the WAL file that etcd preallocates, and that a restore writes as etcd's tools do (etcd 3.6 `server/storage/wal/wal.go`).
const WAL_BYTES: u64 = 64_000_000;
/// What names and the snap file take beside the database and the WAL.
const MARGIN: u64 = 1 << 20;

/// What stands where one member is to be written.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The member.
    pub member: String,
    /// Its data directory.
    pub data: Place,
    /// Its WAL directory, where it has one of its own.
    pub wal: Option<Place>,
}

/// One directory to be written.
#[derive(Debug, Clone)]
pub struct Place {
    /// Absolute.
    pub path: PathBuf,
    /// What is there now.
    pub stands: Stands,
    /// Whether a file system is mounted there.
    pub mount_point: bool,
    /// A file that a running etcd holds locked.
    pub in_use: Option<PathBuf>,
    /// The device of the file system that it will be written to.
    pub device: u64,
    /// Bytes free there.
    pub free: u64,
}

/// What is found at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    /// Nothing.
    Nothing,
    /// A file, a link, a device.
    NotADirectory,
    /// A directory. `lost+found` is a file system's own and not counted.
    Directory {
        /// Whether it has a `member`.
        member: bool,
        /// What else is in it.
        others: Vec<String>,
    },
}

/// Who of the cluster that was backed up answers.
#[derive(Debug, Clone, Default)]
pub struct Living {
    /// Whether anybody could be asked.
    pub asked: bool,
    /// Names of the voting members that answered.
    pub answering: Vec<String>,
}

impl Draft {
    /// Looks at the ground and makes the plan. `now` names what is moved aside.
    ///
    /// # Errors
    /// [`Refusal`], in the order: what exists, who lives, what is in use, how much room there is.
    pub fn settle(mut self, grounds: &[Ground], living: &Living, now: Timestamp) -> Result<RestorePlan, Refusal> {
        distinct(grounds)?;
        let stamp = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
        for ground in grounds {
            let data = self.data_aside(&ground.data, &stamp)?;
            let wal = ground.wal.as_ref().map(|wal| self.wal_aside(wal, &stamp)).transpose()?.flatten();
            self.plan.moved_aside.extend(data.into_iter().chain(wal));
        }
        self.quorum(living)?;
        let places = || grounds.iter().flat_map(|ground| std::iter::once(&ground.data).chain(&ground.wal));
        if let Some((place, held)) = places().find_map(|place| Some((place, place.in_use.clone()?))) {
            return Err(Refusal::InUse { path: place.path.clone(), held });
        }
        self.plan.bytes = room(grounds, self.plan.source_bytes)?;
        Ok(self.plan)
    }

    /// A data directory that holds nothing but `member` is moved whole; of one that cannot be moved, or that holds more, `member` alone.
    fn data_aside(&self, place: &Place, stamp: &str) -> Result<Option<Moved>, Refusal> {
        let path = &place.path;
        match &place.stands {
            Stands::NotADirectory => Err(Refusal::NotADirectory { path: path.clone() }),
            Stands::Directory { member, others } if !self.replace && (*member || !others.is_empty()) => {
                let member = member.then(|| "member".to_owned());
                let holds = shortened(&member.into_iter().chain(others.iter().cloned()).collect::<Vec<_>>());
                Err(Refusal::Exists { path: path.clone(), holds })
            }
            Stands::Nothing | Stands::Directory { member: false, .. } => Ok(None),
            Stands::Directory { member: true, others } if others.is_empty() && !place.mount_point => {
                Ok(Some(aside(path, stamp)))
            }
            Stands::Directory { member: true, .. } => Ok(Some(aside(&path.join("member"), stamp))),
        }
    }

    fn wal_aside(&self, place: &Place, stamp: &str) -> Result<Option<Moved>, Refusal> {
        let path = &place.path;
        match &place.stands {
            Stands::NotADirectory => Err(Refusal::NotADirectory { path: path.clone() }),
            Stands::Directory { .. } if place.mount_point => Err(Refusal::MountedWal { path: path.clone() }),
            Stands::Nothing => Ok(None),
            Stands::Directory { member: false, others } if others.is_empty() => Ok(None),
            Stands::Directory { others, .. } if !self.replace => {
                Err(Refusal::Exists { path: path.clone(), holds: shortened(others) })
            }
            Stands::Directory { .. } => Ok(Some(aside(path, stamp))),
        }
    }

    fn quorum(&mut self, living: &Living) -> Result<(), Refusal> {
        let voters = self.voters.len();
        if !living.asked {
            let words =
                "nobody was asked whether the cluster that was backed up still lives: no endpoint or no CA is known";
            self.plan.warnings.push(words.to_owned());
            return Ok(());
        }
        let quorum = voters / 2 + 1;
        if voters == 0 || living.answering.len() < quorum {
            if !living.answering.is_empty() {
                let names = living.answering.join(", ");
                let words = "stop it before the restored members start; its snapshot may be newer than this one";
                self.plan.warnings.push(format!("{names} still answers: {words}"));
            }
            return Ok(());
        }
        if !self.force {
            return Err(Refusal::LivingQuorum { answering: living.answering.clone(), voters });
        }
        self.plan.warnings.push(format!("a quorum lives: {} answer", living.answering.join(", ")));
        Ok(())
    }
}

fn aside(path: &Path, stamp: &str) -> Moved {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Moved { from: path.to_owned(), to: path.with_file_name(format!("{name}.etcd-dr-{stamp}")) }
}

/// The first names of a directory, and how many more there are.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let first: Vec<String> = names.iter().take(SHOWN).map(|name| name.escape_debug().to_string()).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { first.join(", ") } else { format!("{} and {more} more", first.join(", ")) }
}

/// No directory may be written by two members, nor lie within another.
fn distinct(grounds: &[Ground]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    let paths = grounds.iter().flat_map(|g| std::iter::once(&g.data.path).chain(g.wal.as_ref().map(|wal| &wal.path)));
    for path in paths {
        let within = |other: &&PathBuf| path.starts_with(other) || other.starts_with(path);
        if seen.iter().any(|other: &&PathBuf| within(other)) {
            return Err(Refusal::SameTarget { path: path.clone() });
        }
        seen.insert(path);
    }
    Ok(())
}

/// Bytes that are written at the most: a rewritten database is no larger than its source.
fn room(grounds: &[Ground], database: u64) -> Result<u64, Refusal> {
    let mut needs = BTreeMap::<u64, Need>::new();
    let mut add = |place: &Place, bytes: u64, members: usize| {
        let path = parent_of(&place.path).to_owned();
        let need = needs.entry(place.device).or_insert(Need { path, free: place.free, bytes: 0, members: 0 });
        need.bytes = need.bytes.saturating_add(bytes);
        need.members = need.members.saturating_add(members);
    };
    for ground in grounds {
        add(&ground.data, database.saturating_add(MARGIN), 1);
        add(ground.wal.as_ref().unwrap_or(&ground.data), WAL_BYTES, 0);
    }
    let mut total = 0_u64;
    for Need { path, free, bytes, members } in needs.into_values() {
        if free < bytes {
            return Err(Refusal::NoRoom { path, free, needed: bytes, members });
        }
        total = total.saturating_add(bytes);
    }
    Ok(total)
}

/// What one file system has to hold.
struct Need {
    path: PathBuf,
    free: u64,
    bytes: u64,
    members: usize,
}
