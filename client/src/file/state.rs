//! One open inode: its committed content as far as it is known, and what was written since.
//!
//! Lock order: `flushing` before `inner`. `inner` is never held over an await.

use super::dirty::{Dirty, Packed, lay};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::{Extent, ExtentWrite, Source};
use wire::ids::{BlockHash, ChunkIndex, Ino, Version};
use wire::limits::CHUNK_BYTES;
use wire::op::ExtentPage;

/// How an upload ended; `None` while it goes on.
pub(crate) type Outcome = Option<Result<Option<BlockHash>, FsError>>;

/// Content on its way to the daemons: still read from here until it is committed.
pub(crate) struct Sealed {
    pub packed: Packed,
    /// The block's name once it is stored; `Ok(None)` for content that goes inline.
    pub outcome: watch::Receiver<Outcome>,
    /// Asks for a new attempt after a failed upload.
    pub number: u64,
}

/// What the locks guard.
pub(crate) struct Inner {
    /// As committed.
    pub attr: InodeAttr,
    /// Content version that reads and writes are based on.
    pub base: Version,
    /// Length with what is written and not committed.
    pub size: u64,
    /// Committed content of the chunks in `loaded`.
    pub extents: BTreeMap<u64, Extent>,
    pub loaded: HashSet<ChunkIndex>,
    pub dirty: Dirty,
    pub sealed: VecDeque<Sealed>,
    pub next_sealed: u64,
    /// Bytes in `dirty` and `sealed`.
    pub held: u64,
    /// When content was written last, by this machine's clock.
    pub mtime: Option<Timestamp>,
    /// Writing must clear setuid and setgid.
    pub clear_privileges: bool,
    /// Everything uncommitted was appended, starting at this offset.
    pub appended_from: Option<u64>,
    /// A commit failed and the content is still here; told by the next `fsync` or `close`.
    pub error: Option<FsError>,
    /// Open handles.
    pub opens: usize,
    /// Where the last read ended, to notice sequential readers.
    pub read_end: u64,
    /// How far has been read ahead.
    pub ahead: u64,
}

/// An open inode.
pub struct FileState {
    pub(super) ino: Ino,
    pub(crate) inner: Mutex<Inner>,
    /// One flush at a time: commits follow each other.
    pub(super) flushing: tokio::sync::Mutex<()>,
}

impl FileState {
    /// A file as it was just opened.
    #[must_use]
    pub fn new(attr: InodeAttr, page: Option<&ExtentPage>) -> Arc<Self> {
        let mut inner = Inner {
            base: attr.version,
            size: attr.size,
            attr,
            extents: BTreeMap::new(),
            loaded: HashSet::new(),
            dirty: Dirty::default(),
            sealed: VecDeque::new(),
            next_sealed: 0,
            held: 0,
            mtime: None,
            clear_privileges: false,
            appended_from: None,
            error: None,
            opens: 0,
            read_end: 0,
            ahead: 0,
        };
        if let Some(page) = page {
            inner.take_page(0..CHUNK_BYTES, page);
        }
        Arc::new(Self { ino: inner.attr.ino, inner: Mutex::new(inner), flushing: tokio::sync::Mutex::new(()) })
    }

    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Attributes with what is not committed yet.
    #[must_use]
    pub fn attr(&self) -> InodeAttr {
        let inner = self.inner.lock();
        inner.overlaid(inner.attr.clone())
    }

    /// Lays what is not committed here over attributes from metad.
    #[must_use]
    pub fn overlaid(&self, attr: InodeAttr) -> InodeAttr {
        self.inner.lock().overlaid(attr)
    }

    /// Whether anything waits to be committed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.inner.lock().held > 0
    }

    /// Takes written bytes in; returns how many the window holds more. Appends land at the end of the file.
    pub(crate) fn write(&self, offset: Option<u64>, data: &[u8], clear_privileges: bool) -> (u64, usize) {
        let mut inner = self.inner.lock();
        let at = offset.unwrap_or(inner.size);
        if inner.held == 0 {
            inner.appended_from = offset.is_none().then_some(at);
        } else if offset.is_some() {
            inner.appended_from = None;
        }
        let added = inner.dirty.write(at, data);
        inner.held += added as u64;
        inner.size = inner.size.max(at + data.len() as u64);
        inner.mtime = Some(Timestamp::now());
        inner.clear_privileges |= clear_privileges;
        (at, added)
    }

    /// Takes in what metad says of the content now. What is not committed stays, on its old base: a later commit is
    /// judged by that (I6).
    pub(crate) fn refresh(&self, attr: &InodeAttr, page: Option<&ExtentPage>) {
        let mut inner = self.inner.lock();
        if inner.held > 0 {
            return;
        }
        if attr.version != inner.base {
            inner.forget_content();
            inner.base = attr.version;
            if let Some(page) = page.filter(|page| page.version == attr.version) {
                inner.take_page(0..CHUNK_BYTES, page);
            }
        }
        inner.attr = attr.clone();
        inner.size = attr.size;
    }
}

impl Inner {
    fn overlaid(&self, mut attr: InodeAttr) -> InodeAttr {
        if self.held > 0 {
            attr.size = if attr.version == self.base { self.size } else { attr.size.max(self.size) };
            if let Some(mtime) = self.mtime {
                attr.mtime = mtime;
                attr.ctime = attr.ctime.max(mtime);
            }
            attr.allocated = attr.allocated.max(self.held.min(attr.size));
        }
        attr
    }

    /// Nothing is known of the content any more.
    pub fn forget_content(&mut self) {
        self.extents.clear();
        self.loaded.clear();
        self.ahead = 0;
    }

