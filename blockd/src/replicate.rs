//! Storing a block on a chain of daemons, cut through: each forwards to the next while it still receives.
//!
//! ```text
//! client ──► first ──► second ──► third        payload, in pieces, as it arrives
//!            │ hash    │ hash     │ hash        each verifies and syncs its own copy (I9)
//!        ◄── Stored ◄── Stored ◄── Stored       each adds itself to what the rest of the chain answered
//! ```
//!
//! A daemon of the chain that cannot be reached, fails on the way, or keeps others waiting is skipped: the next one after
//! it gets the block from here, whole if need be. The sender learns who failed, and decides whether enough have synced. It
//! is answered when as many have as it needs; the rest of the chain goes on after that.
//!
//! A chain names members of the layout: this daemon connects to no address that a sender made up. And a sender is no
//! witness: that a deadline of its own choice was too short, that it let the payload wait, or that the next daemon refused
//! what it sent, makes nobody suspect.
//!
//! State: the daemons that failed a moment ago ([`Suspects`]), so that not every block waits for the same dead one; and
//! requests to slow daemons that nobody waits for any more.

use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use wire::Error;
use wire::buffers::{Buffer, Pool};
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::Layout;
use wire::limits::BLOCK_BYTES_MAX;
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::{Endpoint, Incoming, OutgoingRequest};
use wire::sections::{SECTION_BYTES, SectionHasher, Sections};
use wire::suspects::Suspects;
use wire::tls::Role;

/// Received bytes are hashed and passed on in pieces of at least this size: large enough for BLAKE3's wide paths, small
/// enough that hashing one (some 40 µs) may run on a runtime thread. They end where sections do.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES.is_multiple_of(SECTION_BYTES));
/// A daemon that failed is not tried again for this long.
const SUSPECT_FOR: Duration = Duration::from_secs(5);
/// A daemon that does not answer is suspect only when it had this long: as long as a handshake may take.
const FAIR_WAIT: Duration = Duration::from_secs(2);
/// How long a daemon of the chain may keep a put waiting that has not enough copies yet, or take no more bytes of it: a
/// paused one never answers, and the next of the chain can do as well.
const PATIENCE: Duration = FAIR_WAIT;
/// Blocks that slow daemons may still be storing when the put was answered already. Beyond that they miss blocks, which
/// they find when they compare with others.
const LAGGING_MAX: usize = 32;
/// The rest of the chain gets this share of the time that the sender gives: the sender is to hear who failed.
const DEADLINE_SHARE: f64 = 0.8;
/// Blocks below this are left to the allocator.
const REUSED_BYTES_MIN: usize = 64 << 10;
/// Capacities of reused buffers are multiples of this, so that blocks of similar lengths share them.
const CAPACITY_STEP: usize = 1 << 20;
/// Memory kept for reuse: fresh memory costs more than the network does.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// The rest of a chain: whom to forward to, in order.
pub type Chain = Vec<BlockdId>;

/// Receives blocks and passes them on.
pub struct Replicator {
    endpoint: Endpoint,
    suspects: Suspects<SocketAddr>,
    buffers: Arc<Pool>,
    lagging: Arc<Semaphore>,
    lagging_tasks: TaskTracker,
}

/// What became of a block's payload.
pub enum Received {
    /// It matches its hash, and these are its sections; the forwarding is to be finished by [`Forward::finish`].
    Block(Bytes, Sections),
    /// It does not match its hash.
    Mismatch,
}

/// Outcome in the rest of the chain.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Daemons that synced the block.
    pub synced: Vec<BlockdId>,
    /// Daemons that did not, and why.
    pub failed: Vec<(BlockdId, String)>,
    /// Daemons without room.
    pub full: Vec<BlockdId>,
    /// A layout under which the block belongs elsewhere.
    pub newer: Option<Layout>,
}

impl Outcome {
    /// What others came to as well.
    pub fn add(&mut self, other: Outcome) {
        self.synced.extend(other.synced);
        self.failed.extend(other.failed);
        self.full.extend(other.full);
        self.newer = other.newer.or(self.newer.take());
    }
}

/// How a daemon of the chain has ended.
enum Ended {
    /// It answered, for itself and those after it.
    Answered,
    /// The next one is to be tried from here.
    Next,
}

