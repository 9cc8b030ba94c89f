//! Pages of directories, as metad answered. Pure.

use super::{Mark, lru};
use lru::LruCache;
use std::sync::Arc;
use wire::ids::Ino;
use wire::op::DirEntry;

/// Pages of listings that are remembered, and entries in all of them.
const PAGES_MAX: usize = 4096;
const PAGE_ENTRIES_MAX: usize = 65_536;

/// Part of a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The directory's parent; the root's is the root.
    pub parent: Ino,
    /// Without `.` and `..`.
    pub entries: Vec<DirEntry>,
    /// No entries follow.
    pub end: bool,
}

/// Part of a directory, as it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageKey {
    /// The directory.
    pub dir: Ino,
    /// Behind this cookie; 0 for the start.
    pub after: u64,
    /// So many entries.
    pub limit: u32,
    /// With attributes.
    pub plus: bool,
}

/// Pages, and since when they are known.
pub struct Listings {
    pages: LruCache<PageKey, (Arc<Listed>, Mark)>,
    /// Entries in them.
    entries: usize,
}

impl Default for Listings {
    fn default() -> Self {
        Self { pages: lru(PAGES_MAX), entries: 0 }
    }
}

impl Listings {
    /// A page, and since when it is known.
    pub fn get(&mut self, key: PageKey) -> Option<(Arc<Listed>, Mark)> {
        self.pages.get(&key).cloned()
    }

    /// Takes a page in; the oldest ones make room.
    pub fn put(&mut self, key: PageKey, listed: &Arc<Listed>, since: Mark) {
        self.entries += listed.entries.len();
        let replaced = self.pages.push(key, (listed.clone(), since));
        self.entries -= replaced.map_or(0, |(_, (listed, _))| listed.entries.len());
        while self.entries > PAGE_ENTRIES_MAX
            && let Some((_, (oldest, _))) = self.pages.pop_lru()
        {
            self.entries -= oldest.entries.len();
        }
    }

    /// A page is not right any more.
    pub fn forget(&mut self, key: PageKey) {
        if let Some((listed, _)) = self.pages.pop(&key) {
            self.entries -= listed.entries.len();
        }
    }

    /// Everything is forgotten.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.entries = 0;
    }
}
