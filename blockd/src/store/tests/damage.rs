//! Damage on the disk: what recovery believes behind it, and how compaction deals with it.

use super::{DIR, TestDisk, block, open, open_as, runtime};
use crate::store::disk::{Disk, RealDisk};
use crate::store::record::{GROUP_ALIGN, HEADER_BYTES, Header, Kind, PADDING};
use crate::store::segment::Found;
use crate::store::{Error, SegmentId, Store, StoreOptions, buffer, hint, segment, segment_name};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wire::ids::BlockHash;

const SEGMENT: SegmentId = SegmentId(1);

/// A record of a small block, or a tombstone.
fn record(kind: Kind, hash: BlockHash, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind, hash, len: payload.len() as u32 };
    let mut bytes = [&header.encode(SEGMENT)[..], payload].concat();
    bytes.resize(header.stored_len() as usize, 0);
    bytes
}

fn put(payload: &[u8]) -> Vec<u8> {
    record(Kind::Put, BlockHash::of(payload), payload)
}

fn tombstone(hash: BlockHash) -> Vec<u8> {
    record(Kind::Tombstone, hash, &[])
}

/// A group of these records.
fn group(records: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = records.concat();
    while !bytes.len().is_multiple_of(GROUP_ALIGN) {
        bytes.extend_from_slice(&PADDING);
    }
    bytes
}

/// A payload behind whose header, at offset `at` of the segment, these records begin groups.
fn payload_with(at: usize, records: &[Vec<u8>]) -> Vec<u8> {
    let start = at + HEADER_BYTES;
    let mut payload = vec![7; start.next_multiple_of(GROUP_ALIGN) - start];
    for record in records {
        payload.extend_from_slice(record);
        payload.resize((start + payload.len()).next_multiple_of(GROUP_ALIGN) - start, 7);
    }
    payload
}

/// A store with this segment and no hint, as after a crash.
fn opened(bytes: Vec<u8>) -> (TestDisk, Store, usize) {
    let disk = TestDisk::new();
    let path = segment_name::path(Path::new(DIR), SEGMENT);
    disk.lay(&path, bytes);
    let scan = segment::scan(&*disk.open(&path).unwrap(), &buffer::pool(), SEGMENT).unwrap();
    let store = open(&disk);
    (disk, store, scan.damaged)
}

/// What a client could have stored within a block so that it is taken for records: a block that is not what it says, a
/// removal, a record of a newer release, and a block that is good.
fn forged(removed: BlockHash, good: &[u8]) -> Vec<Vec<u8>> {
    let mut newer = put(b"newer");
    newer[4] = 9;
    let sum = crc32fast::hash(&newer[..60]);
    newer[60..64].copy_from_slice(&sum.to_le_bytes());
    vec![record(Kind::Put, BlockHash([9; 32]), b"something else"), tombstone(removed), newer, put(good)]
}

/// Guards I9.
#[test]
fn behind_a_damaged_header_blocks_count_only_if_they_prove_themselves_and_removals_not_at_all() {
    let (first, last) = (b"the first block".as_slice(), b"the last block".as_slice());
    let removed = BlockHash::of(first);
    let mut bytes = group(&[put(first)]);
    let damaged_at = bytes.len();
    bytes.extend(group(&[put(&payload_with(damaged_at, &forged(removed, b"good")))]));
    bytes.extend(group(&[put(last), tombstone(BlockHash::of(b"gone"))]));
    let whole = bytes.clone();
    bytes[damaged_at + 20] ^= 1;
    for (bytes, is_damaged, found) in [(whole, false, [true, false, true]), (bytes, true, [true, true, true])] {
        let (_disk, store, places) = opened(bytes);
        let is_here = [first, b"good", last].map(|block| store.contains(&BlockHash::of(block)));
        assert_eq!((places > 0, is_here), (is_damaged, found));
        assert!(!store.contains(&BlockHash([9; 32])), "its payload does not match");
        assert_eq!(runtime().block_on(store.get(removed)).unwrap().unwrap(), first);
    }
}

