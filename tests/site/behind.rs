//! A site whose three members stand behind proxies that can be told to misbehave.

use std::cell::RefCell;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::{Answer, Site};
use crate::servers::{
    etcd::{Cluster, Options},
    fill,
    proxy::{ALARM, DEFRAGMENT, Fault, Fired, HASH_KV, MEMBER_LIST, Proxy, Rule, SNAPSHOT, STATUS},
};

/// Members that advertise proxies, a site that knows the first of them, and one good backup that has to survive everything.
pub struct Behind {
    pub cluster: Cluster,
    pub proxies: Vec<Proxy>,
    pub site: Site,
    good: Option<String>,
    policy: String,
    /// The store before the next run.
    before: RefCell<Vec<String>>,
    /// What every proxy had counted when the test began.
    counted: Vec<[usize; 6]>,
}

const COUNTED: [&str; 6] = [STATUS, SNAPSHOT, MEMBER_LIST, ALARM, DEFRAGMENT, HASH_KV];

impl Behind {
    /// Starts `n` members, all with timeouts of one second on the client's side.
    pub fn start(n: usize, options: Options) -> Self {
        let (cluster, proxies) = Proxy::before_each(n, options);
        fill::homelab(&cluster.client(0));
        let pair = cluster.client_pair();
        let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
        let site = Site::at(&urls.join(","), cluster.pki().ca(), &pair.cert, &pair.key);
        site.change_policy("_timeout = \"2s\"", "_timeout = \"1s\"");
        let mut behind = Self { proxies, ..Self::over(cluster, site) };
        behind.good = Some(behind.site.backup());
        behind.begin();
        behind
    }

    /// A cluster and its site as a test made them, without proxies and without a backup.
    pub fn over(cluster: Cluster, site: Site) -> Self {
        let (policy, before) = (site.policy(), RefCell::new(site.backups()));
        Self { cluster, proxies: Vec::new(), site, good: None, policy, before, counted: Vec::new() }
    }

    /// Three members that all tests of a process share, one test at a time; healed, and counted from here. They last as long as the
    /// process, so their files are in cargo's directory: nothing would remove a temporary one.
    pub fn shared() -> MutexGuard<'static, Self> {
        static SHARED: LazyLock<Mutex<Behind>> = LazyLock::new(|| {
            let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!(env!("CARGO_CRATE_NAME"), "-lab"));
            if dir.exists() {
                std::fs::remove_dir_all(&dir).expect("what an earlier run left");
            }
            Mutex::new(Behind::start(3, Options { dir: Some(dir), ..Options::default() }))
        });
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.begin();
        shared
    }

    /// Heals the proxies, restores the policy and counts from here.
    pub fn begin(&mut self) {
        for (i, proxy) in self.proxies.iter().enumerate() {
            proxy.heal();
            proxy.move_to(&self.cluster.endpoint(i));
        }
        self.site.write_policy(&self.policy);
        *self.before.borrow_mut() = self.site.backups();
        self.counted = self.proxies.iter().map(|proxy| COUNTED.map(|path| proxy.calls(path))).collect();
    }

    /// Sets up a fault of member `i`.
    pub fn fault(&self, i: usize, path: &str, fault: Fault) -> Fired {
        self.proxies[i].add(Rule::new(path, fault))
    }

    /// Sets up a fault that happens once.
    pub fn once(&self, i: usize, path: &str, fault: Fault) -> Fired {
        self.proxies[i].add(Rule::new(path, fault).times(1))
    }

    /// How often member `i` was asked for this since [`Self::begin`].
    pub fn calls(&self, i: usize, path: &str) -> usize {
        let at = COUNTED.iter().position(|counted| *counted == path).expect("a counted method");
        self.proxies[i].calls(path) - self.counted[i][at]
    }

    /// [`Self::calls`] of each member.
    pub fn all_calls(&self, path: &str) -> Vec<usize> {
        (0..self.proxies.len()).map(|i| self.calls(i, path)).collect()
    }

    /// Index of a member that does not lead.
    pub fn follower(&self) -> usize {
        self.cluster.follower().expect("a follower")
    }

    /// Runs `backup`, which must end with this code, and asserts what holds after every run: the good backup is unharmed, nothing is half
    /// made, a new backup is there exactly where the code says so, stdout is what contract.md, 3 says.
    #[track_caller]
    pub fn backup(&self, code: i32) -> Run {
        let answer = self.site.run(&["backup", "--output", "json"]).expect_code(code);
        self.judge(answer)
    }

    /// What [`Self::backup`] asserts, of a run that was made otherwise.
    #[track_caller]
    pub fn judge(&self, answer: Answer) -> Run {
        let report = answer.json();
        assert_eq!(report["schema"], "etcd-dr/backup/v1", "{answer:?}");
        if answer.code == 0 {
            assert!(report.get("error").is_none(), "{report}");
        } else {
            assert_eq!(report["error"]["code"], answer.code, "{report}");
            for key in ["kind", "message"] {
                assert!(report["error"][key].as_str().is_some_and(|words| !words.is_empty()), "{key}: {report}");
            }
            assert!(report["error"].get("hint").is_some(), "{report}");
        }
        let now = self.site.backups();
        let before = self.before.replace(now.clone());
        let new: Vec<String> = now.into_iter().filter(|name| !before.contains(name)).collect();
        let kept = matches!(answer.code, 0 | 3 | 20);
        let expected: Vec<&str> = kept.then(|| report["id"].as_str().expect("an id")).into_iter().collect();
        assert_eq!(new, expected, "{report}");
        assert_eq!(kept, report.get("members").is_some(), "{report}");
        if let Some(good) = &self.good {
            let verified = self.site.run(&["verify", good, "--output", "json"]).expect_code(0).json();
            assert_eq!(verified["results"][0]["id"], good.as_str());
        }
        Run { report, stderr: answer.stderr }
    }
}

