//! Waits for advisory locks, among which deadlocks are searched for.

use crate::ordered::{Ordered, Rank};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::MutexGuard;
use wire::ids::Ino;
use wire::op::Lock;

/// The owners that wait here, and the locks that they wait for.
pub(crate) struct Waits {
    waiting: Ordered<Vec<(u64, Ino, Lock)>>,
    next: AtomicU64,
    /// Allows one search at a time. If several waits close a circle together, only one of them is refused.
    searching: tokio::sync::Mutex<()>,
}

impl Default for Waits {
    fn default() -> Self {
        let waiting = Ordered::new(Rank::Leaf, Vec::new());
        Self { waiting, next: AtomicU64::new(0), searching: tokio::sync::Mutex::default() }
    }
}

impl Waits {
    /// Begins to search for a deadlock, once no other search is under way. Cancel-safe.
    pub async fn search(&self) -> MutexGuard<'_, ()> {
        self.searching.lock().await
    }

    /// Returns whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Notes a wait until the returned value is dropped.
    pub fn note(&self, ino: Ino, lock: &Lock) -> Noted<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().push((number, ino, lock.clone()));
        Noted { waits: self, number }
    }

    /// Returns what an owner waits for; several threads of one owner may wait.
    pub fn of(&self, owner: u64) -> Vec<(Ino, Lock)> {
        let waiting = self.waiting.lock();
        let own = waiting.iter().filter(|(_, _, lock)| lock.owner == owner);
        own.map(|(_, ino, lock)| (*ino, lock.clone())).collect()
    }
}

/// A wait that is noted until this is dropped.
pub(crate) struct Noted<'a> {
    waits: &'a Waits,
    number: u64,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.waits.waiting.lock().retain(|(number, _, _)| *number != self.number);
    }
}