/// Guards I9.
#[test]
fn a_zeroed_rest_of_a_group_is_damage_and_no_padding() {
    let first = b"the first block".as_slice();
    let mut bytes = group(&[put(first)]);
    let begins_at = bytes.len();
    let before = put(b"before the damage");
    let damaged_at = begins_at + before.len();
    let forged = forged(BlockHash::of(first), b"good");
    bytes.extend(group(&[before, put(&payload_with(damaged_at, &forged))]));
    bytes.extend(group(&[put(b"the last block")]));
    bytes[damaged_at..begins_at + GROUP_ALIGN].fill(0);
    let (_disk, store, places) = opened(bytes);
    assert!(places > 0);
    for block in [first, b"before the damage", b"the last block"] {
        assert!(store.contains(&BlockHash::of(block)), "{}", String::from_utf8_lossy(block));
    }
    assert!(!store.contains(&BlockHash([9; 32])));
}

/// The first segment's file, and whether it has a hint.
fn file(disk: &TestDisk) -> (Option<Vec<u8>>, bool) {
    let files = disk.0.files.lock();
    let content = files.get(&segment_name::path(Path::new(DIR), SEGMENT)).map(|content| content.stable.clone());
    (content, files.contains_key(&segment_name::hint_path(Path::new(DIR), SEGMENT)))
}

/// A disk with this segment, of which only what is read in large pieces can be read: the headers.
fn without_payloads(bytes: Vec<u8>) -> TestDisk {
    let disk = TestDisk::new();
    disk.lay(&segment_name::path(Path::new(DIR), SEGMENT), bytes);
    disk.fail_reads(|_, _, len| len < 1 << 20);
    disk
}

#[test]
fn what_only_looks_like_records_behind_damage_costs_a_bounded_time_and_its_segment_stays_whole() {
    // Large blocks seem to begin at each group of a payload.
    let large = Header { kind: Kind::Put, hash: BlockHash([9; 32]), len: 600 << 10 };
    let headers = vec![large.encode(SEGMENT).to_vec(); 100];
    let first = b"the first block".as_slice();
    let mut bytes = group(&[put(first)]);
    let damaged_at = bytes.len();
    bytes.extend(group(&[put(&payload_with(damaged_at, &headers))]));
    bytes.extend(group(&[put(&[1; 1 << 20])]));
    bytes[damaged_at + 20] ^= 1;
    let disk = TestDisk::new();
    disk.lay(&segment_name::path(Path::new(DIR), SEGMENT), bytes.clone());
    let store = open(&disk);
    let lens = disk.bytes_read() / bytes.len() as u64;
    assert!(lens <= 4, "{lens} times its length was read");
    let runtime = runtime();
    assert_eq!(runtime.block_on(store.get(BlockHash::of(first))).unwrap().unwrap(), first);
    assert!(runtime.block_on(store.drop_block(BlockHash::of(first))).unwrap());
    for number in 0..100 {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).unwrap();
    }
    compact(&store);
    assert_eq!(file(&disk), (Some(bytes), false), "it may hold records that were not looked at");
}

/// Guards I9.
#[test]
fn what_cannot_be_read_at_start_is_not_cut_off() {
    let [first, last] = [b"the first block".as_slice(), b"the last block"];
    let bytes = [group(&[put(first)]), group(&[put(last)])].concat();
    let mut damaged = [group(&[put(b"damaged")]), bytes.clone()].concat();
    damaged[20] ^= 1;
    for (bytes, is_here) in [(bytes, true), (damaged, false)] {
        let disk = without_payloads(bytes.clone());
        let store = open(&disk);
        assert_eq!(file(&disk), (Some(bytes.clone()), false));
        disk.mend_reads();
        let found = [first, last].map(|block| runtime().block_on(store.get(BlockHash::of(block))).unwrap().is_some());
        assert_eq!(found, [is_here; 2], "behind damage, only what proves itself counts");
        drop(store);
        let store = open(&disk);
        for block in [first, last] {
            assert_eq!(runtime().block_on(store.get(BlockHash::of(block))).unwrap().unwrap(), block);
        }
        assert!(file(&disk).1, "the next start has judged all of it");
    }
}

/// A sector that cannot be read fails every read that touches it, however long. Guards I9.
#[test]
fn a_sector_that_cannot_be_read_at_start_hides_no_other_record_and_cuts_none_off() {
    let blocks = [b"the first block".as_slice(), b"the one that cannot be read", b"the last block"];
    let bytes = blocks.map(|block| group(&[put(block)])).concat();
    let bad = GROUP_ALIGN as u64..2 * GROUP_ALIGN as u64;
    let disk = TestDisk::new();
    disk.lay(&segment_name::path(Path::new(DIR), SEGMENT), bytes.clone());
    disk.fail_reads(move |_, offset, len| offset < bad.end && bad.start < offset + len as u64);
    let store = open(&disk);
    let found = blocks.map(|block| runtime().block_on(store.get(BlockHash::of(block))).unwrap().is_some());
    assert_eq!(found, [true, false, true]);
    drop(store);
    assert_eq!(file(&disk), (Some(bytes), false));
    disk.mend_reads();
    let store = open(&disk);
    for block in blocks {
        assert_eq!(runtime().block_on(store.get(BlockHash::of(block))).unwrap().unwrap(), block);
    }
}

