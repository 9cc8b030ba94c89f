//! Operators' requests to metad.

use crate::attr::Timestamp;
use crate::ids::{MetadId, SessionId, TokenId};
use crate::layout::Layout;
use crate::message::block::RepairReport;
use crate::message::cert::{AuditRecords, CertList, CertTarget, RotationStatus};
use crate::message::check::{CheckReply, CheckRequest};
use crate::op::StatFs;
use crate::token::{NewToken, TokenInfo};
use crate::trust::SignedTrust;
use bytes::Bytes;
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
    /// Remove a metad from the cluster, and refuse its certificate. Answers `Done` once the others go on without it, or
    /// `Report` if its certificate is not refused.
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
    /// Begin or cease to empty a block daemon. Answers `Done` once the layout says so; the blocks move afterwards.
    DrainBlockd {
        /// Its name.
        name: String,
        /// Whether to begin or to cease.
        drain: bool,
    },
    /// Let a block daemon that has not joined yet take over what another one owns, as soon as it joins. The other one
    /// is then emptied. Answers `Done`.
    ReplaceBlockd {
        /// Name of the daemon that leaves.
        name: String,
        /// Name of the future daemon.
        successor: String,
    },
    /// Forget a block daemon that does not run and will not come back, and refuse its certificate. Answers `Done`.
    RemoveBlockd {
        /// Its name.
        name: String,
        /// It will come back, empty, with the same certificate.
        keep_identity: bool,
    },
    /// Set how long a block daemon may be silent before it is taken out. Answers `Done`.
    SetDownAfter {
        /// Milliseconds, at least [`DOWN_AFTER_MIN_MS`](crate::limits::DOWN_AFTER_MIN_MS).
        ms: u64,
    },
    /// Take a snapshot of the metadata now. Answers `Done` when it is durable.
    Snapshot,
    /// A step of checking the whole metadata for contradictions. Answers `Check`.
    Check(CheckRequest),
    /// Pin the blocks that something refers to now: none of them is deleted for this long. Answers `Done`.
    PinBlocks {
        /// Name of the pin, new, of 1 to [`PIN_NAME_BYTES_MAX`](crate::limits::PIN_NAME_BYTES_MAX) bytes.
        name: String,
        /// Milliseconds from now, at most [`PIN_MAX_MS`](crate::limits::PIN_MAX_MS).
        keep_ms: u64,
    },
    /// The pins that hold. Answers `Pins`.
    Pins,
    /// Remove a pin. Answers `Done`.
    ReleasePin {
        /// Its name.
        name: String,
    },
    /// End a session at once, as if it had been silent for too long: what it holds, others can have. Answers `Done`.
    EvictSession {
        /// The session.
        session: SessionId,
    },
    /// Resume the deletion of unreferenced blocks after a recovery. Answers `Done`, or `Problems` when the metadata
    /// contradicts itself: deletion then stays stopped.
    ResumeDeletion {
        /// Resume even if the metadata contradicts itself.
        force: bool,
    },
    /// Let a running, empty metad follow the log, without a vote. Answers `Done` at once: `Status` tells how far it is.
    AddLearner {
        /// Its id.
        id: MetadId,
        /// Where it serves.
        addr: SocketAddr,
    },
    /// Give a learner that has caught up the vote of another metad, and remove that one, in one change of the
    /// membership. Answers as `RemoveMetad`.
    ReplaceMetad {
        /// The metad that leaves.
        old: MetadId,
        /// The learner.
        new: MetadId,
    },
    /// Make a join token. Repeated for the same token, it changes nothing. Answers `Done`.
    CreateToken(NewToken),
    /// The tokens that are remembered, those that have ended included. Answers `Tokens`.
    Tokens,
    /// Let nobody use a token any more. Answers `Done`.
    RevokeToken {
        /// Its number.
        id: TokenId,
    },
    /// The certificates that were issued, and those that are revoked. Answers `Certs`.
    Certs,
    /// Refuse certificates from now on. Answers `Report`, with what was done.
    RevokeCert {
        /// Which ones.
        target: CertTarget,
        /// Even if that may lock out the operator who asks, or a member.
        force: bool,
        /// Why, for people.
        reason: String,
    },
    /// Refuse certificates no more. Answers `Report`, with what was done.
    AllowCert {
        /// Which ones.
        target: CertTarget,
    },
    /// Set the life of certificates that are issued from now on. Answers `Done`.
    SetCertLife {
        /// Milliseconds, from [`CERT_LIFE_MIN_MS`](crate::limits::CERT_LIFE_MIN_MS) to
        /// [`CERT_LIFE_MAX_MS`](crate::limits::CERT_LIFE_MAX_MS).
        ms: u64,
    },
    /// What the cluster has recorded of identities. Answers `Audit`.
    Audit {
        /// Only what came at this time or later.
        since: Timestamp,
    },
    /// Whom this metad has refused since it was started, whether it leads or not. Answers `Audit`.
    Refusals {
        /// Only what came at this time or later.
        since: Timestamp,
    },
    /// Which CAs are trusted, and who has no certificate of the newest one yet. Answers `Rotation`.
    Rotation,
    /// Trust other CAs from now on. Repeated for the same ones, it changes nothing. Answers `Report`.
    SetTrust {
        /// Which ones, signed by the operator who asks.
        step: SignedTrust,
        /// Even if somebody has no certificate of one of them yet; but not if that is a metad.
        force: bool,
    },
    /// Give a block daemon another share of the blocks. Answers `Done` once the layout says so; the blocks move
    /// afterwards.
    WeighBlockd {
        /// Its name.
        name: String,
        /// 1 to [`BLOCKD_WEIGHT_MAX`](crate::limits::BLOCKD_WEIGHT_MAX), relative to the others.
        weight: u32,
    },
}

