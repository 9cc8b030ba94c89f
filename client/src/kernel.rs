//! What the kernel was given: pages of a file's content ([`Kernel`]), and attributes and names to believe
//! ([`Beliefs`]).
//!
//! The kernel believes attributes and names for moments only, and a recall is acknowledged when these are over. So no
//! message to the kernel is needed, which could wait for locks that a request of ours holds. The kernel retains pages
//! until a [`Notice`] or the next open says that they are old. Pages of open files are dropped before a recall is
//! acknowledged ([`Kernel::drop_pages`]). That waits for reads under way, so there is a limit to it.

use crate::ordered::{Ordered, Rank};
use crate::recent::lru;
use lru::LruCache;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use wire::ids::{Ino, Version};
use wire::op::Name;

/// The kernel believes what it is given for this long while there are other sessions.
pub(crate) const KERNEL_TRUST: Duration = Duration::from_millis(50);
/// And for this long while this session is alone. The arrival of another session waits for it.
pub(crate) const KERNEL_TRUST_ALONE: Duration = Duration::from_secs(1);
/// An answer may reach the kernel this much later than it is given, and the kernel's clock is coarse.
pub(crate) const BELIEF_MARGIN: Duration = Duration::from_millis(50);
/// The number of inodes for which it is remembered what the kernel was given.
const GIVEN_MAX: usize = 65_536;
/// Notices that wait for the kernel; beyond it, older ones are dropped.
const NOTICES_MAX: usize = 1024;

/// Changes by others that the kernel's caches must reflect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The content of this open file was changed by another session.
    Changed(Ino),
    /// The content of this open file is about to be changed by another session, which waits until the pages are
    /// dropped.
    Recalled(Ino, Dropped),
    /// This inode's access time has moved, or other attributes have changed, but not its content.
    Accessed(Ino),
    /// This name in this directory leads elsewhere than it did a moment ago.
    Moved(Ino, Name),
}

/// Reports that the kernel has dropped the pages of a file.
#[derive(Clone, Debug)]
pub struct Dropped(Arc<watch::Sender<bool>>);

impl Dropped {
    /// Reports that the kernel has dropped them, or has none.
    pub fn report(&self) {
        self.0.send_replace(true);
    }
}

impl PartialEq for Dropped {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Dropped {}

/// Waits until the kernel has dropped the pages of a file.
#[derive(Debug)]
pub(crate) struct Dropping(watch::Receiver<bool>);

impl Dropping {
    /// Returns whether they are dropped.
    pub(crate) fn is_done(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until they are dropped.
    pub(crate) async fn wait(&mut self) {
        if self.0.wait_for(|dropped| *dropped).await.is_err() {
            // The notice was lost before the kernel got it. The caller has a limit of its own.
            std::future::pending().await
        }
    }
}

/// When the kernel was last given something to believe. Pure.
pub(crate) struct Beliefs {
    given: LruCache<Ino, Instant>,
    /// When anything was last given of inodes that `given` does not have.
    given_others: Option<Instant>,
    /// When anything was last given while this session was alone, of any inode.
    given_alone: Option<Instant>,
}

impl Default for Beliefs {
    fn default() -> Self {
        Self { given: lru(GIVEN_MAX), given_others: None, given_alone: None }
    }
}

impl Beliefs {
    /// Notes that the kernel is given something of an inode.
    pub(crate) fn note(&mut self, ino: Ino, now: Instant) {
        if let Some((_, at)) = self.given.push(ino, now).filter(|(old, _)| *old != ino) {
            self.given_others = self.given_others.max(Some(at));
        }
    }

    /// Notes that the kernel is given something while this session is alone.
    pub(crate) fn note_alone(&mut self, now: Instant) {
        self.given_alone = Some(now);
    }

    /// Returns until when the kernel may believe something of an inode.
    pub(crate) fn until(&self, ino: Ino) -> Option<Instant> {
        let given = self.given.peek(&ino).copied().max(self.given_others);
        given.map(|at| at + KERNEL_TRUST + BELIEF_MARGIN).max(self.until_alone())
    }

    /// Returns until when the kernel may believe what it was given while this session was alone.
    pub(crate) fn until_alone(&self) -> Option<Instant> {
        self.given_alone.map(|at| at + KERNEL_TRUST_ALONE + BELIEF_MARGIN)
    }

    /// Returns until when the kernel may believe anything.
    pub(crate) fn until_any(&self) -> Option<Instant> {
        let given = self.given.iter().map(|(_, at)| *at).max().max(self.given_others);
        given.map(|at| at + KERNEL_TRUST + BELIEF_MARGIN).max(self.until_alone())
    }
}

/// The kernel's page cache, to the extent that this client knows it, and notices for the kernel.
pub(crate) struct Kernel {
    /// Versions that the pages may belong to.
    pages: Ordered<LruCache<Ino, Version>>,
    notices: broadcast::Sender<Notice>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { pages: Ordered::new(Rank::Kernel, lru(GIVEN_MAX)), notices: broadcast::channel(NOTICES_MAX).0 }
    }
}

impl Kernel {
    /// Returns whether the kernel's pages of an inode, if there are any, are of this version.
    pub(crate) fn has_pages(&self, ino: Ino, version: Version) -> bool {
        self.pages.lock().get(&ino) == Some(&version)
    }

