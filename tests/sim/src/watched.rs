//! A value whose changes many tasks wait for. They are woken in the order in which they began to wait; tokio's `watch`
//! wakes them in a random order, and a seed would not be one schedule.

use parking_lot::Mutex;
use std::pin::pin;
use tokio::sync::Notify;

/// The value.
#[derive(Default)]
pub struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Watched<T> {
    /// Returns the present value.
    pub fn get(&self) -> T {
        self.value.lock().clone()
    }

    /// Changes it, and returns the value before.
    pub fn change(&self, change: impl FnOnce(&mut T)) -> T {
        let before = {
            let mut value = self.value.lock();
            let before = value.clone();
            change(&mut value);
            before
        };
        self.changed.notify_waiters();
        before
    }

    /// Waits until it is as asked for, and returns it. Cancel-safe.
    pub async fn wait_for(&self, is_it: impl Fn(&T) -> bool) -> T {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Enabled before the value is looked at: a change after that wakes the task.
            changed.as_mut().enable();
            let now = self.get();
            if is_it(&now) {
                return now;
            }
            changed.await;
        }
    }
}
