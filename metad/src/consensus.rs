//! What a metad needs from the nodes that agree with it on one order of commands. [`crate::raft`] is one
//! implementation; the simulation has another, so that everything above it (requests, leases, events, group commit) is
//! the real thing there.

use crate::error::{Error, ProposeError};
use crate::fs::view::Kv;
use crate::fs::{CommandReply, Stamped};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use wire::ids::MetadId;
use wire::limits::METADS_MAX;
use wire::message::check::{CheckId, DigestState};
use wire::message::meta::{LogPlace, RaftKind};

/// A node of the cluster, as its peers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MetadId,
    /// The address on which it serves.
    pub addr: SocketAddr,
    /// Whether it votes; learners only follow.
    pub voter: bool,
    /// Log index that it is known to have stored; only the leader knows.
    pub matched: u64,
    /// How long ago it has answered last; only the leader knows, and not of itself.
    pub heard: Option<Duration>,
}

/// The state at one position of the log, whatever is applied later.
pub trait Frozen: Kv {
    /// Raft term of the position.
    fn term(&self) -> u64;

    /// Log index of the position.
    fn applied(&self) -> u64;

    /// The number of keys.
    fn pair_count(&self) -> u64;

    /// Returns why some of the state could not be read, if so: then the answers so far are incomplete.
    fn failure(&self) -> Option<String>;
}

/// A node's part in the consensus.
pub trait Consensus: Send + Sync {
    /// The applied state, to be read after [`Consensus::read_barrier`].
    fn state(&self) -> &Arc<dyn Kv>;

    /// Replicates a command and applies it; if a term is given, only while this node leads in that term: what was
    /// waited for under another leadership does not count. It runs to its end even if the caller is dropped.
    ///
    /// # Errors
    /// [`ProposeError`]: this node does not lead, it is unknown whether the command will be applied, or the command is
    /// larger than an entry may be. Nothing is carried out in another term.
    fn propose_in(&self, term: Option<u64>, stamped: Stamped) -> BoxFuture<'_, Result<CommandReply, ProposeError>>;

    /// Proposes a command in any term.
    ///
    /// # Errors
    /// As [`Consensus::propose_in`].
    fn propose(&self, stamped: Stamped) -> BoxFuture<'_, Result<CommandReply, ProposeError>> {
        self.propose_in(None, stamped)
    }

    /// Waits until what is read from now on is current (I2).
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when this node cannot know that.
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Returns whether this node believes that it leads.
    fn leads(&self) -> bool {
        self.leadership().is_some()
    }

    /// Returns the term in which this node believes that it leads.
    fn leadership(&self) -> Option<u64>;

    /// Returns the leader, if this node knows one.
    fn leader(&self) -> BoxFuture<'_, Option<MetadId>>;

    /// Returns the nodes of the cluster.
    fn members(&self) -> Vec<Member>;

    /// Returns the id and address of each node by the last change of the membership that this node has applied, and
    /// where the log says so. Unlike [`Consensus::members`], this is never taken back. Empty on a node that has not
    /// applied anything.
    fn settled_members(&self) -> (LogPlace, Vec<(MetadId, SocketAddr)>) {
        let nodes = self.members().into_iter().map(|member| (member.id, member.addr));
        (LogPlace::default(), nodes.take(METADS_MAX).collect())
    }

    /// Returns the term and the applied log index.
    fn progress(&self) -> (u64, u64);

    /// Adds a node: it follows until it has caught up, and then votes.
    ///
    /// # Errors
    /// When this node does not lead, or the new one cannot be reached.
    fn add(&self, _id: MetadId, _addr: SocketAddr) -> BoxFuture<'_, Result<(), ProposeError>> {
        async { Err(ProposeError::Refused("the nodes of this cluster are fixed".to_owned())) }.boxed()
    }

    /// Adds a node that follows the log and does not vote. Does nothing if it is a member already. Does not wait for it.
    ///
    /// # Errors
    /// When this node does not lead, the number is or was that of another node, or there are [`METADS_MAX`] nodes.
    fn add_learner(&self, _id: MetadId, _addr: SocketAddr) -> BoxFuture<'_, Result<(), ProposeError>> {
        async { Err(ProposeError::Refused("the nodes of this cluster are fixed".to_owned())) }.boxed()
    }

    /// Gives a learner the vote of another node, and removes that one, in one change of the membership. Does nothing if
    /// that was done before.
    ///
    /// # Errors
    /// When this node does not lead, the learner is none, has not caught up or does not answer, or a majority cannot be
    /// reached.
    fn replace(&self, _old: MetadId, _new: MetadId) -> BoxFuture<'_, Result<(), ProposeError>> {
        async { Err(ProposeError::Refused("the nodes of this cluster are fixed".to_owned())) }.boxed()
    }

    /// Removes a node.
    ///
    /// # Errors
    /// When this node does not lead, or too few would be left.
    fn remove(&self, _id: MetadId) -> BoxFuture<'_, Result<(), ProposeError>> {
        async { Err(ProposeError::Refused("the nodes of this cluster are fixed".to_owned())) }.boxed()
    }

    /// Takes a snapshot now, and waits until it is durable.
    ///
    /// # Errors
    /// When this consensus takes no snapshots, or it takes longer than `limit`.
    fn snapshot(&self, _limit: Duration) -> BoxFuture<'_, Result<(), Error>> {
        async { Err(Error::Raft("there are no snapshots here".to_owned())) }.boxed()
    }

    /// Returns the state as it is now, or in a moment, for long reads: later changes do not show in it.
    ///
    /// # Errors
    /// As [`Consensus::snapshot`], or when the disk fails.
    fn freeze(&self, _limit: Duration) -> BoxFuture<'_, Result<Arc<dyn Frozen>, Error>> {
        async { Err(Error::Raft("there are no snapshots here".to_owned())) }.boxed()
    }

    /// Waits until this node can take part no more, and returns why. Does not end when it is stopped. Cancel-safe.
    fn failed(&self) -> BoxFuture<'_, String> {
        std::future::pending().boxed()
    }

    /// Returns whether this node's disk has little space left: what takes more is not to be proposed.
    fn is_short_of_space(&self) -> bool {
        false
    }

    /// Returns how far the digest of this node's own state at the mark of a check is, and has the node wait for the mark
    /// if it was not asked before.
    fn digest(&self, _check: CheckId) -> DigestState {
        DigestState::GivenUp("states are not compared here".to_owned())
    }

    /// Handles a peer's message.
    ///
    /// # Errors
    /// The reason, for the peer.
    fn handle<'a>(&'a self, _kind: RaftKind, _payload: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        async { Err("this node has no peers".to_owned()) }.boxed()
    }

    /// Stops taking part.
    fn stop(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
