//! Written bytes before they are cut into blocks. Pure: no I/O, no clock.
//!
//! The file's offset space is divided into slots of one block each, and a slot holds runs of written bytes. A run that
//! grows moves into a block's buffer once. Written from end to end, it becomes a block of its own without another copy.
//! Small runs scattered over the file cost what they hold, and are packed together, so that a thousand of them make one
//! upload.

use crate::buffers::Buffers;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use wire::limits::COMMIT_EXTENTS_MAX;

/// A run that grows beyond this gets a block's buffer, and is a block of its own when it is cut.
const LARGE_RUN: usize = 256 << 10;
/// Runs written without a gap may be many (backwards, say). This limits the pieces of one block.
const PIECES_MAX: usize = COMMIT_EXTENTS_MAX / 2;

/// Written runs of one slot, by their offset in it. They are disjoint, but may touch.
struct Slot {
    /// Bytes of file offset space that it covers.
    size: usize,
    runs: BTreeMap<usize, Vec<u8>>,
    /// Sum of their lengths.
    written: usize,
}

impl Slot {
    fn new(size: u64) -> Self {
        Self { size: size as usize, runs: BTreeMap::new(), written: 0 }
    }

    /// Adds written bytes, none beyond the slot's end.
    fn write(&mut self, mut at: usize, mut data: &[u8], buffers: &Buffers) {
        debug_assert!(at + data.len() <= self.size);
        while !data.is_empty() {
            let next = self.runs.range(at + 1..).next().map_or(self.size, |(start, _)| *start);
            let before = self.runs.range_mut(..=at).next_back().filter(|(start, run)| *start + run.len() >= at);
            let taken = match before {
                Some((start, run)) => {
                    let within = at - start;
                    let over = (run.len() - within).min(data.len());
                    run[within..within + over].copy_from_slice(&data[..over]);
                    let more = (data.len() - over).min(next - at - over);
                    grow(run, more, buffers);
                    run.extend_from_slice(&data[over..over + more]);
                    self.written += more;
                    over + more
                }
                None => {
                    let len = data.len().min(next - at);
                    let mut run = Vec::new();
                    grow(&mut run, len, buffers);
                    run.extend_from_slice(&data[..len]);
                    self.runs.insert(at, run);
                    self.written += len;
                    len
                }
            };
            at += taken;
            data = &data[taken..];
        }
    }

    fn is_full(&self) -> bool {
        self.written == self.size
    }

    /// Returns whether all of a range is written.
    fn covers(&self, range: Range<usize>) -> bool {
        let mut at = range.start;
        let from = self.runs.range(..=at).next_back().map_or(at, |(start, _)| *start);
        for (start, run) in self.runs.range(from..range.end.max(from)) {
            if *start > at {
                break;
            }
            at = at.max(start + run.len());
        }
        at >= range.end
    }

    fn truncate(&mut self, len: usize, buffers: &Buffers) {
        for run in self.runs.split_off(&len).into_values() {
            self.written -= run.len();
            buffers.give_back(run);
        }
        if let Some((start, run)) = self.runs.last_key_value()
            && start + run.len() > len
        {
            let (start, rest) = (*start, len - start);
            if let Some(run) = self.runs.get_mut(&start) {
                self.written -= run.len() - rest;
                run.truncate(rest);
            }
        }
    }
}

