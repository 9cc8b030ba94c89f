//! Content that was written to a file and is not committed: bytes still being gathered, and blocks being uploaded.
//! Pure: no I/O, and the clock is the caller's.
//!
//! Written bytes are *dirty* until they are *sealed*: cut into blocks with numbers of their own, in the order in which
//! they are committed (I7). Sealed pieces up to one number are in the write-back queue, and up to another one in the
//! journal.

use super::dirty::{Dirty, Packed, lay};
use super::sealed::{Sealed, To, Uploading};
use bytes::Bytes;
use rangemap::RangeSet;
use std::collections::VecDeque;
use std::ops::Range;
use wire::attr::Timestamp;
use wire::ids::ChunkIndex;
use wire::limits::INLINE_BYTES_MAX;

/// Most separate pieces of one file that may wait to be committed: each costs some hundred bytes of memory in addition
/// to its own.
const RUNS_MAX: usize = 65_536;
/// Content up to this size may share a block.
pub(crate) const SHARED_BLOCK_PART_MAX: usize = 128 << 10;

/// Uncommitted content of one file.
pub(crate) struct Pending {
    dirty: Dirty,
    sealed: VecDeque<Sealed>,
    /// Number of the last sealed piece.
    last_number: u64,
    /// Pieces up to this number are in the write-back queue.
    queued: u64,
    /// Pieces up to this number are in the journal on disk.
    journaled: u64,
    /// Bytes in `dirty` and `sealed`.
    held: u64,
    /// How many of them the window counts: content that the policy refuses must not take room from others.
    counted: u64,
    /// When content was written last, by this machine's clock.
    mtime: Option<Timestamp>,
    /// Writing must clear setuid and setgid.
    clear_privileges: bool,
    /// Everything uncommitted was appended, starting at this offset.
    appended_from: Option<u64>,
    /// Parts that came in pages that a program has changed through a mapping, and of which it may have changed some
    /// bytes only. What a program has written by itself is not among them.
    mapped: RangeSet<u64>,
}

/// A sealed piece that an earlier client has left in the journal.
pub(crate) struct Restored {
    pub packed: Packed,
    /// It was appended, and may be appended again.
    pub appended: bool,
    pub mtime: Option<Timestamp>,
    pub clear_privileges: bool,
}

impl Pending {
    /// Starts with nothing uncommitted.
    pub fn new(dirty: Dirty) -> Self {
        Self {
            dirty,
            sealed: VecDeque::new(),
            last_number: 0,
            queued: 0,
            journaled: 0,
            held: 0,
            counted: 0,
            mtime: None,
            clear_privileges: false,
            appended_from: None,
            mapped: RangeSet::new(),
        }
    }

    /// Returns whether everything is committed.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Returns the number of uncommitted bytes.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Returns when content was written last.
    pub fn mtime(&self) -> Option<Timestamp> {
        self.mtime
    }

    /// Returns whether its commit clears setuid and setgid.
    pub fn clear_privileges(&self) -> bool {
        self.clear_privileges
    }

    /// Returns where the content begins, if all of it was appended.
    pub fn appended_from(&self) -> Option<u64> {
        self.appended_from
    }

    /// Returns whether the content is in so many separate pieces that they cost more memory than the window counts.
    pub fn is_scattered(&self) -> bool {
        self.dirty.run_count() > RUNS_MAX
    }

    /// Returns the offset after the last uncommitted byte; 0 when there is none.
    pub fn end(&self) -> u64 {
        let pieces = self.sealed.iter().filter_map(|sealed| sealed.packed.pieces.last());
        pieces.map(|(at, _, len)| at + *len as u64).max().unwrap_or(0).max(self.dirty.end())
    }

    /// Returns the offset of the first uncommitted byte.
    fn start(&self) -> Option<u64> {
        let sealed = self.sealed.iter().flat_map(|sealed| &sealed.packed.pieces).map(|(at, _, _)| *at);
        sealed.chain(self.dirty.start()).min()
    }

