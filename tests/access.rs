//! Who may ask: certificates that one side refuses, and etcd's own users.
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

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use servers::{
    etcd::{Cluster, Options},
    pki::Pair,
    ports::Port,
    proxy::{ANY, Proxy},
};
use site::{
    Site,
    behind::{Behind, Run},
};

/// Runs with a policy in which `from` is `to`: no endpoint answers, and each is named with what the words say.
#[track_caller]
fn nobody_answers(lab: &Behind, from: &str, to: &str) -> Run {
    let connections: Vec<usize> = lab.proxies.iter().map(Proxy::connections).collect();
    let calls: usize = lab.proxies.iter().map(|proxy| proxy.calls(ANY)).sum();
    lab.site.change_policy(from, to);
    let run = lab.backup(21);
    for (proxy, before) in lab.proxies.iter().zip(connections) {
        assert!(proxy.connections() > before, "{} was not asked", proxy.url());
        run.says(&[&proxy.url()]);
    }
    assert_eq!(lab.proxies.iter().map(|proxy| proxy.calls(ANY)).sum::<usize>(), calls, "a call got through");
    assert_eq!(run.report["error"]["kind"], "no_endpoint");
    run
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_authority_that_did_not_issue_the_servers_certificate() {
    let lab = Behind::shared();
    let pki = lab.cluster.pki();
    nobody_answers(&lab, path(pki.ca()), path(pki.foreign_ca())).says(&["certificate", "UnknownIssuer"]);
}

#[test]
fn a_client_certificate_that_has_expired() {
    let lab = Behind::shared();
    as_client(&lab, &lab.cluster.pki().expired_client_cert());
}

#[test]
fn a_client_certificate_of_an_authority_that_the_server_does_not_know() {
    let lab = Behind::shared();
    as_client(&lab, &lab.cluster.pki().foreign_client_cert());
}

#[track_caller]
fn as_client(lab: &Behind, pair: &Pair) {
    let own = lab.cluster.client_pair();
    lab.site.change_policy(path(&own.key), path(&pair.key));
    let run = nobody_answers(lab, path(&own.cert), path(&pair.cert));
    run.says(&["the server closed the connection", "refuses the client", path(&pair.cert)]);
}

#[test]
fn no_client_certificate_at_all() {
    let lab = Behind::shared();
    let own = lab.cluster.client_pair();
    lab.site.change_policy(&format!("key_file = {:?}\n", own.key), "");
    let run = nobody_answers(&lab, &format!("cert_file = {:?}\n", own.cert), "");
    run.says(&["the server closed the connection", "shown no certificate"]);
}

/// etcd itself, without a proxy: Go's words instead of rustls'.
#[test]
fn etcd_itself_refuses_those_clients() {
    let cluster = Cluster::start(1, Options::default());
    let site = Site::new(&cluster);
    let own = cluster.client_pair().clone();
    let (good, policy) = (site.backup(), site.policy());
    let pairs = [Some(cluster.pki().expired_client_cert()), Some(cluster.pki().foreign_client_cert()), None];
    for pair in pairs {
        site.write_policy(&policy);
        if let Some(pair) = &pair {
            site.change_policy(path(&own.key), path(&pair.key));
            site.change_policy(path(&own.cert), path(&pair.cert));
        } else {
            site.change_policy(&format!("key_file = {:?}\n", own.key), "");
            site.change_policy(&format!("cert_file = {:?}\n", own.cert), "");
        }
        let refusals = || fs::read_to_string(cluster.log(0)).unwrap().matches("rejected connection").count();
        let before = refusals();
        let answer = site.run(&["backup"]).expect_code(21);
        assert!(refusals() > before, "etcd refused nobody");
        assert!(answer.stderr.contains(&cluster.endpoint(0)), "{}", answer.stderr);
        let shown = pair.map_or("no certificate".to_owned(), |pair| format!("certificate {}", pair.cert.display()));
        assert!(answer.stderr.contains(&format!("it was shown {shown}")), "{}", answer.stderr);
        assert_eq!(site.backups(), [good.as_str()]);
        site.run(&["verify", &good]).expect_code(0);
    }
}

#[test]
fn a_server_certificate_for_another_name_says_what_was_expected_and_found() {
    let port = Port::take();
    let advertise = vec![None, Some(port.url())];
    let cluster = Cluster::start(3, Options { advertise, ..Options::default() });
    let wrong = Proxy::start_as(&cluster, port, &cluster.endpoint(1), &cluster.pki().wrong_name_cert());
    let site = Site::new(&cluster);
    let lab = Behind::over(cluster, site);
    let run = lab.backup(3);
    assert!(wrong.connections() > 0 && wrong.calls(ANY) == 0);
    run.lacks(&["k8s-cp2"]).says(&["k8s-cp2", &wrong.url(), "127.0.0.1", "etcd.example.org"]);

    lab.site.change_policy(lab.cluster.advertised(0), &wrong.url());
    let run = lab.backup(21);
    run.says(&[&wrong.url(), "127.0.0.1", "etcd.example.org"]);
}

#[test]
fn etcd_users_log_in_with_a_password() {
    let cluster = Cluster::start(1, Options::default());
    for arguments in [&["user", "add", "root:canary-login"][..], &["user", "grant-role", "root", "root"]] {
        etcdctl(&cluster, arguments);
    }
    let site = Site::new(&cluster);
    site.change_policy("_timeout = \"2s\"", "_timeout = \"5s\"");
    let policy = site.policy();
    let login = |password: &str| {
        let file = site.path("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let keys = format!("user = \"root\"\npassword_file = {file:?}\n[store]");
        site.write_policy(&policy.replace("[store]", &keys));
    };
    // While authentication is not enabled, the login is for nothing and does no harm.
    login("canary-login");
    let early = site.backup();

    etcdctl(&cluster, &["auth", "enable"]);
    let id = site.backup();
    site.run(&["verify", &id]).expect_code(0);
    let begun = Instant::now();
    login("wrong");
    let wrong = site.run(&["backup", "--output", "json"]).expect_code(1);
    assert!(wrong.stderr.contains("invalid user ID or password"), "{}", wrong.stderr);
    assert!(wrong.json()["error"]["hint"].as_str().unwrap().contains("password_file"), "{}", wrong.stderr);
    // The certificate's common name is no user of etcd's either: each member says so itself, and once.
    site.write_policy(&policy);
    let without = site.run(&["backup"]).expect_code(21);
    assert!(without.stderr.contains(&cluster.endpoint(0)), "{}", without.stderr);
    assert!(without.stderr.contains("user name not found"), "{}", without.stderr);
    assert!(!without.stderr.contains("once more"), "{}", without.stderr);
    assert!(begun.elapsed() < Duration::from_secs(20));
    let mut good = [early, id];
    good.sort();
    assert_eq!(site.backups(), good);
    for answer in [wrong, without] {
        assert!(!format!("{answer:?}").contains("canary-login"));
    }
}

#[track_caller]
fn etcdctl(cluster: &Cluster, arguments: &[&str]) {
    let output = cluster.etcdctl().args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