/// Guards I9.
#[test]
fn an_older_copy_is_not_replaced_by_one_that_cannot_be_read_at_start() {
    let payload = b"a block".as_slice();
    let header = Header { kind: Kind::Put, hash: BlockHash::of(payload), len: payload.len() as u32 };
    let mut moved = [&header.encode(SegmentId(2))[..], payload].concat();
    moved.resize(header.stored_len() as usize, 0);
    let disk = TestDisk::new();
    let [older, newer] = [1, 2].map(|number| segment_name::path(Path::new(DIR), SegmentId(number)));
    disk.lay(&older, group(&[put(payload)]));
    disk.lay(&newer, group(&[moved]));
    disk.fail_reads(move |path, _, len| path == newer && len < 1 << 20);
    let store = open(&disk);
    assert_eq!(runtime().block_on(store.get(header.hash)).unwrap().unwrap(), payload);
}

/// The same version of the format was padded with zeros before the first release.
#[test]
fn a_segment_that_is_padded_with_zeros_loses_no_block_and_without_a_hint_its_removals_do_not_count() {
    let blocks = [b"the first block".as_slice(), b"removed", b"the last block"];
    let groups =
        [vec![put(blocks[0]), put(blocks[1])], vec![tombstone(BlockHash::of(blocks[1]))], vec![put(blocks[2])]];
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    for group in &groups {
        for record in group {
            let header = Header::decode(record, SEGMENT).unwrap().unwrap();
            records.push(Found { offset: bytes.len() as u64, header });
            bytes.extend_from_slice(record);
        }
        bytes.resize(bytes.len().next_multiple_of(GROUP_ALIGN), 0);
    }
    for has_hint in [false, true] {
        let disk = TestDisk::new();
        disk.lay(&segment_name::path(Path::new(DIR), SEGMENT), bytes.clone());
        if has_hint {
            disk.lay(&segment_name::hint_path(Path::new(DIR), SEGMENT), hint::encode(SEGMENT, &records));
        }
        let store = open(&disk);
        let found = blocks.map(|block| store.contains(&BlockHash::of(block)));
        assert_eq!(found, [true, !has_hint, true], "with a hint: {has_hint}");
        for block in [blocks[0], blocks[2]] {
            assert_eq!(runtime().block_on(store.get(BlockHash::of(block))).unwrap().unwrap(), block);
        }
    }
}

/// A store with two segments and more, in which most of the blocks of the first two are dropped. Returns those left.
fn mostly_dropped(disk: &TestDisk) -> (Store, Vec<(BlockHash, Bytes)>) {
    let (runtime, store) = (runtime(), open(disk));
    let blocks: Vec<_> = (0..200).map(block).collect();
    for (hash, content) in &blocks {
        runtime.block_on(store.put(*hash, content.clone())).unwrap();
    }
    let (left, dropped): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(number, _)| number % 10 == 0);
    // The removals share groups: no segment of theirs is mostly padding, and worth compacting for that.
    let dropped: Vec<_> = dropped.into_iter().map(|(_, (hash, _))| (hash, Arc::new(()))).collect();
    assert!(runtime.block_on(store.drop_all(&dropped)).unwrap().into_iter().all(|dropped| dropped.unwrap()));
    (store, left.into_iter().map(|(_, block)| block).collect())
}

#[test]
fn compaction_keeps_blocks_whose_headers_are_damaged_and_reports_damaged_copies() {
    let (disk, runtime) = (TestDisk::new(), runtime());
    let (store, left) = mostly_dropped(&disk);
    let at = |hash: &BlockHash| store.shared.index.read().blocks[hash];
    let flip = |hash: &BlockHash, behind: usize| {
        let location = at(hash);
        assert_eq!(location.segment, SEGMENT);
        disk.flip(&segment_name::path(Path::new(DIR), SEGMENT), location.offset as usize + behind);
    };
    let ((damaged, content), (other, _)) = (left[1].clone(), left[2].clone());
    flip(&damaged, HEADER_BYTES + 1);
    flip(&other, 20);
    let mut found = Vec::new();
    while runtime.block_on(store.compact_step(&mut found)).unwrap().is_some() {}
    assert!(!disk.segments().contains(&segment_name::path(Path::new(DIR), SEGMENT)), "it is compacted");
    assert_eq!((found, store.bad_count()), (vec![damaged], 1));
    assert!(store.names(damaged, 1) == [damaged] && !store.contains(&damaged));
    assert!(runtime.block_on(store.put(damaged, content)).unwrap());
    assert_eq!(store.bad_count(), 0);
    for (hash, content) in left {
        assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content));
    }
}

