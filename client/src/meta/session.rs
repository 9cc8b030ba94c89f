//! The session: its number, the numbers of its batches (I1), its inode numbers (I4).

use super::rpc::Rpc;
use crate::cache::{Cache, attrs_changed};
use crate::locks::HeldLocks;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use wire::attr::{InodeAttr, Timestamp};
use wire::ids::{BatchSeq, Ino, SessionId};
use wire::layout::Layout;
use wire::limits::{INO_RANGE, SESSION_REPLIES_MAX};
use wire::message::meta::{LeaseState, MetaReply, MetaRequest};
use wire::op::{Batch, Op, OpFailed, OpReply, Read, ReadReply};
use wire::sys::since_boot;
use wire::{Error, FsError};

/// Batches on their way at once; far below what the state machine keeps replies of.
const IN_FLIGHT: usize = 256;
/// How far numbers run ahead of the oldest batch without an answer.
const WINDOW: u64 = SESSION_REPLIES_MAX as u64 / 2;
const _: () = assert!(IN_FLIGHT as u64 <= WINDOW);
/// Attempts at a batch whose session ended under it.
const SESSIONS_TRIED: usize = 3;

/// Numbers of the present session.
struct Numbers {
    id: SessionId,
    /// Number of the last batch that was given out.
    last: BatchSeq,
    /// Batches without a reply yet.
    open: BTreeSet<BatchSeq>,
    /// Unused inode numbers, half-open.
    inos: (Ino, Ino),
    /// Others that were not used after all. They go first: metad remembers only the last numbers that it has leased.
    spare: Vec<Ino>,
}

/// An inode number that may not be needed.
#[derive(Clone, Copy)]
pub(crate) struct SpareIno {
    session: SessionId,
    pub(crate) ino: Ino,
}

/// A session with metad, replaced by a new one when it expires.
pub struct Session {
    rpc: Rpc,
    cache: Arc<Cache>,
    locks: HeldLocks,
    /// Questions and changes that went to metad.
    requests: AtomicU64,
    host: String,
    purpose: String,
    numbers: Mutex<Numbers>,
    /// Held while a new session is opened.
    renewing: tokio::sync::Mutex<()>,
    /// Held while inode numbers are fetched.
    leasing: tokio::sync::Mutex<()>,
    slots: Semaphore,
    /// Told with each answer.
    answered: Notify,
    clock: Mutex<LeaderClock>,
    /// When something was changed here last, in milliseconds of [`since_boot`]; 0 when nothing was.
    changed_at: AtomicU64,
}

/// The leader's clock, as far as its answers tell.
#[derive(Default)]
struct LeaderClock {
    /// How far it is ahead of this machine's, in nanoseconds, and how exactly that is known.
    ahead: i128,
    within: Option<Duration>,
    /// The last time that was given out or seen: it never runs backwards here.
    last: Timestamp,
}

/// A question may ask for delegations for so long after a change: who works in a tree goes on there.
const AT_WORK: Duration = Duration::from_secs(2);

/// What a batch has come to.
struct CarriedOut {
    replies: Vec<OpReply>,
    leased: Option<Vec<InodeAttr>>,
    delegated: Vec<Ino>,
}

/// Why a batch was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchFailed {
    /// Why.
    pub error: FsError,
    /// The operation that was refused; `None` when the batch got no answer.
    pub index: Option<usize>,
}

impl From<FsError> for BatchFailed {
    fn from(error: FsError) -> Self {
        Self { error, index: None }
    }
}

/// What opening a session tells.
pub struct Opened {
    /// The block layout.
    pub layout: Layout,
    /// The session lives this long without a sign of life.
    pub ttl: Duration,
    /// The leader's clock.
    pub now: Timestamp,
}

fn fresh(id: SessionId) -> Numbers {
    Numbers { id, last: BatchSeq(0), open: BTreeSet::new(), inos: (Ino(0), Ino(0)), spare: Vec::new() }
}

