//! Where the entries of an inode stand. One that has a single entry records it itself; of one with several links, which
//! is no directory, each entry has a key in a table of its own: without it, nobody could say which of its entries are left
//! when some of them are removed, or whether one of them lies in a subtree.

use super::inode::Inode;
use super::keys::{self, Key};
use super::view::{Kv, KvExt, View};
use std::ops::Range;
use wire::attr::FileKind;
use wire::ids::Ino;

/// An entry of an inode that has several.
#[must_use]
pub fn key_of(ino: Ino, parent: Ino, name: &[u8]) -> Key {
    keys::key(b'd', &[ino.0, parent.0], name)
}

/// Entries of an inode that has several.
#[must_use]
pub fn all_of(ino: Ino) -> Range<Key> {
    keys::below(keys::key(b'd', &[ino.0], &[]))
}

/// Entries of all inodes that have several; the inode is the first number.
#[must_use]
pub fn all() -> Range<Key> {
    keys::below(vec![b'd'])
}

/// Directory and name of an entry of an inode that has several.
#[must_use]
pub fn parts(key: &[u8]) -> (Ino, &[u8]) {
    (Ino(keys::second(key)), &key[17..])
}

/// Returns whether the entries of an inode have keys in the table.
pub(super) fn has_table(inode: &Inode) -> bool {
    inode.attr.kind != FileKind::Directory && inode.attr.nlink > 1
}

/// Records a further entry of an inode, which counts it already.
pub(super) fn added(view: &mut View, inode: &mut Inode, parent: Ino, name: &[u8]) {
    let ino = inode.attr.ino;
    if inode.attr.nlink == 2 {
        view.put(key_of(ino, inode.parent, &inode.name), Vec::new());
    }
    view.put(key_of(ino, parent, name), Vec::new());
    (inode.parent, inode.name) = (parent, name.to_vec());
}

/// Records that an entry of an inode is gone, which does not count it any more. The last one stays on record.
pub(super) fn removed(view: &mut View, inode: &mut Inode, parent: Ino, name: &[u8]) {
    let ino = inode.attr.ino;
    if inode.attr.nlink == 0 {
        return;
    }
    view.delete(key_of(ino, parent, name));
    if inode.attr.nlink > 1 && (inode.parent, inode.name.as_slice()) != (parent, name) {
        return;
    }
    // None is found only in a damaged state.
    let Some((key, _)) = view.pairs(all_of(ino), 1).pop() else { return };
    let (parent, name) = parts(&key);
    (inode.parent, inode.name) = (parent, name.to_vec());
    if inode.attr.nlink == 1 {
        view.delete(key);
    }
}

/// Records that an entry of an inode stands elsewhere.
pub(super) fn moved(view: &mut View, inode: &mut Inode, from: (Ino, &[u8]), to: (Ino, &[u8])) {
    if has_table(inode) {
        view.delete(key_of(inode.attr.ino, from.0, from.1));
        view.put(key_of(inode.attr.ino, to.0, to.1), Vec::new());
    }
    (inode.parent, inode.name) = (to.0, to.1.to_vec());
}

/// Lets a damaged inode that counts one link record an entry of its table that `leads` to it, if what it records does not. Keys
/// that are still missing are found by the next check.
pub(super) fn recounted(view: &View, inode: &mut Inode, leads: impl Fn(Ino, &[u8]) -> bool) {
    if inode.attr.nlink != 1 || leads(inode.parent, &inode.name) {
        return;
    }
    let mut found = None;
    view.scan(all_of(inode.attr.ino), &mut |key, _| {
        let (parent, name) = parts(key);
        found = leads(parent, name).then(|| (parent, name.to_vec()));
        found.is_none()
    });
    if let Some((parent, name)) = found {
        (inode.parent, inode.name) = (parent, name);
    }
}