/// What a `backup` said.
pub struct Run {
    pub report: Value,
    pub stderr: String,
}

impl Run {
    /// The backup's id.
    pub fn id(&self) -> &str {
        self.report["id"].as_str().expect("an id")
    }

    /// A member's entry.
    #[track_caller]
    pub fn member(&self, name: &str) -> &Value {
        let members = self.report["members"].as_array().expect("members");
        members.iter().find(|member| member["name"] == name).unwrap_or_else(|| panic!("no {name} in {}", self.report))
    }

    /// The error's words, which hold each of these.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        let message = self.report["error"]["message"].as_str().expect("a message");
        for word in words {
            assert!(message.contains(word), "no {word:?} in:\n{message}\n{}", self.stderr);
        }
        self
    }

    /// Kind and name of each finding.
    pub fn findings(&self) -> Vec<(&str, &str)> {
        let findings = self.report["findings"].as_array().expect("findings");
        findings
            .iter()
            .map(|finding| (finding["kind"].as_str().expect("a kind"), finding["name"].as_str().expect("a name")))
            .collect()
    }

    /// These members alone are missing, without a file, and the others are proved and agree; where they are no majority each of them says
    /// that nobody confirms it, and none is the primary.
    #[track_caller]
    pub fn lacks(&self, names: &[&str]) -> &Self {
        let members = self.report["members"].as_array().expect("members");
        let is_missing = |member: &Value| names.contains(&member["name"].as_str().expect("a name"));
        let there: Vec<&Value> = members.iter().filter(|member| !is_missing(member)).collect();
        let majority = there.len() > members.len() / 2;
        let mut expected: Vec<_> = names.iter().map(|name| ("member_missing", *name)).collect();
        if !majority {
            expected
                .extend(there.iter().map(|member| ("member_not_comparable", member["name"].as_str().expect("a name"))));
        }
        expected.sort_unstable();
        assert_eq!(self.findings(), expected, "{}", self.report);
        assert_eq!(self.report["partial"], !names.is_empty());
        for member in members {
            let missing = is_missing(member);
            assert_eq!(member["file"].is_null(), missing, "{member}");
            assert_eq!(member["error"].is_null(), !missing, "{member}");
            assert_eq!(member["proof"], if missing { "none" } else { "sound" }, "{member}");
            // A member without a file may have answered for itself, where it answered at all.
            let agrees = !missing && majority;
            if agrees || !missing || !majority || member["status_revision"].is_null() {
                assert_eq!(member["agreement"], if agrees { "agrees" } else { "not_comparable" }, "{member}");
            } else {
                assert_ne!(member["agreement"], "differs", "{member}");
            }
        }
        assert_eq!(self.report["proof"], "sound");
        assert_eq!(self.report["agreement"], if majority { "agrees" } else { "not_comparable" });
        let primary = self.report["primary"].as_str();
        let is_there = primary.is_some_and(|name| there.iter().any(|member| member["name"] == name));
        assert_eq!((is_there, primary.is_none()), (majority, !majority), "{}", self.report);
        self
    }
}
