//! Compaction: a chunk in many small pieces is rewritten as few large blocks, so that reading it is sequential again
//! and its list of extents short.
//!
//! The content stays the same, but a compaction is a commit: it makes a new version, and a session that has written to
//! the same chunk on an older version would be in conflict with it. So a chunk is left alone until its file has been at
//! rest for a while and the kernel's pages of it show what it has now, and the commit is refused when anyone was faster
//! (I6). Sessions that have the file open learn of the new version by the event that each commit causes.

use crate::block::fetch::Fetcher;
use crate::buffers::Buffers;
use crate::commit::committer::Committer;
use crate::commit::fragments::Fragments;
use crate::commit::plan::Plan;
use crate::error::unexpected_reply;
use crate::file::dirty::Packed;
use crate::file::sealed::{Stored, writes_of};
use crate::file::state::FileState;
use crate::kernel::{Kernel, Notice};
use crate::known::leased::LeasedSession;
use crate::open::OpenFiles;
use crate::view::View;
use crate::writeback::Order;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::extent::{Extent, Source};
use wire::ids::{ChunkIndex, Ino};
use wire::limits::{BLOCK_BYTES_MAX, CHUNK_BYTES};
use wire::op::{ConflictPolicy, Op, OpReply, Read, ReadReply};

/// A file that nobody has changed for this long is at rest.
const AT_REST: Duration = Duration::from_secs(3);
/// Extents of at least this length are left as they are.
const LARGE_EXTENT_BYTES: u64 = 1 << 20;

/// Why a chunk was not compacted.
enum Missed {
    /// The file is still being written.
    Busy(u32),
    Failed(FsError),
}

impl From<FsError> for Missed {
    fn from(error: FsError) -> Self {
        Self::Failed(error)
    }
}

/// Compacts chunks.
pub(crate) struct Compactor {
    pub session: Arc<LeasedSession>,
    pub view: Arc<View>,
    pub order: Arc<Order>,
    pub open_files: Arc<OpenFiles>,
    /// Chunks in many pieces.
    pub fragments: Arc<Fragments>,
    pub committer: Arc<Committer>,
    pub fetcher: Arc<Fetcher>,
    pub kernel: Arc<Kernel>,
    pub buffers: Arc<Buffers>,
}

impl Compactor {
    /// Compacts what is queued, one chunk after the other, as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        loop {
            let Some((ino, chunk)) = self.fragments.take() else {
                self.fragments.wait().await;
                continue;
            };
            match self.compact(ino, chunk).await {
                Ok(()) => {}
                Err(Missed::Busy(pieces)) => self.fragments.add(ino, chunk, pieces),
                Err(Missed::Failed(error)) => {
                    tracing::debug!(%ino, chunk = chunk.0, %error, "not compacted; the next commit to it asks again");
                }
            }
        }
    }

    async fn compact(&self, ino: Ino, chunk: ChunkIndex) -> Result<(), Missed> {
        let before = self.view.attr(ino).await?;
        tokio::time::sleep(AT_REST).await;
        let attr = self.view.attr(ino).await?;
        let (extents, at_rest) = self.chunk_extents(&attr, chunk).await?;
        let pieces = extents.len() as u32;
        let open = self.open_files.get(ino);
        if before.version != attr.version || !at_rest || open.as_deref().is_some_and(is_busy) {
            return Err(Missed::Busy(pieces));
        }
        let mut writes = Vec::new();
        let mut joined = 0;
        for run in joinable(&extents) {
            joined += run.len();
            let packed = self.gather_run(run).await?;
            let hash = self.committer.uploader().upload(packed.bytes.clone()).await?;
            writes.extend(writes_of(&packed, Some(&Stored { hash, block: packed.bytes.clone(), base: 0 })));
        }
        if open.as_deref().is_some_and(is_busy) {
            return Err(Missed::Busy(pieces));
        }
        self.fragments.settle(ino, chunk, pieces - joined as u32 + writes.len() as u32);
        if writes.is_empty() {
            return Ok(());
        }
        let op = Plan::compaction(&attr, writes).op(ino, ConflictPolicy::Fail);
        self.commit_compacted(open, op, &attr).await?;
        tracing::debug!(%ino, chunk = chunk.0, pieces, joined, "compacted");
        Ok(())
    }

    /// Commits between an open file's own flushes, so that these know of the new version.
    async fn commit_compacted(&self, open: Option<Arc<FileState>>, op: Op, attr: &InodeAttr) -> Result<(), FsError> {
        let _barred = self.order.bar([attr.ino]).await?;
        let _one = match &open {
            Some(file) => Some(file.begin_flush().await),
            None => None,
        };
        let OpReply::Committed { attr: after, .. } = self.session.one_until_answered(op).await? else {
            return Err(FsError::Io);
        };
        if after.version == attr.version.next() {
            self.kernel.follows(attr.ino, attr.version, after.version);
        }
        let open = open.clone().or_else(|| self.open_files.get(attr.ino));
        if open.is_some_and(|file| file.changed_here(&after, None)) {
            self.kernel.notify(Notice::Changed(attr.ino));
        }
        Ok(())
    }

    /// Returns all extents of a chunk, and whether they belong to the version of `attr`.
    async fn chunk_extents(&self, attr: &InodeAttr, chunk: ChunkIndex) -> Result<(Vec<Extent>, bool), FsError> {
        let end = chunk.start() + CHUNK_BYTES;
        let (mut from, mut extents, mut at_rest) = (chunk.start(), Vec::new(), true);
        loop {
            let read = Read::Extents { ino: attr.ino, off: from, len: end - from };
            let ReadReply::Extents(page) = self.session.read(read).await? else { return Err(unexpected_reply()) };
            at_rest &= page.version == attr.version;
            extents.extend(page.extents);
            match page.more_from {
                Some(more) => from = more,
                None => return Ok((extents, at_rest)),
            }
        }
    }

    /// Returns the content of adjacent extents as one block.
    async fn gather_run(&self, run: &[Extent]) -> Result<Packed, FsError> {
        let mut content = self.buffers.take();
        for extent in run {
            match &extent.source {
                Source::Inline(bytes) => content.extend_from_slice(bytes),
                Source::Zero => content.resize(content.len() + extent.len as usize, 0),
                Source::Block { hash, form, offset } => {
                    form.check()?;
                    let range = *offset as usize..*offset as usize + extent.len as usize;
                    content.extend_from_slice(&self.fetcher.fetch_range(*hash, form.stored_len, range).await?);
                }
            }
        }
        let pieces = vec![(run[0].file_off, 0, content.len())];
        Ok(Packed { bytes: self.buffers.freeze(content), pieces })
    }
}

