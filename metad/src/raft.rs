//! Consensus: the only module that knows openraft (and raft-engine, in `log`).
//!
//! [`Raft`] is a [`Consensus`]: it proposes commands, makes reads linearizable (I2), and changes the `membership`. `log`
//! is the durable truth, `machine` turns it into state, `snapshot` shortens it, `network` carries it to peers.
//! `stopped` reads and makes the files of a node that does not run.

mod damage;
mod digests;
mod frozen;
#[cfg(test)]
mod full_disk_tests;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod log;
mod machine;
mod membership;
mod memory;
mod network;
mod patient;
mod pieces;
mod snapshot;
pub(crate) mod stopped;
mod types;

#[cfg(test)]
mod tests;

use crate::consensus::{Consensus, Frozen, Member};
use crate::error::{Error, ProposeError};
use crate::fs::view::Kv;
use crate::fs::{CommandReply, Stamped};
use crate::reserve::{Reserve, SpaceWatch};
use crate::store::Store;
use damage::{OwnSnapshot, replace_damaged};
use digests::Digests;
use frozen::FrozenFile;
use futures::FutureExt;
use futures::future::BoxFuture;
use log::Log;
use machine::Machine;
use network::{Network, Receiver};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::metrics::WaitError;
use openraft::{BasicNode, Config, ReadPolicy, ServerState, SnapshotPolicy};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use types::TypeConfig;
use wire::codec;
use wire::durable;
use wire::ids::MetadId;
use wire::limits::{BATCH_BYTES_MAX, HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use wire::message::check::{CheckId, DigestState};
use wire::message::meta::{LogPlace, RaftKind};
use wire::quic::Endpoint;

/// Largest command, encoded, in bytes. An entry travels whole: one that does not fit in a message to a peer could never
/// be replicated, and all later entries would wait for it. The difference is room for the rest of the message.
const ENTRY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - (16 << 10);
// A batch alone always fits in an entry, with the rest of its command.
const _: () = assert!(BATCH_BYTES_MAX + (16 << 10) < ENTRY_BYTES_MAX && ENTRY_BYTES_MAX < HEAD_BYTES_MAX);

/// A snapshot that does not exist after this time is asked for again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(5);

/// How Raft behaves.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Milliseconds between heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// A follower stands for election when it has heard nothing for the leader's lease, which is twice this, and then
    /// for this long again (up to twice as long, at random).
    pub election_ms: u64,
    /// Entries after which a snapshot is taken and the log shortened.
    pub snapshot_entries: u64,
    /// Memory for the applied state, in bytes.
    pub cache_bytes: u64,
    /// Size of a file of the log, in bytes. A new log writes eight of them ahead, and nine at once in all.
    pub log_file_bytes: u64,
    /// Space kept on the disk for going on when it is full, in bytes; 0 for none.
    pub reserve_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        // Elections begin 0.9 to 1.2 s after the last heartbeat: a write waits for less than two seconds, and a busy
        // machine does not lose its leader.
        Self {
            heartbeat_ms: 100,
            election_ms: 300,
            snapshot_entries: 200_000,
            cache_bytes: 128 << 20,
            log_file_bytes: 16 << 20,
            reserve_bytes: 64 << 20,
        }
    }
}

/// A node's part in the cluster.
pub struct Raft {
    /// Dropped first: what waits for space holds up the rest.
    watch: SpaceWatch,
    id: MetadId,
    /// The leader's lease: a leader without a majority for this long may have been replaced.
    lease: Duration,
    raft: openraft::Raft<TypeConfig, Machine>,
    receiver: Receiver,
    /// The machine's.
    digests: Arc<Digests>,
    /// Where the node's files are.
    dir: PathBuf,
    store: Arc<Store>,
    /// The store, for readers.
    state: Arc<dyn Kv>,
    /// They end when this is dropped.
    _tasks: JoinSet<()>,
}

