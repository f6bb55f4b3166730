//! Who answers where: addresses that lead elsewhere, are dead or say nothing, members without a quorum, learners, other clusters.
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

use std::time::{Duration, Instant};

use servers::{
    etcd::{Cluster, Options},
    ports::Port,
    proxy::{ALARM, DEFRAGMENT, Fault, HASH_KV, MEMBER_LIST, Proxy, Rule, SNAPSHOT, STATUS},
    silent::Silent,
};
use site::{Site, behind::Behind};

const BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_good_run_asks_each_member_for_one_stream_and_nothing_that_could_hang() {
    let lab = Behind::shared();
    lab.backup(0).lacks(&[]);
    assert_eq!(lab.all_calls(SNAPSHOT), [1, 1, 1]);
    assert_eq!(lab.all_calls(STATUS), [2, 2, 2]);
    assert_eq!(lab.all_calls(HASH_KV), [1, 1, 1]);
    assert_eq!(lab.all_calls(MEMBER_LIST).iter().sum::<usize>(), 1);
    assert_eq!((lab.all_calls(ALARM), lab.all_calls(DEFRAGMENT)), (vec![0; 3], vec![0; 3]));
}

#[test]
fn the_leader_is_streamed_last() {
    let lab = Behind::shared();
    lab.backup(0);
    let leader = lab.cluster.leader().unwrap();
    let last = |i: usize| *lab.proxies[i].order(SNAPSHOT).last().unwrap();
    for i in (0..3).filter(|&i| i != leader) {
        assert!(last(i) < last(leader));
    }
}

#[test]
fn three_addresses_of_one_member_are_not_three_members() {
    let lab = Behind::shared();
    for i in [1, 2] {
        lab.proxies[i].move_to(&lab.cluster.endpoint(0));
    }
    let run = lab.backup(3);
    let names = [1, 2].map(|i| lab.cluster.name(i));
    run.lacks(&names);
    let one = run.member(lab.cluster.name(0))["id"].as_str().unwrap();
    for i in [1, 2] {
        let name = lab.cluster.name(i);
        let id = run.member(name)["id"].as_str().unwrap();
        let led = format!("{} is listed for {name} ({id}) and answered by k8s ({one})", lab.cluster.advertised(i));
        run.says(&[&led]);
        assert_eq!((lab.calls(i, STATUS), lab.calls(i, SNAPSHOT)), (1, 0));
    }
    assert_eq!(lab.calls(0, SNAPSHOT), 1);
}

#[test]
fn an_address_that_leads_to_another_cluster_is_named() {
    let other = Cluster::start(1, Options::default());
    let port = Port::take();
    let advertise = vec![None, Some(port.url())];
    let cluster = Cluster::start(3, Options { advertise, ..Options::default() });
    let astray = Proxy::astray(&cluster, port, &other, 0);
    let site = Site::new(&cluster);
    let run = Behind::over(cluster, site).backup(3);
    assert_eq!((astray.calls(STATUS), astray.calls(SNAPSHOT)), (1, 0));
    run.lacks(&["k8s-cp2"]).says(&["k8s-cp2", &astray.url(), "answered by a member that is not in the list"]);
}

#[test]
fn a_member_that_never_answers_costs_its_timeout_and_is_named() {
    let lab = Behind::shared();
    let follower = lab.follower();
    let never = lab.fault(follower, STATUS, Fault::Never);
    let begun = Instant::now();
    let run = lab.backup(3);
    assert!(begun.elapsed() < BOUND);
    assert_eq!((never.count(), lab.calls(follower, STATUS)), (1, 1));
    let name = lab.cluster.name(follower);
    run.lacks(&[name]).says(&[name, lab.cluster.advertised(follower), "Status: nothing came for 1s"]);
}

