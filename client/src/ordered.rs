//! The lock order of the client, and the mutexes that follow it.
//!
//! Locks that are held over an `.await` are tokio's and come first, in this order: the search for a deadlock
//! (`Waits::search`) and a writer's turn at the window (`Window`), under which others flush; then a file's flush
//! (`FileState::begin_flush`); then those of the session (one renewal, one range of inode numbers) or of the journal (one
//! round of writing, one change of its files). The mutexes below are held for a few lines without an `.await`, and a thread
//! that holds one takes another only of a higher [`Rank`]. Debug builds, and so all tests, assert that with each lock that
//! is taken.
//!
//! Locks under which none of these is taken share a rank, [`Rank::Leaf`]. Those of `wire` that a client uses (its pool of
//! buffers, its suspects, its hints) come behind all of them. So does that of the channel with the layout, which everybody reads.

use parking_lot::{Mutex, MutexGuard};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Place of a mutex in the lock order: a thread takes them from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Rank {
    /// Tasks that run as long as the client lives.
    Tasks,
    /// The write-back queue: held while an operation is carried out here.
    Queue,
    /// Inodes being opened and removed.
    Opens,
    /// The map of open files.
    Files,
    /// Unlinked inodes that metad retains for open handles.
    Orphans,
    /// Open files whose attributes are asked for because another session changed them.
    Refreshing,
    /// One file's content.
    Content,
    /// Small content that waits to be uploaded together.
    Gathering,
    /// What is known of names and attributes, pinned, or asked for ahead.
    Known,
    /// Pages that the kernel drops before a handle is used. They are dropped once [`Rank::Kernel`] has noted it.
    Drops,
    /// What the kernel was given.
    Kernel,
    /// The current file of the journal.
    JournalFile,
    /// All others: no other lock of the client is taken under them.
    Leaf,
}

/// A mutex with a place in the lock order.
pub(crate) struct Ordered<T> {
    rank: Rank,
    mutex: Mutex<T>,
}

/// A guard: it unlocks the mutex when it is dropped.
pub(crate) struct Held<'a, T> {
    guard: MutexGuard<'a, T>,
    _noted: held::Noted,
}

impl<T> Ordered<T> {
    /// Creates a mutex of this rank.
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self { rank, mutex: Mutex::new(value) }
    }

    /// Locks the mutex.
    pub(crate) fn lock(&self) -> Held<'_, T> {
        // Noted before waiting: a wrong order is found even if nobody else holds the lock.
        let noted = held::Noted::new(self.rank);
        Held { guard: self.mutex.lock(), _noted: noted }
    }
}

impl<T> fmt::Debug for Ordered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ordered").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(debug_assertions)]
mod held {
    use super::Rank;
    use std::cell::RefCell;

    thread_local! {
        /// Ranks that this thread holds.
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// Notes that this thread holds a lock of a rank.
    pub(super) struct Noted(Rank);

    impl Noted {
        pub(super) fn new(rank: Rank) -> Self {
            HELD.with_borrow_mut(|held| {
                if let Some(highest) = held.iter().max() {
                    assert!(rank > *highest, "lock order: {rank:?} is taken while {highest:?} is held");
                }
                held.push(rank);
            });
            Self(rank)
        }
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                if let Some(place) = held.iter().rposition(|rank| *rank == self.0) {
                    held.swap_remove(place);
                }
            });
        }
    }
}

#[cfg(not(debug_assertions))]
mod held {
    use super::Rank;

    /// Does nothing: the order is asserted in debug builds.
    pub(super) struct Noted;

    impl Noted {
        pub(super) fn new(_: Rank) -> Self {
            Self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_in_the_order_of_their_ranks_and_given_back_in_any() {
        let (files, content, leaf) =
            (Ordered::new(Rank::Files, 1), Ordered::new(Rank::Content, 2), Ordered::new(Rank::Leaf, 3));
        let (first, second) = (files.lock(), content.lock());
        drop(first);
        assert_eq!(*leaf.lock() + *second, 5);
        drop(second);
        *files.lock() += 1;
        assert_eq!(*files.lock(), 2);
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "lock order: Files is taken while Content is held")]
    fn a_lock_out_of_order_is_found_though_nobody_waits() {
        let (files, content) = (Ordered::new(Rank::Files, ()), Ordered::new(Rank::Content, ()));
        let _content = content.lock();
        let _files = files.lock();
    }
}
