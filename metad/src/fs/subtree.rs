//! Which inodes lie in the subtree of a confined client.
//!
//! A directory has one parent, so its place is a walk upwards. Another inode lies in the subtree if one of its links does:
//! its record names a single one, and the table of [`backlinks`](super::backlinks) those of an inode that has several, of which
//! [`LINKS_LOOKED_AT`] are looked at. Each walk takes at most [`DEPTH_MAX`] steps, whatever the others take: nobody hides a file
//! by linking it from somewhere deep. What lies deeper, or has its only link within behind so many others, counts as outside:
//! the work for an answer is bounded, and nothing is shown by mistake.

use super::backlinks;
use super::inode::Inode;
use super::keys;
use super::view::{Kv, KvExt};
use std::collections::BTreeSet;
use wire::FsError;
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::op::Name;

/// Steps of a walk. A client that is confined makes no entries in a directory from which the way to its root is longer: it
/// would not see them again.
pub(crate) const DEPTH_MAX: usize = 512;
/// Links of one inode that are looked at.
const LINKS_LOOKED_AT: usize = 64;

fn load(kv: &dyn Kv, ino: Ino) -> Option<Inode> {
    kv.load(&keys::inode(ino))
}

/// Returns the directories from this one up to the root of a subtree, both included, or `None` when it lies outside.
pub(crate) fn way_up(kv: &dyn Kv, root: Ino, dir: Ino) -> Option<Vec<Ino>> {
    let (mut way, mut at) = (vec![dir], dir);
    while at != root {
        if at == Ino::ROOT || way.len() > DEPTH_MAX {
            return None;
        }
        at = load(kv, at)?.parent;
        way.push(at);
    }
    Some(way)
}

/// Returns an entry of the inode that lies in the subtree: its directory and its name. The root of the subtree has none.
pub(crate) fn place(kv: &dyn Kv, root: Ino, inode: &Inode) -> Option<(Ino, Name)> {
    if way_up(kv, root, inode.parent).is_some() {
        return Some((inode.parent, inode.name.clone()));
    }
    if inode.attr.kind == FileKind::Directory || inode.attr.nlink < 2 {
        return None;
    }
    let mut outside = BTreeSet::from([inode.parent]);
    for (key, _) in kv.pairs(backlinks::all_of(inode.attr.ino), LINKS_LOOKED_AT) {
        let (parent, name) = backlinks::parts(&key);
        if outside.insert(parent) && way_up(kv, root, parent).is_some() {
            return Some((parent, name.to_vec()));
        }
    }
    None
}

/// Returns whether an inode lies in a subtree: it is the root of it, or has an entry in it. An unlinked inode lies where its
/// last entry stood.
pub(crate) fn holds(kv: &dyn Kv, root: Ino, inode: &Inode) -> bool {
    inode.attr.ino == root || root == Ino::ROOT || place(kv, root, inode).is_some()
}

/// Returns an inode if it lies in a subtree. To a confined client, those outside do not exist.
///
/// # Errors
/// `NotFound`.
pub(crate) fn find(kv: &dyn Kv, root: Ino, ino: Ino) -> Result<Inode, FsError> {
    load(kv, ino).filter(|inode| holds(kv, root, inode)).ok_or(FsError::NotFound)
}

/// Returns whether there is an inode of this number, and it lies outside of a subtree.
pub(crate) fn is_foreign(kv: &dyn Kv, root: Ino, ino: Ino) -> bool {
    load(kv, ino).is_some_and(|inode| !holds(kv, root, &inode))
}
