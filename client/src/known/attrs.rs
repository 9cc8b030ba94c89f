//! Attributes of inodes, and where the content of small files lies, as metad answered. Pure.

use super::{INODES_MAX, lru};
use lru::LruCache;
use wire::attr::{FileKind, InodeAttr};
use wire::ids::{Ino, Version};
use wire::op::ExtentPage;

/// Small files of which it is remembered where their content lies; a part of it may be within.
const CONTENTS_MAX: usize = 8192;
/// Removed directories whose attributes are remembered.
const REMOVED_DIRS_MAX: usize = 4096;

/// Attributes and places of content.
pub struct Attrs {
    leased: LruCache<Ino, InodeAttr>,
    /// Extents of small files that were open lately: right as long as their version is the file's.
    contents: LruCache<Ino, ExtentPage>,
    /// Directories that were removed here: somebody may still be in one, or have it open.
    removed_dirs: LruCache<Ino, InodeAttr>,
}

impl Default for Attrs {
    fn default() -> Self {
        Self { leased: lru(INODES_MAX), contents: lru(CONTENTS_MAX), removed_dirs: lru(REMOVED_DIRS_MAX) }
    }
}

impl Attrs {
    /// Attributes that were answered under a lease.
    pub fn get(&mut self, ino: Ino) -> Option<&InodeAttr> {
        self.leased.get(&ino)
    }

    /// Whether there are any of an inode.
    pub fn contains(&self, ino: Ino) -> bool {
        self.leased.contains(&ino)
    }

    /// Takes attributes in.
    pub fn put(&mut self, attr: InodeAttr) {
        self.leased.put(attr.ino, attr);
    }

    /// They are not right any more, or may be.
    pub fn forget(&mut self, ino: Ino) {
        self.leased.pop(&ino);
    }

    /// Everything that leases were good for is gone.
    pub fn drop_leased(&mut self) {
        self.leased.clear();
    }

    /// Where the content of this version of a file lies, if it was open lately.
    pub fn content(&mut self, ino: Ino, version: Version) -> Option<ExtentPage> {
        self.contents.get(&ino).filter(|page| page.version == version).cloned()
    }

    /// Remembers where the content of a file lies.
    pub fn put_content(&mut self, ino: Ino, page: ExtentPage) {
        self.contents.put(ino, page);
    }

    /// Attributes of a directory that was removed here, as it was then.
    pub fn removed_dir(&mut self, ino: Ino) -> Option<InodeAttr> {
        self.removed_dirs.get(&ino).cloned()
    }

    /// Something was removed here.
    pub fn note_removed(&mut self, attr: &InodeAttr) {
        if attr.kind == FileKind::Directory {
            self.removed_dirs.put(attr.ino, attr.clone());
        }
    }
}