/// A piece of a backup, in answer to [`MetaRequest::Backup`](super::meta::MetaRequest::Backup).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum BackupPiece {
    /// The next bytes of the file.
    Bytes(Bytes),
    /// There are no more.
    End {
        /// How many they were.
        bytes: u64,
    },
    /// The backup has failed, for this reason: the bytes sent so far are of no use.
    Failed(String),
}

/// A promise to delete no block that something referred to when it was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub made: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
}

/// Why no block is deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeletionStop {
    /// What was done, for people.
    pub reason: String,
    /// When.
    pub since: Timestamp,
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
    /// Contradictions in the metadata, one line each; empty when there are none.
    Problems(Vec<String>),
    /// The pins that hold, in the order of their making.
    Pins(Vec<Pin>),
    /// Answer to a step of a check.
    Check(CheckReply),
    /// The tokens, the one that ends last at the end.
    Tokens(Vec<TokenInfo>),
    /// The certificates.
    Certs(Box<CertList>),
    /// What was done, a line for each step.
    Report(Vec<String>),
    /// Records of the audit.
    Audit(AuditRecords),
    /// The CAs, and who is to move.
    Rotation(Box<RotationStatus>),
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
    /// How many milliseconds ago the leader has heard each of them, in their order: none for itself, and for those that it has
    /// never heard.
    pub metads_heard_ms: Vec<Option<u64>>,
    /// Numbers of all metads that are or were members: none of them is given to another one.
    pub metads_ever: Vec<MetadId>,
    /// Block daemons.
    pub layout: Layout,
    /// State of each block daemon of the layout, in its order.
    pub blockds: Vec<BlockdState>,
    /// Sessions: number, host, purpose.
    pub sessions: Vec<(SessionId, String, String)>,
    /// Capacity and use.
    pub statfs: StatFs,
    /// Why no block is deleted, until an operator resumes deletion.
    pub deletion_stopped: Option<DeletionStop>,
    /// Pins that keep unreferenced blocks from being deleted.
    pub pins: Vec<Pin>,
}

/// Health of a block daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BlockdHealth {
    /// It sends heartbeats.
    Up,
    /// It has missed two heartbeats.
    Suspect,
    /// It has been silent for longer, and still owns blocks.
    Down,
    /// It was silent for so long that others have taken over what it owned.
    Out,
    /// It is being emptied.
    Draining,
    /// It is empty, and is or can be switched off.
    Drained,
    /// Its disk has failed: it serves what it has, and others take over what it owned.
    Failed,
}

/// State of a block daemon, as the leader knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockdState {
    /// Its health.
    pub health: BlockdHealth,
    /// Milliseconds since its last heartbeat, if this leader heard one.
    pub heard_ms: Option<u64>,
    /// Bytes that it has left.
    pub free_bytes: u64,
    /// Bytes that it can hold.
    pub capacity_bytes: u64,
    /// Its last report about repairs.
    pub repair: RepairReport,
}
