//! The policy: precedence, words and lines of its errors, who may have written it, and the policies that are shipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, chown, lchown, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_dr::{
    policy::{Error, KEYS, KeepMembers, Kind, Origin, Overrides, Policy, Sources},
    record::ProofLevel,
};

/// A directory with a policy file in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(text: &str) -> Self {
        let place = Self::new();
        place.write("policy.toml", text);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The file as the default one, which leaves the flag's and the variable's rung free.
    fn sources(&self) -> Sources {
        Sources { default_file: self.path("policy.toml"), ..Sources::default() }
    }

    fn load(&self) -> Result<Policy, Error> {
        Policy::load(&self.sources())
    }
}

fn load(body: &str) -> Result<Policy, Error> {
    Place::with(&format!("version = 1\n{body}\n")).load()
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Without a file.
fn load_variables(pairs: &[(&str, &str)]) -> Result<Policy, Error> {
    Policy::load(&Sources { environment: variables(pairs), ..Place::new().sources() })
}

/// The error's words without the directory's, and its hint.
fn words(place: &Place, error: &Error) -> (String, String) {
    let home = format!("{}/", place.0.path().display());
    (error.to_string().replace(&home, ""), error.hint().unwrap_or_default().replace(&home, ""))
}

/// What a policy of `version = 1` and these lines is refused with; the lines begin at line 2.
fn refused(body: &str) -> (String, String) {
    let place = Place::with(&format!("version = 1\n{body}\n"));
    let error = place.load().expect_err(body);
    for word in ["invalid", "unexpected", "failed to", "please"] {
        assert!(!error.to_string().contains(word), "{error}");
    }
    words(&place, &error)
}

fn endpoints(policy: &Policy) -> Vec<String> {
    policy.cluster.endpoints.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_at_all_gives_the_defaults() {
    let policy = Policy::load(&Place::new().sources()).unwrap();
    assert_eq!(policy.source, None);
    assert!(policy.cluster.endpoints.is_empty() && policy.cluster.client.is_none() && policy.cluster.user.is_none());
    assert_eq!(policy.store.path, Path::new("/backup/etcd"));
    assert_eq!(policy.store.reserve.to_string(), "5%");
    assert_eq!(policy.backup.zstd_level, 3);
    assert_eq!(policy.backup.connect_timeout, Duration::from_secs(5));
    assert_eq!(policy.backup.stall_timeout, Duration::from_secs(30));
    assert_eq!(policy.backup.max_lag, 1000);
    assert_eq!(policy.backup.prove, ProofLevel::Sound);
    assert_eq!((policy.backup.keep_members, policy.backup.scratch_dir), (KeepMembers::All, None));
    assert_eq!(policy.encryption.identity_file, Path::new("/etc/etcd-dr/identity.txt"));
    assert_eq!(policy.signing.secret_key_file, Path::new("/etc/etcd-dr/signing.key"));
    assert_eq!(policy.retention.keep_within, Duration::from_secs(5 * 86_400));
    assert_eq!((policy.retention.keep_proved, policy.retention.min_proof), (3, ProofLevel::Sound));
    assert_eq!((policy.retention.keep_daily, policy.retention.keep_weekly, policy.retention.keep_monthly), (0, 0, 0));
    assert_eq!(policy.warnings, Vec::<String>::new());
}

#[test]
fn each_source_stands_above_the_next() {
    let place = Place::with("version = 1\n[cluster]\nendpoints = [\"file\"]\n");
    let mut sources = place.sources();
    let seen = |sources: &Sources| endpoints(&Policy::load(sources).unwrap());
    sources.flags.endpoints = vec!["flag".to_owned()];
    sources.environment = variables(&[("ETCD_DR_CLUSTER__ENDPOINTS", "variable"), ("ETCDCTL_ENDPOINTS", "etcdctl")]);
    assert_eq!(seen(&sources), ["https://flag:2379"]);
    sources.flags = Overrides::default();
    assert_eq!(seen(&sources), ["https://variable:2379"]);
    sources.environment.remove(0);
    assert_eq!(seen(&sources), ["https://file:2379"]);
    place.write("policy.toml", "version = 1\n");
    assert_eq!(seen(&sources), ["https://etcdctl:2379"]);
    sources.environment.clear();
    assert!(seen(&sources).is_empty());
}

#[test]
fn the_file_is_the_flags_else_the_variables_else_the_default() {
    let place = Place::with("version = 1\n[cluster]\nname = \"default\"\n");
    let named = |name: &str| place.write(name, &format!("version = 1\n[cluster]\nname = \"{name}\"\n"));
    let (flag, variable) = (named("flag"), named("variable"));
    let mut sources = place.sources();
    sources.file = Some(flag.clone());
    sources.environment = variables(&[("ETCD_DR_POLICY", variable.to_str().unwrap())]);
    let policy = Policy::load(&sources).unwrap();
    assert_eq!((policy.cluster.name.as_str(), policy.source), ("flag", Some(flag)));
    sources.file = None;
    let policy = Policy::load(&sources).unwrap();
    assert_eq!((policy.cluster.name.as_str(), policy.source), ("variable", Some(variable)));
    sources.environment = variables(&[("ETCD_DR_POLICY", "")]);
    let policy = Policy::load(&sources).unwrap();
    assert_eq!((policy.cluster.name.as_str(), policy.source), ("default", Some(place.path("policy.toml"))));
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let place = Place::new();
    let absent = place.path("absent.toml");
    let by_flag = Sources { file: Some(absent.clone()), ..place.sources() };
    let error = Policy::load(&by_flag).unwrap_err();
    assert!(matches!(&error, Error::Missing { by: Origin::Flag("--policy"), path } if *path == absent));
    assert_eq!(words(&place, &error).0, "--policy names absent.toml, which is not there");
    let environment = variables(&[("ETCD_DR_POLICY", absent.to_str().unwrap())]);
    let error = Policy::load(&Sources { environment, ..place.sources() }).unwrap_err();
    assert_eq!(words(&place, &error).0, "ETCD_DR_POLICY names absent.toml, which is not there");
}

#[test]
fn every_flag_overrides_its_key() {
    let place = Place::with(
        r#"version = 1
[cluster]
endpoints = ["a"]
ca_file = "/f/ca"
cert_file = "/f/cert"
key_file = "/f/key"
[store]
path = "/f/store"
[encryption]
identity_file = "/f/identity"
[signing]
trusted = ["/f/one.pub", "/f/two.pub"]
"#,
    );
    let flags = Overrides {
        endpoints: vec!["b:1".into(), "c:2".into(), "b:1".into()],
        cacert: Some("/g/ca".into()),
        cert: Some("/g/cert".into()),
        key: Some("/g/key".into()),
        store: Some("relative/store".into()),
        public_key: vec!["mini.pub".into()],
        identity: Some("/g/identity".into()),
    };
    let policy = Policy::load(&Sources { flags, ..place.sources() }).unwrap();
    assert_eq!(endpoints(&policy), ["https://b:1", "https://c:2"]);
    assert_eq!(policy.cluster.ca_file, Some("/g/ca".into()));
    let client = policy.cluster.client.unwrap();
    assert_eq!((client.cert_file, client.key_file), ("/g/cert".into(), "/g/key".into()));
    assert_eq!(policy.store.path, std::env::current_dir().unwrap().join("relative/store"));
    assert_eq!(policy.signing.trusted, ["mini.pub"]);
    assert_eq!(policy.encryption.identity_file, Path::new("/g/identity"));
}

#[test]
fn variables_are_read_as_the_type_of_their_key() {
    let policy = load_variables(&[
        ("ETCD_DR_CLUSTER__ENDPOINTS", "a:1, b:2,,a:1"),
        ("ETCD_DR_CLUSTER__NAME", "12"),
        ("ETCD_DR_BACKUP__ZSTD_LEVEL", "9"),
        ("ETCD_DR_STORE__PUBLIC_INDEX", "true"),
        ("ETCD_DR_RETENTION__KEEP_WITHIN", "26h"),
        ("ETCD_DR_ENCRYPTION__RECIPIENTS", "age1b,age1a,age1b"),
        ("ETCD_DR_TEST_KEEP", "no setting"),
        ("ETCD_DR", "no setting"),
        ("HOME", "/root"),
    ])
    .unwrap();
    assert_eq!(endpoints(&policy), ["https://a:1", "https://b:2"]);
    assert_eq!(policy.cluster.name, "12");
    assert_eq!(policy.backup.zstd_level, 9);
    assert_eq!(policy.retention.keep_within, Duration::from_secs(26 * 3600));
    assert_eq!(policy.encryption.recipients, ["age1b", "age1a"]);
    assert!(policy.warnings.is_empty());
}

#[test]
fn a_variable_in_error_is_named() {
    for (name, value, message, hint) in [
        (
            "ETCD_DR_RETENTION__KEEP_WIHTIN",
            "5d",
            "[retention] keep_wihtin is not a key",
            "did you mean ETCD_DR_RETENTION__KEEP_WITHIN?",
        ),
        ("ETCD_DR_BACKUP__ZSTD_LEVEL", "high", "[backup] zstd_level: takes a whole number", ""),
        ("ETCD_DR_BACKUP__ZSTD_LEVEL", "40", "[backup] zstd_level: 40 is outside 1 to 19", ""),
        ("ETCD_DR_STORE__PUBLIC_INDEX", "yes", "[store] public_index: takes true or false", ""),
        ("ETCD_DR_CLUSTER__NAME", "a\u{fffd}", "[cluster] name: is not UTF-8", ""),
        (
            "ETCD_DR_TARGET__TANK__KIND",
            "zfs",
            "[target]: copying backups to targets is not built yet",
            "leave [target] out until a version has it",
        ),
        (
            "ETCDCTL_ENDPOINTS",
            "http://h:2379",
            "[cluster] endpoints: `http://h:2379` is without TLS; etcd-dr always verifies etcd's certificate: write https://",
            "",
        ),
    ] {
        let error = load_variables(&[(name, value)]).expect_err(name);
        assert_eq!(error.to_string(), format!("{name}: {message}"));
        assert_eq!(error.hint().unwrap_or_default(), hint, "{name}");
    }
}

#[test]
fn one_underscore_where_two_are_meant_is_a_warning() {
    let policy = load_variables(&[("ETCD_DR_STORE_PATH", "/elsewhere")]).unwrap();
    assert_eq!(policy.store.path, Path::new("/backup/etcd"));
    assert_eq!(policy.warnings, ["ETCD_DR_STORE_PATH is not read: the variable is ETCD_DR_STORE__PATH"]);
}

#[test]
fn etcdctls_variables_fill_only_what_is_open() {
    let environment = [
        ("ETCDCTL_ENDPOINTS", "127.0.0.1:2379,http://stray:2379"),
        ("ETCDCTL_CACERT", "/ctl/ca"),
        ("ETCDCTL_CERT", "/ctl/cert"),
        ("ETCDCTL_KEY", "/ctl/key"),
        ("ETCDCTL_USER", "root:hunter2"),
    ];
    let place = Place::with("version = 1\n[cluster]\nendpoints = [\"file\"]\nca_file = \"/f/ca\"\n");
    let sources = Sources { environment: variables(&environment), ..place.sources() };
    let cluster = Policy::load(&sources).unwrap().cluster;
    assert_eq!(cluster.endpoints.len(), 1);
    assert_eq!(cluster.endpoints[0].to_string(), "https://file:2379");
    assert_eq!(cluster.ca_file, Some("/f/ca".into()));
    assert_eq!(cluster.client.unwrap().cert_file, Path::new("/ctl/cert"));
    assert_eq!(cluster.user, None);

    let policy = load_variables(&[("ETCDCTL_ENDPOINTS", ""), ("ETCDCTL_CACERT", ""), ("ETCDCTL_CERT", "")]).unwrap();
    assert!(policy.cluster.endpoints.is_empty() && policy.cluster.ca_file.is_none() && policy.cluster.client.is_none());
}

#[test]
fn a_typo_names_its_line_and_the_nearest_name() {
    for (body, message, hint) in [
        (
            "[retention]\nkeep_proved = 3\n\nkeep_wihtin = \"5d\"",
            "policy.toml:5: [retention] keep_wihtin is not a key",
            "did you mean keep_within?",
        ),
        ("[retension]\nkeep_proved = 3", "policy.toml:2: [retension] is not a section", "did you mean [retention]?"),
        ("[[notifi]]\nping_url = \"x\"", "policy.toml:2: [notifi] is not a section", "did you mean [notify]?"),
        (
            "[store]\nkeep_within = \"5d\"",
            "policy.toml:3: [store] keep_within is not a key",
            "did you mean keep_within in [retention]?",
        ),
        ("zstd_level = 3", "policy.toml:2: zstd_level is not a key", "did you mean zstd_level in [backup]?"),
        ("[store]\nxyzzy = 1", "policy.toml:3: [store] xyzzy is not a key", "known are path, public_index, reserve"),
        (
            "[xyzzy]",
            "policy.toml:2: [xyzzy] is not a section",
            "known are [cluster], [store], [backup], [encryption], [signing], [retention]",
        ),
        ("store.paht = \"/b\"", "policy.toml:2: [store] paht is not a key", "did you mean path?"),
        (
            "\"a\\u001b[31m\" = 1",
            "policy.toml:2: a\\u{1b}[31m is not a key",
            "known are version, [cluster], [store], [backup], [encryption], [signing], [retention]",
        ),
    ] {
        assert_eq!(refused(body), (message.to_owned(), hint.to_owned()), "{body}");
    }
}

#[test]
fn the_first_fault_of_the_file_is_told() {
    let (message, _) = refused("[store]\nzzz = 1\n[backup]\naaa = 1");
    assert_eq!(message, "policy.toml:3: [store] zzz is not a key");
    let (message, _) = refused("[store]\nzzz = 1\naaa = 1");
    assert_eq!(message, "policy.toml:3: [store] zzz is not a key");
}

#[test]
fn a_value_of_the_wrong_type_names_its_line() {
    for (body, message) in [
        ("[backup]\nzstd_level = \"3\"", "policy.toml:3: [backup] zstd_level: takes a whole number, not a string"),
        ("[backup]\nzstd_level = 3.5", "policy.toml:3: [backup] zstd_level: takes a whole number, not a fraction"),
        ("[backup]\nstall_timeout = 30", "policy.toml:3: [backup] stall_timeout: takes a string, not a whole number"),
        ("[store]\npath = [\"/b\"]", "policy.toml:3: [store] path: takes a path, as a string, not a list"),
        ("[store]\npublic_index = 1", "policy.toml:3: [store] public_index: takes true or false, not a whole number"),
        (
            "[encryption]\nrecipients = \"age1\"",
            "policy.toml:3: [encryption] recipients: takes a list of strings, not a string",
        ),
        (
            "[encryption]\nrecipients = [\n  \"age1\",\n  7,\n]",
            "policy.toml:5: [encryption] recipients: takes a list of strings, not a whole number",
        ),
        ("store = 3", "policy.toml:2: [store]: takes keys, not a whole number"),
        ("[[store]]\npath = \"/b\"", "policy.toml:2: [store]: takes keys, not a list"),
        ("[store.path]\nx = 1", "policy.toml:2: [store] path: takes a path, as a string, not a section"),
        (
            "[backup]\nmax_lag = 99999999999999999999",
            "policy.toml:3: [backup] max_lag: 99999999999999999999 is beyond 64 bits",
        ),
    ] {
        assert_eq!(refused(body).0, message, "{body}");
    }
}

#[test]
fn a_value_out_of_range_names_its_line() {
    let long = format!("[cluster]\nname = \"{}\"", "x".repeat(101));
    for (body, message) in [
        (
            "[retention]\nkeep_within = \"5x\"",
            "policy.toml:3: [retention] keep_within: `5x` is no duration; write a whole number and s, m, h, d or w, as in 30s or 5d",
        ),
        (
            "[retention]\nkeep_within = \"99999w\"",
            "policy.toml:3: [retention] keep_within: `99999w` is too long; 100 years is the longest duration",
        ),
        ("[retention]\nkeep_proved = 0", "policy.toml:3: [retention] keep_proved: 0 is outside 1 to 4294967295"),
        ("[retention]\nkeep_daily = -1", "policy.toml:3: [retention] keep_daily: -1 is outside 0 to 4294967295"),
        ("[backup]\nzstd_level = 40", "policy.toml:3: [backup] zstd_level: 40 is outside 1 to 19"),
        ("[backup]\nzstd_level = 0", "policy.toml:3: [backup] zstd_level: 0 is outside 1 to 19"),
        ("[backup]\nparallel = 0", "policy.toml:3: [backup] parallel: 0 is outside 1 to 64"),
        ("[backup]\nmax_lag = -1", "policy.toml:3: [backup] max_lag: -1 is outside 0 to 9223372036854775807"),
        (
            "[backup]\nconnect_timeout = \"0s\"",
            "policy.toml:3: [backup] connect_timeout: `0s` is too short; 1s is the shortest",
        ),
        (
            "[backup]\nkeep_members = \"some\"",
            "policy.toml:3: [backup] keep_members: `some` is neither all nor primary",
        ),
        (
            "[backup]\nprove = \"none\"",
            "policy.toml:3: [backup] prove: `none` is not a level here; write digest, open or sound",
        ),
        (
            "[retention]\nmin_proof = \"all\"",
            "policy.toml:3: [retention] min_proof: `all` is not a level here; write digest, open or sound",
        ),
        (
            "[store]\nreserve = \"2GB\"",
            "policy.toml:3: [store] reserve: `2GB` is no size; write a whole number and B, KiB, MiB, GiB, TiB or PiB, as in 512MiB",
        ),
        (
            "[store]\nreserve = \"100%\"",
            "policy.toml:3: [store] reserve: `100%` is no share; write 0% to 99%, or a size as in 2GiB",
        ),
        (
            "[store]\npath = \"backup\"",
            "policy.toml:3: [store] path: takes an absolute path, since cron and a shell start in different places",
        ),
        (
            "[cluster]\nendpoints = [\n\"https://a\",\n\"unix:///run/e\"]",
            "policy.toml:5: [cluster] endpoints: `unix:///run/e` is a Unix socket; etcd-dr dials members over TLS: write https://HOST:2379",
        ),
        (
            "[cluster]\nname = \"\"",
            "policy.toml:3: [cluster] name: `` is no name; it takes 1 to 100 characters that can be printed",
        ),
        (
            "[signing]\ntrusted = [\"mini.pub\"]",
            "policy.toml:3: [signing] trusted: takes minisign public keys, 56 characters from RW on, or absolute paths of .pub files",
        ),
    ] {
        assert_eq!(refused(body).0, message, "{body}");
    }
    assert!(refused(&long).0.contains("xxx...` is no name"));
}

#[test]
fn what_belongs_together_is_asked_for_together() {
    for (body, message, hint) in [
        ("cert_file = \"/c\"", "policy.toml:3: [cluster] cert_file: is set without key_file", "set `key_file` too"),
        ("key_file = \"/k\"", "policy.toml:3: [cluster] key_file: is set without cert_file", "set `cert_file` too"),
        ("user = \"root\"", "policy.toml:3: [cluster] user: is set without password_file", "set `password_file` too"),
        ("password_file = \"/p\"", "policy.toml:3: [cluster] password_file: is set without user", "set `user` too"),
        (
            "user = \"\"\npassword_file = \"/p\"",
            "policy.toml:3: [cluster] user: is empty",
            "leave `user` and `password_file` out where etcd has no users",
        ),
    ] {
        assert_eq!(refused(&format!("[cluster]\n{body}")), (message.to_owned(), hint.to_owned()), "{body}");
    }
    let login = load("[cluster]\nuser = \"root\"\npassword_file = \"/p\"").unwrap().cluster.user.unwrap();
    assert_eq!((login.user.as_str(), login.password_file), ("root", "/p".into()));
}

#[test]
fn backups_that_never_count_as_proved_are_refused() {
    for min_proof in ["open", "sound"] {
        let hint = format!("set `min_proof = \"digest\"` in [retention], or `prove = \"{min_proof}\"` in [backup]");
        let problem = format!(
            "[retention] min_proof: `{min_proof}` is above [backup] prove, `digest`: no backup would ever count as proved"
        );
        let said = refused(&format!("[backup]\nprove = \"digest\"\n[retention]\nmin_proof = \"{min_proof}\""));
        assert_eq!(said, (format!("policy.toml:5: {problem}"), hint.clone()));
        if min_proof == "sound" {
            // It is the default.
            assert_eq!(refused("[backup]\nprove = \"digest\""), (format!("policy.toml:3: {problem}"), hint));
        }
    }
    let (message, said) = refused("[backup]\nprove = \"open\"\n[retention]\nmin_proof = \"sound\"");
    let above = "[retention] min_proof: `sound` is above [backup] prove, `open`: no backup would ever count as proved";
    assert_eq!(message, format!("policy.toml:5: {above}"));
    assert_eq!(said, "set `min_proof = \"open\"` in [retention], or `prove = \"sound\"` in [backup]");
    for (min_proof, prove) in [("digest", "digest"), ("digest", "sound"), ("open", "sound"), ("sound", "sound")] {
        let body = format!("[backup]\nprove = \"{prove}\"\n[retention]\nmin_proof = \"{min_proof}\"");
        let policy = load(&body).unwrap();
        assert_eq!((policy.backup.prove.as_str(), policy.retention.min_proof.as_str()), (prove, min_proof));
    }
    let policy = load("[backup]\nprove = \"digest\"\n[retention]\nmin_proof = \"digest\"").unwrap();
    assert_eq!((policy.backup.prove, policy.retention.min_proof), (ProofLevel::Digest, ProofLevel::Digest));
}

#[test]
fn whose_snapshots_are_kept_is_all_or_the_primarys() {
    assert_eq!(load("").unwrap().backup.keep_members, KeepMembers::All);
    assert_eq!(load("[backup]\nkeep_members = \"all\"").unwrap().backup.keep_members, KeepMembers::All);
    assert_eq!(load("[backup]\nkeep_members = \"primary\"").unwrap().backup.keep_members, KeepMembers::Primary);
}

#[test]
fn the_version_is_needed_and_is_1() {
    for (text, message) in [
        ("", "policy.toml: version: is not set"),
        ("[store]\nxyzzy = 1\n", "policy.toml: version: is not set"),
        (
            "# later\nversion = 2\n[future]\n",
            concat!(
                "policy.toml:2: version: 2 is not a format that etcd-dr ",
                env!("CARGO_PKG_VERSION"),
                " reads; it reads 1"
            ),
        ),
        ("version = \"1\"\n", "policy.toml:1: version: takes a whole number, not a string"),
    ] {
        let place = Place::with(text);
        let error = place.load().expect_err(text);
        assert_eq!(words(&place, &error).0, message);
        assert!(error.hint().unwrap().contains("`version = 1`"));
    }
}

#[test]
fn what_is_no_toml_names_its_line() {
    for (body, line) in
        [("[store]\npath = ", 3), ("[store\n", 2), ("[store]\npath = \"/a\"\npath = \"/b\"", 4), ("?", 2)]
    {
        let (message, _) = refused(body);
        assert!(message.starts_with(&format!("policy.toml:{line}: not TOML: ")), "{message}");
    }
    let place = Place::new();
    fs::write(place.write("policy.toml", ""), b"version = 1 # \xff\n").unwrap();
    assert_eq!(words(&place, &place.load().unwrap_err()).0, "policy.toml: not TOML: it is not UTF-8");
    let long = Place::with(&format!("version = 1\n{}", "#\n".repeat(1 << 19)));
    assert_eq!(words(&long, &long.load().unwrap_err()).0, "policy.toml: not TOML: it is longer than 1 MiB");
}

#[test]
fn each_feature_that_is_not_built_says_so() {
    for (body, place) in [
        ("[kubernetes]\nkubeconfig = \"/k\"", "policy.toml:2: [kubernetes]: "),
        ("[[kubernetes.elsewhere]]\nx = 1", "policy.toml:2: [kubernetes]: "),
        ("[control_plane]", "policy.toml:2: [control_plane]: "),
        ("[target.tank]\nkind = \"zfs\"", "policy.toml:2: [target]: "),
        ("[target.tank.retention]\nkeep_within = \"5d\"", "policy.toml:2: [target]: "),
        ("[schedule]\nbackup = \"0 2 * * *\"", "policy.toml:2: [schedule]: "),
        ("[drill]", "policy.toml:2: [drill]: "),
        ("[metrics]", "policy.toml:2: [metrics]: "),
        ("[notify]", "policy.toml:2: [notify]: "),
        ("[store]\npublic_index = false", "policy.toml:3: [store] public_index: "),
        ("[backup]\nparallel = 2", "policy.toml:3: [backup] parallel: "),
        ("[backup]\nprove = \"boot\"", "policy.toml:3: [backup] prove: "),
        ("[backup]\nprove = \"serve\"", "policy.toml:3: [backup] prove: "),
        ("[retention]\nmin_proof = \"boot\"", "policy.toml:3: [retention] min_proof: "),
        ("[retention]\nmin_proof = \"serve\"", "policy.toml:3: [retention] min_proof: "),
    ] {
        assert!(matches!(load(body), Err(Error::NotBuilt { .. })), "{body}");
        let (message, hint) = refused(body);
        assert!(message.starts_with(place) && message.contains("not built yet"), "{message}");
        assert!(hint.contains("until a version has it"), "{hint}");
    }
    assert_eq!(
        refused("[backup]\nprove = \"boot\"").0,
        "policy.toml:3: [backup] prove: a backup proves up to `sound`; `boot` and `serve` are a drill's, which is not built yet"
    );
    load("[store]\npublic_index = true\n[backup]\nparallel = 1\nkeep_members = \"all\"").unwrap();
}

#[test]
fn secrets_in_the_wrong_place_are_not_repeated() {
    let secret = "RWRTY0Iyhunter2".to_owned() + &"A".repeat(197);
    for body in [
        "[cluster]\nendpoints = [\"https://root:hunter2@h:2379\"]".to_owned(),
        "[cluster]\nendpoints = [\"ftp://root:hunter2@h:2379\"]".to_owned(),
        "[cluster]\nuser = \"u\"\npassword_file = \"hunter2\"".to_owned(),
        "[encryption]\nrecipients = [\"AGE-SECRET-KEY-1hunter2\"]".to_owned(),
        "[encryption]\nrecipients = [\"age-plugin-yubikey-1hunter2\"]".to_owned(),
        "[encryption]\nidentity_file = \"AGE-SECRET-KEY-1hunter2\"".to_owned(),
        format!("[signing]\ntrusted = [\"{secret}\"]"),
        format!("[signing]\nsecret_key_file = \"{secret}\""),
        "[cluster]\npassword = \"hunter2\"".to_owned(),
        "[cluster]\npassword = \"hunter2".to_owned(),
    ] {
        let place = Place::with(&format!("version = 1\n{body}\n"));
        let error = place.load().expect_err(&body);
        let all = format!("{error} {error:?} {:?}", error.hint());
        assert!(!all.contains("hunter2"), "{all}");
    }
}

#[test]
fn commands_ask_for_what_they_need() {
    let place = Place::with("version = 1\n");
    let mut policy = place.load().unwrap();
    let error = policy.require_endpoints().unwrap_err();
    assert_eq!(words(&place, &error).0, "no endpoint of the cluster is known: policy.toml names none");
    let error = policy.require_recipients().unwrap_err();
    assert_eq!(words(&place, &error).0, "no recipient can open the backup: policy.toml names none");
    assert!(error.hint().unwrap().contains("etcd-dr keys generate"));
    assert_eq!(
        Policy::load(&Place::new().sources()).unwrap().require_endpoints().unwrap_err().to_string(),
        "no endpoint of the cluster is known"
    );
    let mut policy = load("[cluster]\nendpoints = [\"h\"]\n[encryption]\nrecipients = [\"age1a\", \"age1b\"]").unwrap();
    assert!(policy.require_endpoints().unwrap_err().to_string().contains("no CA"), "TLS is always verified");
    let with_ca = load_variables(&[("ETCDCTL_ENDPOINTS", "https://h"), ("ETCDCTL_CACERT", "/ca")]).unwrap();
    with_ca.require_endpoints().unwrap();
    policy.require_recipients().unwrap();
    assert!(policy.warnings.is_empty());
}

#[test]
fn recipients_come_from_the_file_too() {
    let place = Place::new();
    let list = place.write("recipients.txt", "# both safes\nage1b\n\n  age1c  \r\nage1a\n");
    let head = format!("version = 1\n[encryption]\nrecipients_file = \"{}\"\n", list.display());
    place.write("policy.toml", &format!("{head}recipients = [\"age1a\"]\n"));
    let mut policy = place.load().unwrap();
    assert_eq!(policy.encryption.recipients, ["age1a"]);
    policy.require_recipients().unwrap();
    policy.require_recipients().unwrap();
    assert_eq!(policy.encryption.recipients, ["age1a", "age1b", "age1c"]);
    assert!(policy.warnings.is_empty());

    place.write("policy.toml", &head);
    place.write("recipients.txt", "age1a\n");
    let mut policy = place.load().unwrap();
    policy.require_recipients().unwrap();
    policy.require_recipients().unwrap();
    assert_eq!(policy.warnings.len(), 1);
    assert!(policy.warnings[0].starts_with("one recipient alone: "));

    place.write("recipients.txt", "# none yet\n");
    assert!(matches!(place.load().unwrap().require_recipients(), Err(Error::NoRecipients { .. })));

    place.write("recipients.txt", "age1a\nAGE-SECRET-KEY-1HUNTER2\n");
    let error = place.load().unwrap().require_recipients().unwrap_err();
    let (message, _) = words(&place, &error);
    assert_eq!(message, "recipients.txt:2: the recipient: is an identity, which is a secret, and not a recipient");

    fs::set_permissions(&list, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(place.load().unwrap().require_recipients(), Err(Error::Unsafe { .. })));

    fs::remove_file(&list).unwrap();
    let error = place.load().unwrap().require_recipients().unwrap_err();
    assert_eq!(words(&place, &error).0, "policy.toml names recipients.txt, which is not there");
}

/// Runs as root alone: files that belong to others cannot be made otherwise.
fn as_root() {
    assert!(rustix::process::geteuid().is_root(), "this test changes owners and must run as root");
}

fn fix(error: &Error) -> (String, String) {
    match error {
        Error::Unsafe { problem, fix, .. } => (problem.clone(), fix.clone()),
        other => panic!("{other}"),
    }
}

#[test]
fn a_policy_that_others_could_have_written_is_refused() {
    as_root();
    let place = Place::with("version = 1\n");
    let file = place.path("policy.toml");
    for mode in [0o620, 0o602, 0o666, 0o622] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let (problem, fix) = fix(&place.load().unwrap_err());
        assert_eq!(problem, format!("may be written by others than its owner (mode {mode:04o})"));
        assert_eq!(fix, format!("chmod go-w {}", file.display()));
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(place.load().unwrap().warnings.is_empty());

    chown(&file, Some(12_345), None).unwrap();
    let error = place.load().unwrap_err();
    assert_eq!(fix(&error).0, "belongs to uid 12345, neither root nor the user who runs this");
    assert_eq!(fix(&error).1, format!("chown root:root {}", file.display()));
    assert!(error.hint().unwrap().contains(&fix(&error).1));
    chown(&file, Some(0), None).unwrap();
    place.load().unwrap();
}

#[test]
fn a_symbolic_link_of_others_is_refused() {
    as_root();
    let place = Place::new();
    place.write("true.toml", "version = 1\n");
    let link = place.path("policy.toml");
    symlink("true.toml", &link).unwrap();
    place.load().unwrap();
    lchown(&link, Some(12_345), None).unwrap();
    let (problem, fix) = fix(&place.load().unwrap_err());
    assert_eq!(problem, "is a symbolic link that belongs to uid 12345");
    assert_eq!(fix, format!("chown -h root:root {}", link.display()));
}

#[test]
fn the_cure_can_be_pasted_whatever_the_name() {
    as_root();
    let place = Place::new();
    let file = place.write("it's; a policy.toml", "version = 1\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let sources = Sources { file: Some(file.clone()), ..place.sources() };
    let (_, fix) = fix(&Policy::load(&sources).unwrap_err());
    assert!(std::process::Command::new("sh").args(["-c", &fix]).status().unwrap().success());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    Policy::load(&sources).unwrap();
}

#[test]
fn a_policy_that_everybody_reads_is_a_warning() {
    let place = Place::with("version = 1\n");
    let file = place.path("policy.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let warning = format!("{0} is readable by everybody (mode 0644): run `chmod o-r {0}`", file.display());
    assert_eq!(place.load().unwrap().warnings, [warning]);
}

#[test]
fn a_policy_that_is_a_directory_names_it() {
    let place = Place::new();
    fs::create_dir(place.path("policy.toml")).unwrap();
    fs::set_permissions(place.path("policy.toml"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(place.load(), Err(Error::Read { path, .. }) if path == place.path("policy.toml")));
}

#[test]
fn a_reserve_is_a_share_or_a_size() {
    for (text, total, bytes) in [
        ("5%", 1000, 50),
        ("5%", 19, 0),
        ("99%", u64::MAX, u64::MAX / 100 * 99 + u64::MAX % 100 * 99 / 100),
        ("0%", 1000, 0),
        ("2GiB", 1000, 2 << 30),
        ("0B", 1000, 0),
    ] {
        let policy = load(&format!("[store]\nreserve = \"{text}\"")).unwrap();
        assert_eq!(policy.store.reserve.bytes_of(total), bytes, "{text} of {total}");
    }
    for text in ["%", "-1%", "+5%", "5 %", "300%", "5", "half"] {
        assert!(load(&format!("[store]\nreserve = \"{text}\"")).is_err(), "{text}");
    }
}

/// A value for each key that is not its default, written as in TOML.
fn sample(table: &str, name: &str) -> &'static str {
    match (table, name) {
        ("cluster", "endpoints") => "[\"https://192.0.2.10:2379\"]",
        ("encryption", "recipients") => "[\"age1a\", \"age1b\"]",
        ("signing", "trusted") => "[\"/etc/etcd-dr/other.pub\"]",
        ("store", "public_index") => "true",
        ("store", "reserve") => "\"2GiB\"",
        ("backup", "keep_members") => "\"primary\"",
        ("backup", "parallel") => "1",
        ("backup", "prove") => "\"open\"",
        ("retention", "min_proof") => "\"digest\"",
        ("backup", "connect_timeout" | "stall_timeout") | ("retention", "keep_within") => "\"7m\"",
        ("cluster", "name" | "user") => "\"somebody\"",
        _ => match KEYS.iter().find(|key| key.table == table && key.name == name).unwrap().kind {
            Kind::Path => "\"/some/path\"",
            Kind::Integer => "7",
            Kind::Text | Kind::Flag | Kind::Texts => panic!("[{table}] {name} has no sample"),
        },
    }
}

#[test]
fn every_listed_key_is_read_and_counts() {
    /// Their only value so far is their default.
    const FIXED: [&str; 2] = ["public_index", "parallel"];
    let pairs = [("cert_file", "key_file"), ("user", "password_file")];
    let strip = |mut policy: Policy| {
        policy.source = None;
        policy
    };
    for key in KEYS.iter().filter(|key| !key.table.is_empty()) {
        let mut body = format!("[{}]\n{} = {}\n", key.table, key.name, sample(key.table, key.name));
        let other = pairs.iter().find_map(|(one, other)| match key.name {
            name if name == *one => Some(*other),
            name if name == *other => Some(*one),
            _ => None,
        });
        if let Some(other) = other {
            body = format!("{body}{other} = {}\n", sample(key.table, other));
        }
        // What counts as proved is never above what is proved.
        let beside = if key.name == "prove" { "[retention]\nmin_proof = \"open\"\n" } else { "" };
        body.push_str(beside);
        let policy = strip(load(&body).unwrap_or_else(|error| panic!("{}: {error}", key.label())));
        let plain = strip(load(beside).unwrap());
        assert_eq!(policy == plain, FIXED.contains(&key.name), "{}", key.label());
        assert!(!key.meaning.is_empty());
    }
}

#[test]
fn every_listed_key_has_its_variable_and_a_default_that_holds() {
    let plain = load_variables(&[]).unwrap();
    let mut seen = BTreeSet::new();
    for key in KEYS {
        assert!(seen.insert(key.label()), "{} twice", key.label());
        let (Some(variable), Some(default)) = (key.variable(), key.default) else { continue };
        assert_eq!(variable, format!("ETCD_DR_{}__{}", key.table.to_uppercase(), key.name.to_uppercase()));
        let policy = load_variables(&[(&variable, default)]).unwrap_or_else(|error| panic!("{variable}: {error}"));
        assert_eq!(policy, plain, "{variable}");
    }
}

#[test]
fn the_keys_are_the_documented_ones() {
    let documented = "version
        cluster: name endpoints ca_file cert_file key_file user password_file
        store: path public_index reserve
        backup: zstd_level parallel scratch_dir keep_members prove connect_timeout stall_timeout max_lag
        encryption: recipients recipients_file identity_file
        signing: secret_key_file trusted
        retention: keep_within keep_proved min_proof keep_daily keep_weekly keep_monthly";
    let mut wanted = Vec::new();
    for line in documented.lines() {
        match line.trim().split_once(": ") {
            None => wanted.push(line.trim().to_owned()),
            Some((table, names)) => wanted.extend(names.split(' ').map(|name| format!("[{table}] {name}"))),
        }
    }
    let listed: Vec<_> = KEYS.iter().map(etcd_dr::policy::Key::label).collect();
    assert_eq!(listed, wanted);
}

#[test]
fn the_shipped_policies_load() {
    const SHIPPED: [&str; 3] = ["etcd-only.toml", "homelab.toml", "single-node.toml"];
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut found: Vec<_> =
        fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, SHIPPED, "each policy in policies/ is listed here, and each listed one is there");
    for name in SHIPPED {
        let place = Place::with(&fs::read_to_string(home.join(name)).unwrap());
        let policy = place.load().unwrap_or_else(|error| panic!("{name}: {error}"));
        policy.require_endpoints().unwrap();
        assert!(policy.cluster.ca_file.is_some() && policy.cluster.client.is_some(), "{name}");
        assert_eq!(policy.encryption.recipients_file, Some("/etc/etcd-dr/recipients.txt".into()), "{name}");
        assert!(policy.encryption.recipients.is_empty() && policy.warnings.is_empty(), "{name}");
    }
}