/// A store as of [`mostly_dropped`], in whose first segment one of the blocks cannot be read.
fn with_unreadable_copy(disk: &TestDisk) -> (Store, (BlockHash, Bytes)) {
    let (store, left) = mostly_dropped(disk);
    let (hash, content) = left[1].clone();
    let location = store.shared.index.read().blocks[&hash];
    assert_eq!(location.segment, SEGMENT);
    let record = location.offset..location.offset + u64::from(location.len);
    let path = segment_name::path(Path::new(DIR), SEGMENT);
    // Each record is a group of its own, so no other one is read together with it.
    disk.fail_reads(move |of, offset, _| of == path && record.contains(&offset));
    let read = runtime().block_on(store.get(hash));
    assert!(matches!(read, Err(Error::Io { .. })) && !store.contains(&hash), "{read:?}");
    (store, (hash, content))
}

/// Compacts until nothing is worth it. Returns what was found damaged.
fn compact(store: &Store) -> Vec<BlockHash> {
    let (runtime, mut damaged) = (runtime(), Vec::new());
    while runtime.block_on(store.compact_step(&mut damaged)).unwrap().is_some() {}
    damaged
}

/// Guards I9.
#[test]
fn compaction_keeps_a_copy_that_could_not_be_read_once() {
    let disk = TestDisk::new();
    let (store, (hash, content)) = with_unreadable_copy(&disk);
    disk.mend_reads();
    assert_eq!(compact(&store), []);
    assert!(!disk.segments().contains(&segment_name::path(Path::new(DIR), SEGMENT)), "it is compacted");
    assert_eq!((store.contains(&hash), store.bad_count()), (true, 0));
    assert_eq!(runtime().block_on(store.get(hash)).unwrap(), Some(content.clone()));
    drop(store);
    assert_eq!(runtime().block_on(open(&disk).get(hash)).unwrap(), Some(content));
}

/// Guards I9.
#[test]
fn a_segment_with_a_copy_that_cannot_be_read_stays_until_it_can_be_or_is_not_needed() {
    let path = segment_name::path(Path::new(DIR), SEGMENT);
    for is_read_later in [true, false] {
        let disk = TestDisk::new();
        let (store, (hash, content)) = with_unreadable_copy(&disk);
        let written = disk.0.writes.lock().len();
        compact(&store);
        assert!(disk.segments().contains(&path), "a later attempt may read it");
        let (moved, in_first) = (disk.0.writes.lock().len() - written, |store: &Store| {
            store.shared.index.read().blocks.values().filter(|at| at.segment == SEGMENT).count()
        });
        assert!(moved > 0 && in_first(&store) == 1, "the others have been moved");
        if is_read_later {
            disk.mend_reads();
            store.shared.index.write().segments.get_mut(&SEGMENT).unwrap().1.waits_until = None;
            compact(&store);
            assert_eq!(runtime().block_on(store.get(hash)).unwrap(), Some(content));
        } else {
            assert!(runtime().block_on(store.put(hash, content)).unwrap());
            compact(&store);
        }
        assert!(!disk.segments().contains(&path) && store.contains(&hash), "read later: {is_read_later}");
    }
}

#[test]
fn a_copy_that_compaction_finds_damaged_is_reported_although_another_one_cannot_be_moved() {
    let (disk, runtime) = (TestDisk::new(), runtime());
    let (store, _) = mostly_dropped(&disk);
    let mut firsts = BTreeMap::new();
    for (hash, at) in &store.shared.index.read().blocks {
        let first = firsts.entry(at.segment).or_insert((*hash, at.offset));
        *first = if at.offset < first.1 { (*hash, at.offset) } else { *first };
    }
    for (segment, (_, offset)) in &firsts {
        disk.flip(&segment_name::path(Path::new(DIR), *segment), *offset as usize + HEADER_BYTES);
    }
    disk.cut_after(0);
    let mut damaged = Vec::new();
    assert!(runtime.block_on(store.compact_step(&mut damaged)).is_err());
    assert!(damaged.len() == 1 && firsts.values().any(|(hash, _)| *hash == damaged[0]), "{damaged:?}");
}

