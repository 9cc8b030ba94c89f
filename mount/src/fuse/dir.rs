//! Listings, made from pages.

use super::Shared;
use super::attr::{dot_attr, file_type};
use super::pages::Page;
use super::reply::{GENERATION, errno, gone_is_stale};
use crate::interrupt::{Patience, unless_signalled};
use client::Listed;
use fuser::{FileAttr, FileType, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::FsError;
use wire::ids::Ino;

/// Entries in a page: several times what the kernel asks for at once.
const PAGE_ENTRIES: u32 = 1024;
/// Offsets behind `.` and `..`; entries' cookies are above.
const BEHIND_DOT: u64 = 1;
const BEHIND_DOTS: u64 = 2;

/// What a request for a part of a directory asks for.
pub(super) struct Asked {
    /// The thread that waits.
    pub tid: u32,
    pub dir: Ino,
    pub fh: u64,
    /// Behind this entry.
    pub offset: u64,
}

impl Shared {
    /// Returns a page that holds the entry behind a cookie, and its index in the page.
    async fn page(&self, asked: &Asked, plus: bool) -> Result<(Arc<Page>, usize), FsError> {
        let Asked { tid, dir, fh, offset } = *asked;
        let after = if offset <= BEHIND_DOTS { 0 } else { offset };
        // `rewinddir` shows the directory as it is now.
        let cached = self.pages.of(fh).filter(|_| offset > 0);
        if let Some((page, index)) = cached.and_then(|page| page.index_behind(after, plus).map(|index| (page, index))) {
            return Ok((page, index));
        }
        let listing = self.client.readdir(dir, after, PAGE_ENTRIES, plus);
        let listed = unless_signalled(tid, Patience::UntilEnding, listing).await.map_err(gone_is_stale)?;
        let Listed { parent, entries, end } = listed;
        let page = Arc::new(Page { parent, after, entries, end, plus, fetched_at: Instant::now() });
        self.pages.put(fh, page.clone());
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
        let nodes = self.nodes;
        let mut dot =
            |at, ino: Ino, name: &str| offset < at && reply.add(nodes.number(ino), at, FileType::Directory, name);
        if dot(BEHIND_DOT, dir, ".") || dot(BEHIND_DOTS, page.parent, "..") {
            return Ok(());
        }
        for (index, entry) in page.entries.iter().enumerate().skip(first) {
            let (number, kind) = (nodes.number(entry.ino), file_type(entry.kind));
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
        let mut dot = |at, ino, name| offset < at && add(at, name, &dot_attr(self.nodes.number(ino)), Duration::ZERO);
        if dot(BEHIND_DOT, dir, b".".as_slice()) || dot(BEHIND_DOTS, page.parent, b"..") {
            return Ok(());
        }
        for (index, entry) in page.entries.iter().enumerate().skip(first) {
            let Some(listed) = &entry.attr else { continue };
            // The page may be some time old.
            let found = self.client.known_attr(listed.ino).unwrap_or_else(|| listed.clone());
            let trust = self.attr_trust(&found).min(self.name_trust(dir, &entry.name, Some(found.ino)));
            if add(page.offset_behind(index), &entry.name, &self.file_attr(&found), trust) {
                break;
            }
        }
        Ok(())
    }
}
