//! Real daemons on loopback after their layout has changed: owed blocks are copied, misplaced ones are given back.

use crate::daemon_cluster::{Cluster, LIMIT, random_block, until};
use bytes::Bytes;
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use wire::ids::{BlockHash, LayoutEpoch};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};

async fn put_many(cluster: &Cluster, count: usize) -> Vec<Bytes> {
    put_and_count(cluster, count).await.0
}

/// Puts blocks; returns them, and the number of copies that the puts left out because a daemon was slow.
async fn put_and_count(cluster: &Cluster, count: usize) -> (Vec<Bytes>, usize) {
    let mut left_out = 0;
    let mut blocks = Vec::new();
    for number in 0..count {
        let block = random_block(1000 + number * 50);
        let (synced, _, _) = cluster.put(&block).await;
        assert!(synced.len() >= 2);
        left_out += 3 - synced.len();
        blocks.push(block);
    }
    (blocks, left_out)
}

impl Cluster {
    /// Waits until every running owner has all that it owes.
    async fn until_done(&self) {
        let layout = self.layout();
        until("all that is owed is here", async || {
            self.nodes
                .iter()
                .flatten()
                .filter(|node| layout.member(&node.id()).is_some_and(wire::layout::LayoutMember::is_owner))
                .all(|node| node.repair().done >= layout.placement)
        })
        .await;
    }

    async fn assert_on_owners(&self, blocks: &[Bytes]) {
        let layout = self.layout();
        for block in blocks {
            let hash = BlockHash::of(block);
            for owner in layout.owners(&hash) {
                assert_eq!(&self.get(self.index_of(owner.id), hash).await.unwrap(), block);
            }
        }
    }

    /// Waits until all blocks are copied, then given back; at each step every owner has every block.
    async fn settles_with(&self, blocks: &[Bytes]) {
        self.until_done().await;
        self.assert_on_owners(blocks).await;
        self.change(Layout::finished);
        self.until_nothing_is_misplaced().await;
        self.assert_on_owners(blocks).await;
    }

    async fn until_nothing_is_misplaced(&self) {
        until("nothing lies where it does not belong", async || {
            self.nodes.iter().flatten().all(|node| node.repair().misplaced_blocks == 0)
        })
        .await;
    }
}

