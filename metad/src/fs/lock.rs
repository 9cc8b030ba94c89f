//! Advisory locks: `fcntl(2)` byte ranges and `flock(2)`, across all sessions.

use super::Context;
use super::inode::Inode;
use super::keys;
use super::session;
use super::subtree::{self, Scope};
use super::view::{Kv, KvExt, STEP_CHANGES, View};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ops::Range;
use wire::FsError;
use wire::ids::{Ino, SessionId};
use wire::op::{Lock, LockFamily, OpReply};

/// Locks that one inode may carry: all of them are in one stored value.
const LOCKS_MAX: usize = 8192;

/// A lock with the session that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HeldLock {
    session: SessionId,
    lock: Lock,
}

impl HeldLock {
    fn belongs_to(&self, session: SessionId, family: LockFamily, owner: u64) -> bool {
        self.session == session && self.lock.family == family && self.lock.owner == owner
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.lock.start < range.end && range.start < self.lock.end
    }

    fn conflicts(&self, session: SessionId, wanted: &Lock) -> bool {
        self.lock.family == wanted.family
            && !self.belongs_to(session, wanted.family, wanted.owner)
            && self.overlaps(&(wanted.start..wanted.end))
            && (self.lock.exclusive || wanted.exclusive)
    }
}

fn load(kv: &dyn Kv, ino: Ino) -> Vec<HeldLock> {
    kv.load(&keys::locks(ino)).unwrap_or_default()
}

fn save_all(view: &mut View, ino: Ino, held: &[HeldLock]) {
    if held.is_empty() {
        view.delete(keys::locks(ino));
    } else {
        view.store(keys::locks(ino), &held);
    }
}

fn save(view: &mut View, ino: Ino, session: SessionId, held: &[HeldLock]) {
    save_all(view, ino, held);
    if held.iter().any(|held| held.session == session) {
        view.put(keys::session_lock(session, ino), Vec::new());
    } else {
        view.delete(keys::session_lock(session, ino));
    }
}

/// Cuts a range out of what an owner holds. What lies outside of it stays.
fn carve(held: Vec<HeldLock>, session: SessionId, family: LockFamily, owner: u64, range: &Range<u64>) -> Vec<HeldLock> {
    let mut rest = Vec::with_capacity(held.len() + 1);
    for one in held {
        if !one.belongs_to(session, family, owner) || !one.overlaps(range) {
            rest.push(one);
            continue;
        }
        for (start, end) in [(one.lock.start, range.start), (range.end, one.lock.end)] {
            if start < end {
                rest.push(HeldLock { session, lock: Lock { start, end, ..one.lock.clone() } });
            }
        }
    }
    rest
}

/// Joins byte ranges of one owner that touch and are of one kind, so that the records of a file, locked one by one,
/// stay one lock, and `F_GETLK` shows what Linux would. Returns the ranges ordered by start.
fn joined(mut held: Vec<HeldLock>) -> Vec<HeldLock> {
    // Ranges of one owner and kind are sorted next to each other: each is compared only with the one before it.
    held.sort_by_key(|one| (one.lock.family, one.session, one.lock.owner, one.lock.exclusive, one.lock.start));
    let mut ranges: Vec<HeldLock> = Vec::with_capacity(held.len());
    for one in held {
        match ranges.last_mut() {
            Some(before)
                if before.lock.end == one.lock.start
                    && before.lock.exclusive == one.lock.exclusive
                    && before.belongs_to(one.session, one.lock.family, one.lock.owner) =>
            {
                before.lock.end = one.lock.end;
            }
            _ => ranges.push(one),
        }
    }
    ranges.sort_by_key(|one| (one.lock.family, one.lock.start, one.session, one.lock.owner));
    ranges
}

