//! A member's stream that goes wrong: asked for once more, then named; and what a signal leaves.
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

use rustix::process::Signal;
use servers::{
    process,
    proxy::{Fault, Fired, Rule, SNAPSHOT, STATUS},
};
use site::behind::{Behind, Run};
use tonic::Code;

/// Two calls and their retry at timeouts of one second, with room for a slow machine.
const BOUND: Duration = Duration::from_secs(20);

/// A fault of a follower's stream that happens once costs a second stream and nothing else.
#[track_caller]
fn mends(fault: Fault) {
    let lab = Behind::shared();
    let follower = lab.follower();
    let fired = lab.once(follower, SNAPSHOT, fault);
    let run = lab.backup(0);
    assert_eq!(fired.count(), 1);
    run.lacks(&[]);
    assert_eq!(lab.calls(follower, SNAPSHOT), 2);
    assert_eq!(lab.all_calls(SNAPSHOT).iter().sum::<usize>(), 4);
    assert!(run.stderr.contains(lab.cluster.name(follower)), "{}", run.stderr);
    assert!(run.stderr.contains("once more"), "{}", run.stderr);
}

/// A fault of every stream of a follower: the member is missing, named with `cause`, and the others are there.
#[track_caller]
fn is_missing(fault: Fault, cause: &[&str]) {
    let lab = Behind::shared();
    let follower = lab.follower();
    let fired = lab.fault(follower, SNAPSHOT, fault);
    let begun = Instant::now();
    let run = lab.backup(3);
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert_eq!(fired.count(), 2);
    assert_eq!(lab.calls(follower, SNAPSHOT), 2);
    let name = lab.cluster.name(follower);
    run.lacks(&[name]).says(&[name, lab.cluster.advertised(follower), "is kept in"]).says(cause);
    let verified = lab.site.run(&["verify", run.id(), "--output", "json"]).expect_code(0).json();
    assert_eq!(verified["partial"], true);
}

#[test]
fn a_stream_that_stalls_once_is_asked_for_again() {
    mends(Fault::Stall { after: 3 });
}

#[test]
fn a_stream_that_stalls_each_time_is_given_up() {
    is_missing(Fault::Stall { after: 3 }, &["Snapshot", "nothing came for 1s"]);
}

#[test]
fn a_stream_that_never_begins_is_given_up() {
    is_missing(Fault::Never, &["Snapshot", "nothing came for 1s"]);
}

#[test]
fn a_stream_that_is_cut_once_is_asked_for_again() {
    mends(Fault::Cut { after: 3 });
}

#[test]
fn a_stream_that_is_cut_each_time_is_given_up() {
    is_missing(Fault::Cut { after: 3 }, &["Snapshot", "cut by the test's proxy (Unavailable)"]);
}

#[test]
fn a_connection_that_is_closed_once_is_made_again() {
    mends(Fault::HangUp { after: 3 });
}

#[test]
fn a_connection_that_is_closed_each_time_is_given_up() {
    is_missing(Fault::HangUp { after: 3 }, &["Snapshot"]);
}

#[test]
fn an_early_end_is_not_taken_for_the_whole() {
    mends(Fault::End { after: 3 });
}

#[test]
fn an_early_end_each_time_names_the_bytes_that_are_missing() {
    is_missing(Fault::End { after: 3 }, &["the stream ended after", "bytes are missing"]);
}

#[test]
fn a_stream_that_holds_nothing_is_given_up() {
    is_missing(Fault::End { after: 0 }, &["the stream ended after 0 bytes", "it held nothing"]);
}

#[test]
fn a_stream_without_its_trailer_is_asked_for_again() {
    mends(Fault::DropLast);
}

#[test]
fn a_stream_that_never_has_its_trailer_is_given_up() {
    is_missing(Fault::DropLast, &["the trailer is missing"]);
}

