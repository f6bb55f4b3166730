//! `RECOVERY.md`: how this cluster is brought back with stock tools, readable alone, by somebody who never saw etcd-dr.

use std::fmt::{self, Write as _};

use crate::{
    record::{Index, Member, ProofLevel, names},
    sign::PublicKey,
};

/// The text for one backup. It names members, addresses and files as the index has them, and holds no secret.
///
/// # Errors
/// None that a string can give; the formatter's are passed on.
pub fn render(index: &Index, signer: &PublicKey) -> Result<String, fmt::Error> {
    let restored = |member: &&Member| !member.learner && !member.name.is_empty();
    let voters: Vec<&Member> = index.members.iter().filter(restored).collect();
    let with_file = voters.iter().copied().find(|member| member.file.is_some());
    let facts = Facts { index, signer, chosen: index.primary_member().or(with_file), voters };
    let mut text = String::new();
    facts.head(&mut text)?;
    facts.contents(&mut text)?;
    facts.check_and_open(&mut text)?;
    text.push_str(STOP);
    facts.restore(&mut text)?;
    text.push_str(START);
    Ok(text)
}

/// Where the database is opened to: memory, and never a directory of the backup, whose files are all signed.
const PLAIN: &str = "/dev/shm/snapshot.db";

const STOP: &str = r"## 3. Stop, on every control-plane node

Open a shell on each node first: once the API is gone, `kubectl` is no help. Move the manifests out of the directory; a copy that
stays in it is run.

```sh
mkdir -p /etc/kubernetes/stopped
mv /etc/kubernetes/manifests/kube-*.yaml /etc/kubernetes/stopped/
mv /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/stopped/
crictl ps --name etcd -q            # wait until this prints nothing
mv /var/lib/etcd/member /var/lib/etcd-old-$(date +%Y%m%dT%H%M%S)   # aside, never removed
```

";

const START: &str = r"## 5. Start

Move `etcd.yaml` back on at least two nodes at once, and wait for one leader and equal hashes (`etcdctl endpoint hashkv --cluster`).
Then one `kube-apiserver.yaml`; look at `/readyz?verbose` and at a Secret; then the other apiservers; controller manager and
scheduler last. Restart the kubelet on every node, then kube-proxy, the CNI, CoreDNS and the operators.

Remove what was opened, on every node: `rm /dev/shm/snapshot.db`.

Take a new backup when the cluster stands. It has a new cluster id: `etcd-dr init --accept-cluster <id>` lets this store take it.
";

/// What the chapters speak of.
struct Facts<'a> {
    index: &'a Index,
    signer: &'a PublicKey,
    /// The member whose file is to be restored: the primary, else the first that has one.
    chosen: Option<&'a Member>,
    /// Who is restored: voting members that have started once. A learner or a member without a name would only keep the others waiting.
    voters: Vec<&'a Member>,
}

