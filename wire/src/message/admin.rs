//! What operators ask of metad.

use crate::ids::{MetadId, SessionId};
use crate::layout::Layout;
use crate::op::StatFs;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// An operator's request, answered by the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    /// State of the cluster. Answers `Status`.
    Status,
    /// Add a running, empty metad as a voter: it learns first, then votes. Answers `Done` once it votes.
    AddMetad {
        /// Its id.
        id: MetadId,
        /// Where it serves.
        addr: SocketAddr,
    },
    /// Remove a metad from the cluster. Answers `Done` once the others go on without it.
    RemoveMetad {
        /// Its id.
        id: MetadId,
    },
    /// Replicas per block and how many of them must have synced before a write is acknowledged. Answers `Done`.
    SetRedundancy {
        /// 1 to 5.
        replicas: u8,
        /// 1 to `replicas`.
        min_sync: u8,
    },
    /// Take a snapshot of the metadata now. Answers `Done` when it is durable.
    Snapshot,
    /// Check the whole metadata for contradictions. Answers `Problems`.
    Check,
}

/// Answer to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminReply {
    /// It is done.
    Done,
    /// It could not be done, and why.
    Failed(String),
    /// State of the cluster.
    Status(Box<ClusterStatus>),
    /// What contradicts itself, one line each; empty when all is well.
    Problems(Vec<String>),
}

/// State of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Name given at creation.
    pub cluster: String,
    /// The leader.
    pub leader: MetadId,
    /// Raft term.
    pub term: u64,
    /// Log index applied by the leader.
    pub applied: u64,
    /// Metadata nodes: id, address, voter or learner, log index known to be there.
    pub metads: Vec<(MetadId, SocketAddr, bool, u64)>,
    /// Block daemons.
    pub layout: Layout,
    /// Per block daemon of the layout, in its order: milliseconds since its last heartbeat (if one was heard), free bytes, capacity.
    pub blockds: Vec<(Option<u64>, u64, u64)>,
    /// Sessions: number, host, purpose.
    pub sessions: Vec<(SessionId, String, String)>,
    /// Capacity and use.
    pub statfs: StatFs,
}