#[test]
fn a_byte_that_is_flipped_once_costs_a_second_stream() {
    mends(Fault::Flip { message: 2 });
}

/// Where nothing is opened again, the comparison made while the bytes arrived is all that stands between a flip and a backup.
#[test]
fn a_flip_is_seen_where_nothing_is_opened_again() {
    let lab = Behind::shared();
    let follower = lab.follower();
    let fired = lab.fault(follower, SNAPSHOT, Fault::Flip { message: 2 });
    let digest_only = [("ETCD_DR_BACKUP__PROVE", "digest"), ("ETCD_DR_RETENTION__MIN_PROOF", "digest")];
    let answer = lab.site.command(&["backup", "--output", "json"]).envs(digest_only).output().unwrap();
    let run = lab.judge(answer.into());
    assert_eq!((fired.count(), run.report["error"]["code"].as_u64()), (2, Some(20)));
    assert_eq!(run.member(lab.cluster.name(follower))["proof"], "none");
    assert_eq!(run.report["proof"], "digest");
}

#[test]
fn bytes_that_are_flipped_each_time_are_kept_marked_and_never_primary() {
    let lab = Behind::shared();
    let follower = lab.follower();
    let name = lab.cluster.name(follower);
    let file = format!("etcd-{name}.db.zst.age");
    let fired = lab.fault(follower, SNAPSHOT, Fault::Flip { message: 2 });
    let run = lab.backup(20);
    assert_eq!(fired.count(), 2);
    run.says(&[&file, "twice", "is kept in"]);
    assert_eq!(run.report["error"]["kind"], "not_verified");
    assert_eq!(run.findings(), [("file_changed", file.as_str())]);
    let member = run.member(name);
    assert_eq!((member["file"].as_str(), member["proof"].as_str()), (Some(file.as_str()), Some("none")));
    assert!(member["error"].as_str().unwrap().contains("SHA-256"), "{member}");
    assert_ne!(member["trailer_sha256"], member["plain_sha256"]);
    assert_ne!(run.report["primary"], name);
    assert_eq!((&run.report["proof"], &run.report["partial"]), (&"sound".into(), &false.into()));
    assert!(lab.site.backup_dir(run.id()).join(&file).exists());
    // Retention goes by the primary, which is proved.
    let decisions = run.report["retention"].as_array().unwrap();
    let kept = decisions.iter().find(|decision| decision["id"] == run.id()).unwrap();
    assert_eq!(kept["action"], "keep");

    let verified = lab.site.run(&["verify", run.id(), "--output", "json"]).expect_code(20).json();
    let files = verified["results"][0]["files"].as_array().unwrap();
    let bad: Vec<_> = files.iter().filter(|file| file["ok"] == false).map(|file| file["file"].clone()).collect();
    assert_eq!(bad, [file.as_str()]);
    lab.proxies[follower].heal();
    lab.site.backup();
}

