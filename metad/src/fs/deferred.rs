//! What sessions did under delegations and tell later, and how far their journals have been told.

use super::inode::Inode;
use super::keys::Key;
use super::view::{Kv, KvExt, View};
use super::{Committed, Context, apply_op, dentry, keys};
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{JournalId, Version};
use wire::limits::JOURNALED_FILES_MAX;
use wire::op::{Expect, JournalPosition, JournaledFile, Op, OpReply};

/// How far the time of a deferred operation may be ahead of the leader's: what sessions estimate wrongly.
const AHEAD_SECS: i64 = 2;
/// Journals whose position is remembered: one for each place from which somebody mounted and did not unmount. With more,
/// some are forgotten, in the order of their random numbers.
const JOURNALS_MAX: u64 = 65_536;
/// Counter of the journals whose position is remembered.
const JOURNALS: &str = "journals";

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
    let latest = Timestamp { secs: context.now.secs.saturating_add(AHEAD_SECS), ..context.now };
    apply_op(view, &Context { now: at.min(latest), ..*context }, op, &Committed::new())
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
pub(super) fn journaled(view: &mut View, journal: JournalId, position: Option<JournalPosition>, before: &Committed) {
    let key = keys::journal(journal);
    let Some(mut position) = position else { return forget(view, key) };
    // More than a client streams at once. Of those that are forgotten, what is sent again stands beside what was sent.
    position.files.truncate(JOURNALED_FILES_MAX);
    position.files.iter_mut().for_each(|file| settle(file, before));
    store(view, key, &position);
}

fn forget(view: &mut View, key: Key) {
    if view.get(&key).is_some() {
        let counter = keys::setting(JOURNALS);
        let count: u64 = view.load(&counter).unwrap_or(0);
        view.store(counter, &count.saturating_sub(1));
        view.delete(key);
    }
}

/// `Op::JournaledContent`.
pub(super) fn journaled_content(view: &mut View, journal: JournalId, mut file: JournaledFile, before: &Committed) {
    let key = keys::journal(journal);
    let mut position: JournalPosition = view.load(&key).unwrap_or_default();
    settle(&mut file, before);
    position.files.retain(|known| known.ino != file.ino);
    position.files.push(file);
    if position.files.len() > JOURNALED_FILES_MAX {
        position.files.remove(0);
    }
    store(view, key, &position);
}

/// Finds out what the rest of a file's content is based on.
fn settle(file: &mut JournaledFile, before: &Committed) {
    // I6: only then has the session seen all that is in the file. What went into a conflict copy has left the file as others
    // have made it.
    let next = Version(file.base.0.saturating_add(1));
    if file.committed && before.contains(&(file.ino, next)) {
        file.base = next;
    }
    file.committed = false;
}

fn store(view: &mut View, key: Key, position: &JournalPosition) {
    if view.get(&key).is_none() {
        // Counted, not looked through: a batch may begin thousands of them.
        let counter = keys::setting(JOURNALS);
        let count: u64 = view.load(&counter).unwrap_or(0);
        if count < JOURNALS_MAX {
            view.store(counter, &(count + 1));
        } else if let Some((first, _)) = view.pairs(keys::journals(), 1).pop() {
            view.delete(first);
        }
    }
    view.store(key, position);
}

/// How far a journal has been told.
pub(super) fn position(kv: &dyn Kv, journal: JournalId) -> Option<JournalPosition> {
    kv.load(&keys::journal(journal))
}
