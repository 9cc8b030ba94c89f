//! Directory entries: create, link, unlink, rmdir, rename (POSIX.1-2017 and `rename(2)`).

use super::inode::Inode;
use super::settings::inodes_changed;
use super::view::{Kv, KvExt, View};
use super::{Context, acl, backlinks, keys, numbered, orphan, session};
use wire::FsError;
use wire::attr::{Creator, FileKind, InodeAttr};
use wire::ids::Ino;
use wire::limits::{LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX};
use wire::op::{NewInode, OpReply, RenameMode, check_name};

/// Depth up to which directories can be moved: four times what a path can name (`PATH_MAX`) in names of one byte.
const DEPTH_MAX: usize = 8_192;

/// What an entry leads to.
pub(crate) type Target = (Ino, FileKind);

/// The parameters of a new inode.
pub(super) struct New<'a> {
    pub ino: Ino,
    pub node: &'a NewInode,
    pub mode: u32,
    pub umask: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Returns what a name in a directory leads to.
pub fn find(kv: &dyn Kv, parent: Ino, name: &[u8]) -> Option<Target> {
    numbered::load(kv, &keys::dentry(parent, name))
}

fn require(view: &View, parent: Ino, name: &[u8]) -> Result<Target, FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    find(view, parent, name).ok_or(FsError::NotFound)
}

/// Adds an entry, and updates the directory's counts and times.
pub(super) fn add(view: &mut View, context: &Context, dir: &mut Inode, name: &[u8], target: Target) {
    numbered::store(view, keys::dentry(dir.attr.ino, name), &target);
    dir.attr.gained(target.1, context.now);
}

/// Removes an entry, and updates the directory's counts and times.
fn remove(view: &mut View, context: &Context, dir: &mut Inode, name: &[u8], kind: FileKind) {
    view.delete(keys::dentry(dir.attr.ino, name));
    dir.attr.lost(kind, context.now);
}

/// `Op::Create`.
pub(super) fn create(
    view: &mut View,
    context: &Context,
    parent: Ino,
    name: &[u8],
    new: &New,
) -> Result<OpReply, FsError> {
    check_name(name)?;
    let mut dir = Inode::load_dir(view, parent)?;
    if find(view, parent, name).is_some() {
        return Err(FsError::Exists);
    }
    session::use_ino(view, context, new.ino)?;
    let kind = new.node.kind()?;
    if kind == FileKind::Directory && dir.attr.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks);
    }
    let mut inode = fresh(context, &dir, name, new, kind);
    if let NewInode::Symlink(target) = new.node {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        inode.attr.size = target.len() as u64;
        numbered::store_bytes(view, keys::symlink(new.ino), target);
    } else {
        acl::inherit(view, &dir, &mut inode, new.umask);
    }
    inode.save(view);
    add(view, context, &mut dir, name, (new.ino, kind));
    dir.save(view);
    inodes_changed(view, 1);
    Ok(OpReply::Attr(inode.attr))
}

fn fresh(context: &Context, dir: &Inode, name: &[u8], new: &New, kind: FileKind) -> Inode {
    let creator = Creator { mode: new.mode, uid: new.uid, gid: new.gid };
    let attr = InodeAttr::new_in(&dir.attr, new.ino, kind, new.node.rdev(), creator, context.now);
    Inode::new(attr, dir.attr.ino, name.to_vec())
}

/// `Op::Link`.
pub(super) fn link(view: &mut View, context: &Context, ino: Ino, parent: Ino, name: &[u8]) -> Result<OpReply, FsError> {
    check_name(name)?;
    let mut dir = Inode::load_dir(view, parent)?;
    let mut inode = Inode::load(view, ino)?;
    if inode.attr.kind == FileKind::Directory {
        return Err(FsError::NotPermitted);
    }
    if inode.attr.nlink == 0 {
        return Err(FsError::NotFound);
    }
    if find(view, parent, name).is_some() {
        return Err(FsError::Exists);
    }
    if inode.attr.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks);
    }
    inode.attr.nlink += 1;
    backlinks::added(view, &mut inode, parent, name);
    inode.changed(context.now);
    inode.save(view);
    add(view, context, &mut dir, name, (ino, inode.attr.kind));
    dir.save(view);
    Ok(OpReply::Attr(inode.attr))
}