    /// Takes in a page of extents that begins at a chunk's start. The chunks that it tells wholly are known then.
    pub fn take_page(&mut self, asked: Range<u64>, page: &ExtentPage) {
        let end = page.more_from.map_or(asked.end, |more| more - more % CHUNK_BYTES).min(asked.end);
        let chunks = asked.start / CHUNK_BYTES..end / CHUNK_BYTES;
        for extent in page.extents.iter().filter(|extent| extent.file_off < end) {
            self.extents.insert(extent.file_off, extent.clone());
        }
        self.loaded.extend(chunks.map(|chunk| ChunkIndex::of(chunk * CHUNK_BYTES)));
    }

    /// Takes in a commit of ours: the writes are part of the content now.
    pub fn apply(&mut self, writes: &[ExtentWrite], version: Version) {
        for write in writes {
            let range = write.file_off..write.file_off + write.len;
            self.cut(&range);
            let extent = Extent { file_off: write.file_off, len: write.len, source: write.source.clone(), version };
            self.extents.insert(write.file_off, extent);
        }
    }

    /// Appended content was committed at another place than it was written for: what was appended behind it meanwhile
    /// moves along.
    pub fn follow_append(&mut self, from: Option<u64>, landed: Option<u64>, end: u64) {
        let (Some(from), Some(landed)) = (from, landed) else {
            self.appended_from = None;
            return;
        };
        let moved = landed - from;
        self.appended_from = self.appended_from.map(|_| end + moved);
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
        self.size += moved;
    }

    fn cut(&mut self, range: &Range<u64>) {
        let from = self.extents.range(..range.start).next_back().map_or(range.start, |(at, _)| *at);
        let touched: Vec<u64> = self
            .extents
            .range(from..range.end)
            .filter(|(_, extent)| extent.range().end > range.start)
            .map(|(at, _)| *at)
            .collect();
        for at in touched {
            let Some(extent) = self.extents.remove(&at) else { continue };
            let whole = extent.range();
            for part in [whole.start..range.start.max(whole.start), range.end.min(whole.end)..whole.end] {
                if part.start < part.end && !(part.start >= range.start && part.end <= range.end) {
                    let kept = extent.slice(&part);
                    self.extents.insert(kept.file_off, kept);
                }
            }
        }
    }

    /// Known extents that overlap a range, in order.
    pub fn overlapping(&self, range: &Range<u64>) -> Vec<Extent> {
        let from = self.extents.range(..=range.start).next_back().map_or(range.start, |(at, _)| *at);
        self.extents
            .range(from..range.end)
            .map(|(_, extent)| extent)
            .filter(|extent| extent.range().end > range.start)
            .cloned()
            .collect()
    }

    /// The first chunk of a range of which nothing is known.
    pub fn first_unknown(&self, range: &Range<u64>) -> Option<ChunkIndex> {
        (range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES))
            .map(|chunk| ChunkIndex::of(chunk * CHUNK_BYTES))
            .find(|chunk| !self.loaded.contains(chunk))
    }

    /// Lays everything uncommitted over a buffer, oldest first.
    pub fn overlay(&self, offset: u64, buffer: &mut [u8]) {
        for sealed in &self.sealed {
            for (at, from, len) in &sealed.packed.pieces {
                lay(*at, &sealed.packed.bytes[*from..*from + *len], offset, buffer);
            }
        }
        self.dirty.overlay(offset, buffer);
    }

    /// Whether uncommitted content alone answers a read.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let within = |(at, _, len): &(u64, usize, usize)| *at <= range.start && range.end <= *at + *len as u64;
        self.dirty.covers(range) || self.sealed.iter().any(|sealed| sealed.packed.pieces.iter().any(within))
    }
}

/// Where the pieces of a block stand in the file, for a commit.
pub(super) fn writes_of(packed: &Packed, stored: Option<BlockHash>) -> Vec<ExtentWrite> {
    let mut writes = Vec::with_capacity(packed.pieces.len());
    for (at, from, len) in &packed.pieces {
        let mut done = 0;
        // An extent stays within its chunk.
        while done < *len {
            let file_off = at + done as u64;
            let room = (CHUNK_BYTES - file_off % CHUNK_BYTES).min((*len - done) as u64) as usize;
            let start = from + done;
            let source = match stored {
                Some(hash) => Source::Block { hash, block_len: packed.bytes.len() as u32, offset: start as u32 },
                None => Source::Inline(packed.bytes[start..start + room].to_vec()),
            };
            writes.push(ExtentWrite { file_off, len: room as u64, source });
            done += room;
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file_off: u64, len: u64) -> Extent {
        Extent { file_off, len, source: Source::Zero, version: Version(1) }
    }

    #[test]
    fn a_commit_of_ours_replaces_what_it_covers_and_keeps_the_rest() {
        let attr = crate::testing::attr();
        let state = FileState::new(attr, None);
        let mut inner = state.inner.lock();
        inner.extents.insert(0, extent(0, 100));
        inner.extents.insert(200, extent(200, 50));
        inner.apply(&[ExtentWrite { file_off: 40, len: 170, source: Source::Zero }], Version(2));
        let ranges: Vec<Range<u64>> = inner.extents.values().map(Extent::range).collect();
        assert_eq!(ranges, [0..40, 40..210, 210..250]);
        inner.apply(&[ExtentWrite { file_off: 50, len: 10, source: Source::Zero }], Version(3));
        let ranges: Vec<Range<u64>> = inner.extents.values().map(Extent::range).collect();
        assert_eq!(ranges, [0..40, 40..50, 50..60, 60..210, 210..250]);
    }
}