#[test]
fn the_policy_may_name_endpoints_that_do_not_answer() {
    let lab = Behind::shared();
    let (closed, silent, never) = (Port::take(), Silent::start(), Port::take());
    let hanging = Proxy::start(&lab.cluster, never, &lab.cluster.endpoint(1));
    let asked = hanging.add(Rule::new(MEMBER_LIST, Fault::Never));
    let dead = [closed.url(), silent.url(), hanging.url()];
    let named = |urls: &[String]| format!("endpoints = {urls:?}");
    let all: Vec<String> = lab.proxies.iter().map(Proxy::url).collect();
    lab.site.change_policy(&named(&all), &named(&[&dead[..], &all[..1]].concat()));
    let begun = Instant::now();
    let run = lab.backup(0);
    assert!(begun.elapsed() < BOUND);
    run.lacks(&[]);
    assert!(silent.accepted() > 0);
    assert_eq!(asked.count(), 1);

    // None of them answers: each is named, with its own cause.
    lab.site.change_policy(&format!(", {:?}]", all[0]), "]");
    let run = lab.backup(21);
    assert_eq!(run.report["error"]["kind"], "no_endpoint");
    run.says(&[&closed.url(), "onnection refused", &silent.url(), &hanging.url(), "nothing came for 1s"]);
    assert_eq!(asked.count(), 2);
}

#[test]
fn a_half_open_member_is_named_and_the_others_are_proved() {
    let port = Port::take();
    let advertise = vec![None, Some(port.url())];
    let silent = Silent::on(port);
    let cluster = Cluster::start(3, Options { advertise, ..Options::default() });
    let site = Site::new(&cluster);
    let begun = Instant::now();
    let run = Behind::over(cluster, site).backup(3);
    assert!(begun.elapsed() < BOUND);
    assert!(silent.accepted() > 0);
    run.lacks(&["k8s-cp2"]).says(&["k8s-cp2", &silent.url(), "Status", "2s"]);
}

/// One member after another goes: named, then without a quorum, then nothing is left to back up.
#[test]
fn members_that_are_down_are_named_down_to_the_last_one() {
    let mut lab = Behind::start(3, Options::default());
    lab.cluster.stop_member(1);
    let run = lab.backup(3);
    run.lacks(&["k8s-cp2"]).says(&["k8s-cp2", lab.cluster.advertised(1)]);
    assert!(run.report["error"]["hint"].as_str().unwrap().contains("etcd-dr backup"));

    lab.cluster.kill_member(2);
    lab.begin();
    until_without_leader(&lab.cluster);
    let run = lab.backup(3);
    run.lacks(&["k8s-cp2", "k8s-cp3"]).says(&["k8s-cp2", "k8s-cp3", lab.cluster.advertised(2)]);
    // A file without a second opinion: whole, and nobody's to restore from without being named.
    assert!(run.report["primary"].is_null(), "{}", run.report);
    let verified = lab.site.run(&["verify", run.id(), "--output", "json"]).expect_code(0).json();
    assert_eq!((&verified["results"][0]["level"], &verified["partial"]), (&"sound".into(), &true.into()));
    assert_eq!((lab.all_calls(ALARM), lab.all_calls(DEFRAGMENT)), (vec![0; 3], vec![0; 3]));
    assert_eq!((lab.calls(0, STATUS), lab.calls(0, SNAPSHOT), lab.calls(0, HASH_KV)), (2, 1, 1));
    // It is the survivor's word that there is no leader.
    assert!(run.report["warnings"].to_string().contains("no leader"), "{}", run.report["warnings"]);

    lab.cluster.kill_member(0);
    lab.begin();
    let run = lab.backup(21);
    assert_eq!(run.report["error"]["kind"], "no_endpoint");
    run.says(&[lab.cluster.advertised(0)]);
    let text = lab.site.run(&["backup"]).expect_code(21);
    assert!(text.stdout.is_empty() && text.stderr.contains("(exit 21)"), "{text:?}");
}

