//! Attributes of inodes, and where the content of small files is stored, as metad answered. Pure.

use super::INODES_MAX;
use crate::recent::lru;
use lru::LruCache;
use wire::attr::{FileKind, InodeAttr};
use wire::ids::{Ino, Version};
use wire::op::ExtentPage;

/// Small files for which it is remembered where their content is stored; a part of it may be inline.
const CONTENTS_MAX: usize = 8192;
/// Most bytes of memory that this takes.
const CONTENT_BYTES_MAX: usize = 16 << 20;
/// Removed directories whose attributes are remembered.
const REMOVED_DIRS_MAX: usize = 4096;

/// Attributes, and where content is stored.
pub struct Attrs {
    leased: LruCache<Ino, InodeAttr>,
    /// Extents of small files that were open or listed lately. They are valid for one version of the file.
    contents: LruCache<Ino, ExtentPage>,
    /// Bytes of memory that they take.
    content_bytes: usize,
    /// Directories that were removed here: a process may still be in one, or have it open.
    removed_dirs: LruCache<Ino, InodeAttr>,
}

impl Default for Attrs {
    fn default() -> Self {
        Self {
            leased: lru(INODES_MAX),
            contents: lru(CONTENTS_MAX),
            content_bytes: 0,
            removed_dirs: lru(REMOVED_DIRS_MAX),
        }
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
        self.content_bytes += page.memory();
        // One that it replaces, or the oldest one, if there are too many.
        let gone = self.contents.push(ino, page);
        self.content_bytes -= gone.map_or(0, |(_, page)| page.memory());
        while self.content_bytes > CONTENT_BYTES_MAX {
            let Some((_, oldest)) = self.contents.pop_lru() else { break };
            self.content_bytes -= oldest.memory();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use wire::extent::{Extent, Source};

    #[test]
    fn contents_are_bounded_by_bytes_and_the_last_ones_stay() {
        let mut attrs = Attrs::default();
        let inline = 64 << 10;
        let page = |version: u64| ExtentPage {
            version: Version(version),
            size: inline as u64,
            extents: vec![Extent {
                file_off: 0,
                len: inline as u64,
                version: Version(version),
                source: Source::Inline(vec![7; inline]),
            }],
            more_from: None,
        };
        for round in 0..3 {
            for ino in 1..=1000 {
                attrs.put_content(Ino(ino), page(round));
                assert!(attrs.content_bytes <= CONTENT_BYTES_MAX);
            }
        }
        let kept = (1..=1000).filter(|ino| attrs.content(Ino(*ino), Version(2)).is_some()).count();
        assert!((200..=256).contains(&kept), "{kept}");
        assert_eq!(attrs.content_bytes, attrs.contents.iter().map(|(_, page)| page.memory()).sum::<usize>());
        assert!(attrs.content(Ino(1000), Version(2)).is_some() && attrs.content(Ino(1000), Version(1)).is_none());
    }
}
