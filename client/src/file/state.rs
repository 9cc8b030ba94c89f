//! One open inode: its committed content where it is known, what was written since, and who has it open.
//!
//! Two versions are kept apart. `base` is what uncommitted writes are judged by (I6): it moves only with what this client
//! has seen while nothing waited to be committed, or with commits of its own. The version of the known extents is newer
//! than `base` when others committed meanwhile.
//!
//! Everything is behind one lock, which nobody else takes: what happens to a file is a method here or in one of the files
//! below, `reading`, `writing`, `committing` and `journaling`, each for one who calls. None of them waits.
//!
//! Lock order: the lock of a flush ([`FileState::begin_flush`]) before that of the content.

mod committing;
mod journaling;
mod reading;
mod writing;

pub(crate) use committing::{Basis, Landing, Next, Unsaved};
pub(crate) use journaling::Snapshot;
pub(crate) use reading::{Ahead, Listing, Plan, Step};

use super::dirty::Dirty;
use super::extents::Extents;
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
    /// As committed: the newest answer of metad.
    attr: InodeAttr,
    /// Content version that uncommitted writes are based on.
    base: Version,
    /// Versions behind it that commits of ours have made beside those of others.
    own: Vec<Version>,
    /// Length with what is written and not committed.
    size: u64,
    /// Committed content, where it is known.
    extents: Extents,
    /// What is not committed.
    pending: Pending,
    position: Position,
    /// The conflict copy that has what was written before, and when something got there last: the rest follows, so that
    /// all of it is in one, until the writer has heard of it.
    diverted: Option<(Ino, Instant)>,
    /// A commit of it is on its way that is not in the queue, and may have arrived.
    committing: bool,
    /// What went wrong with a commit, until an `fsync` or `close` returns it.
    unreported: Option<FsError>,
    /// The policy refused the last commit: it is not tried again until somebody asks.
    refused: bool,
    /// Open handles.
    opens: usize,
    /// How often others were about to change it.
    recalls: u64,
    /// After how many of them metad said that nobody changes it.
    settled: u64,
    /// The kernel was told to drop its pages and was given none since.
    dropped: bool,
    /// Held by each read under way since this was replaced last; nothing is ever sent.
    reads: Arc<watch::Sender<()>>,
}

/// An open inode.
pub struct FileState {
    ino: Ino,
    content: Ordered<Content>,
    /// One flush or change of length at a time: commits follow each other.
    flushing: Arc<tokio::sync::Mutex<()>>,
    /// The next chunk's extents are being loaded ahead of a reader.
    loading: AtomicBool,
}

/// A read that is under way.
pub(crate) struct Reading {
    /// Others may have been changing the file when it began. A recall that comes later waits for the read, and drops its
    /// pages.
    pub is_contended: bool,
    _under_way: Arc<watch::Sender<()>>,
}

/// A flush or a change of length, until it is dropped.
pub(crate) type Flushing = OwnedMutexGuard<()>;

impl FileState {
    /// A file as it was just opened; memory for what is written comes from `buffers`, and blocks are cut at multiples of
    /// `block_bytes`.
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

    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Waits until no other flush or change of length is under way. Cancel-safe.
    pub(crate) async fn begin_flush(&self) -> Flushing {
        self.flushing.clone().lock_owned().await
    }

    /// Begins to load extents ahead of a reader; false when somebody does already.
    pub(crate) fn begin_loading(&self) -> bool {
        !self.loading.swap(true, Ordering::AcqRel)
    }

    /// The extents are loaded, or are not going to be.
    pub(crate) fn end_loading(&self) {
        self.loading.store(false, Ordering::Release);
    }

    /// Attributes with what is not committed yet.
    #[must_use]
    pub fn attr(&self) -> InodeAttr {
        let content = self.content.lock();
        content.overlaid(content.attr.clone())
    }

    /// Lays what is not committed here over attributes from metad.
    #[must_use]
    pub fn overlaid(&self, attr: InodeAttr) -> InodeAttr {
        self.content.lock().overlaid(attr)
    }

    /// Whether it is known to have extended attributes.
    pub(crate) fn has_xattrs(&self) -> bool {
        self.content.lock().attr.has_xattrs
    }

    /// An extended attribute is being set.
    pub(crate) fn note_xattrs(&self) {
        self.content.lock().attr.has_xattrs = true;
    }

    /// A file was read. Whether its access time moves to `now`, as `relatime` has it: then it has moved here, until metad
    /// answers the next time.
    pub(crate) fn note_access(&self, now: Timestamp) -> bool {
        let mut content = self.content.lock();
        let due = content.attr.is_access_due(now);
        if due {
            content.attr.atime = now;
        }
        due
    }

    /// One more handle.
    pub(crate) fn add_handle(&self) {
        self.content.lock().opens += 1;
    }

    /// A handle is given back. Whether it was the last one, and what is not committed is refused by the policy.
    pub(crate) fn remove_handle(&self) -> (bool, bool) {
        let mut content = self.content.lock();
        content.opens -= 1;
        (content.opens == 0, content.refused)
    }

