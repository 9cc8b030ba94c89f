//! What the leader asks about the borders of subtrees, before and after it has operations of anybody applied. What matters is
//! judged once more by [`judge`](super::judge) when they are applied.

use super::inode::Inode;
use super::subtree::{self, Scope};
use super::view::{Kv, KvExt};
use super::{dentry, keys};
use wire::FsError;
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::limits::SUBTREE_BYTES_MAX;
use wire::op::{Op, RenameMode};

/// Returns the directories whose names decide whether a client sees an inode, or `None` if it does not.
pub(crate) fn way_to(kv: &dyn Kv, scope: Scope, ino: Ino) -> Option<Vec<Ino>> {
    let _held = kv.hold();
    let (root, inode) = (scope.root, scope.find(kv, ino).ok()?);
    if root == Ino::ROOT || inode.attr.nlink == 0 {
        return Some(Vec::new());
    }
    let parent = if ino == root { root } else { subtree::place(kv, root, &inode)?.0 };
    subtree::way_up(kv, root, parent)
}

/// Checks, before anything is done for an operation, that it names no inode that is there and lies outside of the client's
/// subtree. What is not there may be made by an earlier operation of the batch. What the client vouches for is left out if
/// it lies outside: the answer must not tell whether it is there.
///
/// # Errors
/// As if those inodes were not there.
pub(crate) fn check_named(kv: &dyn Kv, scope: Scope, op: &mut Op) -> Result<(), FsError> {
    let _held = kv.hold();
    let is_foreign = |ino: Ino| kv.load(&keys::inode(ino)).is_some_and(|inode: Inode| !scope.holds(kv, &inode));
    let op = if let Op::Deferred { expect, op, .. } = op {
        if expect.iter().any(|expect| is_foreign(expect.parent)) {
            return Err(FsError::NotFound);
        }
        &mut **op
    } else {
        op
    };
    if let Op::Unlink { released, .. } | Op::Rename { released, .. } = op {
        *released = released.filter(|ino| !is_foreign(*ino));
    }
    let named = match op {
        // Its number is not one that the session has leased.
        Op::Create { ino, .. } if is_foreign(*ino) => return Err(FsError::Invalid),
        Op::Create { parent, .. } | Op::Rmdir { parent, .. } | Op::Unlink { parent, .. } => vec![*parent],
        Op::Link { ino, parent, .. } => vec![*ino, *parent],
        Op::Rename { parent, new_parent, .. } => vec![*parent, *new_parent],
        Op::SetAttr { ino, .. }
        | Op::Commit { ino, .. }
        | Op::Range { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::RemoveXattr { ino, .. }
        | Op::SetLock { ino, .. }
        | Op::Unlock { ino, .. }
        | Op::Accessed { ino, .. } => vec![*ino],
        Op::CloneRange { src, dst, .. } => vec![*src, *dst],
        Op::ReleaseOrphans { .. } | Op::LeaseInos { .. } | Op::Journaled { .. } | Op::JournaledContent { .. } => {
            Vec::new()
        }
        Op::Deferred { .. } => return Err(FsError::Invalid),
    };
    if named.into_iter().any(is_foreign) { Err(FsError::NotFound) } else { Ok(()) }
}

/// Returns those of some inodes that a client sees.
pub(crate) fn within(kv: &dyn Kv, scope: Scope, inos: &[Ino]) -> Vec<Ino> {
    let _held = kv.hold();
    inos.iter().copied().filter(|ino| scope.find(kv, *ino).is_ok()).collect()
}

/// Returns the roots that a rename may move a directory out of: those of these above one of its two directories only.
pub(crate) fn crossed(kv: &dyn Kv, op: &Op, roots: &[Ino]) -> Vec<Ino> {
    let Op::Rename { parent, name, new_parent, new_name, mode, .. } = op.plain() else { return Vec::new() };
    if parent == new_parent {
        return Vec::new();
    }
    let _held = kv.hold();
    // What is made only now may be a directory, too.
    let may_be_dir =
        |parent: Ino, name: &[u8]| dentry::find(kv, parent, name).is_none_or(|(_, kind)| kind == FileKind::Directory);
    let out = may_be_dir(*parent, name) || may_be_dir(*new_parent, new_name);
    let back = *mode == RenameMode::Exchange;
    let lies = |root: Ino, dir: Ino| subtree::way_up(kv, root, dir).is_some();
    let crosses = |root: &Ino| match (lies(*root, *parent), lies(*root, *new_parent)) {
        (true, false) => out,
        (false, true) => out && back,
        _ => false,
    };
    roots.iter().copied().filter(crosses).collect()
}

/// Returns the directory that an absolute path leads to. Symlinks are not followed: whoever can change one would choose
/// the subtree.
///
/// # Errors
/// `NotFound`, or `NotADirectory` when there is something else on the way.
pub(crate) fn resolve(kv: &dyn Kv, path: &str) -> Result<Ino, FsError> {
    if path.len() > SUBTREE_BYTES_MAX || !path.starts_with('/') {
        return Err(FsError::Invalid);
    }
    let names = path.split('/').filter(|name| !name.is_empty() && *name != ".");
    names.map(str::as_bytes).try_fold(Ino::ROOT, |dir, name| match dentry::find(kv, dir, name) {
        Some((ino, FileKind::Directory)) => Ok(ino),
        Some(_) => Err(FsError::NotADirectory),
        None => Err(FsError::NotFound),
    })
}
