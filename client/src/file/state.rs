//! One open inode: its committed content as far as it is known, and what was written since.
//!
//! Two versions are kept apart. `base` is what uncommitted writes are judged by (I6): it moves only with what this client
//! has seen while nothing waited to be committed, or with commits of its own. `content` is the version that the known
//! extents belong to, which is newer than `base` when others committed meanwhile.
//!
//! Lock order: `flushing` before `inner`. `inner` is never held over an await.

use super::dirty::{Dirty, Packed, lay};
use crate::buffers::Buffers;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};
use tokio::sync::watch;
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr, TimeChange, Timestamp};
use wire::extent::{Extent, ExtentWrite, Source};
use wire::ids::{BlockHash, ChunkIndex, Ino, Version};
use wire::limits::CHUNK_BYTES;
use wire::op::ExtentPage;

/// Inline extents that a file's known chunks may gather before its small writes go to blocks.
const INLINE_EXTENTS_MAX: usize = 256;
/// A small file of more pieces is not remembered after it was closed, nor one with more bytes in its extents themselves.
const SMALL_EXTENTS: usize = 4;
const SMALL_INLINE: usize = 1024;
/// Separate pieces of one file that wait to be committed: each costs some hundred bytes of memory beside its own.
const RUNS_MAX: usize = 65_536;
/// Commits beside others' that are remembered while more is written all the time.
const OWN_MAX: usize = 1024;
/// Beyond that, every so many small writes it is counted how many are left.
const RECOUNT: usize = 64;

/// Content in a block that is stored, maybe among other content.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub hash: BlockHash,
    /// The whole block.
    pub block: Bytes,
    /// Where the content begins in it.
    pub base: usize,
}

/// How an upload ended; `None` while it goes on.
pub(crate) type Outcome = Option<Result<Option<Stored>, FsError>>;

/// Content on its way to the daemons: still read from here until it is committed.
pub(crate) struct Sealed {
    pub packed: Packed,
    /// Where it is once it is stored; `Ok(None)` for content that goes inline.
    pub outcome: watch::Receiver<Outcome>,
    /// When it was sealed, by a clock that goes on while the machine sleeps.
    pub at: SystemTime,
    /// In order of sealing.
    pub number: u64,
}

/// What the lock guards.
pub(crate) struct Inner {
    /// As committed: the newest answer of metad.
    pub attr: InodeAttr,
    /// Content version that uncommitted writes are based on.
    pub base: Version,
    /// Versions behind it that commits of ours have made beside those of others.
    pub own: Vec<Version>,
    /// Content version that `extents` belong to.
    pub content: Version,
    /// Length with what is written and not committed.
    pub size: u64,
    /// Committed content of the chunks in `loaded`.
    pub extents: BTreeMap<u64, Extent>,
    pub loaded: HashSet<ChunkIndex>,
    /// Inline extents in `extents`, at most: those that were replaced are counted until the next recount.
    pub inlines: usize,
    pub dirty: Dirty,
    pub sealed: VecDeque<Sealed>,
    pub next_sealed: u64,
    /// Up to this number it is in the queue of what metad is told later.
    pub queued: u64,
    /// Up to this number it is in the journal on disk.
    pub kept: u64,
    /// Bytes in `dirty` and `sealed`.
    pub held: u64,
    /// So many of them the window counts: what the policy refuses takes no room from others.
    pub counted: u64,
    /// When content was written last, by this machine's clock.
    pub mtime: Option<Timestamp>,
    /// Writing must clear setuid and setgid.
    pub clear_privileges: bool,
    /// Everything uncommitted was appended, starting at this offset.
    pub appended_from: Option<u64>,
    /// The conflict copy that has what was written before, and when something got there last: the rest follows, so that
    /// all of it is in one, until the writer has heard of it.
    pub diverted: Option<(Ino, Instant)>,
    /// A commit of it is on its way that is not in the queue, and may have arrived.
    pub committing: bool,
    /// What went wrong with a commit and no `fsync` or `close` was told yet.
    pub untold: Option<FsError>,
    /// The policy refused the last commit: it is not tried again until somebody asks.
    pub refused: bool,
    /// Open handles.
    pub opens: usize,
    /// Where the last read ended, and whether it was near the one before: to notice sequential readers.
    pub read_end: u64,
    pub read_near: bool,
    /// How far has been read ahead.
    pub ahead: u64,
}