/// Counts one link less to an inode that is no directory. Returns its attributes, and whether the inode stays for the
/// session.
fn drop_link(
    view: &mut View,
    context: &Context,
    ino: Ino,
    (parent, name): (Ino, &[u8]),
    released: Option<Ino>,
) -> Result<(InodeAttr, bool), FsError> {
    let mut inode = Inode::load(view, ino)?;
    inode.attr.nlink -= 1;
    backlinks::removed(view, &mut inode, parent, name);
    inode.changed(context.now);
    inode.save(view);
    let orphaned = inode.attr.nlink == 0 && orphan::unlinked(view, context, &inode, released);
    Ok((inode.attr, orphaned))
}

/// `Op::Unlink`.
pub(super) fn unlink(
    view: &mut View,
    context: &Context,
    parent: Ino,
    name: &[u8],
    released: Option<Ino>,
) -> Result<OpReply, FsError> {
    let mut dir = Inode::load_dir(view, parent)?;
    let (ino, kind) = require(view, parent, name)?;
    if kind == FileKind::Directory {
        return Err(FsError::IsADirectory);
    }
    remove(view, context, &mut dir, name, kind);
    dir.save(view);
    let (attr, orphaned) = drop_link(view, context, ino, (parent, name), released)?;
    Ok(OpReply::Removed { attr, orphaned })
}

fn is_empty(view: &View, dir: Ino) -> bool {
    !view.any(keys::dentries(dir, 0))
}

/// Removes a directory that is empty and has no entry of its own any more.
fn drop_dir(view: &mut View, context: &Context, ino: Ino) -> Result<InodeAttr, FsError> {
    let mut inode = Inode::load(view, ino)?;
    inode.attr.nlink = 0;
    inode.changed(context.now);
    // Handles on a removed directory have nothing left to read: it does not become an orphan.
    orphan::remove(view, context, ino);
    Ok(inode.attr)
}

/// Refuses a change by a caller that has found another directory at a name than is there now, if it has found one.
fn check_seen(target: Option<Target>, seen: Option<Ino>) -> Result<(), FsError> {
    let same = seen.is_none_or(|seen| target.is_some_and(|(ino, _)| ino == seen));
    if same { Ok(()) } else { Err(FsError::Stale) }
}

/// `Op::Rmdir`.
pub(super) fn rmdir(
    view: &mut View,
    context: &Context,
    (parent, name): (Ino, &[u8]),
    seen: Option<Ino>,
) -> Result<OpReply, FsError> {
    let mut dir = Inode::load_dir(view, parent)?;
    check_seen(find(view, parent, name), seen)?;
    let (ino, kind) = require(view, parent, name)?;
    if kind != FileKind::Directory {
        return Err(FsError::NotADirectory);
    }
    if !is_empty(view, ino) {
        return Err(FsError::NotEmpty);
    }
    remove(view, context, &mut dir, name, kind);
    dir.save(view);
    let attr = drop_dir(view, context, ino)?;
    Ok(OpReply::Removed { attr, orphaned: false })
}

/// Returns whether `dir` is `ancestor`, or lies in its subtree.
///
/// # Errors
/// `NameTooLong` when `dir` lies deeper than directories can be moved.
fn is_within(view: &View, mut dir: Ino, ancestor: Ino) -> Result<bool, FsError> {
    for _ in 0..DEPTH_MAX {
        if dir == ancestor || dir == Ino::ROOT {
            return Ok(dir == ancestor);
        }
        dir = Inode::load(view, dir)?.parent;
    }
    Err(FsError::NameTooLong)
}

