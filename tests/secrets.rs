//! No secret is found where it does not belong: not in what is written, not in what is said, not in what `/proc` shows of a run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;
mod site;

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use servers::{
    etcd::{Cluster, Options},
    fill, stock, wait,
};
use site::Site;

/// A secret, and the files that hold it by right.
struct Canary {
    name: &'static str,
    bytes: Vec<u8>,
    homes: Vec<PathBuf>,
}

const BASE64: [&[u8; 64]; 2] = [
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
];

/// The characters of base64 that depend on `bytes` alone when `before` other bytes stand before them.
fn base64(bytes: &[u8], before: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    // The first character that begins within these bytes.
    let skip = (6 - before * 8 % 6) % 6;
    let sextets = bits[skip..].chunks_exact(6);
    sextets.map(|six| alphabet[usize::from(six.iter().fold(0, |value, bit| value << 1 | bit))]).collect()
}

fn hex(bytes: &[u8], upper: bool, prefix: &str) -> Vec<u8> {
    let digits =
        bytes.iter().map(|byte| if upper { format!("{prefix}{byte:02X}") } else { format!("{prefix}{byte:02x}") });
    digits.collect::<String>().into_bytes()
}

/// As a query string has it: what is not unreserved is escaped.
fn url(bytes: &[u8], upper: bool) -> Vec<u8> {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    bytes.iter().flat_map(|&byte| if keep(byte) { vec![byte] } else { hex(&[byte], upper, "%") }).collect()
}

impl Canary {
    fn new(name: &'static str, bytes: impl Into<Vec<u8>>, homes: &[PathBuf]) -> Self {
        let canary = Self { name, bytes: bytes.into(), homes: homes.to_vec() };
        assert!(canary.bytes.len() >= 16, "{name} is too short to be found by chance alone");
        canary
    }

    /// Every form in which it could lie somewhere.
    fn forms(&self) -> BTreeSet<Vec<u8>> {
        let mut forms = BTreeSet::from([self.bytes.clone()]);
        for alphabet in BASE64 {
            forms.extend((0..3).map(|before| base64(&self.bytes, before, alphabet)));
        }
        for upper in [false, true] {
            forms.extend(["", "%", "\\x"].map(|prefix| hex(&self.bytes, upper, prefix)));
            forms.insert(url(&self.bytes, upper));
        }
        // A Debug dump of the bytes.
        forms.insert(format!("{:?}", self.bytes).trim_matches(['[', ']']).as_bytes().to_vec());
        forms
    }

    fn is_in(&self, hay: &[u8]) -> bool {
        self.forms().iter().any(|form| contains(hay, form))
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// Every regular file below, with its bytes.
fn files_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let found = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    found.map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap())).collect()
}

/// What a run said and showed of itself.
struct Watched {
    code: i32,
    what: String,
    said: Vec<(&'static str, Vec<u8>)>,
    /// Looks at `/proc` that saw the program itself alive, with its arguments.
    sightings: usize,
    /// Looks that saw bytes in a scratch; what they saw is in `said`.
    scratches: usize,
}

/// What the files without a name hold that a process has open in this directory.
fn unnamed_files(proc: &Path, dir: &Path) -> Vec<Vec<u8>> {
    let open = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    let unnamed = open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(dir)));
    unnamed.filter_map(|entry| fs::read(entry.path()).ok()).filter(|bytes| !bytes.is_empty()).collect()
}