#[test]
fn a_segment_whose_removals_cannot_be_read_stays_until_they_are_not_needed() {
    let (disk, runtime) = (TestDisk::new(), runtime());
    let store = open(&disk);
    let [stays, gone, x, y, last] = [1, 2, 3, 4, 5].map(|byte| Bytes::from(vec![byte; 100 << 10]));
    let put = |block: &Bytes| runtime.block_on(store.put(BlockHash::of(block), block.clone())).unwrap();
    let drop = |block: &Bytes| runtime.block_on(store.drop_block(BlockHash::of(block))).unwrap();
    let compact =
        || std::iter::from_fn(|| runtime.block_on(store.compact_step(&mut Vec::new())).unwrap()).take(100).count();
    // Two of these blocks fill a segment.
    assert!(put(&stays) && put(&gone) && put(&x) && drop(&gone) && put(&y) && put(&last) && drop(&x) && drop(&y));
    let [first, second] = [1, 2].map(|number| segment_name::path(Path::new(DIR), SegmentId(number)));
    disk.0.files.lock().remove(&segment_name::hint_path(Path::new(DIR), SegmentId(2)));
    let unreadable = second.clone();
    disk.fail_reads(move |path, _, _| path == unreadable);
    assert_eq!(compact(), 1, "it is tried once");
    assert!(disk.segments().starts_with(&[first, second.clone()]));
    assert!(drop(&stays));
    assert_eq!(compact(), 2, "nothing is older than the removals any more");
    assert!(!disk.segments().contains(&second));
    assert_eq!(runtime.block_on(store.get(BlockHash::of(&last))).unwrap(), Some(last));
}

#[test]
fn a_segment_that_cannot_be_reserved_leaves_no_file_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("000000000001.segment");
    assert!(RealDisk.create(&path, 1 << 62).is_err(), "no disk is that large");
    assert!(!path.exists());
    assert!(RealDisk.create(&path, 1 << 20).is_ok(), "the name is free");
}

#[test]
fn free_bytes_are_those_that_blocks_can_take() {
    let (disk, runtime) = (TestDisk::new(), runtime());
    let (segment_bytes, reserve_bytes) = (20 << 20, 1 << 20);
    let store = open_as(&disk, StoreOptions { segment_bytes, reserve_bytes });
    let free = |bytes: u64| disk.0.free.store(bytes, Ordering::SeqCst);
    free(reserve_bytes + segment_bytes);
    assert_eq!(store.stats().free_bytes, segment_bytes);
    let large = Bytes::from(vec![1; 3 << 20]);
    runtime.block_on(store.put(BlockHash::of(&large), large)).unwrap();
    // The segment has taken all of the disk.
    free(reserve_bytes);
    let free_bytes = || store.stats().free_bytes;
    assert!((16 << 20..17 << 20).contains(&free_bytes()), "{}", free_bytes());
    // What is left when it is closed is too little for another one.
    free(reserve_bytes + (15 << 20));
    assert!(free_bytes() < 17 << 20, "{}", free_bytes());
}

#[test]
fn blocks_that_come_together_fill_the_last_room_one_by_one() {
    let (disk, runtime) = (TestDisk::new(), runtime());
    let (segment_bytes, reserve_bytes) = (256 << 20, 1 << 20);
    let store = Arc::new(open_as(&disk, StoreOptions { segment_bytes, reserve_bytes }));
    disk.0.free.store(reserve_bytes + (20 << 20), Ordering::SeqCst);
    let stored = runtime.block_on(async {
        let first = Bytes::from(vec![0; 4096]);
        store.put(BlockHash::of(&first), first).await.unwrap();
        disk.0.free.store(reserve_bytes, Ordering::SeqCst);
        let puts: Vec<_> = (1..=8_u8)
            .map(|number| {
                let (store, content) = (store.clone(), Bytes::from(vec![number; 4 << 20]));
                tokio::spawn(async move { store.put(BlockHash::of(&content), content).await.is_ok() })
            })
            .collect();
        futures::future::join_all(puts).await.into_iter().filter(|stored| *stored.as_ref().unwrap()).count()
    });
    assert_eq!(stored, 4, "20 MiB have room for four blocks of 4 MiB");
}