impl Session {
    /// Opens the first session.
    ///
    /// # Errors
    /// Why nobody answers, within `limit`.
    pub async fn open(
        rpc: Rpc,
        (host, purpose): (&str, &str),
        resumes: Option<SessionId>,
        limit: Duration,
    ) -> Result<(Self, Opened), Error> {
        let (host, purpose) = (host.to_owned(), purpose.to_owned());
        let token = Some(rand::random());
        let (name, of) = (host.clone(), purpose.clone());
        let request = MetaRequest::OpenSession { host: name, purpose: of, caches: true, resumes, token };
        let asked = since_boot();
        let (id, opened) = opened(rpc.ask_within(&request, Some(limit)).await?)?;
        let session = Self {
            rpc,
            cache: Arc::default(),
            locks: HeldLocks::default(),
            requests: AtomicU64::new(0),
            host,
            purpose,
            numbers: Mutex::new(fresh(id)),
            renewing: tokio::sync::Mutex::new(()),
            leasing: tokio::sync::Mutex::new(()),
            slots: Semaphore::new(IN_FLIGHT),
            answered: Notify::new(),
            clock: Mutex::default(),
            changed_at: AtomicU64::new(0),
        };
        session.learn_time(asked, opened.now);
        Ok((session, opened))
    }

    /// The present session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.numbers.lock().id
    }

    /// What the session answers itself.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Locks that the session holds, and that earlier ones have lost.
    #[must_use]
    pub fn locks(&self) -> &HeldLocks {
        &self.locks
    }

    /// How many questions and changes went to metad.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The connection below.
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
        self.cache.empty();
        // Before there is another session: what is taken from now on is that one's.
        let files = self.locks.lose_all();
        if files > 0 {
            tracing::warn!(files, "locks were lost with the session: who held them is refused until it gives them up");
        }
        let (host, purpose) = (self.host.clone(), self.purpose.clone());
        // What was made here under delegations and is not told yet has numbers of the old one.
        let (resumes, token) = (Some(expired), Some(rand::random()));
        let request = MetaRequest::OpenSession { host, purpose, caches: true, resumes, token };
        let (id, _) = opened(self.rpc.ask(&request).await?).map_err(|_| FsError::Io)?;
        *self.numbers.lock() = fresh(id);
        Ok(())
    }

    /// Carries out operations, all or none, exactly once. Goes on to its end though the caller is dropped: what is cached
    /// of what they change is not used until it is known what became of them.
    ///
    /// # Errors
    /// Why the first of them failed.
    pub async fn submit(self: &Arc<Self>, ops: Vec<Op>) -> Result<Vec<OpReply>, FsError> {
        self.submit_within(ops, self.rpc.patience()).await
    }

    async fn submit_within(self: &Arc<Self>, ops: Vec<Op>, limit: Option<Duration>) -> Result<Vec<OpReply>, FsError> {
        let is_work = ops.iter().any(|op| !matches!(op, Op::Accessed { .. }) && attrs_changed(op).next().is_some());
        let replies = self.send(ops, limit, SESSIONS_TRIED).await.map_err(|failed| failed.error)?;
        if is_work {
            // Not before it is known that this session may change anything.
            self.note_work();
        }
        Ok(replies)
    }

    /// The same, and tells which one failed. A soft mount's patience does not count: what follows is based on the answer.
    ///
    /// # Errors
    /// [`BatchFailed`]; `SessionExpired` when nothing was done, and there is a new session that may be tried.
    pub async fn submit_batch(self: &Arc<Self>, ops: Vec<Op>) -> Result<Vec<OpReply>, BatchFailed> {
        self.send(ops, None, 1).await
    }

    async fn send(
        self: &Arc<Self>,
        ops: Vec<Op>,
        limit: Option<Duration>,
        sessions: usize,
    ) -> Result<Vec<OpReply>, BatchFailed> {
        let session = self.clone();
        let carried_out = async move {
            let mark = session.cache.change(&ops);
            let outcome = session.carry_out(&ops, limit, sessions).await;
            match &outcome {
                Ok(done) => session.cache.changed(mark, &ops, &done.replies, done.leased.as_deref(), &done.delegated),
                Err(_) => session.cache.changed(mark, &ops, &[], None, &[]),
            }
            outcome.map(|done| done.replies)
        };
        tokio::spawn(carried_out).await.unwrap_or(Err(FsError::Io.into()))
    }

    async fn carry_out(&self, ops: &[Op], limit: Option<Duration>, sessions: usize) -> Result<CarriedOut, BatchFailed> {
        let _slot = self.slots.acquire().await.map_err(|_| FsError::Io)?;
        for _ in 0..sessions {
            self.requests.fetch_add(1, Ordering::Relaxed);
            let (numbered, acked) = self.number().await;
            let batch = Batch { seq: numbered.seq, acked, ops: ops.to_vec() };
            let request = MetaRequest::Submit { session: numbered.session, batch };
            match self.rpc.ask_for(&request, limit).await? {
                MetaReply::Batch { reply, leased, delegated } => {
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

    /// Something is changed here.
    pub fn note_work(&self) {
        self.changed_at.store(since_boot().as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether something was changed here a moment ago.
    pub(crate) fn is_at_work(&self) -> bool {
        let at = self.changed_at.load(Ordering::Relaxed);
        at > 0 && since_boot().as_millis() as u64 - at < AT_WORK.as_millis() as u64
    }

    /// Now, as the leader would stamp it, as far as is known; later than everything that was stamped here.
    pub fn stamp(&self) -> Timestamp {
        let mut clock = self.clock.lock();
        let ahead = clock.ahead;
        clock.last = clock.last.max(Timestamp::now().shifted(ahead));
        clock.last
    }

    /// Takes in the leader's time, asked for at this time of [`since_boot`].
    fn learn_time(&self, asked: Duration, now: Timestamp) {
        let mut clock = self.clock.lock();
        let within = since_boot().saturating_sub(asked);
        // An estimate gets old: clocks drift, and leaders change.
        let known = clock.within.map(|within| within + Duration::from_micros(100));
        clock.within = known;
        if known.is_none_or(|known| within <= known) {
            let middle = i128::try_from(within.as_nanos() / 2).unwrap_or(0);
            clock.ahead = now.nanos_since(Timestamp::now()) + middle;
            clock.within = Some(within);
        }
    }

    /// Gives a batch its number, as soon as that lies within the window of replies that metad keeps: one batch that
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

    /// Carries out one operation.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn one(self: &Arc<Self>, op: Op) -> Result<OpReply, FsError> {
        self.submit(vec![op]).await?.pop().ok_or(FsError::Io)
    }

    /// The same, for a change of content: if it were given up on, and carried out all the same, the next one would be in
    /// conflict with it, or append the same once more (I1). A soft mount's patience does not count.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn one_until_answered(self: &Arc<Self>, op: Op) -> Result<OpReply, FsError> {
        self.first_until_answered(vec![op]).await
    }

    /// The same with others that go along. Answers with the first one's reply.
    ///
    /// # Errors
    /// Why one of them failed.
    pub async fn first_until_answered(self: &Arc<Self>, ops: Vec<Op>) -> Result<OpReply, FsError> {
        self.submit_within(ops, None).await?.into_iter().next().ok_or(FsError::Io)
    }

    /// Asks a question.
    ///
    /// # Errors
    /// As the system call would fail.
    pub async fn read(&self, read: Read) -> Result<ReadReply, FsError> {
        self.read_leased(read).await?.0
    }

    /// Asks a question, and tells whether the session holds leases on what was answered.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn read_leased(&self, read: Read) -> Result<(Result<ReadReply, FsError>, bool), FsError> {
        self.ask(read, false).await
    }

    /// The same, for who has to know it to tell what was done here under delegations.
    ///
    /// # Errors
    /// As the system call would fail.
    pub async fn read_to_tell(&self, read: Read) -> Result<ReadReply, FsError> {
        self.ask(read, true).await?.0
    }

    async fn ask(&self, read: Read, tells: bool) -> Result<(Result<ReadReply, FsError>, bool), FsError> {
        loop {
            let (session, mark) = (self.id(), self.cache.mark());
            self.requests.fetch_add(1, Ordering::Relaxed);
            let delegate = self.is_at_work();
            match self.rpc.ask(&MetaRequest::Read { session, read: read.clone(), delegate, tells }).await? {
                MetaReply::Read { answer, leased, delegated } => {
                    self.cache.delegated(&delegated, mark);
                    return Ok((answer, leased));
                }
                MetaReply::Failed(FsError::SessionExpired) => self.renew(session).await?,
                MetaReply::Failed(error) => return Err(error),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Tells metad that what these events asked for is done.
    pub async fn acknowledge(&self, seqs: Vec<u64>, limit: Duration) {
        let request = MetaRequest::Acknowledge { session: self.id(), seqs };
        if let Err(error) = self.rpc.ask_within(&request, Some(limit)).await {
            tracing::debug!(%error, "an acknowledgement was not delivered");
        }
    }

    /// An inode number that was never used.
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
            let OpReply::Inos { start, count } = self.one(Op::LeaseInos { count: INO_RANGE }).await? else {
                return Err(FsError::Io);
            };
            let mut numbers = self.numbers.lock();
            // I4: numbers leased by a session are of no use in another.
            if numbers.id == leased_in {
                numbers.inos = (start, Ino(start.0 + count));
            }
        }
    }

    /// The same for a conflict copy, which most commits do not need: to be given back then.
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

    /// Takes a number back that was not used.
    pub(crate) fn keep_spare(&self, unused: SpareIno) {
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

    /// The leader's word that the session lives.
    ///
    /// # Errors
    /// What became of the attempt within `limit`.
    pub async fn keep_alive(&self, layout: &Layout, limit: Duration) -> Result<Alive, Error> {
        let session = self.id();
        let request = MetaRequest::KeepAlive { session, epoch: layout.epoch };
        let (asked, mark) = (since_boot(), self.cache.mark());
        match self.rpc.ask_within(&request, Some(limit)).await? {
            MetaReply::Alive { now, orphans, layout, leases } => {
                self.learn_time(asked, now);
                if let LeaseState::Extended { alone } = leases
                    && self.id() == session
                {
                    self.cache.extend(asked, mark, alone);
                }
                Ok(Alive::Yes { orphans, layout, attached: leases != LeaseState::None })
            }
            MetaReply::Failed(_) => Ok(Alive::No(session)),
            other => Err(Error::Malformed(format!("unexpected reply {other:?}"))),
        }
    }
}

/// Whether a session lives.
pub enum Alive {
    /// It does.
    Yes {
        /// Unlinked inodes that it is asked about.
        orphans: Vec<Ino>,
        /// The layout, when ours was old.
        layout: Option<Layout>,
        /// metad sends us events.
        attached: bool,
    },
    /// This one has expired.
    No(SessionId),
}

fn opened(reply: MetaReply) -> Result<(SessionId, Opened), Error> {
    match reply {
        MetaReply::Session { session, ttl_ms, layout, now } => {
            Ok((session, Opened { layout, ttl: Duration::from_millis(ttl_ms), now }))
        }
        other => Err(Error::Malformed(format!("unexpected reply {other:?}"))),
    }
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

/// The number of a batch; it counts as answered when this is dropped.
struct Numbered<'a> {
    home: &'a Session,
    session: SessionId,
    seq: BatchSeq,
}

impl<'a> Numbered<'a> {
    /// The next number, and up to where replies may be forgotten.
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