/// Returns those of some sessions whose locks on an inode stand in nobody's way: sessions that have ended, whose locks are
/// removed in steps, and those of confined clients who do not see the inode any more.
fn without_say(kv: &dyn Kv, inode: &Inode, holders: impl Iterator<Item = SessionId>) -> BTreeSet<SessionId> {
    let roots = OnceCell::new();
    let holders: BTreeSet<SessionId> = holders.collect();
    let has_lost = |id: &SessionId| {
        let Some(session) = session::find(kv, *id) else { return true };
        session.opening.confined.is_some_and(|confined| {
            let scope = Scope { root: confined.root, session: *id };
            !scope.is_among(kv, inode, roots.get_or_init(|| subtree::roots_of(kv, inode)))
        })
    };
    holders.into_iter().filter(has_lost).collect()
}

/// `Op::SetLock`.
pub(super) fn set(view: &mut View, context: &Context, ino: Ino, lock: &Lock) -> Result<OpReply, FsError> {
    let inode = Inode::load(view, ino)?;
    if lock.start >= lock.end {
        return Err(FsError::Invalid);
    }
    let mut held = load(view, ino);
    let in_the_way = held.iter().filter(|held| held.conflicts(context.session, lock));
    let lost = without_say(view, &inode, in_the_way.map(|held| held.session));
    if !lost.is_empty() {
        held.retain(|held| !lost.contains(&held.session));
        save_all(view, ino, &held);
        lost.iter().for_each(|session| view.delete(keys::session_lock(*session, ino)));
    }
    if held.iter().any(|held| held.conflicts(context.session, lock)) {
        return Err(FsError::WouldBlock);
    }
    let mut held = carve(held, context.session, lock.family, lock.owner, &(lock.start..lock.end));
    if held.len() >= LOCKS_MAX {
        return Err(FsError::NoSpace);
    }
    held.push(HeldLock { session: context.session, lock: lock.clone() });
    save(view, ino, context.session, &joined(held));
    Ok(OpReply::Done)
}

/// `Op::Unlock`.
pub(super) fn unlock(
    view: &mut View,
    context: &Context,
    ino: Ino,
    family: LockFamily,
    owner: u64,
    range: Range<u64>,
) -> Result<OpReply, FsError> {
    if range.is_empty() {
        return Err(FsError::Invalid);
    }
    // Otherwise the work would tell a confined client which files elsewhere have locks.
    if holds(view, context.session, ino) {
        let held = carve(load(view, ino), context.session, family, owner, &range);
        // A range cut out of the middle of a lock leaves two locks.
        if held.len() > LOCKS_MAX {
            return Err(FsError::NoSpace);
        }
        save(view, ino, context.session, &held);
    }
    Ok(OpReply::Done)
}

/// Returns the first lock, by start, that conflicts with a wanted one.
pub(super) fn conflicting(kv: &dyn Kv, session: SessionId, ino: Ino, wanted: &Lock) -> Option<Lock> {
    let mut held = load(kv, ino);
    held.retain(|held| held.conflicts(session, wanted));
    if !held.is_empty()
        && let Some(inode) = kv.load::<Inode>(&keys::inode(ino))
    {
        let lost = without_say(kv, &inode, held.iter().map(|held| held.session));
        held.retain(|held| !lost.contains(&held.session));
    }
    held.into_iter().map(|held| held.lock).min_by_key(|lock| lock.start)
}

/// Returns whether a session holds locks on an inode.
pub fn holds(kv: &dyn Kv, session: SessionId, ino: Ino) -> bool {
    kv.get(&keys::session_lock(session, ino)).is_some()
}

/// Returns the sessions that hold locks according to a stored value; `None` when it cannot be decoded.
pub(super) fn decode_holders(value: &[u8]) -> Option<BTreeSet<SessionId>> {
    let held: Vec<HeldLock> = wire::codec::decode(value).ok()?;
    Some(held.iter().map(|held| held.session).collect())
}

/// Releases the locks of all sessions but these. Returns false when there are none.
pub(super) fn retain(view: &mut View, ino: Ino, living: &BTreeSet<SessionId>) -> bool {
    let mut held = load(view, ino);
    let ended: BTreeSet<SessionId> = held.iter().map(|held| held.session).filter(|id| !living.contains(id)).collect();
    held.retain(|held| living.contains(&held.session));
    ended.iter().for_each(|session| save(view, ino, *session, &held));
    !ended.is_empty()
}

