//! One open inode: its committed content where it is known, later writes, and its handles.
//!
//! There are two versions. `base` is the version by which metad judges uncommitted writes (I6): it moves only with what
//! this client has seen while nothing waited to be committed, or with commits of its own. The version of the known
//! extents is newer than `base` when others committed meanwhile.
//!
//! Everything is behind one lock, which is private: whatever happens to a file is a method here or in one of the files
//! below, `reading`, `writing`, `mapping`, `committing` and `journaling`, each for one caller. None of them waits.
//!
//! A flush has a lock of its own ([`FileState::begin_flush`]); its place is in [`crate::ordered`].

mod committing;
mod journaling;
mod mapping;
mod reading;
mod writing;

pub(crate) use committing::{Basis, Landing, Next, Unsaved};
pub(crate) use journaling::Snapshot;
pub(crate) use mapping::{Below, Seen};
pub(crate) use reading::{Ahead, Listing, Plan, Step};

use super::dirty::Dirty;
use super::extents::Extents;
use super::pages::Pages;
use super::pending::Pending;
use super::position::Position;
use crate::buffers::Buffers;
use crate::ordered::{Ordered, Rank};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr, TimeChange, Timestamp};
use wire::ids::{Ino, Version};
use wire::limits::CHUNK_BYTES;
use wire::op::ExtentPage;

/// What the lock guards.
struct Content {
    /// Attributes as committed: the newest answer of metad.
    attr: InodeAttr,
    /// Content version that uncommitted writes are based on.
    base: Version,
    /// Later versions that commits of ours have made beside those of others.
    own: Vec<Version>,
    /// Length with uncommitted content.
    size: u64,
    /// Committed content, for the chunks that are known.
    extents: Extents,
    /// What is not committed.
    pending: Pending,
    position: Position,
    /// What the kernel's pages show.
    pages: Pages,
    /// Pages wait to be committed that are based on an older version than other content may be.
    late: bool,
    /// Pages wait to be committed that a program has changed through a mapping, and that were not compared with what it had
    /// seen.
    whole_pages: bool,
    /// The conflict copy that has the earlier content, and when something was added last. Later content follows it
    /// there, so that all of it is in one copy, until the writer has been notified.
    diverted: Option<(Ino, Instant)>,
    /// A commit that is not in the queue is under way, and may have arrived.
    committing: bool,
    /// What went wrong with a commit, until an `fsync` or `close` returns it.
    unreported: Option<FsError>,
    /// The policy refused the last commit: it is not tried again until `fsync` or `close`.
    refused: bool,
    /// Open handles.
    opens: usize,
    /// How often others were about to change the file.
    recalls: u64,
    /// The value of `recalls` when metad last said that no other session changes the file.
    settled: u64,
    /// The kernel was notified to drop its pages, and was given none since.
    dropped: bool,
    /// Held by each read that began since this was replaced last. Nothing is ever sent.
    reads: Arc<watch::Sender<()>>,
}

/// An open inode.
pub struct FileState {
    ino: Ino,
    content: Ordered<Content>,
    /// Allows one flush or change of length at a time: commits follow each other.
    flushing: Arc<tokio::sync::Mutex<()>>,
    /// The next chunk's extents are being loaded ahead of a reader.
    loading: AtomicBool,
}

/// A read that is under way.
pub(crate) struct Reading {
    /// Others may have been changing the file when the read began. A later recall waits for the read, and then drops
    /// its pages.
    pub is_contended: bool,
    _under_way: Arc<watch::Sender<()>>,
}

/// Held by a flush or a change of length until it ends.
pub(crate) type Flushing = OwnedMutexGuard<()>;

impl FileState {
    /// Creates the state of a file that was just opened. Memory for written content comes from `buffers`, and blocks
    /// are cut at multiples of `block_bytes`.
    #[must_use]
    pub fn new(attr: InodeAttr, page: Option<&ExtentPage>, buffers: Arc<Buffers>, block_bytes: u64) -> Arc<Self> {
        let mut extents = Extents::unknown(attr.version);
        if let Some(page) = page {
            extents.take_pages(0..CHUNK_BYTES, std::slice::from_ref(page));
        }
        let content = Content {
            base: attr.version,
            own: Vec::new(),
            size: attr.size,
            attr,
            extents,
            pending: Pending::new(Dirty::new(buffers, block_bytes)),
            position: Position::default(),
            pages: Pages::default(),
            late: false,
            whole_pages: false,
            diverted: None,
            committing: false,
            unreported: None,
            refused: false,
            opens: 0,
            recalls: 0,
            settled: 0,
            dropped: false,
            reads: Arc::new(watch::Sender::new(())),
        };
        Arc::new(Self {
            ino: content.attr.ino,
            content: Ordered::new(Rank::Content, content),
            flushing: Arc::default(),
            loading: AtomicBool::new(false),
        })
    }

