//! In whose turn the writer writes.

use super::{TestDisk, open_with, runtime};
use crate::store::{Party, SegmentId, Store};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use std::sync::Arc;
use wire::ids::{BlockHash, PartyId};
use wire::sections::Sections;

/// Groups are no larger than a segment.
const SEGMENT_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: usize = 60 << 10;
const IN_GROUP: usize = SEGMENT_BYTES as usize / BLOCK_BYTES;

impl Store {
    /// How much work waits for the writer.
    pub(crate) fn waiting(&self) -> usize {
        self.writer.waiting()
    }

    /// Where a block lies that is here: what was written before lies before it.
    pub(crate) fn place_of(&self, hash: &BlockHash) -> (SegmentId, u64) {
        let location = self.shared.index.read().blocks[hash];
        (location.segment, location.offset)
    }
}

/// Puts a block: begun, and not awaited yet.
fn begin_put(store: &Store, party: Party, content: Vec<u8>) -> (BlockHash, BoxFuture<'_, bool>) {
    let content = Bytes::from(content);
    let hash = BlockHash::of(&content);
    let stored = store.put_with_sections(party, hash, content, Sections::default());
    let mut stored = stored.map(|stored| stored.unwrap()).boxed();
    assert!((&mut stored).now_or_never().is_none());
    (hash, stored)
}

#[test]
fn a_put_beside_hundreds_of_another_certificate_is_written_after_a_few_of_them() {
    let disk = TestDisk::new();
    let store = open_with(&disk, SEGMENT_BYTES);
    let [greedy, honest] = [1, 2].map(|number| Party::Peer { origin: PartyId([number; 16]), via: None });
    // Until all have come, nothing is on disk.
    let held = disk.0.syncs.lock();
    let mut flood = Vec::new();
    for number in 0..300_u32 {
        let content = number.to_le_bytes().repeat(BLOCK_BYTES / 4);
        flood.push(begin_put(&store, greedy, content));
    }
    let (hash, stored) = begin_put(&store, honest, vec![7; BLOCK_BYTES]);
    drop(held);
    runtime().block_on(async {
        stored.await;
        let (names, puts): (Vec<BlockHash>, Vec<_>) = flood.into_iter().unzip();
        join_all(puts).await;
        let before = names.iter().filter(|name| store.place_of(name) < store.place_of(&hash)).count();
        // The group that was being written, which may have been one block, and the next one.
        assert!(before <= 2 * IN_GROUP, "{before} of {} were written before it", names.len());
    });
}

#[test]
fn clients_do_not_wait_for_all_that_is_repaired_nor_the_other_way_round() {
    let disk = TestDisk::new();
    let store = open_with(&disk, SEGMENT_BYTES);
    let client = Party::Peer { origin: PartyId([1; 16]), via: None };
    let held = disk.0.syncs.lock();
    let mut puts = Vec::new();
    for (nth, party) in [(0, client), (1, Party::Repair)] {
        for number in 0..100_u32 {
            let content = [nth, number].map(u32::to_le_bytes).concat().repeat(BLOCK_BYTES / 8);
            puts.push((party, begin_put(&store, party, content)));
        }
    }
    drop(held);
    runtime().block_on(async {
        let (names, puts): (Vec<_>, Vec<_>) =
            puts.into_iter().map(|(party, (hash, stored))| ((party, hash), stored)).unzip();
        join_all(puts).await;
        let mut written: Vec<_> = names.iter().map(|(party, hash)| (store.place_of(hash), *party)).collect();
        written.sort_by_key(|(place, _)| *place);
        // Some of the client may have been written before the others came.
        let of_client = written[..100].iter().filter(|(_, party)| *party == client).count();
        assert!((50 - IN_GROUP..=50 + IN_GROUP).contains(&of_client), "{of_client} of the first 100");
    });
}

/// Puts of a block wait while it is dropped, and a put that came in between would be undone. Guards I10.
#[test]
fn what_is_kept_for_a_removal_is_kept_until_that_is_written_though_nobody_waits_for_it() {
    let disk = TestDisk::new();
    let store = open_with(&disk, SEGMENT_BYTES);
    let content = Bytes::from_static(b"content");
    let hash = BlockHash::of(&content);
    runtime().block_on(store.put(hash, content)).unwrap();
    let mark = Arc::new(());
    let held = disk.0.syncs.lock();
    {
        let marked = [(hash, mark.clone())];
        let mut dropping = store.drop_all(&marked).boxed();
        assert!((&mut dropping).now_or_never().is_none());
    }
    assert_eq!(Arc::strong_count(&mark), 2, "it is still to be written");
    drop(held);
    store.close();
    assert_eq!(Arc::strong_count(&mark), 1);
    assert!(!store.contains(&hash));
}
