//! Storing a block on a chain of daemons, cut through: each forwards to the next while it still receives.
//!
//! ```text
//! client ──► first ──► second ──► third        payload, in pieces, as it arrives
//!            │ hash    │ hash     │ hash        each verifies and syncs its own copy (I9)
//!        ◄── Stored ◄── Stored ◄── Stored       each adds itself to what the rest of the chain answered
//! ```
//!
//! A daemon of the chain that cannot be reached, fails on the way, or keeps others waiting is skipped: the next one
//! after it gets the block from here, whole if need be. The sender learns which daemons failed, and decides whether
//! enough have synced. It is answered when as many have as it needs; the rest of the chain goes on after that.
//! Forwarding runs beside receiving and storing: neither waits for the next daemon.
//!
//! A chain names members of the layout: this daemon connects to no address that a sender made up. A sender's behaviour
//! also makes no daemon suspect: a deadline that was too short, a payload that it let wait, or one that the next daemon
//! refused.
//!
//! State: the daemons that failed a moment ago ([`Suspects`]), so that not every block waits for the same dead one;
//! those that were slow, which come last in a chain for a while; and requests to slow daemons that nobody waits for any
//! more.

use crate::lagging::{Lag, Lagging};
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use wire::buffers::{Buffer, Pool};
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, PartyId};
use wire::layout::Layout;
use wire::limits::BLOCK_BYTES_MAX;
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::{Endpoint, Incoming, OutgoingRequest};
use wire::sections::{SECTION_BYTES, SectionHasher, Sections};
use wire::suspects::Suspects;
use wire::tls::Role;
use wire::{Error, trace};

/// Received bytes are hashed and passed on in pieces of at least this size: large enough for BLAKE3's wide paths, small
/// enough that hashing one (some 40 µs) may run on a runtime thread. They end where sections do.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES.is_multiple_of(SECTION_BYTES));
/// A daemon that failed is not tried again for this long.
const SUSPECT_FOR: Duration = Duration::from_secs(5);
/// A daemon that does not answer is suspect only when it had this long for each copy it should make: as long as a
/// handshake may take.
const FAIR_WAIT: Duration = Duration::from_secs(2);
/// How long a daemon may keep those after it in the chain waiting, for each copy it should make. A paused one never
/// answers, and the next can do the work. This is less than clients wait before they go past the whole chain.
const PATIENCE_PER_COPY: Duration = Duration::from_millis(600);
/// Additional time for each MiB of the block that it has to store.
const PATIENCE_PER_MIB: Duration = Duration::from_millis(400);
/// A daemon that was slow comes last in its chains for this long.
const SLOW_FOR: Duration = Duration::from_secs(5);
/// How long a block may take after its put was answered.
pub const LAG_MAX: Duration = Duration::from_secs(5);
/// Share of the sender's time for the rest of the chain: the sender must learn which daemons failed.
const DEADLINE_SHARE: f64 = 0.8;
/// Smaller blocks are left to the allocator.
const REUSED_BYTES_MIN: usize = 64 << 10;
/// Capacities of reused buffers are multiples of this, so that blocks of similar lengths share them.
const CAPACITY_STEP: usize = 1 << 20;
/// Most memory pooled for reuse: fresh memory costs more than the network does.
const POOLED_BYTES_MAX: usize = 64 << 20;

/// The rest of a chain: the daemons to forward to, in order.
pub type Chain = Vec<BlockdId>;

/// Receives blocks and passes them on.
pub struct Replicator {
    endpoint: Endpoint,
    suspects: Suspects<SocketAddr>,
    slow: Suspects<SocketAddr>,
    buffers: Arc<Pool>,
    lagging: Arc<Lagging>,
    lagging_tasks: TaskTracker,
}

/// Outcome of receiving a block's payload.
pub enum Received {
    /// It matches its hash, and these are its sections.
    Block(Bytes, Sections),
    /// It does not match its hash.
    Mismatch,
}

