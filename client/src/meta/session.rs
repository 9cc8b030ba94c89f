//! The session: its number, the numbers of its batches (I1), its inode numbers (I4), the leader's clock.
//!
//! It knows nothing of leases: [`crate::known::leased`] is the layer above, through which all others ask and change.

use super::bounds::Bounds;
use super::clock::LeaderClock;
pub use super::opened::Opened;
use super::opened::opened;
use super::rpc::Rpc;
use crate::error::unexpected_reply;
use crate::ordered::{Ordered, Rank};
use crate::tickets::Tickets;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::attr::{InodeAttr, Timestamp};
use wire::chance;
use wire::ids::{BatchSeq, Ino, SessionId};
use wire::layout::Layout;
use wire::limits::{INO_RANGE, SESSION_REPLIES_MAX};
use wire::message::meta::{LeaseState, MetaReply, MetaRequest};
use wire::op::{Batch, Op, OpFailed, OpReply, Read, ReadReply};
use wire::sys::since_boot;
use wire::{Error, FsError, trace};

/// Batches under way at once; far fewer than the replies that the state machine retains.
const IN_FLIGHT: usize = 256;
/// How far numbers may run ahead of the oldest batch without an answer.
const WINDOW: u64 = SESSION_REPLIES_MAX as u64 / 2;
const _: () = assert!(IN_FLIGHT as u64 <= WINDOW);
/// In how many sessions a batch is tried when its session expires.
pub const SESSIONS_TRIED: usize = 3;

/// Numbers of the present session.
struct Numbers {
    id: SessionId,
    /// Number of the last batch.
    last: BatchSeq,
    /// Batches without a reply yet.
    open: BTreeSet<BatchSeq>,
    /// Unused inode numbers, half-open.
    inos: (Ino, Ino),
    /// Other unused numbers. They are used first: metad remembers only the last numbers that it has leased.
    spare: Vec<Ino>,
}

/// An inode number that may be given back unused.
#[derive(Clone, Copy)]
pub(crate) struct SpareIno {
    session: SessionId,
    pub(crate) ino: Ino,
}

/// A session with metad, replaced by a new one when it expires.
pub struct Session {
    rpc: Rpc,
    /// How many questions and changes went to metad.
    requests: AtomicU64,
    options: SessionOptions,
    bounds: Bounds,
    tickets: Arc<Tickets>,
    numbers: Ordered<Numbers>,
    /// Held while a new session is opened.
    renewing: tokio::sync::Mutex<()>,
    /// Held while inode numbers are fetched.
    leasing: tokio::sync::Mutex<()>,
    slots: Semaphore,
    /// Notified with each answer.
    answered: Notify,
    clock: Ordered<LeaderClock>,
}

/// A listener for the end of sessions.
pub trait OnExpiry: Send + Sync {
    /// Called when the session has expired, before there is another one.
    fn session_expired(&self);
}

/// Options of a session.
pub struct SessionOptions {
    /// Name of this machine.
    pub host: String,
    /// The purpose of the session, shown to operators.
    pub purpose: String,
    /// An earlier client's session that ends when this one begins: none of its requests arrives any more.
    pub resumes: Option<SessionId>,
    /// Notified of each end of a session.
    pub on_expiry: Arc<dyn OnExpiry>,
    /// Tracks batches under way, and ends them.
    pub tasks: (TaskTracker, CancellationToken),
}

/// The result of a batch.
pub struct CarriedOut {
    /// A reply for each operation.
    pub replies: Vec<OpReply>,
    /// With leases on everything that was changed: attributes that no reply has.
    pub leased: Option<Vec<InodeAttr>>,
    /// Inodes on which the session got delegations.
    pub delegated: Vec<Ino>,
}

/// The answer to a question.
pub struct Answer {
    /// The answer, or why there is none.
    pub answer: Result<ReadReply, FsError>,
    /// Whether the session holds leases on it.
    pub leased: bool,
    /// Inodes on which the session got delegations.
    pub delegated: Vec<Ino>,
}

/// Why a batch was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchFailed {
    /// The error.
    pub error: FsError,
    /// The operation that was refused; `None` when the batch got no answer.
    pub index: Option<usize>,
}

