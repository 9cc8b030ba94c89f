//! Reading blocks from any daemon that has a good copy (I9). Concurrent readers of a block share one fetch.

use super::cache::BlockCache;
use super::disk::DiskCache;
use super::layout::{Holder, Layouts};
use crate::network::Blockd;
use crate::ordered::{Ordered, Rank};
use crate::recent::lru;
use crate::tickets::Tickets;
use bytes::Bytes;
use futures::future::{BoxFuture, Shared};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lru::LruCache;
use std::collections::HashMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::ids::BlockHash;
use wire::message::block::{BlockReply, BlockRequest};
use wire::retry::Backoff;
use wire::sections::Sections;
use wire::{Error, FsError, trace};

/// How long one daemon has to answer.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// After this time without an answer, the next replica is asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(400);
/// Blocks up to this size are hashed on the thread that receives them; larger ones on a thread of their own.
const HASH_INLINE: usize = 64 << 10;
/// Time between warnings while no daemon has the block.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// A block is lost when every daemon answers that it does not have it. A reader gets the error after this time.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// A request costs as much as this many bytes of content. Measured on loopback, 4 KiB of a block took 0.40 ms, 256 KiB
/// 1.05 ms, and 4 MiB, hashed here, 11.8 ms.
const REQUEST_BYTES: u32 = 128 << 10;
/// Smaller blocks are always fetched whole: a part costs as much.
const PARTED_BYTES_MIN: u32 = 256 << 10;
/// The number of blocks whose parts are counted.
const PARTED_COUNT: usize = 4096;

type Fetching = Shared<BoxFuture<'static, Result<Bytes, FsError>>>;

/// Reads blocks.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<FetchState>,
}

struct FetchState {
    blockds: Arc<dyn Blockd>,
    layouts: Arc<Layouts>,
    cache: BlockCache,
    disk: Option<DiskCache>,
    under_way: Ordered<HashMap<BlockHash, Fetching>>,
    parts: Ordered<Parts>,
    soft_timeout: Option<Duration>,
    tickets: Arc<Tickets>,
    work: TaskTracker,
    stop: CancellationToken,
}

/// What the parts of a block have cost lately, in bytes of content.
struct Parts(LruCache<BlockHash, u32>);

impl Parts {
    fn new() -> Self {
        Self(lru(PARTED_COUNT))
    }

    /// Returns whether to fetch this part rather than the whole block. Nobody knows how many parts will be wanted. A
    /// reader that switches to the whole block when its parts have cost as much (31 parts of 4 KiB for a block of 4
    /// MiB) never pays much more than twice the least possible.
    fn take(&mut self, hash: BlockHash, block_len: u32, len: u32) -> bool {
        let spent = self.0.get_or_insert_mut(hash, || 0);
        *spent = spent.saturating_add(REQUEST_BYTES.saturating_add(len));
        let worth_it = *spent <= block_len;
        if !worth_it {
            // If the block is evicted from the cache later, its parts are counted anew.
            self.0.pop(&hash);
        }
        worth_it
    }
}

/// A range of a block's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    offset: u32,
    len: u32,
}

const WHOLE: Part = Part { offset: 0, len: u32::MAX };

impl Part {
    /// Checks the bytes. Returns the sections of a whole block; a part can be checked only for its length, and has no
    /// sections.
    async fn verify(self, hash: BlockHash, bytes: &Bytes) -> Option<Sections> {
        if self == WHOLE {
            return verify(hash, bytes).await;
        }
        (bytes.len() == self.len as usize).then(Sections::default)
    }

    /// Returns the range of the block's bytes; `None` for all of them.
    fn range(self) -> Option<Range<usize>> {
        (self != WHOLE).then(|| self.offset as usize..self.offset as usize + self.len as usize)
    }
}

/// How a round ended in which no daemon had the block.
struct RoundFailed {
    /// Whether every daemon answered that it does not have it.
    all_answered: bool,
    /// Another ticket is needed: no daemon will send it.
    needs_ticket: bool,
    reason: String,
}

/// Why one daemon did not send it.
enum Missed {
    /// The ticket is not good any more, or not yet.
    Ticket,
    /// It has answered.
    Answered(String),
    /// It has not, or may send it later.
    Silent(String),
}

