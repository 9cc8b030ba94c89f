//! Inodes: their record.

use super::keys;
use super::view::{KvExt, View};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::FsError;
use wire::attr::{FileKind, InodeAttr, Timestamp};
use wire::ids::{Ino, Version};
use wire::op::Name;

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
