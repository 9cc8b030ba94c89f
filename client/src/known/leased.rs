//! The session with its leases: everything that is asked of metad or changed there goes through here, so that what is known
//! ([`super::Known`]) stays right. Each question and each change takes the same way: a mark, the request, and what its
//! answer and the leases with it say of the time since the mark.

use super::held_locks::HeldLocks;
use super::{Known, Mark};
use crate::meta::rpc::Rpc;
use crate::meta::session::{
    Alive, Answer, BatchFailed, OnExpiry, Opened, SESSIONS_TRIED, Session, SessionOptions, SpareIno,
};
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

/// A question is asked so often while this session goes on changing what it is about.
const ASKED_MAX: u32 = 3;

/// A session, and what it knows under its leases.
pub struct LeasedSession {
    session: Arc<Session>,
    known: Arc<Known>,
}

/// An answer, and what it may be kept as.
pub struct LeasedAnswer {
    /// The answer, or why there is none.
    pub answer: Result<ReadReply, FsError>,
    /// When it was asked for, if there are leases on it: [`Known`] learns it with that.
    pub leased: Option<Mark>,
}

/// What is lost with a session.
struct Expiry {
    known: Arc<Known>,
    locks: Arc<HeldLocks>,
}

impl OnExpiry for Expiry {
    fn session_expired(&self) {
        self.known.empty();
        // Before there is another session: what is taken from now on is that one's.
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
    /// Opens the first session. When a session expires, `known` and `locks` lose what they hold by it.
    ///
    /// # Errors
    /// Why nobody answers, within `limit`.
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

    /// Carries out operations, all or none, exactly once. Goes on to its end though the caller is dropped: what is known
    /// of what they change is not used until it is known what became of them.
    ///
    /// # Errors
    /// Why the first of them failed.
    pub async fn submit(&self, ops: Vec<Op>) -> Result<Vec<OpReply>, FsError> {
        self.submit_within(ops, self.session.rpc().patience()).await
    }

    async fn submit_within(&self, ops: Vec<Op>, limit: Option<Duration>) -> Result<Vec<OpReply>, FsError> {
        let is_work = ops.iter().any(|op| !matches!(op, Op::Accessed { .. }) && op.attrs_changed().next().is_some());
        let replies = self.send(ops, limit, SESSIONS_TRIED).await.map_err(|failed| failed.error)?;
        if is_work {
            // Not before it is known that this session may change anything.
            self.known.note_work();
        }
        Ok(replies)
    }

    /// Carries out operations in this session only, and says which one failed. A soft mount's patience does not count:
    /// what follows is based on the answer.
    ///
    /// # Errors
    /// [`BatchFailed`]; `SessionExpired` when nothing was done, and there is a new session that may be tried.
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
    /// Why it failed.
    pub async fn one(&self, op: Op) -> Result<OpReply, FsError> {
        self.submit(vec![op]).await?.pop().ok_or(FsError::Io)
    }

    /// Carries out a change of content. A soft mount's patience does not count: if the change were given up on, and carried
    /// out all the same, the next one would be in conflict with it, or append the same once more (I1).
    ///
    /// # Errors
    /// Why it failed.
    pub async fn one_until_answered(&self, op: Op) -> Result<OpReply, FsError> {
        self.first_until_answered(vec![op]).await
    }

    /// Carries out a change of content as [`LeasedSession::one_until_answered`] does, and operations that go along. Answers
    /// with the first one's reply.
    ///
    /// # Errors
    /// Why one of them failed.
    pub async fn first_until_answered(&self, ops: Vec<Op>) -> Result<OpReply, FsError> {
        self.submit_within(ops, None).await?.into_iter().next().ok_or(FsError::Io)
    }

    /// Asks a question.
    ///
    /// # Errors
    /// As the system call would fail.
    pub async fn read(&self, read: Read) -> Result<ReadReply, FsError> {
        self.read_leased(read).await?.answer
    }

    /// Asks a question whose answer may be kept.
    ///
    /// # Errors
    /// When there is no answer.
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
            asked += 1;
            // What was done here before, and sent while the answer was on its way, may be missing in it, and nothing shows
            // it any more.
            let overtaken = matches!(&answer, Ok(ReadReply::Attr(attr)) if self.known.was_changed_here(attr.ino, mark));
            if !overtaken || asked == ASKED_MAX {
                return Ok(LeasedAnswer { answer, leased: leased.then_some(mark) });
            }
        }
    }

    /// The leader's word that the session lives. Extends the leases.
    ///
    /// # Errors
    /// What became of the attempt within `limit`.
    pub async fn keep_alive(&self, layout: &Layout, limit: Duration) -> Result<Alive, Error> {
        let mark = self.known.mark();
        let alive = self.session.keep_alive(layout, limit).await?;
        if let Alive::Yes { asked, leases: LeaseState::Extended { alone }, .. } = &alive {
            self.known.extend(*asked, mark, *alone);
        }
        Ok(alive)
    }
}

/// What the session below does.
impl LeasedSession {
    /// The present session's number.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.session.id()
    }

    /// How many questions and changes went to metad.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.session.requests()
    }

    /// The connection below.
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

    /// Now, by the leader's clock; see [`Session::stamp`].
    #[must_use]
    pub fn stamp(&self) -> Timestamp {
        self.session.stamp()
    }

    /// An inode number that was never used.
    ///
    /// # Errors
    /// As [`Session::next_ino`].
    pub async fn next_ino(&self) -> Result<Ino, FsError> {
        self.session.next_ino().await
    }

    /// An inode number that may be given back.
    ///
    /// # Errors
    /// As [`Session::next_ino`].
    pub(crate) async fn spare_ino(&self) -> Result<SpareIno, FsError> {
        self.session.spare_ino().await
    }

    /// Takes a number back that was not used.
    pub(crate) fn keep_spare(&self, unused: SpareIno) {
        self.session.keep_spare(unused);
    }

    /// Acknowledges events of a session to the metad that sent them. False when it may not have heard.
    #[must_use]
    pub async fn acknowledge(&self, from: (SessionId, SocketAddr), seqs: Vec<u64>, limit: Duration) -> bool {
        self.session.acknowledge(from, seqs, limit).await
    }

    /// Ends the session.
    pub async fn close(&self, limit: Duration) {
        self.session.close(limit).await;
    }
}
