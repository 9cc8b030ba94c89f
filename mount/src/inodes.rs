//! What the kernel may believe of an inode, and for how long.
//!
//! No lookup counts: inode numbers are never used twice (I4), and neither client nor metad keeps anything for an inode
//! that the kernel merely knows, so `forget` has nothing to undo.

use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wire::attr::InodeAttr;
use wire::ids::Ino;

/// Inodes of which it is remembered that they have no extended attributes. A bound on memory: what is forgotten is asked
/// again.
const PLAIN_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// How long names and attributes are believed on a cluster that nobody else changes.
pub(crate) const ALONE: Duration = Duration::from_secs(3600);

/// On what the kernel may believe what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// On read leases: there are other clients.
    Leases,
    /// On this being the only client, of an embedded cluster: nobody else changes what the client knows.
    Alone,
}

/// What is known of inodes here, beyond what the client knows.
pub(crate) struct Inodes {
    pub trust: Trust,
    /// Open handles that may write, by inode. While there are any, times and allocation change without the kernel.
    writers: Mutex<HashMap<Ino, u32>>,
    /// Inodes that had no extended attributes at that time.
    plain: Mutex<LruCache<Ino, Instant>>,
    /// Grows around each change of extended attributes: what was asked before it is not remembered after it.
    xattr_changes: AtomicU64,
}

/// A moment before a question, see [`Inodes::learn`].
#[derive(Clone, Copy)]
pub(crate) struct Mark(u64);

impl Inodes {
    /// Nothing is known yet.
    pub(crate) fn new(trust: Trust) -> Self {
        Self {
            trust,
            writers: Mutex::default(),
            plain: Mutex::new(LruCache::new(PLAIN_MAX)),
            xattr_changes: AtomicU64::new(0),
        }
    }

    /// A handle that may write was opened.
    pub(crate) fn add_writer(&self, ino: Ino) {
        *self.writers.lock().entry(ino).or_default() += 1;
    }

    /// Such a handle was released, its content committed.
    pub(crate) fn remove_writer(&self, ino: Ino) {
        let mut writers = self.writers.lock();
        if let Some(count) = writers.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&ino);
            }
        }
    }

    /// Whether the inode is open for writing here. Its attributes are stamped anew by metad at each commit, of which the
    /// kernel hears nothing.
    pub(crate) fn is_written(&self, ino: Ino) -> bool {
        self.writers.lock().contains_key(&ino)
    }

    /// To be taken before attributes are asked for.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.xattr_changes.load(Ordering::SeqCst))
    }

    /// Remembers from attributes asked for after `mark` that an inode has no extended attributes.
    pub(crate) fn learn(&self, attr: &InodeAttr, mark: Mark) {
        let mut plain = self.plain.lock();
        if attr.has_xattrs {
            plain.pop(&attr.ino);
        } else if self.xattr_changes.load(Ordering::SeqCst) == mark.0 {
            plain.put(attr.ino, Instant::now());
        }
    }

    /// An extended attribute is about to be set, or was set just now.
    pub(crate) fn xattrs_change(&self, ino: Ino) {
        self.xattr_changes.fetch_add(1, Ordering::SeqCst);
        self.plain.lock().pop(&ino);
    }

    /// Somebody else changed the inode.
    pub(crate) fn forget(&self, ino: Ino) {
        self.plain.lock().pop(&ino);
    }

    /// Whether the inode is known to have no extended attributes, on a cluster that nobody else changes.
    pub(crate) fn is_plain(&self, ino: Ino) -> bool {
        // Locked once, and only read: the order of use does not matter for a hint.
        self.trust == Trust::Alone && self.plain.lock().peek(&ino).is_some_and(|at| at.elapsed() < ALONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::{FileKind, Timestamp};
    use wire::ids::Version;

    fn attr(has_xattrs: bool) -> InodeAttr {
        let now = Timestamp::default();
        InodeAttr {
            ino: Ino(2000),
            kind: FileKind::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            version: Version(1),
            has_xattrs,
        }
    }

    #[test]
    fn attributes_of_a_file_that_is_written_are_not_believed() {
        let inodes = Inodes::new(Trust::Alone);
        inodes.add_writer(Ino(2000));
        inodes.add_writer(Ino(2000));
        inodes.remove_writer(Ino(2000));
        assert!(inodes.is_written(Ino(2000)));
        inodes.remove_writer(Ino(2000));
        assert!(!inodes.is_written(Ino(2000)));
    }

    #[test]
    fn an_answer_from_before_a_change_of_xattrs_is_not_remembered() {
        let inodes = Inodes::new(Trust::Alone);
        let mark = inodes.mark();
        inodes.xattrs_change(Ino(2000));
        inodes.learn(&attr(false), mark);
        assert!(!inodes.is_plain(Ino(2000)));
        inodes.learn(&attr(false), inodes.mark());
        assert!(inodes.is_plain(Ino(2000)));
        inodes.learn(&attr(true), inodes.mark());
        assert!(!inodes.is_plain(Ino(2000)));
    }
}