/// `Op::Rename`.
pub(super) fn rename(
    view: &mut View,
    context: &Context,
    (parent, name): (Ino, &[u8]),
    (new_parent, new_name): (Ino, &[u8]),
    mode: RenameMode,
    (released, seen): (Option<Ino>, Option<Ino>),
) -> Result<OpReply, FsError> {
    check_name(new_name)?;
    Inode::load_dir(view, parent)?;
    Inode::load_dir(view, new_parent)?;
    let source = require(view, parent, name)?;
    let target = find(view, new_parent, new_name);
    check_seen(target, seen)?;
    if source.1 == FileKind::Directory && is_within(view, new_parent, source.0)? {
        return Err(FsError::Invalid);
    }
    match (mode, target) {
        (RenameMode::Exchange, None) => Err(FsError::NotFound),
        (RenameMode::Exchange, Some(target)) => {
            if target.1 == FileKind::Directory && is_within(view, parent, target.0)? {
                return Err(FsError::Invalid);
            }
            exchange(view, context, (parent, name, source), (new_parent, new_name, target))
        }
        (RenameMode::NoReplace, Some(_)) => Err(FsError::Exists),
        // POSIX: two names of one inode stay as they are.
        (_, Some(target)) if target.0 == source.0 => Ok(OpReply::Done),
        (_, target) => {
            if let Some(target) = target {
                check_replaceable(view, source, target)?;
            }
            let (replaced, orphaned) = replace(view, context, (new_parent, new_name, target), released)?;
            let moved = move_entry(view, context, (parent, name, source), (new_parent, new_name))?;
            Ok(OpReply::Renamed { moved, replaced, orphaned })
        }
    }
}

fn check_replaceable(view: &View, source: Target, target: Target) -> Result<(), FsError> {
    match (source.1 == FileKind::Directory, target.1 == FileKind::Directory) {
        (true, false) => Err(FsError::NotADirectory),
        (false, true) => Err(FsError::IsADirectory),
        (true, true) if !is_empty(view, target.0) => Err(FsError::NotEmpty),
        _ => Ok(()),
    }
}

/// Removes the entry that a rename replaces.
fn replace(
    view: &mut View,
    context: &Context,
    (parent, name, target): (Ino, &[u8], Option<Target>),
    released: Option<Ino>,
) -> Result<(Option<InodeAttr>, bool), FsError> {
    let Some((ino, kind)) = target else { return Ok((None, false)) };
    let mut dir = Inode::load_dir(view, parent)?;
    remove(view, context, &mut dir, name, kind);
    dir.save(view);
    if kind == FileKind::Directory {
        return Ok((Some(drop_dir(view, context, ino)?), false));
    }
    let (attr, orphaned) = drop_link(view, context, ino, (parent, name), released)?;
    Ok((Some(attr), orphaned))
}

fn move_entry(
    view: &mut View,
    context: &Context,
    (parent, name, source): (Ino, &[u8], Target),
    (new_parent, new_name): (Ino, &[u8]),
) -> Result<InodeAttr, FsError> {
    let mut old = Inode::load_dir(view, parent)?;
    remove(view, context, &mut old, name, source.1);
    old.save(view);
    let mut new = Inode::load_dir(view, new_parent)?;
    if source.1 == FileKind::Directory && parent != new_parent && new.attr.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks);
    }
    add(view, context, &mut new, new_name, source);
    new.save(view);
    rehome(view, context, source.0, (parent, name), (new_parent, new_name))
}

/// Records the new place of an inode.
fn rehome(
    view: &mut View,
    context: &Context,
    ino: Ino,
    from: (Ino, &[u8]),
    to: (Ino, &[u8]),
) -> Result<InodeAttr, FsError> {
    let mut inode = Inode::load(view, ino)?;
    backlinks::moved(view, &mut inode, from, to);
    inode.changed(context.now);
    inode.save(view);
    Ok(inode.attr)
}

fn exchange(
    view: &mut View,
    context: &Context,
    (parent, name, source): (Ino, &[u8], Target),
    (new_parent, new_name, target): (Ino, &[u8], Target),
) -> Result<OpReply, FsError> {
    for (dir, name, before, after) in [(parent, name, source, target), (new_parent, new_name, target, source)] {
        let mut dir = Inode::load_dir(view, dir)?;
        remove(view, context, &mut dir, name, before.1);
        add(view, context, &mut dir, name, after);
        dir.save(view);
    }
    let (here, there) = ((parent, name), (new_parent, new_name));
    // Two names of one inode: both lead to it as before.
    let (from, to) = if source.0 == target.0 { (there, here) } else { (here, there) };
    let moved = rehome(view, context, source.0, from, there)?;
    let replaced = rehome(view, context, target.0, to, here)?;
    Ok(OpReply::Renamed { moved, replaced: Some(replaced), orphaned: false })
}