    /// Whether a handle is open.
    pub(crate) fn is_open(&self) -> bool {
        self.content.lock().opens > 0
    }

    /// Whether more than one handle is open.
    pub(crate) fn is_shared(&self) -> bool {
        self.content.lock().opens > 1
    }

    /// Whether nobody needs it: it has no handle, and nothing waits to be committed. With it, where the content of a small
    /// file lies, if all of that is known.
    pub(crate) fn idle(&self) -> (bool, Option<ExtentPage>) {
        let content = self.content.lock();
        let idle = content.opens == 0 && content.pending.is_empty();
        let settled = content.extents.version() == content.attr.version;
        (idle, (idle && settled).then(|| content.extents.whole_page(content.size)).flatten())
    }

    /// Whether nobody can read it any more: it has neither a name nor a handle here.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        let content = self.content.lock();
        content.opens == 0 && content.attr.nlink == 0
    }

    /// It has lost its last name elsewhere. Whether nobody can read what is not committed any more. What is in the queue
    /// was written before anybody here knew of the removal: that is kept beside.
    pub(crate) fn lose_last_name(&self) -> bool {
        let mut content = self.content.lock();
        let unread = content.opens == 0 && !content.pending.first_is_queued();
        if unread {
            content.attr.nlink = 0;
        }
        unread
    }

    /// The newest version of the content; `None` while something is not committed, and the next one is ours.
    pub(crate) fn newest_version(&self) -> Option<Version> {
        let content = self.content.lock();
        content.pending.is_empty().then_some(content.attr.version.max(content.extents.version()))
    }

    /// A time was set: until what was written before is committed, the time of that would show.
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

    /// A read is under way, which gives the kernel pages, until what is returned is dropped.
    pub(crate) fn begin_read(&self) -> Reading {
        let mut content = self.content.lock();
        let is_contended = content.is_contended();
        // Where others may be changing it, what metad says comes first.
        content.dropped &= is_contended;
        Reading { is_contended, _under_way: content.reads.clone() }
    }

    /// Closed when all reads have ended that are under way now.
    pub(crate) fn reads_under_way(&self) -> watch::Receiver<()> {
        let next = Arc::new(watch::Sender::new(()));
        let reads = std::mem::replace(&mut self.content.lock().reads, next);
        reads.subscribe()
    }

    /// Others are about to change it, and the kernel drops its pages.
    pub(crate) fn note_recall(&self) {
        let mut content = self.content.lock();
        content.recalls += 1;
        content.dropped = true;
    }

    /// The kernel is about to be given pages.
    pub(crate) fn note_given(&self) {
        self.content.lock().dropped = false;
    }

    /// Whether the kernel has no pages, or is about to have none.
    pub(crate) fn is_dropped(&self) -> bool {
        self.content.lock().dropped
    }

    /// How often others were about to change it: to be taken before metad is asked, for [`FileState::note_settled`].
    pub(crate) fn recalls(&self) -> u64 {
        self.content.lock().recalls
    }

    /// metad reports the next change: what it says was asked after so many recalls, and is taken in.
    pub(crate) fn note_settled(&self, recalls: u64) {
        let mut content = self.content.lock();
        content.settled = content.settled.max(recalls);
    }

    /// Whether others may be changing it: what is known of it may be old.
    pub(crate) fn is_contended(&self) -> bool {
        self.content.lock().is_contended()
    }

    /// Takes in what metad says of the content now. What is not committed stays, on its old base: a later commit is
    /// judged by that (I6). Answers that were overtaken by newer ones are passed over. Whether the content is another.
    pub(crate) fn refresh(&self, attr: &InodeAttr, page: Option<&ExtentPage>) -> bool {
        let mut content = self.content.lock();
        if attr.version < content.extents.version() || attr.version < content.base {
            return false;
        }
        let moved = attr.version > content.extents.version();
        if moved {
            content.forget_extents(attr.version);
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
        // What others have written behind our own is there to read, too.
        content.size = content.attr.size.max(content.pending.end());
        moved
    }

    /// Takes in the answer to a change of content by this client that is no commit. `cut` tells from where on content
    /// was removed, if that is all that happened. Whether others have changed it, too: the kernel may have what was there
    /// before that.
    pub(crate) fn changed_here(&self, attr: &InodeAttr, cut: Option<u64>) -> bool {
        let mut content = self.content.lock();
        let known = content.extents.version();
        let only_ours = attr.version == known.next();
        let others = attr.version > known && !only_ours;
        if attr.version > known {
            match cut.filter(|_| only_ours) {
                Some(from) => content.extents.truncate(from, attr.version),
                None => content.forget_extents(attr.version),
            }
        }
        // I6: what was written meanwhile by this client is not in conflict with its own change.
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
            // The answer was overtaken by a commit: nobody sees the file shrink because of that.
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

    /// Nothing is known of the content any more, which has this version now.
    fn forget_extents(&mut self, version: Version) {
        self.extents.forget(version);
        self.position.forget_ahead();
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