    /// Adds written bytes, at an offset or at the end of a file of this size. Returns where they went, and how many
    /// bytes more the window counts.
    pub fn write(
        &mut self,
        (offset, size): (Option<u64>, u64),
        data: &[u8],
        clear_privileges: bool,
        now: Timestamp,
    ) -> (u64, usize) {
        let at = offset.unwrap_or(size);
        if !data.is_empty() {
            self.mapped.remove(at..at + data.len() as u64);
        }
        if self.held == 0 {
            self.appended_from = offset.is_none().then_some(at);
        } else if offset.is_some() {
            self.appended_from = None;
        }
        let added = self.dirty.write(at, data);
        self.held += added as u64;
        self.counted += added as u64;
        self.mtime = Some(now);
        self.clear_privileges |= clear_privileges;
        (at, added)
    }

    /// Adds bytes that came in pages that a program has changed through a mapping. Returns how many bytes more the
    /// window counts.
    pub fn write_mapped(&mut self, at: u64, data: &[u8], now: Timestamp) -> usize {
        let range = at..at + data.len() as u64;
        if range.is_empty() {
            return 0;
        }
        // The pages have what the program has written by itself, too, and that is committed in any case.
        let mut written = self.dirty.written_in(&range);
        for sealed in &self.sealed {
            written.extend(sealed.within(&range).map(|(at, bytes)| at..at + bytes.len() as u64));
        }
        let mut own: RangeSet<u64> = written.into_iter().collect();
        for mapped in self.mapped.overlapping(&range) {
            own.remove(mapped.clone());
        }
        let (_, added) = self.write((Some(at), at), data, false, now);
        for part in own.gaps(&range) {
            self.mapped.insert(part);
        }
        added
    }

    /// Returns which parts of these ranges came in pages of which a program may have changed some bytes only.
    pub fn mapped_in(&self, ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
        let within = |range: Range<u64>| {
            let parts = self.mapped.overlapping(range.clone());
            parts.map(move |part| part.start.max(range.start)..part.end.min(range.end)).collect::<Vec<_>>()
        };
        ranges.flat_map(within).collect()
    }

    /// Returns all such parts.
    pub fn mapped(&self) -> &RangeSet<u64> {
        &self.mapped
    }

    /// Notes that a time was set after this was written: its commit must not set an older one.
    pub fn set_mtime(&mut self, mtime: Timestamp) {
        self.mtime = Some(mtime);
    }

    /// Drops what was written from `size` on, because the file was cut there. Returns how many bytes less the window
    /// counts; `None` when nothing lies behind `size`.
    pub fn cut(&mut self, size: u64) -> Option<u64> {
        if self.end() <= size {
            return None;
        }
        let sealed: Vec<Packed> = self.sealed.drain(..).map(|sealed| sealed.packed).collect();
        let rest = self.dirty.take_all();
        let mut held = 0;
        // In the order in which it was written: later content lies over earlier content.
        for packed in sealed.into_iter().chain(rest) {
            for (at, from, len) in packed.pieces {
                let len = (size.saturating_sub(at)).min(len as u64) as usize;
                if len > 0 {
                    held += self.dirty.write(at, &packed.bytes[from..from + len]) as u64;
                }
            }
        }
        (self.queued, self.journaled, self.appended_from) = (0, 0, None);
        self.held = held;
        self.mapped.remove(size..u64::MAX);
        if held == 0 {
            (self.mtime, self.clear_privileges) = (None, false);
            self.mapped.clear();
        }
        let gone = self.counted.saturating_sub(held);
        self.counted -= gone;
        Some(gone)
    }

    fn seal(&mut self, packed: Packed, uploading: Uploading) {
        self.last_number += 1;
        self.sealed.push_back(Sealed { packed, uploading, number: self.last_number });
    }

