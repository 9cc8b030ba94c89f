//! Waits for advisory locks, in which deadlocks are looked for.

use crate::ordered::{Ordered, Rank};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::MutexGuard;
use wire::ids::Ino;
use wire::op::Lock;

/// Who waits here for which lock.
pub(crate) struct Waits {
    waiting: Ordered<Vec<(u64, Ino, Lock)>>,
    next: AtomicU64,
    /// One search at a time, so that of those that close a circle together one is refused and not all.
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

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Notes a wait for as long as the answer lives.
    pub fn note(&self, ino: Ino, lock: &Lock) -> Noted<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().push((number, ino, lock.clone()));
        Noted { waits: self, number }
    }

    /// What an owner waits for; several threads of one may wait.
    pub fn of(&self, owner: u64) -> Vec<(Ino, Lock)> {
        let waiting = self.waiting.lock();
        let own = waiting.iter().filter(|(_, _, lock)| lock.owner == owner);
        own.map(|(_, ino, lock)| (*ino, lock.clone())).collect()
    }
}

/// A wait, as long as this lives.
pub(crate) struct Noted<'a> {
    waits: &'a Waits,
    number: u64,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.waits.waiting.lock().retain(|(number, _, _)| *number != self.number);
    }
}
