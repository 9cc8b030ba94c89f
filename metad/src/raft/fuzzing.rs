//! Reads Raft's files and messages from bytes that nobody has checked, for `tests/fuzzing`.

use super::frozen::FrozenFile;
use super::network::Piece;
use super::types::{Entry, LogId, SnapshotMeta, TypeConfig, Vote};
use super::{log, pieces, snapshot};
use crate::consensus::Frozen;
use crate::error::Error;
use crate::fs::view::{Changes, Kv};
use crate::fs::{Command, Stamped};
use crate::store::Store;
use openraft::EntryPayload;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use protobuf::well_known_types::BytesValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::attr::Timestamp;
use wire::codec;
use wire::message::meta::RaftKind;

/// A stored entry of the log, read as when a node starts. Returns it as it would be stored again.
///
/// # Errors
/// One line, when it is damaged.
pub fn entry(stored: &[u8]) -> io::Result<Vec<u8>> {
    let stored = BytesValue { value: stored.to_vec(), ..BytesValue::default() };
    log::from_stored(&stored).map(|entry| log::to_stored(&entry).value)
}

/// A message of a peer. Returns the message as it would be sent again.
///
/// # Errors
/// One line, when it is no message.
pub fn message(kind: RaftKind, payload: &[u8]) -> Result<Vec<u8>, String> {
    match kind {
        RaftKind::Append => again::<AppendEntriesRequest<TypeConfig>>(payload),
        RaftKind::Vote | RaftKind::PreVote => again::<VoteRequest<TypeConfig>>(payload),
        RaftKind::Snapshot => again::<Piece>(payload),
        RaftKind::TransferLeader => again::<TransferLeaderRequest<TypeConfig>>(payload),
    }
}

fn again<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Result<Vec<u8>, String> {
    codec::decode::<T>(payload).map(|message| codec::encode(&message)).map_err(|error| error.to_string())
}

/// A stored entry of the log.
#[must_use]
pub fn sample_entry(command: Command) -> Vec<u8> {
    log::to_stored(&sample(command)).value
}

/// A message of a peer that brings an entry.
#[must_use]
pub fn sample_message(command: Command) -> Vec<u8> {
    let entries = vec![sample(command)];
    let vote = Vote::new(3, 1);
    codec::encode(&AppendEntriesRequest::<TypeConfig> { vote, prev_log_id: None, entries, leader_commit: None })
}

fn sample(command: Command) -> Entry {
    let payload = EntryPayload::Normal(Stamped { now: Timestamp::default(), command });
    Entry { log_id: LogId::new(LeaderId { term: 3, node_id: 1 }, 7), payload }
}

/// The directory of a node without a log, into which snapshots are put.
pub struct Node {
    dir: PathBuf,
    store: Arc<Store>,
}

impl Node {
    /// Makes a node with an empty state.
    ///
    /// # Errors
    /// When the state cannot be made.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        Ok(Self { dir: dir.to_owned(), store: Arc::new(Store::open(&dir.join("state"), 8 << 20)?) })
    }

    /// Opens a snapshot with this content, as a node does that starts with it, and reads its pairs in three ways. Returns
    /// their number; `None` when the snapshot is refused or set aside.
    ///
    /// # Errors
    /// When the disk fails.
    ///
    /// # Panics
    /// When the ways disagree.
    pub fn open(&self, content: &[u8]) -> io::Result<Option<u64>> {
        let path = snapshot::path_in(&self.dir);
        std::fs::write(&path, content)?;
        if pieces::set_aside_damaged(&self.dir, &self.store, None).is_err() {
            return Ok(None);
        }
        let Some((meta, file)) = snapshot::open(&path)? else { return Ok(None) };
        // A snapshot of position 0 is not verified by a start, because it would not be loaded.
        if snapshot::verify(&file).is_err() {
            return Ok(None);
        }
        let encoded = codec::encode(&meta);
        let again: SnapshotMeta = codec::decode(&encoded).expect("what was encoded is decoded");
        assert_eq!(meta, again);
        let loaded = snapshot::load(&file, &self.store, b"position");
        match FrozenFile::open(file) {
            Err(error) => assert!(loaded.is_err(), "one way reads it, the other does not: {error}"),
            Ok(frozen) => {
                assert!(loaded.is_ok(), "one way reads it, the other does not: {loaded:?}");
                let mut count = 0;
                frozen.scan(Vec::new()..vec![0xff; 16], &mut |_, _| {
                    count += 1;
                    true
                });
                assert_eq!(frozen.failure(), None);
                assert!(count <= frozen.pair_count());
                return Ok(Some(frozen.pair_count()));
            }
        }
        Ok(None)
    }

    /// Returns a snapshot of these pairs.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sample(&self, pairs: Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<Vec<u8>> {
        self.write_snapshot(pairs).and_then(std::fs::read)
    }

    /// Takes over the state with these pairs, which another node sends as a snapshot file.
    ///
    /// # Errors
    /// When the disk fails, or what was written is no snapshot.
    pub fn restore_from(&self, pairs: Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<()> {
        let path = snapshot::path_in(&self.dir);
        snapshot::publish(&self.write_snapshot(pairs)?, &path)?;
        let opened = snapshot::open_verified(&path)?;
        let (_, file) = opened.ok_or_else(|| io::Error::other("the snapshot has gone"))?;
        snapshot::load(&file, &self.store, b"position")
    }

    /// Returns the replica of the state, to which commands can be applied.
    #[must_use]
    pub fn replica(&self) -> &Store {
        &self.store
    }

    fn write_snapshot(&self, pairs: Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<PathBuf> {
        self.store.clear();
        self.store.load(pairs);
        self.store.apply(Changes::new(), b"position");
        self.store.begin_snapshot();
        let path = snapshot::building_in(&self.dir);
        snapshot::write(&path, &SnapshotMeta::default(), &self.store)?;
        Ok(path)
    }
}