impl From<FsError> for BatchFailed {
    fn from(error: FsError) -> Self {
        Self { error, index: None }
    }
}

fn fresh(id: SessionId) -> Numbers {
    Numbers { id, last: BatchSeq(0), open: BTreeSet::new(), inos: (Ino(0), Ino(0)), spare: Vec::new() }
}

impl Session {
    /// Opens the first session.
    ///
    /// # Errors
    /// Returns why no metad answers, within `limit`.
    pub async fn open(rpc: Rpc, options: SessionOptions, limit: Duration) -> Result<(Self, Opened), Error> {
        let asked = since_boot();
        let request = options.request(options.resumes);
        let (id, opened) = opened(rpc.ask_within(&request, Some(limit)).await?)?;
        let session = Self {
            rpc,
            requests: AtomicU64::new(0),
            options,
            bounds: opened.bounds,
            tickets: Arc::new(Tickets::new(opened.bounds.are_set())),
            numbers: Ordered::new(Rank::Leaf, fresh(id)),
            renewing: tokio::sync::Mutex::new(()),
            leasing: tokio::sync::Mutex::new(()),
            slots: Semaphore::new(IN_FLIGHT),
            answered: Notify::new(),
            clock: Ordered::new(Rank::Leaf, LeaderClock::default()),
        };
        session.learn_time(asked, opened.now);
        Ok((session, opened))
    }