/// An open inode.
pub struct FileState {
    pub(super) ino: Ino,
    pub(crate) inner: Mutex<Inner>,
    /// One flush or change of length at a time: commits follow each other.
    pub(crate) flushing: Arc<tokio::sync::Mutex<()>>,
    /// The next chunk's extents are being loaded ahead of a reader.
    pub(super) loading: AtomicBool,
}

impl FileState {
    /// A file as it was just opened; memory for what is written comes from `buffers`, and blocks are cut at multiples of
    /// `block_bytes`.
    #[must_use]
    pub fn new(attr: InodeAttr, page: Option<&ExtentPage>, buffers: Arc<Buffers>, block_bytes: u64) -> Arc<Self> {
        let mut inner = Inner {
            base: attr.version,
            own: Vec::new(),
            content: attr.version,
            size: attr.size,
            attr,
            extents: BTreeMap::new(),
            loaded: HashSet::new(),
            inlines: 0,
            dirty: Dirty::new(buffers, block_bytes),
            sealed: VecDeque::new(),
            next_sealed: 0,
            queued: 0,
            kept: 0,
            held: 0,
            counted: 0,
            mtime: None,
            clear_privileges: false,
            appended_from: None,
            diverted: None,
            committing: false,
            untold: None,
            refused: false,
            opens: 0,
            read_end: 0,
            read_near: false,
            ahead: 0,
        };
        if let Some(page) = page {
            inner.take_pages(0..CHUNK_BYTES, std::slice::from_ref(page));
        }
        Arc::new(Self {
            ino: inner.attr.ino,
            inner: Mutex::new(inner),
            flushing: Arc::default(),
            loading: AtomicBool::new(false),
        })
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

    /// Whether something waits to be committed that anybody could miss: neither removed, nor refused and told so.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let inner = self.inner.lock();
        inner.held > 0 && inner.attr.nlink > 0 && !inner.refused
    }

    /// The newest version of the content; `None` while something is not committed, and the next one is ours.
    pub(crate) fn newest_version(&self) -> Option<Version> {
        let inner = self.inner.lock();
        (inner.held == 0).then_some(inner.attr.version.max(inner.content))
    }

