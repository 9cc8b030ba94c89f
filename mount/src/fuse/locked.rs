//! Locks that were taken through this mount.

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
    /// Notes a lock before it is taken.
    pub(super) fn note(&self, ino: Ino, owner: u64, family: LockFamily) {
        self.held.lock().insert((ino, owner, family));
    }

    /// Forgets all locks of a kind before they are given up. Reports whether there may be any.
    pub(super) fn forget(&self, ino: Ino, owner: u64, family: LockFamily) -> bool {
        self.held.lock().remove(&(ino, owner, family))
    }

    /// Reports whether an owner may hold locks of a kind.
    pub(super) fn has(&self, ino: Ino, owner: u64, family: LockFamily) -> bool {
        self.held.lock().contains(&(ino, owner, family))
    }

    /// Reports whether a process may hold locks of `fcntl(2)` on a file.
    pub(super) fn holds(&self, ino: Ino, owner: u64) -> bool {
        self.has(ino, owner, LockFamily::Posix)
    }
}

/// Owners that locked through a handle and have not closed it since.
#[derive(Default)]
pub(super) struct LockOwners {
    owners: Mutex<HashSet<u64>>,
}

impl LockOwners {
    /// Forgets a process that closed a descriptor: it holds nothing any more, and its later locks are not this
    /// handle's.
    pub(super) fn closed_by(&self, owner: u64) {
        self.owners.lock().remove(&owner);
    }

    /// Notes an owner that locks through the handle.
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
