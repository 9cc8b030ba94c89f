//! Requests to metad from clients, block daemons, operators and its Raft peers.

use super::admin::{AdminReply, AdminRequest};
use super::block::RepairReport;
use super::cert::{RenewRefusal, RenewReply, Renewal};
use crate::FsError;
use crate::attr::{InodeAttr, Timestamp};
use crate::caller::Caller;
use crate::cert::{AuthorityId, Term};
use crate::codec::bounded;
use crate::ids::{BlockHash, BlockdId, Ino, LayoutEpoch, MetadId, SessionId};
use crate::layout::Layout;
use crate::limits::{ACKNOWLEDGED_MAX, BLOCK_NAMES_MAX, METADS_MAX, RECEIPTS_MAX, TRUST_STEPS_MAX};
use crate::op::{Batch, BatchReply, Read, ReadReply};
use crate::revoked::{ListMark, Revocations};
use crate::subject::Squash;
use crate::ticket::{Receipt, Ticket, TicketKeys};
use crate::trust::SignedTrust;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A request to metad.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MetaRequest {
    /// Open a session. Role client. Answers `Session`.
    OpenSession {
        /// Host of the client, for people, of [`SESSION_TEXT_BYTES_MAX`](crate::limits::SESSION_TEXT_BYTES_MAX) at
        /// most.
        host: String,
        /// Mount point or purpose, for people, no longer either.
        purpose: String,
        /// The session will answer from caches, under read leases.
        caches: bool,
        /// A session that this one replaces. It ends if it has not yet, and its unused inode numbers pass on.
        resumes: Option<SessionId>,
        /// Chosen at random for this opening, and repeated with each attempt: the answer is then the same session.
        /// `None` when a second session does no harm.
        token: Option<u64>,
    },
    /// Keep a session alive, and learn what concerns it. Answers `Alive`.
    KeepAlive {
        /// The session.
        session: SessionId,
        /// Layout that the client knows.
        epoch: LayoutEpoch,
    },
    /// End a session: its locks and orphans are released. Answers `Done`.
    CloseSession {
        /// The session.
        session: SessionId,
    },
    /// Apply a batch, exactly once (I1). Answers `Batch`.
    Submit {
        /// The session.
        session: SessionId,
        /// The batch.
        batch: Batch,
        /// Of a client that is confined: receipts for the blocks that the batch names.
        #[serde(deserialize_with = "bounded::<_, _, RECEIPTS_MAX>")]
        receipts: Vec<Receipt>,
    },
    /// Read metadata (I2). Answers `Read`.
    Read {
        /// The session.
        session: SessionId,
        /// The question.
        read: Read,
        /// The session is at work there, and would like delegations on what is read.
        delegate: bool,
        /// The session needs the answer to send what it did under delegations: it waits for no other session that has
        /// unsent changes.
        sends: bool,
        /// For whom it asks, if the client is confined and knows it.
        caller: Option<Caller>,
    },
    /// What these events have asked for is done. This says nothing about other events, earlier ones included. Answers
    /// `Done`.
    Acknowledge {
        /// The session.
        session: SessionId,
        /// Numbers of the events.
        #[serde(deserialize_with = "bounded::<_, _, ACKNOWLEDGED_MAX>")]
        seqs: Vec<u64>,
    },
    /// The block layout. Answers `Layout`.
    GetLayout,
    /// A long-lived stream of [`MetaEvent`](super::event::MetaEvent)s for the session. The caller has emptied its
    /// caches: leases are granted to sessions with a stream, and end with a new one.
    Events {
        /// The session.
        session: SessionId,
        /// The session did something under delegations that it has not sent yet: nobody reads or changes anything
        /// before it has acknowledged that everything is sent.
        dirty: bool,
    },
    /// A block daemon is alive. Role blockd. Answers `BlockdAlive`.
    BlockdHeartbeat(BlockdHeartbeat),
    /// Asks which of these blocks nothing refers to. Role blockd. Answers `Unreferenced`.
    BlockReport {
        /// The daemon.
        id: BlockdId,
        /// Layout that it knows.
        epoch: LayoutEpoch,
        /// A page of the blocks that it holds.
        #[serde(deserialize_with = "bounded::<_, _, BLOCK_NAMES_MAX>")]
        blocks: Vec<BlockHash>,
    },
    /// Operator's requests. Role admin. Answers `Admin`.
    Admin(AdminRequest),
    /// A Raft message in the payload. Role metad. Answers `Raft`, with the reply in the payload, or `Failed` on a metad
    /// of another number.
    Raft {
        /// The message.
        kind: RaftKind,
        /// The metad that it is for. Another one may have its address: it must not answer for the one that it replaces.
        to: MetadId,
    },
    /// Asks which node leads. Answers `NotLeader` from any node, the leader included.
    WhoLeads,
    /// Which blocks with names from `from` to `last` does anything refer to? A page of them. Role blockd. Answers
    /// `Referenced`.
    Referenced {
        /// Layout that the daemon knows.
        epoch: LayoutEpoch,
        /// The first name.
        from: BlockHash,
        /// The last name.
        last: BlockHash,
    },
    /// A backup of the metadata as it is now. Role admin. Answered by the leader with a stream of
    /// [`BackupPiece`](super::admin::BackupPiece)s.
    Backup,
    /// Renew the certificate that the sender has shown. Any role; of those whose certificates have ended, it is the only
    /// request that is served. Any metad with an issuer answers `Renewal`.
    Renew,
    /// A metad is about to sign a renewal. Role metad. Answers `Noted`.
    NoteRenewal(Renewal),
    /// Are other CAs to be trusted than those of this version? Any role. Any metad answers `Trust`.
    Trust {
        /// The version that the sender has.
        version: u64,
    },
    /// Below which CA stands what this metad signs with? Role metad. Any metad answers `Issuer`.
    Issuer,
}

