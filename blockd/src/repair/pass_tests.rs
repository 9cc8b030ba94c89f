//! Passes of one daemon, with sources that lie or send nothing.

use super::duties::Duties;
use super::healer::Healer;
use super::test_peers::{ME, Manner, Peers, block, id_of, until};
use super::throttle::Throttle;
use crate::config::Rates;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wire::ids::BlockHash;
use wire::layout::ring::Span;

/// Runs a pass. Returns whether it was complete, and how long it took.
async fn pass(peers: &Peers, healer: &mut Healer) -> (bool, Duration) {
    let (duties, begun) = (Duties::of(&peers.layout, &ME), Instant::now());
    let is_complete = healer.pass(&peers.layout, &duties).await;
    (is_complete, begun.elapsed())
}

/// It used to be waited for ten seconds per four blocks.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_names_much_and_sends_nothing_is_left_to_the_next_pass_and_others_are_not() {
    let peers = Peers::start([Manner::SendsNothing, Manner::Honest]);
    let mut healer = peers.healer();
    for number in 0..100 {
        let (hash, bytes) = block(number);
        peers.others[usize::from(number % 2)].give(&bytes);
        peers.metad.referenced.lock().insert(hash);
    }
    let (is_complete, took) = pass(&peers, &mut healer).await;
    assert!(!is_complete && took < Duration::from_secs(25), "{took:?}");
    assert!(
        (1..100).step_by(2).all(|number| healer.store.contains(&block(number).0)),
        "what the other one has is here"
    );
    healer.store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_costs_what_was_sent_of_it_and_not_what_its_source_says() {
    let peers = Peers::start([Manner::ListsEndlessBlocks]);
    let mut healer = peers.healer();
    let mib = 1 << 20;
    healer.throttle = Arc::new(Throttle::new(Rates { idle: 16 * mib, busy: 16 * mib }));
    let (hash, bytes) = block(1);
    peers.others[0].give(&bytes);
    peers.metad.referenced.lock().insert(hash);
    let healed = tokio::time::timeout(Duration::from_secs(20), pass(&peers, &mut healer)).await;
    assert!(healed.is_ok_and(|(is_complete, _)| is_complete), "4 GiB at that rate take minutes");
    assert_eq!(healer.metrics.healed_bytes.get(), bytes.len() as u64);
    healer.store.close();
}

