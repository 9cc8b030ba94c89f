//! How much uncommitted content the mount holds in memory. Writers wait beyond the limit; beyond half of it, content is
//! committed in the background.

use crate::ordered::{Ordered, Rank};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use wire::FsError;

/// Counts bytes.
pub struct Window {
    held: AtomicU64,
    /// Bytes that are about to be held.
    reserved: AtomicU64,
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

    /// Reserves room for content that is about to be added, if there is room: of many writers that have waited, no more
    /// go on than fit. The reservation ends when it is dropped. Its holder must wait for nothing but its content.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<Reserved<'_>> {
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
    ///
    /// # Errors
    /// Returns why there will be no room: what is held could not be committed, and nothing could since.
    pub async fn wait(&self) -> Result<(), FsError> {
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
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(window.wait())).collect();
        assert!(waiting.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
        window.release(10);
        let awake: usize = waiting.iter_mut().map(|wait| usize::from(wait.as_mut().now_or_never().is_some())).sum();
        assert_eq!(awake, 100, "each finds room when it looks");
        let mut reserved: Vec<_> = (0..100).filter_map(|_| window.reserve(4)).collect();
        assert_eq!(reserved.len(), 3, "the third begins while there is room");
        assert!(!window.has_room());
        let mut next = std::pin::pin!(window.wait());
        assert_eq!(next.as_mut().now_or_never(), None);
        reserved.pop();
        assert_eq!(next.await, Ok(()));
        window.add(4);
        assert!(window.reserve(1).is_none(), "what was added, and what is about to be");
        drop(reserved);
        assert!(window.reserve(1).is_some());
    }
}