    /// Whether nobody can read it any more: it has neither a name nor a handle here.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        let inner = self.inner.lock();
        inner.opens == 0 && inner.attr.nlink == 0
    }

    /// Whether `fsync` and `close` have something to do or to tell.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        let inner = self.inner.lock();
        inner.held > 0 || inner.untold.is_some()
    }

    /// Whether all that is not committed is in the queue of what metad is told later.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.inner.lock().is_queued()
    }

    /// Whether so many separate pieces wait that they cost more memory than the window counts.
    #[must_use]
    pub fn is_scattered(&self) -> bool {
        self.inner.lock().dirty.run_count() > RUNS_MAX
    }

    /// Takes written bytes in; returns how many the window holds more. Appends land at the end of the file.
    pub(crate) fn write(
        &self,
        offset: Option<u64>,
        data: &[u8],
        clear_privileges: bool,
        now: Timestamp,
    ) -> (u64, usize) {
        let mut inner = self.inner.lock();
        let at = offset.unwrap_or(inner.size);
        if inner.held == 0 {
            inner.appended_from = offset.is_none().then_some(at);
        } else if offset.is_some() {
            inner.appended_from = None;
        }
        let added = inner.dirty.write(at, data);
        inner.held += added as u64;
        inner.counted += added as u64;
        inner.size = inner.size.max(at + data.len() as u64);
        inner.mtime = Some(now);
        inner.clear_privileges |= clear_privileges;
        (at, added)
    }

    /// A time was set: until what was written before is committed, the time of that would show.
    pub(crate) fn time_was_set(&self, change: &AttrChange, attr: &InodeAttr) {
        let mut inner = self.inner.lock();
        if inner.held == 0 {
            return;
        }
        match change.mtime {
            Some(TimeChange::To(time)) => inner.mtime = Some(time),
            Some(TimeChange::Now) => inner.mtime = Some(attr.mtime),
            _ => {}
        }
    }

    /// Forgets what was written from `size` on and is not committed: the file was cut there. Returns how many bytes less
    /// the window counts.
    pub(crate) fn cut_uncommitted(&self, size: u64) -> u64 {
        let mut inner = self.inner.lock();
        if inner.uncommitted_end() <= size {
            return 0;
        }
        let sealed: Vec<Packed> = inner.sealed.drain(..).map(|sealed| sealed.packed).collect();
        let rest = inner.dirty.take_all();
        let mut held = 0;
        // In the order in which it was written: what came later lies over it.
        for packed in sealed.into_iter().chain(rest) {
            for (at, from, len) in packed.pieces {
                let len = (size.saturating_sub(at)).min(len as u64) as usize;
                if len > 0 {
                    held += inner.dirty.write(at, &packed.bytes[from..from + len]) as u64;
                }
            }
        }
        (inner.queued, inner.kept, inner.appended_from) = (0, 0, None);
        inner.held = held;
        if held == 0 {
            (inner.mtime, inner.clear_privileges) = (None, false);
        }
        inner.size = inner.attr.size.max(inner.uncommitted_end());
        let gone = inner.counted.saturating_sub(held);
        inner.counted -= gone;
        gone
    }

    /// Takes in what metad says of the content now. What is not committed stays, on its old base: a later commit is
    /// judged by that (I6). Answers that were overtaken by newer ones are passed over. Whether the content is another.
    pub(crate) fn refresh(&self, attr: &InodeAttr, page: Option<&ExtentPage>) -> bool {
        let mut inner = self.inner.lock();
        if attr.version < inner.content || attr.version < inner.base {
            return false;
        }
        let moved = attr.version > inner.content;
        if moved {
            inner.forget_content(attr.version);
            if let Some(page) = page.filter(|page| page.version == attr.version) {
                inner.take_pages(0..CHUNK_BYTES, std::slice::from_ref(page));
            }
        }
        if attr.version > inner.attr.version || attr.ctime >= inner.attr.ctime {
            inner.attr = attr.clone();
        }
        if inner.held == 0 {
            inner.base = attr.version;
            inner.size = attr.size;
        }
        moved
    }

    /// Takes in the answer to a change of content by this client that is no commit. `cut` tells from where on content
    /// was removed, if that is all that happened. Whether others have changed it, too: the kernel may have what was there
    /// before that.
    pub(crate) fn changed_here(&self, attr: &InodeAttr, cut: Option<u64>) -> bool {
        let mut inner = self.inner.lock();
        let only_ours = attr.version == inner.content.next();
        let others = attr.version > inner.content && !only_ours;
        if attr.version > inner.content {
            match cut.filter(|_| only_ours) {
                Some(from) => {
                    inner.cut(&(from..u64::MAX));
                    inner.content = attr.version;
                }
                None => inner.forget_content(attr.version),
            }
        }
        // I6: what was written meanwhile by this client is not in conflict with its own change.
        if inner.held == 0 || attr.version == inner.base.next() {
            inner.base = inner.base.max(attr.version);
        }
        if attr.version >= inner.attr.version {
            inner.attr = attr.clone();
            inner.size = attr.size.max(inner.uncommitted_end());
        }
        others
    }
}

impl Inner {
    fn overlaid(&self, mut attr: InodeAttr) -> InodeAttr {
        if attr.version < self.attr.version {
            // The answer was overtaken by a commit: nobody sees the file shrink because of that.
            let newer = &self.attr;
            (attr.version, attr.size, attr.allocated) = (newer.version, newer.size, newer.allocated);
            (attr.mtime, attr.ctime) = (newer.mtime, attr.ctime.max(newer.ctime));
        }
        if self.held > 0 {
            attr.size = attr.size.max(self.uncommitted_end());
            if let Some(mtime) = self.mtime {
                attr.mtime = mtime;
                attr.ctime = attr.ctime.max(mtime);
            }
            attr.allocated = attr.allocated.max(self.held.min(attr.size));
        }
        attr
    }