    /// Notes that the kernel has dropped its pages of an inode: new pages are of this version.
    pub(crate) fn gets_pages(&self, ino: Ino, version: Version) {
        self.pages.lock().put(ino, version);
    }

    /// Notes that the kernel may have pages of an inode that are of no version. It is asked to drop them, and the next
    /// open relies on none: the file may be closed before that, or the notice be lost.
    pub(crate) fn spoils_pages(&self, ino: Ino) {
        self.gets_pages(ino, Version::default());
        self.notify(Notice::Changed(ino));
    }

    /// Notes that the kernel's pages took part in a change of ours: pages of `from` are valid for `to`.
    pub(crate) fn follows(&self, ino: Ino, from: Version, to: Version) {
        let mut pages = self.pages.lock();
        if pages.peek(&ino) == Some(&from) {
            pages.put(ino, to);
        }
    }

    /// Sends a notice to the kernel.
    pub(crate) fn notify(&self, notice: Notice) {
        // Nobody receives it while there is no mount.
        let _ = self.notices.send(notice);
    }

    /// Asks the kernel to drop the pages of a file that others are about to change. `None` when there is no kernel.
    pub(crate) fn drop_pages(&self, ino: Ino) -> Option<Dropping> {
        let (dropped, dropping) = watch::channel(false);
        let notice = Notice::Recalled(ino, Dropped(Arc::new(dropped)));
        self.notices.send(notice).is_ok().then_some(Dropping(dropping))
    }

    /// Notifies the kernel that operations on these inodes and names were undone, because it believes what it has seen.
    pub(crate) fn unlearns(&self, inos: Vec<Ino>, names: Vec<(Ino, Name)>) {
        let names = names.into_iter().map(|(parent, name)| Notice::Moved(parent, name));
        for notice in names.chain(inos.into_iter().map(Notice::Accessed)) {
            self.notify(notice);
        }
    }

    /// Returns a receiver of later notices.
    pub(crate) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Returns whether there is a kernel: a mount receives the notices.
    pub(crate) fn is_there(&self) -> bool {
        self.notices.receiver_count() > 0
    }

    /// Returns whether many notices wait, so that less important ones must not push the others out.
    pub(crate) fn is_busy(&self) -> bool {
        self.notices.len() >= NOTICES_MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_forgotten_that_the_kernel_was_given_something() {
        let (mut beliefs, now) = (Beliefs::default(), Instant::now());
        assert_eq!((beliefs.until(Ino(7)), beliefs.until_any()), (None, None));
        beliefs.note(Ino(7), now);
        assert_eq!(beliefs.until(Ino(7)), Some(now + KERNEL_TRUST + BELIEF_MARGIN));
        assert_eq!(beliefs.until(Ino(8)), None);
        for ino in 0..GIVEN_MAX as u64 {
            beliefs.note(Ino(1000 + ino), now + KERNEL_TRUST);
        }
        assert_eq!(beliefs.until(Ino(7)), Some(now + KERNEL_TRUST + BELIEF_MARGIN), "it counts as one of the others");
        beliefs.note_alone(now);
        assert_eq!(beliefs.until_alone(), Some(now + KERNEL_TRUST_ALONE + BELIEF_MARGIN));
        assert_eq!(beliefs.until(Ino(8)), beliefs.until_alone());
    }

    #[tokio::test]
    async fn pages_are_dropped_once_the_kernel_says_so() {
        let kernel = Kernel::default();
        assert!(kernel.drop_pages(Ino(7)).is_none(), "no kernel listens");
        let mut notices = kernel.notices();
        let mut dropping = kernel.drop_pages(Ino(7)).unwrap();
        assert!(!dropping.is_done());
        let Notice::Recalled(Ino(7), dropped) = notices.recv().await.unwrap() else { panic!("another notice") };
        dropped.report();
        assert!(dropping.is_done());
        dropping.wait().await;
    }

    #[test]
    fn pages_follow_a_change_only_from_the_version_that_they_are_of() {
        let kernel = Kernel::default();
        kernel.gets_pages(Ino(7), Version(3));
        kernel.follows(Ino(7), Version(2), Version(4));
        assert!(kernel.has_pages(Ino(7), Version(3)) && !kernel.has_pages(Ino(8), Version(3)));
        kernel.follows(Ino(7), Version(3), Version(4));
        assert!(kernel.has_pages(Ino(7), Version(4)));
    }
}
