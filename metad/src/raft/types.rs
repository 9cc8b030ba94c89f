//! The types with which openraft works here.

use crate::fs::{CommandReply, Stamped};
use openraft::BasicNode;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use wire::message::check::CheckId;

openraft::declare_raft_types!(
    /// What Raft replicates, and between whom.
    pub TypeConfig:
        D = Stamped,
        R = CommandReply,
        NodeId = u64,
        Node = BasicNode,
);

pub(super) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Membership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;
pub(super) type IoFlushed = openraft::storage::IOFlushed<TypeConfig>;

/// A snapshot on disk: complete, checksummed and synced. Its content does not change even if another snapshot takes its
/// name: it is sent and loaded from the file that was opened.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    /// The path by which it was opened.
    pub path: PathBuf,
    /// The file.
    pub file: Arc<File>,
}

impl std::fmt::Display for Stamped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::fs::Command;
        match &self.command {
            Command::Init { .. } => f.write_str("init"),
            Command::Batches(batches) => write!(f, "{} batches", batches.len()),
            Command::OpenSession(_) => f.write_str("open session"),
            Command::CloseSessions(sessions) => write!(f, "close {} sessions", sessions.len()),
            Command::SetLayout(layout) => write!(f, "layout {}", layout.epoch),
            Command::BlocksDropped(blocks) => write!(f, "{} blocks dropped", blocks.len()),
            Command::Reap => f.write_str("reap"),
            Command::PinBlocks { name, .. } => write!(f, "pin {name:?}"),
            Command::ReleasePin { name } => write!(f, "release pin {name:?}"),
            Command::ResumeDeletion => f.write_str("resume deletion"),
            Command::Repair(repairing) => write!(f, "{} repairs", repairing.repairs.len()),
            Command::Mark(CheckId(check)) => write!(f, "mark of check {check}"),
            Command::CreateToken(new) => write!(f, "create token {}", new.id),
            Command::RevokeToken(id) => write!(f, "revoke token {id}"),
            Command::UseToken(newcomer) => write!(f, "use token {}", newcomer.token),
            Command::ExpireTokens => f.write_str("expire tokens"),
            Command::Enroll(enrolling) => write!(f, "enroll by token {}", enrolling.newcomer.token),
            Command::Renew(renewal) => write!(f, "renew {}", renewal.key),
            Command::Revoke(revoking) => write!(f, "{} revocations", revoking.list.len()),
            Command::Allow { list, .. } => write!(f, "{} revocations less", list.len()),
            Command::SetCertLife { ms, .. } => write!(f, "certificates live for {ms} ms"),
            Command::SetTrust(_) => f.write_str("other CAs to trust"),
            Command::Note(record) => write!(f, "audit: {}", record.event),
            Command::ByOperator { asker, change } => {
                let command: Command = change.clone().into();
                write!(f, "{}, asked for by {}", Stamped { now: self.now, command }, asker.name)
            }
            Command::AddTicketKey(key) => write!(f, "ticket key {}", key.number),
            Command::SettleCuts(inos) => write!(f, "settle cuts of {} files", inos.len()),
        }
    }
}

impl std::fmt::Display for CommandReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CommandReply::Done => "done",
            CommandReply::Batches(_) => "batches",
            CommandReply::Session(_) => "session",
            CommandReply::Stale => "stale",
            CommandReply::Repaired(_) => "repaired",
            CommandReply::Enrolled(_) => "enrolled",
            CommandReply::Issued(_) => "issued",
            CommandReply::Renewed(_) => "renewed",
            CommandReply::Revoked(_) => "revocations changed",
            CommandReply::Failed(_) => "failed",
        })
    }
}
