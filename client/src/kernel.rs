//! What the kernel was given: pages of a file's content ([`Kernel`]), attributes and names to believe ([`Beliefs`]).
//!
//! The kernel believes attributes and names for moments only, and a recall is acknowledged when these are over: no message
//! to the kernel is needed, which could wait for locks that a request of ours holds. Its pages it keeps until it is told
//! that they are old, by a [`Notice`] or with the next open. Pages of open files are dropped before a recall is
//! acknowledged ([`Kernel::drop_pages`]); that waits for reads under way, so the acknowledgement waits for it in bounds.

use crate::ordered::{Ordered, Rank};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use wire::ids::{Ino, Version};
use wire::op::Name;

/// The kernel believes what it is given for so long while there are other sessions.
pub(crate) const BELIEVED: Duration = Duration::from_millis(50);
/// And so long while this one is alone. Another session's arrival waits for it.
pub(crate) const BELIEVED_ALONE: Duration = Duration::from_secs(1);
/// An answer may reach the kernel so much later than it is given, and the kernel's clock is coarse.
pub(crate) const BELIEF_MARGIN: Duration = Duration::from_millis(50);
/// Inodes of which it is remembered what the kernel was given.
const GIVEN_MAX: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// Notices that wait for the kernel; older ones are forgotten.
const NOTICES_MAX: usize = 1024;

/// What others did, for the kernel's caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The content of this open file was changed by another session.
    Changed(Ino),
    /// The content of this open file is about to be changed by another session, which waits until the pages are dropped.
    Recalled(Ino, Dropped),
    /// This inode's access time has moved, or other attributes without its content.
    Accessed(Ino),
    /// This name in this directory leads elsewhere than it did a moment ago.
    Moved(Ino, Name),
}

/// To be told when the kernel has dropped the pages of a file.
#[derive(Clone, Debug)]
pub struct Dropped(Arc<watch::Sender<bool>>);

impl Dropped {
    /// The kernel has dropped them, or has none.
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
    /// Whether they are dropped.
    pub(crate) fn is_done(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for it.
    pub(crate) async fn wait(&mut self) {
        if self.0.wait_for(|dropped| *dropped).await.is_err() {
            // The notice was lost before the kernel heard it: whoever waits has a limit.
            std::future::pending().await
        }
    }
}

/// When the kernel was last given something to believe. Pure.
pub(crate) struct Beliefs {
    given: LruCache<Ino, Instant>,
    /// Of any inode that `given` does not have.
    given_others: Option<Instant>,
    /// While this session was alone, of any inode.
    given_alone: Option<Instant>,
}

impl Default for Beliefs {
    fn default() -> Self {
        Self { given: LruCache::new(GIVEN_MAX), given_others: None, given_alone: None }
    }
}

impl Beliefs {
    /// It is given something of an inode.
    pub(crate) fn note(&mut self, ino: Ino, now: Instant) {
        if let Some((_, at)) = self.given.push(ino, now).filter(|(old, _)| *old != ino) {
            self.given_others = self.given_others.max(Some(at));
        }
    }

    /// It is given something while this session is alone.
    pub(crate) fn note_alone(&mut self, now: Instant) {
        self.given_alone = Some(now);
    }

    /// Until when it may believe something of an inode.
    pub(crate) fn until(&self, ino: Ino) -> Option<Instant> {
        let given = self.given.peek(&ino).copied().max(self.given_others);
        given.map(|at| at + BELIEVED + BELIEF_MARGIN).max(self.until_alone())
    }

    /// Until when it may believe what it was given while this session was alone.
    pub(crate) fn until_alone(&self) -> Option<Instant> {
        self.given_alone.map(|at| at + BELIEVED_ALONE + BELIEF_MARGIN)
    }

    /// Until when it may believe anything.
    pub(crate) fn until_any(&self) -> Option<Instant> {
        let given = self.given.iter().map(|(_, at)| *at).max().max(self.given_others);
        given.map(|at| at + BELIEVED + BELIEF_MARGIN).max(self.until_alone())
    }
}

/// The kernel's page cache, as far as this client knows what is in it, and what it is to hear.
pub(crate) struct Kernel {
    /// Versions that the pages may be of.
    pages: Ordered<LruCache<Ino, Version>>,
    notices: broadcast::Sender<Notice>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { pages: Ordered::new(Rank::Kernel, LruCache::new(GIVEN_MAX)), notices: broadcast::channel(NOTICES_MAX).0 }
    }
}

impl Kernel {
    /// Whether its pages of an inode, if there are any, are of this version.
    pub(crate) fn has_pages(&self, ino: Ino, version: Version) -> bool {
        self.pages.lock().get(&ino) == Some(&version)
    }

    /// It has dropped what it had of an inode: its pages are of this version from now on.
    pub(crate) fn gets_pages(&self, ino: Ino, version: Version) {
        self.pages.lock().put(ino, version);
    }

    /// Its pages took part in a change of ours: what they held of `from` is right for `to`.
    pub(crate) fn follows(&self, ino: Ino, from: Version, to: Version) {
        let mut pages = self.pages.lock();
        if pages.peek(&ino) == Some(&from) {
            pages.put(ino, to);
        }
    }

    /// It is to hear this, soon.
    pub(crate) fn notify(&self, notice: Notice) {
        // Nobody listens while there is no mount.
        let _ = self.notices.send(notice);
    }

    /// It is to drop the pages of a file that others are about to change. `None` when there is no kernel to hear it.
    pub(crate) fn drop_pages(&self, ino: Ino) -> Option<Dropping> {
        let (dropped, dropping) = watch::channel(false);
        let notice = Notice::Recalled(ino, Dropped(Arc::new(dropped)));
        self.notices.send(notice).is_ok().then_some(Dropping(dropping))
    }

    /// What was done to these inodes and names was undone, and the kernel believes what it has seen.
    pub(crate) fn unlearns(&self, inos: Vec<Ino>, names: Vec<(Ino, Name)>) {
        let names = names.into_iter().map(|(parent, name)| Notice::Moved(parent, name));
        for notice in names.chain(inos.into_iter().map(Notice::Accessed)) {
            self.notify(notice);
        }
    }

    /// What it is to hear from now on.
    pub(crate) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Whether many notices wait, so that those that matter less must not push the others out.
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
        assert_eq!(beliefs.until(Ino(7)), Some(now + BELIEVED + BELIEF_MARGIN));
        assert_eq!(beliefs.until(Ino(8)), None);
        for ino in 0..GIVEN_MAX.get() as u64 {
            beliefs.note(Ino(1000 + ino), now + BELIEVED);
        }
        assert_eq!(beliefs.until(Ino(7)), Some(now + BELIEVED + BELIEF_MARGIN), "it counts as one of the others");
        beliefs.note_alone(now);
        assert_eq!(beliefs.until_alone(), Some(now + BELIEVED_ALONE + BELIEF_MARGIN));
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
