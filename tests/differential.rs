//! Mutated databases, read by us and by the official tool: what we accept, it accepts, with the same numbers.
//!
//! The other way around there are differences, and each has its reason: we check what bbolt and `etcdutl snapshot status` do not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

#[path = "support/rows.rs"]
mod rows;
mod servers;

use std::{
    collections::BTreeMap, fmt::Write as _, fs, os::unix::process::ExitStatusExt as _, path::Path, process::Output,
    thread,
};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use rows::{PAGE, Rows, sealed, sum_metas};
use serde_json::Value;
use servers::{
    ask, binaries,
    etcd::{Cluster, Options},
    fill, stock,
};

/// Databases that are mutated, over all threads.
const ROUNDS: u64 = 320;
const THREADS: u64 = 2;

/// What we refuse and the official tool does not, by words of ours, and why that is right.
const STRICTER: [(&str, &str); 4] = [
    ("has flags", "bbolt looks at one bit of an element's flags, and no version sets another"),
    (
        "where it does not exist",
        "status does not hold the records against each other: a tombstone names a key that does not live",
    ),
    (
        "follows from the revisions before",
        "status does not hold the records against each other: versions and revisions of a key",
    ),
    ("is missing: the next row is", "status does not hold the records against each other: revisions are contiguous"),
];

/// How a reader ended.
#[derive(Debug)]
enum End {
    Accepts(Value),
    /// With its words.
    Refuses(String),
    /// A panic, a signal, an end that has no meaning.
    Crashes {
        #[allow(dead_code, reason = "shown where the test fails")]
        words: String,
    },
    Hangs,
}

impl End {
    fn kind(&self) -> &'static str {
        match self {
            Self::Accepts(_) => "accepts",
            Self::Refuses(_) => "refuses",
            Self::Crashes { .. } => "crashes",
            Self::Hangs => "hangs",
        }
    }
}

/// Memory and time that a reader gets: far more than such a file needs, far less than a length in it can claim.
const BOUNDS: [&str; 5] = ["-s", "KILL", "8", "prlimit", "--as=1073741824"];

fn ours(path: &Path) -> End {
    let mut command = stock("timeout");
    command.args(BOUNDS).arg(env!("CARGO_BIN_EXE_etcd-dr")).args(["inspect", "--output", "json", "--depth", "2"]);
    let output = command.arg(path).output().unwrap();
    let answer = serde_json::from_slice::<Value>(&output.stdout);
    match (output.status.code(), answer) {
        (Some(0), Ok(report)) => End::Accepts(report),
        (Some(20), Ok(report)) => End::Refuses(report["error"]["message"].as_str().unwrap().to_owned()),
        _ => crashed(&output),
    }
}

fn theirs(path: &Path) -> End {
    let mut command = stock("timeout");
    // Go reserves more addresses than it uses.
    command
        .args(&BOUNDS[..4])
        .arg("--as=6442450944")
        .arg(binaries().join("etcdutl"))
        .args(["snapshot", "status", "-w", "json"]);
    let output = command.arg(path).output().unwrap();
    match output.status.code() {
        Some(0) => End::Accepts(serde_json::from_slice(&output.stdout).unwrap()),
        Some(1) => End::Refuses(String::from_utf8_lossy(&output.stderr).into_owned()),
        _ => crashed(&output),
    }
}

fn crashed(output: &Output) -> End {
    let status = output.status;
    if status.signal() == Some(9) || status.code() == Some(137) {
        return End::Hangs;
    }
    End::Crashes { words: format!("{status}: {}", String::from_utf8_lossy(&output.stderr)) }
}

