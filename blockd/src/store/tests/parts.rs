//! Parts of blocks: how much is read for them, and which damage they notice.

use super::{TestDisk, open, runtime};
use crate::store::record::HEADER_BYTES;
use crate::store::{Error, Scrubbed, Store};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Runtime;
use wire::ids::BlockHash;
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::{SECTION_BYTES, Sections};

/// A store with one block, the first record of the first segment.
struct Setup {
    runtime: Runtime,
    disk: TestDisk,
    store: Store,
    hash: BlockHash,
    content: Bytes,
}

impl Setup {
    fn new(len: usize) -> Self {
        let (runtime, disk) = (runtime(), TestDisk::new());
        let store = open(&disk);
        let content: Bytes = (0..len).map(|at| (at / 3) as u8 ^ (at >> 11) as u8).collect();
        let hash = BlockHash::of(&content);
        assert!(runtime.block_on(store.put(hash, content.clone())).unwrap());
        Self { runtime, disk, store, hash, content }
    }

    /// Damages a byte behind the header: of the payload, then of the trailer.
    fn flip(&self, at: usize) {
        self.disk.flip(&self.disk.segments()[0], HEADER_BYTES + at);
    }

    fn part(&self, offset: usize, len: usize) -> Result<Option<(u32, Bytes)>, Error> {
        self.runtime.block_on(self.store.get_part(self.hash, offset as u32, len as u32))
    }

    fn assert_part(&self, offset: usize, len: usize) {
        let (block_len, bytes) = self.part(offset, len).unwrap().unwrap();
        let start = offset.min(self.content.len());
        let end = (offset + len).min(self.content.len());
        assert_eq!(block_len as usize, self.content.len());
        assert_eq!(bytes, self.content[start..end]);
    }

    fn assert_damaged(&self, offset: usize, len: usize) {
        let part = self.part(offset, len);
        assert!(matches!(part, Err(Error::Corrupt { .. })), "{part:?}");
        assert!(!self.store.contains(&self.hash), "it is quarantined");
    }
}

const BLOCK: usize = 10 * SECTION_BYTES + 1000;

/// Guards I9.
#[test]
fn a_part_is_served_although_another_section_is_damaged() {
    let setup = Setup::new(BLOCK);
    setup.flip(5 * SECTION_BYTES + 17);
    for section in (0..=10).filter(|section| *section != 5) {
        setup.assert_part(section * SECTION_BYTES + 100, 800);
    }
    setup.assert_part(3 * SECTION_BYTES + 100, 2 * SECTION_BYTES - 100);
    assert!(setup.store.contains(&setup.hash));
    setup.assert_damaged(5 * SECTION_BYTES - 1, 2);
}

/// Guards I9.
#[test]
fn a_part_is_not_served_when_its_own_section_is_damaged() {
    for (damage, offset, len) in [
        (0, SECTION_BYTES - 1, 1),
        (4 * SECTION_BYTES, 4 * SECTION_BYTES + 9, 1000),
        (6 * SECTION_BYTES - 1, 4 * SECTION_BYTES, SECTION_BYTES + 1),
        (BLOCK - 1, 10 * SECTION_BYTES, 1),
    ] {
        let setup = Setup::new(BLOCK);
        setup.flip(damage);
        setup.assert_damaged(offset, len);
        assert_eq!(setup.part(offset, len).unwrap(), None, "until it is put again");
        assert!(setup.runtime.block_on(setup.store.put(setup.hash, setup.content.clone())).unwrap());
        setup.assert_part(offset, len);
    }
}

