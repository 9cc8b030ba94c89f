//! How much uncommitted content the mount holds in memory. Writers wait beyond the limit; beyond half of it, content is
//! committed in the background.

use crate::ordered::{Ordered, Rank};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Mutex, Notify};
use wire::FsError;

/// Counts bytes.
pub struct Window {
    held: AtomicU64,
    /// Bytes that are about to be held.
    reserved: AtomicU64,
    /// How many wait for room.
    waiting: AtomicUsize,
    /// Held by the first of them: the others wait for this lock, which goes from one to the next in their order.
    first: Mutex<()>,
    /// How often bytes were released.
    releases: AtomicU64,
    limit: u64,
    /// Why nothing could be committed lately, and waiting is of no use.
    failure: Ordered<Option<FsError>>,
    released: Notify,
    /// Notified when so much is held that it should be committed now.
    pressure: Notify,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let (released, pressure) = (Notify::new(), Notify::new());
        Self {
            held: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            first: Mutex::new(()),
            releases: AtomicU64::new(0),
            limit,
            failure: Ordered::new(Rank::Leaf, None),
            released,
            pressure,
        }
    }

    /// Returns whether there is room. A write that begins while there is room may exceed the limit by its own size.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.held() + self.reserved.load(Ordering::Acquire) < self.limit
    }

    /// Returns whether a write may go on at once: there is room, and nobody waits for it.
    #[must_use]
    pub fn takes_at_once(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0 && self.has_room()
    }

    /// Waits until there is room for content that is about to be added, and reserves it: in the order of the calls, and
    /// of many writers that have waited, no more go on than fit. The reservation ends when it is dropped. Cancel-safe.
    ///
    /// Deadlock: what makes room (commits, and what they wait for) must never wait for a reservation.
    ///
    /// # Errors
    /// Returns why there will be no room: what is held could not be committed, and nothing could since.
    pub async fn reserve(&self, bytes: u64) -> Result<Reserved<'_>, FsError> {
        let _waits = Waits::begin(&self.waiting);
        if !self.has_room() {
            // The first in the line may have asked before those who commit had anything to do.
            self.pressure.notify_one();
        }
        let _first = self.first.lock().await;
        loop {
            self.wait().await?;
            // A write that went on at once may have been faster.
            if let Some(reserved) = self.try_reserve(bytes) {
                return Ok(reserved);
            }
        }
    }

    fn try_reserve(&self, bytes: u64) -> Option<Reserved<'_>> {
        let is_free = |reserved| (self.held() + reserved < self.limit).then_some(reserved + bytes);
        let taken = self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, is_free);
        taken.is_ok().then(|| Reserved { window: self, bytes })
    }

    /// Returns how many bytes are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// Returns how often something was committed or dropped.
    #[must_use]
    pub fn releases(&self) -> u64 {
        self.releases.load(Ordering::Relaxed)
    }

    /// Returns whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held() == 0
    }

    /// Waits until there is room. Cancel-safe.
    async fn wait(&self) -> Result<(), FsError> {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            // Enabled before looking: a release in between must not be missed.
            released.as_mut().enable();
            if self.has_room() {
                return Ok(());
            }
            self.pressure.notify_one();
            if let Some(error) = *self.failure.lock() {
                return Err(error);
            }
            released.await;
        }
    }

    /// Waits until so much is held that it should be committed now. Cancel-safe.
    pub async fn wait_for_pressure(&self) {
        self.pressure.notified().await;
    }

    /// Adds bytes that are held.
    pub fn add(&self, bytes: u64) {
        if self.held.fetch_add(bytes, Ordering::AcqRel) + bytes > self.limit / 4 {
            self.pressure.notify_one();
        }
    }

    /// Notes why nothing can be committed now: writers that wait for room get this error.
    pub fn fail(&self, error: FsError) {
        *self.failure.lock() = Some(error);
        self.released.notify_waiters();
    }

    /// Returns whether nothing could be committed lately.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failure.lock().is_some()
    }

    /// Releases bytes that are not held any more.
    pub fn release(&self, bytes: u64) {
        *self.failure.lock() = None;
        self.releases.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        self.released.notify_waiters();
    }
}

/// Somebody who waits for room, until this is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::AcqRel);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Room in a window, which is given back when this is dropped.
pub struct Reserved<'a> {
    window: &'a Window,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.window.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
        if self.window.has_room() {
            self.window.released.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_writer_without_room_waits_until_there_is_some_or_will_be_none() {
        let window = Window::new(10);
        window.add(10);
        let mut waiting = std::pin::pin!(window.wait());
        assert_eq!(waiting.as_mut().now_or_never(), None);
        window.fail(FsError::NoSpace);
        assert_eq!(waiting.await, Err(FsError::NoSpace));
        window.release(1);
        window.add(1);
        assert_eq!(window.wait().now_or_never(), None, "something could be committed since");
        window.release(1);
        assert_eq!(window.wait().await, Ok(()));
    }

    #[tokio::test]
    async fn of_many_writers_that_have_waited_no_more_go_on_than_fit() {
        let window = Window::new(10);
        window.add(10);
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(window.reserve(4))).collect();
        assert!(waiting.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
        window.release(10);
        let mut reserved: Vec<_> = waiting.iter_mut().map_while(|wait| wait.as_mut().now_or_never()).collect();
        assert_eq!(reserved.len(), 3, "the third begins while there is room");
        assert!(!window.has_room());
        assert!(waiting[3].as_mut().now_or_never().is_none());
        reserved.pop();
        let fourth = waiting[3].as_mut().now_or_never().expect("there is room again").unwrap();
        window.add(4);
        drop(fourth);
        assert!(waiting[4].as_mut().now_or_never().is_none(), "what was added, and what is about to be");
        drop(reserved);
        assert!(waiting[4].as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn writers_get_room_in_the_order_in_which_they_came_and_no_newcomer_overtakes_them() {
        let window = Window::new(10);
        window.add(10);
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(window.reserve(10))).collect();
        assert!(waiting.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
        window.release(10);
        assert!(window.has_room());
        assert!(!window.takes_at_once(), "others have waited for it");
        for turn in 0..20 {
            // Those behind look first.
            let mut got = Vec::new();
            for number in (turn..20).rev() {
                if let Some(reserved) = waiting[number].as_mut().now_or_never() {
                    got.push((number, reserved.unwrap()));
                }
            }
            assert_eq!(got.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [turn]);
        }
        assert!(window.takes_at_once());
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_does_not_stand_in_the_way() {
        let window = Window::new(10);
        window.add(10);
        let mut first = Box::pin(window.reserve(1));
        let mut second = Box::pin(window.reserve(1));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        drop(first);
        window.release(10);
        assert!(second.as_mut().now_or_never().is_some());
        drop(second);
        assert!(window.takes_at_once());
    }

    #[tokio::test]
    async fn all_writers_learn_that_there_will_be_no_room() {
        let window = Window::new(10);
        window.add(10);
        let mut waiting: Vec<_> = (0..9).map(|_| Box::pin(window.reserve(1))).collect();
        assert!(waiting.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
        window.fail(FsError::NoSpace);
        for wait in waiting {
            assert_eq!(wait.await.err(), Some(FsError::NoSpace));
        }
    }
}
