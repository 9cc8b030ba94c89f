//! Reading: committed content from blocks, with uncommitted content laid over it. The file decides what to read from
//! where ([`FileState::plan_read`]); the reader learns what is missing for that, and has it assembled.

use crate::assembler::Assembler;
use crate::block::fetch::Fetcher;
use crate::error::unexpected_reply;
use crate::file::state::{Ahead, FileState, Listing, Step};
use crate::kernel::{Kernel, Notice};
use crate::known::leased::LeasedSession;
use crate::work::Work;
use crate::writeback::Order;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use wire::FsError;
use wire::ids::ChunkIndex;
use wire::limits::CHUNK_BYTES;
use wire::op::{Read, ReadReply};

/// Attempts at a consistent list of extents while others commit. After these, a list that spans versions is used.
const LISTINGS_MAX: usize = 8;
/// Attempts at content that compaction or another session replaces while it is read.
const ATTEMPTS_MAX: usize = 3;

/// Reads files.
pub(crate) struct Reader {
    session: Arc<LeasedSession>,
    /// Sends to metad what it must know before it is asked.
    order: Arc<Order>,
    fetcher: Arc<Fetcher>,
    assembler: Arc<Assembler>,
    kernel: Arc<Kernel>,
    work: Work,
    /// How far to read ahead of a sequential reader, in bytes.
    readahead_bytes: u64,
}

impl Reader {
    /// Creates a reader that asks `session` for extents, once metad knows what waits in the queue, and that fetches
    /// this many bytes ahead.
    pub fn new(
        (session, order): (Arc<LeasedSession>, Arc<Order>),
        (fetcher, assembler): (Arc<Fetcher>, Arc<Assembler>),
        kernel: Arc<Kernel>,
        work: Work,
        readahead_bytes: u64,
    ) -> Self {
        Self { session, order, fetcher, assembler, kernel, work, readahead_bytes }
    }

    /// Begins to read a file of one small block: a program that opens it usually reads it next.
    pub fn prefetch_small(&self, file: &FileState) {
        if let Some(hash) = file.small_block() {
            self.fetcher.prefetch(hash);
        }
    }

    /// Reads up to `len` bytes; fewer only at the end of the file. The kernel keeps them in its pages, or hands them
    /// past these (`direct`). Cancel-safe.
    ///
    /// # Errors
    /// `Io` when content is not available.
    pub async fn read(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        (offset, len): (u64, usize),
        direct: bool,
    ) -> Result<Bytes, FsError> {
        let mut attempt = 1;
        loop {
            let plan = match file.plan_read(offset, len, direct) {
                Step::Fetch(plan) => plan,
                Step::Done(bytes) => return Ok(bytes),
                Step::Load(chunk) => {
                    self.load_chunks(file, chunk, offset.saturating_add(len as u64)).await?;
                    continue;
                }
            };
            if plan.sequential {
                self.read_ahead(file, plan.range.end);
            }
            match self.assembler.put_together(&plan).await {
                Err(FsError::NotFound) if attempt < ATTEMPTS_MAX => {
                    // The block is gone, most likely because the file was changed: the new extents are asked for.
                    attempt += 1;
                    file.forget_extents();
                }
                Err(FsError::NotFound) => return Err(FsError::Io),
                other => return other,
            }
        }
    }

    /// Learns where the content is stored on which these pages are based, or all uncommitted pages, so that they can be
    /// compared with it when others have changed it.
    ///
    /// # Errors
    /// As those of asking metad for extents.
    pub async fn learn_below_pages(&self, file: &FileState, part: Option<&Range<u64>>) -> Result<(), FsError> {
        let mut loaded = None;
        // A listing that others tear again and again teaches nothing.
        while let Some(chunk) = file.unknown_below_pages(part).filter(|chunk| loaded != Some(*chunk)) {
            self.load_chunks(file, chunk, chunk.start() + 1).await?;
            loaded = Some(chunk);
        }
        Ok(())
    }

    /// Loads the extents from a chunk up to the one that holds byte `until - 1`.
    async fn load_chunks(&self, file: &FileState, first: ChunkIndex, until: u64) -> Result<(), FsError> {
        let end = until.max(first.start() + 1).div_ceil(CHUNK_BYTES).saturating_mul(CHUNK_BYTES);
        let range = first.start()..end;
        self.order.wait_if_new(file.ino()).await?;
        for listing in 1..=LISTINGS_MAX {
            let mut from = range.start;
            let mut pages = Vec::new();
            loop {
                let read = Read::Extents { ino: file.ino(), off: from, len: range.end - from };
                let ReadReply::Extents(page) = self.session.read(read).await? else { return Err(unexpected_reply()) };
                let more = page.more_from;
                pages.push(page);
                match more {
                    Some(more) => from = more,
                    None => break,
                }
            }
            match file.take_listing(range.clone(), &pages, listing == LISTINGS_MAX) {
                // The listing must not be older than what is known, nor a mixture of versions.
                Listing::Torn => {}
                Listing::Taken => return Ok(()),
                Listing::Moved => {
                    self.kernel.notify(Notice::Changed(file.ino()));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Fetches the blocks that a sequential reader will want next.
    fn read_ahead(self: &Arc<Self>, file: &Arc<FileState>, end: u64) {
        match file.plan_ahead(end, self.readahead_bytes) {
            Some(Ahead::Fetch(blocks)) => blocks.into_iter().for_each(|hash| self.fetcher.prefetch(hash)),
            Some(Ahead::Load(chunk)) => self.load_ahead(file, chunk),
            None => {}
        }
    }

    /// Loads the extents of the next chunk before they are needed.
    fn load_ahead(self: &Arc<Self>, file: &Arc<FileState>, chunk: ChunkIndex) {
        if !file.begin_loading() {
            return;
        }
        let (reader, file) = (self.clone(), file.clone());
        self.work.spawn(async move {
            if let Err(error) = reader.load_chunks(&file, chunk, chunk.start() + 1).await {
                tracing::debug!(ino = %file.ino(), %error, "extents are loaded when they are needed");
            }
            file.end_loading();
        });
    }
}
