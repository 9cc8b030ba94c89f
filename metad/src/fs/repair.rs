//! `Command::Repair`: repairs of what a check has found.
//!
//! A check reads a state that is older than the one to repair. So each repair looks again, and does nothing where the
//! state is not as the check found it:
//!
//! - What can be counted nearby is counted again, whatever the check found.
//! - Counts that need a look at everything (links of files, references of blocks) are set only if they are still as the
//!   check found them. Ordinary operations change a count and what it counts by the same amount, so the difference is
//!   still right.
//! - That holds while nothing else has repaired it. Repairs of a check are accepted only while no other check has
//!   repaired anything since its state was taken, and each only once ([`Command::Repair`](super::Command::Repair)).
//!
//! Some of these counts cannot be verified here: that would take a look at everything, for each repair, at each metad. So
//! the leader proposes only repairs that it has found itself (`server/fsck.rs`). What can be verified nearby is verified
//! here, too, whoever proposes it.
//!
//! Nothing here removes content that a name leads to, or could lead to.

mod content;
mod links;

use super::inode::Inode;
use super::session::Session;
use super::view::{Kv, KvExt, View};
use super::{CommandReply, Context, index, journal_keys, keys, lock, orphan, settings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use wire::ids::{Ino, SessionId};
use wire::message::check::{CheckId, Repair, Seen};

/// Setting: which check has made the last repairs.
const REPAIRS: &str = "repairs";
/// Replies forgotten, and extents or entries read, by one repair.
const WORK_MAX: usize = 1 << 20;
/// Replies forgotten at once.
const REPLIES_AT_ONCE: usize = 4096;

/// The last repairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Repairs {
    /// Number of checks that have repaired something.
    pub count: u64,
    /// The last of them.
    check: u64,
    /// Its last request.
    seq: u64,
}

/// Repairs of one check that are made together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repairing {
    /// The check.
    pub check: CheckId,
    /// Number of checks that had repaired something when its state was taken.
    pub base: u64,
    /// Grows with each request of the check.
    pub seq: u64,
    /// What to repair.
    pub repairs: Vec<Repair>,
}

/// Returns which check has made the last repairs.
#[must_use]
pub fn repairs(kv: &dyn Kv) -> Repairs {
    kv.load(&keys::setting(REPAIRS)).unwrap_or_default()
}

/// `Command::Repair`.
pub(super) fn apply(view: &mut View, context: &Context, repairing: &Repairing) -> CommandReply {
    let before = repairs(view);
    let is_same = before.check == repairing.check.0 && before.count > 0;
    let may = if is_same { repairing.seq > before.seq } else { before.count == repairing.base };
    if !may {
        return CommandReply::Stale;
    }
    let count = before.count + u64::from(!is_same);
    view.store(keys::setting(REPAIRS), &Repairs { count, check: repairing.check.0, seq: repairing.seq });
    CommandReply::Repaired(repairing.repairs.iter().map(|repair| mend(view, context, repair)).collect())
}

/// Makes a repair. Returns whether it was made.
fn mend(view: &mut View, context: &Context, repair: &Repair) -> bool {
    match repair {
        Repair::Links { ino, seen, found } => links::count(view, context, *ino, *seen, *found),
        Repair::Directory(ino) => links::count_dir(view, context, *ino),
        Repair::Entry { parent, cookie, name, ino } => links::remove(view, context, (*parent, *cookie, name), *ino),
        Repair::Rewrite { parent, cookie, name, ino } => links::rewrite(view, context, (*parent, *cookie, name), *ino),
        Repair::Parent { ino, parent, name } => links::set_parent(view, context, *ino, (*parent, name)),
        Repair::Attach { ino, seen } => links::attach(view, context, *ino, *seen),
        Repair::Allocated(ino) => content::count(view, context, *ino),
        Repair::Attributes(ino) => content::attributes(view, context, *ino),
        Repair::Content(ino) => content::unmark(view, *ino) || links::attach_content(view, context, *ino),
        Repair::References { hash, seen, found, len } => {
            content::references(view, context, hash, *seen, (*found, *len))
        }
        Repair::Orphan { ino, seen, named } => release_orphan(view, context, *ino, (*seen, *named)),
        Repair::Locks(ino) => unlock(view, *ino),
        Repair::Index(key) => index::set_right(view, key) || count_journals(view, key),
        Repair::InodeCount { seen, found } => settings::recount_inodes(view, *seen, *found),
        Repair::NextIno(least) => raise_next_ino(view, *least),
        Repair::Replies(id) => index::forget_replies(view, *id, REPLIES_AT_ONCE),
    }
}

/// Counts the journals of a client anew.
fn count_journals(view: &mut View, count: &[u8]) -> bool {
    let Some(counted) = journal_keys::journals_counted_in(count) else { return false };
    // Far above the bound of one client; more is not needed to refuse another.
    let found = view.pairs(counted, WORK_MAX).len() as u64;
    let is_wrong = load::<u64>(view, count).unwrap_or(0) != found;
    if is_wrong {
        view.store(count.to_vec(), &found);
    }
    is_wrong
}