/// Returns whether a compaction of an open file would be in conflict with something: with what waits to be committed, or
/// with pages that show an earlier content. Their programs have not seen what others have written since, and that gets the
/// compaction's version.
fn is_busy(file: &FileState) -> bool {
    file.is_dirty() || !file.pages_show_present()
}

/// Returns runs of small extents that follow each other without a gap and fit into one block.
fn joinable(extents: &[Extent]) -> Vec<&[Extent]> {
    let mut runs = Vec::new();
    let mut start = 0;
    while start < extents.len() {
        let mut range: Range<u64> = extents[start].range();
        let mut end = start + 1;
        if range.end - range.start < LARGE_EXTENT_BYTES {
            while let Some(next) = extents.get(end)
                && next.file_off == range.end
                && next.len < LARGE_EXTENT_BYTES
                && next.range().end - range.start <= BLOCK_BYTES_MAX as u64
            {
                range.end = next.range().end;
                end += 1;
            }
        }
        if end - start > 1 {
            runs.push(&extents[start..end]);
        }
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::Timestamp;
    use wire::ids::Version;

    /// Guards I6.
    #[test]
    fn a_file_whose_pages_show_an_earlier_content_is_left_alone() {
        let attr = |version| InodeAttr { version: Version(version), ..crate::testing::attr() };
        let file = FileState::new(attr(1), None, Arc::default(), 4 << 20);
        assert!(!is_busy(&file));
        file.refresh(&attr(2), None);
        assert!(is_busy(&file), "the kernel may have pages of version 1");
        let drop = file.begin_drop();
        file.end_drop(drop);
        assert!(!is_busy(&file));
        file.write(Some(0), b"content", false, Timestamp::default()).unwrap();
        assert!(is_busy(&file));
    }

    #[test]
    fn neighbours_are_joined_up_to_a_block_and_never_over_a_hole() {
        let extent = |file_off, len| Extent { file_off, len, source: Source::Zero, version: Version(1) };
        let small: Vec<Extent> = (0..2048).map(|number| extent(number * 4096, 4096)).collect();
        let joined: Vec<usize> = joinable(&small).iter().map(|run| run.len()).collect();
        assert_eq!(joined, [1024, 1024]);
        let holes = [extent(0, 10), extent(20, 10), extent(30, 10), extent(40, LARGE_EXTENT_BYTES)];
        let joined: Vec<u64> = joinable(&holes).iter().map(|run| run[0].file_off).collect();
        assert_eq!(joined, [20]);
    }
}
