//! The session with its leases. Every question to metad and every change goes through here, so that what is known
//! ([`super::Known`]) stays valid. Each takes the same way: a mark, the request, and what its answer and leases say
//! about the time since the mark.

use super::held_locks::HeldLocks;
use super::{Known, Mark};
use crate::error::unexpected_reply;
use crate::meta::bounds::Bounds;
use crate::meta::rpc::Rpc;
use crate::meta::session::{
    Alive, Answer, BatchFailed, OnExpiry, Opened, SESSIONS_TRIED, Session, SessionOptions, SpareIno,
};
use crate::tickets::Tickets;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::attr::Timestamp;
use wire::ids::{Ino, SessionId};
use wire::layout::Layout;
use wire::message::meta::LeaseState;
use wire::op::{Op, OpReply, Read, ReadReply};
use wire::{Error, FsError};

/// How often a question is asked while this session goes on changing what it is about.
const ASKED_MAX: u32 = 3;

/// A session, and what it knows under its leases.
pub struct LeasedSession {
    session: Arc<Session>,
    known: Arc<Known>,
}

/// An answer, and how it may be cached.
pub struct LeasedAnswer {
    /// The answer, or why there is none.
    pub answer: Result<ReadReply, FsError>,
    /// When it was asked for, if there are leases on it. [`Known`] caches the answer with this mark.
    pub leased: Option<Mark>,
}

/// Drops what is lost with a session.
struct Expiry {
    known: Arc<Known>,
    locks: Arc<HeldLocks>,
}

impl OnExpiry for Expiry {
    fn session_expired(&self) {
        self.known.empty();
        // Before there is another session, because later locks are held by that one.
        let files = self.locks.lose_all();
        if files > 0 {
            tracing::warn!(
                files,
                "locks were lost with the session: their holders are refused until they give them up"
            );
        }
    }
}

impl LeasedSession {
    /// Opens the first session. When a session expires, `known` and `locks` drop what they hold by it.
    ///
    /// # Errors
    /// Returns why no metad answers, within `limit`.
    pub async fn open(
        rpc: Rpc,
        (host, purpose): (&str, &str),
        resumes: Option<SessionId>,
        (known, locks): (Arc<Known>, Arc<HeldLocks>),
        tasks: (TaskTracker, CancellationToken),
        limit: Duration,
    ) -> Result<(Self, Opened), Error> {
        let on_expiry = Arc::new(Expiry { known: known.clone(), locks });
        let (host, purpose) = (host.to_owned(), purpose.to_owned());
        let options = SessionOptions { host, purpose, resumes, on_expiry, tasks };
        let (session, opened) = Session::open(rpc, options, limit).await?;
        Ok((Self { session: Arc::new(session), known }, opened))
    }

    /// Carries out operations, all or none, exactly once. Runs to its end though the caller is dropped: what is known
    /// of the changed inodes is not used until the outcome is known.
    ///
    /// # Errors
    /// Returns why the first of them failed.
    pub async fn submit(&self, ops: Vec<Op>) -> Result<Vec<OpReply>, FsError> {
        self.submit_within(ops, self.session.rpc().patience()).await
    }

    async fn submit_within(&self, ops: Vec<Op>, limit: Option<Duration>) -> Result<Vec<OpReply>, FsError> {
        let is_work = ops.iter().any(|op| !matches!(op, Op::Accessed { .. }) && op.attrs_changed().next().is_some());
        let replies = self.send(ops, limit, SESSIONS_TRIED).await.map_err(|failed| failed.error)?;
        if is_work {
            // Only now is it known that this session may change anything.
            self.known.note_work();
        }
        Ok(replies)
    }

    /// Carries out operations in this session only, and returns which one failed. The patience of a soft mount does not
    /// limit this: later operations are based on the answer.
    ///
    /// # Errors
    /// [`BatchFailed`]; `SessionExpired` when nothing was done and there is a new session to try.
    pub async fn submit_batch(&self, ops: Vec<Op>) -> Result<Vec<OpReply>, BatchFailed> {
        self.send(ops, None, 1).await
    }

    async fn send(&self, ops: Vec<Op>, limit: Option<Duration>, sessions: usize) -> Result<Vec<OpReply>, BatchFailed> {
        let (session, known) = (self.session.clone(), self.known.clone());
        let carried_out = async move {
            let mark = known.change(&ops);
            let outcome = session.carry_out(&ops, limit, sessions).await;
            match &outcome {
                Ok(done) => known.changed(mark, &ops, &done.replies, done.leased.as_deref(), &done.delegated),
                Err(_) => known.changed(mark, &ops, &[], None, &[]),
            }
            outcome.map(|done| done.replies)
        };
        self.session.to_its_end(carried_out).await
    }

    /// Carries out one operation.
    ///
    /// # Errors
    /// Returns why it failed.
    pub async fn one(&self, op: Op) -> Result<OpReply, FsError> {
        let Some(reply) = self.submit(vec![op]).await?.pop() else { return Err(unexpected_reply()) };
        Ok(reply)
    }

