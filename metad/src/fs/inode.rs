//! Inodes: their record, and changes of attributes.

use super::Context;
use super::extent::cut_range;
use super::keys;
use super::view::{KvExt, View};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::FsError;
use wire::attr::{AttrChange, FileKind, InodeAttr, Timestamp};
use wire::ids::{Ino, Version};
use wire::limits::FILE_BYTES_MAX;
use wire::op::{Name, OpReply};

/// Bytes that were removed without an extent to tell so: a later commit based on an older version must see it (I6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// Version that removed them.
    pub version: Version,
    /// First byte.
    pub from: u64,
    /// One past the last byte.
    pub to: u64,
}

/// Removals that are told apart. Uniting more makes conflicts where there are none, never hides one.
const CUTS_MAX: usize = 8;

/// The stored record of an inode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inode {
    /// Its attributes.
    pub attr: InodeAttr,
    /// A directory's parent; of other inodes the directory of the entry made last.
    pub parent: Ino,
    /// Name of the entry made last: where a conflict copy goes (I6).
    pub name: Name,
    /// Bytes removed by truncating and punching, oldest first; a few, the oldest being united when they are more.
    pub cuts: Vec<Cut>,
}

impl Inode {
    /// Loads an inode.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn load(view: &View, ino: Ino) -> Result<Self, FsError> {
        view.load(&keys::inode(ino)).ok_or(FsError::NotFound)
    }

    /// Loads a directory.
    ///
    /// # Errors
    /// `NotFound` when there is none, `NotADirectory` when it is something else.
    pub fn load_dir(view: &View, ino: Ino) -> Result<Self, FsError> {
        let inode = Self::load(view, ino)?;
        if inode.attr.kind == FileKind::Directory { Ok(inode) } else { Err(FsError::NotADirectory) }
    }

    /// Loads a regular file.
    ///
    /// # Errors
    /// `NotFound` when there is none, `IsADirectory` or `Invalid` when it is something else.
    pub fn load_file(view: &View, ino: Ino) -> Result<Self, FsError> {
        let inode = Self::load(view, ino)?;
        match inode.attr.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(FsError::IsADirectory),
            _ => Err(FsError::Invalid),
        }
    }

    /// Stores it.
    pub fn save(&self, view: &mut View) {
        view.store(keys::inode(self.attr.ino), self);
    }

    /// Attributes changed now.
    pub fn changed(&mut self, now: Timestamp) {
        self.attr.changed(now);
    }

    /// Content changed now.
    pub fn modified(&mut self, now: Timestamp) {
        self.attr.modified(now);
    }

    /// Marks bytes as removed in the present version.
    pub fn mark_cut(&mut self, from: u64, to: u64) {
        self.cuts.retain(|cut| cut.from < from || to < cut.to);
        self.cuts.push(Cut { version: self.attr.version, from, to });
        if self.cuts.len() > CUTS_MAX {
            let oldest = self.cuts.remove(0);
            let next = &mut self.cuts[0];
            (next.from, next.to) = (next.from.min(oldest.from), next.to.max(oldest.to));
        }
    }

    /// Whether bytes of a range were removed after a version (I6).
    #[must_use]
    pub fn was_cut_since(&self, base: Version, range: &Range<u64>) -> bool {
        self.cuts.iter().any(|cut| cut.version > base && cut.from < range.end && range.start < cut.to)
    }
}

/// `Op::SetAttr`.
pub(super) fn set_attr(view: &mut View, context: &Context, ino: Ino, change: &AttrChange) -> Result<OpReply, FsError> {
    let mut inode = Inode::load(view, ino)?;
    if let Some(size) = change.size {
        inode = Inode::load_file(view, ino)?;
        truncate(view, context, &mut inode, size)?;
    }
    if let Some(mode) = change.mode {
        super::acl::mode_changed(view, &inode, mode & 0o7777);
    }
    inode.attr.apply(change, context.now);
    inode.save(view);
    Ok(OpReply::Attr(inode.attr))
}

/// `Op::Accessed`. No change of the inode in POSIX's sense: `ctime` stays.
pub(super) fn accessed(view: &mut View, context: &Context, ino: Ino, at: Timestamp) {
    let Ok(mut inode) = Inode::load(view, ino) else { return };
    let at = at.min(context.now);
    if inode.attr.is_access_due(at) {
        inode.attr.atime = at;
        inode.save(view);
    }
}

/// Sets a file's length. POSIX: the times change even when the length does not.
fn truncate(view: &mut View, context: &Context, inode: &mut Inode, size: u64) -> Result<(), FsError> {
    if size > FILE_BYTES_MAX {
        return Err(FsError::TooLarge);
    }
    inode.attr.version = inode.attr.version.next();
    if size < inode.attr.size {
        cut_range(view, context, inode, size..u64::MAX);
        inode.mark_cut(size, u64::MAX);
    }
    inode.attr.size = size;
    inode.modified(context.now);
    Ok(())
}
