//! Which inodes lie in the subtree of a confined client.
//!
//! A directory has one parent, so its place is a walk upwards. Another inode lies in the subtree if one of its links does:
//! its record names a single one, and the table of [`backlinks`] those of an inode that has several, of which
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
use wire::ids::{Ino, SessionId};
use wire::op::Name;

/// Steps of a walk. A client that is confined makes no entries in a directory from which the way to its root is longer: it
/// would not see them again.
pub(crate) const DEPTH_MAX: usize = 512;
/// Links of one inode that are looked at.
pub(crate) const LINKS_LOOKED_AT: usize = 64;

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

/// Returns the directories of those entries of an inode that its record does not name, as many as are looked at.
pub(crate) fn other_parents(kv: &dyn Kv, inode: &Inode) -> BTreeSet<Ino> {
    if inode.attr.kind == FileKind::Directory || inode.attr.nlink < 2 {
        return BTreeSet::new();
    }
    let links = kv.pairs(backlinks::all_of(inode.attr.ino), LINKS_LOOKED_AT);
    let parents = links.iter().map(|(key, _)| backlinks::parts(key).0);
    parents.filter(|parent| *parent != inode.parent).collect()
}

/// Returns the directories from this one upwards, as many as a walk comes to. A subtree that it lies in has its root among
/// them.
pub(crate) fn above(kv: &dyn Kv, dir: Ino) -> Vec<Ino> {
    let mut way = vec![dir];
    while way.len() <= DEPTH_MAX
        && let Some(inode) = way.last().filter(|at| **at != Ino::ROOT).and_then(|at| load(kv, *at))
    {
        way.push(inode.parent);
    }
    way
}

/// Returns the roots of all subtrees in which an inode lies, or did with its last entry.
pub(crate) fn roots_of(kv: &dyn Kv, inode: &Inode) -> BTreeSet<Ino> {
    let mut roots = BTreeSet::from([Ino::ROOT, inode.attr.ino]);
    for parent in std::iter::once(inode.parent).chain(other_parents(kv, inode)) {
        roots.extend(above(kv, parent));
    }
    roots
}

/// What a confined client sees.
#[derive(Clone, Copy)]
pub(crate) struct Scope {
    /// Its root.
    pub root: Ino,
    /// Its session.
    pub session: SessionId,
}

impl Scope {
    /// Returns whether the client sees an inode: it is the root, or has an entry in the subtree. An inode without entries is
    /// seen by those who may have it open, wherever its last entry stood.
    pub fn holds(&self, kv: &dyn Kv, inode: &Inode) -> bool {
        let ino = inode.attr.ino;
        match self.root {
            root if root == ino || root == Ino::ROOT => true,
            _ if inode.attr.nlink == 0 => kv.get(&keys::session_orphan(self.session, ino)).is_some(),
            root => place(kv, root, inode).is_some(),
        }
    }

    /// As [`Scope::holds`], for an inode whose [`roots_of`] are known.
    pub fn is_among(&self, kv: &dyn Kv, inode: &Inode, roots: &BTreeSet<Ino>) -> bool {
        match inode.attr.nlink {
            0 => self.holds(kv, inode),
            _ => roots.contains(&self.root),
        }
    }

    /// Returns an inode if the client sees it. To a confined client, others do not exist.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find(&self, kv: &dyn Kv, ino: Ino) -> Result<Inode, FsError> {
        load(kv, ino).filter(|inode| self.holds(kv, inode)).ok_or(FsError::NotFound)
    }
}