/// Makes room for `more` bytes. A run that becomes large moves into a block's buffer.
fn grow(run: &mut Vec<u8>, more: usize, buffers: &Buffers) {
    let len = run.len() + more;
    if len <= run.capacity() {
        return;
    }
    if len <= LARGE_RUN {
        run.reserve(more);
        return;
    }
    let mut large = buffers.take();
    large.extend_from_slice(run);
    *run = large;
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
pub struct Dirty {
    /// Size of a slot, in bytes.
    slot: u64,
    slots: BTreeMap<u64, Slot>,
    /// Slots that became full since they were last taken out.
    full: Vec<u64>,
    /// Runs in all slots.
    runs: usize,
    buffers: Arc<Buffers>,
}

impl Dirty {
    /// Starts with nothing written. Memory comes from `buffers`. Blocks are cut at multiples of `slot`, a part of
    /// `BLOCK_BYTES_MAX`.
    #[must_use]
    pub fn new(buffers: Arc<Buffers>, slot: u64) -> Self {
        Self { slot, slots: BTreeMap::new(), full: Vec::new(), runs: 0, buffers }
    }

    /// Returns whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns how many separate pieces are held: each costs memory in addition to its bytes.
    #[must_use]
    pub fn run_count(&self) -> usize {
        self.runs
    }

    /// Returns the offset of the first written byte.
    #[must_use]
    pub fn start(&self) -> Option<u64> {
        let (number, slot) = self.slots.first_key_value()?;
        Some(number * self.slot + *slot.runs.first_key_value()?.0 as u64)
    }

    /// Returns the offset after the last written byte; 0 when there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        let last = self.slots.last_key_value();
        last.and_then(|(number, slot)| Some((number, slot.runs.last_key_value()?)))
            .map_or(0, |(number, (start, run))| number * self.slot + (start + run.len()) as u64)
    }

    /// Adds written bytes. Returns how many of them were not written before.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8]) -> usize {
        let mut added = 0;
        while !data.is_empty() {
            let at = (offset % self.slot) as usize;
            let len = data.len().min(self.slot as usize - at);
            let number = offset / self.slot;
            let slot = self.slots.entry(number).or_insert_with(|| Slot::new(self.slot));
            let (written, runs) = (slot.written, slot.runs.len());
            slot.write(at, &data[..len], &self.buffers);
            added += slot.written - written;
            self.runs += slot.runs.len() - runs;
            if slot.is_full() && written < self.slot as usize {
                self.full.push(number);
            }
            data = &data[len..];
            offset += len as u64;
        }
        added
    }

    /// Returns copies of the written parts of a range: file offset and bytes, in order.
    #[must_use]
    pub fn copy_of(&self, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let mut parts = Vec::new();
        for (number, slot) in self.slots.range(range.start / self.slot..range.end.div_ceil(self.slot)) {
            let base = number * self.slot;
            let first = range.start.saturating_sub(base) as usize;
            let from = slot.runs.range(..=first).next_back().map_or(first, |(start, _)| *start);
            for (start, run) in slot.runs.range(from..) {
                let at = base + *start as u64;
                if at >= range.end {
                    break;
                }
                let (begin, end) = (at.max(range.start), (at + run.len() as u64).min(range.end));
                if begin < end {
                    parts.push((begin, Bytes::copy_from_slice(&run[(begin - at) as usize..(end - at) as usize])));
                }
            }
        }
        parts
    }

    /// Lays written bytes over `buffer`, which holds the file's content from `offset` on.
    pub fn overlay(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        for (number, slot) in self.slots.range(offset / self.slot..end.div_ceil(self.slot)) {
            let base = number * self.slot;
            let first = offset.saturating_sub(base) as usize;
            let from = slot.runs.range(..=first).next_back().map_or(first, |(start, _)| *start);
            for (start, run) in slot.runs.range(from..).take_while(|(start, _)| base + (**start as u64) < end) {
                lay(base + *start as u64, run, offset, buffer);
            }
        }
    }

    /// Returns whether all of a range is written.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>) -> bool {
        (range.start / self.slot..range.end.div_ceil(self.slot)).all(|number| {
            let start = (range.start.max(number * self.slot) - number * self.slot) as usize;
            let end = (range.end.min((number + 1) * self.slot) - number * self.slot) as usize;
            self.slots.get(&number).is_some_and(|slot| slot.covers(start..end))
        })
    }

    /// Drops written bytes at or behind `len`. Returns how many there were.
    pub fn truncate(&mut self, len: u64) -> usize {
        let mut gone = 0;
        let (buffers, size) = (self.buffers.clone(), self.slot);
        self.slots.retain(|number, slot| {
            let rest = len.saturating_sub(number * size).min(size) as usize;
            let before = (slot.written, slot.runs.len());
            slot.truncate(rest, &buffers);
            gone += before.0 - slot.written;
            self.runs -= before.1 - slot.runs.len();
            slot.written > 0
        });
        let slots = &self.slots;
        self.full.retain(|number| slots.get(number).is_some_and(Slot::is_full));
        gone
    }

    /// Takes out the slots that are written from end to end: waiting gains nothing more for them.
    pub fn take_full(&mut self) -> Vec<Packed> {
        let full = std::mem::take(&mut self.full);
        full.into_iter()
            .filter_map(|number| {
                let mut slot = self.slots.remove(&number)?;
                self.runs -= slot.runs.len();
                let mut whole = slot.runs.pop_first()?.1;
                for run in slot.runs.into_values() {
                    grow(&mut whole, run.len(), &self.buffers);
                    whole.extend_from_slice(&run);
                    self.buffers.give_back(run);
                }
                let pieces = vec![(number * self.slot, 0, whole.len())];
                Some(Packed { bytes: self.buffers.freeze(whole), pieces })
            })
            .collect()
    }

    /// Takes everything out: large runs as blocks of their own, small ones packed into as few blocks as they need.
    pub fn take_all(&mut self) -> Vec<Packed> {
        let mut packed = self.take_full();
        let mut packer = Packer::new(self.buffers.clone(), self.slot);
        for (number, slot) in std::mem::take(&mut self.slots) {
            for (start, run) in slot.runs {
                let at = number * self.slot + start as u64;
                if run.len() > LARGE_RUN {
                    let pieces = vec![(at, 0, run.len())];
                    packed.push(Packed { bytes: self.buffers.freeze(run), pieces });
                } else {
                    packer.add(at, run);
                }
            }
        }
        self.runs = 0;
        packed.extend(packer.finish());
        packed
    }
}

/// Packs small runs, given in order of their offsets.
struct Packer {
    done: Vec<Packed>,
    bytes: Vec<u8>,
    pieces: Vec<(u64, usize, usize)>,
    buffers: Arc<Buffers>,
    slot: u64,
}

impl Packer {
    fn new(buffers: Arc<Buffers>, slot: u64) -> Self {
        Self { done: Vec::new(), bytes: Vec::new(), pieces: Vec::new(), buffers, slot }
    }

