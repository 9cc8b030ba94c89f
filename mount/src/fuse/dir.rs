//! Listings: pages from metad are larger than what the kernel asks for at a time, so a handle keeps its last page.

use super::Shared;
use super::attr::{dot_attr, file_attr, file_type};
use super::reply::{GENERATION, errno, gone_is_stale};
use crate::interrupt::{Patience, unless_signalled};
use client::Heard;
use client::namespace::Listed;
use fuser::{FileAttr, FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use lru::LruCache;
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::FsError;
use wire::ids::Ino;
use wire::op::DirEntry;

/// Entries in a page: several times what the kernel asks for at once.
const PAGE: u32 = 1024;
/// A page is listed from for this long; what is asked for later is fetched anew.
const FRESH: Duration = Duration::from_secs(1);
/// Offsets behind `.` and `..`; entries' cookies are above.
const BEHIND_DOT: u64 = 1;
const BEHIND_DOTS: u64 = 2;

/// Pages that are kept, of the directories that were listed last: others are fetched again.
const PAGES: usize = 128;

/// What a request for a part of a directory asks for.
pub(super) struct Asked {
    /// The thread that waits.
    pub tid: u32,
    pub dir: Ino,
    pub fh: u64,
    /// Behind this entry.
    pub offset: u64,
}

/// An open directory.
pub(super) struct Listing {
    pub heard: Heard,
}

/// The last page of open directories, by handle.
pub(super) struct Pages {
    kept: Mutex<LruCache<u64, Arc<Page>>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { kept: Mutex::new(LruCache::new(NonZeroUsize::new(PAGES).expect("not zero"))) }
    }
}

impl Pages {
    /// A directory is closed.
    pub(super) fn forget(&self, fh: u64) {
        self.kept.lock().pop(&fh);
    }
}

struct Page {
    parent: Ino,
    /// The page begins behind this cookie.
    after: u64,
    /// Ordered by cookie.
    entries: Vec<DirEntry>,
    end: bool,
    plus: bool,
    fetched_at: Instant,
}

impl Page {
    /// Index of the first entry behind `after`, when this page can tell.
    fn index_behind(&self, after: u64, plus: bool) -> Option<usize> {
        if (plus && !self.plus) || self.fetched_at.elapsed() > FRESH || after < self.after {
            return None;
        }
        let index = self.entries.partition_point(|entry| entry.cookie <= after);
        (index < self.entries.len() || self.end).then_some(index)
    }

    /// Where listing goes on behind an entry. Entries that share a cookie are listed again rather than left out.
    fn offset_behind(&self, index: usize) -> u64 {
        let cookie = self.entries[index].cookie;
        let next_shares_it = self.entries.get(index + 1).is_some_and(|next| next.cookie == cookie);
        if next_shares_it { cookie - 1 } else { cookie }
    }
}

impl Shared {
    /// A page that holds what is behind a cookie, and where in it.
    async fn page(&self, asked: &Asked, plus: bool) -> Result<(Arc<Page>, usize), FsError> {
        let Asked { tid, dir, fh, offset } = *asked;
        let after = if offset <= BEHIND_DOTS { 0 } else { offset };
        // `rewinddir` shows what is there now.
        let kept = self.pages.kept.lock().get(&fh).cloned().filter(|_| offset > 0);
        if let Some((page, index)) = kept.and_then(|page| page.index_behind(after, plus).map(|index| (page, index))) {
            return Ok((page, index));
        }
        let listing = self.client.readdir(dir, after, PAGE, plus);
        let listed = unless_signalled(tid, Patience::UntilEnding, listing).await.map_err(gone_is_stale)?;
        let Listed { parent, entries, end } = listed;
        let page = Arc::new(Page { parent, after, entries, end, plus, fetched_at: Instant::now() });
        self.pages.kept.lock().put(fh, page.clone());
        Ok((page, 0))
    }

    pub(super) async fn list(&self, asked: Asked, mut reply: ReplyDirectory) {
        match self.fill(&asked, &mut reply).await {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    async fn fill(&self, asked: &Asked, reply: &mut ReplyDirectory) -> Result<(), FsError> {
        let (page, first) = self.page(asked, false).await?;
        let Asked { dir, offset, .. } = *asked;
        let mut dot =
            |at, ino: Ino, name: &str| offset < at && reply.add(INodeNo(ino.0), at, FileType::Directory, name);
        if dot(BEHIND_DOT, dir, ".") || dot(BEHIND_DOTS, page.parent, "..") {
            return Ok(());
        }
        for (index, entry) in page.entries.iter().enumerate().skip(first) {
            let (number, kind) = (INodeNo(entry.ino.0), file_type(entry.kind));
            if reply.add(number, page.offset_behind(index), kind, OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn list_plus(&self, asked: Asked, mut reply: ReplyDirectoryPlus) {
        match self.fill_plus(&asked, &mut reply).await {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    async fn fill_plus(&self, asked: &Asked, reply: &mut ReplyDirectoryPlus) -> Result<(), FsError> {
        let (page, first) = self.page(asked, true).await?;
        let Asked { dir, offset, .. } = *asked;
        let mut add = |at: u64, name: &[u8], attr: &FileAttr, trust: Duration| {
            reply.add(attr.ino, at, OsStr::from_bytes(name), &trust, attr, GENERATION)
        };
        let mut dot = |at, ino, name| offset < at && add(at, name, &dot_attr(ino), Duration::ZERO);
        if dot(BEHIND_DOT, dir, b".".as_slice()) || dot(BEHIND_DOTS, page.parent, b"..") {
            return Ok(());
        }
        for (index, entry) in page.entries.iter().enumerate().skip(first) {
            let Some(listed) = &entry.attr else { continue };
            // The page may be a while old.
            let found = self.client.known_attr(listed.ino).unwrap_or_else(|| listed.clone());
            let trust = self.attr_trust(&found).min(self.name_trust(dir, &entry.name, Some(found.ino)));
            if add(page.offset_behind(index), &entry.name, &file_attr(&found), trust) {
                break;
            }
        }
        Ok(())
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
