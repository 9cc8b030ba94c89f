//! What is known of a file's committed content: where each piece of it is stored. Pure: no I/O, no clock.
//!
//! Extents are learned by whole chunks. All of them belong to one version of the content; when metad has a newer one,
//! they are forgotten and learned anew, unless the change was this client's own.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use wire::extent::{Extent, ExtentWrite, Source};
use wire::ids::{ChunkIndex, Version};
use wire::limits::CHUNK_BYTES;
use wire::op::ExtentPage;

/// Inline extents that a file's known chunks may accumulate before its small writes go to blocks.
const INLINE_EXTENTS_MAX: usize = 256;
/// A small file with more extents than this, or with more inline bytes, is not remembered after it was closed.
const SMALL_EXTENTS_MAX: usize = 4;
const SMALL_INLINE_BYTES_MAX: usize = 1024;
/// Beyond the limit, the inline extents are counted anew after so many small writes.
const RECOUNT_EVERY: usize = 64;

/// Committed content of one file, for the chunks that are known.
pub(crate) struct Extents {
    /// Version of the content that the extents belong to.
    version: Version,
    /// The oldest version of which some of them may be: listings were taken that span versions, because others committed
    /// all the time.
    torn_since: Option<Version>,
    /// Extents of the chunks in `loaded`, by file offset.
    by_offset: BTreeMap<u64, Extent>,
    loaded: HashSet<ChunkIndex>,
    /// The number of inline extents, at most: replaced ones are counted until the next recount.
    inlines: usize,
}

impl Extents {
    /// Nothing is known of the content but its version.
    pub fn unknown(version: Version) -> Self {
        Self { version, torn_since: None, by_offset: BTreeMap::new(), loaded: HashSet::new(), inlines: 0 }
    }

    /// Returns the version that the extents belong to.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the oldest version of which some of the extents may be, if they are a mixture of versions.
    pub fn torn_since(&self) -> Option<Version> {
        self.torn_since
    }

    /// Forgets all extents: the content has this version now.
    pub fn forget(&mut self, version: Version) {
        *self = Self::unknown(version);
    }

    /// Adds pages of extents that begin at a chunk's start and belong to the known version, or some to an older one. Chunks that the pages
    /// describe wholly are known then.
    pub fn take_pages(&mut self, asked: Range<u64>, pages: &[ExtentPage]) {
        let more_from = pages.last().and_then(|page| page.more_from);
        let end = more_from.map_or(asked.end, |more| more - more % CHUNK_BYTES).min(asked.end);
        let oldest = pages.iter().map(|page| page.version).min().filter(|oldest| *oldest < self.version);
        self.torn_since = self.torn_since.into_iter().chain(oldest).min();
        self.cut(&(asked.start..end));
        for extent in pages.iter().flat_map(|page| &page.extents).filter(|extent| extent.file_off < end) {
            self.inlines += usize::from(matches!(extent.source, Source::Inline(_)));
            self.by_offset.insert(extent.file_off, extent.clone());
        }
        self.loaded.extend((asked.start / CHUNK_BYTES..end / CHUNK_BYTES).map(|at| ChunkIndex::of(at * CHUNK_BYTES)));
    }

    /// Returns all extents of a small file of this size, if they are known and few.
    pub fn whole_page(&self, size: u64) -> Option<ExtentPage> {
        let whole = size <= CHUNK_BYTES && self.loaded.contains(&ChunkIndex::of(0));
        let small = self.by_offset.len() <= SMALL_EXTENTS_MAX
            && self.by_offset.values().map(Extent::inline_bytes).sum::<usize>() <= SMALL_INLINE_BYTES_MAX;
        (whole && small).then(|| ExtentPage {
            version: self.version,
            size,
            extents: self.by_offset.values().cloned().collect(),
            more_from: None,
        })
    }

    /// Applies a commit of ours that no other session's commit preceded: the content has this version now.
    pub fn apply(&mut self, writes: &[ExtentWrite], version: Version) {
        for write in writes {
            let range = write.file_off..write.file_off + write.len;
            self.cut(&range);
            let extent = Extent { file_off: write.file_off, len: write.len, source: write.source.clone(), version };
            self.by_offset.insert(write.file_off, extent);
        }
        self.version = version;
    }

    /// Cuts the content at this length, for a truncation by us alone: the content has this version now.
    pub fn truncate(&mut self, len: u64, version: Version) {
        self.cut(&(len..u64::MAX));
        self.version = version;
    }

    /// Returns whether small content may go inline into a chunk, and if so counts it. The chunk must be known to have
    /// little inline content, because all of it travels with every list of extents.
    pub fn take_inline_room(&mut self, chunk: ChunkIndex) -> bool {
        if !self.loaded.contains(&chunk) {
            return false;
        }
        if self.inlines >= INLINE_EXTENTS_MAX && self.inlines.is_multiple_of(RECOUNT_EVERY) {
            self.inlines = self.by_offset.values().filter(|extent| matches!(extent.source, Source::Inline(_))).count();
        }
        self.inlines += 1;
        self.inlines <= INLINE_EXTENTS_MAX
    }

    fn cut(&mut self, range: &Range<u64>) {
        let from = self.by_offset.range(..range.start).next_back().map_or(range.start, |(at, _)| *at);
        let touched: Vec<u64> = self
            .by_offset
            .range(from..range.end)
            .filter(|(_, extent)| extent.range().end > range.start)
            .map(|(at, _)| *at)
            .collect();
        for at in touched {
            let Some(extent) = self.by_offset.remove(&at) else { continue };
            let whole = extent.range();
            for part in [whole.start..range.start.max(whole.start), range.end.min(whole.end)..whole.end] {
                if part.start < part.end && !(part.start >= range.start && part.end <= range.end) {
                    let rest = extent.slice(&part);
                    self.by_offset.insert(rest.file_off, rest);
                }
            }
        }
    }

