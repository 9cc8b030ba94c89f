//! What a metad asks of those who agree with it on one order of commands. [`crate::raft`] is one way to agree; the
//! simulation has another, so that everything above it (requests, leases, events, group commit) is the real thing there.

use crate::error::{Error, ProposeError};
use crate::fs::view::Kv;
use crate::fs::{CommandReply, Stamped};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use wire::ids::MetadId;
use wire::message::meta::RaftKind;

/// A node of the cluster, as its peers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MetadId,
    /// Where it serves.
    pub addr: SocketAddr,
    /// Whether it votes; learners only follow.
    pub voter: bool,
    /// Log index known to be stored there; only the leader knows.
    pub matched: u64,
}

/// The state as it was at one position of the log, whatever is applied meanwhile.
pub trait Frozen: Kv {
    /// Raft term of the position.
    fn term(&self) -> u64;

    /// Log index of the position.
    fn applied(&self) -> u64;

    /// How many keys there are.
    fn pair_count(&self) -> u64;

    /// Why some of what was asked for could not be read: then what was answered is not the whole state.
    fn failure(&self) -> Option<String>;
}

/// A node's part in the agreement.
pub trait Consensus: Send + Sync {
    /// The applied state, to be read after [`Consensus::read_barrier`].
    fn state(&self) -> &Arc<dyn Kv>;

    /// Replicates a command and applies it, if a term is named only while this node leads in that: what was waited for
    /// under another leadership counts for nothing. Runs to its end though the caller is dropped.
    ///
    /// # Errors
    /// [`ProposeError`]: not leader, unknown whether it will be applied, or larger than an entry may be. Nothing is carried
    /// out in another term.
    fn propose_in(&self, term: Option<u64>, stamped: Stamped) -> BoxFuture<'_, Result<CommandReply, ProposeError>>;

    /// The same in any term.
    ///
    /// # Errors
    /// As [`Consensus::propose_in`].
    fn propose(&self, stamped: Stamped) -> BoxFuture<'_, Result<CommandReply, ProposeError>> {
        self.propose_in(None, stamped)
    }

    /// Waits until what is read now is current (I2).
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when this node cannot know.
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Whether this node leads, as far as it knows.
    fn leads(&self) -> bool {
        self.leadership().is_some()
    }

    /// The term in which this node leads, as far as it knows.
    fn leadership(&self) -> Option<u64>;

    /// The leader, as far as this node knows.
    fn leader(&self) -> BoxFuture<'_, Option<MetadId>>;

    /// The nodes of the cluster.
    fn members(&self) -> Vec<Member>;

    /// Term and applied log index.
    fn progress(&self) -> (u64, u64);

    /// Adds a node: it follows until it has caught up, then votes.
    ///
    /// # Errors
    /// When this node does not lead, or the new one cannot be reached.
    fn add(&self, _id: MetadId, _addr: SocketAddr) -> BoxFuture<'_, Result<(), ProposeError>> {
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
    /// When there is nothing that could take one, or it takes longer than `limit`.
    fn snapshot(&self, _limit: Duration) -> BoxFuture<'_, Result<(), Error>> {
        async { Err(Error::Raft("there are no snapshots here".to_owned())) }.boxed()
    }

    /// Keeps the state as it is now, or will be in a moment, for whoever reads it for long.
    ///
    /// # Errors
    /// As [`Consensus::snapshot`], or when the disk fails.
    fn freeze(&self, _limit: Duration) -> BoxFuture<'_, Result<Arc<dyn Frozen>, Error>> {
        async { Err(Error::Raft("there are no snapshots here".to_owned())) }.boxed()
    }

    /// Carries out a peer's message.
    ///
    /// # Errors
    /// The reason, for the peer.
    fn handle<'a>(&'a self, _kind: RaftKind, _payload: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        async { Err("this node has no peers".to_owned()) }.boxed()
    }

    /// Takes no further part.
    fn stop(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