    /// Returns the present session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.numbers.lock().id
    }

    /// Returns the bounds of this client.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Returns the block tickets that came with answers.
    #[must_use]
    pub fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// Returns how many questions and changes went to metad.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns the connection below.
    #[must_use]
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// Opens a new session in place of one that has expired.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn renew(&self, expired: SessionId) -> Result<(), FsError> {
        let _one = self.renewing.lock().await;
        if self.id() != expired {
            return Ok(());
        }
        tracing::warn!(session = %expired, "the session has expired; opening a new one");
        self.options.on_expiry.session_expired();
        // Unsent inodes that were made here under delegations have numbers of the old session.
        let request = self.options.request(Some(expired));
        let (id, opened) = opened(self.rpc.ask(&request).await?).map_err(|error| {
            tracing::error!(session = %expired, %error, "no session was opened in place of the expired one");
            FsError::Io
        })?;
        if opened.bounds.root != self.bounds.root {
            tracing::error!("the directory that was this client's root is another one by now: mount again");
        }
        *self.numbers.lock() = fresh(id);
        Ok(())
    }

    /// Runs work to its end though the caller is dropped.
    ///
    /// # Errors
    /// `Io` when the client ends.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, BatchFailed>> + Send + 'static,
    ) -> Result<T, BatchFailed> {
        let (under_way, stop) = &self.options.tasks;
        let ended = under_way.spawn(trace::carried(stop.clone().run_until_cancelled_owned(work))).await;
        ended.ok().flatten().unwrap_or(Err(FsError::Io.into()))
    }

    /// Carries out operations, all or none, exactly once, trying at most this many sessions. A caller that must know
    /// the outcome must not drop this future: the number of the batch is dropped with it.
    ///
    /// # Errors
    /// Returns why the first of them failed; `SessionExpired` when nothing was done and there is a new session to try.
    pub async fn carry_out(
        &self,
        ops: &[Op],
        limit: Option<Duration>,
        sessions: usize,
    ) -> Result<CarriedOut, BatchFailed> {
        let _slot = self.slots.acquire().await.map_err(|_| FsError::Io)?;
        for _ in 0..sessions {
            self.requests.fetch_add(1, Ordering::Relaxed);
            let (numbered, acked) = self.number().await;
            let batch = Batch { seq: numbered.seq, acked, caller: self.bounds.caller(), ops: ops.to_vec() };
            let receipts = self.tickets.receipts_for(ops);
            let request = MetaRequest::Submit { session: numbered.session, batch, receipts };
            match self.rpc.ask_for(&request, limit).await? {
                MetaReply::Batch { reply, leased, delegated } => {
                    if matches!(&reply, Err(OpFailed { error: FsError::NotPermitted, .. })) {
                        self.tickets.forget_receipts(ops);
                    }
                    let failed =
                        |failed: OpFailed| BatchFailed { error: failed.error, index: Some(failed.index as usize) };
                    return reply.map(|replies| CarriedOut { replies, leased, delegated }).map_err(failed);
                }
                MetaReply::Failed(FsError::SessionExpired) => self.renew(numbered.session).await?,
                MetaReply::Failed(error) => return Err(error.into()),
                other => return Err(unexpected(&other).into()),
            }
        }
        Err(FsError::SessionExpired.into())
    }

    /// Returns the time as the leader would stamp it, as well as that is known; later than everything that was stamped
    /// here.
    pub fn stamp(&self) -> Timestamp {
        self.clock.lock().stamp()
    }

    /// Learns the leader's time, asked for at this time of [`since_boot`].
    fn learn_time(&self, asked: Duration, now: Timestamp) {
        self.clock.lock().learn(asked, now);
    }

    /// Gives a batch its number, as soon as that lies within the window of replies that metad retains: one batch that
    /// hangs must not push the others out of it.
    async fn number(&self) -> (Numbered<'_>, BatchSeq) {
        loop {
            let mut answered = std::pin::pin!(self.answered.notified());
            answered.as_mut().enable();
            if let Some(numbered) = Numbered::take(self) {
                return numbered;
            }
            answered.await;
        }
    }

    /// Asks a question. `delegate` asks for delegations on what is answered. With `sends`, the answer is needed to send
    /// what this session did under delegations, and the question does not wait for other sessions that do so, too.
    ///
    /// # Errors
    /// Fails when there is no answer.
    pub async fn read(&self, read: &Read, delegate: bool, sends: bool) -> Result<Answer, FsError> {
        loop {
            let session = self.id();
            self.requests.fetch_add(1, Ordering::Relaxed);
            let request =
                MetaRequest::Read { session, read: read.clone(), delegate, sends, caller: self.bounds.caller() };
            match self.rpc.ask(&request).await? {
                MetaReply::Read { answer, leased, delegated, tickets } => {
                    self.tickets.note(tickets);
                    return Ok(Answer { answer, leased, delegated });
                }
                MetaReply::Failed(FsError::SessionExpired) => self.renew(session).await?,
                MetaReply::Failed(error) => return Err(error),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Acknowledges events to the metad that sent them to a session: what they asked for is done. False when the
    /// acknowledgement may not have arrived: metad then goes on waiting.
    #[must_use]
    pub async fn acknowledge(&self, (id, metad): (SessionId, SocketAddr), seqs: Vec<u64>, limit: Duration) -> bool {
        let request = MetaRequest::Acknowledge { session: id, seqs };
        let reply = self.rpc.ask_at(metad, &request, limit).await;
        let heard = matches!(reply, Ok(MetaReply::Done));
        if !heard {
            tracing::debug!(?reply, "an acknowledgement was not delivered");
        }
        heard
    }

    /// Returns an inode number that was never used.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn next_ino(self: &Arc<Self>) -> Result<Ino, FsError> {
        loop {
            if let Some(ino) = self.numbers.lock().take_ino() {
                return Ok(ino);
            }
            let _one = self.leasing.lock().await;
            if let Some(ino) = self.numbers.lock().take_ino() {
                return Ok(ino);
            }
            let leased_in = self.id();
            let session = self.clone();
            let lease = async move {
                let ops = [Op::LeaseInos { count: INO_RANGE }];
                session.carry_out(&ops, session.rpc.patience(), SESSIONS_TRIED).await
            };
            let leased = self.to_its_end(lease).await.map_err(|failed| failed.error)?;
            let Some(OpReply::Inos { start, count }) = leased.replies.first().cloned() else {
                return Err(unexpected_reply());
            };
            let mut numbers = self.numbers.lock();
            // I4: numbers leased by a session are of no use in another.
            if numbers.id == leased_in {
                numbers.inos = (start, Ino(start.0 + count));
            }
        }
    }

    /// Returns an inode number for a conflict copy. Most commits do not need it and give it back.
    ///
    /// # Errors
    /// As [`Session::next_ino`].
    pub(crate) async fn spare_ino(self: &Arc<Self>) -> Result<SpareIno, FsError> {
        loop {
            let session = self.id();
            let ino = self.next_ino().await?;
            if self.id() == session {
                return Ok(SpareIno { session, ino });
            }
        }
    }

    /// Takes an unused number back.
    pub(crate) fn return_spare(&self, unused: SpareIno) {
        let mut numbers = self.numbers.lock();
        // I4: numbers leased by a session are of no use in another.
        if numbers.id == unused.session {
            numbers.spare.push(unused.ino);
        }
    }

    /// Ends the session.
    pub async fn close(&self, limit: Duration) {
        let request = MetaRequest::CloseSession { session: self.id() };
        if let Err(error) = self.rpc.ask_within(&request, Some(limit)).await {
            tracing::warn!(%error, "the session was not closed; it will expire");
        }
    }

    /// Asks the leader whether the session lives.
    ///
    /// # Errors
    /// Returns why the last attempt within `limit` failed.
    pub async fn keep_alive(&self, layout: &Layout, limit: Duration) -> Result<Alive, Error> {
        let session = self.id();
        let request = MetaRequest::KeepAlive { session, epoch: layout.epoch };
        let asked = since_boot();
        match self.rpc.ask_within(&request, Some(limit)).await? {
            MetaReply::Alive { now, orphans, layout, leases } => {
                self.learn_time(asked, now);
                let leases = match leases {
                    // These were the leases of a session that has ended since.
                    LeaseState::Extended { .. } if self.id() != session => LeaseState::Pending,
                    leases => leases,
                };
                Ok(Alive::Yes { asked, orphans, layout, leases })
            }
            MetaReply::Failed(_) => Ok(Alive::No(session)),
            other => Err(Error::Malformed(format!("unexpected reply {other:?}"))),
        }
    }
}

impl SessionOptions {
    fn request(&self, resumes: Option<SessionId>) -> MetaRequest {
        let (host, purpose) = (self.host.clone(), self.purpose.clone());
        MetaRequest::OpenSession { host, purpose, caches: true, resumes, token: Some(chance::number()) }
    }
}

/// Whether a session lives.
pub enum Alive {
    /// It lives.
    Yes {
        /// When it was asked, by [`since_boot`].
        asked: Duration,
        /// Unlinked inodes for which metad asks whether they are open.
        orphans: Vec<Ino>,
        /// The layout, if ours was old.
        layout: Option<Layout>,
        /// Whether metad counts our leases, and extends them.
        leases: LeaseState,
    },
    /// This session has expired.
    No(SessionId),
}

fn unexpected(reply: &MetaReply) -> FsError {
    tracing::error!(?reply, "metad answered something else than was asked");
    FsError::Io
}

impl Numbers {
    fn take_ino(&mut self) -> Option<Ino> {
        if let Some(spare) = self.spare.pop() {
            return Some(spare);
        }
        let (next, end) = self.inos;
        (next < end).then(|| {
            self.inos.0 = next.next();
            next
        })
    }
}

/// The number of a batch. The batch counts as answered when this is dropped.
struct Numbered<'a> {
    home: &'a Session,
    session: SessionId,
    seq: BatchSeq,
}

impl<'a> Numbered<'a> {
    /// Takes the next number. Returns also the number before which replies may be forgotten.
    fn take(home: &'a Session) -> Option<(Self, BatchSeq)> {
        let mut numbers = home.numbers.lock();
        let seq = numbers.last.next();
        // I1: only replies that nobody waits for any more may be forgotten.
        let first_open = numbers.open.first().copied().unwrap_or(seq);
        let acked = BatchSeq(first_open.0 - 1);
        if seq.0 - acked.0 > WINDOW {
            return None;
        }
        numbers.last = seq;
        numbers.open.insert(seq);
        Some((Self { home, session: numbers.id, seq }, acked))
    }
}

impl Drop for Numbered<'_> {
    fn drop(&mut self) {
        {
            let mut numbers = self.home.numbers.lock();
            if numbers.id == self.session {
                numbers.open.remove(&self.seq);
            }
        }
        self.home.answered.notify_waiters();
    }
}
