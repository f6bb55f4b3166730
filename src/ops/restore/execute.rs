//! The plan, carried out: one read of the source writes every member, and nothing has its name before all was read back and compared.

use std::{fs::File, thread};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Ready, compare, ground,
    publish::{self, Target, Targets},
    sink::Tee,
};
use crate::{
    at::{At as _, is_no_space},
    etcd::{
        bbolt::WriteError,
        data_dir::{self, Form, rewrite, write_log_and_snap},
        membership::Member,
    },
    plan::restore::RestorePlan,
};

/// What was written and how it was proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Bytes of each member's database.
    pub database_bytes: u64,
    /// Its rows, of all buckets.
    pub rows: u64,
    /// HashKV of the written rows at the snapshot's revision and compact revision: equal to the snapshot's, or nothing was published.
    pub hash_kv_at_snapshot: u32,
    /// The revision that the members start at.
    pub revision_after: i64,
    /// HashKV that each of them answers at that revision.
    pub hash_kv_after: u32,
}

/// Writes the members of the plan, reads them back, compares them with the source, moves aside what stands there, and publishes.
///
/// # Errors
/// [`Error`]; nothing has a final name then, what stood there stands there, and what was written is removed.
pub fn execute(ready: &Ready, cancel: &CancellationToken) -> Result<Done, Error> {
    let plan = &ready.plan;
    let targets = prepare(plan)?;
    let members = members(plan);
    let paths = targets.0.iter().map(|target| data_dir::database(target.data_path())).collect();
    let mut tee = Tee::create(paths, cancel)?;
    let form = Form {
        members: &members,
        series: plan.etcd,
        revision: (plan.bump > 0).then(|| plan.revision_after()),
        clear_alarms: plan.clear_alarms,
    };
    let rewritten = match rewrite(&ready.db, &form, &mut tee) {
        Ok(rewritten) => rewritten,
        Err(_) if cancel.is_cancelled() => return Err(Error::Interrupted),
        Err(error) => return Err(tee.failure().map_or_else(|| error.into(), Error::Io)),
    };
    tee.sync()?;
    for target in &targets.0 {
        let data = target.data_path();
        write_log_and_snap(data, target.wal_path(), target.member.id.0, &members, plan.etcd).at(data)?;
        target.hand_over()?;
    }
    let hash_kv_after = reopen_and_compare(ready, &tee, &targets.0)?;
    // From here on it takes a moment, and is taken back where it fails.
    if cancel.is_cancelled() {
        return Err(Error::Interrupted);
    }
    publish::publish(plan, targets)?;
    Ok(Done {
        database_bytes: rewritten.bytes,
        rows: rewritten.rows,
        hash_kv_at_snapshot: ready.survey.hash_kv,
        revision_after: plan.revision_after(),
        hash_kv_after,
    })
}

fn prepare(plan: &RestorePlan) -> Result<Targets<'_>, Error> {
    let mut targets = Targets::default();
    for member in plan.written() {
        targets.0.push(Target::prepare(member, &ground::of(member)?, plan)?);
    }
    Ok(targets)
}

/// As the formats want them: in the order of their ids.
fn members(plan: &RestorePlan) -> Vec<Member> {
    let member = |planned: &crate::plan::restore::Planned| Member {
        id: planned.id.0,
        name: planned.name.clone(),
        peer_urls: planned.peer_urls.clone(),
    };
    let mut members: Vec<Member> = plan.members.iter().map(member).collect();
    members.sort_by_key(|member| member.id);
    members
}

/// All files hold what was written, and what was written is the source: both are looked into at once, as one waits for the device where the
/// other counts.
fn reopen_and_compare(ready: &Ready, tee: &Tee<'_>, targets: &[Target<'_>]) -> Result<u32, Error> {
    let Some(first) = targets.first() else { return Err(Error::Interrupted) };
    let path = data_dir::database(first.data_path());
    let file = File::open(&path).at(&path)?;
    let (read_back, compared) = thread::scope(|scope| {
        let read_back = scope.spawn(|| tee.read_back());
        let compared = compare::compare(file, &ready.survey, &ready.plan);
        (read_back.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), compared)
    });
    // A device that gives back other bytes explains whatever was found in them.
    if let Some((path, offset)) = read_back? {
        let problem = format!("at offset {offset} the device gives back other bytes");
        return Err(Error::Differs { path, problem });
    }
    compared.map_err(|problem| Error::Differs { path, problem })
}

impl Error {
    /// Whether the cause is a full disk.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io(error) => error.is_no_space(),
            Self::Write(data_dir::Error::Write(WriteError::Write { source, .. })) => is_no_space(source),
            _ => false,
        }
    }
}