impl Fetcher {
    /// Creates a fetcher that reads from these daemons, in tasks of `work` that end when `stop` is cancelled.
    #[must_use]
    pub fn new(
        blockds: Arc<dyn Blockd>,
        layouts: Arc<Layouts>,
        (cache_bytes, disk): (usize, Option<DiskCache>),
        (soft_timeout, tickets): (Option<Duration>, Arc<Tickets>),
        (work, stop): (TaskTracker, CancellationToken),
    ) -> Self {
        let cache = BlockCache::new(cache_bytes);
        let under_way = Ordered::new(Rank::Leaf, HashMap::new());
        let parts = Ordered::new(Rank::Leaf, Parts::new());
        let state = FetchState { blockds, layouts, cache, disk, under_way, parts, soft_timeout, tickets, work, stop };
        Self { shared: Arc::new(state) }
    }

    /// Ends the cache on disk. Blocks that are read later are not written to it.
    pub async fn close(&self) {
        if let Some(disk) = &self.shared.disk {
            disk.close().await;
        }
    }

    /// Caches a block that was just written.
    pub fn remember(&self, hash: BlockHash, block: Bytes) {
        self.shared.cache.insert(hash, block);
    }

    /// Returns the block from memory.
    #[must_use]
    pub fn cached(&self, hash: &BlockHash) -> Option<Bytes> {
        self.shared.cache.get(hash)
    }

    /// Returns the whole block, verified. Other callers may wait for the same fetch. Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` when every daemon answers that it has no good copy, `AccessDenied` when this client needs another ticket, `Io`
    /// when a soft mount's patience ends.
    pub async fn fetch(&self, hash: BlockHash) -> Result<Bytes, FsError> {
        if let Some(block) = self.cached(&hash) {
            return Ok(block);
        }
        self.start(hash).await
    }

    /// Returns bytes `offset..offset + len` of a large block, or `None` when it is better to fetch the whole block. A
    /// part cannot be checked against the hash here: the daemon verifies the sections that hold it before it sends any.
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub async fn fetch_part(
        &self,
        hash: BlockHash,
        block_len: u32,
        offset: u32,
        len: u32,
    ) -> Result<Option<Bytes>, FsError> {
        if let Some(block) = self.cached(&hash) {
            let (start, end) = (offset as usize, offset as usize + len as usize);
            return if end <= block.len() { Ok(Some(block.slice(start..end))) } else { Err(FsError::Io) };
        }
        if self.may_fetch_whole(&hash)
            && (block_len < PARTED_BYTES_MIN
                || self.shared.under_way.lock().contains_key(&hash)
                || !self.shared.parts.lock().take(hash, block_len, len))
        {
            return Ok(None);
        }
        self.shared.fetch(hash, Part { offset, len }).await.map(Some)
    }

    /// Returns whether this client may read all of a block. One that is confined may read the parts for which it has tickets.
    #[must_use]
    pub fn may_fetch_whole(&self, hash: &BlockHash) -> bool {
        let tickets = &self.shared.tickets;
        !tickets.are_needed() || tickets.find(hash, WHOLE.offset, WHOLE.len).is_some()
    }

    /// Returns bytes of a block of which this client may read a part at least. Cancel-safe.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub async fn fetch_range(&self, hash: BlockHash, block_len: u32, range: Range<usize>) -> Result<Bytes, FsError> {
        if !self.may_fetch_whole(&hash) {
            let (offset, len) = (range.start as u32, (range.end - range.start) as u32);
            if let Some(part) = self.fetch_part(hash, block_len, offset, len).await? {
                return Ok(part);
            }
        }
        let block = self.fetch(hash).await?;
        if range.end > block.len() {
            return Err(FsError::Io);
        }
        Ok(block.slice(range))
    }

    /// Begins to read a block that will be wanted soon.
    pub fn prefetch(&self, hash: BlockHash) {
        if !self.may_fetch_whole(&hash) {
            return;
        }
        if self.cached(&hash).is_none() && !self.shared.under_way.lock().contains_key(&hash) {
            drop(self.start(hash));
        }
    }

    fn start(&self, hash: BlockHash) -> Fetching {
        let mut under_way = self.shared.under_way.lock();
        let state = self.shared.clone();
        under_way
            .entry(hash)
            .or_insert_with(|| {
                // This is a task of its own, because it must go on when the first caller goes away.
                let (work, stop) = (state.work.clone(), state.stop.clone());
                let task = work.spawn(trace::carried(stop.run_until_cancelled_owned(async move {
                    let block = state.fetch(hash, WHOLE).await;
                    if let Ok(block) = &block {
                        state.cache.insert(hash, block.clone());
                    }
                    state.under_way.lock().remove(&hash);
                    block
                })));
                async move { task.await.ok().flatten().unwrap_or(Err(FsError::Io)) }.boxed().shared()
            })
            .clone()
    }
}

