//! Methods for pages that a program has changed through a mapping: what they are based on, and what of them a program
//! may not have changed.

use super::{Content, FileState};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;
use wire::FsError;
use wire::attr::Timestamp;
use wire::extent::{Extent, ExtentWrite};
use wire::ids::{ChunkIndex, Version};

/// What became of a page that the kernel wrote back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mapped {
    /// The first bytes of it are taken, and the window holds so many more.
    Taken { len: usize, added: usize },
    /// Something has to be done before.
    Later,
}

/// When a page is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    /// If nothing needs to be done before.
    AtOnce,
    /// If no uncommitted content is based on another version; it has to be committed before.
    Alike,
    /// In any case: all uncommitted content is then based on the older version.
    Anyway,
}

/// The kernel is dropping all pages of a file.
pub(crate) struct Drop {
    pub number: u64,
    /// Closed when the reads have ended that were under way.
    pub reads: watch::Receiver<()>,
}

impl FileState {
    /// Notes that the kernel begins to drop all pages.
    pub(crate) fn begin_drop(&self) -> Drop {
        let next = Arc::new(watch::Sender::new(()));
        let mut content = self.content.lock();
        let reads = std::mem::replace(&mut content.reads, next);
        Drop { number: content.pages.begin_drop(), reads: reads.subscribe() }
    }

    /// Notes that the kernel is about to drop all pages by itself, and to wait for the reads under way. Returns the
    /// number of the drop.
    pub(crate) fn begin_drop_by_kernel(&self) -> u64 {
        self.content.lock().pages.begin_drop()
    }

    /// Notes that the kernel has dropped the pages that it had when the drop of this number began.
    pub(crate) fn end_drop(&self, number: u64) {
        let mut content = self.content.lock();
        let needed = content.needed();
        content.pages.end_drop(number, needed);
    }

    /// Adds bytes of pages that a program has changed through a mapping, all that show the same content. Uncommitted
    /// content has one base for all of it.
    ///
    /// # Errors
    /// As [`FileState::write`].
    pub(crate) fn write_mapped(&self, offset: u64, data: &[u8], now: Timestamp, when: When) -> Result<Mapped, FsError> {
        debug_assert!(!data.is_empty());
        let mut content = self.content.lock();
        if content.refused {
            return Err(FsError::Stale);
        }
        let is_plain = !content.pending.is_scattered() && !content.is_contended() && content.pages.show_present();
        if when == When::AtOnce && !is_plain {
            return Ok(Mapped::Later);
        }
        let (shown, end) = content.pages.shown(&(offset..offset + data.len() as u64));
        // I6: the program has seen this version, however late its page comes.
        let (seen, own) = match shown {
            Some(earlier) => (earlier.version(), earlier.own().to_vec()),
            None => (content.extents.version(), Vec::new()),
        };
        if content.pending.is_empty() {
            (content.base, content.own) = (seen, own);
        } else if content.base != seen && when != When::Anyway {
            return Ok(Mapped::Later);
        } else if seen < content.base {
            // All that commits of ours have made since `seen` is among these.
            (content.base, content.own) = (seen, own);
        }
        let len = (end - offset) as usize;
        let added = content.pending.write_mapped(offset, &data[..len], now);
        content.size = content.size.max(end);
        content.dropped = false;
        Ok(Mapped::Taken { len, added })
    }

    /// Returns whether uncommitted pages lie over this part.
    pub(crate) fn is_below_pages(&self, part: &Range<u64>) -> bool {
        self.content.lock().pending.mapped().overlaps(part)
    }

    /// Returns whether they are known to hide there what others have changed.
    pub(crate) fn hides_changes(&self, part: &Range<u64>) -> bool {
        self.content.lock().hidden_since(part).is_some()
    }

    /// Returns a chunk of which the content must be learned before others change it, because pages are compared with it
    /// then: one of this part, or one of uncommitted pages.
    pub(crate) fn unknown_below_pages(&self, part: Option<&Range<u64>>) -> Option<ChunkIndex> {
        let content = self.content.lock();
        let unknown = |range: &Range<u64>| content.extents.first_unknown(range);
        match part {
            Some(part) => unknown(part),
            None if content.base != content.extents.version() => None,
            None => content.pending.mapped().iter().find_map(unknown),
        }
    }

    /// Returns which parts of these writes came in pages of which a program may have changed some bytes only.
    pub(crate) fn mapped_in(&self, writes: &[ExtentWrite]) -> Vec<Range<u64>> {
        let content = self.content.lock();
        content.pending.mapped_in(writes.iter().map(|write| write.file_off..write.file_off + write.len))
    }

    /// Returns the version of the known content.
    pub(crate) fn known_version(&self) -> Version {
        self.content.lock().extents.version()
    }

    /// Returns where the content of this version is stored in these ranges; `None` when that is not known any more.
    pub(crate) fn content_of(&self, version: Version, ranges: &[Range<u64>]) -> Option<Vec<Vec<Extent>>> {
        let content = self.content.lock();
        let Content { extents, pages, .. } = &*content;
        // What the pages show has more of what was written here.
        let known = pages.content(version).or((extents.version() == version).then_some(extents))?;
        let part = |range: &Range<u64>| known.first_unknown(range).is_none().then(|| known.overlapping(range));
        ranges.iter().map(part).collect()
    }

    /// Returns the content of a range in the first sealed pieces: file offsets and bytes.
    pub(crate) fn sealed_in(&self, pieces: usize, range: &Range<u64>) -> Vec<(u64, Bytes)> {
        let content = self.content.lock();
        let sealed = content.pending.sealed().iter().take(pieces);
        sealed.flat_map(|sealed| sealed.within(range)).collect()
    }
}
