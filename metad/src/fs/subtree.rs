//! Which inodes lie in the subtree of a confined client.
//!
//! A directory has one parent, so its place is a walk upwards. Another inode lies in the subtree if one of its links does:
//! its record names a single one, and the table of [`backlinks`] those of an inode that has several, of which
//! [`LINKS_LOOKED_AT`] are looked at. Each walk takes at most [`DEPTH_MAX`] steps, whatever the others take: nobody hides a file
//! by linking it from somewhere deep, nor by linking it often, because a confined client adds no further links to a file that
//! has that many and lies elsewhere, too. What lies deeper counts as outside: the work for an answer is bounded, and nothing is
//! shown by mistake.
//!
//! [`Walks`](super::walks::Walks) takes these walks for a request.

use super::backlinks;
use super::inode::Inode;
use super::keys;
use super::view::{Kv, KvExt};
use std::collections::BTreeSet;
use wire::attr::FileKind;
use wire::ids::{Ino, SessionId};

/// Steps of a walk. A client that is confined makes no entries in a directory from which the way to its root is longer: it
/// would not see them again.
pub(crate) const DEPTH_MAX: usize = 256;
/// Links of one inode that are looked at.
pub(crate) const LINKS_LOOKED_AT: usize = 32;

fn load(kv: &dyn Kv, ino: Ino) -> Option<Inode> {
    kv.load(&keys::inode(ino))
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
        // Each as far as a walk goes: another one that came by may have ended before it came to a root.
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
    /// Returns whether the client sees an inode that has no entries: it is one of those who may have it open, wherever its last
    /// entry stood, or sees the whole tree.
    pub fn holds_open(&self, kv: &dyn Kv, ino: Ino) -> bool {
        self.root == Ino::ROOT || kv.get(&keys::session_orphan(self.session, ino)).is_some()
    }

    /// Returns whether the client sees an inode, whose [`roots_of`] are known.
    pub fn is_among(&self, kv: &dyn Kv, inode: &Inode, roots: &BTreeSet<Ino>) -> bool {
        match inode.attr.nlink {
            0 => self.holds_open(kv, inode.attr.ino),
            _ => roots.contains(&self.root),
        }
    }
}
