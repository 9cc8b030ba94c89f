//! What sessions did under delegations and tell later, and how far their journals have been told.

use super::inode::Inode;
use super::keys::Key;
use super::view::{Kv, KvExt, View};
use super::{Context, apply_op, dentry, keys};
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::JournalId;
use wire::op::{Expect, JournalPosition, JournaledFile, Op, OpReply};

/// How far the time of a deferred operation may be ahead of the leader's: what sessions estimate wrongly.
const AHEAD_SECS: i64 = 2;
/// Journals whose position is remembered: one for each place from which somebody mounted and did not unmount. With more,
/// some are forgotten, in the order of their random numbers.
const JOURNALS_MAX: usize = 65_536;

/// Files of a position that are remembered because content of them was committed past the journal: more than a client
/// streams at once. Of those that are forgotten, what is told again stands beside what was told.
const FILES_MAX: usize = 256;

/// `Op::Deferred`.
pub(super) fn apply(
    view: &mut View,
    context: &Context,
    at: Timestamp,
    expect: &[Expect],
    op: &Op,
) -> Result<OpReply, FsError> {
    if matches!(op, Op::Deferred { .. } | Op::Journaled { .. } | Op::JournaledContent { .. }) {
        return Err(FsError::Invalid);
    }
    if !expect.iter().all(|expect| is_as_expected(view, expect)) {
        return Err(FsError::Stale);
    }
    let latest = Timestamp { secs: context.now.secs + AHEAD_SECS, ..context.now };
    apply_op(view, &Context { now: at.min(latest), session: context.session }, op, &[])
}

fn is_as_expected(view: &View, expect: &Expect) -> bool {
    let found = dentry::find(view, expect.parent, &expect.name).map(|(ino, _)| ino);
    // I6: content that the session has never seen.
    let is_newer = |version| {
        let inode = found.and_then(|ino| view.load::<Inode>(&keys::inode(ino)));
        inode.is_some_and(|inode| inode.attr.version > version)
    };
    found == expect.ino && !expect.version.is_some_and(is_newer)
}

/// `Op::Journaled`.
pub(super) fn journaled(view: &mut View, journal: JournalId, position: Option<JournalPosition>, before: &[OpReply]) {
    let key = keys::journal(journal);
    let Some(mut position) = position else { return view.delete(key) };
    position.files.iter_mut().for_each(|file| settle(file, before));
    store(view, key, &position);
}

/// `Op::JournaledContent`.
pub(super) fn journaled_content(view: &mut View, journal: JournalId, mut file: JournaledFile, before: &[OpReply]) {
    let key = keys::journal(journal);
    let mut position: JournalPosition = view.load(&key).unwrap_or_default();
    settle(&mut file, before);
    position.files.retain(|known| known.ino != file.ino);
    position.files.push(file);
    if position.files.len() > FILES_MAX {
        position.files.remove(0);
    }
    store(view, key, &position);
}

/// Finds out what the rest of a file's content is based on.
fn settle(file: &mut JournaledFile, before: &[OpReply]) {
    let next = file.base.next();
    // I6: only then has the session seen all that is in the file. What went into a conflict copy has left the file as others
    // have made it.
    let only_ours = |reply: &OpReply| match reply {
        OpReply::Committed { attr, conflict: None, .. } => attr.ino == file.ino && attr.version == next,
        _ => false,
    };
    if file.committed && before.iter().any(only_ours) {
        file.base = next;
    }
    file.committed = false;
}

fn store(view: &mut View, key: Key, position: &JournalPosition) {
    if view.get(&key).is_none() {
        let known = view.pairs(keys::journals(), JOURNALS_MAX);
        if known.len() >= JOURNALS_MAX
            && let Some((first, _)) = known.into_iter().next()
        {
            view.delete(first);
        }
    }
    view.store(key, position);
}

/// How far a journal has been told.
pub(super) fn position(kv: &dyn Kv, journal: JournalId) -> Option<JournalPosition> {
    kv.load(&keys::journal(journal))
}
