//! Which inodes' attributes or names a batch changes.

use crate::fs::inode::Inode;
use crate::fs::view::{Kv, KvExt};
use crate::fs::{dentry, keys};
use std::collections::BTreeSet;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::{Op, OpReply};

/// Returns what can be known before the batch is applied.
pub(super) fn before(kv: &dyn Kv, ops: &[Op]) -> Vec<Ino> {
    let mut inos: BTreeSet<Ino> = ops.iter().flat_map(Op::attrs_changed).collect();
    // A name that is yet to be made leads nowhere.
    let leads = |op: &&Op| !matches!(op.plain(), Op::Create { .. } | Op::Link { .. });
    let names = ops.iter().filter(leads).flat_map(Op::names_changed);
    inos.extend(names.filter_map(|(parent, name)| dentry::find(kv, parent, name)).map(|(ino, _)| ino));
    inos.into_iter().collect()
}

/// Returns what can be known by now, and what was known already.
pub(super) fn more(kv: &dyn Kv, ops: &[Op], known: &[Ino]) -> Vec<Ino> {
    let mut inos: BTreeSet<Ino> = known.iter().copied().collect();
    inos.extend(before(kv, ops));
    inos.into_iter().collect()
}

/// Returns what only the replies reveal.
pub(super) fn after(replies: &[OpReply], known: &[Ino]) -> Vec<Ino> {
    let mut inos = BTreeSet::new();
    for reply in replies {
        match reply {
            OpReply::Removed { attr, .. } => {
                inos.insert(attr.ino);
            }
            OpReply::Renamed { moved, replaced, .. } => {
                inos.insert(moved.ino);
                inos.extend(replaced.as_ref().map(|attr| attr.ino));
            }
            OpReply::Committed { conflict: Some(copy), .. } => {
                inos.insert(copy.parent);
            }
            OpReply::Committed { .. } | OpReply::Attr(_) | OpReply::Inos { .. } | OpReply::Done => {}
        }
    }
    // Sorted, as `before` returns it.
    inos.retain(|ino| known.binary_search(ino).is_err());
    inos.into_iter().collect()
}

/// Returns the attributes of what a batch has touched that its replies do not carry. Replies carry attributes as of
/// each operation: later operations may have changed them again.
pub(super) fn attrs_not_in_replies(kv: &dyn Kv, replies: &[OpReply], inos: &[Ino]) -> Vec<InodeAttr> {
    let several = replies.len() > 1;
    let is_in_replies = |ino: &Ino| {
        replies.iter().any(|reply| match reply {
            OpReply::Attr(attr) | OpReply::Removed { attr, .. } | OpReply::Committed { attr, .. } => attr.ino == *ino,
            OpReply::Renamed { moved, replaced, .. } => {
                moved.ino == *ino || replaced.as_ref().is_some_and(|attr| attr.ino == *ino)
            }
            OpReply::Inos { .. } | OpReply::Done => false,
        })
    };
    let missing = inos.iter().filter(|ino| several || !is_in_replies(ino));
    missing.filter_map(|ino| kv.load::<Inode>(&keys::inode(*ino))).map(|inode| inode.attr).collect()
}