/// The kind of a request, with which its head begins. In the order of [`MetaRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[allow(missing_docs, reason = "each is the variant of MetaRequest of its name")]
pub enum MetaRequestKind {
    OpenSession,
    KeepAlive,
    CloseSession,
    Submit,
    Read,
    Acknowledge,
    GetLayout,
    Events,
    BlockdHeartbeat,
    BlockReport,
    Admin,
    Raft,
    WhoLeads,
    Referenced,
    Backup,
    Renew,
    NoteRenewal,
    Trust,
    Issuer,
}

impl MetaRequest {
    /// The kind of this request.
    #[must_use]
    pub fn kind(&self) -> MetaRequestKind {
        match self {
            Self::OpenSession { .. } => MetaRequestKind::OpenSession,
            Self::KeepAlive { .. } => MetaRequestKind::KeepAlive,
            Self::CloseSession { .. } => MetaRequestKind::CloseSession,
            Self::Submit { .. } => MetaRequestKind::Submit,
            Self::Read { .. } => MetaRequestKind::Read,
            Self::Acknowledge { .. } => MetaRequestKind::Acknowledge,
            Self::GetLayout => MetaRequestKind::GetLayout,
            Self::Events { .. } => MetaRequestKind::Events,
            Self::BlockdHeartbeat(_) => MetaRequestKind::BlockdHeartbeat,
            Self::BlockReport { .. } => MetaRequestKind::BlockReport,
            Self::Admin(_) => MetaRequestKind::Admin,
            Self::Raft { .. } => MetaRequestKind::Raft,
            Self::WhoLeads => MetaRequestKind::WhoLeads,
            Self::Referenced { .. } => MetaRequestKind::Referenced,
            Self::Backup => MetaRequestKind::Backup,
            Self::Renew => MetaRequestKind::Renew,
            Self::NoteRenewal(_) => MetaRequestKind::NoteRenewal,
            Self::Trust { .. } => MetaRequestKind::Trust,
            Self::Issuer => MetaRequestKind::Issuer,
        }
    }
}

/// Which Raft message a payload holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RaftKind {
    /// AppendEntries (Raft §5.3).
    Append,
    /// RequestVote (Raft §5.2).
    Vote,
    /// A vote that changes nothing yet (Raft dissertation §9.6).
    PreVote,
    /// A piece of a snapshot (Raft §7).
    Snapshot,
    /// Transfer of leadership (Raft dissertation §3.10).
    TransferLeader,
}