impl Raft {
    /// Starts with what the directory holds.
    ///
    /// # Errors
    /// When log, snapshot or state cannot be used.
    pub async fn start(id: MetadId, dir: &Path, endpoint: Endpoint, tuning: &Tuning) -> Result<Self, Error> {
        let config = Config {
            cluster_name: "surf".to_owned(),
            heartbeat_interval: tuning.heartbeat_ms,
            election_timeout_min: tuning.election_ms,
            election_timeout_max: tuning.election_ms * 2,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(tuning.snapshot_entries),
            max_in_snapshot_log_to_keep: tuning.snapshot_entries / 10,
            install_snapshot_timeout: 10_000,
            enable_pre_vote: Some(true),
            // I2: how far the log was committed is not stored, and the state is written later. A leader that is back
            // before anybody noticed would read from a state that is older than its answers.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        let config = config.validate().map_err(|error| Error::Config(error.to_string()))?;
        let (at, cache, file_bytes) = (dir.to_owned(), tuning.cache_bytes, tuning.log_file_bytes);
        let reserve_bytes = tuning.reserve_bytes;
        let opened = tokio::task::spawn_blocking(move || {
            let (reserve, watch) = Reserve::keep(&at, reserve_bytes).map_err(|error| Error::disk(&at, error))?;
            let store = Arc::new(Store::open_with(&at.join("state"), cache, &reserve)?);
            let log = Log::open_with(&at.join("log"), file_bytes, &reserve)?;
            // The engine syncs what is in its directory, and not the directory's own name.
            durable::sync_dir(&at).map_err(|error| Error::disk(&at, error))?;
            let machine = pieces::open(&at, &store, &log)?;
            Ok::<_, Error>((log, machine, store, watch))
        });
        let (log, machine, store, watch) = opened.await.map_err(|error| Error::Raft(error.to_string()))??;
        let digests = machine.digests();
        let own = Arc::<OwnSnapshot>::default();
        let network = Network { endpoint, own: own.clone() };
        let raft = openraft::Raft::new(id.0, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| Error::Raft(format!("it does not go on from the files in {}: {error}", dir.display())))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(replace_damaged(raft.clone(), own));
        let lease = Duration::from_millis(tuning.election_ms * 2);
        let receiver = Receiver::new(dir);
        let (dir, state) = (dir.to_owned(), store.clone());
        Ok(Self { watch, id, dir, lease, raft, receiver, digests, state, store, _tasks: tasks })
    }

    /// Founds a cluster of these nodes. Does nothing on a node that is in one already.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn found(&self, members: &BTreeMap<MetadId, SocketAddr>) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Raft(error.to_string());
        if self.raft.is_initialized().await.map_err(|error| failed(&error))? {
            return Ok(());
        }
        let nodes: BTreeMap<u64, BasicNode> =
            members.iter().map(|(id, addr)| (id.0, BasicNode::new(addr.to_string()))).collect();
        match self.raft.initialize(nodes).await {
            // Another founder was faster and has asked for this node's vote already: it will send the log.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            other => other.map_err(|error| failed(&error)),
        }
    }

    async fn propose_in(&self, term: Option<u64>, stamped: Stamped) -> Result<CommandReply, ProposeError> {
        let bytes = codec::encoded_len(&stamped);
        if bytes > ENTRY_BYTES_MAX {
            return Err(ProposeError::Refused(format!("a command of {bytes} bytes ({stamped}) is too large")));
        }
        let (responder, answered) = ProgressResponder::complete_only();
        let mut write = self.raft.write(stamped).responder(responder);
        if let Some(term) = term {
            write = write.with_leader(LeaderId { term, node_id: self.id.0 });
        }
        write.await.map_err(|error| ProposeError::Refused(error.to_string()))?;
        match answered.await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Ok(Err(ClientWriteError::LogEntryDiscarded(_))) => Err(ProposeError::Unknown),
            Ok(Err(error)) => Err(ProposeError::Refused(error.to_string())),
            Err(_) => Err(ProposeError::Refused("Raft has ended".to_owned())),
        }
    }

    /// Waits until reads are current: under the leader's lease without any message, otherwise after a round of
    /// messages.
    async fn read_barrier(&self) -> Result<(), ProposeError> {
        // I2: the lease proves that no other leader can have committed anything.
        let ready = match self.raft.get_read_linearizer(ReadPolicy::LeaseRead).await {
            Ok(ready) => ready,
            Err(_) => self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|error| match error {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => not_leader(&forward),
                _ => ProposeError::NotLeader(None),
            })?,
        };
        ready.await_ready(&self.raft).await.map(|_| ()).map_err(|error| ProposeError::Refused(error.to_string()))
    }

    /// Raft term and applied log index.
    #[must_use]
    fn progress(&self) -> (u64, u64) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.current_term, metrics.last_applied.map_or(0, |log_id| log_id.index))
    }

    /// Takes a snapshot now, and waits until it is durable.
    ///
    /// # Errors
    /// When Raft has ended, or it takes longer than `limit`.
    async fn snapshot(&self, limit: Duration) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Raft(error.to_string());
        let ((_, applied), started) = (self.progress(), Instant::now());
        loop {
            // This does nothing while another snapshot is being built, which may be of an older position.
            self.raft.trigger().snapshot().await.map_err(|error| failed(&error))?;
            let wait = self.raft.wait(Some(SNAPSHOT_PATIENCE.min(limit)));
            match wait.metrics(|m| m.snapshot.is_some_and(|at| at.index >= applied), "snapshot").await {
                Ok(_) => return Ok(()),
                Err(WaitError::Timeout(..)) if started.elapsed() < limit => {}
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    /// Takes a snapshot now, and opens it.
    ///
    /// # Errors
    /// As [`Raft::snapshot`], or when the file cannot be read.
    async fn freeze(&self, limit: Duration) -> Result<Arc<dyn Frozen>, Error> {
        self.snapshot(limit).await?;
        let path = snapshot::path_in(&self.dir);
        let opened = tokio::task::spawn_blocking(move || {
            let disk = |error| Error::disk(&path, error);
            let (_, file) = snapshot::open(&path).map_err(disk)?.ok_or_else(|| disk(ErrorKind::NotFound.into()))?;
            FrozenFile::open(file).map_err(disk)
        });
        Ok(Arc::new(opened.await.map_err(|error| Error::Raft(error.to_string()))??))
    }

    /// Waits until Raft has failed, and returns why.
    async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            let running = metrics.borrow_watched().running_state.clone();
            match running {
                Ok(()) | Err(Fatal::Stopped) => {}
                Err(error) => return error.to_string(),
            }
            if metrics.changed().await.is_err() {
                // It was stopped.
                return std::future::pending().await;
            }
        }
    }

    /// Returns whether a majority has followed this leader a moment ago. If none does, another node may lead by now. A
    /// single voter is a majority, and nobody acknowledges anything to it.
    fn has_majority(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let acked = metrics.last_quorum_acked;
        metrics.membership_config.membership().voter_ids().count() == 1
            || acked.is_some_and(|acked| openraft::Instant::elapsed(&acked.into_inner()) < self.lease)
    }

    /// Stops taking part. The state is marked clean if everything could be synced.
    async fn stop(&self) {
        // Raft ends only when nothing of it waits for room.
        self.watch.end_waiting();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not end cleanly");
        }
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the state will be rebuilt at the next start"),
            Err(error) => tracing::warn!(%error, "the state will be rebuilt at the next start"),
        }
    }
}

