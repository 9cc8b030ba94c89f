//! How much uncommitted content the mount holds in memory: writers wait beyond the limit (and what is beyond half of it
//! is committed in the background).

use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Counts bytes.
pub struct Window {
    held: AtomicU64,
    limit: u64,
    released: Notify,
    /// Told when there is so much that waiting for more is no use.
    pub(crate) pressure: Notify,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { held: AtomicU64::new(0), limit, released: Notify::new(), pressure: Notify::new() }
    }

    /// Whether there is room. A write that begins while there is may go beyond the limit by its own size.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.held.load(Ordering::Acquire) < self.limit
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.load(Ordering::Acquire) == 0
    }

    /// Waits until there is room. Cancel-safe.
    pub async fn wait(&self) {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            // Before looking: what is released in between must not be missed.
            released.as_mut().enable();
            if self.has_room() {
                return;
            }
            self.pressure.notify_one();
            released.await;
        }
    }

    /// More is held.
    pub fn add(&self, bytes: u64) {
        if self.held.fetch_add(bytes, Ordering::AcqRel) + bytes > self.limit / 4 {
            self.pressure.notify_one();
        }
    }

    /// Less is held.
    pub fn release(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
        self.released.notify_waiters();
    }
}
