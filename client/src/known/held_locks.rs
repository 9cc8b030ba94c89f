//! The locks that the session holds, and those that were lost with an expired session. Others may have taken those
//! since, so a program that still relies on one must get an error.

use crate::ordered::{Ordered, Rank};
use rangemap::RangeSet;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use wire::ids::Ino;
use wire::op::{Lock, LockFamily};

/// Inode, kind, and the kernel's number of the lock's owner.
type Owner = (Ino, LockFamily, u64);

/// The locks of a client, in whatever session.
pub struct HeldLocks {
    table: Ordered<LockTable>,
    /// Whether any are lost. If not, nobody has to look further.
    any_lost: AtomicBool,
}

#[derive(Default)]
struct LockTable {
    /// Sessions that have expired.
    generation: u64,
    held: HashMap<Owner, RangeSet<u64>>,
    lost: HashMap<Owner, RangeSet<u64>>,
}

impl Default for HeldLocks {
    fn default() -> Self {
        Self { table: Ordered::new(Rank::Leaf, LockTable::default()), any_lost: AtomicBool::new(false) }
    }
}

fn take_out(locks: &mut HashMap<Owner, RangeSet<u64>>, owner: Owner, range: Range<u64>) {
    if let Some(ranges) = locks.get_mut(&owner) {
        ranges.remove(range);
        if ranges.is_empty() {
            locks.remove(&owner);
        }
    }
}

impl HeldLocks {
    /// Returns the generation, to be taken before a lock is asked for.
    pub(crate) fn generation(&self) -> u64 {
        self.table.lock().generation
    }

    /// Notes that a lock was taken that was asked for in this generation. False when its session has ended since, and
    /// the lock with it. Parts of it that were lost before are held again.
    pub(crate) fn taken(&self, generation: u64, ino: Ino, lock: &Lock) -> bool {
        let mut table = self.table.lock();
        if table.generation != generation {
            return false;
        }
        let owner = (ino, lock.family, lock.owner);
        table.held.entry(owner).or_default().insert(lock.start..lock.end);
        self.forget_lost(&mut table, owner, lock.start..lock.end);
        true
    }

    /// Returns whether the owner of a lock holds one of its kind on the file already.
    pub(crate) fn holds(&self, ino: Ino, lock: &Lock) -> bool {
        self.table.lock().held.contains_key(&(ino, lock.family, lock.owner))
    }

    /// Notes that an owner gives up what it holds in a range, and what it has lost there. To be called before metad is
    /// asked to release it.
    pub(crate) fn given_up(&self, ino: Ino, family: LockFamily, owner: u64, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut table = self.table.lock();
        take_out(&mut table.held, (ino, family, owner), range.clone());
        self.forget_lost(&mut table, (ino, family, owner), range);
    }

    fn forget_lost(&self, table: &mut LockTable, owner: Owner, range: Range<u64>) {
        take_out(&mut table.lost, owner, range);
        self.any_lost.store(!table.lost.is_empty(), Ordering::Release);
    }

    /// Notes that the session has expired, before there is another one. Returns how many files had locks.
    pub(crate) fn lose_all(&self) -> usize {
        let mut table = self.table.lock();
        table.generation += 1;
        let held = std::mem::take(&mut table.held);
        let files: HashSet<Ino> = held.keys().map(|(ino, ..)| *ino).collect();
        for (owner, ranges) in held {
            table.lost.entry(owner).or_default().extend(ranges);
        }
        self.any_lost.store(!table.lost.is_empty(), Ordering::Release);
        files.len()
    }

    /// Returns whether any locks are lost.
    pub(crate) fn has_lost_any(&self) -> bool {
        self.any_lost.load(Ordering::Acquire)
    }

    /// Returns whether an owner has lost locks on a file, and has not given them up since.
    pub(crate) fn has_lost(&self, ino: Ino, owner: u64) -> bool {
        let table = self.table.lock();
        [LockFamily::Posix, LockFamily::Flock].iter().any(|family| table.lost.contains_key(&(ino, *family, owner)))
    }

    /// Returns the files on which locks are lost.
    pub(crate) fn lost_on(&self) -> BTreeSet<Ino> {
        self.table.lock().lost.keys().map(|(ino, ..)| *ino).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(7);
    const OWNER: u64 = 3;

    fn lock(range: Range<u64>) -> Lock {
        Lock { family: LockFamily::Posix, owner: OWNER, pid: 1, start: range.start, end: range.end, exclusive: true }
    }

    #[test]
    fn a_lock_held_when_the_session_ends_is_lost_until_it_is_given_up_or_taken_anew() {
        let locks = HeldLocks::default();
        assert!(locks.taken(locks.generation(), FILE, &lock(0..100)));
        locks.given_up(FILE, LockFamily::Posix, OWNER, 40..60);
        assert_eq!(locks.lose_all(), 1);
        assert!(locks.has_lost(FILE, OWNER) && !locks.has_lost(FILE, OWNER + 1) && !locks.has_lost(Ino(8), OWNER));
        assert!(locks.taken(locks.generation(), FILE, &lock(0..40)));
        assert!(locks.has_lost(FILE, OWNER), "the other part is not taken anew");
        locks.given_up(FILE, LockFamily::Posix, OWNER, 0..u64::MAX);
        assert!(!locks.has_lost_any());
        assert_eq!(locks.lose_all(), 0);
    }

    #[test]
    fn a_lock_given_up_before_the_session_ended_is_not_lost() {
        let locks = HeldLocks::default();
        assert!(locks.taken(locks.generation(), FILE, &lock(10..20)));
        locks.given_up(FILE, LockFamily::Posix, OWNER, 10..20);
        locks.lose_all();
        assert!(!locks.has_lost_any());
    }

    #[test]
    fn a_lock_that_was_taken_in_a_session_that_has_ended_since_is_not_held() {
        let locks = HeldLocks::default();
        let asked = locks.generation();
        locks.lose_all();
        assert!(!locks.taken(asked, FILE, &lock(0..1)));
        assert!(!locks.has_lost_any());
    }
}
