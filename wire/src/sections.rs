//! The hash of a block as a tree of sections, so that a part of a block can be verified without reading all of it.
//!
//! BLAKE3 is a tree (section 2.1 of its paper): its leaves are chunks of 1 KiB, and a run of chunks whose length is a
//! power of two, and which begins at a multiple of that, is a subtree with a *chaining value* of its own. A *section*
//! is such a run of [`SECTION_BYTES`]; the last one of a block may be shorter. The values of all sections merge to the
//! block's name. A reader that knows the values, and has checked that they merge to the name, can verify each section
//! by itself: a value that fits other bytes would be a collision of the hash.
//!
//! A block of one section has no values: its name is the hash of the section.

use crate::ids::BlockHash;
use crate::limits::BLOCK_BYTES_MAX;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::ops::Range;

/// Bytes of a section. Smaller sections would make the list of values longer, which comes along with every read of a
/// part; larger ones would make more bytes be read and hashed beyond the part.
pub const SECTION_BYTES: usize = 1 << SECTION_LOG2;
/// Bytes of a section, as a power of two. Records and extents say it, so that later sections may have another size.
pub const SECTION_LOG2: u8 = 16;
/// Most sections of a block.
const SECTIONS_MAX: usize = BLOCK_BYTES_MAX / SECTION_BYTES;
/// Bytes of a value.
const VALUE_BYTES: usize = size_of::<ChainingValue>();

const _: () = assert!(SECTION_BYTES >= blake3::CHUNK_LEN);
const _: () = assert!(BLOCK_BYTES_MAX.is_multiple_of(SECTION_BYTES));

/// Chaining values of a block's sections, in order; none for a block of one section.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sections(Vec<ChainingValue>);

impl Sections {
    /// Name and values of a block. Takes about a millisecond for a large one: not for a runtime thread.
    #[must_use]
    pub fn of(block: &[u8]) -> (BlockHash, Self) {
        let mut hasher = SectionHasher::default();
        hasher.update(block);
        hasher.finish()
    }

    /// Bytes of the values of a block of this length.
    pub const fn stored_len(block_len: u32) -> usize {
        let count = (block_len as usize).div_ceil(SECTION_BYTES);
        if count > 1 { count * VALUE_BYTES } else { 0 }
    }

    /// The values, one behind the other.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }

    /// Reads the values of a block of more than one section; `None` when they do not merge to its name.
    pub fn decode(bytes: &[u8], hash: &BlockHash) -> Option<Self> {
        let (values, []) = bytes.as_chunks::<VALUE_BYTES>() else { return None };
        let sections = Self(values.to_vec());
        (values.len() > 1 && sections.root() == *hash).then_some(sections)
    }

    /// Reports whether these are the bytes of the block from `offset` on. They must begin and end where sections do.
    pub fn fit(&self, offset: usize, bytes: &[u8]) -> bool {
        assert!(offset.is_multiple_of(SECTION_BYTES), "{offset} is within a section");
        let first = offset / SECTION_BYTES;
        let mut values = self.0.iter().skip(first);
        bytes.chunks(SECTION_BYTES).enumerate().all(|(index, section)| {
            let value = hasher_at((first + index) * SECTION_BYTES).update(section).finalize_non_root();
            values.next() == Some(&value)
        })
    }

    /// The name that the values, at least two, merge to: layer by layer, in pairs; an odd one moves up.
    fn root(&self) -> BlockHash {
        let mut layer = self.0.clone();
        while layer.len() > 2 {
            layer = layer
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                    odd => odd[0],
                })
                .collect();
        }
        BlockHash(*merge_subtrees_root(&layer[0], &layer[1], Mode::Hash).as_bytes())
    }
}

/// The sections that hold `range` of a block of this length, as a range of its bytes. `range` lies within the block.
pub fn covering(range: &Range<usize>, block_len: usize) -> Range<usize> {
    let start = range.start - range.start % SECTION_BYTES;
    start..range.end.next_multiple_of(SECTION_BYTES).min(block_len)
}

fn hasher_at(offset: usize) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset as u64);
    hasher
}

/// Computes name and sections of a block that arrives in pieces. Fastest when the pieces end where sections do.
#[derive(Default)]
pub struct SectionHasher {
    /// Values of the sections that are complete and not the last one.
    values: Vec<ChainingValue>,
    /// The section after them.
    open: blake3::Hasher,
}

