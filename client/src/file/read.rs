//! Reading: committed content from blocks, what is not committed laid over it.

use super::dirty::lay;
use super::state::{FileState, Inner};
use crate::{Client, Notice};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use wire::FsError;
use wire::extent::{Extent, Source};
use wire::ids::ChunkIndex;
use wire::limits::CHUNK_BYTES;
use wire::op::{Read, ReadReply};

/// Reads this close to the end of the last one may be sequential: the kernel's readahead runs in parallel. Two in a row are:
/// one alone comes about by chance, and what is fetched for it is thousands of times what was asked for.
const NEAR_BYTES: u64 = 4 << 20;
/// Scattered reads up to this size fetch only their part of a large block.
const PART_BYTES_MAX: usize = 256 << 10;
/// Attempts at a consistent list of extents while others commit; then a list that spans versions has to do.
const LISTINGS: usize = 8;
/// Attempts at content that compaction or another session replaces while it is read.
const ATTEMPTS: usize = 3;

/// What a read is made of.
struct Plan {
    range: Range<u64>,
    extents: Vec<Extent>,
    /// What is not committed and lies over it, as it was when the extents were looked up.
    over: Vec<(u64, Bytes)>,
    /// Part of reading from one end to the other.
    sequential: bool,
}

/// Why there is no plan.
enum Step {
    /// It is read already.
    Done(Bytes),
    /// The extents of this chunk are needed.
    Load(ChunkIndex),
}

impl Client {
    /// Reads up to `len` bytes; less only at the end of the file. Cancel-safe.
    pub(crate) async fn read_file(&self, file: &Arc<FileState>, offset: u64, len: usize) -> Result<Bytes, FsError> {
        let mut attempt = 1;
        loop {
            let plan = match plan_read(file, offset, len) {
                Ok(plan) => plan,
                Err(Step::Done(bytes)) => return Ok(bytes),
                Err(Step::Load(chunk)) => {
                    self.load_chunks(file, chunk, offset.saturating_add(len as u64)).await?;
                    continue;
                }
            };
            if plan.sequential {
                self.read_ahead(file, plan.range.end);
            }
            match self.put_together(&plan).await {
                Err(FsError::NotFound) if attempt < ATTEMPTS => {
                    // The block went away, most likely because the file was changed: what replaced it is asked for.
                    attempt += 1;
                    let mut inner = file.inner.lock();
                    let content = inner.content;
                    inner.forget_content(content);
                }
                Err(FsError::NotFound) => return Err(FsError::Io),
                other => return other,
            }
        }
    }

    async fn put_together(&self, plan: &Plan) -> Result<Bytes, FsError> {
        if let Some(bytes) = self.single(plan).await? {
            return Ok(bytes);
        }
        let start = plan.range.start;
        let mut buffer = vec![0; (plan.range.end - start) as usize];
        for extent in &plan.extents {
            let wanted = extent.file_off.max(start)..extent.range().end.min(plan.range.end);
            let bytes = match &extent.source {
                Source::Zero => continue,
                Source::Inline(bytes) => {
                    let from = (wanted.start - extent.file_off) as usize;
                    let len = (wanted.end - wanted.start) as usize;
                    Bytes::copy_from_slice(bytes.get(from..from + len).ok_or(FsError::Io)?)
                }
                Source::Block { .. } => self.block_bytes(extent, &wanted, plan.sequential).await?,
            };
            lay(wanted.start, &bytes, start, &mut buffer);
        }
        for (at, bytes) in &plan.over {
            lay(*at, bytes, start, &mut buffer);
        }
        Ok(buffer.into())
    }

    /// A read that lies within one block needs no copy.
    async fn single(&self, plan: &Plan) -> Result<Option<Bytes>, FsError> {
        let ([extent], []) = (plan.extents.as_slice(), plan.over.as_slice()) else { return Ok(None) };
        let whole = extent.range();
        let within = whole.start <= plan.range.start && plan.range.end <= whole.end;
        if !within || !matches!(extent.source, Source::Block { .. }) {
            return Ok(None);
        }
        self.block_bytes(extent, &plan.range, plan.sequential).await.map(Some)
    }

    /// Bytes of a file range that lies within an extent of a block.
    async fn block_bytes(&self, extent: &Extent, wanted: &Range<u64>, sequential: bool) -> Result<Bytes, FsError> {
        let Source::Block { hash, block_len, offset } = extent.source else { return Err(FsError::Io) };
        let from = offset as usize + (wanted.start - extent.file_off) as usize;
        let len = (wanted.end - wanted.start) as usize;
        // I9: a part is verified by the daemon alone; whole blocks are verified here, too.
        if !sequential
            && len <= PART_BYTES_MAX
            && let Some(part) = self.fetcher.fetch_part(hash, block_len, from as u32, len as u32).await?
        {
            return Ok(part);
        }
        let block = self.fetcher.fetch(hash).await?;
        if block.len() < from + len {
            return Err(FsError::Io);
        }
        Ok(block.slice(from..from + len))
    }