/// State of a block daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockdHeartbeat {
    /// The daemon.
    pub id: BlockdId,
    /// Its name in the certificate.
    pub name: String,
    /// Where it serves.
    pub addr: SocketAddr,
    /// Failure domain.
    pub zone: String,
    /// Share of the ring, in GiB of capacity.
    pub weight: u32,
    /// Bytes its disk can hold.
    pub capacity_bytes: u64,
    /// Bytes its disk has left.
    pub free_bytes: u64,
    /// Blocks it holds.
    pub block_count: u64,
    /// Layout that it knows.
    pub epoch: LayoutEpoch,
    /// Time between two of its heartbeats, in milliseconds.
    pub every_ms: u64,
    /// How far it is with the repairs that the layout asks for.
    pub repair: RepairReport,
    /// Its disk has failed: it takes no blocks any more.
    pub failed: bool,
    /// The list of what is revoked that it knows.
    pub revoked: ListMark,
}

/// The leases of a session that has shown a sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LeaseState {
    /// They hold for [`LEASE_MS`](crate::limits::LEASE_MS) from when it asked.
    Extended {
        /// No other session has caches, or will have before this one is notified.
        alone: bool,
    },
    /// An event waits for its acknowledgement: the leases hold as long as before.
    Pending,
    /// This node sends the session no events, so it holds no leases.
    None,
}

/// Place of an entry in the Raft log. Of two places, the entry at the later one overrides what the other says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct LogPlace {
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// The metads of a cluster, and which of them leads, as one of them knows it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Redirect {
    /// The leader's id and address.
    pub leader: Option<(MetadId, SocketAddr)>,
    /// All nodes of the cluster. The one that answers is not among them if it was removed, or not added yet.
    #[serde(deserialize_with = "bounded::<_, _, METADS_MAX>")]
    pub nodes: Vec<(MetadId, SocketAddr)>,
    /// The term that it is in, which is the leader's if it names one.
    pub term: u64,
    /// Where its log says that these are the nodes.
    pub since: LogPlace,
}

/// A reply of metad.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MetaReply {
    /// The request was carried out.
    Done,
    /// This node does not lead; ask the other one (or any, when unknown). The leader itself gives this answer to
    /// `WhoLeads`, too, and names itself.
    NotLeader(Redirect),
    /// The request was not carried out.
    Failed(FsError),
    /// A new session.
    Session {
        /// Its number.
        session: SessionId,
        /// It lives this long without a `KeepAlive`.
        ttl_ms: u64,
        /// The leader's clock.
        now: Timestamp,
        /// The block layout.
        layout: Layout,
        /// The directory that is the client's root.
        root: Ino,
        /// Whose rights its users have.
        squash: Squash,
    },
    /// The session lives.
    Alive {
        /// The leader's clock.
        now: Timestamp,
        /// Unlinked inodes on which the session may hold handles. It sends `ReleaseOrphans` for those on which it holds
        /// none, now or later.
        orphans: Vec<Ino>,
        /// The layout, when the client's was old.
        layout: Option<Layout>,
        /// What has become of its leases.
        leases: LeaseState,
    },
    /// Outcome of a batch.
    Batch {
        /// The outcome.
        reply: BatchReply,
        /// `Some` when the session holds leases on all that was changed: the attributes of it that the reply does not
        /// contain.
        leased: Option<Vec<InodeAttr>>,
        /// Those of the changed inodes on which it holds delegations.
        delegated: Vec<Ino>,
    },
    /// Outcome of a read.
    Read {
        /// The outcome.
        answer: Result<ReadReply, FsError>,
        /// The session holds leases on all that was read, and may use the answer from its cache.
        leased: bool,
        /// Inodes on which it was given delegations: no other session has a lease on them.
        delegated: Vec<Ino>,
        /// For a client that is confined: tickets for the blocks in the answer, with their names.
        tickets: Vec<(BlockHash, Ticket)>,
    },
    /// The block layout.
    Layout(Layout),
    /// The heartbeat of a block daemon was noted.
    BlockdAlive {
        /// The layout, when the daemon's was old.
        layout: Option<Layout>,
        /// What is revoked, when the daemon's list was another one.
        revoked: Option<Revocations>,
        /// The keys of tickets.
        tickets: TicketKeys,
        /// The metads' time.
        now: Timestamp,
    },
    /// Those of the reported blocks that nothing refers to. The daemon may drop those that nobody renewed within the
    /// grace period (I10).
    Unreferenced(Vec<BlockHash>),
    /// Blocks that something refers to, in the order of their names.
    Referenced {
        /// Their names.
        blocks: Vec<BlockHash>,
        /// Where the next page begins; `None` when this was the last one.
        next: Option<BlockHash>,
    },
    /// Answer to an operator.
    Admin(AdminReply),
    /// A Raft reply, in the payload.
    Raft,
    /// Answer to somebody who asked for a renewal.
    Renewal(RenewReply),
    /// For how long a renewed certificate is valid, or why there is none.
    Noted(Result<Term, RenewRefusal>),
    /// How the CAs that are trusted have come to be, in order, as operators have signed it; nothing if the sender knows all.
    Trust {
        /// The steps.
        #[serde(deserialize_with = "bounded::<_, _, TRUST_STEPS_MAX>")]
        steps: Vec<SignedTrust>,
    },
    /// The CA of what this metad signs with; `None` if it signs nothing.
    Issuer(Option<AuthorityId>),
}

