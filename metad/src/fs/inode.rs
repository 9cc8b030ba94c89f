//! Inodes: their record.

use super::keys;
use super::view::{KvExt, View};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::FsError;
use wire::attr::{FileKind, InodeAttr, Timestamp};
use wire::ids::{Ino, SnapshotNumber, Version};
use wire::op::Name;

/// Removed bytes for which there is no extent to show it: a later commit based on an older version must notice the
/// removal (I6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// Version that removed them.
    pub version: Version,
    /// First byte.
    pub from: u64,
    /// One past the last byte.
    pub to: u64,
}

/// Removals recorded one by one. Joining more of them causes conflicts where there are none, but never hides one.
const CUTS_MAX: usize = 8;

/// The stored record of an inode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inode {
    /// Newest snapshot number when it was last written.
    pub written: SnapshotNumber,
    /// Its attributes.
    pub attr: InodeAttr,
    /// The parent of a directory; for other inodes, the directory of the entry made last.
    pub parent: Ino,
    /// Name of the entry made last: a conflict copy is put there (I6).
    pub name: Name,
    /// Bytes removed by truncating and punching, oldest first. If there are too many, the oldest are joined.
    pub cuts: Vec<Cut>,
}

impl Inode {
    /// Makes an inode, to be saved, with the entry made last.
    #[must_use]
    pub fn new(attr: InodeAttr, parent: Ino, name: Name) -> Self {
        Self { written: SnapshotNumber::default(), attr, parent, name, cuts: Vec::new() }
    }

    /// Loads an inode.
    ///
    /// # Errors
    /// `NotFound` when there is no such inode.
    pub fn load(view: &View, ino: Ino) -> Result<Self, FsError> {
        view.load(&keys::inode(ino)).ok_or(FsError::NotFound)
    }

    /// Loads a directory.
    ///
    /// # Errors
    /// `NotFound` when there is no such inode, `NotADirectory` when it is none.
    pub fn load_dir(view: &View, ino: Ino) -> Result<Self, FsError> {
        let inode = Self::load(view, ino)?;
        if inode.attr.kind == FileKind::Directory { Ok(inode) } else { Err(FsError::NotADirectory) }
    }

    /// Loads a regular file.
    ///
    /// # Errors
    /// `NotFound` when there is no such inode, `IsADirectory` or `Invalid` when it is no regular file.
    pub fn load_file(view: &View, ino: Ino) -> Result<Self, FsError> {
        let inode = Self::load(view, ino)?;
        match inode.attr.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(FsError::IsADirectory),
            _ => Err(FsError::Invalid),
        }
    }

    /// Stores the inode.
    pub fn save(&mut self, view: &mut View) {
        self.written = view.newest_snapshot();
        self.save_accessed(view);
    }

    /// Stores the inode with another access time, which is no change that a snapshot keeps apart: its number stays.
    pub fn save_accessed(&self, view: &mut View) {
        view.store(keys::inode(self.attr.ino), self);
    }

    /// Sets the time at which attributes changed.
    pub fn changed(&mut self, now: Timestamp) {
        self.attr.changed(now);
    }

    /// Sets the times at which content changed.
    pub fn modified(&mut self, now: Timestamp) {
        self.attr.modified(now);
    }

    /// Marks bytes as removed in the current version.
    pub fn mark_cut(&mut self, from: u64, to: u64) {
        self.cuts.retain(|cut| cut.from < from || to < cut.to);
        self.cuts.push(Cut { version: self.attr.version, from, to });
        if self.cuts.len() > CUTS_MAX {
            let oldest = self.cuts.remove(0);
            let next = &mut self.cuts[0];
            (next.from, next.to) = (next.from.min(oldest.from), next.to.max(oldest.to));
        }
    }

    /// Returns whether bytes of a range were removed after a version (I6).
    #[must_use]
    pub fn was_cut_since(&self, base: Version, range: &Range<u64>) -> bool {
        self.cuts.iter().any(|cut| cut.version > base && cut.from < range.end && range.start < cut.to)
    }
}