/// Changes a body in one to three places, mostly where the structure is, and says how.
fn mutate(body: &mut Vec<u8>, random: &mut SmallRng) -> String {
    let mut said = String::new();
    for _ in 0..random.random_range(1..=3) {
        let pages = body.len() / PAGE;
        let page = random.random_range(0..pages) * PAGE;
        let at = match random.random_range(0..10) {
            0..=2 => random.random_range(0..body.len() - 8),
            3..=5 => page + random.random_range(0..16),
            6 => random.random_range(0..2) * PAGE + 16 + random.random_range(0..64),
            _ => page + 16 + random.random_range(0..400),
        };
        let value: u64 = match random.random_range(0..5) {
            0 => 0,
            1 => u64::MAX,
            2 => random.random_range(0..pages as u64 + 2),
            3 => random.random_range(0..5000),
            _ => random.random(),
        };
        let width = [1, 2, 4, 8][random.random_range(0..4)];
        match random.random_range(0..16) {
            0 => {
                let from = random.random_range(0..pages) * PAGE;
                body.copy_within(from..from + PAGE, page);
                write!(said, "page {} is page {}; ", page / PAGE, from / PAGE).unwrap();
            }
            1 => {
                body[page..page + PAGE].fill(0);
                write!(said, "page {} is zero; ", page / PAGE).unwrap();
            }
            2 => {
                body.truncate(random.random_range(2..=pages) * PAGE);
                write!(said, "{} pages; ", body.len() / PAGE).unwrap();
            }
            3..=9 => {
                body[at] ^= 1 << random.random_range(0..8);
                write!(said, "a bit at {at}; ").unwrap();
            }
            _ => {
                body[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                write!(said, "{width} bytes of {value:#x} at {at}; ").unwrap();
            }
        }
    }
    if random.random_bool(0.5) {
        sum_metas(body);
        said.push_str("metas summed");
    }
    said
}

/// One database, what was done to it, and what both say.
struct Round {
    number: u64,
    change: String,
    ours: End,
    theirs: End,
}

/// The official tool's numbers, which ours must be.
fn same(ours: &Value, theirs: &Value) -> bool {
    let pairs = [
        ("status_hash", "hash"),
        ("total_keys", "totalKey"),
        ("total_size", "totalSize"),
        ("storage_version", "version"),
    ];
    pairs.iter().all(|(a, b)| ours[a] == theirs[b] || (ours[a].is_null() && theirs[b] == ""))
}

#[test]
fn what_we_accept_the_official_tool_accepts_with_the_same_numbers() {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let snapshot = ask::snapshot(&cluster.client(0));
    let path = cluster.dir().join("snapshot.db");
    fs::write(&path, &snapshot).unwrap();
    // As a server leaves its pages, and as our writer does.
    let bodies = [snapshot[..snapshot.len() - 32].to_vec(), Rows::read(&path).body()];
    let one = |number: u64| {
        let mut random = SmallRng::seed_from_u64(number);
        let mut body = bodies[usize::try_from(number % 2).unwrap()].clone();
        let change = if number < 2 { "nothing".to_owned() } else { mutate(&mut body, &mut random) };
        let path = cluster.dir().join(format!("{number}.db"));
        fs::write(&path, sealed(body)).unwrap();
        let round = Round { number, change, ours: ours(&path), theirs: theirs(&path) };
        fs::remove_file(&path).unwrap();
        round
    };
    let mut rounds: Vec<Round> = thread::scope(|scope| {
        let thread = |thread| {
            scope
                .spawn(move || (thread..ROUNDS).step_by(usize::try_from(THREADS).unwrap()).map(one).collect::<Vec<_>>())
        };
        let threads: Vec<_> = (0..THREADS).map(thread).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });

    rounds.sort_unstable_by_key(|round| round.number);
    let mut counts: BTreeMap<_, u64> = BTreeMap::new();
    let (mut wrong, mut stricter) = (Vec::new(), BTreeMap::<&str, u64>::new());
    for Round { number, change, ours, theirs } in &rounds {
        *counts.entry((ours.kind(), theirs.kind())).or_default() += 1;
        let why = match (ours, theirs) {
            (End::Crashes { .. } | End::Hangs, _) => "we did not end well",
            (End::Accepts(ours), End::Accepts(theirs)) if same(ours, theirs) => continue,
            (End::Accepts(_), End::Accepts(_)) => "other numbers",
            (End::Accepts(_), _) => "we accept what it does not",
            (End::Refuses(words), End::Accepts(_)) => match STRICTER.iter().find(|(ours, _)| words.contains(ours)) {
                Some((ours, _)) => {
                    *stricter.entry(ours).or_default() += 1;
                    continue;
                }
                None => "we refuse what it accepts, for no known reason",
            },
            (End::Refuses(_), _) => continue,
        };
        wrong.push(format!("{number}: {why}: {change}\n  ours: {ours:?}\n  theirs: {theirs:?}"));
    }
    let explained: Vec<String> = STRICTER
        .iter()
        .map(|(ours, why)| format!("{} times `{ours}`: {why}", stricter.get(ours).copied().unwrap_or(0)))
        .collect();
    let told = format!("{counts:?}\nwe alone refuse:\n{}", explained.join("\n"));
    assert!(wrong.is_empty(), "{}\n{told}", wrong.join("\n"));
    let all = |ours: &str| counts.iter().filter(|((kind, _), _)| *kind == ours).map(|(_, count)| count).sum::<u64>();
    assert!(
        all("refuses") > ROUNDS / 4 && all("accepts") > ROUNDS / 10,
        "the mutations are too mild or too wild: {told}"
    );
    for (Round { ours, theirs, .. }, name) in rounds.iter().zip(["as a server left it", "as we wrote it"]) {
        assert!(matches!((ours, theirs), (End::Accepts(_), End::Accepts(_))), "{name}: {ours:?} {theirs:?}");
    }
}
