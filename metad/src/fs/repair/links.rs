//! Repairs of entries, and of counts of links and entries.

use super::{WORK_MAX, content, load_as, load_inode};
use crate::fs::dentry::{self, Target};
use crate::fs::inode::Inode;
use crate::fs::keys::{self, Key};
use crate::fs::settings::{self, inodes_changed};
use crate::fs::view::{Kv, KvExt, View};
use crate::fs::{Context, backlinks, numbered, orphan};
use wire::attr::{Creator, FileKind, InodeAttr};
use wire::ids::Ino;
use wire::message::check::Seen;

/// The directory below the root in which inodes without a name are put.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Numbers of inodes that are skipped at most when content is found that belongs to one beyond those that were given out.
const SKIPPED_MAX: u64 = 1 << 40;
/// Directories above one another that are visited.
const DEPTH_MAX: usize = 1 << 16;

/// An entry's place: directory, place in its order, name.
type Place<'a> = (Ino, u64, &'a [u8]);

fn key_of((parent, cookie, name): Place) -> Key {
    keys::dentry_at(parent, cookie, name)
}

fn load_target(view: &View, key: &[u8]) -> Option<Target> {
    numbered::decode(&view.get(key)?).ok()
}

/// Returns whether a name in a directory leads to an inode.
fn leads(view: &View, (parent, name): (Ino, &[u8]), ino: Ino) -> bool {
    load_target(view, &keys::dentry(parent, name)).is_some_and(|(target, _)| target == ino)
}

/// Returns whether the entry that an inode records leads to it.
pub(super) fn has_own_entry(view: &View, inode: &Inode) -> bool {
    leads(view, (inode.parent, &inode.name), inode.attr.ino)
}

fn load_dir(view: &View, ino: Ino) -> Option<Inode> {
    load_inode(view, ino).filter(|inode| inode.attr.kind == FileKind::Directory)
}

/// `Repair::Links`.
pub(super) fn count(view: &mut View, context: &Context, ino: Ino, seen: Seen, found: u32) -> bool {
    let Some(mut inode) = load_as(view, ino, seen) else { return false };
    let is_waiting = view.get(&keys::orphan(ino)).is_some();
    // An inode without an entry is attached, or waits until no session holds it.
    if inode.attr.kind == FileKind::Directory || (found == 0) != is_waiting || inode.attr.nlink == found {
        return false;
    }
    // The entry that it records itself is one of them.
    if found == 0 && has_own_entry(view, &inode) {
        return false;
    }
    inode.attr.nlink = found;
    backlinks::recounted(view, &mut inode, |parent, name| leads(view, (parent, name), ino));
    inode.changed(context.now);
    inode.save(view);
    true
}

/// `Repair::Directory`.
pub(super) fn count_dir(view: &mut View, context: &Context, ino: Ino) -> bool {
    let Some(mut dir) = load_dir(view, ino) else { return false };
    let (mut entries, mut subdirs) = (0_u64, 0_u32);
    view.scan(keys::dentries(ino, 0), &mut |_, value| {
        let target = numbered::decode::<Target>(value);
        entries += 1;
        subdirs += u32::from(target.is_ok_and(|(_, kind)| kind == FileKind::Directory));
        entries <= WORK_MAX as u64
    });
    let counted = (dir.attr.size, dir.attr.nlink);
    if entries > WORK_MAX as u64 || counted == (entries, 2 + subdirs) {
        return false;
    }
    (dir.attr.size, dir.attr.nlink) = (entries, 2 + subdirs);
    dir.modified(context.now);
    dir.save(view);
    true
}

/// `Repair::Entry`.
pub(super) fn remove(view: &mut View, context: &Context, place: Place, ino: Ino) -> bool {
    let (parent, _, name) = place;
    if load_target(view, &key_of(place)).is_none_or(|(target, _)| target != ino) {
        return false;
    }
    // An inode whose record is damaged exists.
    let is_there = |ino| view.get(&keys::inode(ino)).is_some();
    let in_no_dir = match load_inode(view, parent) {
        Some(inode) => inode.attr.kind != FileKind::Directory,
        None => !is_there(parent),
    };
    // An operator decides about an inode that is lost while its content is there: the name says which file it was.
    let has_content = !is_there(ino) && view.get(&keys::reaping(ino)).is_none() && view.any(keys::extents_from(ino, 0));
    let is_superfluous = match load_dir(view, ino) {
        // A directory has one entry: the one that it records itself.
        Some(dir) => (dir.parent, dir.name.as_slice()) != (parent, name) && leads(view, (dir.parent, &dir.name), ino),
        None => !is_there(ino),
    };
    if has_content || (!in_no_dir && !is_superfluous) {
        return false;
    }
    view.delete(key_of(place));
    count_dir(view, context, parent);
    true
}

/// `Repair::Rewrite`.
pub(super) fn rewrite(view: &mut View, context: &Context, place: Place, ino: Ino) -> bool {
    let (parent, _, name) = place;
    let Some(before) = load_target(view, &key_of(place)).filter(|(target, _)| *target == ino) else { return false };
    let Some(inode) = load_inode(view, ino) else { return false };
    let (from, to) = (key_of(place), keys::dentry(parent, name));
    let is_taken = from != to && view.get(&to).is_some();
    if is_taken || (from == to && before.1 == inode.attr.kind) {
        return false;
    }
    view.delete(from);
    numbered::store(view, to, &(ino, inode.attr.kind));
    count_dir(view, context, parent);
    true
}