    /// Whether all that is not committed is in the queue of what metad is told later.
    pub fn is_queued(&self) -> bool {
        self.dirty.is_empty() && self.sealed.back().is_none_or(|last| last.number <= self.queued)
    }

    /// Takes in what became of content that need not be committed any more.
    pub fn note_committed(&mut self, outcome: Result<(), FsError>) {
        self.refused = false;
        match outcome {
            // I6: whoever closes or syncs next hears of it, though the background found it.
            Err(error) => self.untold = Some(error),
            Ok(()) if self.untold != Some(FsError::Stale) => self.untold = None,
            Ok(()) => {}
        }
    }

    /// One past the last uncommitted byte; 0 when there is none.
    pub fn uncommitted_end(&self) -> u64 {
        let pieces = self.sealed.iter().filter_map(|sealed| sealed.packed.pieces.last());
        pieces.map(|(at, _, len)| at + *len as u64).max().unwrap_or(0).max(self.dirty.end())
    }

    /// The first uncommitted byte.
    fn uncommitted_start(&self) -> Option<u64> {
        let sealed = self.sealed.iter().flat_map(|sealed| &sealed.packed.pieces).map(|(at, _, _)| *at);
        sealed.chain(self.dirty.start()).min()
    }

    /// Content is committed or dropped. Returns how many bytes less the window counts.
    pub fn lets_go(&mut self, bytes: u64) -> u64 {
        self.held -= bytes;
        let gone = if self.held == 0 { self.counted } else { bytes.min(self.counted) };
        self.counted -= gone;
        gone
    }

    /// Nothing is known of the content any more, which has this version now.
    pub fn forget_content(&mut self, version: Version) {
        self.extents.clear();
        self.loaded.clear();
        self.inlines = 0;
        self.ahead = 0;
        self.content = version;
    }

    /// Takes in pages of extents that begin at a chunk's start and belong to the known version. The chunks that they
    /// tell wholly are known then.
    pub fn take_pages(&mut self, asked: Range<u64>, pages: &[ExtentPage]) {
        let more_from = pages.last().and_then(|page| page.more_from);
        let end = more_from.map_or(asked.end, |more| more - more % CHUNK_BYTES).min(asked.end);
        self.cut(&(asked.start..end));
        for extent in pages.iter().flat_map(|page| &page.extents).filter(|extent| extent.file_off < end) {
            self.inlines += usize::from(matches!(extent.source, Source::Inline(_)));
            self.extents.insert(extent.file_off, extent.clone());
        }
        self.loaded.extend((asked.start / CHUNK_BYTES..end / CHUNK_BYTES).map(|at| ChunkIndex::of(at * CHUNK_BYTES)));
    }