/// Messages from a [`Replicator::receive`] to a [`Forward::run`]: pieces in order, then the whole block, once it is
/// verified.
enum Arriving {
    Piece(Bytes),
    Whole(Bytes),
}

/// The sender of a block's pieces to [`Forward::run`].
pub struct Arrivals(mpsc::Sender<Arriving>);

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
    /// Adds the outcome of others.
    pub fn add(&mut self, other: Outcome) {
        self.synced.extend(other.synced);
        self.failed.extend(other.failed);
        self.full.extend(other.full);
        self.newer = other.newer.or(self.newer.take());
    }
}

/// Outcome for a daemon of the chain.
enum Ended {
    /// It answered, for itself and those after it.
    Answered,
    /// The next one must be tried from here.
    Next,
    /// The block did not arrive.
    NoBlock,
}

impl Replicator {
    /// Forwards from `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            suspects: Suspects::new(SUSPECT_FOR),
            slow: Suspects::new(SLOW_FOR),
            buffers: Pool::new(REUSED_BYTES_MIN, POOLED_BYTES_MAX),
            lagging: Arc::default(),
            lagging_tasks: TaskTracker::new(),
        }
    }

    /// Reserves a place among the blocks that may lag behind their answer, for one of this party; `None` when too many
    /// do.
    #[must_use]
    pub fn lag(&self, origin: PartyId) -> Option<Lag> {
        self.lagging.begin(origin)
    }

    /// Prepares forwarding to the rest of the chain; `needed` is how many copies of it the sender waits for.
    #[must_use]
    pub fn forward(
        &self,
        (hash, epoch, origin): (BlockHash, LayoutEpoch, PartyId),
        (layout, chain): (&Layout, Chain),
        needed: u8,
        request: &Incoming,
    ) -> (Arrivals, Forward<'_>) {
        let deadline = request.deadline().saturating_duration_since(Instant::now()).mul_f64(DEADLINE_SHARE);
        // Room for all pieces of one block.
        let (arrivals, arriving) = mpsc::channel(BLOCK_BYTES_MAX / PIECE_BYTES + 2);
        let mut forward = Forward {
            replicator: self,
            hash,
            epoch,
            origin,
            len: request.payload_len(),
            granted: deadline,
            deadline: Instant::now() + deadline,
            needed,
            rest: VecDeque::with_capacity(chain.len()),
            arriving,
            pieces_taken: false,
            whole: None,
            outcome: Outcome::default(),
        };
        for id in chain {
            match layout.member(&id) {
                Some(member) => forward.rest.push_back((id, member.addr)),
                None => forward.outcome.failed.push((id, "not a member of the layout that is known here".to_owned())),
            }
        }
        forward.rest.make_contiguous().sort_by_key(|(_, addr)| self.slow.contains(addr));
        (Arrivals(arrivals), forward)
    }

    /// Receives the payload of a block, and passes its pieces on while hashing it. Not cancel-safe.
    ///
    /// # Errors
    /// [`wire::Error::Malformed`] when the sender's stream ends early.
    pub async fn receive(
        &self,
        hash: BlockHash,
        request: &mut Incoming,
        arrivals: Arrivals,
    ) -> Result<Received, wire::Error> {
        let len = request.payload_len();
        assert!(len <= BLOCK_BYTES_MAX, "checked before anything is received");
        let mut buffer = self.buffer_for(len);
        let mut hasher = SectionHasher::default();
        let mut passed = 0;
        while let Some(chunk) = request.next_chunk().await? {
            buffer.extend_from_slice(&chunk);
            let complete = buffer.len() == len;
            let ready = if complete { buffer.len() } else { buffer.len() - buffer.len() % SECTION_BYTES };
            if complete || ready - passed >= PIECE_BYTES {
                let piece = &buffer[passed..ready];
                if !arrivals.0.is_closed() {
                    // There is room for all pieces, and a receiver that has gone needs none.
                    let _ = arrivals.0.try_send(Arriving::Piece(Bytes::copy_from_slice(piece)));
                }
                hasher.update(piece);
                passed = ready;
            }
        }
        // I9: content that does not match its name is never stored.
        let (name, sections) = hasher.finish();
        if name != hash {
            return Ok(Received::Mismatch);
        }
        let block = buffer.freeze();
        let _ = arrivals.0.try_send(Arriving::Whole(block.clone()));
        Ok(Received::Block(block, sections))
    }

    fn buffer_for(&self, len: usize) -> Buffer {
        if len < REUSED_BYTES_MIN {
            return self.buffers.enclose(Vec::with_capacity(len));
        }
        self.buffers.take(len, || Vec::with_capacity(len.next_multiple_of(CAPACITY_STEP)))
    }
}

