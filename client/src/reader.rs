//! Reading: committed content from blocks, with uncommitted content laid over it. The file decides what to read from
//! where ([`FileState::plan_read`]); the reader fetches and assembles it.

use crate::block::fetch::Fetcher;
use crate::error::unexpected_reply;
use crate::file::dirty::lay;
use crate::file::state::{Ahead, Below, FileState, Listing, Plan, Seen, Step};
use crate::kernel::{Kernel, Notice};
use crate::known::leased::LeasedSession;
use crate::work::Work;
use crate::writeback::Order;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::FsError;
use wire::extent::{Extent, Source};
use wire::ids::ChunkIndex;
use wire::limits::CHUNK_BYTES;
use wire::op::{Read, ReadReply};
use wire::retry::Backoff;

/// Scattered reads up to this size fetch only their part of a large block.
const PART_BYTES_MAX: usize = 256 << 10;
/// Attempts at a consistent list of extents while others commit. After these, a list that spans versions is used.
const LISTINGS_MAX: usize = 8;
/// Attempts at content that compaction or another session replaces while it is read.
const ATTEMPTS_MAX: usize = 3;
/// New tickets that are tried, with growing pauses, before a read fails: block daemons learn of a new key within a second.
const TICKETS_TRIED: usize = 12;
/// Tickets that were asked for further apart have ended in the usual way.
const TICKETS_APART: Duration = Duration::from_secs(60);
/// It is waited so long for what a program has seen in the mapped pages that the kernel writes back at once. What has not
/// come by then is judged whole.
const SEEN_LIMIT: Duration = Duration::from_secs(5);

/// The time for which something is waited that comes in several parts. Once it is over, nothing more is begun.
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    /// Starts the time for what a program has seen in the pages that the kernel writes back at once.
    pub fn for_seen() -> Self {
        Self { left: SEEN_LIMIT }
    }

    /// Waits for one part; `None` when the time is over. Cancel-safe if `work` is.
    async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.left.is_zero() {
            return None;
        }
        let begun = Instant::now();
        let done = tokio::time::timeout(self.left, work).await.ok();
        self.left = if done.is_some() { self.left.saturating_sub(begun.elapsed()) } else { Duration::ZERO };
        done
    }
}

/// Asks for the extents of a file again, because block tickets come with them. They end while block daemons are away for long;
/// only new ones that are refused again and again are an error.
#[derive(Default)]
struct TicketRenewal {
    backoff: Backoff,
    count: usize,
    last: Option<Instant>,
}

impl TicketRenewal {
    async fn wait(&mut self) -> Result<(), FsError> {
        if self.last.is_some_and(|last| last.elapsed() > TICKETS_APART) {
            *self = Self::default();
        }
        if self.count > 0 {
            tokio::time::sleep(self.backoff.delay()).await;
        }
        (self.count, self.last) = (self.count + 1, Some(Instant::now()));
        if self.count > TICKETS_TRIED { Err(FsError::Io) } else { Ok(()) }
    }
}

/// Reads files.
pub(crate) struct Reader {
    session: Arc<LeasedSession>,
    /// Sends to metad what it must know before it is asked.
    order: Arc<Order>,
    fetcher: Arc<Fetcher>,
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
        (fetcher, kernel): (Arc<Fetcher>, Arc<Kernel>),
        work: Work,
        readahead_bytes: u64,
    ) -> Self {
        Self { session, order, fetcher, kernel, work, readahead_bytes }
    }

    /// Begins to read a file of one small block: a program that opens it usually reads it next.
    pub fn prefetch_small(&self, file: &FileState) {
        if let Some(hash) = file.small_block() {
            self.fetcher.prefetch(hash);
        }
    }

    /// Reads up to `len` bytes; fewer only at the end of the file. The kernel keeps them in its pages, or `perhaps` hands
    /// them past these. Cancel-safe.
    ///
    /// # Errors
    /// `Io` when content is not available.
    pub async fn read(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        (offset, len): (u64, usize),
        perhaps: bool,
    ) -> Result<Bytes, FsError> {
        let mut attempt = 1;
        let mut renewal = TicketRenewal::default();
        loop {
            let plan = match file.plan_read((offset, len), perhaps) {
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
            match self.put_together(&plan).await {
                Err(FsError::NotFound) if attempt < ATTEMPTS_MAX => {
                    // The block is gone, most likely because the file was changed: the new extents are asked for.
                    attempt += 1;
                    file.forget_extents();
                }
                Err(FsError::NotFound) => return Err(FsError::Io),
                Err(FsError::AccessDenied) => {
                    renewal.wait().await?;
                    file.forget_extents();
                }
                other => return other,
            }
        }
    }

    /// Returns what a program has seen at the start of this part of its pages, and the bytes of it; `None` when these
    /// are not known any more, or not available as long as there is `patience`. Cancel-safe.
    pub async fn seen(&self, file: &FileState, range: &Range<u64>, patience: &mut Patience) -> (Seen, Option<Bytes>) {
        let mut seen = file.seen(range);
        for _ in 0..ATTEMPTS_MAX {
            let learned = match &seen.below {
                Below::Unknown => break,
                Below::Read(plan) => match patience.wait(self.put_together(plan)).await {
                    Some(Err(FsError::AccessDenied)) => {
                        file.forget_extents();
                        seen = file.seen(range);
                        continue;
                    }
                    read => return (seen, read.and_then(Result::ok)),
                },
                Below::Load(chunk) => patience.wait(self.load_chunks(file, *chunk, range.end)).await,
            };
            if !matches!(learned, Some(Ok(()))) {
                break;
            }
            seen = file.seen(range);
        }
        (seen, None)
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
        let is_part = !sequential && len <= PART_BYTES_MAX;
        if (is_part || !self.fetcher.may_fetch_whole(&hash))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn after_the_first_part_that_does_not_come_in_time_nothing_more_is_begun() {
        const SHORT: Duration = Duration::from_secs(1);
        let (mut patience, begun) = (Patience::for_seen(), Instant::now());
        assert_eq!(patience.wait(tokio::time::sleep(SEEN_LIMIT - SHORT)).await, Some(()));
        assert_eq!(patience.wait(std::future::pending::<()>()).await, None);
        assert!(begun.elapsed() < SEEN_LIMIT + SHORT, "{:?} for both", begun.elapsed());
        let is_begun = Cell::new(false);
        assert_eq!(patience.wait(async { is_begun.set(true) }).await, None);
        assert!(!is_begun.get());
    }
}