    /// Returns the inode's number.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Waits until no other flush or change of length is under way, and begins one. Cancel-safe.
    pub(crate) async fn begin_flush(&self) -> Flushing {
        self.flushing.clone().lock_owned().await
    }

    /// Begins to load extents ahead of a reader. False when that is under way already.
    pub(crate) fn begin_loading(&self) -> bool {
        !self.loading.swap(true, Ordering::AcqRel)
    }

    /// Ends the loading of extents, whether it succeeded or not.
    pub(crate) fn end_loading(&self) {
        self.loading.store(false, Ordering::Release);
    }

    /// Returns the attributes with uncommitted content.
    #[must_use]
    pub fn attr(&self) -> InodeAttr {
        let content = self.content.lock();
        content.overlaid(content.attr.clone())
    }

    /// Returns attributes from metad with uncommitted content applied.
    #[must_use]
    pub fn overlaid(&self, attr: InodeAttr) -> InodeAttr {
        self.content.lock().overlaid(attr)
    }

    /// Returns whether the file is known to have extended attributes.
    pub(crate) fn has_xattrs(&self) -> bool {
        self.content.lock().attr.has_xattrs
    }

    /// Notes that an extended attribute is being set.
    pub(crate) fn note_xattrs(&self) {
        self.content.lock().attr.has_xattrs = true;
    }

    /// Notes a read. Returns whether the access time moves to `now`, as `relatime` has it. If so, it has moved here,
    /// until the next answer of metad.
    pub(crate) fn note_access(&self, now: Timestamp) -> bool {
        let mut content = self.content.lock();
        let due = content.attr.is_access_due(now);
        if due {
            content.attr.atime = now;
        }
        due
    }

    /// Counts one more handle.
    pub(crate) fn add_handle(&self) {
        self.content.lock().opens += 1;
    }

    /// Counts one handle less. Returns whether it was the last one, and whether the policy refuses the uncommitted
    /// content.
    pub(crate) fn remove_handle(&self) -> (bool, bool) {
        let mut content = self.content.lock();
        content.opens -= 1;
        (content.opens == 0, content.refused)
    }

    /// Returns whether a handle is open.
    pub(crate) fn is_open(&self) -> bool {
        self.content.lock().opens > 0
    }

    /// Returns whether more than one handle is open.
    pub(crate) fn is_shared(&self) -> bool {
        self.content.lock().opens > 1
    }

    /// Returns whether nobody needs the state: the file has no handle, and nothing waits to be committed. With it,
    /// returns where the content of a small file is stored, if all of that is known.
    pub(crate) fn idle(&self) -> (bool, Option<ExtentPage>) {
        let content = self.content.lock();
        let idle = content.opens == 0 && content.pending.is_empty();
        let settled = content.extents.version() == content.attr.version;
        (idle, (idle && settled).then(|| content.extents.whole_page(content.size)).flatten())
    }