    /// Seals blocks that are written from end to end. `upload` begins to upload them.
    pub fn seal_full(&mut self, mut upload: impl FnMut(&Packed, To) -> Uploading) {
        for packed in self.dirty.take_full() {
            let uploading = upload(&packed, To::OwnBlock);
            self.seal(packed, uploading);
        }
    }

    /// Seals everything that is written. `upload` begins to upload it. Small content may share a block with content of
    /// other files, if `to` says so, and goes inline where `has_inline_room`. Returns the number of the last sealed
    /// piece, also if it was sealed before.
    pub fn seal_rest(
        &mut self,
        to: To,
        has_inline_room: impl FnMut(ChunkIndex) -> bool,
        mut upload: impl FnMut(&Packed, To) -> Uploading,
    ) -> Option<u64> {
        let alone = self.sealed.is_empty();
        let packed = self.dirty.take_all();
        let bytes: usize = packed.iter().map(|packed| packed.bytes.len()).sum();
        let mut places = packed.iter().flat_map(|packed| &packed.pieces).map(|(at, _, _)| ChunkIndex::of(*at));
        let inline = alone && bytes <= INLINE_BYTES_MAX && places.all(has_inline_room);
        for packed in packed {
            let small = packed.bytes.len() <= SHARED_BLOCK_PART_MAX;
            let to = match (inline, small) {
                (true, _) => To::Metadata,
                (false, true) => to,
                (false, false) => To::OwnBlock,
            };
            let uploading = upload(&packed, to);
            self.seal(packed, uploading);
        }
        self.sealed.back().map(|sealed| sealed.number)
    }

    /// Adds a piece from the journal, where it stays. Returns its number.
    pub fn restore(&mut self, restored: Restored, uploading: Uploading) -> u64 {
        let Restored { packed, appended, mtime, clear_privileges } = restored;
        let first = packed.pieces.iter().map(|(at, _, _)| *at).min().unwrap_or(0);
        let appended = appended && (self.sealed.is_empty() || self.appended_from.is_some());
        // Pieces come in the order in which they were sealed, which may not be that of their offsets.
        self.appended_from = appended.then(|| self.appended_from.map_or(first, |from| from.min(first)));
        self.mtime = mtime;
        self.clear_privileges |= clear_privileges;
        let len: u64 = packed.pieces.iter().map(|(_, _, len)| *len as u64).sum();
        self.seal(packed, uploading);
        self.held += len;
        self.counted += len;
        (self.queued, self.journaled) = (self.last_number, self.last_number);
        self.last_number
    }

    /// Returns whether all content is in the write-back queue.
    pub fn is_queued(&self) -> bool {
        self.dirty.is_empty() && self.sealed.back().is_none_or(|last| last.number <= self.queued)
    }

    /// Returns whether the first sealed piece is in the write-back queue.
    pub fn first_is_queued(&self) -> bool {
        self.sealed.front().is_some_and(|first| first.number <= self.queued)
    }

    /// Notes that pieces up to this number enter the write-back queue. False when they are there already.
    pub fn enter_queue(&mut self, upto: u64) -> bool {
        let enters = self.queued < upto;
        self.queued = self.queued.max(upto);
        enters
    }

    /// Notes that the queue could not commit the content: the next attempt begins anew.
    pub fn leave_queue(&mut self) {
        (self.queued, self.journaled) = (0, 0);
    }

    /// Notes that pieces up to this number are in the journal.
    pub fn note_journaled(&mut self, upto: u64) {
        self.journaled = self.journaled.max(upto);
    }

    /// Returns the number up to which pieces are in the journal.
    pub fn journaled(&self) -> u64 {
        self.journaled
    }

    /// Returns the sealed pieces, the oldest first.
    pub fn sealed(&self) -> &VecDeque<Sealed> {
        &self.sealed
    }

    /// Returns the number of the last sealed piece.
    pub fn last_sealed(&self) -> Option<u64> {
        self.sealed.back().map(|sealed| sealed.number)
    }