    /// Learns the extents from a chunk up to the one that holds byte `until - 1`.
    async fn load_chunks(&self, file: &FileState, first: ChunkIndex, until: u64) -> Result<(), FsError> {
        let end = until.max(first.start() + 1).div_ceil(CHUNK_BYTES).saturating_mul(CHUNK_BYTES);
        let range = first.start()..end;
        self.tell_if_new(file.ino).await?;
        for listing in 1.. {
            let mut from = range.start;
            let mut pages = Vec::new();
            loop {
                let read = Read::Extents { ino: file.ino, off: from, len: range.end - from };
                let ReadReply::Extents(page) = self.session.read(read).await? else { return Err(FsError::Io) };
                let more = page.more_from;
                pages.push(page);
                match more {
                    Some(more) => from = more,
                    None => break,
                }
            }
            let version = pages[pages.len() - 1].version;
            let torn = pages.iter().any(|page| page.version != version);
            let mut inner = file.inner.lock();
            // Not older than what is known, and not a mixture.
            if (torn || version < inner.content) && listing < LISTINGS {
                continue;
            }
            if version > inner.content {
                // Changed by another since it was opened. What this handle wrote stays based on what it saw (I6); what
                // it reads from now on is the new content throughout.
                inner.forget_content(version);
                self.notify(Notice::Changed(file.ino));
                if inner.held == 0 {
                    let size = pages[pages.len() - 1].size;
                    inner.base = version;
                    inner.size = size;
                    inner.attr.size = size;
                    inner.attr.version = version;
                }
            }
            if version >= inner.content {
                inner.take_pages(range, &pages);
            }
            return Ok(());
        }
        Ok(())
    }

    /// Fetches the blocks that a sequential reader will want next.
    fn read_ahead(&self, file: &Arc<FileState>, end: u64) {
        let mut inner = file.inner.lock();
        let until = end.saturating_add(self.config.readahead_bytes).min(inner.size);
        let from = inner.ahead.max(end);
        // In portions, so that not every read looks for blocks.
        if from >= until || (until - from < self.config.readahead_bytes / 4 && until < inner.size) {
            return;
        }
        if let Some(chunk) = inner.first_unknown(&(from..until)) {
            drop(inner);
            self.load_ahead(file, chunk);
            return;
        }
        inner.ahead = until;
        for extent in inner.overlapping(&(from..until)) {
            if let Source::Block { hash, .. } = extent.source {
                self.fetcher.prefetch(hash);
            }
        }
    }

    /// Learns the extents of the next chunk before they are needed.
    fn load_ahead(&self, file: &Arc<FileState>, chunk: ChunkIndex) {
        if file.loading.swap(true, std::sync::atomic::Ordering::AcqRel) {
            return;
        }
        let (client, file) = (self.arc(), file.clone());
        self.work.spawn_on(
            async move {
                if let Err(error) = client.load_chunks(&file, chunk, chunk.start() + 1).await {
                    tracing::debug!(ino = %file.ino, %error, "extents are loaded when they are needed");
                }
                file.loading.store(false, std::sync::atomic::Ordering::Release);
            },
            &self.runtime,
        );
    }
}

impl Inner {
    /// Whether a read that begins there is part of reading from one end to the other.
    fn is_sequential(&mut self, offset: u64) -> bool {
        let near = offset.abs_diff(self.read_end) <= NEAR_BYTES;
        let goes_on = offset == self.read_end || (near && self.read_near);
        self.read_near = near;
        goes_on
    }
}

/// Decides what to read from where, or what must be learnt first.
fn plan_read(file: &FileState, offset: u64, len: usize) -> Result<Plan, Step> {
    let mut inner = file.inner.lock();
    let end = offset.saturating_add(len as u64).min(inner.size);
    if offset >= end {
        return Err(Step::Done(Bytes::new()));
    }
    let range = offset..end;
    if inner.held > 0 && inner.covers(&range) {
        let mut buffer = vec![0; (end - offset) as usize];
        inner.overlay(offset, &mut buffer);
        return Err(Step::Done(buffer.into()));
    }
    if let Some(chunk) = inner.first_unknown(&range) {
        return Err(Step::Load(chunk));
    }
    let over = if inner.held > 0 { inner.uncommitted(&range) } else { Vec::new() };
    let sequential = inner.is_sequential(offset);
    inner.read_end = end;
    if !sequential {
        inner.ahead = 0;
    }
    Ok(Plan { extents: inner.overlapping(&range), over, range, sequential })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of these reads of 4 KiB counts as sequential.
    fn sequential(offsets: &[u64]) -> Vec<bool> {
        let state = FileState::new(crate::testing::attr(), None, Arc::default(), 4 << 20);
        let mut inner = state.inner.lock();
        let read = |offset: &u64| {
            let sequential = inner.is_sequential(*offset);
            inner.read_end = offset + 4096;
            sequential
        };
        offsets.iter().map(read).collect()
    }

    #[test]
    fn a_reader_is_sequential_when_it_goes_on_or_stays_near_and_not_because_of_one_read_that_is_near_by_chance() {
        const FAR: u64 = 1 << 30;
        assert_eq!(sequential(&[0, 4096, 8192]), [true; 3], "from the start");
        assert_eq!(sequential(&[FAR, FAR + 4096]), [false, true], "from the middle");
        assert_eq!(
            sequential(&[FAR, FAR + 65_536, FAR + 20_480, FAR + 131_072]),
            [false, false, true, true],
            "in parallel"
        );
        assert_eq!(sequential(&[FAR, FAR + 65_536, 5 * FAR, 5 * FAR - 65_536, FAR]), [false; 5], "scattered");
    }
}