impl Facts<'_> {
    fn head(&self, text: &mut String) -> fmt::Result {
        let index = self.index;
        let etcd = self.index.versions.etcd.first().map_or("3.x", String::as_str);
        writeln!(text, "# Recovery of etcd cluster `{}` from backup {}\n", index.cluster_name, index.id)?;
        writeln!(
            text,
            "Taken {} on `{}`; cluster id `{}`; etcd {}.",
            index.created_at,
            index.host,
            index.cluster_id,
            index.versions.etcd.join(", ")
        )?;
        writeln!(
            text,
            "Everything here opens with stock tools: `sha256sum`, `minisign`, `age`, `zstd`, and the `etcdutl` of etcd {etcd}."
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
        let index = self.index;
        writeln!(text, "## What is in it\n")?;
        writeln!(
            text,
            "| member | id | peer URLs | etcd | revision | file | proof |\n| --- | --- | --- | --- | --- | --- | --- |"
        )?;
        for member in &index.members {
            let revision = member.status_revision.map_or_else(|| "-".to_owned(), |revision| revision.to_string());
            let file = match &member.file {
                Some(file) => format!("`{file}`"),
                None if member.learner => "(a learner)".to_owned(),
                None => format!("**missing**: {}", cell(member.error.as_deref().unwrap_or("no reason recorded"))),
            };
            let version = member.version.as_deref().unwrap_or("-");
            let (name, id, urls) = (cell(&member.name), member.id, cell(&member.peer_urls.join(" ")));
            writeln!(text, "| {name} | {id} | {urls} | {version} | {revision} | {file} | {} |", member.proof)?;
        }
        writeln!(
            text,
            "\nNot in it: the Kubernetes manifests, the PKI under `/etc/kubernetes`, the encryption-at-rest key. Without the cluster's CA and"
        )?;
        writeln!(
            text,
            "service-account keys, and that key where one is used, the database alone does not bring the cluster back: find them first.\n"
        )?;
        writeln!(text, "## 0. Is a restore needed?\n")?;
        writeln!(
            text,
            "If a quorum of the members answers, it is not: replace the broken member instead. If one healthy member is left, take a fresh snapshot"
        )?;
        writeln!(text, "from it (`etcdctl snapshot save`, no quorum needed): it is newer than this backup.\n")?;
        Ok(())
    }

    fn check_and_open(&self, text: &mut String) -> fmt::Result {
        let index = self.index;
        let file = self.chosen.and_then(|member| member.file.as_deref()).unwrap_or("etcd-<member>.db.zst.age");
        writeln!(text, "## 1. Check, in this directory\n\n```sh")?;
        writeln!(text, "minisign -V -P {} -m {} -x {}", self.signer.to_base64(), names::SUMS, names::SIGNATURE)?;
        writeln!(text, "sha256sum -c {}\n```\n", names::SUMS)?;
        writeln!(
            text,
            "Compare that public key with the one that you keep elsewhere: one found beside a backup proves nothing.\n"
        )?;

        writeln!(text, "## 2. Open\n\n`identity.txt` is the age identity of one of these recipients:\n")?;
        for recipient in index.recipients.iter().filter(|recipient| *recipient != "run") {
            writeln!(text, "- `{recipient}`")?;
        }
        writeln!(text, "\n```sh\numask 077")?;
        writeln!(text, "age -d -i identity.txt {file} | zstd -d -o {PLAIN}")?;
        writeln!(text, "etcdutl snapshot status {PLAIN} -w table\n```\n")?;
        if let Some(member) = self.chosen
            && let (Some(sha256), Some(bytes)) = (member.plain_sha256, member.plain_bytes)
        {
            writeln!(text, "`{PLAIN}` has {bytes} bytes and SHA-256 `{sha256}`.\n")?;
        }
        if index.primary.is_none() {
            writeln!(text, "No member's file was chosen as the one to restore: compare them before you do.\n")?;
        }
        Ok(())
    }

    fn restore(&self, text: &mut String) -> fmt::Result {
        let peers = |member: &&Member| {
            member.peer_urls.iter().map(|url| format!("{}={url}", shell(&member.name))).collect::<Vec<_>>()
        };
        let cluster = self.voters.iter().flat_map(peers).collect::<Vec<_>>().join(",");
        writeln!(text, "## 4. Restore, each member from the same file\n")?;
        writeln!(
            text,
            "Copy `{PLAIN}` to the same path on each node, and compare its SHA-256 there. Choose one new token for all of them"
        )?;
        writeln!(
            text,
            "(`TOKEN=etcd-dr-$(cat /proc/sys/kernel/random/uuid)`, the same text on each node); an old one lets forgotten members"
        )?;
        writeln!(
            text,
            "join. The revision is raised so that no watcher sees it go backwards: the same number everywhere, at least twice as much as the"
        )?;
        writeln!(text, "cluster moved on since this backup.\n")?;
        for member in &self.voters {
            writeln!(text, "On `{}`:\n\n```sh", member.name)?;
            writeln!(text, "etcdutl snapshot restore {PLAIN} --data-dir /var/lib/etcd-restored \\")?;
            writeln!(
                text,
                "  --name {} --initial-advertise-peer-urls {} \\",
                shell(&member.name),
                member.peer_urls.join(",")
            )?;
            writeln!(text, "  --initial-cluster {cluster} \\")?;
            writeln!(text, "  --initial-cluster-token \"$TOKEN\" --bump-revision 1000000000 --mark-compacted")?;
            writeln!(text, "mv /var/lib/etcd-restored/member /var/lib/etcd/member\n```\n")?;
        }
        Ok(())
    }
}

/// A restore needs names as they are; what a shell would read otherwise is quoted.
fn shell(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn cell(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.replace('|', r"\|").chars().map(plain).collect()
}

fn missing(voters: &[&Member]) -> String {
    let names: Vec<&str> =
        voters.iter().filter(|member| member.is_missing()).map(|member| member.name.as_str()).collect();
    format!("nothing came from {}", names.join(", "))
}