/// `Repair::Parent`.
pub(super) fn set_parent(view: &mut View, context: &Context, ino: Ino, (parent, name): (Ino, &[u8])) -> bool {
    let Some(mut dir) = load_inode(view, ino) else { return false };
    // An inode with several links records the entry made last, and has a table for all.
    if (dir.attr.kind != FileKind::Directory && dir.attr.nlink != 1)
        || load_dir(view, parent).is_none()
        || !leads(view, (parent, name), ino)
        || leads(view, (dir.parent, &dir.name), ino)
    {
        return false;
    }
    (dir.parent, dir.name) = (parent, name.to_vec());
    dir.changed(context.now);
    dir.save(view);
    true
}

/// `Repair::Attach`.
pub(super) fn attach(view: &mut View, context: &Context, ino: Ino, seen: Seen) -> bool {
    // The root has no entry, and needs none.
    let Some(inode) = load_as(view, ino, seen).filter(|_| ino != Ino::ROOT) else { return false };
    let has_own = has_own_entry(view, &inode);
    let is_circle = has_own && inode.attr.kind == FileKind::Directory && lies_below_itself(view, &inode);
    if (has_own && !is_circle) || orphan::holders(view, ino).is_none_or(|holders| !holders.is_empty()) {
        return false;
    }
    let name = format!("#{ino}").into_bytes();
    let Some(found) = lost_and_found(view, context) else { return false };
    if view.get(&keys::dentry(found, &name)).is_some() || is_below(view, found, ino) {
        return false;
    }
    if is_circle {
        view.delete(keys::dentry(inode.parent, &inode.name));
        count_dir(view, context, inode.parent);
    }
    // Loaded again: the inode may be its own parent.
    let (Some(mut inode), Some(mut dir)) = (load_inode(view, ino), load_inode(view, found)) else { return false };
    (inode.parent, inode.name) = (found, name.clone());
    if inode.attr.kind != FileKind::Directory {
        inode.attr.nlink = 1;
    }
    inode.changed(context.now);
    inode.save(view);
    dentry::add(view, context, &mut dir, &name, (ino, inode.attr.kind));
    dir.save(view);
    count_dir(view, context, ino);
    true
}

/// `Repair::Content` of an inode that does not exist: its content becomes a file with this number.
pub(super) fn attach_content(view: &mut View, context: &Context, ino: Ino) -> bool {
    let next = settings::next_ino(view);
    let Some(stray) = content::stray(view, ino).filter(|_| ino.0 < next.0.saturating_add(SKIPPED_MAX)) else {
        return false;
    };
    let name = format!("#{ino}").into_bytes();
    let Some(found) = lost_and_found(view, context) else { return false };
    let Some(mut dir) = load_inode(view, found) else { return false };
    if view.get(&keys::dentry(found, &name)).is_some() {
        return false;
    }
    let mut attr = InodeAttr::new(ino, FileKind::Regular, Creator { mode: 0o600, uid: 0, gid: 0 }, context.now);
    (attr.size, attr.allocated, attr.version) = (stray.size, stray.allocated, stray.version);
    attr.has_xattrs = view.any(keys::xattrs(ino));
    // I4: this number is not given out any more.
    settings::raise_next_ino(view, Ino(ino.0 + 1));
    // All of it is kept, also what was being removed.
    view.delete(keys::hidden(ino));
    Inode::new(attr, found, name.clone()).save(view);
    inodes_changed(view, 1);
    dentry::add(view, context, &mut dir, &name, (ino, FileKind::Regular));
    dir.save(view);
    true
}

fn lies_below_itself(view: &View, inode: &Inode) -> bool {
    is_below(view, inode.parent, inode.attr.ino)
}

/// Returns whether a directory is another one, or lies below it.
fn is_below(view: &View, dir: Ino, ino: Ino) -> bool {
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        if at == ino || at == Ino::ROOT {
            return at == ino;
        }
        let Some(above) = load_inode(view, at) else { return false };
        at = above.parent;
    }
    false
}

/// Returns the directory for inodes without a name, and makes it if there is none.
fn lost_and_found(view: &mut View, context: &Context) -> Option<Ino> {
    let key = keys::dentry(Ino::ROOT, LOST_AND_FOUND);
    if view.get(&key).is_some() {
        let (ino, _) = load_target(view, &key)?;
        return load_dir(view, ino).map(|_| ino);
    }
    let mut root = load_dir(view, Ino::ROOT)?;
    // I4: no session has leased it, or will.
    let ino = settings::take_ino(view);
    let creator = Creator { mode: 0o700, uid: 0, gid: 0 };
    let attr = InodeAttr::new(ino, FileKind::Directory, creator, context.now);
    Inode::new(attr, Ino::ROOT, LOST_AND_FOUND.to_vec()).save(view);
    inodes_changed(view, 1);
    dentry::add(view, context, &mut root, LOST_AND_FOUND, (ino, FileKind::Directory));
    root.save(view);
    Some(ino)
}
