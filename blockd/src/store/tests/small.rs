//! Blocks far below the length of a group's padding.

use super::{TestDisk, open, open_as, runtime};
use crate::store::record::{self, GROUP_ALIGN};
use crate::store::{Store, StoreOptions};
use bytes::Bytes;
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wire::ids::BlockHash;

const COUNT: u32 = 12_000;
const LEN: u32 = 100;

fn block(number: u32) -> (BlockHash, Bytes) {
    let content = Bytes::from(number.to_le_bytes().repeat(LEN as usize / 4));
    (BlockHash::of(&content), content)
}

fn names(numbers: impl IntoIterator<Item = u32>) -> Vec<BlockHash> {
    numbers.into_iter().map(|number| block(number).0).collect()
}

/// For removals of which nothing is kept.
fn unmarked(numbers: impl IntoIterator<Item = u32>) -> Vec<(BlockHash, Arc<()>)> {
    names(numbers).into_iter().map(|hash| (hash, Arc::default())).collect()
}

/// A disk that is full to the reserve, with small blocks that share their groups.
fn full_disk() -> (TestDisk, Store, StoreOptions) {
    let disk = TestDisk::new();
    let options = StoreOptions { segment_bytes: 512 << 10, reserve_bytes: 4 << 20 };
    let store = open_as(&disk, options.clone());
    runtime().block_on(async {
        let puts = (0..COUNT).map(|number| {
            let (hash, content) = block(number);
            store.put(hash, content)
        });
        assert!(join_all(puts).await.into_iter().all(|stored| stored.unwrap()));
    });
    let padded = u64::from(COUNT) * GROUP_ALIGN as u64;
    assert!(padded > 8 * options.reserve_bytes, "one by one, they would take far more than the reserve");
    disk.leave_free(options.reserve_bytes);
    (disk, store, options)
}

fn assert_reserve_is_left(disk: &TestDisk, options: &StoreOptions) {
    let (least, reserve) = (disk.0.least_free.load(Ordering::SeqCst), options.reserve_bytes);
    assert!(least >= reserve / 2, "{least} bytes of {reserve} were left");
}

#[test]
fn small_blocks_that_are_dropped_from_a_full_disk_leave_most_of_its_reserve() {
    let (disk, store, options) = full_disk();
    let dropped = names(0..COUNT);
    let outcomes = runtime().block_on(store.drop_all(&unmarked(0..COUNT))).unwrap();
    assert!(outcomes.into_iter().all(|outcome| outcome.unwrap()));
    assert!(dropped.iter().all(|hash| !store.contains(hash)));
    assert_reserve_is_left(&disk, &options);
    drop(store);
    assert_eq!(open_as(&disk, options).stats().block_count, 0);
}

#[test]
fn compacting_a_full_disk_of_small_blocks_leaves_most_of_its_reserve_and_gives_space_back() {
    let (disk, store, options) = full_disk();
    let runtime = runtime();
    let (kept, dropped): (Vec<u32>, Vec<u32>) = (0..COUNT).partition(|number| number % 5 < 2);
    assert_eq!(runtime.block_on(store.drop_all(&unmarked(dropped))).unwrap().len(), COUNT as usize * 3 / 5);
    let (before, writes) = (disk.segments().len(), disk.0.writes.lock().len());
    let mut steps = 0;
    while runtime.block_on(store.compact_step(&mut Vec::new())).unwrap().is_some() {
        steps += 1;
        assert!(steps < 100, "compaction comes to no end");
    }
    assert!(disk.segments().len() < before, "{before} segments became {}", disk.segments().len());
    assert_reserve_is_left(&disk, &options);
    // What is written together shares a sync: without that, each block would have its own.
    let groups = disk.0.writes.lock().len() - writes;
    assert!(groups < kept.len() / 50, "{groups} groups for {} blocks", kept.len());
    drop(store);
    let store = open_as(&disk, options);
    for hash in names(kept) {
        assert!(runtime.block_on(store.get(hash)).unwrap().is_some());
    }
}

#[test]
fn small_blocks_that_came_one_by_one_are_packed_although_nothing_is_dropped() {
    let disk = TestDisk::new();
    let store = open(&disk);
    let runtime = runtime();
    for number in 0..300 {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).unwrap();
    }
    let before = disk.segments().len();
    assert!(before > 4, "each has a group of its own");
    let mut store = Some(store);
    // Each start closes a segment, and must not begin it all again.
    for round in 0..4 {
        let mut steps = 0;
        let open_now = store.take().unwrap_or_else(|| open(&disk));
        while let Some(compacted) = runtime.block_on(open_now.compact_step(&mut Vec::new())).unwrap() {
            steps += 1;
            assert!(steps <= before, "compaction comes to no end");
            assert!(
                round < 3 || compacted.copied <= 2 * 300 * record::stored_len(LEN),
                "{compacted:?} in round {round}"
            );
        }
        for number in 0..300 {
            let (hash, content) = block(number);
            assert_eq!(runtime.block_on(open_now.get(hash)).unwrap(), Some(content));
        }
    }
    assert!(disk.segments().len() <= 2, "{before} segments became {}", disk.segments().len());
}
