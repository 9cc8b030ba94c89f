//! The files of a node that does not run: they are read to their end, and made for a node that alone is a cluster.

use super::log::Log;
use super::machine::{Machine, Position};
use super::types::{LogId, Membership, SnapshotMeta, Vote};
use super::{Tuning, pieces, snapshot};
use crate::consensus::Member;
use crate::error::Error;
use crate::fs::view::Changes;
use crate::store::Store;
use futures::TryStreamExt;
use openraft::BasicNode;
use openraft::RaftLogReader;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tokio::task::block_in_place;
use wire::codec;
use wire::ids::MetadId;

/// The state and the log of a stopped node.
pub(crate) struct Stopped {
    /// Its state, with all that its log holds.
    pub store: Arc<Store>,
    /// The newest term that it knows.
    pub term: u64,
    /// Index of the last entry in its log.
    pub index: u64,
    /// Term of that entry.
    pub index_term: u64,
    /// The last members in its log.
    pub members: Vec<Member>,
}

/// Copies a stopped node's state into another directory, and applies there what its log holds beyond it. That includes
/// entries that the node does not know to be committed, for they may have been. The node's own files stay as they are.
///
/// # Errors
/// When the files cannot be read, or hold nothing.
pub(crate) async fn copy_with_log(dir: &Path, into: &Path, tuning: &Tuning) -> Result<Stopped, Error> {
    let raft = |error: &dyn std::fmt::Display| Error::Raft(error.to_string());
    let mut log = Log::open(&dir.join("log"), tuning.log_file_bytes)?;
    let store = block_in_place(|| copy(dir, into, &log, tuning.cache_bytes))?;
    let mut machine = block_in_place(|| Machine::open(into, store.clone()))?;
    let last = log.get_log_state().await.map_err(|error| raft(&error))?.last_log_id.map_or(0, |last| last.index);
    let (applied, _) = machine.applied_state().await.map_err(|error| raft(&error))?;
    let next = applied.map_or(0, |applied| applied.index + 1);
    if next <= last {
        tracing::info!(entries = last + 1 - next, "applying what the log holds beyond the state");
        let entries = log.entries_stream(next..=last).await.map_ok(|entry| (entry, None));
        machine.apply(Box::pin(entries)).await.map_err(|error| raft(&error))?;
    }
    let (applied, membership) = machine.applied_state().await.map_err(|error| raft(&error))?;
    let applied = applied.ok_or_else(|| Error::Recovery("this node holds nothing".to_owned()))?;
    let vote = log.read_vote().await.map_err(|error| raft(&error))?;
    let voted = vote.map_or(0, |vote: Vote| vote.leader_id.term);
    let voters: BTreeSet<u64> = membership.membership().voter_ids().collect();
    let member = |(id, node): (&u64, &BasicNode)| {
        let addr = node.addr.parse().ok()?;
        Some(Member { id: MetadId(*id), addr, voter: voters.contains(id), matched: 0, heard: None })
    };
    let members = membership.membership().nodes().filter_map(member).collect();
    let index_term = applied.committed_leader_id().term;
    Ok(Stopped { store, term: voted.max(index_term), index: applied.index, index_term, members })
}

/// Copies the state on disk, with its position.
fn copy(dir: &Path, into: &Path, log: &Log, cache_bytes: u64) -> Result<Arc<Store>, Error> {
    /// Pairs copied at a time.
    const PAIRS_AT_ONCE: usize = 4096;
    let from = Arc::new(Store::open(&dir.join("state"), cache_bytes)?);
    let opened = pieces::open(dir, &from, log);
    let copied = opened.and_then(|_| {
        let store = Store::open(&into.join("state"), cache_bytes)?;
        let position = from.begin_snapshot();
        while let Some(pairs) = from.next_of_snapshot(PAIRS_AT_ONCE).filter(|pairs| !pairs.is_empty()) {
            store.load(pairs);
        }
        if let Some(position) = position {
            store.apply(Changes::new(), &position);
        }
        Ok(Arc::new(store))
    });
    from.close()?;
    copied
}

/// Makes log and snapshot of a node that alone votes, in the directory of its state, and closes the state.
///
/// # Errors
/// When they cannot be written.
pub(crate) async fn make_single(
    dir: &Path,
    store: &Store,
    member: &Member,
    (term, index): (u64, u64),
    tuning: &Tuning,
) -> Result<(), Error> {
    let node = BTreeMap::from([(member.id.0, BasicNode::new(member.addr.to_string()))]);
    let voters = vec![BTreeSet::from([member.id.0])];
    let membership = openraft::Membership::new(voters, node).map_err(|error| Error::Raft(error.to_string()))?;
    let at = LogId::new(LeaderId { term, node_id: member.id.0 }, index);
    let membership = Membership::new(Some(at), membership);
    let position = Position { applied: Some(at), membership: membership.clone() };
    let meta = SnapshotMeta { last_log_id: Some(at), last_membership: membership };
    block_in_place(|| {
        store.apply(Changes::new(), &codec::encode(&position));
        store.begin_snapshot();
        let path = snapshot::path_in(dir);
        let building = snapshot::building_in(dir);
        let written = snapshot::write(&building, &meta, store).and_then(|_| snapshot::publish(&building, &path));
        written.map_err(|error| Error::disk(&path, error))?;
        store.close()
    })?;
    let path = dir.join("log");
    let mut log = Log::open(&path, tuning.log_file_bytes)?;
    log.save_vote(&Vote::new(term, member.id.0)).await.map_err(|error| Error::disk(&path, error))?;
    log.purge(at).await.map_err(|error| Error::disk(&path, error))
}
