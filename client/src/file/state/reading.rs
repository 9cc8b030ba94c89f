//! For who reads the file: what a read is made of, and what must be learned first.

use super::FileState;
use bytes::Bytes;
use std::ops::Range;
use wire::extent::{Extent, Source};
use wire::ids::{BlockHash, ChunkIndex};
use wire::op::ExtentPage;

/// Files up to this size are fetched when they are opened.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;

/// What a read is made of.
pub(crate) struct Plan {
    pub range: Range<u64>,
    pub extents: Vec<Extent>,
    /// What is not committed and lies over it, as it was when the extents were looked up.
    pub over: Vec<(u64, Bytes)>,
    /// Part of reading from one end to the other.
    pub sequential: bool,
}

/// What a read comes to next.
pub(crate) enum Step {
    /// It is read already.
    Done(Bytes),
    /// The extents of this chunk are needed.
    Load(ChunkIndex),
    /// It is put together from this.
    Fetch(Plan),
}

/// What has become of a listing of extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listing {
    /// It is older than what is known, or a mixture of versions.
    Torn,
    /// It was taken in.
    Taken,
    /// It was taken in, and another session has changed the content.
    Moved,
}

/// What a sequential reader needs next.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Ahead {
    /// These blocks.
    Fetch(Vec<BlockHash>),
    /// The extents of this chunk.
    Load(ChunkIndex),
}

impl FileState {
    /// Decides what to read from where, or what must be learned first.
    pub(crate) fn plan_read(&self, offset: u64, len: usize) -> Step {
        let mut content = self.content.lock();
        let end = offset.saturating_add(len as u64).min(content.size);
        if offset >= end {
            return Step::Done(Bytes::new());
        }
        let range = offset..end;
        let is_dirty = !content.pending.is_empty();
        if is_dirty && content.pending.covers(&range) {
            let mut buffer = vec![0; (end - offset) as usize];
            content.pending.overlay(offset, &mut buffer);
            return Step::Done(buffer.into());
        }
        if let Some(chunk) = content.extents.first_unknown(&range) {
            return Step::Load(chunk);
        }
        let over = if is_dirty { content.pending.copy_of(&range) } else { Vec::new() };
        let sequential = content.position.note_read(offset, end);
        Step::Fetch(Plan { extents: content.extents.overlapping(&range), over, range, sequential })
    }

    /// A block that the extents name is gone, most likely because the file was changed: they are learned anew.
    pub(crate) fn forget_extents(&self) {
        let mut content = self.content.lock();
        let version = content.extents.version();
        content.forget_extents(version);
    }

    /// Takes in the extents of a range, in pages, none of them empty. A torn listing is taken as well as it goes if it is
    /// the `last` that is asked for.
    pub(crate) fn take_listing(&self, range: Range<u64>, pages: &[ExtentPage], last: bool) -> Listing {
        let Some(newest) = pages.last() else { return Listing::Torn };
        let version = newest.version;
        let torn = pages.iter().any(|page| page.version != version);
        let mut content = self.content.lock();
        if (torn || version < content.extents.version()) && !last {
            return Listing::Torn;
        }
        let moved = version > content.extents.version();
        if moved {
            // Changed by another since it was opened. What was written here stays based on what it saw (I6); what is read
            // from now on is the new content throughout.
            content.forget_extents(version);
            if content.pending.is_empty() {
                content.base = version;
                (content.attr.version, content.attr.size) = (version, newest.size);
            }
            content.size = newest.size.max(content.pending.end());
        }
        if version >= content.extents.version() {
            content.extents.take_pages(range, pages);
        }
        if moved { Listing::Moved } else { Listing::Taken }
    }

    /// What to fetch for a sequential reader who has come to `end`, so that this many bytes are on their way.
    pub(crate) fn plan_ahead(&self, end: u64, readahead_bytes: u64) -> Option<Ahead> {
        let mut content = self.content.lock();
        let until = end.saturating_add(readahead_bytes).min(content.size);
        let from = content.position.ahead_from(end, until, (readahead_bytes / 4, until >= content.size))?;
        if let Some(chunk) = content.extents.first_unknown(&(from..until)) {
            return Some(Ahead::Load(chunk));
        }
        content.position.fetched_ahead(until);
        let extents = content.extents.overlapping(&(from..until));
        Some(Ahead::Fetch(extents.iter().filter_map(block_of).collect()))
    }

    /// The block that has all of a small file, if one has.
    pub(crate) fn small_block(&self) -> Option<BlockHash> {
        let content = self.content.lock();
        let extents = content.extents.overlapping(&(0..SMALL_FILE_BYTES_MAX + 1));
        match extents.as_slice() {
            [extent] if content.size <= SMALL_FILE_BYTES_MAX => block_of(extent),
            _ => None,
        }
    }
}

fn block_of(extent: &Extent) -> Option<BlockHash> {
    match extent.source {
        Source::Block { hash, .. } => Some(hash),
        _ => None,
    }
}
