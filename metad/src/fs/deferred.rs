//! What sessions did under delegations and send later, and up to where their journals have been sent.

use super::inode::Inode;
use super::session::Opening;
use super::view::{Kv, KvExt, View};
use super::{Committed, Context, apply_op, dentry, journal_keys, keys, session};
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{JournalId, Version};
use wire::limits::JOURNALED_FILES_MAX;
use wire::op::{Expect, JournalPosition, JournaledFile, Op, OpReply};

/// Seconds by which the time of a deferred operation may be ahead of the leader's, for sessions that estimate it
/// wrongly.
const AHEAD_SECS: i64 = 2;
/// Journals of one certificate whose position is remembered: one for each place from which somebody mounted and did not
/// unmount. With more, some of this certificate's are forgotten, in the order of their random numbers.
const JOURNALS_MAX: u64 = 1024;

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
    apply_op(view, &Context { now: at.min(latest), ..context.clone() }, op, &Committed::new())
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
pub(super) fn journaled(
    view: &mut View,
    context: &Context,
    journal: JournalId,
    position: Option<JournalPosition>,
    before: &Committed,
) {
    let Some(mut position) = position else { return forget(view, context, journal) };
    // This is more than a client streams at once. Content of a forgotten file becomes a conflict copy if it is sent
    // again.
    position.files.truncate(JOURNALED_FILES_MAX);
    position.files.iter_mut().for_each(|file| settle(file, before));
    store(view, context, journal, &position);
}

fn forget(view: &mut View, context: &Context, journal: JournalId) {
    let Some(session) = session::find(view, context.session) else { return };
    let client = &*session.opening.owner_of_journals();
    let owned = journal_keys::journal_of(client, journal);
    if view.get(&owned).is_some() {
        let count: u64 = view.load(&journal_keys::journals_count(client)).unwrap_or(0);
        view.store(journal_keys::journals_count(client), &count.saturating_sub(1));
        view.delete(owned);
        view.delete(journal_keys::journal(journal));
    }
}

/// `Op::JournaledContent`.
pub(super) fn journaled_content(
    view: &mut View,
    context: &Context,
    journal: JournalId,
    mut file: JournaledFile,
    before: &Committed,
) {
    let mut position: JournalPosition = view.load(&journal_keys::journal(journal)).unwrap_or_default();
    settle(&mut file, before);
    position.files.retain(|known| known.ino != file.ino);
    position.files.push(file);
    if position.files.len() > JOURNALED_FILES_MAX {
        position.files.remove(0);
    }
    store(view, context, journal, &position);
}

/// Updates the version that the rest of a file's content is based on.
fn settle(file: &mut JournaledFile, before: &Committed) {
    // I6: only then has the session seen all that is in the file. If the content went into a conflict copy, the file is
    // as others have made it.
    let next = Version(file.base.0.saturating_add(1));
    if file.committed && before.contains(&(file.ino, next)) {
        file.base = next;
    }
    file.committed = false;
}

fn store(view: &mut View, context: &Context, journal: JournalId, position: &JournalPosition) {
    let Some(session) = session::find(view, context.session) else { return };
    let client = &*session.opening.owner_of_journals();
    let owned = journal_keys::journal_of(client, journal);
    if view.get(&owned).is_none() {
        // Counted, not listed: a batch may begin thousands of them.
        let count: u64 = view.load(&journal_keys::journals_count(client)).unwrap_or(0);
        if count < JOURNALS_MAX {
            view.store(journal_keys::journals_count(client), &(count + 1));
        } else if let Some((first, _)) = view.pairs(journal_keys::journals_of(client), 1).pop() {
            view.delete(journal_keys::journal(JournalId(keys::second(&first))));
            view.delete(first);
        }
        view.put(owned, Vec::new());
    }
    view.store(journal_keys::journal(journal), position);
}

/// Returns whether a journal may be one of this client: it is known as such, or nobody knows it.
pub(super) fn may_use(kv: &dyn Kv, opening: &Opening, journal: JournalId) -> bool {
    kv.get(&journal_keys::journal_of(&opening.owner_of_journals(), journal)).is_some()
        || kv.get(&journal_keys::journal(journal)).is_none()
}

/// Returns up to where a journal has been sent.
pub(super) fn position(kv: &dyn Kv, journal: JournalId) -> Option<JournalPosition> {
    kv.load(&journal_keys::journal(journal))
}