/// Returns when the first member says that nobody leads.
fn until_without_leader(cluster: &Cluster) {
    let begun = Instant::now();
    let mut client = cluster.client(0);
    loop {
        let (told, again) = servers::wait(async move { (client.status().await, client) });
        client = again;
        if told.unwrap().leader() == 0 {
            return;
        }
        assert!(begun.elapsed() < BOUND, "it still knows a leader");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A member list that answers, and no stream at all.
#[test]
fn no_stream_at_all_leaves_nothing_and_names_every_member() {
    let lab = Behind::shared();
    let fired: Vec<_> = (0..3).map(|i| lab.fault(i, SNAPSHOT, Fault::Cut { after: 1 })).collect();
    let run = lab.backup(21);
    assert_eq!(run.report["error"]["kind"], "no_snapshot");
    run.says(&["k8s:", "k8s-cp2:", "k8s-cp3:", "cut by the test's proxy"]);
    assert_eq!(fired.iter().map(servers::proxy::Fired::count).collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn a_paused_member_is_missing_and_is_streamed_again_when_it_runs_on() {
    let mut lab = Behind::start(3, Options::default());
    let follower = lab.follower();
    lab.cluster.pause(follower);
    let begun = Instant::now();
    let run = lab.backup(3);
    assert!(begun.elapsed() < BOUND);
    run.lacks(&[lab.cluster.name(follower)]);
    lab.cluster.resume(follower);
    lab.begin();
    lab.backup(0).lacks(&[]);
}

#[test]
fn a_member_that_was_added_and_never_started_is_missing_under_its_id() {
    let lab = Behind::start(3, Options::default());
    let id = add(&lab.cluster, &[]);
    let run = lab.backup(3);
    assert_eq!(run.findings(), [("member_missing", id.as_str())]);
    run.says(&[&id, "never started"]);
    let added = run.report["members"].as_array().unwrap().iter().find(|member| member["id"] == id.as_str()).unwrap();
    assert_eq!((added["file"].is_null(), &added["learner"]), (true, &false.into()));
    assert_eq!(lab.all_calls(SNAPSHOT), [1, 1, 1]);
}

#[test]
fn a_learner_is_named_and_not_missed() {
    let lab = Behind::start(3, Options::default());
    let id = add(&lab.cluster, &["--learner"]);
    let run = lab.backup(0);
    assert_eq!(run.report["partial"], false);
    let warnings = run.report["warnings"].to_string();
    assert!(warnings.contains(&id) && warnings.contains("learner"), "{warnings}");
    let learner = run.report["members"].as_array().unwrap().iter().find(|member| member["learner"] == true).unwrap();
    assert_eq!((learner["id"].as_str(), learner["file"].is_null()), (Some(id.as_str()), true));
    assert_eq!(lab.all_calls(SNAPSHOT), [1, 1, 1]);
}

/// Adds a member that nobody starts, and gives its id. etcd refuses until its members have been connected for five seconds.
fn add(cluster: &Cluster, how: &[&str]) -> String {
    let (peer, begun) = (Port::take(), Instant::now());
    loop {
        let mut etcdctl = cluster.etcdctl();
        etcdctl.args(["-w", "json", "member", "add", "newcomer", "--peer-urls", &peer.url()]).args(how);
        let output = etcdctl.output().unwrap();
        if output.status.success() {
            let added: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            return format!("{:x}", added["member"]["ID"].as_u64().unwrap());
        }
        assert!(begun.elapsed() < BOUND, "{output:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn another_cluster_is_refused_until_it_is_accepted() {
    let mut lab = Behind::start(1, Options::default());
    let other = Cluster::start(1, Options::default());
    let own = lab.cluster.pki().dir().to_str().unwrap().to_owned();
    lab.site.change_policy(lab.cluster.advertised(0), other.advertised(0));
    lab.site.change_policy(&own, other.pki().dir().to_str().unwrap());
    let run = lab.backup(2);
    assert_eq!(run.report["error"]["kind"], "foreign_cluster");
    let hint = run.report["error"]["hint"].as_str().unwrap();
    let command = hint.split('`').nth(1).unwrap();
    let id = command.strip_prefix("etcd-dr init --accept-cluster ").unwrap();
    run.says(&[id, "another cluster"]);

    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    lab.site.run(&arguments).expect_code(0);
    let accepted = lab.backup(0);
    assert_eq!(accepted.report["cluster_id"], id);
    // Both are in the lineage now.
    lab.begin();
    lab.backup(0);
    lab.site.run(&["verify", "--all"]).expect_code(0);
}