    /// Returns whether there is more than the first `count` sealed pieces.
    pub fn has_more_than(&self, count: usize) -> bool {
        self.sealed.len() > count || !self.dirty.is_empty()
    }

    /// Notes that a new attempt at an upload is under way.
    pub fn upload_again(&mut self, index: usize, uploading: Uploading) {
        if let Some(sealed) = self.sealed.get_mut(index) {
            sealed.uploading = uploading;
        }
    }

    /// Drops the first `count` sealed pieces, which are committed or stored elsewhere. Returns how many bytes less the
    /// window counts.
    pub fn drop_front(&mut self, count: usize) -> u64 {
        let mut gone: u64 = self.sealed.drain(..count).map(|sealed| sealed.len()).sum();
        if self.sealed.is_empty() && self.dirty.is_empty() {
            gone = self.held;
        }
        self.release(gone)
    }

    /// Drops all content. Returns how many bytes less the window counts.
    pub fn drop_all(&mut self) -> u64 {
        self.dirty.truncate(0);
        self.sealed.clear();
        (self.mtime, self.appended_from) = (None, None);
        self.release(self.held)
    }

    fn release(&mut self, bytes: u64) -> u64 {
        self.held -= bytes;
        if self.held == 0 {
            self.mapped.clear();
        }
        let gone = if self.held == 0 { self.counted } else { bytes.min(self.counted) };
        self.counted -= gone;
        gone
    }

    /// Stops counting the content, because nobody tries to commit it and writers need not wait for that. Returns how
    /// many bytes less the window counts.
    pub fn stop_counting(&mut self) -> u64 {
        std::mem::take(&mut self.counted)
    }

    /// Resets the attributes of pending content once everything is committed.
    pub fn settle(&mut self) {
        (self.appended_from, self.mtime, self.clear_privileges) = (None, None, false);
    }

    /// Follows a commit of content appended `from` one offset that `landed` at another, up to `end` as it was written:
    /// content that was appended behind it meanwhile moves with it.
    pub fn follow_append(&mut self, from: Option<u64>, landed: Option<u64>, end: u64) {
        let (Some(from), Some(landed)) = (from, landed) else {
            self.appended_from = None;
            return;
        };
        let moved = landed.saturating_sub(from);
        let Some(_) = self.appended_from else { return };
        // Content before the end fills a hole that the commit has left: full blocks are sealed before the partial one
        // at the start.
        let appends = self.start().is_none_or(|start| start >= end);
        self.appended_from = appends.then_some(end + moved);
        if moved == 0 {
            return;
        }
        for sealed in &mut self.sealed {
            for (at, _, _) in &mut sealed.packed.pieces {
                *at += moved;
            }
        }
        let rest = self.dirty.take_all();
        for packed in rest {
            for (at, from, len) in packed.pieces {
                self.dirty.write(at + moved, &packed.bytes[from..from + len]);
            }
        }
    }

    /// Lays all content over a buffer that holds the file's content from `offset` on, oldest first.
    pub fn overlay(&self, offset: u64, buffer: &mut [u8]) {
        let range = offset..offset + buffer.len() as u64;
        for (at, bytes) in self.sealed.iter().flat_map(|sealed| sealed.within(&range)) {
            lay(at, &bytes, offset, buffer);
        }
        self.dirty.overlay(offset, buffer);
    }

    /// Returns the content in a range as it is now, oldest first: a commit may take it away while a reader waits for
    /// the committed content below.
    pub fn copy_of(&self, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let mut parts: Vec<_> = self.sealed.iter().flat_map(|sealed| sealed.within(range)).collect();
        parts.extend(self.dirty.copy_of(range));
        parts
    }

    /// Returns whether the content alone answers a read.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        self.dirty.covers(range) || self.sealed.iter().any(|sealed| sealed.covers(range))
    }
}

#[cfg(test)]
#[path = "pending_tests.rs"]
mod tests;