    fn add(&mut self, at: u64, run: Vec<u8>) {
        let len = run.len();
        if self.bytes.len() + len > self.slot as usize || self.pieces.len() == PIECES_MAX {
            self.cut();
        }
        match self.pieces.last_mut() {
            // Runs that touch are one piece, unless it would leave its slot: slots keep pieces within their chunk.
            Some((from, _, held)) if *from + *held as u64 == at && !at.is_multiple_of(self.slot) => *held += len,
            _ => self.pieces.push((at, self.bytes.len(), len)),
        }
        if self.bytes.is_empty() {
            // This is usually the only run: a small file needs no copy.
            self.bytes = run;
        } else {
            grow(&mut self.bytes, len, &self.buffers);
            self.bytes.extend_from_slice(&run);
        }
    }

    fn cut(&mut self) {
        if !self.pieces.is_empty() {
            let bytes = self.buffers.freeze(std::mem::take(&mut self.bytes));
            self.done.push(Packed { bytes, pieces: std::mem::take(&mut self.pieces) });
        }
    }

    fn finish(mut self) -> Vec<Packed> {
        self.cut();
        self.done
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
    use wire::limits::BLOCK_BYTES_MAX;

    const SLOT: u64 = BLOCK_BYTES_MAX as u64;

    fn dirty() -> Dirty {
        Dirty::new(Arc::default(), SLOT)
    }

    /// Places around a slot's border, some aligned, so that writes touch, overlap and cross.
    fn place() -> impl Strategy<Value = (u64, usize)> {
        let offset = prop_oneof![(0_u64..48).prop_map(|page| SLOT - 24 * 4096 + page * 4096), 0_u64..2 * SLOT];
        let len = prop_oneof![Just(4096_usize), 1_usize..300_000, Just(BLOCK_BYTES_MAX)];
        (offset, len)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn all_written_bytes_are_read_back_and_packed_once(
            writes in proptest::collection::vec((place(), any::<u8>()), 1..24),
            cut in proptest::option::of(0_u64..3 * SLOT),
            (look, look_len) in place(),
        ) {
            let size = 4 * SLOT as usize;
            let mut model: Vec<Option<u8>> = vec![None; size];
            let mut dirty = dirty();
            let mut count = 0;
            for ((offset, len), byte) in &writes {
                count += dirty.write(*offset, &vec![*byte; *len]);
                model[*offset as usize..*offset as usize + len].fill(Some(*byte));
            }
            if let Some(cut) = cut {
                count -= dirty.truncate(cut);
                model[cut as usize..].fill(None);
            }
            prop_assert_eq!(count, model.iter().flatten().count());
            prop_assert_eq!(dirty.end() as usize, model.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
            let seen = look as usize..look as usize + look_len;
            prop_assert_eq!(dirty.covers(&(look..look + look_len as u64)), model[seen.clone()].iter().all(Option::is_some));
            let mut read = vec![0; look_len];
            dirty.overlay(look, &mut read);
            prop_assert!(read.iter().zip(&model[seen.clone()]).all(|(read, model)| *read == model.unwrap_or(0)));
            let mut copied = vec![None; look_len];
            for (at, bytes) in dirty.copy_of(&(look..look + look_len as u64)) {
                for (index, byte) in bytes.iter().enumerate() {
                    prop_assert!(copied[(at - look) as usize + index].replace(*byte).is_none());
                }
            }
            prop_assert!(copied == model[seen]);
            let mut packed = vec![None; size];
            for block in dirty.take_all() {
                prop_assert!(block.bytes.len() <= BLOCK_BYTES_MAX && block.pieces.len() <= PIECES_MAX);
                for (at, from, len) in block.pieces {
                    prop_assert_eq!(at / SLOT, (at + len as u64 - 1) / SLOT);
                    for index in 0..len {
                        prop_assert!(packed[at as usize + index].replace(block.bytes[from + index]).is_none());
                    }
                }
            }
            prop_assert!(packed == model);
            prop_assert!(dirty.is_empty() && dirty.run_count() == 0);
        }
    }

    #[test]
    fn a_slot_written_from_end_to_end_is_taken_at_once() {
        let mut dirty = dirty();
        for step in 0..8 {
            assert!(dirty.take_full().is_empty());
            dirty.write(step * (SLOT / 8), &vec![1; SLOT as usize / 8]);
        }
        assert!(dirty.covers(&(0..SLOT)) && !dirty.covers(&(0..SLOT + 1)));
        assert_eq!(dirty.take_full()[0].pieces, [(0, 0, SLOT as usize)]);
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_thousand_small_writes_make_one_block_and_cost_what_they_hold() {
        let mut dirty = dirty();
        for number in 0..1000 {
            dirty.write(number * 1_000_000, &[number as u8; 100]);
        }
        let held: usize = dirty.slots.values().flat_map(|slot| slot.runs.values()).map(Vec::capacity).sum();
        assert_eq!(held, 100_000);
        let packed = dirty.take_all();
        assert_eq!(packed.len(), 1);
        assert_eq!(packed[0].pieces.len(), 1000);
    }
}