/// Guards I9.
#[test]
fn a_damaged_trailer_is_made_anew_from_a_good_block() {
    for scrubbed in [false, true] {
        let setup = Setup::new(BLOCK);
        setup.flip(BLOCK + 40);
        if scrubbed {
            let step = setup.runtime.block_on(setup.store.scrub_step(BlockHash([0; 32])));
            assert!(matches!(step, Some((hash, len, Scrubbed::Good)) if hash == setup.hash && len == BLOCK as u32));
        } else {
            setup.assert_part(100, 100);
        }
        // The part is read by its new trailer: the new record is behind the old one, or in the next segment.
        let segments = setup.disk.segments();
        let stable = setup.disk.0.files.lock()[segments.last().unwrap()].stable.clone();
        let (_, sections) = Sections::of(&setup.content);
        assert!(stable.windows(64).any(|window| window == &sections.as_bytes()[..64]), "scrubbed: {scrubbed}");
        setup.assert_part(100, 100);
        assert_eq!(setup.runtime.block_on(setup.store.get(setup.hash)).unwrap(), Some(setup.content.clone()));
    }
}

/// Guards I9.
#[test]
fn a_part_is_not_served_when_trailer_and_block_are_damaged() {
    let setup = Setup::new(BLOCK);
    setup.flip(BLOCK + 40);
    setup.flip(7 * SECTION_BYTES);
    setup.assert_damaged(0, 10);
}

#[test]
fn a_part_is_read_without_the_rest_of_the_block() {
    let setup = Setup::new(BLOCK_BYTES_MAX);
    for offset in [0, 100_000, BLOCK_BYTES_MAX - 4096] {
        let before = setup.disk.bytes_read();
        setup.assert_part(offset, 4096);
        let read = setup.disk.bytes_read() - before;
        assert!(read <= (SECTION_BYTES + 4 * 4096) as u64, "{read} bytes were read for 4096 at {offset}");
    }
}

#[test]
fn a_short_part_keeps_no_memory_but_its_own() {
    let is_its_own = |setup: &Setup, offset, len| {
        let (_, bytes) = setup.part(offset, len).unwrap().unwrap();
        assert!(!bytes.is_empty());
        bytes.try_into_mut().is_ok()
    };
    for len in [100, SECTION_BYTES, BLOCK] {
        let setup = Setup::new(len);
        assert!(is_its_own(&setup, 0, 1) && is_its_own(&setup, len - 1, 9));
    }
    let setup = Setup::new(BLOCK);
    assert!(is_its_own(&setup, 0, SECTION_BYTES / 2) && is_its_own(&setup, SECTION_BYTES - 1, 2));
    assert!(!is_its_own(&setup, 0, BLOCK), "that would be a copy for nothing");
    setup.flip(BLOCK + 40);
    assert!(is_its_own(&setup, 0, 1), "the whole block was read");
}

#[test]
fn compaction_and_restart_keep_trailers() {
    let len = SECTION_BYTES + 1000;
    let setup = Setup::new(len);
    // This block fills the rest of the segment, and is dropped in the next one.
    let other = Bytes::from(vec![8; 190_000]);
    let (runtime, store) = (&setup.runtime, &setup.store);
    let other_hash = BlockHash::of(&other);
    runtime.block_on(store.put(other_hash, other)).unwrap();
    runtime.block_on(store.drop_block(other_hash)).unwrap();
    let copied = runtime.block_on(store.compact_step(&mut Vec::new())).unwrap();
    assert!(copied.as_ref().is_some_and(|compacted| compacted.copied > len as u64), "{copied:?}");
    setup.assert_part(len - 5, 5);
    let Setup { runtime, disk, store, hash, content } = setup;
    drop(store);
    let store = open(&disk);
    let setup = Setup { runtime, disk, store, hash, content };
    let before = setup.disk.bytes_read();
    setup.assert_part(len - 5, 5);
    assert!(setup.disk.bytes_read() - before < 2 * SECTION_BYTES as u64, "the trailer was good");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_part_equals_the_bytes_of_the_block_in_its_range(
        len in prop_oneof![1..3 * SECTION_BYTES, Just(SECTION_BYTES), Just(2 * SECTION_BYTES), 1..600_000_usize],
        parts in proptest::collection::vec((0..700_000_usize, 0..200_000_usize), 1..8),
    ) {
        let setup = Setup::new(len);
        for (offset, part_len) in parts {
            setup.assert_part(offset, part_len);
        }
        setup.assert_part(0, u32::MAX as usize);
    }
}
