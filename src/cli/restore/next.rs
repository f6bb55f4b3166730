//! What is left to do after a restore, on this kind of cluster, with its names and addresses. `RECOVERY.md` says the same at more length.

use std::path::Path;

use crate::{
    plan::restore::{Planned, RestorePlan},
    store::guard::shell_quote,
};

/// The steps, a line each.
pub fn steps(plan: &RestorePlan, accepted: bool) -> String {
    let mut lines = Vec::new();
    others(plan, &mut lines);
    if plan.kubernetes {
        kubernetes(plan, &mut lines);
    } else {
        plain(plan, &mut lines);
    }
    if !plan.alarms.is_empty() && !plan.clear_alarms {
        let alarms = plan.alarms.join(", ");
        lines.push(format!(
            "see to the cause of the alarm {alarms}, then `etcdctl alarm disarm`: no write is taken before"
        ));
    }
    if !plan.moved_aside.is_empty() {
        lines.push("keep what was moved aside until two backups of the restored cluster are verified".to_owned());
    }
    if accepted {
        lines.push("take a backup when it stands: `etcd-dr backup`; the store takes the new cluster id".to_owned());
    } else {
        let id = plan.cluster_id;
        lines.push(format!(
            "take a backup when it stands: `etcd-dr init --accept-cluster {id}` where the store is, then `etcd-dr backup`"
        ));
    }
    let numbered = lines.iter().enumerate().map(|(place, line)| format!("{}. {line}", place.saturating_add(1)));
    format!("what is left to do:\n{}", numbered.collect::<Vec<_>>().join("\n"))
}

/// The members that this run did not write, or wrote for other hosts.
fn others(plan: &RestorePlan, lines: &mut Vec<String>) {
    let elsewhere: Vec<&Planned> = plan.members.iter().filter(|member| !member.write).collect();
    for member in &elsewhere {
        let name = quoted(&member.name);
        lines.push(format!(
            "on the host of {} ({}), with the plan that this run followed: `etcd-dr restore --snapshot {} --plan plan.json --member {name} --data-dir {}{} --replace`",
            member.name,
            urls(member),
            quoted(&plan.source),
            shell_quote(&member.data_dir),
            wal_dir(member)
        ));
    }
    if elsewhere.is_empty() && plan.members.len() > 1 {
        for member in &plan.members {
            let dir = member.data_dir.join("member");
            lines.push(format!(
                "bring {} to the host of {} ({}) as `member` of its data directory, owner and modes kept",
                shell_quote(&dir),
                member.name,
                urls(member)
            ));
        }
    }
}

fn kubernetes(plan: &RestorePlan, lines: &mut Vec<String>) {
    let names: Vec<&str> = plan.members.iter().map(|member| member.name.as_str()).collect();
    lines.push(format!(
        "the static pods must be out of /etc/kubernetes/manifests on {}, and no old etcd or kube-apiserver left: `crictl ps --name 'etcd|kube-apiserver' -q` prints nothing",
        names.join(", ")
    ));
    let member = plan.written().next().or(plan.members.first());
    if let Some(member) = member.filter(|_| plan.written().count() == 1) {
        lines.push(format!(
            "the data directory of {} is {}; its etcd.yaml mounts /var/lib/etcd unless it was changed: the restored one has to lie there",
            member.name,
            shell_quote(&member.data_dir)
        ));
    }
    let quorum = plan.members.len() / 2 + 1;
    lines.push(format!(
        "move etcd.yaml back on {quorum} of {} hosts at once, since the probes kill one that waits alone; then on the rest",
        plan.members.len()
    ));
    lines.push(format!("see one leader and {} equal hashes: `etcdctl endpoint hashkv --cluster`", plan.members.len()));
    lines.push(
        "move one kube-apiserver.yaml back; `kubectl get --raw '/readyz?verbose'`, and read a Secret; then the others"
            .to_owned(),
    );
    lines.push("move kube-controller-manager.yaml and kube-scheduler.yaml back, last of all".to_owned());
    lines.push("restart what keeps caches: kubelet on every node, kube-proxy, the CNI, CoreDNS, operators".to_owned());
}

fn plain(plan: &RestorePlan, lines: &mut Vec<String>) {
    for member in plan.written() {
        let wal = wal_dir(member);
        lines.push(format!(
            "start {}: `etcd --name {} --data-dir {}{wal} --listen-peer-urls {urls} --initial-advertise-peer-urls {urls} --initial-cluster {} ...`",
            member.name,
            quoted(&member.name),
            shell_quote(&member.data_dir),
            quoted(&plan.initial_cluster()),
            urls = quoted(&member.peer_urls.join(",")),
        ));
    }
    lines.push(format!("see one leader and {} equal hashes: `etcdctl endpoint hashkv --cluster`", plan.members.len()));
    lines.push("restart every client that watches: what it saw after the snapshot is gone".to_owned());
}

fn wal_dir(member: &Planned) -> String {
    member.wal_dir.as_ref().map(|wal| format!(" --wal-dir {}", shell_quote(wal))).unwrap_or_default()
}

fn urls(member: &Planned) -> String {
    member.peer_urls.join(" ")
}

fn quoted(text: &str) -> String {
    shell_quote(Path::new(text))
}
