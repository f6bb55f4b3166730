//! What a restore decides, case by case: members, ids, token, bump, what stands in the way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::path::PathBuf;

use etcd_dr::{
    etcd::{Series, membership},
    plan::restore::{
        Asked, Draft, Ground, Here, LEAST_BUMP, Living, Place, PlanFault, Recorded, Refusal, RestorePlan, Seen,
        SourceFacts, Stands, draft, parse, repeat,
    },
    record::{EtcdId, Sha256Hex},
};
use jiff::Timestamp;
use proptest::prelude::*;

const TOKEN: &str = "etcd-dr-fresh";

fn recorded(name: &str, url: &str) -> Recorded {
    Recorded { name: name.to_owned(), peer_urls: vec![url.to_owned()], learner: false }
}

/// Three control-plane nodes, revision 8,123,456.
fn source() -> SourceFacts {
    SourceFacts {
        source: "20261122T020000Z-7f3a".to_owned(),
        backup: Some("20261122T020000Z-7f3a".parse().unwrap()),
        from: Some("cp1".to_owned()),
        file: "/backup/etcd/20261122T020000Z-7f3a/etcd-cp1.db.zst.age".to_owned(),
        sha256: Sha256Hex([7; 32]),
        bytes: 100 << 20,
        revision: 8_123_456,
        compact_revision: 8_123_000,
        hash_kv: Some(0x5f1c_22a0),
        etcd: Series::V3_6,
        cluster: Some(EtcdId(0xabc)),
        members: vec![
            recorded("cp3", "https://192.0.2.13:2380"),
            recorded("cp1", "https://192.0.2.11:2380"),
            recorded("cp2", "https://192.0.2.12:2380"),
        ],
        alarms: Vec::new(),
        kubernetes: true,
    }
}

fn cp2() -> Here {
    Here { addresses: vec!["192.0.2.12".parse().unwrap()], names: vec!["cp2".to_owned()] }
}

fn told() -> Asked {
    Asked { token: Some("one".to_owned()), bump: Some(LEAST_BUMP), ..Asked::default() }
}

fn seen(revision: i64) -> Vec<Seen> {
    vec![Seen { revision, by: "the journal".to_owned() }]
}

fn now() -> Timestamp {
    "2026-11-22T03:04:05Z".parse().unwrap()
}

fn place(path: &str, stands: Stands) -> Place {
    Place { path: path.into(), stands, mount_point: false, in_use: None, device: 1, free: 10 << 30 }
}

fn ground(member: &str, stands: Stands) -> Ground {
    Ground { member: member.to_owned(), data: place("/var/lib/etcd", stands), wal: None }
}

fn occupied() -> Stands {
    Stands::Directory { member: true, others: Vec::new() }
}

fn dead() -> Living {
    Living { asked: true, answering: Vec::new() }
}

fn drafted(asked: &Asked, source: &SourceFacts) -> Result<Draft, Refusal> {
    draft(asked, source, &[], &cp2(), TOKEN)
}

fn settled(asked: &Asked, source: &SourceFacts) -> RestorePlan {
    drafted(asked, source).unwrap().settle(&[ground("cp2", Stands::Nothing)], &dead(), now()).unwrap()
}

#[test]
fn the_recorded_voting_members_are_restored_and_this_host_is_found_by_its_address() {
    let mut source = source();
    source.members.push(Recorded { learner: true, ..recorded("cp4", "https://192.0.2.14:2380") });
    source.members.push(recorded("", "https://192.0.2.15:2380"));
    let plan = settled(&told(), &source);
    let names: Vec<_> = plan.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["cp1", "cp2", "cp3"]);
    let written: Vec<_> = plan.written().map(|member| (member.name.as_str(), member.data_dir.clone())).collect();
    assert_eq!(written, [("cp2", PathBuf::from("./cp2.etcd"))]);
    assert_eq!(plan.token, "one");
    assert_eq!(
        plan.initial_cluster(),
        "cp1=https://192.0.2.11:2380,cp2=https://192.0.2.12:2380,cp3=https://192.0.2.13:2380"
    );
    let warnings = plan.warnings.join("\n");
    assert!(warnings.contains("cp4, a learner"), "{warnings}");
    assert!(warnings.contains("never started, at https://192.0.2.15:2380"), "{warnings}");
}