    /// Returns whether nobody can read the file any more: it has neither a name nor a handle here.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        let content = self.content.lock();
        content.opens == 0 && content.attr.nlink == 0
    }

    /// Notes that the file has lost its last name elsewhere. Returns whether nobody can read its uncommitted content
    /// any more. Content in the queue was written before anybody here knew of the removal: it goes into a new file.
    pub(crate) fn lose_last_name(&self) -> bool {
        let mut content = self.content.lock();
        let unread = content.opens == 0 && !content.pending.first_is_queued();
        if unread {
            content.attr.nlink = 0;
        }
        unread
    }

    /// Returns the newest version of the content; `None` while something is not committed, because the next version is
    /// ours.
    pub(crate) fn newest_version(&self) -> Option<Version> {
        let content = self.content.lock();
        content.pending.is_empty().then_some(content.attr.version.max(content.extents.version()))
    }

    /// Notes that a time was set: a commit of earlier content must not replace it.
    pub(crate) fn time_was_set(&self, change: &AttrChange, attr: &InodeAttr) {
        let mut content = self.content.lock();
        if content.pending.is_empty() {
            return;
        }
        match change.mtime {
            Some(TimeChange::To(time)) => content.pending.set_mtime(time),
            Some(TimeChange::Now) => content.pending.set_mtime(attr.mtime),
            _ => {}
        }
    }

    /// Begins a read that gives the kernel pages. The read ends when the returned value is dropped.
    pub(crate) fn begin_read(&self) -> Reading {
        let mut content = self.content.lock();
        let is_contended = content.is_contended();
        // While others may be changing the file, the next answer of metad comes first.
        content.dropped &= is_contended;
        Reading { is_contended, _under_way: content.reads.clone() }
    }

    /// Returns a receiver that is closed when all reads have ended that are under way now.
    pub(crate) fn reads_under_way(&self) -> watch::Receiver<()> {
        let next = Arc::new(watch::Sender::new(()));
        let reads = std::mem::replace(&mut self.content.lock().reads, next);
        reads.subscribe()
    }

    /// Notes that others are about to change the file, and that the kernel drops its pages.
    pub(crate) fn note_recall(&self) {
        let mut content = self.content.lock();
        content.recalls += 1;
        content.dropped = true;
    }

    /// Notes that the kernel is about to be given pages.
    pub(crate) fn note_given(&self) {
        self.content.lock().dropped = false;
    }

    /// Returns whether the kernel has no pages, or is about to have none.
    pub(crate) fn is_dropped(&self) -> bool {
        self.content.lock().dropped
    }

    /// Returns how often others were about to change the file. To be taken before metad is asked, for
    /// [`FileState::note_settled`].
    pub(crate) fn recalls(&self) -> u64 {
        self.content.lock().recalls
    }

    /// Notes that metad's answer is applied and that metad will report the next change. metad was asked when the count
    /// of recalls was this.
    pub(crate) fn note_settled(&self, recalls: u64) {
        let mut content = self.content.lock();
        content.settled = content.settled.max(recalls);
    }

    /// Returns whether other clients may be changing the file. If so, what is cached of it may be old.
    pub(crate) fn is_contended(&self) -> bool {
        self.content.lock().is_contended()
    }

    /// Applies an answer of metad. Uncommitted content stays, on its old base: a later commit is judged by that (I6).
    /// Answers that a newer one has overtaken are ignored. Returns whether the content has changed.
    pub(crate) fn refresh(&self, attr: &InodeAttr, page: Option<&ExtentPage>) -> bool {
        let mut content = self.content.lock();
        if attr.version < content.extents.version() || attr.version < content.base {
            return false;
        }
        let moved = attr.version > content.extents.version();
        if moved {
            content.leave_extents(attr.version);
            if let Some(page) = page.filter(|page| page.version == attr.version) {
                content.extents.take_pages(0..CHUNK_BYTES, std::slice::from_ref(page));
            }
        }
        if attr.version > content.attr.version || attr.ctime >= content.attr.ctime {
            content.attr = attr.clone();
        }
        if content.pending.is_empty() {
            content.base = attr.version;
        }
        // Content that others have written behind our own can be read, too.
        content.size = content.attr.size.max(content.pending.end());
        moved
    }

    /// Applies the answer to a change of content by this client that is not a commit. `cut` is the offset from which
    /// content was removed, if nothing else happened. Returns whether others have changed the file, too: the kernel may
    /// have pages from before that.
    pub(crate) fn changed_here(&self, attr: &InodeAttr, cut: Option<u64>) -> bool {
        let mut content = self.content.lock();
        let known = content.extents.version();
        let only_ours = attr.version == known.next();
        let others = attr.version > known && !only_ours;
        if attr.version > known {
            match cut {
                _ if others => content.leave_extents(attr.version),
                Some(from) => content.extents.truncate(from, attr.version),
                None => content.forget_extents(attr.version),
            }
        }
        content.pages.changed_otherwise(cut, attr.version);
        // I6: content that this client wrote meanwhile is not in conflict with its own change.
        if content.pending.is_empty() || attr.version == content.base.next() {
            content.base = content.base.max(attr.version);
        }
        if attr.version >= content.attr.version {
            content.attr = attr.clone();
            content.size = attr.size.max(content.pending.end());
        }
        others
    }
}

impl Content {
    fn is_contended(&self) -> bool {
        self.settled < self.recalls
    }

    fn overlaid(&self, mut attr: InodeAttr) -> InodeAttr {
        if attr.version < self.attr.version {
            // A commit has overtaken the answer: the file must not seem to shrink because of that.
            let newer = &self.attr;
            (attr.version, attr.size, attr.allocated) = (newer.version, newer.size, newer.allocated);
            (attr.mtime, attr.ctime) = (newer.mtime, attr.ctime.max(newer.ctime));
        }
        if !self.pending.is_empty() {
            attr.size = attr.size.max(self.pending.end());
            if let Some(mtime) = self.pending.mtime() {
                attr.mtime = mtime;
                attr.ctime = attr.ctime.max(mtime);
            }
            attr.allocated = attr.allocated.max(self.pending.held().min(attr.size));
        }
        attr
    }

    /// Notes that others have replaced the content: it has this version now. The kernel's pages may show the one before.
    fn leave_extents(&mut self, version: Version) {
        let left = std::mem::replace(&mut self.extents, Extents::unknown(version));
        self.pages.leave(left);
        self.position.forget_ahead();
    }

    /// Forgets all extents: the content has this version now, and others have not changed it.
    fn forget_extents(&mut self, version: Version) {
        self.extents.forget(version);
        self.position.forget_ahead();
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
