//! Real daemons on loopback: storing, serving, dropping, and what happens when one of them fails.

use crate::daemon_cluster::{Cluster, LIMIT, caller, flip_a_byte, identity, random_block, until};
use blockd::{Config, LayoutSource, Node};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use wire::Error;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};
use wire::tls::{ClusterCa, Role, Subject};

/// A layout at least as new as any other.
const NEWEST: LayoutEpoch = LayoutEpoch(u64::MAX);

/// Guards I9.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_lands_on_every_daemon_of_the_chain_and_survives_a_restart() {
    let mut cluster = Cluster::start(3).await;
    let blocks = [1, 100, 70_000, 4 << 20].map(random_block);
    for block in &blocks {
        // A daemon that keeps others waiting is skipped, which happens on a busy machine.
        let put_on_all = async || cluster.put(block).await.0.len() == 3;
        until("it is on all", put_on_all).await;
    }
    for index in 0..3 {
        cluster.stop(index).await;
        cluster.start_again(index).await;
        for block in &blocks {
            assert_eq!(&cluster.get(index, BlockHash::of(block)).await.unwrap(), block);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_a_block_is_served() {
    let cluster = Cluster::start(1).await;
    let block = random_block(100_000);
    let hash = BlockHash::of(&block);
    cluster.put(&block).await;
    for (offset, len, expected) in [(0, 10, 0..10), (99_990, 100, 99_990..100_000), (200_000, 1, 0..0)] {
        let request = BlockRequest::Get { hash, epoch: LayoutEpoch(1), offset, len };
        let (reply, bytes) = cluster.ask(0, &request).await;
        assert!(matches!(reply, BlockReply::Content { block_len: 100_000 }), "{reply:?}");
        assert_eq!(bytes, block[expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_daemon_in_the_middle_of_the_chain_is_skipped_and_reported() {
    let mut cluster = Cluster::start(3).await;
    let block = random_block(1 << 20);
    let owners: Vec<_> = cluster.layout().owners(&BlockHash::of(&block)).iter().map(|owner| owner.id).collect();
    let middle = cluster.index_of(owners[1]);
    cluster.nodes[middle].take(); // dropped: no goodbye to anyone
    let (synced, failed, _) = cluster.put(&block).await;
    assert_eq!(synced, [owners[0], owners[2]]);
    assert_eq!(failed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [owners[1]]);
    let again = Instant::now();
    let (synced, ..) = cluster.put_to_some(&block, 2).await;
    assert_eq!(synced, [owners[0], owners[2]]);
    assert!(again.elapsed() < Duration::from_millis(500), "it is not waited for again where others can do");
}

/// Guards I9.
#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_does_not_match_its_name_is_refused_by_all() {
    let cluster = Cluster::start(2).await;
    let hash = BlockHash::of(b"something else");
    let chain = vec![cluster.node(1).id()];
    let request = BlockRequest::Put { hash, epoch: LayoutEpoch(1), chain, needed: 1, origin: None };
    let client = caller(&cluster.ca, Role::Client);
    let peer = client.peer(cluster.node(0).local_addr(), Role::Blockd);
    let put = peer.request::<_, BlockReply>(&request, &[random_block(300_000)], LIMIT).await;
    assert!(matches!(put, Err(Error::Refused { .. })), "{put:?}");
    for index in 0..2 {
        assert!(matches!(cluster.get(index, hash).await, Err(BlockReply::NotHere { corrupt: false, .. })));
    }
}

/// Guards I9.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_never_served_and_is_repaired_from_another_daemon() {
    let cluster = Cluster::start(3).await;
    let block = random_block(200_000);
    let hash = BlockHash::of(&block);
    cluster.put(&block).await;
    assert!(flip_a_byte(cluster.dir(0), &block).await);
    // On a slow machine, connections may be lost meanwhile, and an answer with them: that says nothing of the copies.
    let serves = async |index: usize| {
        let get = BlockRequest::Get { hash, epoch: LayoutEpoch(1), offset: 0, len: u32::MAX };
        match cluster.ask_as(&cluster.client, index, &get).await {
            Ok((BlockReply::Content { .. }, copy)) => {
                assert!(copy == block, "a damaged copy is served");
                true
            }
            Ok((BlockReply::NotHere { .. }, _)) | Err(_) => false,
            Ok((other, _)) => panic!("{other:?}"),
        }
    };
    let metrics = cluster.node(0).metrics();
    until("others serve it, and the copy is found to be damaged", async || {
        serves(0).await;
        serves(1).await && metrics.corrupt.get() == 1
    })
    .await;
    until("the copy is repaired", async || serves(0).await).await;
    assert_eq!((metrics.corrupt.get(), metrics.repaired.get()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_with_a_restriction_that_nobody_enforces_is_refused() {
    let cluster = Cluster::start(1).await;
    // Clients alone are confined.
    let mut subject = Subject::new(Role::Blockd, "confined");
    subject.grant.subtree = Some("/home".to_owned());
    let identity = cluster.ca.issue(&subject).unwrap();
    let confined = wire::quic::Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
    let get = BlockRequest::Get { hash: BlockHash::of(b"x"), epoch: LayoutEpoch(1), offset: 0, len: 1 };
    let peer = confined.peer(cluster.node(0).local_addr(), Role::Blockd);
    let refused = peer.request::<_, BlockReply>(&get, &[], LIMIT).await.unwrap_err().to_string();
    assert!(refused.contains("confined") && refused.contains("does not enforce"), "{refused}");
}

/// Guards I10.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_spares_what_was_renewed_within_the_grace_period() {
    let mut cluster = Cluster::start(1).await;
    let block = random_block(5000);
    let hash = BlockHash::of(&block);
    cluster.put(&block).await;
    let drop = |grace_ms| BlockRequest::Drop { hashes: vec![hash], epoch: NEWEST, grace_ms };
    let dropped = cluster.ask_as_metad(0, &drop(60_000)).await;
    assert!(matches!(&dropped, BlockReply::Dropped(hashes) if hashes.is_empty()), "{dropped:?}");
    // After a restart, a block's age counts from the start.
    cluster.stop(0).await;
    cluster.start_again(0).await;
    let dropped = cluster.ask_as_metad(0, &drop(60_000)).await;
    assert!(matches!(&dropped, BlockReply::Dropped(hashes) if hashes.is_empty()), "{dropped:?}");
    assert_eq!(cluster.get(0, hash).await.unwrap(), block);
    // A metad whose cluster was recovered elsewhere knows less than this daemon.
    let late = BlockRequest::Drop { hashes: vec![hash], epoch: LayoutEpoch(0), grace_ms: 0 };
    let dropped = cluster.ask_as_metad(0, &late).await;
    assert!(matches!(&dropped, BlockReply::Dropped(hashes) if hashes.is_empty()), "{dropped:?}");
    let dropped = cluster.ask_as_metad(0, &drop(0)).await;
    assert!(matches!(&dropped, BlockReply::Dropped(hashes) if hashes == &[hash]), "{dropped:?}");
    assert!(cluster.get(0, hash).await.is_err());
}

/// Guards I11.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_with_an_old_layout_gets_the_new_one() {
    let cluster = Cluster::start(1).await;
    until("the layout has arrived", async || cluster.node(0).layouts().newest().epoch == LayoutEpoch(1)).await;
    let block = random_block(10);
    let request = BlockRequest::Get { hash: BlockHash::of(&block), epoch: LayoutEpoch(0), offset: 0, len: 1 };
    let (reply, _) = cluster.ask(0, &request).await;
    assert!(
        matches!(&reply, BlockReply::NotHere { layout: Some(layout), .. } if layout.members.len() == 1),
        "{reply:?}"
    );
    let (_, _, layout) = cluster.put(&block).await;
    assert!(layout.is_none(), "the sender's was the newest");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_probes_report_the_blocks_that_are_here() {
    let cluster = Cluster::start(1).await;
    let mut hashes = Vec::new();
    for len in 1..=5 {
        let block = random_block(len);
        cluster.put(&block).await;
        hashes.push(BlockHash::of(&block));
    }
    hashes.sort();
    let list = BlockRequest::List { from: hashes[1], last: hashes[4], limit: 3 };
    let BlockReply::Blocks(page) = cluster.ask_as_metad(0, &list).await else { panic!("no list") };
    assert_eq!(page.iter().map(|(hash, _)| *hash).collect::<Vec<_>>(), hashes[1..4]);
    let probe = BlockRequest::Probe { epoch: LayoutEpoch(1), hashes: vec![hashes[0], BlockHash([0; 32])] };
    let BlockReply::Present(present) = cluster.ask_as_metad(0, &probe).await else { panic!("no answer") };
    assert_eq!(present, [true, false]);
    assert_eq!(cluster.status(0).await.block_count, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_does_not_start_with_a_role_files_or_a_port_that_are_not_its_own() {
    let ca = ClusterCa::create("t").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let start = async |name: &str, role, listen: &str| {
        let config = Config::new(name, listen.parse().unwrap(), dir.path(), Vec::new());
        let (_, layouts) = watch::channel(Layout::default());
        let node = Node::start_with(config, identity(&ca, role, name), LayoutSource::Given(layouts)).await;
        node.map_err(|error| error.to_string())
    };
    assert!(start("b1", Role::Client, "127.0.0.1:0").await.err().unwrap().contains("role client"));
    let node = start("b1", Role::Blockd, "127.0.0.1:0").await.unwrap();
    assert!(start("b1", Role::Blockd, "127.0.0.1:0").await.err().unwrap().contains("in use by another blockd"));
    node.stop().await;
    assert!(start("b2", Role::Blockd, "127.0.0.1:0").await.err().unwrap().contains("belongs to b1"));
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    assert!(start("b1", Role::Blockd, &taken).await.err().unwrap().contains("another program uses it"));
}
