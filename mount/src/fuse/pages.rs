//! Pages of listings. Those from metad are larger than what the kernel asks for at a time, so each handle caches its
//! last one.

use client::LossesReported;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::ids::Ino;
use wire::op::DirEntry;

/// A page is used for this long. Afterwards it is fetched anew.
const PAGE_LIFETIME: Duration = Duration::from_secs(1);

/// Most pages in the cache, of the directories that were listed last.
const PAGES_MAX: usize = 128;

/// An open directory.
pub(super) struct Listing {
    pub losses_reported: LossesReported,
}

/// The last page of open directories, by handle.
pub(super) struct Pages {
    cached: Mutex<LruCache<u64, Arc<Page>>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { cached: Mutex::new(LruCache::new(NonZeroUsize::new(PAGES_MAX).expect("not zero"))) }
    }
}

impl Pages {
    /// The last page of an open directory.
    pub(super) fn of(&self, fh: u64) -> Option<Arc<Page>> {
        self.cached.lock().get(&fh).cloned()
    }

    /// Replaces the last page of an open directory.
    pub(super) fn put(&self, fh: u64, page: Arc<Page>) {
        self.cached.lock().put(fh, page);
    }

    /// Forgets the page of a directory that is closed.
    pub(super) fn forget(&self, fh: u64) {
        self.cached.lock().pop(&fh);
    }
}

/// Part of a directory.
pub(super) struct Page {
    pub parent: Ino,
    /// The page begins behind this cookie.
    pub after: u64,
    /// Ordered by cookie.
    pub entries: Vec<DirEntry>,
    /// Nothing follows it.
    pub end: bool,
    /// Its entries have attributes.
    pub plus: bool,
    pub fetched_at: Instant,
}

impl Page {
    /// Index of the first entry behind `after`, if it is on this page.
    pub(super) fn index_behind(&self, after: u64, plus: bool) -> Option<usize> {
        if (plus && !self.plus) || self.fetched_at.elapsed() > PAGE_LIFETIME || after < self.after {
            return None;
        }
        let index = self.entries.partition_point(|entry| entry.cookie <= after);
        (index < self.entries.len() || self.end).then_some(index)
    }

    /// Offset at which a listing goes on behind an entry. Entries that share a cookie are listed again rather than left
    /// out.
    pub(super) fn offset_behind(&self, index: usize) -> u64 {
        let cookie = self.entries[index].cookie;
        let next_shares_it = self.entries.get(index + 1).is_some_and(|next| next.cookie == cookie);
        if next_shares_it { cookie - 1 } else { cookie }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::FileKind;

    fn page(cookies: &[u64], end: bool) -> Page {
        let entry = |cookie: &u64| DirEntry {
            name: cookie.to_string().into_bytes(),
            ino: Ino(2000 + cookie),
            kind: FileKind::Regular,
            cookie: *cookie,
            attr: None,
            content: None,
        };
        Page {
            parent: Ino::ROOT,
            after: 0,
            entries: cookies.iter().map(entry).collect(),
            end,
            plus: false,
            fetched_at: Instant::now(),
        }
    }

    #[test]
    fn a_page_answers_for_what_it_holds_and_no_more() {
        let full = page(&[3, 5, 9], false);
        assert_eq!(full.index_behind(0, false), Some(0));
        assert_eq!(full.index_behind(5, false), Some(2));
        assert_eq!(full.index_behind(9, false), None, "more may follow");
        assert_eq!(full.index_behind(3, true), None, "it has no attributes");
        assert_eq!(page(&[3, 5, 9], true).index_behind(9, false), Some(3), "nothing follows");
    }

    #[test]
    fn entries_that_share_a_cookie_are_not_left_out() {
        let shared = page(&[3, 7, 7, 9], true);
        let resume = shared.offset_behind(1);
        assert_eq!(shared.index_behind(resume, false), Some(1), "both entries of cookie 7 are listed again");
        assert_eq!(shared.offset_behind(2), 7);
    }
}