impl Replicator {
    /// Forwards from `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            suspects: Suspects::new(SUSPECT_FOR),
            buffers: Pool::new(REUSED_BYTES_MIN, KEPT_BYTES_MAX),
            lagging: Arc::new(Semaphore::new(LAGGING_MAX)),
            lagging_tasks: TaskTracker::new(),
        }
    }

    /// A place among the blocks that may lag behind their answer; `None` when too many do.
    #[must_use]
    pub fn lag(&self) -> Option<OwnedSemaphorePermit> {
        self.lagging.clone().try_acquire_owned().ok()
    }

    /// Opens the way to the next daemon of the chain that can be reached; `needed` is how many copies of the chain the
    /// sender waits for.
    pub async fn forward(
        &self,
        (hash, epoch): (BlockHash, LayoutEpoch),
        (layout, chain): (&Layout, Chain),
        needed: u8,
        request: &Incoming,
    ) -> Forward<'_> {
        let deadline = request.deadline().saturating_duration_since(Instant::now()).mul_f64(DEADLINE_SHARE);
        let mut forward = Forward {
            replicator: self,
            hash,
            epoch,
            len: request.payload_len(),
            granted: deadline,
            deadline: Instant::now() + deadline,
            needed,
            rest: VecDeque::with_capacity(chain.len()),
            open: None,
            outcome: Outcome::default(),
        };
        for id in chain {
            match layout.member(&id) {
                Some(member) => forward.rest.push_back((id, member.addr)),
                None => forward.outcome.failed.push((id, "not a member of the layout that is known here".to_owned())),
            }
        }
        forward.open_next().await;
        forward
    }

    /// Receives the payload, passing it on while hashing it. Not cancel-safe.
    ///
    /// # Errors
    /// [`wire::Error::Malformed`] when the sender's stream ends early.
    pub async fn receive(&self, request: &mut Incoming, forward: &mut Forward<'_>) -> Result<Received, wire::Error> {
        assert!(forward.len <= BLOCK_BYTES_MAX, "checked before anything is received");
        let mut buffer = self.buffer_for(forward.len);
        let mut hasher = SectionHasher::default();
        let mut passed = 0;
        while let Some(chunk) = request.next_chunk().await? {
            buffer.extend_from_slice(&chunk);
            let complete = buffer.len() == forward.len;
            let ready = if complete { buffer.len() } else { buffer.len() - buffer.len() % SECTION_BYTES };
            if complete || ready - passed >= PIECE_BYTES {
                let piece = &buffer[passed..ready];
                if forward.open.is_some() {
                    forward.write(Bytes::copy_from_slice(piece)).await;
                }
                hasher.update(piece);
                passed = ready;
            }
        }
        // I9: what does not match its name is never stored.
        let (name, sections) = hasher.finish();
        if name != forward.hash {
            return Ok(Received::Mismatch);
        }
        Ok(Received::Block(buffer.freeze(), sections))
    }

    fn buffer_for(&self, len: usize) -> Buffer {
        if len < REUSED_BYTES_MIN {
            return self.buffers.adopt(Vec::with_capacity(len));
        }
        self.buffers.take(len, || Vec::with_capacity(len.next_multiple_of(CAPACITY_STEP)))
    }
}

/// A block on its way down the chain.
pub struct Forward<'a> {
    replicator: &'a Replicator,
    hash: BlockHash,
    epoch: LayoutEpoch,
    len: usize,
    /// What the sender gave for the rest of the chain.
    granted: Duration,
    deadline: Instant,
    needed: u8,
    rest: VecDeque<(BlockdId, SocketAddr)>,
    open: Option<(BlockdId, SocketAddr, OutgoingRequest)>,
    outcome: Outcome,
}

