//! Inodes without an entry that some session may still hold open, and the removal of content.
//!
//! When the last entry of an inode goes, it is not known for sure which sessions have it open: opening costs no log
//! entry. So each living session is asked once, in the answer to its keep-alive. The inode goes when the last of them
//! has answered that it holds no handle, or has ended.

use super::Context;
use super::extent;
use super::inode::Inode;
use super::keys;
use super::session;
use super::settings::inodes_changed;
use super::subtree;
use super::view::{Kv, KvExt, STEP_CHANGES, View};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use wire::ids::{Ino, SessionId};

/// Extents removed together with their inode. One batch may remove thousands of inodes.
const REMOVED_EXTENTS: usize = 64;
/// Extents removed by one `Command::Reap`: the removal of a huge file must not stop the cluster.
const REAP_EXTENTS: usize = 512;

/// Records that an inode has lost its last entry. Returns whether it stays for the asking session, which may hold
/// handles unless `released` names the inode.
pub(super) fn unlinked(view: &mut View, context: &Context, inode: &Inode, released: Option<Ino>) -> bool {
    let ino = inode.attr.ino;
    let living = session::living_with_roots(view).into_iter();
    // A confined session is not told about what lies elsewhere. Whoever removes it has seen it.
    let above = OnceCell::new();
    let may_hold = |(id, root): &(SessionId, Option<Ino>)| match root {
        Some(root) if *root != Ino::ROOT && *id != context.session => {
            above.get_or_init(|| subtree::above(view, inode.parent)).contains(root)
        }
        _ => true,
    };
    let mut holders: BTreeSet<SessionId> = living.filter(may_hold).map(|(id, _)| id).collect();
    if released == Some(ino) {
        holders.remove(&context.session);
    }
    if holders.is_empty() {
        remove(view, context, ino);
        return false;
    }
    for holder in &holders {
        view.put(keys::session_orphan(*holder, ino), Vec::new());
    }
    view.store(keys::orphan(ino), &holders);
    holders.contains(&context.session)
}

/// `Op::ReleaseOrphans`, for one inode.
pub(super) fn release(view: &mut View, context: &Context, ino: Ino) {
    let held = keys::session_orphan(context.session, ino);
    // Otherwise the work would tell a confined client which files elsewhere are open and have no name.
    if view.get(&held).is_none() {
        return;
    }
    view.delete(held);
    let Some(mut holders) = view.load::<BTreeSet<SessionId>>(&keys::orphan(ino)) else { return };
    if !holders.remove(&context.session) {
        return;
    }
    if holders.is_empty() {
        view.delete(keys::orphan(ino));
        remove(view, context, ino);
    } else {
        view.store(keys::orphan(ino), &holders);
    }
}

/// Releases inodes that a session held open which has ended, as many as fit in the step. Returns whether none is left.
pub(super) fn release_session(view: &mut View, context: &Context) -> bool {
    loop {
        let held = of_session(view, context.session, Ino(0), STEP_CHANGES);
        if held.is_empty() {
            return true;
        }
        for ino in held {
            if view.is_step_full() {
                return false;
            }
            release(view, context, ino);
        }
    }
}

/// Returns unlinked inodes on which a session may still hold handles, each once and at most `limit`: those from `first`
/// on, then those before it.
pub fn of_session(kv: &dyn Kv, id: SessionId, first: Ino, limit: usize) -> Vec<Ino> {
    let (all, middle) = (keys::session_orphans(id), keys::session_orphan(id, first));
    let mut found = kv.pairs(middle.clone()..all.end, limit);
    found.extend(kv.pairs(all.start..middle, limit - found.len()));
    found.iter().map(|(key, _)| Ino(keys::second(key))).collect()
}

/// Returns the sessions that may still hold handles on an unlinked inode; `None` when the stored value cannot be
/// decoded.
pub(super) fn holders(kv: &dyn Kv, ino: Ino) -> Option<BTreeSet<SessionId>> {
    kv.get(&keys::orphan(ino)).map_or_else(|| Some(BTreeSet::new()), |value| wire::codec::decode(&value).ok())
}

/// Returns whether an inode has lost its last entry, and this session holds no handle on it.
pub(super) fn is_gone_for(kv: &dyn Kv, id: SessionId, ino: Ino) -> bool {
    kv.load::<BTreeSet<SessionId>>(&keys::orphan(ino)).is_some_and(|holders| !holders.contains(&id))
}

/// Removes an inode with all that belongs to it. Content that is too much for one entry is left to `Command::Reap`.
pub(super) fn remove(view: &mut View, context: &Context, ino: Ino) {
    view.delete(keys::inode(ino));
    view.delete(keys::symlink(ino));
    let mut attributes = Vec::new();
    view.scan(keys::xattrs(ino), &mut |key, _| {
        attributes.push(key.to_vec());
        true
    });
    attributes.into_iter().for_each(|key| view.delete(key));
    super::lock::forget_inode(view, ino);
    // What is hidden goes with the rest.
    if view.get(&keys::hidden(ino)).is_some() {
        view.delete(keys::hidden(ino));
    }
    inodes_changed(view, -1);
    if extent::reap(view, context, ino, REMOVED_EXTENTS) >= REMOVED_EXTENTS {
        view.put(keys::reaping(ino), Vec::new());
    }
}

/// Applies `Command::Reap`.
pub(super) fn reap_some(view: &mut View, context: &Context) {
    let mut left = REAP_EXTENTS;
    for key in view.first_keys(keys::all_reaping(), REAP_EXTENTS, usize::MAX) {
        if left == 0 || view.is_step_full() {
            return;
        }
        let removed = extent::reap(view, context, Ino(keys::first(&key)), left);
        if removed < left {
            view.delete(key);
        }
        // Each inode counts too, even if all of its extents are gone already.
        left = left.saturating_sub(removed + 1);
    }
}

/// Returns whether content is left to delete.
pub fn has_reaping(kv: &dyn Kv) -> bool {
    kv.any(keys::all_reaping())
}
