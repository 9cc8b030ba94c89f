//! Reading: committed content from blocks, what is not committed laid over it.

use super::state::FileState;
use crate::Client;
use bytes::Bytes;
use std::ops::Range;
use wire::FsError;
use wire::extent::{Extent, Source};
use wire::ids::ChunkIndex;
use wire::limits::CHUNK_BYTES;
use wire::op::{Read, ReadReply};

/// What a read is made of.
struct Plan {
    range: Range<u64>,
    extents: Vec<Extent>,
    /// Nothing uncommitted lies over it.
    clean: bool,
}

impl Client {
    /// Reads up to `len` bytes; less only at the end of the file.
    pub(crate) async fn read_file(&self, file: &FileState, offset: u64, len: usize) -> Result<Bytes, FsError> {
        loop {
            let plan = match self.plan_read(file, offset, len) {
                Ok(plan) => plan,
                Err(Step::Done(bytes)) => return Ok(bytes),
                Err(Step::Load(chunk)) => {
                    self.load_chunk(file, chunk).await?;
                    continue;
                }
            };
            self.read_ahead(file, &plan);
            if let Some(bytes) = self.single(&plan).await? {
                return Ok(bytes);
            }
            let mut buffer = vec![0; (plan.range.end - plan.range.start) as usize];
            for extent in &plan.extents {
                self.lay_extent(extent, plan.range.start, &mut buffer).await?;
            }
            file.inner.lock().overlay(plan.range.start, &mut buffer);
            return Ok(buffer.into());
        }
    }

    /// Decides what to read from where, or what must be learnt first.
    fn plan_read(&self, file: &FileState, offset: u64, len: usize) -> Result<Plan, Step> {
        let inner = file.inner.lock();
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
        Ok(Plan { extents: inner.overlapping(&range), clean: inner.held == 0, range })
    }

    async fn load_chunk(&self, file: &FileState, chunk: ChunkIndex) -> Result<(), FsError> {
        let range = chunk.start()..chunk.start() + CHUNK_BYTES;
        let mut from = range.start;
        let mut pages = Vec::new();
        let version = loop {
            let read = Read::Extents { ino: file.ino, off: from, len: range.end - from };
            let ReadReply::Extents(page) = self.session.read(read).await? else { return Err(FsError::Io) };
            let (version, more) = (page.version, page.more_from);
            pages.push(page);
            match more {
                Some(more) => from = more,
                None => break version,
            }
        };
        let mut inner = file.inner.lock();
        if version != inner.base {
            // Changed by another since it was opened. What this handle wrote stays based on what it saw (I6); what it
            // reads from now on is the new content throughout.
            inner.forget_content();
            if inner.held == 0 {
                inner.base = version;
                inner.size = pages[0].size;
                inner.attr.size = pages[0].size;
                inner.attr.version = version;
            }
        }
        if pages.iter().all(|page| page.version == version) {
            for page in pages {
                for extent in page.extents {
                    inner.extents.insert(extent.file_off, extent);
                }
            }
            inner.loaded.insert(chunk);
        }
        Ok(())
    }

    /// A read that lies within one block needs no copy.
    async fn single(&self, plan: &Plan) -> Result<Option<Bytes>, FsError> {
        let [extent] = plan.extents.as_slice() else { return Ok(None) };
        let whole = extent.range();
        if !plan.clean || whole.start > plan.range.start || whole.end < plan.range.end {
            return Ok(None);
        }
        let Source::Block { hash, offset, .. } = &extent.source else { return Ok(None) };
        let block = self.fetcher.fetch(*hash).await?;
        let start = *offset as usize + (plan.range.start - whole.start) as usize;
        let end = start + (plan.range.end - plan.range.start) as usize;
        if block.len() < end {
            return Err(FsError::Io);
        }
        Ok(Some(block.slice(start..end)))
    }

    async fn lay_extent(&self, extent: &Extent, offset: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        match &extent.source {
            Source::Zero => {}
            Source::Inline(bytes) => super::dirty::lay(extent.file_off, bytes, offset, buffer),
            Source::Block { hash, offset: from, .. } => {
                let block = self.fetcher.fetch(*hash).await?;
                let end = *from as usize + extent.len as usize;
                let bytes = block.get(*from as usize..end).ok_or(FsError::Io)?;
                super::dirty::lay(extent.file_off, bytes, offset, buffer);
            }
        }
        Ok(())
    }

    /// Fetches the blocks that a sequential reader will want next.
    fn read_ahead(&self, file: &FileState, plan: &Plan) {
        let mut inner = file.inner.lock();
        // The kernel reads ahead in parallel: a little behind or before the last end is sequential, too.
        let near = plan.range.start.abs_diff(inner.read_end) <= 4 << 20;
        inner.read_end = plan.range.end;
        if !near {
            inner.ahead = 0;
            return;
        }
        let until = (plan.range.end + self.config.readahead_bytes).min(inner.size);
        let from = inner.ahead.max(plan.range.end);
        if from >= until || from + self.config.readahead_bytes / 4 > until && until < inner.size {
            return;
        }
        inner.ahead = until;
        for extent in inner.overlapping(&(from..until)) {
            if let Source::Block { hash, .. } = extent.source {
                self.fetcher.prefetch(hash);
            }
        }
    }
}

/// Why there is no plan.
enum Step {
    /// It is read already.
    Done(Bytes),
    /// The extents of this chunk are needed.
    Load(ChunkIndex),
}