impl Forward<'_> {
    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn failed(&mut self, id: BlockdId, addr: SocketAddr, reason: String) {
        tracing::debug!(%id, %addr, hash = %self.hash, reason, "a daemon of the chain failed");
        self.outcome.failed.push((id, reason));
    }

    async fn open_next(&mut self) {
        assert!(self.open.is_none());
        while let Some((id, addr)) = self.rest.pop_front() {
            if self.replicator.suspects.contains(&addr) {
                self.failed(id, addr, "failed a moment ago".to_owned());
                continue;
            }
            let chain = self.rest.iter().map(|(id, _)| *id).collect();
            let needed = self.needed.clamp(1, self.rest.len() as u8 + 1);
            let head = BlockRequest::Put { hash: self.hash, epoch: self.epoch, chain, needed };
            let peer = self.replicator.endpoint.peer(addr, Role::Blockd);
            let (asked, left) = (Instant::now(), self.time_left());
            let opening = peer.open_request(&head, u32::try_from(self.len).unwrap_or(u32::MAX), left);
            // A connection may have to be made, and a paused daemon never answers that.
            match tokio::time::timeout(left.min(PATIENCE), opening).await {
                Ok(Ok(open)) => {
                    self.open = Some((id, addr, open));
                    return;
                }
                Ok(Err(error)) => self.unreachable((id, addr), asked, Some(&error)),
                Err(_) => self.unreachable((id, addr), asked, None),
            }
        }
    }

    /// Waiting for a daemon since `asked` has failed, by this error or by the deadline.
    fn unreachable(&mut self, (id, addr): (BlockdId, SocketAddr), asked: Instant, error: Option<&Error>) {
        // Who was given too little time may have ended the request itself, before it ended here.
        let is_lost = match error {
            Some(Error::NotSent { .. }) => true,
            Some(Error::Unanswered { .. }) => self.granted >= FAIR_WAIT,
            _ => false,
        };
        if asked.elapsed() >= FAIR_WAIT || (is_lost && !self.time_left().is_zero()) {
            self.replicator.suspects.add(addr);
        }
        self.failed(id, addr, error.map_or_else(|| "deadline expired".to_owned(), Error::to_string));
    }

    async fn write(&mut self, piece: Bytes) {
        let (asked, left) = (Instant::now(), self.time_left().min(PATIENCE));
        let Some((id, addr, open)) = &mut self.open else { return };
        let (id, addr) = (*id, *addr);
        let failed = match tokio::time::timeout(left, open.write(piece)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        self.open = None;
        self.unreachable((id, addr), asked, failed.as_ref());
    }

    /// Waits for the rest of the chain; daemons that come after one that failed, or keeps others waiting, get the block from
    /// here. Not cancel-safe.
    pub async fn finish(mut self, block: &Bytes) -> Outcome {
        loop {
            if let Some((id, addr, open)) = self.open.take()
                && matches!(self.wait_for(id, addr, open).await, Ended::Answered)
            {
                return self.outcome;
            }
            self.open_next().await;
            if self.open.is_none() {
                return self.outcome;
            }
            self.write(block.clone()).await;
        }
    }

    async fn wait_for(&mut self, id: BlockdId, addr: SocketAddr, open: OutgoingRequest) -> Ended {
        let (asked, left) = (Instant::now(), self.time_left());
        let mut answer = Box::pin(tokio::time::timeout(left, open.finish::<BlockReply>()));
        // Only where another one could do instead.
        let patience = if self.rest.is_empty() { left } else { PATIENCE };
        let Ok(answer) = tokio::time::timeout(patience, &mut answer).await else {
            if let Some(lag) = self.replicator.lag() {
                self.replicator.lagging_tasks.spawn(async move {
                    let _lag = lag;
                    // It may still store the block; nobody waits for it.
                    let _ = answer.await;
                });
            }
            self.unreachable((id, addr), asked, None);
            return Ended::Next;
        };
        match answer {
            Ok(Ok((BlockReply::Stored { synced, failed, full, .. }, _))) => {
                // I9: it speaks for itself and for those behind it, and for nobody else.
                let is_asked = |other: &BlockdId| *other == id || self.rest.iter().any(|(id, _)| id == other);
                self.outcome.synced.extend(synced.into_iter().filter(is_asked));
                self.outcome.failed.extend(failed.into_iter().filter(|(other, _)| is_asked(other)));
                self.outcome.full.extend(full.into_iter().filter(is_asked));
                return Ended::Answered;
            }
            Ok(Ok((BlockReply::OldLayout(newer), _))) => {
                self.failed(id, addr, "knows newer owners".to_owned());
                self.outcome.newer = Some(newer);
            }
            Ok(Ok((BlockReply::Failed(reason), _))) => self.failed(id, addr, reason),
            Ok(Ok(_)) => self.failed(id, addr, "answered something else".to_owned()),
            Ok(Err(error)) => self.unreachable((id, addr), asked, Some(&error)),
            Err(_) => self.unreachable((id, addr), asked, None),
        }
        Ended::Next
    }
}
