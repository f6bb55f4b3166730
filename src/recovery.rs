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
        if self.index.agreement == Some(Agreement::Differs) {
            writeln!(
                text,
                "`verify` ends with exit code 20 here, since members differ, and names whose files are wrong as far as that is known."
            )?;
        }
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
mod tests;
