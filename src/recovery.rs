//! `RECOVERY.md`: how this cluster is brought back, readable alone, by somebody who never saw etcd-dr: with it, or with stock tools.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
};

use crate::{
    record::{Agreement, FindingKind, Index, Member, ProofLevel, names},
    sign::PublicKey,
};

/// The text for one backup. It names members, addresses and files as the index has them, and holds no secret.
///
/// # Errors
/// None that a string can give; the formatter's are passed on.
pub fn render(index: &Index, signer: &PublicKey) -> Result<String, fmt::Error> {
    let facts = Facts::new(index, signer);
    let mut text = String::new();
    facts.head(&mut text)?;
    facts.contents(&mut text)?;
    text.push_str(NEEDED);
    text.push_str(STOP);
    facts.bump(&mut text)?;
    facts.choice(&mut text)?;
    facts.with_etcd_dr(&mut text)?;
    facts.open_with_stock_tools(&mut text)?;
    facts.restore_with_stock_tools(&mut text)?;
    facts.start(&mut text)?;
    Ok(text)
}

/// Where the database is opened to: memory, and never a directory of the backup, whose files are all signed.
const PLAIN: &str = "/dev/shm/snapshot.db";
/// Where the identity is expected, for the same reason.
const IDENTITY: &str = "/dev/shm/identity.txt";
/// The plan of etcd-dr's way. It holds no secret.
const PLAN: &str = "/root/plan.json";
/// The smallest bump, the same that etcd-dr makes unasked.
const BUMP: i64 = 1_000_000_000;

const NEEDED: &str = r"## 0. Is a restore needed?

- A quorum of the members answers: no. Replace the broken member, or the one that differs (`etcdctl member remove`, wipe, `member add`).
- One healthy member is left: take a fresh snapshot from it (`etcdctl snapshot save`, no quorum needed). It is newer than this backup.
- Somebody deleted objects: bring back those alone. A restore takes back everything else that was written since, too.
- An upgrade went wrong: restore under the versions of Kubernetes and etcd that ran when this backup was taken.

";

const STOP: &str = r"## 1. Stop, on every control-plane node

Open a root shell on each node first: once the API is gone, `kubectl` is no help. Stop what writes or deletes by itself: Flux or Argo CD,
CI, autoscalers, and whatever prunes backups; see that the clocks agree. Then move the manifests out of the directory: a copy that stays
in it is run.

```sh
mkdir -p /etc/kubernetes/stopped
mv /etc/kubernetes/manifests/kube-*.yaml /etc/kubernetes/stopped/
mv /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/stopped/
crictl ps --name 'etcd|kube-apiserver' -q   # wait until this prints nothing; the kubelet looks every 20 s
```

Workloads run on meanwhile. An etcd that is no static pod: `systemctl stop etcd`, and its own paths in place of `/var/lib/etcd` below.

";

/// What the chapters speak of.
struct Facts<'a> {
    index: &'a Index,
    signer: &'a PublicKey,
    /// Who is restored: voting members that have started once. A learner or a member without a name would only keep the others waiting.
    voters: Vec<&'a Member>,
    /// The files that can be meant: the primary's alone, else each that is whole.
    choices: Vec<&'a Member>,
    /// Kinds of alarms that the members named, which their files carry.
    alarms: BTreeSet<&'static str>,
    tool: Tool,
}

/// The stock tool that restores.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    /// From 3.5 on.
    Etcdutl,
    /// 3.4 has no etcdutl, and cannot raise the revision.
    Etcdctl,
}

impl Tool {
    fn command(self) -> &'static str {
        match self {
            Self::Etcdutl => "etcdutl",
            Self::Etcdctl => "ETCDCTL_API=3 etcdctl",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Etcdutl => "etcdutl",
            Self::Etcdctl => "etcdctl",
        }
    }
}

impl<'a> Facts<'a> {
    fn new(index: &'a Index, signer: &'a PublicKey) -> Self {
        let voters: Vec<&Member> = index.members.iter().filter(|member| is_restored(member)).collect();
        let with_file = || voters.iter().copied().filter(|member| member.file.is_some());
        let whole: Vec<&Member> = with_file().filter(|member| member.error.is_none()).collect();
        let choices = match index.primary_member() {
            Some(primary) => vec![primary],
            None if whole.is_empty() => with_file().collect(),
            None => whole,
        };
        // A member's Status has other words there, too, such as that it has no leader.
        let words = || index.members.iter().flat_map(|member| &member.alarms);
        let alarms = ["NOSPACE", "CORRUPT"].into_iter().filter(|kind| words().any(|words| words.contains(kind)));
        let version = choices.first().and_then(|member| member.version.as_deref());
        let version = version.or(index.versions.etcd.first().map(String::as_str)).unwrap_or_default();
        let tool = if version.starts_with("3.4.") { Tool::Etcdctl } else { Tool::Etcdutl };
        Self { index, signer, alarms: alarms.collect(), tool, voters, choices }
    }

