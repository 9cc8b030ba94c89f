//! Pages of directories, as metad answered. Pure.

use super::Mark;
use crate::recent::lru;
use lru::LruCache;
use std::sync::Arc;
use wire::ids::Ino;
use wire::op::DirEntry;

/// The most pages of listings that are remembered, and entries in all of them.
const PAGES_MAX: usize = 4096;
const PAGE_ENTRIES_MAX: usize = 65_536;

/// Part of a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The directory's parent; the root's is the root.
    pub parent: Ino,
    /// Without `.` and `..`.
    pub entries: Vec<DirEntry>,
    /// Whether no entries follow.
    pub end: bool,
}

/// The question that a page answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageKey {
    /// The directory.
    pub dir: Ino,
    /// The page begins behind this cookie; 0 for the start.
    pub after: u64,
    /// The number of entries.
    pub limit: u32,
    /// Whether entries come with attributes.
    pub plus: bool,
}

/// Pages, and the mark of each.
pub struct Listings {
    pages: LruCache<PageKey, (Arc<Listed>, Mark)>,
    /// Number of entries in them.
    entries: usize,
}

impl Default for Listings {
    fn default() -> Self {
        Self { pages: lru(PAGES_MAX), entries: 0 }
    }
}

impl Listings {
    /// Returns a page and its mark.
    pub fn get(&mut self, key: PageKey) -> Option<(Arc<Listed>, Mark)> {
        self.pages.get(&key).cloned()
    }

    /// Adds a page. The oldest ones make room.
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

    /// Forgets a page that is not valid any more.
    pub fn forget(&mut self, key: PageKey) {
        if let Some((listed, _)) = self.pages.pop(&key) {
            self.entries -= listed.entries.len();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.entries = 0;
    }
}