/// A block on its way down the chain.
pub struct Forward<'a> {
    replicator: &'a Replicator,
    hash: BlockHash,
    epoch: LayoutEpoch,
    /// Who takes turns for it at the other daemons.
    origin: PartyId,
    len: usize,
    /// The sender's time for the rest of the chain.
    granted: Duration,
    deadline: Instant,
    needed: u8,
    rest: VecDeque<(BlockdId, SocketAddr)>,
    arriving: mpsc::Receiver<Arriving>,
    /// Whether pieces went to a daemon already: the next one gets the block as a whole.
    pieces_taken: bool,
    whole: Option<Bytes>,
    outcome: Outcome,
}

/// A daemon of the chain to which a request is open.
struct Opened {
    id: BlockdId,
    addr: SocketAddr,
    /// Copies that it should make before it answers, including its own.
    copies: u8,
    request: OutgoingRequest,
}

impl Forward<'_> {
    /// Passes the block on as it arrives. Daemons that come after one that failed, or keeps others waiting, get the
    /// block from here. Not cancel-safe.
    pub async fn run(mut self) -> Outcome {
        while let Some(mut opened) = self.open_next().await {
            match self.pass_on(&mut opened).await {
                Ok(()) => {}
                Err(Ended::Next) => continue,
                Err(_) => break,
            }
            if !matches!(self.wait_for(opened).await, Ended::Next) {
                break;
            }
        }
        self.outcome
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long to wait for a daemon that should make this many copies before it has failed: less where another one
    /// could take its place.
    fn patience(&self, copies: u8) -> Duration {
        let for_each = if self.rest.is_empty() { FAIR_WAIT } else { PATIENCE_PER_COPY };
        self.time_left().min(for_each * u32::from(copies))
    }

    fn failed(&mut self, id: BlockdId, addr: SocketAddr, reason: String) {
        tracing::debug!(%id, %addr, hash = %self.hash, reason, "a daemon of the chain failed");
        self.outcome.failed.push((id, reason));
    }

    async fn open_next(&mut self) -> Option<Opened> {
        while let Some((id, addr)) = self.rest.pop_front() {
            // If no other daemon could take its place, even a suspect is asked.
            let others_do = self.outcome.synced.len() + self.rest.len() >= usize::from(self.needed);
            if others_do && self.replicator.suspects.contains(&addr) {
                self.failed(id, addr, "failed a moment ago".to_owned());
                continue;
            }
            let chain = self.rest.iter().map(|(id, _)| *id).collect();
            let copies = self.needed.clamp(1, self.rest.len() as u8 + 1);
            let origin = Some(self.origin);
            let head = BlockRequest::Put { hash: self.hash, epoch: self.epoch, chain, needed: copies, origin };
            let peer = self.replicator.endpoint.peer(addr, Role::Blockd);
            let (asked, left) = (Instant::now(), self.time_left());
            let opening = peer.open_request(&head, u32::try_from(self.len).unwrap_or(u32::MAX), left);
            // A connection may have to be made, which a paused daemon never answers.
            match tokio::time::timeout(self.patience(1), opening).await {
                Ok(Ok(request)) => return Some(Opened { id, addr, copies, request }),
                Ok(Err(error)) => self.unreachable((id, addr), (asked, 1), Some(&error)),
                Err(_) => self.unreachable((id, addr), (asked, 1), None),
            }
        }
        None
    }

    /// Handles the failure, by this error or by time, of a daemon that should make this many copies since `asked`.
    fn unreachable(
        &mut self,
        (id, addr): (BlockdId, SocketAddr),
        (asked, copies): (Instant, u8),
        error: Option<&Error>,
    ) {
        // A daemon that was given too little time may have ended the request itself, before it ended here.
        let is_lost = match error {
            Some(Error::NotSent { .. }) => true,
            Some(Error::Unanswered { .. }) => self.granted >= FAIR_WAIT,
            _ => false,
        };
        if asked.elapsed() >= FAIR_WAIT * u32::from(copies) || (is_lost && !self.time_left().is_zero()) {
            self.replicator.suspects.add(addr);
        } else if asked.elapsed() >= PATIENCE_PER_COPY * u32::from(copies) {
            self.replicator.slow.add(addr);
        }
        self.failed(id, addr, error.map_or_else(|| "it did not answer in time".to_owned(), Error::to_string));
    }

    /// Sends the block: in pieces while they arrive if no daemon had any before, otherwise as a whole.
    async fn pass_on(&mut self, opened: &mut Opened) -> Result<(), Ended> {
        let in_pieces = !self.pieces_taken;
        loop {
            if let Some(block) = self.whole.clone() {
                return self.write_all(opened, block).await;
            }
            match self.arriving.recv().await {
                None => return Err(Ended::NoBlock),
                Some(Arriving::Whole(block)) => {
                    self.whole = Some(block);
                    if in_pieces {
                        return Ok(());
                    }
                }
                Some(Arriving::Piece(piece)) => {
                    self.pieces_taken = true;
                    if in_pieces {
                        self.write_all(opened, piece).await?;
                    }
                }
            }
        }
    }

    /// A daemon that takes no bytes for a while is given up.
    async fn write_all(&mut self, opened: &mut Opened, mut bytes: Bytes) -> Result<(), Ended> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            let asked = Instant::now();
            let failed = match tokio::time::timeout(self.patience(1), opened.request.write(piece)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            self.unreachable((opened.id, opened.addr), (asked, 1), failed.as_ref());
            return Err(Ended::Next);
        }
        Ok(())
    }

    async fn wait_for(&mut self, Opened { id, addr, copies, request }: Opened) -> Ended {
        let asked = Instant::now();
        let mut answer = Box::pin(tokio::time::timeout(self.time_left(), request.finish::<BlockReply>()));
        let for_bytes = PATIENCE_PER_MIB.mul_f64(self.len as f64 / f64::from(1 << 20));
        let in_time = tokio::time::timeout(self.patience(copies) + for_bytes, &mut answer).await;
        let answer = match in_time {
            Ok(answer) => answer,
            Err(_) if self.rest.is_empty() => {
                if asked.elapsed() >= FAIR_WAIT * u32::from(copies) {
                    self.replicator.suspects.add(addr);
                }
                answer.await
            }
            Err(_) => {
                if let Some(lag) = self.replicator.lag(self.origin) {
                    self.replicator.lagging_tasks.spawn(trace::carried_id(async move {
                        let _lag = lag;
                        // It may still store the block; nobody waits for it.
                        let _ = tokio::time::timeout(LAG_MAX, answer).await;
                    }));
                }
                self.unreachable((id, addr), (asked, copies), None);
                return Ended::Next;
            }
        };
        match answer {
            Ok(Ok((BlockReply::Stored { synced, failed, full, .. }, _))) => {
                // I9: it speaks only for itself and for those behind it.
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
            Ok(Err(error)) => self.unreachable((id, addr), (asked, copies), Some(&error)),
            Err(_) => self.unreachable((id, addr), (asked, copies), None),
        }
        Ended::Next
    }
}