    /// The one file that is restored, where nobody has to choose.
    fn chosen(&self) -> Option<&'a Member> {
        if let [only] = self.choices.as_slice() { Some(only) } else { None }
    }

    fn head(&self, text: &mut String) -> fmt::Result {
        let index = self.index;
        let tool = self.tool.name();
        let etcd = if index.versions.etcd.is_empty() { "3.x".to_owned() } else { index.versions.etcd.join(", ") };
        writeln!(text, "# Recovery of etcd cluster `{}` from backup {}\n", index.cluster_name, index.id)?;
        writeln!(
            text,
            "Taken {} on `{}`; cluster id `{}`; etcd {etcd}.",
            index.created_at, index.host, index.cluster_id
        )?;
        writeln!(
            text,
            "Chapters 0 to 2, then one of two ways for all members: 3 with `etcd-dr`, or 4 with stock tools alone (`sha256sum`, `minisign`,"
        )?;
        writeln!(
            text,
            "`age`, `zstd`, and `{tool}` of the etcd above). Then chapter 5. Every command is for root's shell."
        )?;
        writeln!(
            text,
            "The database holds every Secret of the cluster. Work on a tmpfs, and remove what you opened.\n"
        )?;
        if index.partial {
            writeln!(text, "**This backup is partial:** {}.\n", missing(&self.voters))?;
        }
        if index.proof < ProofLevel::Open {
            writeln!(
                text,
                "**This backup was not proved to open when it was made.** Look for an older one that was.\n"
            )?;
        }
        Ok(())
    }

    fn contents(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "## What is in it\n")?;
        writeln!(
            text,
            "| member | id | peer URLs | etcd | revision | file | proof | agreement |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for member in &self.index.members {
            let revision = revision(member).map_or_else(|| "-".to_owned(), |revision| revision.to_string());
            let file = match &member.file {
                Some(file) => format!("`{file}`"),
                None if member.learner => "(a learner)".to_owned(),
                None if !member.is_missing() => "not kept: all agree".to_owned(),
                None => format!("**missing**: {}", cell(member.error.as_deref().unwrap_or("no reason recorded"))),
            };
            let version = member.version.as_deref().unwrap_or("-");
            let (name, id, urls) = (cell(&member.name), member.id, cell(&member.peer_urls.join(" ")));
            let agreement = match member.agreement {
                None => "-",
                Some(Agreement::Agrees) => "agrees",
                Some(Agreement::Differs) => "**differs**",
                Some(Agreement::NotComparable) => "not compared",
                Some(Agreement::Single) => "the only one",
            };
            writeln!(
                text,
                "| {name} | {id} | {urls} | {version} | {revision} | {file} | {} | {agreement} |",
                member.proof
            )?;
        }
        text.push('\n');
        for finding in &self.index.findings {
            let what = match finding.kind {
                FindingKind::MemberDiffers => "differs from other members",
                FindingKind::MemberNotComparable => "could not be compared with the others",
                FindingKind::FileChanged => "did not pass its proof",
                _ => continue,
            };
            writeln!(text, "- **`{}` {what}:** {}", finding.name, cell(&finding.detail))?;
        }
        for member in self.index.members.iter().filter(|member| !is_restored(member)) {
            let urls = member.peer_urls.join(" ");
            let who = if member.name.is_empty() { urls.as_str() } else { member.name.as_str() };
            let what = if member.learner { "a learner" } else { "never started" };
            writeln!(text, "- `{who}` ({what}) is not restored: add it again when the cluster stands.")?;
        }
        if !self.alarms.is_empty() {
            writeln!(
                text,
                "- **Alarm {}** was raised, and the files carry it: a cluster restored with it takes no writes.",
                self.alarm_names()
            )?;
        }
        if self.alarms.contains("CORRUPT") {
            writeln!(text, "- CORRUPT means that a member's data was wrong: be sure of the file before you clear it.")?;
        }
        gap(text);
        writeln!(
            text,
            "Not in it: the Kubernetes manifests, the PKI under `/etc/kubernetes`, the encryption-at-rest key. Without the cluster's CA and"
        )?;
        writeln!(
            text,
            "service-account keys, and that key where one is used, the database alone does not bring the cluster back: find them first.\n"
        )
    }

    fn alarm_names(&self) -> String {
        self.alarms.iter().copied().collect::<Vec<_>>().join(", ")
    }

    fn bump(&self, text: &mut String) -> fmt::Result {
        let here = self.chosen().and_then(revision).map_or_else(|| "R".to_owned(), |revision| revision.to_string());
        let both = if self.tool == Tool::Etcdutl { "both ways add" } else { "chapter 3 adds" };
        writeln!(text, "## 2. How far the revision is raised\n")?;
        writeln!(
            text,
            "No watcher may see the revision go backwards: {both} {BUMP} to the snapshot's. That is too little where more than half of"
        )?;
        writeln!(
            text,
            "it was written since, or where the cluster was restored, and so raised, after this backup. The last revision known is in"
        )?;
        writeln!(
            text,
            "`etcdctl endpoint status -w table` of any survivor, in Prometheus (`etcd_debugging_mvcc_current_revision`), in a newer backup."
        )?;
        if here == "R" {
            writeln!(text, "R is the revision of the file that you restore, in the table above.")?;
        }
        writeln!(
            text,
            "Where 2 x (last - {here}) is more than {BUMP}, take that number, the same on every host, where chapter 3 or 4 says so.\n"
        )
    }

    /// Whose file is restored, where there is no primary.
    fn choice(&self, text: &mut String) -> fmt::Result {
        if self.index.primary.is_some() {
            return Ok(());
        }
        match self.choices.as_slice() {
            [] => writeln!(text, "**No member gave a file that could be restored. Take another backup.**\n"),
            [only] => writeln!(
                text,
                "**No majority of the members was shown to agree, and only `{}` gave a whole file:** `--from` below takes it, unconfirmed by others.\n",
                only.name
            ),
            several => {
                writeln!(
                    text,
                    "**No majority of the members was shown to agree, so nobody can say which file is right: choose one**, and use it for all"
                )?;
                writeln!(
                    text,
                    "members. A member that lost writes or was cut off has the lower revision, but a higher one proves nothing. Open them (chapter"
                )?;
                writeln!(
                    text,
                    "4) and compare what they hold. Set one of these lines in the shell of each host:\n\n```sh"
                )?;
                for member in several {
                    let (name, file) = (shell(&member.name), shell(member.file.as_deref().unwrap_or_default()));
                    write!(text, "# FROM={name} FILE={file}   # ")?;
                    if let Some(revision) = revision(member) {
                        write!(text, "revision {revision}, ")?;
                    }
                    if let Some(hash) = member.hash_kv {
                        write!(text, "HashKV {hash:08x}, ")?;
                    }
                    writeln!(text, "proof {}", member.proof)?;
                }
                writeln!(text, "```\n")
            }
        }
    }

    /// `--from` as it is written after `--snapshot .`; nothing where the primary is meant.
    fn from(&self) -> String {
        match (&self.index.primary, self.chosen()) {
            (Some(_), _) => String::new(),
            (None, Some(member)) => format!(" --from {}", shell(&member.name)),
            (None, None) => " --from \"$FROM\"".to_owned(),
        }
    }

    fn with_etcd_dr(&self, text: &mut String) -> fmt::Result {
        let (id, from) = (&self.index.id, self.from());
        let trust = format!("  --public-key {} --identity {IDENTITY}", self.signer.to_base64());
        writeln!(text, "## 3. Restore with etcd-dr\n")?;
        writeln!(
            text,
            "Copy this directory, under its name `{id}`, to each host, and work in it. `{IDENTITY}` is the age identity"
        )?;
        writeln!(text, "of one of these recipients:\n")?;
        self.recipients(text)?;
        writeln!(
            text,
            "\nCompare the public key below with the one that you keep elsewhere: one found beside a backup proves nothing. On one host, prove"
        )?;
        writeln!(
            text,
            "the backup (a copy without its store around it: leave `verify` out, `restore` checks what it reads), and make the plan:\n"
        )?;
        writeln!(text, "```sh\netcd-dr verify {id} --store .. \\\n{trust}")?;
        let clear = if self.alarms.is_empty() { "" } else { " --clear-alarms" };
        writeln!(
            text,
            "etcd-dr restore --snapshot .{from}{clear} --dry-run --output json \\\n{trust} > {PLAN}\n```\n"
        )?;
        if !from.is_empty() {
            writeln!(text, "`--from` is needed since the backup has no primary; the plan remembers it.")?;
        }
        if !clear.is_empty() {
            writeln!(
                text,
                "`--clear-alarms` leaves the alarm {} out, else no write is taken. Its cause stays: give etcd more quota, or defragment.",
                self.alarm_names()
            )?;
        }
        writeln!(
            text,
            "A larger number from chapter 2 goes here: `--bump-revision NUMBER --mark-compacted`. Copy `{PLAN}` to the same path on"
        )?;
        writeln!(
            text,
            "each host: token and bump are in it, and runs without it would make clusters of one member each. `--replace` moves what stands"
        )?;
        writeln!(
            text,
            "in `/var/lib/etcd` aside, removes nothing, says where it is, and gives the new files its owner.\n"
        )?;
        for member in &self.voters {
            writeln!(text, "On `{}`:\n\n```sh", member.name)?;
            writeln!(
                text,
                "etcd-dr restore --snapshot . --plan {PLAN} --member {} --data-dir /var/lib/etcd --replace \\\n{trust}\n```\n",
                shell(&member.name)
            )?;
        }
        writeln!(text, "On to chapter 5.\n")
    }

    fn recipients(&self, text: &mut String) -> fmt::Result {
        for recipient in self.index.recipients.iter().filter(|recipient| *recipient != "run") {
            writeln!(text, "- `{recipient}`")?;
        }
        Ok(())
    }

    fn open_with_stock_tools(&self, text: &mut String) -> fmt::Result {
        let several = "\"$FILE\"".to_owned();
        let file = self.chosen().and_then(|member| member.file.as_deref()).map_or(several, shell);
        writeln!(text, "## 4. Or restore with stock tools, in place of 3\n")?;
        writeln!(
            text,
            "Check, in this directory, with a public key that you keep elsewhere, and open with an identity of a recipient above:\n"
        )?;
        writeln!(text, "```sh")?;
        writeln!(text, "minisign -V -P {} -m {} -x {}", self.signer.to_base64(), names::SUMS, names::SIGNATURE)?;
        writeln!(text, "sha256sum -c {}", names::SUMS)?;
        writeln!(text, "umask 077")?;
        writeln!(text, "age -d -i {IDENTITY} {file} | zstd -d -o {PLAIN}")?;
        writeln!(text, "sha256sum {PLAIN}")?;
        writeln!(text, "{} snapshot status {PLAIN} -w table\n```\n", self.tool.command())?;
        for member in &self.choices {
            if let (Some(sha256), Some(bytes)) = (member.plain_sha256, member.plain_bytes) {
                writeln!(text, "Of `{}` it has {bytes} bytes and SHA-256 `{sha256}`.", member.name)?;
            }
        }
        gap(text);
        Ok(())
    }

    fn restore_with_stock_tools(&self, text: &mut String) -> fmt::Result {
        let peers = |member: &&Member| {
            member.peer_urls.iter().map(|url| format!("{}={url}", shell(&member.name))).collect::<Vec<_>>()
        };
        let cluster = self.voters.iter().flat_map(peers).collect::<Vec<_>>().join(",");
        writeln!(
            text,
            "Copy `{PLAIN}` to the same path on each node, and compare its SHA-256 there: every member comes from the same file. Choose one"
        )?;
        writeln!(
            text,
            "new token (`TOKEN=etcd-dr-$(cat /proc/sys/kernel/random/uuid)`, the same text on each node): an old one lets forgotten members join."
        )?;
        match self.tool {
            Tool::Etcdutl => writeln!(
                text,
                "A larger number from chapter 2 goes in place of {BUMP}. An etcdutl that does not know `--bump-revision` is an early 3.5: take a later one.\n"
            )?,
            Tool::Etcdctl => writeln!(
                text,
                "etcd 3.4's tool cannot raise the revision: restart every client that watches, kubelets first. etcd-dr's way does raise it.\n"
            )?,
        }
        for member in &self.voters {
            writeln!(
                text,
                "On `{}` (a new host: `mkdir -m 0700 /var/lib/etcd` in place of the first line):\n\n```sh",
                member.name
            )?;
            writeln!(
                text,
                "mv /var/lib/etcd/member /var/lib/etcd-old-$(date +%Y%m%dT%H%M%S)   # aside, never removed"
            )?;
            writeln!(text, "{} snapshot restore {PLAIN} --data-dir /var/lib/etcd-restored \\", self.tool.command())?;
            writeln!(
                text,
                "  --name {} --initial-advertise-peer-urls {} \\",
                shell(&member.name),
                member.peer_urls.join(",")
            )?;
            writeln!(text, "  --initial-cluster {cluster} \\")?;
            match self.tool {
                Tool::Etcdutl => {
                    writeln!(text, "  --initial-cluster-token \"$TOKEN\" --bump-revision {BUMP} --mark-compacted")?;
                }
                Tool::Etcdctl => writeln!(text, "  --initial-cluster-token \"$TOKEN\"")?,
            }
            writeln!(text, "chown -R --reference=/var/lib/etcd /var/lib/etcd-restored/member")?;
            writeln!(text, "mv /var/lib/etcd-restored/member /var/lib/etcd/member\n```\n")?;
        }
        Ok(())
    }

    fn start(&self, text: &mut String) -> fmt::Result {
        let members = self.voters.len();
        let quorum = members / 2 + 1;
        writeln!(text, "## 5. Start\n")?;
        if members > 1 {
            writeln!(
                text,
                "Move `etcd.yaml` back on {quorum} of {members} nodes at once, since the probes kill one that waits alone; then on the rest. It need not"
            )?;
        } else {
            writeln!(text, "Move `etcd.yaml` back. It need not")?;
        }
        writeln!(
            text,
            "change: etcd reads the members from the data directory. Go on when there are {members} members (`etcdctl member list`), one leader,"
        )?;
        writeln!(text, "equal hashes (`etcdctl endpoint hashkv --cluster`), and no alarm (`etcdctl alarm list`).")?;
        writeln!(text, "Where SELinux enforces: `restorecon -R /var/lib/etcd` before.\n")?;
        if !self.alarms.is_empty() {
            writeln!(
                text,
                "After chapter 4 the alarm {} stands: see to its cause (quota, `etcdctl defrag --cluster`), then `etcdctl alarm disarm`.\n",
                self.alarm_names()
            )?;
        }
        text.push_str(APISERVERS);
        Ok(())
    }
}