impl SectionHasher {
    /// Takes the bytes that follow.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open.count() == SECTION_BYTES as u64 {
                // Only now is it known not to be the last section: a block of one section is hashed as a root.
                self.values.push(self.open.finalize_non_root());
                assert!(self.values.len() < SECTIONS_MAX, "blocks are not longer");
                self.open = hasher_at(self.values.len() * SECTION_BYTES);
            }
            let room = SECTION_BYTES - self.open.count() as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open.update(now);
            bytes = later;
        }
    }

    /// Name and sections of all that was taken.
    #[must_use]
    pub fn finish(mut self) -> (BlockHash, Sections) {
        if self.values.is_empty() {
            return (BlockHash(*self.open.finalize().as_bytes()), Sections::default());
        }
        self.values.push(self.open.finalize_non_root());
        let sections = Sections(self.values);
        (sections.root(), sections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| (at / 7) as u8 ^ (at >> 13) as u8 ^ seed).collect()
    }

    fn check(block: &[u8], pieces: &[usize]) {
        let expected = BlockHash::of(block);
        let (name, sections) = Sections::of(block);
        assert_eq!(name, expected, "{} bytes", block.len());
        assert_eq!(sections.as_bytes().len(), Sections::stored_len(block.len() as u32));
        let mut hasher = SectionHasher::default();
        let mut rest = block;
        for piece in pieces.iter().cycle().take(1000) {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            hasher.update(now);
            rest = later;
        }
        hasher.update(rest);
        assert_eq!(hasher.finish(), (expected, sections));
    }

    /// Guards I9.
    #[test]
    fn sections_merge_to_the_name_at_every_boundary() {
        let whole = block(BLOCK_BYTES_MAX, 3);
        check(&[], &[1]);
        for count in [1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 63, 64] {
            for len in [-1025, -1024, -1, 0, 1, 1023, 1024, 1025] {
                let len = (count * SECTION_BYTES).saturating_add_signed(len).min(BLOCK_BYTES_MAX);
                check(&whole[..len], &[SECTION_BYTES]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Guards I9.
        #[test]
        fn sections_merge_to_the_name_whatever_the_length(
            len in prop_oneof![0..3 * SECTION_BYTES, 0..=BLOCK_BYTES_MAX],
            pieces in proptest::collection::vec(1_usize..200_000, 1..5),
            seed: u8,
        ) {
            check(&block(len, seed), &pieces);
        }

        /// Guards I9.
        #[test]
        fn a_flipped_bit_of_a_section_or_of_a_value_is_noticed(
            len in SECTION_BYTES + 1..600_000_usize,
            at: usize,
            value_at: usize,
            bit in 0_u8..8,
        ) {
            let (mut block, at) = (block(len, 1), at % len);
            let (name, sections) = Sections::of(&block);
            prop_assert_eq!(Sections::decode(sections.as_bytes(), &name), Some(sections.clone()));
            prop_assert!(sections.fit(0, &block));
            block[at] ^= 1 << bit;
            for start in (0..len).step_by(SECTION_BYTES) {
                let section = covering(&(start..start + 1), len);
                let good = sections.fit(start, &block[section.clone()]);
                prop_assert_eq!(good, !section.contains(&at));
            }
            let mut values = sections.as_bytes().to_vec();
            let value_at = value_at % values.len();
            values[value_at] ^= 1 << bit;
            prop_assert_eq!(Sections::decode(&values, &name), None);
        }

        #[test]
        fn covering_sections_hold_the_range_and_no_more(len in 1..400_000_usize, a: usize, b: usize) {
            let (a, b) = (a % len, b % len);
            let range = a.min(b)..a.max(b) + 1;
            let cover = covering(&range, len);
            prop_assert!(cover.start <= range.start && range.end <= cover.end && cover.end <= len);
            prop_assert!(range.start - cover.start < SECTION_BYTES && cover.end - range.end < SECTION_BYTES);
            prop_assert!(cover.start.is_multiple_of(SECTION_BYTES));
            prop_assert!(cover.end.is_multiple_of(SECTION_BYTES) || cover.end == len);
        }

        #[test]
        fn arbitrary_values_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sections::decode(&bytes, &BlockHash([7; 32])), None);
        }
    }
}