    /// Carries out a change of content. The patience of a soft mount does not limit this: if the client gave up and the
    /// change was carried out all the same, the next change would be in conflict with it, or append the same once more
    /// (I1).
    ///
    /// # Errors
    /// Returns why it failed.
    pub async fn one_until_answered(&self, op: Op) -> Result<OpReply, FsError> {
        self.first_until_answered(vec![op]).await
    }

    /// Carries out a change of content as [`LeasedSession::one_until_answered`] does, with further operations in the
    /// same batch. Returns the reply to the first one.
    ///
    /// # Errors
    /// Returns why one of them failed.
    pub async fn first_until_answered(&self, ops: Vec<Op>) -> Result<OpReply, FsError> {
        let Some(reply) = self.submit_within(ops, None).await?.into_iter().next() else {
            return Err(unexpected_reply());
        };
        Ok(reply)
    }

    /// Asks a question.
    ///
    /// # Errors
    /// As the system call would fail.
    pub async fn read(&self, read: Read) -> Result<ReadReply, FsError> {
        self.read_leased(read).await?.answer
    }

    /// Asks a question whose answer may be cached.
    ///
    /// # Errors
    /// Fails when there is no answer.
    pub async fn read_leased(&self, read: Read) -> Result<LeasedAnswer, FsError> {
        self.ask(read, false).await
    }

    /// Asks a question whose answer is needed to send what was done here under delegations.
    ///
    /// # Errors
    /// As the system call would fail.
    pub async fn read_to_send(&self, read: Read) -> Result<ReadReply, FsError> {
        self.ask(read, true).await?.answer
    }

    async fn ask(&self, read: Read, sends: bool) -> Result<LeasedAnswer, FsError> {
        let mut asked = 0;
        loop {
            // A session that is at work asks for delegations with its questions.
            let (mark, at_work) = self.known.before_question();
            let Answer { answer, leased, delegated } = self.session.read(&read, at_work, sends).await?;
            if !delegated.is_empty() {
                self.known.delegated(&delegated, mark);
            }
            if let Some(ino) = read.ino().filter(|_| !leased && read.is_cached()) {
                self.known.note_crowded(ino);
            }
            asked += 1;
            // The answer may lack an operation that was done here before and sent while the answer was under way, and
            // is not pinned any more.
            let overtaken = matches!(&answer, Ok(ReadReply::Attr(attr)) if self.known.was_changed_here(attr.ino, mark));
            if !overtaken || asked == ASKED_MAX {
                return Ok(LeasedAnswer { answer, leased: leased.then_some(mark) });
            }
        }
    }

    /// Asks the leader whether the session lives. Extends the leases.
    ///
    /// # Errors
    /// Returns why the last attempt within `limit` failed.
    pub async fn keep_alive(&self, layout: &Layout, limit: Duration) -> Result<Alive, Error> {
        let mark = self.known.mark();
        let alive = self.session.keep_alive(layout, limit).await?;
        if let Alive::Yes { asked, leases: LeaseState::Extended { alone }, .. } = &alive {
            self.known.extend(*asked, mark, *alone);
        }
        Ok(alive)
    }
}

/// Methods of the session below.
impl LeasedSession {
    /// Returns the present session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.session.id()
    }

    /// Returns the directory that is this client's root.
    #[must_use]
    pub fn root(&self) -> Ino {
        self.bounds().root
    }

    /// Returns the block tickets that came with answers.
    pub fn tickets(&self) -> &Arc<Tickets> {
        self.session.tickets()
    }

    /// Returns the bounds of this client.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.session.bounds()
    }

    /// Returns how many questions and changes went to metad.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.session.requests()
    }

    /// Returns the connection below.
    #[must_use]
    pub fn rpc(&self) -> &Rpc {
        self.session.rpc()
    }

    /// Opens a new session in place of one that has expired.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn renew(&self, expired: SessionId) -> Result<(), FsError> {
        self.session.renew(expired).await
    }

    /// Returns the time by the leader's clock; see [`Session::stamp`].
    #[must_use]
    pub fn stamp(&self) -> Timestamp {
        self.session.stamp()
    }

    /// Returns an inode number that was never used.
    ///
    /// # Errors
    /// As [`Session::next_ino`].
    pub async fn next_ino(&self) -> Result<Ino, FsError> {
        self.session.next_ino().await
    }

    /// Returns an inode number that may be given back.
    ///
    /// # Errors
    /// As [`Session::next_ino`].
    pub(crate) async fn spare_ino(&self) -> Result<SpareIno, FsError> {
        self.session.spare_ino().await
    }

    /// Takes an unused number back.
    pub(crate) fn return_spare(&self, unused: SpareIno) {
        self.session.return_spare(unused);
    }

    /// Acknowledges events of a session to the metad that sent them. False when the acknowledgement may not have
    /// arrived.
    #[must_use]
    pub async fn acknowledge(&self, from: (SessionId, SocketAddr), seqs: Vec<u64>, limit: Duration) -> bool {
        self.session.acknowledge(from, seqs, limit).await
    }

    /// Ends the session.
    pub async fn close(&self, limit: Duration) {
        self.session.close(limit).await;
    }
}