#[test]
fn every_stream_flipped_leaves_no_primary_and_removes_nothing() {
    let lab = Behind::shared();
    let fired: Vec<Fired> = (0..3).map(|i| lab.fault(i, SNAPSHOT, Fault::Flip { message: 2 })).collect();
    let run = lab.backup(20);
    assert_eq!(fired.iter().map(Fired::count).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!((&run.report["proof"], run.report["primary"].is_null()), (&"none".into(), true));
    assert!(run.report["retention"].is_null(), "{}", run.report);
}

/// `code` for every call of `path` at a follower: so many calls, and what came of it.
#[track_caller]
fn refused(path: &str, code: Code, calls: usize, exit: i32) -> Run {
    let lab = Behind::shared();
    let follower = lab.follower();
    let fired = lab.fault(follower, path, Fault::Refuse(code));
    let run = lab.backup(exit);
    assert_eq!((fired.count(), lab.calls(follower, path)), (calls, calls), "{code:?}");
    let name = lab.cluster.name(follower);
    run.says(&[lab.cluster.advertised(follower), "refused by the test's proxy", &format!("({code:?})")]);
    if exit == 3 {
        run.lacks(&[name]).says(&[name]);
    }
    run
}

#[test]
fn a_snapshot_that_is_refused_for_now_is_asked_for_once_more() {
    for code in [Code::Unavailable, Code::Internal, Code::ResourceExhausted, Code::Unknown] {
        refused(SNAPSHOT, code, 2, 3);
    }
}

#[test]
fn a_call_that_is_refused_for_good_is_not_repeated() {
    refused(SNAPSHOT, Code::Unimplemented, 1, 3);
    refused(SNAPSHOT, Code::InvalidArgument, 1, 3);
    refused(SNAPSHOT, Code::FailedPrecondition, 1, 3);
    refused(STATUS, Code::Unimplemented, 1, 3);
}

#[test]
fn a_member_that_does_not_say_its_status_is_missing() {
    for code in [Code::Unavailable, Code::Internal, Code::DeadlineExceeded] {
        refused(STATUS, code, 1, 3);
    }
}

#[test]
fn an_account_that_may_not_read_ends_the_run() {
    for code in [Code::PermissionDenied, Code::Unauthenticated] {
        for path in [STATUS, SNAPSHOT] {
            let run = refused(path, code, 1, 1);
            assert_eq!(run.report["error"]["kind"], "etcd");
            assert!(run.report["error"]["hint"].as_str().unwrap().contains("root role"), "{}", run.report);
        }
    }
}

#[test]
fn a_retry_that_is_whole_after_a_refusal_counts() {
    mends(Fault::Refuse(Code::Unavailable));
}

/// A signal while the first stream is under way.
fn interrupted_by(signal: Signal) {
    let lab = Behind::shared();
    let slow: Vec<Fired> = (0..3).map(|i| lab.fault(i, SNAPSHOT, Fault::Slow(Duration::from_millis(300)))).collect();
    let child = lab.site.start(&["backup", "--output", "json"]);
    let begun = Instant::now();
    while slow.iter().map(Fired::count).sum::<usize>() < 2 {
        assert!(begun.elapsed() < BOUND, "no stream began");
        std::thread::sleep(Duration::from_millis(10));
    }
    let half_made = lab.site.backups().iter().any(|name| name.starts_with(".partial-"));
    assert!(half_made, "the signal would come too early or too late: {:?}", lab.site.backups());
    process::signal(&child, signal);
    let run = lab.judge(site::Answer::from(child.wait_with_output().unwrap()).expect_code(130));
    run.says(&["interrupted", "nothing was kept"]);
    assert_eq!(run.report["error"]["kind"], "interrupted");
    lab.proxies.iter().for_each(servers::proxy::Proxy::heal);
    lab.site.backup();
}

#[test]
fn sigint_leaves_nothing() {
    interrupted_by(Signal::INT);
}

#[test]
fn sigterm_leaves_nothing() {
    interrupted_by(Signal::TERM);
}

#[test]
fn a_terminal_that_goes_away_leaves_nothing() {
    interrupted_by(Signal::HUP);
}

#[test]
fn an_address_that_moves_before_the_stream_is_caught_after_it() {
    let lab = Behind::shared();
    let (follower, leader) = (lab.follower(), lab.cluster.leader().unwrap());
    let moved = lab.proxies[follower].add(Rule::new(SNAPSHOT, Fault::MoveTo(lab.cluster.endpoint(leader))));
    let run = lab.backup(3);
    assert_eq!(moved.count(), 1);
    let name = lab.cluster.name(follower);
    let ids: Vec<&str> =
        [follower, leader].iter().map(|&i| run.member(lab.cluster.name(i))["id"].as_str().unwrap()).collect();
    run.lacks(&[name]).says(&[name, lab.cluster.advertised(follower), ids[0], ids[1], "is not one member"]);
    assert_eq!(lab.calls(follower, STATUS), 2);
}