#[test]
fn ids_come_from_the_urls_and_the_token_alone() {
    let text = "m1=http://127.0.0.1:21380,m2=http://127.0.0.1:22380,m3=http://127.0.0.1:23380";
    let asked = Asked {
        initial_cluster: Some(text.to_owned()),
        token: Some("tok".to_owned()),
        output_dir: Some("/out".into()),
        ..Asked::default()
    };
    let plan = drafted(&asked, &source()).unwrap().settle(&[], &dead(), now()).unwrap();
    assert_eq!(plan.cluster_id.to_string(), "ec9dd700b0959a79");
    let ids: Vec<_> = plan.members.iter().map(|member| member.id.to_string()).collect();
    assert_eq!(ids, ["95dcb2c5cb1427d6", "117b9266988c4966", "599de7774412011f"]);
    assert_eq!(plan.members[1].data_dir, PathBuf::from("/out/m2"));
    assert!(plan.members.iter().all(|member| member.write));
    assert!(plan.warnings.iter().any(|warning| warning.contains("loopback")), "{:?}", plan.warnings);
}

#[test]
fn one_of_several_needs_what_the_other_hosts_know() {
    let source = source();
    let alone = Asked::default();
    let refusal = drafted(&alone, &source).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Separate { member: "cp2".to_owned(), members: 3, snapshot: "20261122T020000Z-7f3a".to_owned() }
    );
    for asked in [
        Asked { token: Some("one".to_owned()), ..Asked::default() },
        Asked { bump: Some(LEAST_BUMP), ..Asked::default() },
    ] {
        assert!(matches!(drafted(&asked, &source), Err(Refusal::Separate { .. })));
    }
    for asked in [
        told(),
        Asked { bump: Some(0), ..told() },
        Asked { dry_run: true, ..Asked::default() },
        Asked { output_dir: Some("/out".into()), ..Asked::default() },
        Asked { initial_cluster: Some("cp2=https://192.0.2.12:2380".to_owned()), ..Asked::default() },
    ] {
        drafted(&asked, &source).unwrap();
    }
}

#[test]
fn a_dry_run_anywhere_makes_the_plan_that_every_host_follows() {
    let source = source();
    let nowhere = Here::default();
    let asked = Asked { dry_run: true, data_dir: Some("/var/lib/etcd".into()), ..Asked::default() };
    let plan = draft(&asked, &source, &seen(8_200_000), &nowhere, TOKEN).unwrap().settle(&[], &dead(), now()).unwrap();
    assert_eq!(plan.written().count(), 0);
    let text = serde_json::to_vec(&plan).unwrap();
    let mut cluster = Vec::new();
    for name in ["cp1", "cp2", "cp3"] {
        let asked = Asked { member: Some(name.to_owned()), ..Asked::default() };
        let repeated = repeat(parse(&text).unwrap(), &asked, &source, &nowhere).unwrap();
        let repeated = repeated.settle(&[ground(name, Stands::Nothing)], &dead(), now()).unwrap();
        let written: Vec<_> = repeated.written().collect();
        assert_eq!((written.len(), written[0].name.as_str()), (1, name));
        assert_eq!(written[0].data_dir, PathBuf::from("/var/lib/etcd"));
        cluster.push((repeated.cluster_id, repeated.token.clone(), repeated.bump));
    }
    cluster.dedup();
    assert_eq!(cluster, [(plan.cluster_id, TOKEN.to_owned(), plan.bump)]);
}

