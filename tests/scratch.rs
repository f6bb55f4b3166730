//! A scratch leaves no plaintext on its disk, and nothing at all when its process ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod mounts;
mod servers;
mod site;

use std::{
    env,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use etcd_dr::{
    at::PathError,
    etcd::ReadAt as _,
    proof::{self, Expected, Seen},
    scratch::Scratch,
    seal::{Identities, OpenError, Recipients, RunKey, Sealer, generate_identity},
};
use mounts::Mount;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

/// Set for the child that holds scratches: where.
const HOLD_IN: &str = "HOLD_A_SCRATCH_IN";
const MIB: usize = 1 << 20;

/// 64 bytes that are on no disk by chance, over and over, and the trailer that etcd sends.
fn database(mebibytes: usize) -> ([u8; 64], Vec<u8>) {
    let marker: [u8; 64] = rand::random();
    let mut bytes = marker.repeat((mebibytes * MIB) / marker.len());
    bytes.extend(Sha256::digest(&bytes));
    (marker, bytes)
}

struct SealedFile {
    path: PathBuf,
    identities: Arc<Identities>,
    expected: Expected,
}

fn seal(plain: &[u8], path: PathBuf) -> SealedFile {
    let (_, recipient) = generate_identity(jiff::Timestamp::UNIX_EPOCH);
    let recipients = Recipients::parse(&[recipient]).unwrap();
    let run = RunKey::generate();
    let file = File::create_new(&path).unwrap();
    let mut sealer = Sealer::new(file, recipients.encryptor(Some(&run)).unwrap(), 3, 1).unwrap();
    plain.chunks(100_000).for_each(|chunk| sealer.update(chunk).unwrap());
    let done = sealer.finish().unwrap();
    let expected = Expected {
        sealed_bytes: done.bytes,
        sealed_sha256: done.sha256,
        plain_bytes: done.plain.bytes,
        plain_sha256: done.plain.sha256,
    };
    SealedFile { path, identities: run.identities(), expected }
}

impl SealedFile {
    fn open(&self, dir: &Path) -> Result<(Seen, Option<Scratch>), OpenError> {
        proof::open_to_scratch(&self.path, &self.expected, &self.identities, dir, &CancellationToken::new())
    }
}

/// Places in `disk` where any 16 bytes of the repeated marker stand.
fn runs(disk: &[u8], marker: &[u8; 64]) -> usize {
    let twice = marker.repeat(2);
    let mut by_start: Vec<Vec<&[u8]>> = vec![Vec::new(); 1 << 16];
    let start = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    for run in twice.windows(16).take(64) {
        by_start[start(run)].push(run);
    }
    disk.windows(16).filter(|bytes| by_start[start(bytes)].contains(bytes)).count()
}

fn sync(dir: &Path) {
    rustix::fs::syncfs(File::open(dir).unwrap()).unwrap();
}

fn free(dir: &Path) -> u64 {
    let stat = rustix::fs::statvfs(dir).unwrap();
    stat.f_bfree * stat.f_frsize
}

fn names(dir: &Path) -> Vec<PathBuf> {
    dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_blocks_of_its_file_system_hold_no_plaintext() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("ext4");
    let mount = Mount::ext4(&at, 64);
    let image = mount.image().unwrap();
    let allocated = || fs::metadata(&image).unwrap().blocks() * 512;
    let (marker, plain) = database(12);
    let sealed = seal(&plain, at.join("sealed"));
    sync(&at);
    let before = allocated();

    let (seen, scratch) = sealed.open(&at).unwrap();
    assert!(matches!(seen, Seen::Holds(_)), "{seen:?}");
    let scratch = scratch.unwrap();
    sync(&at);
    // What was written has reached the blocks that are looked at.
    let grown = allocated() - before;
    assert!(grown >= 11 << 20, "{} bytes were written, {grown} of them have reached the blocks", plain.len());
    assert_eq!(runs(&fs::read(&image).unwrap(), &marker), 0, "with the scratch open");
    let mut read = vec![0; plain.len()];
    scratch.read_exact_at(&mut read, 0).unwrap();
    assert!(read == plain, "the scratch holds something else");
    drop(scratch);
    sync(&at);
    assert_eq!(runs(&fs::read(&image).unwrap(), &marker), 0, "with the scratch closed");
    assert_eq!(names(&at), [at.join("sealed")]);

    // The same bytes in the open are found.
    fs::write(at.join("open.db"), &plain).unwrap();
    sync(&at);
    let found = runs(&fs::read(&image).unwrap(), &marker);
    assert!(found > plain.len() / 2, "{found} runs of {} bytes in the open", plain.len());
}

#[test]
fn a_killed_process_leaves_no_name_and_no_block() {
    if let Some(dir) = hold_in() {
        hold(&dir);
    }
    let dir = tempfile::tempdir().unwrap();
    let (at, ready) = (dir.path().join("ext4"), dir.path().join("ready"));
    let _ext4 = Mount::ext4(&at, 64);
    sync(&at);
    let before = free(&at);
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "a_killed_process_leaves_no_name_and_no_block"]).env(HOLD_IN, &at);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let asked = Instant::now();
    while !ready.exists() {
        assert!(asked.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "no scratch is held");
        thread::sleep(Duration::from_millis(20));
    }
    sync(&at);
    let (held, there) = (before - free(&at), names(&at));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(held >= 11 << 20, "the child held {held} bytes");
    assert_eq!((there, names(&at)), (vec![], vec![]), "while it was held, and behind the kill");
    sync(&at);
    assert_eq!(free(&at), before);
}