/// The spans that the daemon under test owes and that the first of the others has.
fn owed(peers: &Peers) -> Vec<Span> {
    Duties::of(&peers.layout, &ME).sources[&id_of(0)].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_a_source_cannot_read_holds_up_nothing_that_lies_behind_it() {
    let mut peers = Peers::start([Manner::Honest, Manner::Honest]);
    peers.spread(8);
    let spans = owed(&peers);
    let is_owed = |hash: &BlockHash| spans.iter().any(|span| span.contains(hash));
    let mut blocks: Vec<(BlockHash, Bytes)> = (0..100).map(block).filter(|(hash, _)| is_owed(hash)).collect();
    blocks.sort();
    assert!(spans.iter().filter(|span| blocks.iter().any(|(hash, _)| span.contains(hash))).count() > 3);
    for (hash, bytes) in &blocks {
        peers.others[0].give(bytes);
        peers.metad.referenced.lock().insert(*hash);
    }
    *peers.others[0].manner.lock() = Manner::MuteAbout(blocks[0].0);
    let mut healer = peers.healer();
    let (is_complete, took) = pass(&peers, &mut healer).await;
    assert!(!is_complete && took < Duration::from_secs(25), "{took:?}");
    assert!(!healer.store.contains(&blocks[0].0));
    assert!(blocks[1..].iter().all(|(hash, _)| healer.store.contains(hash)));
    healer.store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_behind_much_that_nothing_refers_to_comes_in_a_later_pass() {
    let mut peers = Peers::start([Manner::Honest, Manner::Honest]);
    peers.spread(80);
    let spans = owed(&peers);
    let late = |hash: &BlockHash| spans[spans.len() / 2..].iter().any(|span| span.contains(hash));
    let (wanted, bytes) = (0..=255).map(block).find(|(hash, _)| late(hash)).unwrap();
    peers.others[0].give(&bytes);
    peers.metad.referenced.lock().insert(wanted);
    for span in &spans {
        peers.others[0].blocks.lock().insert(span.first_hash(), Bytes::from_static(b"nothing refers to it"));
    }
    let mut healer = peers.healer();
    // It does not suffice for half of the lists, if each costs as much as one that brings a block.
    healer.account = Duration::from_millis(500);
    let mut passes = 0;
    while !healer.store.contains(&wanted) {
        assert!(passes < 100, "it is not compared");
        pass(&peers, &mut healer).await;
        passes += 1;
    }
    healer.store.close();
}

/// It used to be never complete, so the layout was never final.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_too_slow_for_one_pass_is_heard_in_some() {
    let mut peers = Peers::start([Manner::ListsSlowly, Manner::Honest]);
    peers.spread(40);
    let spans = owed(&peers);
    for span in &spans {
        peers.others[0].blocks.lock().insert(span.first_hash(), Bytes::from_static(b"nothing refers to it"));
    }
    let is_owed = |hash: &BlockHash| spans.iter().any(|span| span.contains(hash));
    let wanted: Vec<_> = (0..=255).map(block).filter(|(hash, _)| is_owed(hash)).take(2).collect();
    for (hash, bytes) in &wanted {
        peers.others[0].give(bytes);
        peers.metad.referenced.lock().insert(*hash);
    }
    let mut healer = peers.healer();
    healer.account = Duration::from_millis(500);
    let mut passes = 1;
    while !pass(&peers, &mut healer).await.0 {
        assert!(passes < 100, "no round is complete");
        passes += 1;
    }
    assert!(passes > 1, "it was not too slow");
    assert!(wanted.iter().all(|(hash, _)| healer.store.contains(hash)));
    healer.store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_layout_ends_a_pass_in_the_middle_of_a_page() {
    let peers = Peers::start([Manner::Honest]);
    let mut healer = peers.healer();
    // A block each 0.1 s.
    healer.throttle = Arc::new(Throttle::new(Rates { idle: 10_000, busy: 10_000 }));
    for number in 0..200 {
        let (hash, bytes) = block(number);
        peers.others[0].give(&bytes);
        peers.metad.referenced.lock().insert(hash);
    }
    let (store, layouts) = (healer.store.clone(), healer.layouts.clone());
    let mut newer = peers.layout.clone();
    newer.epoch = newer.epoch.next();
    let changed = async {
        until("a block is here", || store.stats().block_count > 0).await;
        layouts.learn(newer);
        Instant::now()
    };
    let ((is_complete, _), changed_at) = tokio::join!(pass(&peers, &mut healer), changed);
    let late = changed_at.elapsed();
    assert!(!is_complete && late < Duration::from_secs(5), "the rest of the page would have taken 20 s: {late:?}");
    assert!(store.stats().block_count < 100);
    store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_room_fetches_nothing() {
    let peers = Peers::start([Manner::Honest]);
    let mut healer = peers.healer();
    healer.store.close();
    healer.store = peers.full_store();
    for number in 0..10 {
        let (hash, bytes) = block(number);
        peers.others[0].give(&bytes);
        peers.metad.referenced.lock().insert(hash);
        healer.handoff.add(ME, hash);
    }
    assert!(!pass(&peers, &mut healer).await.0);
    healer.hand_off(&peers.layout).await;
    assert_eq!(peers.others[0].fetches.load(Ordering::Relaxed), 0);
    assert!(healer.handoff.is_noted(&ME, &block(0).0), "it is fetched once there is room");
    healer.store.close();
}