impl Consensus for Raft {
    fn state(&self) -> &Arc<dyn Kv> {
        &self.state
    }

    fn propose_in(&self, term: Option<u64>, stamped: Stamped) -> BoxFuture<'_, Result<CommandReply, ProposeError>> {
        Raft::propose_in(self, term, stamped).boxed()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ProposeError>> {
        Raft::read_barrier(self).boxed()
    }

    fn leadership(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    fn leader(&self) -> BoxFuture<'_, Option<MetadId>> {
        async {
            self.raft.current_leader().await.map(MetadId).filter(|leader| *leader != self.id || self.has_majority())
        }
        .boxed()
    }

    fn members(&self) -> Vec<Member> {
        Raft::members(self)
    }

    fn progress(&self) -> (u64, u64) {
        Raft::progress(self)
    }

    fn add(&self, id: MetadId, addr: SocketAddr) -> BoxFuture<'_, Result<(), ProposeError>> {
        Raft::add(self, id, addr).boxed()
    }

    fn settled_members(&self) -> (LogPlace, Vec<(MetadId, SocketAddr)>) {
        Raft::settled_members(self)
    }

    fn add_learner(&self, id: MetadId, addr: SocketAddr) -> BoxFuture<'_, Result<(), ProposeError>> {
        Raft::add_learner(self, id, addr).boxed()
    }

    fn replace(&self, old: MetadId, new: MetadId) -> BoxFuture<'_, Result<(), ProposeError>> {
        Raft::replace(self, old, new).boxed()
    }

    fn remove(&self, id: MetadId) -> BoxFuture<'_, Result<(), ProposeError>> {
        Raft::remove(self, id).boxed()
    }

    fn snapshot(&self, limit: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Raft::snapshot(self, limit).boxed()
    }

    fn freeze(&self, limit: Duration) -> BoxFuture<'_, Result<Arc<dyn Frozen>, Error>> {
        Raft::freeze(self, limit).boxed()
    }

    fn failed(&self) -> BoxFuture<'_, String> {
        Raft::failed(self).boxed()
    }

    fn is_short_of_space(&self) -> bool {
        self.store.reserve().is_short_of_space()
    }

    fn digest(&self, check: CheckId) -> DigestState {
        self.digests.ask(check)
    }

    fn handle<'a>(&'a self, kind: RaftKind, payload: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        self.receiver.handle(&self.raft, kind, payload).boxed()
    }

    /// The state is marked clean if everything could be synced.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Raft::stop(self).boxed()
    }
}

fn not_leader(forward: &ForwardToLeader<TypeConfig>) -> ProposeError {
    ProposeError::NotLeader(forward.leader_id.map(MetadId))
}