    /// Returns the known extents that overlap a range, in order.
    pub fn overlapping(&self, range: &Range<u64>) -> Vec<Extent> {
        let from = self.by_offset.range(..=range.start).next_back().map_or(range.start, |(at, _)| *at);
        self.by_offset
            .range(from..range.end)
            .map(|(_, extent)| extent)
            .filter(|extent| extent.range().end > range.start)
            .cloned()
            .collect()
    }

    /// Returns the first chunk of a range of which nothing is known.
    pub fn first_unknown(&self, range: &Range<u64>) -> Option<ChunkIndex> {
        (range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES))
            .map(|chunk| ChunkIndex::of(chunk * CHUNK_BYTES))
            .find(|chunk| !self.loaded.contains(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file_off: u64, len: u64) -> ExtentWrite {
        ExtentWrite { file_off, len, source: Source::Zero }
    }

    fn page(extents: Vec<Extent>, more_from: Option<u64>) -> ExtentPage {
        ExtentPage { version: Version(1), size: 0, extents, more_from }
    }

    fn inline(file_off: u64, len: u64) -> Extent {
        Extent { file_off, len, source: Source::Inline(vec![1; len as usize]), version: Version(1) }
    }

    fn ranges(extents: &Extents) -> Vec<Range<u64>> {
        extents.overlapping(&(0..u64::MAX)).iter().map(Extent::range).collect()
    }

    #[test]
    fn a_commit_of_ours_replaces_what_it_covers_and_leaves_the_rest() {
        let mut extents = Extents::unknown(Version(0));
        extents.apply(&[write(0, 100), write(200, 50)], Version(1));
        extents.apply(&[write(40, 170)], Version(2));
        assert_eq!(ranges(&extents), [0..40, 40..210, 210..250]);
        extents.apply(&[write(50, 10)], Version(3));
        assert_eq!(ranges(&extents), [0..40, 40..50, 50..60, 60..210, 210..250]);
        assert_eq!(extents.version(), Version(3));
        extents.truncate(55, Version(4));
        assert_eq!(ranges(&extents), [0..40, 40..50, 50..55]);
    }

    #[test]
    fn only_chunks_that_the_pages_describe_wholly_are_known() {
        let mut extents = Extents::unknown(Version(1));
        let asked = 0..3 * CHUNK_BYTES;
        let more_from = Some(2 * CHUNK_BYTES + 10);
        extents.take_pages(asked.clone(), &[page(vec![inline(0, 8), inline(2 * CHUNK_BYTES, 10)], more_from)]);
        assert_eq!(extents.first_unknown(&asked), Some(ChunkIndex::of(2 * CHUNK_BYTES)));
        assert_eq!(extents.first_unknown(&(0..2 * CHUNK_BYTES)), None);
        assert_eq!(
            ranges(&extents),
            std::iter::once(0..8).collect::<Vec<_>>(),
            "of the third chunk nothing is believed"
        );
        extents.forget(Version(2));
        assert_eq!(extents.first_unknown(&asked), Some(ChunkIndex::of(0)));
        assert!(ranges(&extents).is_empty());
    }

    #[test]
    fn small_writes_go_inline_until_the_chunk_has_many_and_again_once_they_were_replaced() {
        let mut extents = Extents::unknown(Version(1));
        assert!(!extents.take_inline_room(ChunkIndex::of(0)), "nothing is known of the chunk");
        extents.take_pages(0..CHUNK_BYTES, &[page(Vec::new(), None)]);
        let granted = (0..1000).filter(|_| extents.take_inline_room(ChunkIndex::of(0))).count();
        assert!(granted >= INLINE_EXTENTS_MAX, "none of them is there any more: {granted}");
        let many: Vec<Extent> = (0..INLINE_EXTENTS_MAX as u64).map(|number| inline(number * 10, 4)).collect();
        extents.take_pages(0..CHUNK_BYTES, &[page(many, None)]);
        extents.forget(Version(2));
        let many: Vec<Extent> = (0..INLINE_EXTENTS_MAX as u64).map(|number| inline(number * 10, 4)).collect();
        extents.take_pages(0..CHUNK_BYTES, &[page(many, None)]);
        assert!((0..1000).all(|_| !extents.take_inline_room(ChunkIndex::of(0))));
    }

    #[test]
    fn a_file_is_remembered_whole_only_while_it_is_in_few_pieces_with_little_inside() {
        let mut extents = Extents::unknown(Version(1));
        assert!(extents.whole_page(10).is_none());
        extents.take_pages(0..CHUNK_BYTES, &[page(vec![inline(0, 10)], None)]);
        assert_eq!(extents.whole_page(10).unwrap().extents, [inline(0, 10)]);
        assert!(extents.whole_page(CHUNK_BYTES + 1).is_none());
        extents.take_pages(0..CHUNK_BYTES, &[page(vec![inline(0, SMALL_INLINE_BYTES_MAX as u64 + 1)], None)]);
        assert!(extents.whole_page(2000).is_none());
        let pieces = (0..=SMALL_EXTENTS_MAX as u64).map(|number| inline(number * 10, 4)).collect();
        extents.take_pages(0..CHUNK_BYTES, &[page(pieces, None)]);
        assert!(extents.whole_page(50).is_none());
    }
}