impl MetaReply {
    /// The reply's kind, for logs and errors: they must not repeat what a peer says at any length.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::NotLeader { .. } => "NotLeader",
            Self::Failed(_) => "Failed",
            Self::Session { .. } => "Session",
            Self::Alive { .. } => "Alive",
            Self::Batch { .. } => "Batch",
            Self::Read { .. } => "Read",
            Self::Layout(_) => "Layout",
            Self::BlockdAlive { .. } => "BlockdAlive",
            Self::Unreferenced(_) => "Unreferenced",
            Self::Referenced { .. } => "Referenced",
            Self::Admin(_) => "Admin",
            Self::Raft => "Raft",
            Self::Renewal(_) => "Renewal",
            Self::Noted(_) => "Noted",
            Self::Trust { .. } => "Trust",
            Self::Issuer(_) => "Issuer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::ids::BatchSeq;

    #[test]
    fn a_redirection_with_more_nodes_than_a_cluster_has_is_refused() {
        let node = (MetadId(1), ([127, 0, 0, 1], 1).into());
        let reply =
            |count| codec::encode(&MetaReply::NotLeader(Redirect { nodes: vec![node; count], ..Redirect::default() }));
        assert!(codec::decode::<MetaReply>(&reply(METADS_MAX)).is_ok());
        assert!(codec::decode::<MetaReply>(&reply(METADS_MAX + 1)).is_err());
    }

    #[test]
    fn the_head_of_each_request_begins_with_its_kind() {
        let session = SessionId(1);
        let heartbeat = BlockdHeartbeat {
            id: BlockdId([1; 16]),
            name: String::new(),
            addr: ([127, 0, 0, 1], 1).into(),
            zone: String::new(),
            weight: 1,
            capacity_bytes: 1,
            free_bytes: 1,
            block_count: 1,
            epoch: LayoutEpoch(1),
            every_ms: 1000,
            repair: RepairReport::default(),
            failed: false,
            revoked: ListMark::default(),
        };
        let (host, purpose) = (String::new(), String::new());
        for request in [
            MetaRequest::OpenSession { host, purpose, caches: true, resumes: None, token: None },
            MetaRequest::KeepAlive { session, epoch: LayoutEpoch(1) },
            MetaRequest::CloseSession { session },
            MetaRequest::Submit {
                session,
                batch: Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops: Vec::new() },
                receipts: Vec::new(),
            },
            MetaRequest::Read { session, read: Read::StatFs, delegate: false, sends: false, caller: None },
            MetaRequest::Acknowledge { session, seqs: vec![1] },
            MetaRequest::GetLayout,
            MetaRequest::Events { session, dirty: false },
            MetaRequest::BlockdHeartbeat(heartbeat),
            MetaRequest::BlockReport { id: BlockdId([1; 16]), epoch: LayoutEpoch(1), blocks: Vec::new() },
            MetaRequest::Admin(AdminRequest::Status),
            MetaRequest::Raft { kind: RaftKind::Vote, to: MetadId(1) },
            MetaRequest::WhoLeads,
            MetaRequest::Referenced { epoch: LayoutEpoch(1), from: BlockHash([0; 32]), last: BlockHash([1; 32]) },
            MetaRequest::Backup,
            MetaRequest::Renew,
            MetaRequest::Trust { version: 1 },
            MetaRequest::Issuer,
        ] {
            assert_eq!(codec::decode_start::<MetaRequestKind>(&codec::encode(&request)).unwrap(), request.kind());
        }
    }
}
