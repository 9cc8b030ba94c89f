//! How much uncommitted content the mount holds in memory. Writers wait beyond the limit; beyond half of it, content is
//! committed in the background.

use crate::ordered::{Ordered, Rank};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use wire::FsError;

/// Counts bytes.
pub struct Window {
    held: AtomicU64,
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
        self.held() < self.limit
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
}
