//! Rounds of one daemon that hands off what owners missed.

use super::duties::Duties;
use super::handoff::Handoff;
use super::healer::Healer;
use super::test_peers::{ME, Manner, Peers, block, id_of};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::ids::BlockHash;

struct Setup {
    peers: Peers,
    healer: Healer,
    handoff: Arc<Handoff>,
}

impl Setup {
    fn new<const N: usize>(manners: [Manner; N]) -> Self {
        let peers = Peers::start(manners);
        let healer = peers.healer();
        let handoff = healer.handoff.clone();
        Self { peers, healer, handoff }
    }

    /// A block that is here; with `referenced`, something refers to it.
    async fn put(&self, number: u8, referenced: bool) -> (BlockHash, Bytes) {
        let (hash, bytes) = block(number);
        drop(self.healer.stamps.begin_put(hash).await);
        self.healer.store.put(hash, bytes.clone()).await.unwrap();
        if referenced {
            self.peers.metad.referenced.lock().insert(hash);
        }
        (hash, bytes)
    }

    async fn round(&mut self) {
        let layout = self.peers.layout.clone();
        self.healer.hand_off(&layout).await;
    }

    fn has(&self, place: usize, hash: &BlockHash) -> bool {
        self.peers.others[place].blocks.lock().contains_key(hash)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mute_owner_keeps_no_other_one_from_what_it_missed() {
    let mut setup = Setup::new([Manner::Mute, Manner::Busy, Manner::Honest]);
    let mut hashes = Vec::new();
    for number in 0..20 {
        let (hash, _) = setup.put(number, true).await;
        (0..3).for_each(|place| setup.handoff.add(id_of(place), hash));
        hashes.push(hash);
    }
    let begun = Instant::now();
    setup.round().await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(hashes.iter().all(|hash| setup.has(2, hash) && !setup.handoff.is_noted(&id_of(2), hash)));
    assert!(hashes.iter().all(|hash| setup.handoff.is_noted(&id_of(0), hash)), "it gets them later");
    setup.healer.store.close();
}

/// Guards I10.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_nothing_refers_to_yet_are_neither_sent_nor_forgotten() {
    let mut setup = Setup::new([Manner::Honest]);
    let ((young, _), (committed, _)) = (setup.put(1, false).await, setup.put(2, true).await);
    setup.handoff.add(id_of(0), young);
    setup.handoff.add(id_of(0), committed);
    setup.round().await;
    assert!(setup.has(0, &committed) && !setup.has(0, &young));
    assert!(setup.handoff.is_noted(&id_of(0), &young));
    let asked = setup.peers.others[0].probes.lock().len();
    setup.round().await;
    assert_eq!(setup.peers.others[0].probes.lock().len(), asked, "it is left alone for a while");
    setup.healer.store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_daemon_had_no_room_for_is_fetched_later_and_then_passed_on() {
    let mut setup = Setup::new([Manner::Honest, Manner::Honest]);
    let (hash, bytes) = block(1);
    setup.peers.metad.referenced.lock().insert(hash);
    setup.peers.others[0].give(&bytes);
    setup.handoff.add(ME, hash);
    setup.handoff.add(id_of(1), hash);
    setup.round().await;
    assert!(setup.healer.store.contains(&hash) && !setup.handoff.is_noted(&ME, &hash));
    assert!(setup.has(1, &hash));
    setup.healer.store.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_owner_does_not_list_is_noted_for_it_again() {
    let setup = Setup::new([Manner::Honest, Manner::Honest]);
    let [(here, _), (there, _)] = [setup.put(1, true).await, setup.put(2, true).await];
    let (layout, owner) = (setup.peers.layout.clone(), id_of(0));
    let all = (BlockHash([0; 32]), BlockHash([0xff; 32]));
    setup.healer.note_absent(&layout, owner, (here, here), &[]);
    assert!(setup.handoff.is_noted(&owner, &here) && !setup.handoff.is_noted(&owner, &there), "it was not asked");
    setup.handoff.remove(&owner, &here);
    setup.healer.note_absent(&layout, owner, all, &[(there, 1)]);
    assert!(setup.handoff.is_noted(&owner, &here) && !setup.handoff.is_noted(&owner, &there));
    setup.healer.note_absent(&layout, id_of(9), all, &[]);
    assert!(!setup.handoff.is_noted(&id_of(9), &here), "it owns nothing");
    setup.handoff.remove(&owner, &here);
    setup.handoff.end_first_comparison();
    setup.healer.note_absent(&layout, owner, all, &[]);
    assert!(!setup.handoff.is_noted(&owner, &here), "puts have noted that since");
}

/// A client first stores a block, and then commits it. A daemon that has compared in between used to lack it until it
/// compared again.
#[tokio::test]
async fn a_block_that_is_committed_just_after_a_comparison_comes_soon_and_what_is_not_does_not() {
    let mut setup = Setup::new([Manner::Honest]);
    let [(committed, content), (garbage, other)] = [block(1), block(2)];
    setup.peers.others[0].give(&content);
    setup.peers.others[0].give(&other);
    let layout = setup.peers.layout.clone();
    assert!(setup.healer.pass(&layout, &Duties::of(&layout, &ME)).await);
    assert!(!setup.healer.store.contains(&committed), "nothing refers to it");
    setup.peers.metad.referenced.lock().insert(committed);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(20)).await;
    tokio::time::resume();
    setup.round().await;
    assert!(setup.healer.store.contains(&committed) && !setup.healer.store.contains(&garbage));
    setup.healer.store.close();
}
