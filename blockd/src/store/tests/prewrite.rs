//! Zeros written ahead: small groups overwrite them, and recovery recognises them.

use super::{TestDisk, block, open_with, runtime};
use crate::store::buffer;
use crate::store::disk::Disk;
use crate::store::{SegmentId, Store, segment};
use bytes::Bytes;
use wire::ids::BlockHash;

const SEGMENT_BYTES: u64 = 8 << 20;

fn put(store: &Store, content: Bytes) {
    assert!(runtime().block_on(store.put(BlockHash::of(&content), content)).unwrap());
}

fn page(number: u16) -> Bytes {
    Bytes::from(number.to_le_bytes().repeat(2048))
}

/// Lengths of the writes that went beyond all earlier ones, and how many did not.
fn beyond(writes: &[(u64, u64)]) -> (Vec<u64>, usize) {
    let (mut end, mut lens) = (0, Vec::new());
    for (offset, len) in writes {
        if offset + len > end {
            end = offset + len;
            lens.push(*len);
        }
    }
    let within = writes.len() - lens.len();
    (lens, within)
}

#[test]
fn small_groups_overwrite_the_zeros_written_ahead_of_them() {
    let disk = TestDisk::new();
    let store = open_with(&disk, SEGMENT_BYTES);
    (0..300).for_each(|number| put(&store, page(number)));
    let (lens, within) = beyond(&disk.0.writes.lock());
    assert_eq!((lens, within), (vec![8192 + (1 << 20); 3], 297), "300 groups of 8 KiB");
}

#[test]
fn large_groups_write_nothing_ahead() {
    let disk = TestDisk::new();
    let store = open_with(&disk, SEGMENT_BYTES);
    for number in 0..3 {
        put(&store, Bytes::from(vec![number; 1 << 20]));
    }
    let large = (1 << 20) + 4096;
    assert_eq!(beyond(&disk.0.writes.lock()), (vec![large; 3], 0));
    put(&store, page(1));
    assert_eq!(beyond(&disk.0.writes.lock()), (vec![large, large, large, 8192 + (1 << 20)], 0));
    put(&store, Bytes::from(vec![9; 700_000]));
    put(&store, page(2));
    assert_eq!(disk.0.writes.lock().last().map(|(_, len)| *len), Some(8192), "the zeros are not used up");
}

#[test]
fn nothing_is_written_ahead_beyond_the_segment() {
    let disk = TestDisk::new();
    let store = open_with(&disk, 100 << 10);
    (0..40).for_each(|number| put(&store, page(number)));
    assert!(disk.0.writes.lock().iter().all(|(offset, len)| offset + len <= 100 << 10));
    drop(store);
    let segments = disk.segments();
    let files = disk.0.files.lock();
    let sizes: Vec<usize> = segments.iter().map(|path| files[path].stable.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 40 * 8192, "closed segments are cut: {sizes:?}");
}

/// Guards I9.
#[test]
fn after_a_power_cut_zeros_written_ahead_are_cut_off_and_no_damage() {
    for (calls, seed) in (0..12_u64).flat_map(|calls| (0..4_u64).map(move |seed| (calls, seed))) {
        let (disk, runtime) = (TestDisk::new(), runtime());
        let store = open_with(&disk, 2 << 20);
        put(&store, page(999));
        disk.cut_after(calls);
        let stored: Vec<bool> = (0..12)
            .map(|number| {
                let (hash, content) = block(number);
                runtime.block_on(store.put(hash, content)).is_ok()
            })
            .collect();
        drop(store);
        disk.power_on(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let path = disk.segments().remove(0);
        let scan = segment::scan(&*disk.open(&path).unwrap(), &buffer::pool(), SegmentId(1)).unwrap();
        assert_eq!(scan.damaged, 0, "power cut after {calls} calls, seed {seed}");
        let store = open_with(&disk, 2 << 20);
        assert!(disk.0.files.lock()[&path].stable.len() <= 8192 + scan.end as usize, "the tail is cut");
        for (number, stored) in stored.into_iter().enumerate() {
            let (hash, content) = block(number as u16);
            let found = runtime.block_on(store.get(hash)).unwrap();
            assert!(found == Some(content) || (found.is_none() && !stored), "block {number} after {calls} calls");
        }
    }
}