impl FetchState {
    /// Reads from the local disk or from a daemon; from both when the disk is slow.
    async fn fetch(&self, hash: BlockHash, part: Part) -> Result<Bytes, FsError> {
        let reading = self.disk.as_ref().and_then(|disk| Some((disk, disk.read(hash, part.range())?)));
        let Some((disk, reading)) = reading else { return self.fetch_far(hash, part).await };
        nearest(reading, disk.patience(), || disk.was_slow(), self.fetch_far(hash, part)).await
    }

    /// Reads from a daemon. A whole block is also written to the local disk.
    async fn fetch_far(&self, hash: BlockHash, part: Part) -> Result<Bytes, FsError> {
        let (block, sections) = self.ask_around(hash, part).await?;
        if let Some(disk) = self.disk.as_ref().filter(|_| part == WHOLE) {
            disk.insert(hash, block.clone(), sections);
        }
        Ok(block)
    }

    async fn ask_around(&self, hash: BlockHash, part: Part) -> Result<(Bytes, Sections), FsError> {
        let started = Instant::now();
        let mut warned = started;
        let mut backoff = Backoff::default();
        loop {
            let layout = self.layouts.newest();
            let places = self.layouts.places(&layout, &hash);
            let failed = match self.round(hash, part, &places).await {
                Ok(found) => return Ok(found),
                Err(failed) if failed.needs_ticket => {
                    tracing::debug!(%hash, "a block ticket is missing or has ended");
                    return Err(FsError::AccessDenied);
                }
                Err(failed) => failed,
            };
            let patience = if failed.all_answered { Some(LOST_AFTER) } else { self.soft_timeout };
            if patience.is_some_and(|limit| started.elapsed() > limit) {
                tracing::error!(%hash, reason = failed.reason, "a block cannot be read");
                return Err(if failed.all_answered { FsError::NotFound } else { FsError::Io });
            }
            if warned.elapsed() > WARN_EVERY {
                warned = Instant::now();
                tracing::warn!(%hash, reason = failed.reason, "waiting for a block");
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Asks one daemon after the other: the next one at once after a refusal, and after a while without an answer.
    async fn round(&self, hash: BlockHash, part: Part, places: &[Holder]) -> Result<(Bytes, Sections), RoundFailed> {
        let reason = "no block daemon is known".to_owned();
        let mut failed = RoundFailed { all_answered: !places.is_empty(), needs_ticket: false, reason };
        // The same ticket for all: another daemon may know its key already.
        let Some(request) = self.request(hash, part) else {
            failed.needs_ticket = true;
            return Err(failed);
        };
        let mut waiting = places.iter();
        let mut asked = FuturesUnordered::new();
        loop {
            let holder = waiting.next();
            match holder {
                Some(holder) => asked.push(self.ask((hash, part), &request, *holder)),
                None if asked.is_empty() => return Err(failed),
                None => {}
            }
            let hedge = if waiting.len() > 0 { HEDGE_AFTER } else { ATTEMPT_LIMIT };
            match tokio::time::timeout(hedge, asked.next()).await {
                Ok(Some(Ok(found))) => return Ok(found),
                Ok(Some(Err(Missed::Ticket))) => failed.needs_ticket = true,
                Ok(Some(Err(Missed::Answered(reason)))) => failed.reason = reason,
                Ok(Some(Err(Missed::Silent(reason)))) => (failed.all_answered, failed.reason) = (false, reason),
                // If another daemon has answered by then, the next block need not wait for this daemon again.
                Err(_) => holder.into_iter().for_each(|(id, _)| self.layouts.suspect(*id)),
                Ok(None) => {}
            }
        }
    }

    /// Returns the request for a part, if nothing is missing for it.
    fn request(&self, hash: BlockHash, Part { offset, len }: Part) -> Option<BlockRequest> {
        let epoch = self.layouts.newest().epoch;
        if !self.tickets.are_needed() {
            return Some(BlockRequest::Get { hash, epoch, offset, len });
        }
        let ticket = self.tickets.find(&hash, offset, len)?;
        Some(BlockRequest::GetByTicket { hash, epoch, offset, len, ticket })
    }

    /// Asks one daemon.
    async fn ask(
        &self,
        (hash, part): (BlockHash, Part),
        request: &BlockRequest,
        (id, addr): Holder,
    ) -> Result<(Bytes, Sections), Missed> {
        match self.blockds.ask(addr, request, &[], ATTEMPT_LIMIT).await {
            Ok((BlockReply::Content { .. }, block)) => {
                self.layouts.trust(id);
                // I9: verified here too, whatever happened on the way.
                match part.verify(hash, &block).await {
                    Some(sections) => Ok((block, sections)),
                    None => Err(Missed::Answered(format!("{addr} sent something else"))),
                }
            }
            Ok((BlockReply::NotHere { layout, .. }, _)) => {
                layout.into_iter().for_each(|newer| self.layouts.hint(newer.epoch));
                Err(Missed::Answered(format!("{addr} does not have it")))
            }
            Ok((BlockReply::TicketRefused, _)) => {
                if let BlockRequest::GetByTicket { ticket, .. } = request {
                    self.tickets.forget(&hash, ticket);
                }
                Err(Missed::Ticket)
            }
            Ok((other, _)) => Err(Missed::Silent(format!("{addr} answered {}", other.kind_name()))),
            // It is well, and will never serve this client: nobody need wait for it.
            Err(error @ Error::Revoked { .. }) => Err(Missed::Answered(error.to_string())),
            // It is asked again in the next round, in its place.
            Err(error @ Error::Busy { .. }) => Err(Missed::Silent(error.to_string())),
            Err(error) => {
                self.layouts.suspect(id);
                Err(Missed::Silent(error.to_string()))
            }
        }
    }
}

/// Returns the result of `near`, or that of `far` when `near` finds nothing. When `patience` ends, calls `slow` and
/// waits for both.
async fn nearest<T, E>(
    near: impl Future<Output = Option<T>>,
    patience: Duration,
    slow: impl FnOnce(),
    far: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut near = pin!(near);
    match tokio::time::timeout(patience, &mut near).await {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => return far.await,
        Err(_) => slow(),
    }
    tokio::select! {
        found = far => found,
        Some(found) = near => Ok(found),
    }
}

/// Returns the block's sections if `hash` is its name: hashing yields both.
async fn verify(hash: BlockHash, block: &Bytes) -> Option<Sections> {
    let (name, sections) = if block.len() <= HASH_INLINE {
        Sections::of(block)
    } else {
        let block = block.clone();
        tokio::task::spawn_blocking(move || Sections::of(&block)).await.ok()?
    };
    (name == hash).then_some(sections)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answering;
    use futures::future::ready;
    use parking_lot::Mutex;
    use std::net::SocketAddr;
    use wire::attr::Timestamp;
    use wire::cert::KeyId;
    use wire::layout::Layout;
    use wire::ticket::TicketKey;

    const BLOCK: u32 = 4 << 20;

    /// Returns how many parts are fetched before the whole block is.
    fn parts_before_the_whole(parts: &mut Parts, block_len: u32, len: u32) -> usize {
        (0..).take_while(|_| parts.take(BlockHash([1; 32]), block_len, len)).count()
    }

    #[test]
    fn a_block_is_fetched_whole_when_its_parts_have_cost_as_much() {
        let mut parts = Parts::new();
        for (block_len, len, expected) in [(BLOCK, 4096, 31), (BLOCK, 256 << 10, 10), (1 << 20, 4096, 7)] {
            for round in ["first", "after the block left the cache"] {
                assert_eq!(
                    parts_before_the_whole(&mut parts, block_len, len),
                    expected,
                    "{len} of {block_len}, {round}"
                );
            }
        }
        assert_eq!(parts_before_the_whole(&mut parts, PARTED_BYTES_MIN, 4096), 1);
        assert_eq!(parts_before_the_whole(&mut parts, BLOCK, u32::MAX), 0);
    }

    #[tokio::test]
    async fn a_slow_disk_is_waited_for_a_moment_and_then_the_network_is_asked_as_well() {
        use futures::future::{pending, ready};
        const MOMENT: Duration = Duration::from_millis(10);
        const NO_ERROR: Result<u8, ()> = Ok(2);
        let unexpected = || panic!("it was not slow");
        assert_eq!(nearest(ready(Some(1)), MOMENT, unexpected, pending::<Result<u8, ()>>()).await, Ok(1));
        assert_eq!(nearest(ready(None), MOMENT, unexpected, ready(NO_ERROR)).await, Ok(2));
        assert_eq!(nearest(ready(None::<u8>), MOMENT, unexpected, ready(Err(()))).await, Err(()));
        let mut slow_calls = 0;
        assert_eq!(nearest(pending(), MOMENT, || slow_calls += 1, ready(NO_ERROR)).await, Ok(2));
        assert_eq!(nearest(pending(), Duration::ZERO, || slow_calls += 1, ready(NO_ERROR)).await, Ok(2));
        assert_eq!(slow_calls, 2);
        // The disk answers in the end, with the block or without.
        for (answer, far) in [(Some(1), None), (None, Some(2))] {
            let (send, late) = tokio::sync::oneshot::channel();
            let (answered, wait) = tokio::sync::oneshot::channel::<()>();
            let near = async move {
                let answer = late.await.unwrap();
                drop(answered);
                answer
            };
            let far = async move {
                let _ = wait.await;
                match far {
                    Some(far) => Ok::<u8, ()>(far),
                    None => pending().await,
                }
            };
            let found = nearest(near, MOMENT, || send.send(answer).unwrap(), far).await;
            assert_eq!(found, Ok(answer.unwrap_or(2)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_has_too_much_to_do_is_asked_again_in_its_place() {
        let members = [1, 2].map(crate::testing::blockd).into();
        let layouts = Arc::new(Layouts::new(Layout { replicas: 2, min_sync: 1, members, ..Layout::default() }));
        let hash = BlockHash::of(b"");
        let [first, second] = layouts.places(&layouts.newest(), &hash)[..] else { panic!("there are two") };
        let asked = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let noted = asked.clone();
        let busy = Answering(move |blockd| {
            noted.lock().push(blockd);
            let count = noted.lock().iter().filter(|other| **other == blockd).count();
            ready(if blockd != first.1 {
                Ok(BlockReply::NotHere { corrupt: false, layout: None })
            } else if count <= 3 {
                Err(Error::Busy { peer: blockd.to_string(), reason: "this is a test".to_owned() })
            } else {
                Ok(BlockReply::Content { block_len: 0 })
            })
        });
        let tasks = (TaskTracker::new(), CancellationToken::new());
        let fetcher =
            Fetcher::new(Arc::new(busy), layouts, (1 << 20, None), (None, Arc::new(Tickets::new(false))), tasks);
        assert!(fetcher.fetch(hash).await.unwrap().is_empty());
        let (first, second) = (first.1, second.1);
        assert_eq!(*asked.lock(), [first, second, first, second, first, second, first]);
    }

    /// The daemon that refuses may not know of a new key yet.
    #[tokio::test(start_paused = true)]
    async fn a_ticket_that_one_daemon_refuses_is_shown_to_the_next_one_and_only_one_that_all_refuse_is_missing() {
        let members = [1, 2].map(crate::testing::blockd).into();
        let layouts = Arc::new(Layouts::new(Layout { replicas: 2, min_sync: 1, members, ..Layout::default() }));
        let hash = BlockHash::of(b"");
        let [first, _] = layouts.places(&layouts.newest(), &hash)[..] else { panic!("there are two") };
        let key = TicketKey::make(1, Timestamp::default());
        let ticket = || vec![(hash, key.ticket(&KeyId::default(), &hash, (0, u32::MAX), Timestamp::default()))];
        for all_refuse in [false, true] {
            let daemons = Answering(move |blockd| {
                let refuses = all_refuse || blockd == first.1;
                ready(Ok(if refuses { BlockReply::TicketRefused } else { BlockReply::Content { block_len: 0 } }))
            });
            let tickets = Arc::new(Tickets::new(true));
            let tasks = (TaskTracker::new(), CancellationToken::new());
            let fetcher =
                Fetcher::new(Arc::new(daemons), layouts.clone(), (1 << 20, None), (None, tickets.clone()), tasks);
            assert_eq!(fetcher.fetch(hash).await, Err(FsError::AccessDenied), "there is none");
            tickets.note(ticket());
            let fetched = fetcher.fetch(hash).await;
            assert_eq!(fetched, if all_refuse { Err(FsError::AccessDenied) } else { Ok(Bytes::new()) });
        }
    }

    #[test]
    fn parts_of_one_block_do_not_count_for_another() {
        let mut parts = Parts::new();
        for number in 0..200 {
            assert!(parts.take(BlockHash([number; 32]), BLOCK, 4096));
        }
        assert_eq!(parts_before_the_whole(&mut parts, BLOCK, 4096), 30, "one was fetched already");
    }
}
