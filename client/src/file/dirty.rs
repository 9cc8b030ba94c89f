//! Written bytes before they are cut into blocks. Pure: no I/O, no clock.
//!
//! The file's offset space is divided into slots of one block each. A slot written from end to end becomes a block of its
//! own, without a copy; small writes scattered over the file are packed together, so that a thousand of them cost one
//! upload.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use wire::limits::{BLOCK_BYTES_MAX, COMMIT_EXTENTS_MAX};

const SLOT: u64 = BLOCK_BYTES_MAX as u64;
/// A slot's memory grows in steps, from this on.
const SLOT_MIN: usize = 16 << 10;

/// Bytes of one slot that were written.
#[derive(Default)]
struct Slot {
    bytes: Vec<u8>,
    /// Written parts, disjoint, ordered, not touching each other.
    written: Vec<Range<usize>>,
}

impl Slot {
    /// Returns how many of the bytes were not written before.
    fn write(&mut self, at: usize, data: &[u8], sequential: bool) -> usize {
        let end = at + data.len();
        if self.bytes.len() < end {
            let grown = end.next_power_of_two().max(SLOT_MIN).min(SLOT as usize);
            let len = if sequential { SLOT as usize } else { grown };
            self.bytes.resize(len, 0);
        }
        self.bytes[at..end].copy_from_slice(data);
        self.mark(at..end)
    }

    fn mark(&mut self, new: Range<usize>) -> usize {
        let first = self.written.partition_point(|range| range.end < new.start);
        let last = self.written.partition_point(|range| range.start <= new.end);
        let merged = match self.written.get(first..last) {
            Some([one, .., other]) => one.start.min(new.start)..other.end.max(new.end),
            Some([one]) => one.start.min(new.start)..one.end.max(new.end),
            _ => new,
        };
        let before: usize = self.written[first..last].iter().map(Range::len).sum();
        let added = merged.len() - before;
        self.written.splice(first..last, [merged]);
        added
    }

    fn is_full(&self) -> bool {
        self.written.first().is_some_and(|range| *range == (0..SLOT as usize))
    }

    fn truncate(&mut self, len: usize) -> usize {
        let before: usize = self.written.iter().map(Range::len).sum();
        self.written.retain_mut(|range| {
            range.end = range.end.min(len);
            range.start < range.end
        });
        before - self.written.iter().map(Range::len).sum::<usize>()
    }
}

/// A block-to-be, and where its bytes belong in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The content.
    pub bytes: Bytes,
    /// File offset, offset within the content, length; ordered by file offset, disjoint.
    pub pieces: Vec<(u64, usize, usize)>,
}

/// Written bytes of one file.
#[derive(Default)]
pub struct Dirty {
    slots: BTreeMap<u64, Slot>,
}

