//! Assembles content: bytes of blocks, in the order of the file, with uncommitted content laid over them.

use crate::block::fetch::Fetcher;
use crate::file::dirty::lay;
use crate::file::state::Plan;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use wire::FsError;
use wire::extent::{Extent, Source};

/// Scattered reads up to this size fetch only their part of a large block.
const PART_BYTES_MAX: usize = 256 << 10;

/// Fetches content and puts it together.
pub(crate) struct Assembler {
    fetcher: Arc<Fetcher>,
}

impl Assembler {
    /// Creates an assembler of what is fetched by this.
    pub fn new(fetcher: Arc<Fetcher>) -> Self {
        Self { fetcher }
    }

    /// Returns the bytes of a read. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` when a block is gone, `Io` when one is not available.
    pub async fn put_together(&self, plan: &Plan) -> Result<Bytes, FsError> {
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

    /// Returns the bytes of a read that lies within one block, without a copy.
    async fn single(&self, plan: &Plan) -> Result<Option<Bytes>, FsError> {
        let ([extent], []) = (plan.extents.as_slice(), plan.over.as_slice()) else { return Ok(None) };
        let whole = extent.range();
        let within = whole.start <= plan.range.start && plan.range.end <= whole.end;
        if !within || !matches!(extent.source, Source::Block { .. }) {
            return Ok(None);
        }
        self.block_bytes(extent, &plan.range, plan.sequential).await.map(Some)
    }

    /// Returns the bytes of a file range that lies within an extent of a block.
    async fn block_bytes(&self, extent: &Extent, wanted: &Range<u64>, sequential: bool) -> Result<Bytes, FsError> {
        let Source::Block { hash, form, offset } = extent.source else { return Err(FsError::Io) };
        form.check()?;
        let from = offset as usize + (wanted.start - extent.file_off) as usize;
        let len = (wanted.end - wanted.start) as usize;
        // I9: a part is verified by the daemon alone; whole blocks are verified here, too.
        if !sequential
            && len <= PART_BYTES_MAX
            && let Some(part) = self.fetcher.fetch_part(hash, form.stored_len, from as u32, len as u32).await?
        {
            return Ok(part);
        }
        let block = self.fetcher.fetch(hash).await?;
        if block.len() < from + len {
            return Err(FsError::Io);
        }
        Ok(block.slice(from..from + len))
    }
}