/// Returns the value of a key; `None` also when it cannot be decoded, which must not stop a repair.
fn load<T: DeserializeOwned>(view: &View, key: &[u8]) -> Option<T> {
    wire::codec::decode(&view.get(key)?).ok()
}

fn load_inode(view: &View, ino: Ino) -> Option<Inode> {
    load(view, &keys::inode(ino))
}

/// Returns an inode if its links are still as they were seen.
fn load_as(view: &View, ino: Ino, seen: Seen) -> Option<Inode> {
    load_inode(view, ino).filter(|inode| (inode.attr.nlink, inode.attr.ctime) == (seen.nlink, seen.ctime))
}

/// Returns whether a session lives. The index is not used: it may be what is wrong. A session whose record is damaged
/// may live.
fn lives(view: &View, id: SessionId) -> bool {
    let key = keys::session(id);
    view.get(&key).is_some() && load::<Session>(view, &key).is_none_or(|session| !session.has_ended())
}

/// `Repair::NextIno`: numbers are used up only by inodes and sessions that are there.
fn raise_next_ino(view: &mut View, least: Ino) -> bool {
    let greatest = view.last(keys::inodes()).filter(|(key, _)| key.len() == 9).map(|(key, _)| Ino(keys::first(&key)));
    let mut beyond = greatest.map_or(Ino::FIRST_FREE, |ino| Ino(ino.0.saturating_add(1)));
    view.scan(keys::sessions(), &mut |_, value| {
        let leased = wire::codec::decode::<Session>(value).map(|session| session.inos).unwrap_or_default();
        beyond = leased.into_iter().map(|(_, end)| end).fold(beyond, Ino::max);
        true
    });
    least <= beyond && settings::raise_next_ino(view, least)
}

/// `Repair::Locks`.
fn unlock(view: &mut View, ino: Ino) -> bool {
    let Some(holders) = view.get(&keys::locks(ino)).and_then(|value| lock::decode_holders(&value)) else {
        return false;
    };
    let is_there = view.get(&keys::inode(ino)).is_some();
    let living = holders.into_iter().filter(|id| is_there && lives(view, *id)).collect();
    lock::retain(view, ino, &living)
}

/// `Repair::Orphan`.
fn release_orphan(view: &mut View, context: &Context, ino: Ino, (seen, named): (Option<Seen>, bool)) -> bool {
    let is_marked = view.get(&keys::orphan(ino)).is_some();
    let Some(holders) = orphan::holders(view, ino).filter(|_| is_marked) else { return false };
    let unlinked = match seen {
        None if view.get(&keys::inode(ino)).is_none() => None,
        None => return false,
        Some(seen) => match load_as(view, ino, seen) {
            Some(_) if named => None,
            // Nothing is removed that a name leads to, whatever the check has found.
            Some(inode) if inode.attr.nlink == 0 && !links::has_own_entry(view, &inode) => Some(inode),
            _ => return false,
        },
    };
    let lives = |id: &SessionId| lives(view, *id);
    let (living, ended): (Vec<_>, Vec<_>) = holders.into_iter().partition(|id| unlinked.is_some() && lives(id));
    let may_remove = content::is_counted(view, ino) && settings::inode_count(view) > 0;
    if (ended.is_empty() && !living.is_empty()) || (unlinked.is_some() && living.is_empty() && !may_remove) {
        return false;
    }
    for id in &ended {
        view.delete(keys::session_orphan(*id, ino));
    }
    if !living.is_empty() {
        view.store(keys::orphan(ino), &living.into_iter().collect::<BTreeSet<_>>());
        return true;
    }
    view.delete(keys::orphan(ino));
    if unlinked.is_some() {
        orphan::remove(view, context, ino);
    }
    true
}

/// Returns inodes whose attributes or names a repair may change. What sessions have cached of them is recalled first.
#[must_use]
pub fn touched(kv: &dyn Kv, repair: &Repair) -> Vec<Ino> {
    match repair {
        Repair::Links { ino, .. } | Repair::Directory(ino) | Repair::Allocated(ino) | Repair::Attributes(ino) => {
            vec![*ino]
        }
        Repair::Entry { parent, ino, .. }
        | Repair::Rewrite { parent, ino, .. }
        | Repair::Parent { ino, parent, .. } => {
            vec![*parent, *ino]
        }
        Repair::Attach { ino, .. } => {
            let parent = kv.load::<Inode>(&keys::inode(*ino)).map(|inode| inode.parent);
            let found = super::dentry::find(kv, Ino::ROOT, links::LOST_AND_FOUND).map(|(ino, _)| ino);
            [*ino, Ino::ROOT].into_iter().chain(parent).chain(found).collect()
        }
        Repair::Orphan { ino, .. } => vec![*ino],
        _ => Vec::new(),
    }
}
