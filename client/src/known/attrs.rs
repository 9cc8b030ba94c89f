//! Attributes of inodes, and where the content of small files is stored, as metad answered. Pure.

use super::{INODES_MAX, lru};
use lru::LruCache;
use wire::attr::{FileKind, InodeAttr};
use wire::ids::{Ino, Version};
use wire::op::ExtentPage;

/// Small files for which it is remembered where their content is stored; a part of it may be inline.
const CONTENTS_MAX: usize = 8192;
/// Removed directories whose attributes are remembered.
const REMOVED_DIRS_MAX: usize = 4096;

/// Attributes, and where content is stored.
pub struct Attrs {
    leased: LruCache<Ino, InodeAttr>,
    /// Extents of small files that were open or listed lately. They are valid for one version of the file.
    contents: LruCache<Ino, ExtentPage>,
    /// Directories that were removed here: a process may still be in one, or have it open.
    removed_dirs: LruCache<Ino, InodeAttr>,
}

impl Default for Attrs {
    fn default() -> Self {
        Self { leased: lru(INODES_MAX), contents: lru(CONTENTS_MAX), removed_dirs: lru(REMOVED_DIRS_MAX) }
    }
}

impl Attrs {
    /// Returns attributes that were answered under a lease.
    pub fn get(&mut self, ino: Ino) -> Option<&InodeAttr> {
        self.leased.get(&ino)
    }

    /// Returns whether there are any of an inode.
    pub fn contains(&self, ino: Ino) -> bool {
        self.leased.contains(&ino)
    }

    /// Adds attributes.
    pub fn put(&mut self, attr: InodeAttr) {
        self.leased.put(attr.ino, attr);
    }

    /// Forgets attributes that are, or may be, not valid any more.
    pub fn forget(&mut self, ino: Ino) {
        self.leased.pop(&ino);
    }

    /// Drops everything that is valid only under leases.
    pub fn drop_leased(&mut self) {
        self.leased.clear();
    }

    /// Returns where the content of this version of a file is stored, if the file was open or listed lately.
    pub fn content(&mut self, ino: Ino, version: Version) -> Option<ExtentPage> {
        self.contents.get(&ino).filter(|page| page.version == version).cloned()
    }

    /// Remembers where the content of a file is stored.
    pub fn put_content(&mut self, ino: Ino, page: ExtentPage) {
        self.contents.put(ino, page);
    }

    /// Returns attributes of a directory as they were when it was removed here.
    pub fn removed_dir(&mut self, ino: Ino) -> Option<InodeAttr> {
        self.removed_dirs.get(&ino).cloned()
    }

    /// Notes that something was removed here.
    pub fn note_removed(&mut self, attr: &InodeAttr) {
        if attr.kind == FileKind::Directory {
            self.removed_dirs.put(attr.ino, attr.clone());
        }
    }
}
