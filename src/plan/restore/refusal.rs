//! Why nothing is restored. Facts and evidence; the exit codes and the commands to paste are the command line's.

use std::path::PathBuf;

use crate::{
    etcd::membership,
    record::{EtcdId, Sha256Hex},
};

/// A member that could be meant, and its peer URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its name.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
}

fn list(choices: &[Choice]) -> String {
    let lines = choices.iter().map(|choice| ["\n  ", &choice.name, "  ", &choice.peer_urls.join(" ")].concat());
    lines.collect()
}

/// What is wrong with a plan that was made before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanFault {
    /// It is not JSON, or lacks what every plan has.
    #[error("it cannot be understood: {0}")]
    Json(String),
    /// It is another document.
    #[error("its schema is `{0}`, a plan's is `etcd-dr/restore/v1`")]
    Schema(String),
    /// The run that should have made it failed.
    #[error("it holds an error and no plan: {0}")]
    Failed(String),
    /// An id is not that of its URLs and the token.
    #[error("{what} has id {planned} there; its peer URLs and the token make {found}")]
    Id {
        /// A member's name, or "the cluster".
        what: String,
        /// In the plan.
        planned: EtcdId,
        /// As computed.
        found: EtcdId,
    },
    /// The plan's revision is not the snapshot's.
    #[error("it says revision {planned}, the snapshot has {found}")]
    Revision {
        /// In the plan.
        planned: i64,
        /// In the snapshot.
        found: i64,
    },
}

/// Why nothing is restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The source records no voting member, and none were named.
    #[error("{file} records no member that could be restored")]
    NoMembers {
        /// The file.
        file: String,
    },
    /// Names, URLs or ids that make no cluster.
    #[error(transparent)]
    Members(#[from] membership::Error),
    /// Two members of one name.
    #[error("two members are called {name}")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Ids and token are those of the cluster that was backed up.
    #[error(
        "token `{token}` makes cluster id {cluster} again, which is that of the cluster that was backed up\n  an old member that still runs would join, and etcd then loses data or dies"
    )]
    SameCluster {
        /// The id.
        cluster: EtcdId,
        /// The token.
        token: String,
    },
    /// A member that is not in the cluster to be restored.
    #[error("no member is called {name}; the cluster to be restored has{}", list(choices))]
    UnknownMember {
        /// As asked.
        name: String,
        /// Who is there.
        choices: Vec<Choice>,
    },
    /// `--initial-cluster` does not have the name to be restored.
    #[error("--initial-cluster does not name {name}; it has{}", list(choices))]
    NotInInitialCluster {
        /// As asked.
        name: String,
        /// Who is there.
        choices: Vec<Choice>,
    },
    /// No peer URL is an address of this host.
    #[error("no member's peer URL is an address of this host, so which one to write is not known{}", list(choices))]
    NotHere {
        /// Who is there.
        choices: Vec<Choice>,
    },
    /// Several peer URLs are addresses of this host.
    #[error("several members have their peer URL on this host, so which one to write is not known{}", list(choices))]
    SeveralHere {
        /// Those.
        choices: Vec<Choice>,
    },
    /// `--initial-advertise-peer-urls` are not the member's.
    #[error(
        "member {member} has peer URLs {}, --initial-advertise-peer-urls says {}",
        planned.join(","),
        asked.join(",")
    )]
    Advertise {
        /// Who.
        member: String,
        /// In the cluster.
        planned: Vec<String>,
        /// As asked.
        asked: Vec<String>,
    },
    /// One of several members, by a run that shares nothing with those of the others.
    #[error(
        "{member} is one of {members} members, and this run makes a token and a bump of its own\n  the other hosts' runs would make other ones, and with them {members} clusters of one member each"
    )]
    Separate {
        /// Who was to be written.
        member: String,
        /// How many there are.
        members: usize,
        /// What is restored.
        snapshot: String,
    },
    /// `--bump-revision` below 0.
    #[error("--bump-revision {bump} would turn the revision back")]
    NegativeBump {
        /// As asked.
        bump: i64,
    },
    /// Revision and bump leave no room below 2^63.
    #[error(
        "revision {revision} and a bump of {bump} overflow: etcd's revisions end at {}, and the next restore needs room as well",
        i64::MAX
    )]
    BumpOverflows {
        /// The snapshot's.
        revision: i64,
        /// What would be added.
        bump: i64,
    },
    /// A plan that cannot be followed.
    #[error("the plan cannot be followed\n  {0}")]
    Plan(PlanFault),
    /// A plan of another snapshot.
    #[error("{file} is not the snapshot that was planned for\n  its SHA-256 is {found}\n  the plan's is   {planned}")]
    OtherSource {
        /// What was read.
        file: String,
        /// In the plan.
        planned: Sha256Hex,
        /// As found.
        found: Sha256Hex,
    },
    /// Something stands where a directory is to be written.
    #[error("{} exists, and holds {holds}\n  nothing was changed", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        holds: String,
    },
    /// Something that is no directory stands there.
    #[error("{} exists and is no directory\n  nothing was changed", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A mounted WAL directory cannot be renamed.
    #[error("{} is a mount point, which cannot be replaced by a directory written beside it", path.display())]
    MountedWal {
        /// The WAL directory.
        path: PathBuf,
    },
    /// Two targets in one place.
    #[error("{} would be written twice", path.display())]
    SameTarget {
        /// The directory.
        path: PathBuf,
    },
    /// The cluster lives.
    #[error(
        "{} of {voters} members of the cluster that was backed up answer: {}\n  a quorum lives, and what it holds is newer than any backup",
        answering.len(),
        answering.join(", ")
    )]
    LivingQuorum {
        /// Who answers.
        answering: Vec<String>,
        /// Voting members.
        voters: usize,
    },
    /// A running etcd has the data directory open.
    #[error("{} is in use: a running etcd holds {}\n  nothing was changed", path.display(), held.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The locked file.
        held: PathBuf,
    },
    /// Not enough space.
    #[error("{} has {free} bytes free, {needed} are needed for {members} data directories", path.display())]
    NoRoom {
        /// A directory on that file system.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
        /// How many directories.
        members: usize,
    },
}