#[test]
fn a_plan_is_followed_only_as_far_as_it_fits_itself_and_the_snapshot() {
    let source = source();
    let plan = settled(&told(), &source);
    let follow = |plan: RestorePlan| repeat(plan, &Asked::default(), &source, &cp2()).map(|_| ()).unwrap_err();
    assert!(repeat(plan.clone(), &Asked::default(), &source, &cp2()).is_ok());

    let token = RestorePlan { token: "another".to_owned(), ..plan.clone() };
    assert!(matches!(follow(token), Refusal::Plan(PlanFault::Id { .. })));
    let cluster = RestorePlan { cluster_id: EtcdId(1), ..plan.clone() };
    assert!(matches!(follow(cluster), Refusal::Plan(PlanFault::Id { .. })));
    let mut url = plan.clone();
    url.members[0].peer_urls = vec!["https://192.0.2.99:2380".to_owned()];
    assert!(matches!(follow(url), Refusal::Plan(PlanFault::Id { .. })));
    let mut twice = plan.clone();
    twice.members[0].peer_urls = twice.members[1].peer_urls.clone();
    assert!(matches!(follow(twice), Refusal::Members(membership::Error::SharedUrl { .. })));
    let nobody = RestorePlan { members: Vec::new(), ..plan.clone() };
    assert!(matches!(follow(nobody), Refusal::Members(membership::Error::Empty)));
    let other = RestorePlan { source_sha256: Sha256Hex([8; 32]), ..plan.clone() };
    assert!(matches!(follow(other), Refusal::OtherSource { .. }));
    let revision = RestorePlan { revision: 5, ..plan.clone() };
    assert!(matches!(follow(revision), Refusal::Plan(PlanFault::Revision { planned: 5, found: 8_123_456 })));
    let bump = RestorePlan { bump: i64::MAX, ..plan.clone() };
    assert!(matches!(follow(bump), Refusal::BumpOverflows { .. }));

    let text = serde_json::to_string(&plan).unwrap();
    for (json, fault) in [
        (String::new(), "understood"),
        ("[]".to_owned(), "schema"),
        ("{}".to_owned(), "schema is `none`"),
        (text.replace("restore/v1", "restore/v2"), "schema is `etcd-dr/restore/v2`"),
        (r#"{"schema":"etcd-dr/restore/v1","error":{"code":2,"message":"no member"}}"#.to_owned(), "no member"),
        (text.replace("\"token\"", "\"tokens\""), "token"),
    ] {
        let words = parse(json.as_bytes()).unwrap_err().to_string();
        assert!(words.contains(fault), "{words}");
    }
}

#[test]
fn who_is_meant_must_be_known() {
    let source = source();
    let name = |name: &str| Asked { member: Some(name.to_owned()), ..told() };
    let words = drafted(&name("cp9"), &source).unwrap_err().to_string();
    for choice in ["cp9", "cp1  https://192.0.2.11:2380", "cp3  https://192.0.2.13:2380"] {
        assert!(words.contains(choice), "{words}");
    }
    let cluster = Some("a=http://192.0.2.1:2380,b=http://192.0.2.2:2380".to_owned());
    let asked = Asked { initial_cluster: cluster, ..name("c") };
    assert!(matches!(drafted(&asked, &source), Err(Refusal::NotInInitialCluster { .. })));

    let elsewhere = Here { addresses: vec!["192.0.2.99".parse().unwrap()], names: vec!["admin".to_owned()] };
    let words = draft(&told(), &source, &[], &elsewhere, TOKEN).unwrap_err().to_string();
    assert!(words.contains("cp2  https://192.0.2.12:2380"), "{words}");
    let mut lab = source.clone();
    lab.members = vec![recorded("a", "http://lab:1380"), recorded("b", "http://LAB:2380")];
    let here = Here { addresses: Vec::new(), names: vec!["lab".to_owned()] };
    assert!(matches!(draft(&told(), &lab, &[], &here, TOKEN), Err(Refusal::SeveralHere { .. })));
    lab.members[1].peer_urls = vec!["http://[2001:db8::2]:2380".to_owned()];
    assert!(draft(&told(), &lab, &[], &here, TOKEN).is_ok(), "a host name, in whatever case");
    let here = Here { addresses: vec!["2001:db8::2".parse().unwrap()], names: Vec::new() };
    let found = draft(&told(), &lab, &[], &here, TOKEN).unwrap();
    assert_eq!(found.written().next().unwrap().name, "b");

    let asked = Asked { advertise: Some("https://192.0.2.99:2380".to_owned()), ..told() };
    assert!(matches!(drafted(&asked, &source), Err(Refusal::Advertise { .. })));
    let asked = Asked { advertise: Some("https://192.0.2.12:2380".to_owned()), ..told() };
    assert!(drafted(&asked, &source).is_ok());
}

#[test]
fn members_that_etcd_would_die_of_are_refused() {
    let cluster = |text: &str| {
        let asked =
            Asked { initial_cluster: Some(text.to_owned()), output_dir: Some("/out".into()), ..Asked::default() };
        drafted(&asked, &source()).map(|_| ())
    };
    cluster("a=http://h:1,a=https://[::1]:2,b=unix://x:1").unwrap();
    for text in ["", ",", "a", "a=", "=http://h:1", "a=http://h:1,b"] {
        assert!(
            matches!(cluster(text), Err(Refusal::Members(membership::Error::Entry(_) | membership::Error::Empty))),
            "{text}"
        );
    }
    for text in [
        "a=h:1",
        "a=ftp://h:1",
        "a=http://h",
        "a=http://h:99999",
        "a=http://h:1/",
        "a=http://:1",
        "a=http://::1:1",
        "a=http://u@h:1",
    ] {
        assert!(matches!(cluster(text), Err(Refusal::Members(membership::Error::Url { .. }))), "{text}");
    }
    for text in ["a=http://h:1,b=http://h:1", "a=http://h:1,a=http://h:1"] {
        assert!(matches!(cluster(text), Err(Refusal::Members(membership::Error::SharedUrl { .. }))), "{text}");
    }
    let mut twins = source();
    twins.members[1].name = "cp3".to_owned();
    assert_eq!(drafted(&told(), &twins).map(|_| ()), Err(Refusal::DuplicateName { name: "cp3".to_owned() }));
    twins.members.clear();
    assert!(matches!(drafted(&told(), &twins), Err(Refusal::NoMembers { .. })));
    twins.members = vec![Recorded { name: "cp1".to_owned(), peer_urls: Vec::new(), learner: false }];
    assert!(matches!(drafted(&told(), &twins), Err(Refusal::Members(membership::Error::Entry(_)))));
}

#[test]
fn the_old_clusters_ids_are_not_made_again() {
    let mut source = source();
    source.cluster = Some(settled(&told(), &source).cluster_id);
    assert!(matches!(drafted(&told(), &source), Err(Refusal::SameCluster { .. })));
    assert!(drafted(&Asked { token: Some("new".to_owned()), ..told() }, &source).is_ok());
    assert!(drafted(&Asked { force: true, ..told() }, &source).is_ok());
}

#[test]
fn the_bump_is_a_billion_at_least_and_twice_what_is_known_beyond() {
    let source = source();
    let asked = Asked { output_dir: Some("/out".into()), ..Asked::default() };
    let bump = |asked: &Asked, seen: &[Seen]| {
        let plan = draft(asked, &source, seen, &cp2(), TOKEN).unwrap().settle(&[], &dead(), now()).unwrap();
        (plan.bump, plan.bump_reason, plan.warnings.join("\n"))
    };
    assert_eq!(bump(&asked, &[]).0, LEAST_BUMP);
    assert_eq!(bump(&asked, &seen(8_123_456)).0, LEAST_BUMP);
    assert_eq!(bump(&asked, &seen(1)).0, LEAST_BUMP);
    let far = bump(&asked, &seen(8_123_456 + 700_000_000));
    assert_eq!(far.0, 1_400_000_000);
    assert!(far.1.contains("the journal knows of revision 708123456, 700000000 above"), "{}", far.1);
    let both = [seen(9_000_000), vec![Seen { revision: 2_008_123_456, by: "cp3".to_owned() }]].concat();
    assert_eq!(bump(&asked, &both).0, 4_000_000_000);
    let none = bump(&Asked { bump: Some(0), ..asked.clone() }, &seen(9_000_000));
    assert_eq!(none.0, 0);
    assert!(none.2.contains("begins at revision 8123456, and the journal knows of 9000000"), "{}", none.2);
    let little = bump(&Asked { bump: Some(10), ..asked.clone() }, &seen(9_000_000));
    assert!(little.0 == 10 && little.2.contains("8123466"), "{}", little.2);

    for bump in [i64::MAX, i64::MAX - 8_123_456, i64::MAX - 8_123_456 - LEAST_BUMP + 1] {
        let asked = Asked { bump: Some(bump), ..asked.clone() };
        assert!(matches!(drafted(&asked, &source), Err(Refusal::BumpOverflows { .. })), "{bump}");
    }
    assert!(matches!(drafted(&Asked { bump: Some(-1), ..asked }, &source), Err(Refusal::NegativeBump { .. })));
}

proptest! {
    #[test]
    fn a_restored_revision_is_above_all_that_is_known(revision in 1..=i64::MAX, known in 0..=i64::MAX) {
        let source = SourceFacts { revision, ..source() };
        let asked = Asked { output_dir: Some("/out".into()), ..Asked::default() };
        match draft(&asked, &source, &seen(known), &cp2(), TOKEN) {
            Ok(draft) => {
                let plan = draft.settle(&[], &dead(), now()).unwrap();
                prop_assert!(plan.bump >= LEAST_BUMP);
                prop_assert!(plan.revision_after() > known.max(revision));
                prop_assert!(plan.revision_after().checked_add(LEAST_BUMP).is_some());
            }
            Err(refusal) => {
                let overflows = matches!(refusal, Refusal::BumpOverflows { .. });
                prop_assert!(overflows);
                let needed = i128::from(known.saturating_sub(revision)).max(0) * 2;
                let needed = needed.max(i128::from(LEAST_BUMP)).min(i128::from(i64::MAX));
                prop_assert!(i128::from(revision) + needed + i128::from(LEAST_BUMP) > i128::from(i64::MAX));
            }
        }
    }
}

#[test]
fn what_stands_there_is_moved_aside_only_when_asked_and_never_what_is_not_etcds() {
    let source = source();
    let mounted = |stands| Ground {
        data: Place { mount_point: true, ..place("/var/lib/etcd", stands) },
        ..ground("cp2", Stands::Nothing)
    };
    let others = |member| Stands::Directory { member, others: vec!["keep".to_owned()] };
    let settle = |replace: bool, ground: Ground| {
        let asked = Asked { replace, ..told() };
        drafted(&asked, &source).unwrap().settle(&[ground], &dead(), now()).map(|plan| plan.moved_aside)
    };
    let empty = Stands::Directory { member: false, others: Vec::new() };
    assert_eq!(settle(false, ground("cp2", Stands::Nothing)).unwrap(), []);
    assert_eq!(settle(false, ground("cp2", empty.clone())).unwrap(), []);
    assert_eq!(settle(false, mounted(empty)).unwrap(), []);
    assert!(matches!(settle(true, ground("cp2", Stands::NotADirectory)), Err(Refusal::NotADirectory { .. })));
    for stands in [occupied(), others(true), others(false)] {
        let words = settle(false, ground("cp2", stands)).unwrap_err().to_string();
        assert!(words.contains("/var/lib/etcd exists, and holds") && words.contains("nothing was changed"), "{words}");
    }
    let moved = |ground| {
        let moved = settle(true, ground).unwrap();
        moved.iter().map(|moved| (moved.from.display().to_string(), moved.to.display().to_string())).collect::<Vec<_>>()
    };
    let whole = [("/var/lib/etcd".to_owned(), "/var/lib/etcd.etcd-dr-20261122T030405Z".to_owned())];
    let member = [("/var/lib/etcd/member".to_owned(), "/var/lib/etcd/member.etcd-dr-20261122T030405Z".to_owned())];
    assert_eq!(moved(ground("cp2", occupied())), whole);
    assert_eq!(moved(ground("cp2", others(true))), member);
    assert_eq!(moved(mounted(occupied())), member);
    assert!(moved(ground("cp2", others(false))).is_empty());

    let wal = |stands, mount_point| Ground {
        wal: Some(Place { mount_point, ..place("/wal/etcd", stands) }),
        ..ground("cp2", Stands::Nothing)
    };
    let files = Stands::Directory { member: false, others: vec!["0.wal".to_owned()] };
    assert!(matches!(settle(false, wal(files.clone(), false)), Err(Refusal::Exists { .. })));
    assert_eq!(
        moved(wal(files.clone(), false)),
        [("/wal/etcd".to_owned(), "/wal/etcd.etcd-dr-20261122T030405Z".to_owned())]
    );
    assert!(matches!(settle(true, wal(files, true)), Err(Refusal::MountedWal { .. })));
    let inside = Ground { wal: Some(place("/var/lib/etcd/wal", Stands::Nothing)), ..ground("cp2", Stands::Nothing) };
    assert!(matches!(settle(true, inside), Err(Refusal::SameTarget { .. })));
}

#[test]
fn a_living_quorum_a_running_etcd_and_a_full_disk_stop_it_in_this_order() {
    let source = source();
    let alive =
        |names: &[&str]| Living { asked: true, answering: names.iter().map(|name| (*name).to_owned()).collect() };
    let used = || {
        let mut ground = ground("cp2", occupied());
        ground.data.in_use = Some("/var/lib/etcd/member/snap/db".into());
        ground.data.free = 1 << 20;
        ground
    };
    let settle = |asked: &Asked, ground: Ground, living: &Living| {
        drafted(asked, &source).unwrap().settle(&[ground], living, now())
    };
    let replace = Asked { replace: true, ..told() };
    let two = alive(&["cp1", "cp3"]);
    assert!(matches!(settle(&told(), used(), &two), Err(Refusal::Exists { .. })));
    let words = settle(&replace, used(), &two).unwrap_err().to_string();
    assert!(words.contains("2 of 3") && words.contains("cp1, cp3"), "{words}");
    let force = Asked { force: true, ..replace.clone() };
    assert!(matches!(settle(&force, used(), &two), Err(Refusal::InUse { .. })));
    assert!(matches!(settle(&replace, used(), &alive(&["cp1"])), Err(Refusal::InUse { .. })));
    let mut full = used();
    full.data.in_use = None;
    let refusal = settle(&replace, full.clone(), &dead()).unwrap_err();
    let needed = (100 << 20) + (1 << 20) + 64_000_000;
    let path = PathBuf::from("/var/lib");
    assert_eq!(refusal, Refusal::NoRoom { path, free: 1 << 20, needed, members: 1 });
    full.data.free = needed;
    assert_eq!(settle(&replace, full.clone(), &dead()).unwrap().bytes, needed);

    let warned = |living: &Living| settle(&replace, full.clone(), living).unwrap().warnings.join("\n");
    assert!(warned(&alive(&["cp1"])).contains("cp1 still answers"));
    assert!(warned(&Living::default()).contains("nobody was asked"));
    assert_eq!(warned(&dead()), "");
}

#[test]
fn space_is_counted_by_file_system() {
    let source = source();
    let asked = Asked { output_dir: Some("/out".into()), ..Asked::default() };
    let each = (100 << 20) + (1 << 20) + 64_000_000;
    let grounds = |free: u64, devices: [u64; 3]| {
        let ground = |(index, device): (usize, u64)| Ground {
            member: format!("cp{index}"),
            data: Place { device, free, ..place(&format!("/out/cp{index}"), Stands::Nothing) },
            wal: None,
        };
        devices.into_iter().enumerate().map(ground).collect::<Vec<_>>()
    };
    let settle = |grounds: &[Ground]| drafted(&asked, &source).unwrap().settle(grounds, &dead(), now());
    assert!(matches!(settle(&grounds(3 * each - 1, [1, 1, 1])), Err(Refusal::NoRoom { members: 3, .. })));
    assert_eq!(settle(&grounds(3 * each, [1, 1, 1])).unwrap().bytes, 3 * each);
    assert!(settle(&grounds(2 * each, [1, 2, 1])).is_ok());
}

#[test]
fn alarms_and_other_releases_are_named() {
    let mut source = source();
    source.alarms = vec!["NOSPACE".to_owned()];
    let warnings = settled(&told(), &source).warnings.join("\n");
    assert!(warnings.contains("NOSPACE") && warnings.contains("--clear-alarms"), "{warnings}");
    assert!(settled(&Asked { clear_alarms: true, ..told() }, &source).warnings.is_empty());
    source.alarms.clear();
    let plan = settled(&Asked { etcd: Some(Series::V3_5), ..told() }, &source);
    assert_eq!(plan.etcd, Series::V3_5);
    assert!(plan.warnings.join("\n").contains("3.6"), "{:?}", plan.warnings);
}
