//! Numbers for open files and directories, as the kernel holds them.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Pause between looks whether the last request on a handle has ended.
const LAST_USE_PAUSE: Duration = Duration::from_millis(1);

/// Open things by number.
pub(crate) struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: RwLock::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Gives a value a number that was never used before.
    pub(crate) fn insert(&self, value: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(number, Arc::new(value));
        number
    }

    /// The value with this number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.open.read().get(&number).cloned()
    }

    /// Removes the value with this number.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open.write().remove(&number)
    }

    /// Removes all values.
    pub(crate) fn drain(&self) -> Vec<Arc<T>> {
        self.open.write().drain().map(|(_, value)| value).collect()
    }
}

/// Waits until nobody else uses a value, and returns it. The kernel releases a handle after its last request was
/// answered, so there is hardly ever a wait: for a task that has sent its answer, or a read ahead that nobody needs.
pub(crate) async fn last_use<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(value) => return value,
            Err(used) => shared = used,
        }
        tokio::time::sleep(LAST_USE_PAUSE).await;
    }
}