/// Guards I11.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_dead_daemon_are_copied_to_their_new_owners() {
    let mut cluster = Cluster::start(5).await;
    let blocks = put_many(&cluster, 60).await;
    let dead = cluster.node(4).id();
    cluster.stop(4).await;
    cluster.change(|layout| layout.taken_out(&dead));
    cluster.settles_with(&blocks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_back_late_takes_its_place_again() {
    let mut cluster = Cluster::start(4).await;
    let mut blocks = put_many(&cluster, 30).await;
    let late = cluster.node(3).id();
    cluster.stop(3).await;
    cluster.change(|layout| layout.taken_out(&late));
    cluster.until_done().await;
    cluster.change(Layout::finished);
    blocks.extend(put_many(&cluster, 30).await);
    cluster.start_again(3).await;
    cluster.change(|layout| {
        let mut members = layout.members.clone();
        members.iter_mut().for_each(|member| member.out = false);
        layout.with_members(members).unwrap()
    });
    cluster.settles_with(&blocks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_daemon_is_empty_once_the_others_have_all() {
    let cluster = Cluster::start(4).await;
    let blocks = put_many(&cluster, 40).await;
    let drained = cluster.node(0).id();
    cluster.change(|layout| layout.drained(&drained, true).unwrap());
    cluster.until_done().await;
    assert!(!cluster.node(0).repair().empty, "nothing is given back before the layout is final");
    cluster.change(Layout::finished);
    until("it is empty", async || cluster.node(0).repair().empty).await;
    assert_eq!(cluster.status(0).await.block_count, 0);
    cluster.assert_on_owners(&blocks).await;
}

/// Guards I11.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_for_owners_of_the_past() {
    let cluster = Cluster::start(4).await;
    let (old, drained) = (cluster.layout(), cluster.node(0).id());
    cluster.change(|layout| layout.drained(&drained, true).unwrap());
    until("all know", async || cluster.nodes.iter().flatten().all(|node| node.layouts().newest().epoch > old.epoch))
        .await;
    let block = random_block(1000);
    let put =
        |epoch| BlockRequest::Put { hash: BlockHash::of(&block), epoch, chain: Vec::new(), needed: 1, origin: None };
    let peer = cluster.client.peer(cluster.node(1).local_addr(), wire::tls::Role::Blockd);
    let asked = async |epoch: LayoutEpoch| {
        peer.request::<_, BlockReply>(&put(epoch), std::slice::from_ref(&block), LIMIT).await.unwrap().0
    };
    assert!(matches!(asked(old.epoch).await, BlockReply::OldLayout(newer) if newer == cluster.layout()));
    let placement = cluster.layout().placement;
    cluster.change(Layout::finished);
    until("it knows", async || cluster.node(1).layouts().newest().is_final()).await;
    assert!(matches!(asked(placement).await, BlockReply::Stored { .. }), "the owners are the same since");
}

/// Only the newcomer's blocks move.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_copies_what_the_newcomer_owns_and_nothing_else() {
    let mut cluster = Cluster::start(4).await;
    let (blocks, left_out) = put_and_count(&cluster, 100).await;
    let before = cluster.layout();
    // A pass may have met a block on its way down the chain, and fetched a copy that was about to come.
    let copied =
        |cluster: &Cluster| cluster.nodes.iter().flatten().map(|node| node.metrics().healed.get()).sum::<u64>();
    let copied_before = copied(&cluster);
    cluster.grow().await;
    let after = cluster.layout();
    cluster.until_done().await;
    cluster.assert_on_owners(&blocks).await;
    let owed = |layout: &Layout, block: &Bytes| -> Vec<_> {
        layout.owners(&BlockHash::of(block)).iter().map(|owner| owner.id).collect()
    };
    let ideal: usize = blocks
        .iter()
        .map(|block| {
            let old = owed(&before, block);
            owed(&after, block).iter().filter(|id| !old.contains(id)).count()
        })
        .sum();
    let copied = copied(&cluster) - copied_before;
    assert!((ideal..=ideal + left_out).contains(&(copied as usize)), "{copied} for {ideal} and {left_out}");
    cluster.change(Layout::finished);
    cluster.until_nothing_is_misplaced().await;
    cluster.assert_on_owners(&blocks).await;
}

/// How long a daemon waits for the next one in a chain, at least.
const CHAIN_PATIENCE: Duration = Duration::from_millis(600);

/// Puts a block to the first daemon, with the others behind it in this order. Returns how many have it, and after what
/// time.
async fn put_and_time(cluster: &Cluster, order: [usize; 3]) -> (usize, Duration) {
    let (layout, block) = (cluster.layout(), random_block(300_000));
    let ids = order.map(|index| cluster.node(index).id());
    let request = BlockRequest::Put {
        hash: BlockHash::of(&block),
        epoch: layout.epoch,
        chain: ids[1..].to_vec(),
        needed: 2,
        origin: None,
    };
    let peer = cluster.client.peer(cluster.node(order[0]).local_addr(), wire::tls::Role::Blockd);
    let started = Instant::now();
    match peer.request::<_, BlockReply>(&request, std::slice::from_ref(&block), LIMIT).await.unwrap().0 {
        BlockReply::Stored { synced, .. } => (synced.len(), started.elapsed()),
        other => panic!("{other:?}"),
    }
}

/// Guards I9.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_never_answers_delays_one_put_briefly_and_later_ones_not_at_all() {
    let cluster = Cluster::start(3).await;
    let (mute, mute_id) = (UdpSocket::bind("127.0.0.1:0").unwrap(), cluster.node(2).id());
    cluster.change(|layout| {
        let mut members = layout.members.clone();
        members.iter_mut().filter(|member| member.id == mute_id).for_each(|member| {
            member.addr = mute.local_addr().unwrap();
        });
        layout.with_members(members).unwrap()
    });
    let epoch = cluster.layout().epoch;
    until("all know", async || cluster.nodes.iter().flatten().all(|node| node.layouts().newest().epoch == epoch)).await;
    let mut waited = 0;
    for _ in 0..50 {
        for order in [[0, 2, 1], [1, 2, 0], [0, 1, 2], [1, 0, 2]] {
            let (copies, took) = put_and_time(&cluster, order).await;
            assert!(copies == 2 && took < LIMIT / 4, "{order:?}: {copies} copies after {took:?}");
            waited += u32::from(took >= CHAIN_PATIENCE);
        }
    }
    // Half of the puts name the mute daemon before the other one. The two that send it something leave it alone for a while.
    assert!(waited < 20, "{waited} puts have waited");
}