#[allow(clippy::disallowed_methods, reason = "the test starts itself once more, and tells its child so")]
fn hold_in() -> Option<PathBuf> {
    env::var_os(HOLD_IN).map(PathBuf::from)
}

/// Holds a scratch that is whole and one that is being written, until this process is killed.
fn hold(dir: &Path) -> ! {
    let mut whole = Scratch::create(dir).unwrap();
    whole.write(&vec![1; 8 * MIB]).unwrap();
    let _whole = whole.finish().unwrap();
    let mut begun = Scratch::create(dir).unwrap();
    begun.write(&vec![2; 3 * MIB]).unwrap();
    fs::write(dir.with_file_name("ready"), "").unwrap();
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn what_does_not_hold_gives_no_scratch() {
    let dir = tempfile::tempdir().unwrap();
    let (_, plain) = database(2);
    let mut sealed = seal(&plain, dir.path().join("sealed"));
    let mut broken = plain.clone();
    *broken.last_mut().unwrap() ^= 1;
    let broken = seal(&broken, dir.path().join("broken"));
    for (what, sealed) in [
        ("another trailer", &broken),
        ("another file", &SealedFile { path: broken.path.clone(), ..seal(&plain, dir.path().join("other")) }),
    ] {
        let (seen, scratch) = sealed.open(dir.path()).unwrap();
        assert!(matches!(seen, Seen::Changed(_)) && scratch.is_none(), "{what}: {seen:?}");
    }
    let identities = std::mem::replace(&mut sealed.identities, RunKey::generate().identities());
    let (seen, scratch) = sealed.open(dir.path()).unwrap();
    assert!(seen == Seen::WrongKey && scratch.is_none(), "{seen:?}");
    sealed.identities = identities;
    let (seen, scratch) = sealed.open(dir.path()).unwrap();
    assert!(matches!(seen, Seen::Holds(_)), "{seen:?}");
    assert_eq!(scratch.unwrap().size().unwrap(), plain.len() as u64);
}

#[test]
fn a_full_disk_is_named_and_freed_and_a_longer_plaintext_does_not_fill_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("tmpfs");
    let _tmpfs = Mount::tmpfs(&at, 8);
    let (_, plain) = database(16);
    let mut sealed = seal(&plain, dir.path().join("sealed"));
    let before = free(&at);
    let Err(OpenError::Io(error)) = sealed.open(&at) else { panic!("16 MiB fitted into 8") };
    assert!(error.is_no_space() && error.path == at, "{error}");
    let PathError { source, .. } = &error;
    assert!(source.to_string().contains("of the encrypted scratch"), "{error}");
    assert_eq!((names(&at), free(&at)), (vec![], before));

    sealed.expected.plain_bytes = 4 << 20;
    let (seen, scratch) = sealed.open(&at).unwrap();
    assert!(matches!(seen, Seen::Changed(_)) && scratch.is_none(), "{seen:?}");
}
