//! Passes of one daemon, with sources that lie or send nothing.

use super::duties::Duties;
use super::healer::Healer;
use super::test_peers::{ME, Manner, Peers, block};
use super::throttle::Throttle;
use crate::config::Rates;
use std::time::{Duration, Instant};

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
    healer.throttle = Throttle::new(Rates { idle: 16 * mib, busy: 16 * mib });
    let (hash, bytes) = block(1);
    peers.others[0].give(&bytes);
    peers.metad.referenced.lock().insert(hash);
    let healed = tokio::time::timeout(Duration::from_secs(20), pass(&peers, &mut healer)).await;
    assert!(healed.is_ok_and(|(is_complete, _)| is_complete), "4 GiB at that rate take minutes");
    assert_eq!(healer.metrics.healed_bytes.get(), bytes.len() as u64);
    healer.store.close();
}
