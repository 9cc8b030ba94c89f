//! Methods for reading the file: what a read consists of, and what must be learned first.

use super::FileState;
use bytes::Bytes;
use std::ops::Range;
use wire::extent::{Extent, Source};
use wire::ids::{BlockHash, ChunkIndex};
use wire::op::ExtentPage;

/// Files up to this size are fetched when they are opened.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;

/// The parts that a read is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub range: Range<u64>,
    pub extents: Vec<Extent>,
    /// Uncommitted content that lies over the extents, as it was when they were looked up.
    pub over: Vec<(u64, Bytes)>,
    /// The read is part of sequential reading.
    pub sequential: bool,
}

/// The next step of a read.
pub(crate) enum Step {
    /// The read is complete.
    Done(Bytes),
    /// The extents of this chunk are needed.
    Load(ChunkIndex),
    /// The read is assembled from this.
    Fetch(Plan),
}

/// What became of a listing of extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listing {
    /// It is older than what is known, or a mixture of versions.
    Torn,
    /// It was applied.
    Taken,
    /// It was applied, and another session has changed the content.
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
    /// Decides what to read from where, or what must be learned first. The kernel keeps it in its pages, or `perhaps`
    /// hands it past them.
    pub(crate) fn plan_read(&self, (offset, len): (u64, usize), perhaps: bool) -> Step {
        let mut content = self.content.lock();
        let asked = offset..offset.saturating_add(len as u64);
        match content.extents.torn_since() {
            // I6: what the kernel gets may be in part as old as that.
            Some(oldest) => content.pages.note_read_torn(&asked, oldest),
            None => content.pages.note_read(&asked, perhaps),
        }
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

    /// Forgets the extents, because a block that they name is gone: most likely, the file was changed.
    pub(crate) fn forget_extents(&self) {
        let mut content = self.content.lock();
        let version = content.extents.version();
        content.forget_extents(version);
    }

    /// Applies the extents of a range, in pages, none of them empty. A torn listing is used anyway if it is the `last`
    /// that is asked for.
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
            // Another session has changed the file since it was opened. Content that was written here stays based on
            // what it saw (I6); later reads see the new content throughout.
            content.leave_extents(version);
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

    /// Returns what to fetch for a sequential reader who has come to `end`, so that this many bytes are under way.
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

    /// Returns the block that has all of a small file, if there is one.
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
