//! What sessions did under delegations and tell later, and how far their journals have been told.

use super::inode::Inode;
use super::view::{Kv, KvExt, View};
use super::{Context, apply_op, dentry, keys};
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::JournalId;
use wire::op::{Expect, JournalPosition, Op, OpReply};

/// How far the time of a deferred operation may be ahead of the leader's: what sessions estimate wrongly.
const AHEAD_SECS: i64 = 2;
/// Journals whose position is remembered: one for each place from which somebody mounted and did not unmount. With more,
/// some are forgotten, in the order of their random numbers.
const JOURNALS_MAX: usize = 65_536;

/// `Op::Deferred`.
pub(super) fn apply(
    view: &mut View,
    context: &Context,
    at: Timestamp,
    expect: &[Expect],
    op: &Op,
) -> Result<OpReply, FsError> {
    if matches!(op, Op::Deferred { .. } | Op::Journaled { .. }) {
        return Err(FsError::Invalid);
    }
    let as_expected =
        |expect: &Expect| dentry::find(view, expect.parent, &expect.name).map(|(ino, _)| ino) == expect.ino;
    if !expect.iter().all(as_expected) {
        return Err(FsError::Stale);
    }
    let latest = Timestamp { secs: context.now.secs + AHEAD_SECS, ..context.now };
    apply_op(view, &Context { now: at.min(latest), session: context.session }, op)
}

/// `Op::Journaled`.
pub(super) fn journaled(view: &mut View, journal: JournalId, position: Option<JournalPosition>) {
    let key = keys::journal(journal);
    let Some(mut position) = position else { return view.delete(key) };
    for file in &mut position.files {
        let next = file.base.next();
        // I6: only then has the session seen all that is in the file.
        let only_ours = |inode: Inode| inode.attr.version == next;
        if file.committed && view.load::<Inode>(&keys::inode(file.ino)).is_some_and(only_ours) {
            file.base = next;
        }
        file.committed = false;
    }
    if view.get(&key).is_none() {
        let known = view.pairs(keys::journals(), JOURNALS_MAX);
        if known.len() >= JOURNALS_MAX
            && let Some((first, _)) = known.into_iter().next()
        {
            view.delete(first);
        }
    }
    view.store(key, &position);
}

/// How far a journal has been told.
pub(super) fn position(kv: &dyn Kv, journal: JournalId) -> Option<JournalPosition> {
    kv.load(&keys::journal(journal))
}