    /// Where the content of a small file lies, if all of that is known and committed.
    pub fn whole_page(&self) -> Option<ExtentPage> {
        let whole = self.size <= CHUNK_BYTES && self.loaded.contains(&ChunkIndex::of(0));
        let settled = self.held == 0 && self.content == self.attr.version;
        let inline = |extent: &Extent| if let Source::Inline(bytes) = &extent.source { bytes.len() } else { 0 };
        let small =
            self.extents.len() <= SMALL_EXTENTS && self.extents.values().map(inline).sum::<usize>() <= SMALL_INLINE;
        (whole && settled && small).then(|| ExtentPage {
            version: self.content,
            size: self.size,
            extents: self.extents.values().cloned().collect(),
            more_from: None,
        })
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

    /// After a commit: what was written meanwhile is based on it if it is `only_ours`, and appended content that landed
    /// elsewhere than it was written for takes along what was appended behind it meanwhile.
    pub fn follow_commit(&mut self, from: Option<u64>, landed: Option<u64>, end: u64, only_ours: bool) {
        if self.held == 0 {
            self.base = self.base.max(self.attr.version).max(self.content);
            self.own.clear();
            self.size = self.attr.size;
            self.appended_from = None;
            self.mtime = None;
            self.clear_privileges = false;
            return;
        }
        // I6: what was written meanwhile saw the file as it was before others' changes, so it keeps that base.
        if only_ours {
            self.base = self.base.next();
        }
        self.move_appended(from, landed, end);
        self.size = self.attr.size.max(self.uncommitted_end());
    }

    /// A commit of ours has made this version, beside what others have made since `base`.
    pub fn note_own(&mut self, version: Version) {
        if self.own.len() >= OWN_MAX {
            // What was written then counts as another's: at worst, a copy is made where none is needed.
            self.own.remove(0);
        }
        self.own.push(version);
    }

    fn move_appended(&mut self, from: Option<u64>, landed: Option<u64>, end: u64) {
        let (Some(from), Some(landed)) = (from, landed) else {
            self.appended_from = None;
            return;
        };
        let moved = landed.saturating_sub(from);
        let Some(_) = self.appended_from else { return };
        // What lies before the end fills a hole that the commit has left: full blocks are sealed before the partial one
        // at the start.
        let appends = self.uncommitted_start().is_none_or(|start| start >= end);
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

    /// Whether small content may go inline into a chunk: only where it is known that there is little of it, because all
    /// of it travels with every list of extents.
    pub fn has_inline_room(&mut self, chunk: ChunkIndex) -> bool {
        if !self.loaded.contains(&chunk) {
            return false;
        }
        if self.inlines >= INLINE_EXTENTS_MAX && self.inlines.is_multiple_of(RECOUNT) {
            self.inlines = self.extents.values().filter(|extent| matches!(extent.source, Source::Inline(_))).count();
        }
        self.inlines += 1;
        self.inlines <= INLINE_EXTENTS_MAX
    }

    pub fn cut(&mut self, range: &Range<u64>) {
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
        let range = offset..offset + buffer.len() as u64;
        for (at, bytes) in self.sealed.iter().flat_map(|sealed| within(&sealed.packed, &range)) {
            lay(at, &bytes, offset, buffer);
        }
        self.dirty.overlay(offset, buffer);
    }

    /// Everything uncommitted in a range as it is now, oldest first: a commit may take it from here while a reader
    /// waits for the committed content below.
    pub fn uncommitted(&self, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let mut parts: Vec<_> = self.sealed.iter().flat_map(|sealed| within(&sealed.packed, range)).collect();
        parts.extend(self.dirty.copy_of(range));
        parts
    }

    /// Whether uncommitted content alone answers a read.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        self.dirty.covers(range)
            || self.sealed.iter().any(|sealed| {
                let last = sealed.packed.pieces.partition_point(|(at, _, _)| *at <= range.start);
                last.checked_sub(1).is_some_and(|index| {
                    let (at, _, len) = sealed.packed.pieces[index];
                    range.end <= at + len as u64
                })
            })
    }
}

/// Pieces of a block that overlap a range, in order.
fn within<'a>(packed: &'a Packed, range: &Range<u64>) -> impl Iterator<Item = (u64, Bytes)> + use<'a> {
    let first = packed.pieces.partition_point(|(at, _, len)| at + *len as u64 <= range.start);
    let end = range.end;
    packed.pieces[first..]
        .iter()
        .take_while(move |(at, _, _)| *at < end)
        .map(|(at, from, len)| (*at, packed.bytes.slice(*from..*from + *len)))
}

/// Where the pieces of a block stand in the file, for a commit.
pub(crate) fn writes_of(packed: &Packed, stored: Option<&Stored>) -> Vec<ExtentWrite> {
    let mut writes = Vec::with_capacity(packed.pieces.len());
    for (at, from, len) in &packed.pieces {
        let mut done = 0;
        // An extent stays within its chunk.
        while done < *len {
            let file_off = at + done as u64;
            let room = (CHUNK_BYTES - file_off % CHUNK_BYTES).min((*len - done) as u64) as usize;
            let start = from + done;
            let source = match stored {
                Some(Stored { hash, block, base }) => {
                    Source::Block { hash: *hash, block_len: block.len() as u32, offset: (base + start) as u32 }
                }
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
        let state = FileState::new(attr, None, Arc::default(), 4 << 20);
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
