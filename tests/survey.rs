//! What a survey says of a real server's snapshot is what that server, and the stock tool, say themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;

use etcd_client::{Client, CompactionOptions, DeleteOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use etcd_dr::etcd::{
    bbolt::Db,
    mvcc::{At, Incomparable},
    survey::{Oddity, Survey, Wants, survey},
};
use servers::{
    Series, ask,
    etcd::{Cluster, Options},
    fill, offline, wait,
};
use std::fs::{self, File};
use std::path::Path;

fn start(series: Series) -> Cluster {
    Cluster::start(1, Options { series, ..Options::default() })
}

/// The member's snapshot, surveyed.
fn look(cluster: &Cluster, path: &Path) -> Survey {
    fs::write(path, ask::snapshot(&cluster.client(0))).unwrap();
    survey(&Db::open(File::open(path).unwrap()).unwrap(), &Wants { depth: 2, largest: 5 }).unwrap()
}

/// The member answers HashKV at these revisions as the survey computes it.
fn equal(client: &Client, survey: &Survey, revisions: impl IntoIterator<Item = i64>) {
    for revision in revisions {
        let live = ask::hash_kv(client, revision);
        let at = At { revision, compact_revision: live.compact_revision };
        assert_eq!(survey.hash_kv_at(at), Ok(live.hash), "{at:?}");
    }
}

/// Puts, transactions, deletes, and births after deletes: one call, some 60 revisions.
fn write(client: &Client, round: usize) -> i64 {
    let mut client = client.clone();
    wait(async move {
        let mut revision = 0;
        for i in 0..40 {
            let value = vec![b'a'; (i * 37 + round * 11) % 900];
            let put = client.put(format!("/app/{}/{}", i % 3, (i * 7) % 25), value, None).await.unwrap();
            revision = put.header().unwrap().revision();
            if i % 4 == 0 {
                let gone = client.delete(format!("/app/{}/{}", (i / 4) % 3, (i * 3) % 25), None).await.unwrap();
                revision = gone.header().unwrap().revision();
            }
            if i % 8 == 0 {
                let both = [
                    TxnOp::put(format!("/app/txn/{i}"), "one", None),
                    TxnOp::delete(format!("/app/2/{}", (i * 5) % 25), None),
                    TxnOp::put("plain", format!("{round} {i}"), None),
                ];
                let both = client.txn(Txn::new().and_then(both)).await.unwrap();
                revision = both.header().unwrap().revision();
            }
        }
        revision
    })
}

fn compact(client: &Client, revision: i64) {
    let mut client = client.clone();
    wait(async move { client.compact(revision, Some(CompactionOptions::new().with_physical())).await }).unwrap();
}

/// What the stock tool of that series says of the file.
fn status(series: Series, path: &Path) -> serde_json::Value {
    let output = offline(series).args(["snapshot", "status", "-w", "json"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn like_the_stock_tool(series: Series, path: &Path, survey: &Survey) {
    let status = status(series, path);
    let keys = if series == Series::V3_6 { survey.total_keys } else { survey.total_rows };
    let found = [u64::from(survey.status_hash), survey.last_row_revision.cast_unsigned(), keys, survey.total_size];
    let told = ["hash", "revision", "totalKey", "totalSize"].map(|field| status[field].as_u64().unwrap());
    assert_eq!(found, told, "{status}");
}

fn agrees_with_servers_of(series: Series) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.db");
    let cluster = start(series);
    let client = cluster.client(0);

    let never = look(&cluster, &path);
    assert_eq!((never.revision, never.compact_revision), (1, -1));
    like_the_stock_tool(series, &path, &never);

    let first = write(&client, 1);
    let second = write(&client, 2);
    let whole = look(&cluster, &path);
    assert_eq!((whole.revision, whole.compact_revision), (second, -1));
    equal(&client, &whole, [2, 3, first, first + 1, second - 1, second]);
    like_the_stock_tool(series, &path, &whole);

    // The server is compacted further than the file: the file answers for it, with rows that the server has no more.
    compact(&client, first + 5);
    // Before 3.4.27 a member does not answer at its compact revision itself.
    let lowest = if series == Series::V3_4 { first + 6 } else { first + 5 };
    equal(&client, &whole, [lowest, first + 7, second]);
    let third = write(&client, 3);
    let later = look(&cluster, &path);
    assert_eq!((later.revision, later.compact_revision), (third, first + 5));
    assert!(later.history.rows() < whole.history.rows() + 80);
    equal(&client, &later, [first + 6, second, second + 1, third - 1, third]);
    like_the_stock_tool(series, &path, &later);
    let before = At { revision: second, compact_revision: -1 };
    assert_eq!(later.hash_kv_at(before), Err(Incomparable::Compacted { own: first + 5, asked: -1 }));

    // Compacted at its own revision, where the newest row may be a tombstone.
    let mut deleting = client.clone();
    let gone = wait(async move { deleting.delete("plain", None).await }).unwrap().header().unwrap().revision();
    compact(&client, gone);
    let edge = look(&cluster, &path);
    assert_eq!((edge.revision, edge.compact_revision), (gone, gone));
    // Asked for its newest, a member does not answer what it remembers from the compaction.
    let live = ask::hash_kv(&client, 0);
    assert_eq!((live.revision, live.compact_revision, live.hash), (gone, gone, edge.hash_kv));
    like_the_stock_tool(series, &path, &edge);
    let fourth = write(&client, 4);
    equal(&client, &look(&cluster, &path), [gone + 1, fourth]);
    // 3.4.23 removes the tombstone at the compact revision, and would start again at the revision before: what the oddity is for.
    let last = edge.last_row_revision;
    let below = Oddity::RevisionBelowCompact { last, compacted: gone };
    assert_eq!(edge.oddities, if series == Series::V3_4 { vec![below] } else { vec![] });
}

#[test]
fn a_survey_agrees_with_servers_of_3_4() {
    agrees_with_servers_of(Series::V3_4);
}

#[test]
fn a_survey_agrees_with_servers_of_3_5() {
    agrees_with_servers_of(Series::V3_5);
}

#[test]
fn a_survey_agrees_with_servers_of_3_6() {
    agrees_with_servers_of(Series::V3_6);
}

#[test]
fn without_a_live_key_the_answers_are_equal_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.db");
    let cluster = start(Series::V3_6);
    let client = cluster.client(0);
    let last = write(&client, 1);
    let mut deleting = client.clone();
    let all = DeleteOptions::new().with_all_keys();
    let empty = wait(async move { deleting.delete("", Some(all)).await }).unwrap().header().unwrap().revision();
    assert_eq!(empty, last + 1);
    let whole = look(&cluster, &path);
    assert_eq!(whole.total_keys, 0);
    equal(&client, &whole, [last, empty]);
    // The file is asked as the server is that has removed rows since.
    compact(&client, last - 10);
    equal(&client, &whole, [last, empty]);
    equal(&client, &look(&cluster, &path), [last, empty]);
    compact(&client, empty);
    let live = ask::hash_kv(&client, 0);
    assert_eq!(whole.hash_kv_at(At { revision: empty, compact_revision: empty }), Ok(live.hash));
    assert_eq!(look(&cluster, &path).hash_kv, live.hash);
}

#[test]
fn the_first_users_cluster_is_seen_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.db");
    let cluster = start(Series::V3_6);
    let mut client = cluster.client(0);
    let filled = fill::homelab(&client);
    let survey = look(&cluster, &path);
    assert_eq!((survey.revision, survey.compact_revision), (filled.revision, filled.compacted));
    like_the_stock_tool(Series::V3_6, &path, &survey);
    equal(&client, &survey, [filled.compacted + 1, filled.revision]);

    assert!(survey.has_trailer && survey.surplus_bytes == 0);
    assert_eq!((survey.schema, survey.meta.storage_version.as_deref()), ((3, 6), Some("3.6.0")));
    assert_eq!(survey.cluster.version.as_deref(), Some("3.6.0"));
    let members: Vec<_> = survey.members.values().map(|m| (m.name.as_str(), m.learner)).collect();
    assert_eq!(members, [(cluster.name(0), false)]);
    let voters = &survey.meta.conf_state.as_ref().unwrap().voters;
    assert_eq!(voters, &survey.members.keys().copied().collect::<Vec<_>>());
    let leases: Vec<i64> = ask::leases(&client).into_iter().map(|(id, _)| id).collect();
    let found: std::collections::BTreeSet<i64> = survey.leases.iter().map(|l| l.id).collect();
    assert!(!leases.is_empty() && found == leases.into_iter().collect());
    assert_eq!(survey.oddities, []);

    let counted = |prefix: &str| {
        let mut client = client.clone();
        let prefix = format!("{prefix}/");
        let count = etcd_client::GetOptions::new().with_prefix().with_count_only();
        wait(async move { client.get(prefix, Some(count)).await }).unwrap().count()
    };
    assert!(survey.prefixes.len() > 5);
    for (prefix, usage) in &survey.prefixes {
        let prefix = std::str::from_utf8(prefix).unwrap();
        // Those of two segments, which hold all that lies under them.
        if prefix.matches('/').count() != 2 {
            continue;
        }
        assert_eq!(i64::try_from(usage.keys).unwrap(), counted(prefix), "{prefix}");
    }
    let largest = &survey.largest[0];
    let key = largest.key.clone();
    let got = wait(async move { client.get(key, None).await }).unwrap();
    let kv = &got.kvs()[0];
    let found = (largest.value_bytes as usize, largest.mod_revision, largest.version);
    assert_eq!(found, (kv.value().len(), kv.mod_revision(), kv.version()));
}

#[test]
fn auth_and_leases_are_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.db");
    let cluster = start(Series::V3_6);
    let mut client = cluster.client(0);
    let before = look(&cluster, &path);
    assert_eq!((before.auth.enabled, before.auth.has_root(), before.auth.users.len()), (false, false, 0));
    wait(async move {
        let lease = LeaseGrantOptions::new().with_id(0x7777);
        client.lease_grant(600, Some(lease)).await.unwrap();
        client.put("/leased", "x", Some(PutOptions::new().with_lease(0x7777))).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_add("root", "secret", None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.role_add("reader").await.unwrap();
        let all = etcd_client::Permission::read("/").with_prefix();
        client.role_grant_permission("reader", all).await.unwrap();
        client.user_add("ci", "secret", None).await.unwrap();
        client.user_grant_role("ci", "reader").await.unwrap();
    });
    // Not yet enabled: a snapshot needs no token.
    let survey = look(&cluster, &path);
    assert!(!survey.auth.enabled && survey.auth.has_root());
    assert_eq!(survey.auth.users["ci"].roles, ["reader"]);
    assert_eq!(survey.auth.roles["reader"].permissions, 1);
    assert!(survey.auth.revision > before.auth.revision);
    assert_ne!(survey.auth_digest, before.auth_digest);
    assert_eq!(survey.leases.iter().map(|l| (l.id, l.ttl)).collect::<Vec<_>>(), [(0x7777, 600)]);
    assert_ne!(survey.lease_digest, before.lease_digest);
    assert_eq!(survey.oddities, []);

    let mut client = cluster.client(0);
    wait(async move { client.auth_enable().await }).unwrap();
    cluster.stop_member(0);
    let db = File::open(cluster.data_dir(0).join("member/snap/db")).unwrap();
    let stopped = survey_of(&db);
    assert!(stopped.auth.enabled && stopped.auth.has_root() && !stopped.has_trailer);
    assert!(!stopped.oddities.contains(&Oddity::NoRoot));
    assert_eq!(stopped.hash_kv, survey.hash_kv);
}

fn survey_of(db: &File) -> Survey {
    survey(&Db::open(db).unwrap(), &Wants::default()).unwrap()
}
