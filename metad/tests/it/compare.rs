//! Metads compare their states at one position of the log, and a check lets in one at a time.

use super::cluster::{Cluster, LIMIT, endpoint};
use metad::fs::inode::Inode;
use metad::fs::keys;
use metad::fs::view::{Changes, Kv};
use metad::store::Store;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wire::codec;
use wire::ids::Ino;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::check::{CheckId, CheckReply, CheckRequest, DigestState, StateDigest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

async fn ask(cluster: &Cluster, admin: &Endpoint, id: u64, check: CheckId) -> DigestState {
    let peer = admin.peer(cluster.nodes[&id].local_addr(), Role::Metad);
    let request = MetaRequest::Admin(AdminRequest::Check(CheckRequest::Digest(check)));
    let begun = Instant::now();
    loop {
        match peer.request::<_, MetaReply>(&request, &[], LIMIT).await.unwrap().0 {
            MetaReply::Admin(AdminReply::Check(CheckReply::Digest(state))) => return state,
            // It has not heard from a leader yet.
            MetaReply::NotLeader(_) if begun.elapsed() < LIMIT => tokio::time::sleep(Duration::from_millis(20)).await,
            other => panic!("{other:?}"),
        }
    }
}

/// Returns the digest of each node's state at one mark, while something is written.
async fn digests(cluster: &Cluster, admin: &Endpoint) -> BTreeMap<u64, StateDigest> {
    let mut session = cluster.session().await;
    let AdminReply::Check(CheckReply::Begun { check, .. }) =
        cluster.admin(AdminRequest::Check(CheckRequest::Begin)).await
    else {
        panic!("no check")
    };
    for id in cluster.nodes.keys() {
        assert_eq!(ask(cluster, admin, *id, check).await, DigestState::Awaited);
    }
    let marked = cluster.admin(AdminRequest::Check(CheckRequest::Mark(check))).await;
    assert!(matches!(marked, AdminReply::Check(CheckReply::Marked)), "{marked:?}");
    for number in 0..50 {
        session.create(&format!("{}-{number}", check.0)).await;
    }
    let (mut found, begun) = (BTreeMap::new(), Instant::now());
    for id in cluster.nodes.keys() {
        loop {
            match ask(cluster, admin, *id, check).await {
                DigestState::Done(digest) => {
                    found.insert(*id, digest);
                    break;
                }
                DigestState::GivenUp(reason) => panic!("metad-{id}: {reason}"),
                _ => assert!(begun.elapsed() < LIMIT, "metad-{id} makes no progress"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.admin(AdminRequest::Check(CheckRequest::End(check))).await;
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn metads_have_equal_digests_until_the_disk_of_one_changes_a_byte() {
    let mut cluster = Cluster::start(3).await;
    let admin = endpoint(&cluster.ca, Role::Admin);
    cluster.session().await.create("before").await;
    let found = digests(&cluster, &admin).await;
    assert!(found.len() == 3 && found.values().all(|digest| *digest == found[&1]), "{found:?}");

    let leader = cluster.leader().await;
    let damaged = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    cluster.stop_node(damaged).await;
    {
        let dir = cluster.dir.path().join(format!("metad-{damaged}")).join("state");
        let store = Store::open(&dir, 8 << 20).unwrap();
        let mut root: Inode = codec::decode(&store.get(&keys::inode(Ino::ROOT)).unwrap()).unwrap();
        root.attr.uid ^= 1;
        let position = store.position().unwrap();
        store.apply(Changes::from([(keys::inode(Ino::ROOT), Some(codec::encode(&root)))]), &position);
        store.close().unwrap();
    }
    cluster.start_node(damaged).await;
    let found = digests(&cluster, &admin).await;
    let differ: Vec<u64> = found.iter().filter(|(_, digest)| **digest != found[&leader]).map(|(id, _)| *id).collect();
    assert_eq!(differ, [damaged], "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_check_goes_on_at_a_time_and_the_next_one_is_told_whose_it_is() {
    let cluster = Cluster::start(1).await;
    let begin = || cluster.admin(AdminRequest::Check(CheckRequest::Begin));
    let AdminReply::Check(CheckReply::Begun { check, .. }) = begin().await else { panic!("no check") };
    match begin().await {
        AdminReply::Failed(reason) => assert!(reason.contains("busy") && reason.contains("test at 127."), "{reason}"),
        other => panic!("{other:?}"),
    }
    let extended = cluster.admin(AdminRequest::Check(CheckRequest::Extend(check))).await;
    assert!(matches!(extended, AdminReply::Check(CheckReply::Extended)), "{extended:?}");
    cluster.admin(AdminRequest::Check(CheckRequest::End(check))).await;
    assert!(matches!(begin().await, AdminReply::Check(CheckReply::Begun { .. })));
}
