//! Peers that send a block daemon false messages: each harms only itself.

use super::daemon_cluster::{Cluster, LIMIT, caller, identity, random_block};
use blockd::{Config, LayoutSource, Node};
use std::time::Duration;
use tokio::sync::watch;
use wire::Error;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Role};

/// Asserts that a put as an honest client sends it reaches all daemons. On a busy machine a daemon may really be too slow
/// for one; a suspicion would last for seconds, and the next one would not reach it either.
async fn assert_stores_on_all(cluster: &Cluster, what: &str) {
    let (mut synced, mut failed, _) = cluster.put(&random_block(50_000)).await;
    if !failed.is_empty() {
        (synced, failed, _) = cluster.put(&random_block(50_000)).await;
    }
    assert_eq!((synced.len(), failed.len()), (3, 0), "{what}: {failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_short_deadlines_make_no_daemon_suspect() {
    let cluster = Cluster::start(3).await;
    let liar = caller(&cluster.ca, Role::Client);
    for round in 0..20 {
        let block = random_block(50_000);
        let hash = BlockHash::of(&block);
        let layout = cluster.layout();
        let owners = layout.owners(&hash);
        let chain = owners[1..].iter().map(|owner| owner.id).collect();
        let request = BlockRequest::Put { hash, epoch: layout.epoch, chain, needed: 3, origin: None };
        for deadline_ms in [1, 2, 5] {
            let peer = liar.peer(owners[0].addr, Role::Blockd);
            let deadline = Duration::from_millis(deadline_ms);
            let _ = peer.request::<_, BlockReply>(&request, std::slice::from_ref(&block), deadline).await;
        }
        assert_stores_on_all(&cluster, &format!("round {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_never_comes_or_does_not_match_its_name_makes_no_daemon_suspect() {
    let cluster = Cluster::start(3).await;
    let liar = caller(&cluster.ca, Role::Client);
    let layout = cluster.layout();
    let ids: Vec<BlockdId> = layout.members.iter().map(|member| member.id).collect();
    let hash = BlockHash::of(b"something else");
    let request = BlockRequest::Put { hash, epoch: layout.epoch, chain: ids[1..].to_vec(), needed: 3, origin: None };
    let first = liar.peer(layout.members[0].addr, Role::Blockd);
    let wrong = first.request::<_, BlockReply>(&request, &[random_block(300_000)], LIMIT).await;
    assert!(matches!(wrong, Err(Error::Refused { .. })), "{wrong:?}");
    assert_stores_on_all(&cluster, "a payload of another name").await;
    let open = first.open_request(&request, 1 << 20, Duration::from_millis(300)).await.unwrap();
    let _ = open.finish::<BlockReply>().await;
    assert_stores_on_all(&cluster, "a payload that never came").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_connects_to_no_member_that_a_client_made_up() {
    let cluster = Cluster::start(3).await;
    let block = random_block(1_000);
    let stranger = BlockdId([7; 16]);
    let request = BlockRequest::Put {
        hash: BlockHash::of(&block),
        epoch: LayoutEpoch(1),
        chain: vec![stranger],
        needed: 2,
        origin: None,
    };
    let client = caller(&cluster.ca, Role::Client);
    let peer = client.peer(cluster.node(0).local_addr(), Role::Blockd);
    match peer.request::<_, BlockReply>(&request, std::slice::from_ref(&block), LIMIT).await.unwrap().0 {
        BlockReply::Stored { synced, failed, .. } => {
            assert_eq!(synced, [cluster.node(0).id()]);
            assert!(failed.len() == 1 && failed[0].0 == stranger && failed[0].1.contains("member"), "{failed:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_stores_on_all(&cluster, "after").await;
}

/// Guards I10.
#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_wants_everything_dropped_at_once_drops_nothing_new() {
    let ca = ClusterCa::create("test").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), dir.path(), Vec::new());
    let (_layout, given) = watch::channel(Layout::default());
    let node = Node::start_with(config, identity(&ca, Role::Blockd, "b1"), LayoutSource::Given(given)).await.unwrap();
    let ask = async |endpoint: &Endpoint, request: &BlockRequest, payload: &[bytes::Bytes]| {
        let peer = endpoint.peer(node.local_addr(), Role::Blockd);
        peer.request::<_, BlockReply>(request, payload, LIMIT).await.unwrap().0
    };
    let (client, removed) = (caller(&ca, Role::Client), caller(&ca, Role::Metad));
    let block = random_block(1_000);
    let hash = BlockHash::of(&block);
    let put = BlockRequest::Put { hash, epoch: LayoutEpoch(0), chain: Vec::new(), needed: 1, origin: None };
    assert!(matches!(ask(&client, &put, &[block]).await, BlockReply::Stored { .. }));
    let dropped =
        ask(&removed, &BlockRequest::Drop { hashes: vec![hash], epoch: LayoutEpoch(u64::MAX), grace_ms: 0 }, &[]).await;
    assert!(matches!(&dropped, BlockReply::Dropped(hashes) if hashes.is_empty()), "{dropped:?}");
    let get = BlockRequest::Get { hash, epoch: LayoutEpoch(0), offset: 0, len: u32::MAX };
    assert!(matches!(ask(&client, &get, &[]).await, BlockReply::Content { .. }));
    node.stop().await;
}