const APISERVERS: &str = r"Then one `kube-apiserver.yaml`: look at `kubectl get --raw '/readyz?verbose'`, and read a Secret; then the other apiservers; controller
manager and scheduler last, since they act on what they find. Restart the kubelet on every node, then kube-proxy, the CNI, CoreDNS and the
operators. Compare what runs (`crictl pods`) with the API; let GitOps go on after you saw what it would change.

Remove what was opened, on every node: `rm -f /dev/shm/snapshot.db /dev/shm/identity.txt`.

Take a new backup when the cluster stands. It has a new cluster id: `etcd-dr init --accept-cluster <id>` lets this store take it
(`etcd-dr backup` says which). Keep the old data directories, and prune no older backup, until two new ones are verified.
";

/// Voting members that have started once, and can be reached by their peers.
fn is_restored(member: &Member) -> bool {
    !member.learner && !member.name.is_empty() && !member.peer_urls.is_empty()
}

/// The file's revision; what the member said where the file was not examined.
fn revision(member: &Member) -> Option<i64> {
    member.revision.or(member.status_revision)
}

/// A restore needs names as they are; what a shell would read otherwise is quoted.
fn shell(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// One empty line, and not two.
fn gap(text: &mut String) {
    if !text.ends_with("\n\n") {
        text.push('\n');
    }
}

fn cell(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.replace('|', r"\|").chars().map(plain).collect()
}

fn missing(voters: &[&Member]) -> String {
    let names: Vec<&str> =
        voters.iter().filter(|member| member.is_missing()).map(|member| member.name.as_str()).collect();
    if names.is_empty() { "see the table below".to_owned() } else { format!("nothing came from {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        record::{EtcdId, Finding, Versions},
        sign::SecretKey,
    };

    fn member(name: &str, number: u64) -> Member {
        Member {
            name: name.to_owned(),
            id: EtcdId(number),
            endpoint: None,
            peer_urls: vec![format!("https://192.0.2.{number}:2380")],
            version: Some("3.6.16".to_owned()),
            learner: false,
            status_revision: Some(100),
            revision: Some(100),
            compact_revision: Some(-1),
            hash_kv: Some(0x91e0_7b3d),
            agreement: Some(Agreement::Agrees),
            file: Some(format!("etcd-{name}.db.zst.age")),
            plain_bytes: None,
            sealed_bytes: None,
            plain_sha256: None,
            sealed_sha256: None,
            trailer_sha256: None,
            seconds: None,
            error: None,
            proof: ProofLevel::Sound,
            reread: None,
            alarms: Vec::new(),
        }
    }

    /// Three members that agree; `change` makes of them what a test is about.
    fn rendered(change: impl FnOnce(&mut Index)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate(&dir.path().join("signing.key")).unwrap();
        let mut index = Index {
            schema: Index::SCHEMA.to_owned(),
            id: "20261122T020000Z-7f3a".parse().unwrap(),
            path: PathBuf::from("/backup/etcd/20261122T020000Z-7f3a"),
            store_id: "s".to_owned(),
            cluster_id: EtcdId(7),
            cluster_name: "homelab".to_owned(),
            host: "cp3".to_owned(),
            created_at: "2026-11-22T02:00:00Z".parse().unwrap(),
            finished_at: "2026-11-22T02:00:10Z".parse().unwrap(),
            proof: ProofLevel::Sound,
            agreement: Some(Agreement::Agrees),
            partial: false,
            primary: Some("cp2".to_owned()),
            members: vec![member("cp1", 1), member("cp2", 2), member("cp3", 3)],
            archives: Vec::new(),
            resources: None,
            bundle_complete: None,
            cross_check: None,
            findings: Vec::new(),
            warnings: Vec::new(),
            recipients: vec!["age1abc".to_owned(), "run".to_owned()],
            versions: Versions { etcd_dr: "0.1.0".to_owned(), etcd: vec!["3.6.16".to_owned()] },
            reason: None,
        };
        change(&mut index);
        render(&index, key.public()).unwrap()
    }

    fn finding(kind: FindingKind, name: &str, detail: &str) -> Finding {
        Finding { kind, name: name.to_owned(), detail: detail.to_owned() }
    }

    #[track_caller]
    fn has(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }

    #[track_caller]
    fn has_not(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(!text.contains(part), "`{part}` in\n{text}");
        }
    }

    #[test]
    fn with_a_primary_there_is_nothing_to_choose() {
        let text = rendered(|_| {});
        has(
            &text,
            &[
                "etcd-dr restore --snapshot . --dry-run --output json",
                "age -d -i /dev/shm/identity.txt etcd-cp2.db.zst.age |",
                "--initial-cluster cp1=https://192.0.2.1:2380,cp2=https://192.0.2.2:2380,cp3=https://192.0.2.3:2380",
                "Where 2 x (last - 100) is more than 1000000000",
                "on 2 of 3 nodes at once",
                "- `age1abc`",
            ],
        );
        has_not(&text, &["--from", "FROM", "--clear-alarms", "disarm", "**differs", "partial", "`run`"]);
        for name in ["cp1", "cp2", "cp3"] {
            has(&text, &[&format!("--plan /root/plan.json --member {name} "), &format!("  --name {name} ")]);
        }
        assert_eq!(text.matches("--bump-revision 1000000000 --mark-compacted").count(), 3);
        assert!(!text.contains("\n\n\n"), "{text}");
        // A page or two at three in the morning.
        assert!(text.lines().count() < 170, "{}", text.lines().count());
        assert!(text.lines().all(|line| line.starts_with('|') || line.chars().count() <= 150), "{text}");
    }

    #[test]
    fn members_that_differ_are_named_and_the_choice_is_a_persons() {
        let text = rendered(|index| {
            index.members.truncate(2);
            index.primary = None;
            for (member, hash) in index.members.iter_mut().zip([0x5f1c_22a0, 0x91e0_7b3d]) {
                member.agreement = Some(Agreement::Differs);
                member.hash_kv = Some(hash);
            }
            let seen = "at revision 100 its HashKV is 5f1c22a0; cp2 answered 91e07b3d";
            index.findings = vec![finding(FindingKind::MemberDiffers, "cp1", seen)];
        });
        has(
            &text,
            &[
                "| **differs** |",
                "**`cp1` differs from other members:** at revision 100 its HashKV is 5f1c22a0; cp2 answered 91e07b3d",
                "choose one",
                "# FROM=cp1 FILE=etcd-cp1.db.zst.age   # revision 100, HashKV 5f1c22a0, proof sound",
                "# FROM=cp2 FILE=etcd-cp2.db.zst.age   # revision 100, HashKV 91e07b3d, proof sound",
                "etcd-dr restore --snapshot . --from \"$FROM\" --dry-run",
                "age -d -i /dev/shm/identity.txt \"$FILE\" |",
                "R is the revision of the file that you restore",
            ],
        );
    }

    #[test]
    fn a_lone_survivors_file_is_taken_by_its_name() {
        let text = rendered(|index| {
            index.primary = None;
            index.partial = true;
            for member in index.members.iter_mut().take(2) {
                member.file = None;
                member.error = Some("connection refused".to_owned());
            }
            index.members[2].agreement = Some(Agreement::NotComparable);
            index.members[2].alarms = vec!["etcdserver: no leader".to_owned()];
            let seen = "no other member answered for the same revision";
            index.findings = vec![finding(FindingKind::MemberNotComparable, "cp3", seen)];
        });
        has(
            &text,
            &[
                "**This backup is partial:** nothing came from cp1, cp2.",
                "**missing**: connection refused",
                "only `cp3` gave a whole file",
                "**`cp3` could not be compared with the others:** no other member answered",
                "--snapshot . --from cp3 --dry-run",
                "age -d -i /dev/shm/identity.txt etcd-cp3.db.zst.age |",
                "--member cp1 ",
            ],
        );
        has_not(&text, &["FROM=", "$FILE", "--clear-alarms"]);
    }

    #[test]
    fn a_file_that_failed_its_proof_is_no_choice() {
        let text = rendered(|index| {
            index.primary = None;
            index.members[0].error = Some("page 7 is torn".to_owned());
            index.findings = vec![finding(FindingKind::FileChanged, "etcd-cp1.db.zst.age", "page 7 is torn")];
        });
        has(&text, &["**`etcd-cp1.db.zst.age` did not pass its proof:** page 7 is torn", "# FROM=cp2 ", "# FROM=cp3 "]);
        has_not(&text, &["# FROM=cp1 "]);
    }

    #[test]
    fn an_alarm_is_named_and_both_ways_clear_it() {
        let text = rendered(|index| {
            index.members[0].alarms = vec!["memberID:1 alarm:NOSPACE ".to_owned()];
        });
        has(
            &text,
            &[
                "**Alarm NOSPACE** was raised",
                "--snapshot . --clear-alarms --dry-run",
                "After chapter 4 the alarm NOSPACE stands",
                "`etcdctl alarm disarm`",
            ],
        );
        has_not(&text, &["CORRUPT"]);
        let text = rendered(|index| index.members[2].alarms = vec!["memberID:3 alarm:CORRUPT ".to_owned()]);
        has(&text, &["**Alarm CORRUPT**", "be sure of the file before you clear it"]);
    }

    #[test]
    fn who_is_not_restored_is_named() {
        let text = rendered(|index| {
            index.members[0].learner = true;
            index.members[0].file = None;
            index.members.push(Member { file: None, ..member("", 9) });
        });
        has(
            &text,
            &[
                "- `cp1` (a learner) is not restored",
                "- `https://192.0.2.9:2380` (never started) is not restored",
                "--initial-cluster cp2=https://192.0.2.2:2380,cp3=https://192.0.2.3:2380 ",
            ],
        );
        has_not(&text, &["--member cp1", "--name cp1"]);
    }

    #[test]
    fn etcd_3_4_has_another_tool_which_cannot_raise_the_revision() {
        let text = rendered(|index| {
            index.versions.etcd = vec!["3.4.42".to_owned()];
            for member in &mut index.members {
                member.version = Some("3.4.42".to_owned());
            }
        });
        has(&text, &["etcd 3.4.42", "ETCDCTL_API=3 etcdctl snapshot restore", "cannot raise the revision"]);
        has_not(&text, &["etcdutl", "--bump-revision 1000000000"]);
    }

    #[test]
    fn names_reach_the_shell_as_they_are() {
        let text = rendered(|index| index.members[0].name = "it's $HOME".to_owned());
        has(
            &text,
            &[r"--member 'it'\''s $HOME' ", r"--name 'it'\''s $HOME' ", r"--initial-cluster 'it'\''s $HOME'=https"],
        );
    }
}