/// Removes locks of a session that has ended, as many as fit in the step. Returns whether none is left.
pub(super) fn release_session(view: &mut View, context: &Context) -> bool {
    loop {
        let locked = view.first_keys(keys::session_locks(context.session), STEP_CHANGES, usize::MAX);
        if locked.is_empty() {
            return true;
        }
        for key in &locked {
            if view.is_step_full() {
                return false;
            }
            let ino = Ino(keys::second(key));
            let mut held = load(view, ino);
            held.retain(|held| held.session != context.session);
            save(view, ino, context.session, &held);
        }
    }
}

/// Releases the locks on an inode that is gone.
pub(super) fn forget_inode(view: &mut View, ino: Ino) {
    for held in load(view, ino) {
        view.delete(keys::session_lock(held.session, ino));
    }
    view.delete(keys::locks(ino));
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::*;
    use wire::attr::Timestamp;

    #[test]
    fn locks_do_not_become_more_than_an_inode_may_carry_by_being_cut_in_two() {
        const FILE: Ino = Ino(7);
        let (state, session) = (MemoryKv::default(), SessionId(1));
        let mut view = View::new(&state);
        let context =
            Context { now: Timestamp::default(), entry: Timestamp::default(), session, root: Ino::ROOT, copy_to: None };
        let posix = |start, end| Lock { family: LockFamily::Posix, owner: 1, pid: 1, start, end, exclusive: true };
        let most: Vec<HeldLock> =
            (0..LOCKS_MAX as u64).map(|n| HeldLock { session, lock: posix(n * 10, n * 10 + 5) }).collect();
        save(&mut view, FILE, session, &most);
        let mut unlock = |range| unlock(&mut view, &context, FILE, LockFamily::Posix, 1, range);
        assert_eq!(unlock(2..3), Err(FsError::NoSpace));
        assert_eq!(unlock(4..9), Ok(OpReply::Done));
        assert_eq!(unlock(10..15), Ok(OpReply::Done));
        assert_eq!(unlock(2..3), Ok(OpReply::Done));
        assert_eq!(unlock(0..u64::MAX), Ok(OpReply::Done));
        assert!(load(&view, FILE).is_empty());
    }

    #[test]
    fn a_lock_among_as_many_as_an_inode_carries_takes_a_moment() {
        const FILE: Ino = Ino(7);
        let (state, session) = (MemoryKv::default(), SessionId(1));
        let mut view = View::new(&state);
        let (context, reader) = (
            Context { now: Timestamp::default(), entry: Timestamp::default(), session, root: Ino::ROOT, copy_to: None },
            1,
        );
        let lock = |n: u64| {
            let (family, owner) = (LockFamily::Posix, n % 5);
            Lock { family, owner, pid: reader, start: n * 10, end: n * 10 + 5, exclusive: false }
        };
        let held: Vec<HeldLock> = (0..LOCKS_MAX as u64 - 1).map(|n| HeldLock { session, lock: lock(n) }).collect();
        let started = std::time::Instant::now();
        for _ in 0..64 {
            assert_eq!(joined(held.clone()).len(), held.len());
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
        assert_eq!(joined(held.clone()), held, "in the order in which they begin");
        view.store(keys::inode(FILE), &file(FILE));
        save(&mut view, FILE, session, &held);
        assert_eq!(set(&mut view, &context, FILE, &lock(9_000)), Ok(OpReply::Done));
        assert_eq!(set(&mut view, &context, FILE, &lock(9_001)), Err(FsError::NoSpace));
    }

    fn file(ino: Ino) -> Inode {
        let attr = wire::attr::InodeAttr {
            ino,
            kind: wire::attr::FileKind::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            version: wire::ids::Version(1),
            has_xattrs: false,
        };
        Inode::new(attr, Ino::ROOT, b"f".to_vec())
    }
}