impl Dirty {
    /// Whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes bytes in; returns how many of them were not written before.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8]) -> usize {
        let mut added = 0;
        while !data.is_empty() {
            let at = (offset % SLOT) as usize;
            let len = data.len().min(SLOT as usize - at);
            let number = offset / SLOT;
            // A slot right behind a full one will most likely become full as well.
            let sequential = at == 0 && number > 0 && self.slots.get(&(number - 1)).is_none_or(Slot::is_full);
            added += self.slots.entry(number).or_default().write(at, &data[..len], sequential && len >= SLOT_MIN);
            data = &data[len..];
            offset += len as u64;
        }
        added
    }

    /// Lays written bytes over `buffer`, which holds the file's content from `offset` on.
    pub fn overlay(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        for (number, slot) in self.slots.range(offset / SLOT..end.div_ceil(SLOT)) {
            let start = number * SLOT;
            for range in &slot.written {
                lay(start + range.start as u64, &slot.bytes[range.clone()], offset, buffer);
            }
        }
    }

    /// Whether all of a range is written.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>) -> bool {
        (range.start / SLOT..range.end.div_ceil(SLOT)).all(|number| {
            let start = (range.start.max(number * SLOT) - number * SLOT) as usize;
            let end = (range.end.min((number + 1) * SLOT) - number * SLOT) as usize;
            self.slots
                .get(&number)
                .is_some_and(|slot| slot.written.iter().any(|written| written.start <= start && end <= written.end))
        })
    }

    /// Forgets what lies at or behind `len`; returns how many bytes that were.
    pub fn truncate(&mut self, len: u64) -> usize {
        let mut gone = 0;
        self.slots.retain(|number, slot| {
            let keep = len.saturating_sub(number * SLOT).min(SLOT) as usize;
            gone += slot.truncate(keep);
            !slot.written.is_empty()
        });
        gone
    }

    /// Takes out the slots that are written from end to end: nothing more can be gained by waiting.
    pub fn take_full(&mut self) -> Vec<Packed> {
        let full: Vec<u64> = self.slots.iter().filter(|(_, slot)| slot.is_full()).map(|(number, _)| *number).collect();
        full.into_iter()
            .filter_map(|number| {
                let slot = self.slots.remove(&number)?;
                let pieces = vec![(number * SLOT, 0, slot.bytes.len())];
                Some(Packed { bytes: Bytes::from(slot.bytes), pieces })
            })
            .collect()
    }

    /// Takes everything out, packed into as few blocks as it needs.
    pub fn take_all(&mut self) -> Vec<Packed> {
        let mut packed = self.take_full();
        let mut bytes: Vec<u8> = Vec::new();
        let mut pieces = Vec::new();
        for (number, slot) in std::mem::take(&mut self.slots) {
            for range in &slot.written {
                let piece = &slot.bytes[range.clone()];
                if bytes.len() + piece.len() > BLOCK_BYTES_MAX || pieces.len() == COMMIT_EXTENTS_MAX {
                    packed
                        .push(Packed { bytes: std::mem::take(&mut bytes).into(), pieces: std::mem::take(&mut pieces) });
                }
                pieces.push((number * SLOT + range.start as u64, bytes.len(), piece.len()));
                bytes.extend_from_slice(piece);
            }
        }
        if !pieces.is_empty() {
            packed.push(Packed { bytes: bytes.into(), pieces });
        }
        packed
    }
}

/// Lays bytes that stand at `at` in the file over a buffer that begins at `offset`.
pub fn lay(at: u64, bytes: &[u8], offset: u64, buffer: &mut [u8]) {
    let start = at.max(offset);
    let end = (at + bytes.len() as u64).min(offset + buffer.len() as u64);
    if start < end {
        let source = &bytes[(start - at) as usize..(end - at) as usize];
        buffer[(start - offset) as usize..(end - offset) as usize].copy_from_slice(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back_and_packed_once(
            writes in proptest::collection::vec((0_u64..3 * SLOT, 1_usize..200_000, any::<u8>()), 1..12),
            cut in proptest::option::of(0_u64..3 * SLOT),
        ) {
            let size = 4 * SLOT as usize;
            let mut model: Vec<Option<u8>> = vec![None; size];
            let mut dirty = Dirty::default();
            let mut count = 0;
            for (offset, len, byte) in &writes {
                count += dirty.write(*offset, &vec![*byte; *len]);
                model[*offset as usize..*offset as usize + len].fill(Some(*byte));
            }
            if let Some(cut) = cut {
                count -= dirty.truncate(cut);
                model[cut as usize..].fill(None);
            }
            prop_assert_eq!(count, model.iter().flatten().count());
            let mut read = vec![0; size];
            dirty.overlay(0, &mut read);
            prop_assert!(read.iter().zip(&model).all(|(read, model)| *read == model.unwrap_or(0)));
            let mut packed = vec![None; size];
            for block in dirty.take_all() {
                prop_assert!(block.bytes.len() <= BLOCK_BYTES_MAX);
                for (at, from, len) in block.pieces {
                    for index in 0..len {
                        prop_assert!(packed[at as usize + index].replace(block.bytes[from + index]).is_none());
                    }
                }
            }
            prop_assert!(packed == model);
            prop_assert!(dirty.is_empty());
        }
    }

    #[test]
    fn a_slot_written_from_end_to_end_is_taken_at_once() {
        let mut dirty = Dirty::default();
        for step in 0..8 {
            assert!(dirty.take_full().is_empty());
            dirty.write(step * (SLOT / 8), &vec![1; SLOT as usize / 8]);
        }
        assert!(dirty.covers(&(0..SLOT)) && !dirty.covers(&(0..SLOT + 1)));
        assert_eq!(dirty.take_full()[0].pieces, [(0, 0, SLOT as usize)]);
        assert!(dirty.is_empty());
    }
}
