//! Who has locked what through this mount.

use parking_lot::Mutex;
use std::collections::HashSet;
use wire::ids::Ino;
use wire::op::LockFamily;

/// What was locked through this mount: inode, owner, and which kind it counts as.
#[derive(Default)]
pub(super) struct Locked {
    held: Mutex<HashSet<(Ino, u64, LockFamily)>>,
}

impl Locked {
    /// A lock is about to be taken.
    pub(super) fn note(&self, ino: Ino, owner: u64, family: LockFamily) {
        self.held.lock().insert((ino, owner, family));
    }

    /// All of a kind are about to be given up. Answers whether there may be any.
    pub(super) fn forget(&self, ino: Ino, owner: u64, family: LockFamily) -> bool {
        self.held.lock().remove(&(ino, owner, family))
    }

    /// What may be held of a kind.
    pub(super) fn has(&self, ino: Ino, owner: u64, family: LockFamily) -> bool {
        self.held.lock().contains(&(ino, owner, family))
    }

    /// Whether a process may hold locks of `fcntl(2)` on a file.
    pub(super) fn holds(&self, ino: Ino, owner: u64) -> bool {
        self.has(ino, owner, LockFamily::Posix)
    }
}

/// Who locked through a handle and has not closed it since.
#[derive(Default)]
pub(super) struct LockOwners {
    owners: Mutex<HashSet<u64>>,
}

impl LockOwners {
    /// A process closed a descriptor: it holds nothing any more, and what it locks from now on is not this handle's.
    pub(super) fn closed_by(&self, owner: u64) {
        self.owners.lock().remove(&owner);
    }

    /// Somebody locks through the handle.
    pub(super) fn note(&self, owner: u64) {
        self.owners.lock().insert(owner);
    }

    pub(super) fn all(&self) -> Vec<u64> {
        self.owners.lock().iter().copied().collect()
    }

    pub(super) fn drain(&self) -> Vec<u64> {
        self.owners.lock().drain().collect()
    }
}