/// Runs a command to its end and looks at its `/proc` entries and into its scratch all the while.
fn watch(mut command: Command, scratch: &Path) -> Watched {
    let what = format!("{:?}", command.get_args().collect::<Vec<_>>());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let mut scratches = 0;
    let mut look = |seen: &mut BTreeSet<_>, sightings: &mut usize| {
        assert_eq!(site::names(scratch), [""; 0], "a scratch has a name");
        let unnamed = unnamed_files(&proc, scratch);
        scratches += unnamed.len();
        seen.extend(unnamed.into_iter().map(|bytes| ("the scratch", bytes)));
        for (name, file) in [("cmdline", proc.join("cmdline")), ("environ", proc.join("environ"))] {
            let bytes = fs::read(file).unwrap_or_default();
            *sightings += usize::from(name == "cmdline" && contains(&bytes, b"etcd-dr\0--policy\0"));
            seen.insert((name, bytes));
        }
    };
    // At once, since some runs last a few milliseconds.
    let (mut seen, mut sightings) = (BTreeSet::new(), 0);
    look(&mut seen, &mut sightings);
    let reader = |mut pipe: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let out = reader(Box::new(child.stdout.take().unwrap()));
    let err = reader(Box::new(child.stderr.take().unwrap()));
    let status = loop {
        look(&mut seen, &mut sightings);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    let mut said: Vec<_> = seen.into_iter().collect();
    said.extend([("stdout", out.join().unwrap()), ("stderr", err.join().unwrap())]);
    Watched { code: status.code().unwrap_or(-1), what, said, sightings, scratches }
}

/// The 32 bytes behind an age identity's text, which is bech32.
fn identity_bytes(text: &str) -> Vec<u8> {
    const CHARSET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    let data = text.trim().to_ascii_lowercase();
    let data = data.strip_prefix("age-secret-key-1").unwrap();
    let bits = data.chars().flat_map(|c| (0..5).rev().map(move |bit| CHARSET.find(c).unwrap() >> bit & 1));
    let bits: Vec<usize> = bits.take(256).collect();
    bits.chunks(8).map(|byte| u8::try_from(byte.iter().fold(0, |value, bit| value << 1 | bit)).unwrap()).collect()
}

fn base64_decoded(text: &str) -> Vec<u8> {
    let mut tool = stock("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut tool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn canaries(site: &Site, cluster: &Cluster, in_etcd: &[u8], password: &[u8]) -> Vec<Canary> {
    let (identity, signing) = (site.path("identity.txt"), site.path("signing.key"));
    let text = fs::read_to_string(&identity).unwrap();
    let line = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
    let key = fs::read_to_string(&signing).unwrap();
    let key = base64_decoded(key.lines().nth(1).unwrap());
    // Two letters of algorithm, three fields of two, salt and limits of 48, key number of 8; then the seed and the public half.
    assert_eq!((key.len(), &key[..2]), (158, &b"Ed"[..]));
    let client_key = cluster.client_pair().key.clone();
    let pem = fs::read_to_string(&client_key).unwrap();
    let pem_line = pem.lines().nth(2).unwrap().as_bytes().to_vec();
    let second = fs::read_to_string(site.path("second.txt")).unwrap();
    let second = second.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap().to_owned();
    vec![
        Canary::new("a Secret in etcd", in_etcd, &[]),
        Canary::new("the MongoDB Secret in etcd", fill::SECRET, &[]),
        Canary::new("the identity's text", line, std::slice::from_ref(&identity)),
        Canary::new("the identity in small letters", line.to_ascii_lowercase(), &[]),
        Canary::new("the identity's bytes", identity_bytes(line), &[]),
        Canary::new("the second identity", second, &[site.path("second.txt")]),
        Canary::new("the signing key's secret half", &key[62..94], &[signing]),
        Canary::new("etcd's password", password, &[site.path("password")]),
        Canary::new("the client certificate's key", pem_line, &[client_key]),
    ]
}

#[test]
fn the_search_finds_every_form() {
    let secret: Vec<u8> = (0..32_u8).map(|n| n.wrapping_mul(89) ^ 0x3f).collect();
    let canary = Canary::new("made up", secret.clone(), &[]);
    for before in 0..4 {
        let mut plain = vec![b'x'; before];
        plain.extend(&secret);
        plain.extend([b'y'; 3]);
        let mut tool = stock("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut tool.stdin.take().unwrap(), &plain).unwrap();
        let encoded = tool.wait_with_output().unwrap().stdout;
        assert!(canary.is_in(&encoded) && canary.is_in(&plain), "{before}");
        let mut other = plain.clone();
        other[before + 16] ^= 1;
        assert!(!canary.is_in(&other), "{before}");
    }
    for hay in [hex(&secret, false, ""), hex(&secret, true, ""), url(&secret, true), hex(&secret, false, "%")] {
        assert!(canary.is_in(&hay));
    }
    assert!(canary.is_in(format!("Key({secret:?})").as_bytes()));
    assert_eq!(
        identity_bytes("AGE-SECRET-KEY-1QQQSYQCYQ5RQWZQFPG9SCRGWPUGPZYSNZS23V9CCRYDPK8QARC0SYAHJZA")[..3],
        [0, 1, 2]
    );
}

/// etcd with authentication on, a user `backup` with that password, and a Secret with that value.
fn guarded_cluster(secret: &str, password: &str) -> Cluster {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let mut client = cluster.client(0);
    let value = format!("k8s\0v1 Secret password {secret}");
    wait(async move { client.put("/registry/secrets/default/canary", value, None).await }).unwrap();
    for arguments in [
        &["user", "add", &format!("root:{password}")][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        let done = cluster.etcdctl().args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }
    cluster
}

#[test]
fn no_secret_is_written_said_or_shown() {
    let in_etcd = format!("canary+in/etcd={:032x}?", rand::random::<u128>());
    let password = format!("canary+pass/word={:032x}&", rand::random::<u128>());
    let cluster = guarded_cluster(&in_etcd, &password);
    let pair = cluster.client_pair();
    let site = Site::bare(cluster.advertised(0), cluster.pki().ca(), &pair.cert, &pair.key);
    fs::write(site.path("password"), format!("{password}\n")).unwrap();
    fs::set_permissions(site.path("password"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    site.change_policy(
        "[store]\n",
        &format!("user = \"root\"\npassword_file = {:?}\n[store]\n", site.path("password")),
    );

    let scratch = site.path("scratch");
    fs::create_dir(&scratch).unwrap();
    site.change_policy("[backup]\n", &format!("[backup]\nscratch_dir = {scratch:?}\n"));

    let mut runs: Vec<Watched> = Vec::new();
    let mut run = |code: i32, arguments: &[&str]| {
        let watched = watch(site.command(arguments), &scratch);
        let stderr = String::from_utf8_lossy(&watched.said.last().unwrap().1).into_owned();
        assert_eq!(watched.code, code, "{arguments:?}: {stderr}");
        runs.push(watched);
    };
    let second = site.path("second.txt");
    run(0, &["keys", "generate", "-vv"]);
    run(0, &["keys", "generate", "-vv", "--output", "json", "--out", second.to_str().unwrap()]);
    let recipients = ["identity.txt", "second.txt"].map(|name| {
        let output = stock("age-keygen").arg("-y").arg(site.path(name)).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    fs::write(site.path("recipients.txt"), recipients.concat()).unwrap();
    fs::set_permissions(site.path("recipients.txt"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    run(0, &["init", "-vv"]);
    run(0, &["backup", "-vv", "--dry-run"]);
    run(0, &["backup", "-vv", "--output", "json"]);
    run(0, &["backup"]);
    for command in ["list", "show", "verify", "prune"] {
        run(0, &[command, "-vv"]);
        run(0, &[command, "-vv", "--output", "json"]);
    }
    run(0, &["keys", "check", "-vv"]);
    // Runs that go wrong, where words are found for what is at hand.
    run(1, &["keys", "generate", "-vv"]);
    let identity = fs::read(site.path("identity.txt")).unwrap();
    let good = site.policy();
    // Someone puts the identity where the recipient belongs.
    fs::write(site.path("recipients.txt"), &identity).unwrap();
    run(2, &["backup", "-vv"]);
    run(2, &["backup", "-vv", "--output", "json"]);
    fs::write(site.path("recipients.txt"), recipients.concat()).unwrap();
    fs::write(site.path("password"), format!("{password}wrong\n")).unwrap();
    let refused = watch(site.command(&["backup", "-vv"]), &scratch);
    assert!(![0, 3].contains(&refused.code));
    runs.push(refused);
    fs::write(site.path("password"), format!("{password}\n")).unwrap();
    site.change_policy("password_file", "password_fil");
    let typo = watch(site.command(&["backup", "-vv"]), &scratch);
    assert_eq!(typo.code, 2);
    runs.push(typo);
    site.write_policy(&good);
    cluster.kill_member(0);
    let down = watch(site.command(&["backup", "-vv", "--output", "json"]), &scratch);
    assert_eq!(down.code, 21);
    runs.push(down);

    let canaries = canaries(&site, &cluster, in_etcd.as_bytes(), password.as_bytes());
    for canary in &canaries {
        for Watched { what, said, .. } in &runs {
            for (where_, bytes) in said {
                assert!(!canary.is_in(bytes), "{} is in {where_} of {what}", canary.name);
            }
        }
        let files = files_below(&site.path(""));
        assert!(files.len() > 15, "{}", files.len());
        for (path, bytes) in &files {
            assert!(canary.homes.contains(path) || !canary.is_in(bytes), "{} is in {}", canary.name, path.display());
        }
        // The search would have found it at home.
        for home in &canary.homes {
            assert!(canary.is_in(&fs::read(home).unwrap()), "{}", canary.name);
        }
    }
    // The looks at /proc saw every program that did its work, again and again; one that refuses at once may end before a busy machine looks.
    for Watched { what, sightings, code, .. } in &runs {
        let works = ["backup", "verify", "check"].iter().any(|command| what.contains(command));
        assert!(*sightings > 1 || *code != 0 || !works, "{what} was not seen alive");
    }
    assert!(runs.iter().map(|run| run.scratches).sum::<usize>() > 0, "no look found a scratch");
    let seen = runs.iter().filter(|run| run.sightings > 0).count();
    assert!(seen * 4 > runs.len() * 3, "{seen} of {}", runs.len());

    // And what is nowhere else is in the snapshot, once it is opened.
    let backups = site.backups();
    let mut age = stock("age")
        .args(["-d", "-i"])
        .arg(site.path("identity.txt"))
        .arg(site.backup_dir(&backups[0]).join("etcd-k8s.db.zst.age"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let snapshot = stock("zstd").args(["-q", "-d"]).stdin(age.stdout.take().unwrap()).output().unwrap().stdout;
    assert!(age.wait().unwrap().success());
    for canary in canaries.iter().take(2) {
        assert!(canary.is_in(&snapshot), "{}", canary.name);
    }
}
