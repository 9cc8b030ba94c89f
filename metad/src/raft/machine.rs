//! The state machine of openraft: applies committed entries with `fs::apply`, and writes the result to the store.

use super::digests::Digests;
use super::snapshot;
use super::types::{Entry, LogId, Membership, Snapshot, SnapshotFile, SnapshotMeta, TypeConfig};
use crate::error::{Error, REPLACE, caught};
use crate::fs::view::View;
use crate::fs::{self, Command, CommandReply, Stamped, rules, session, settings};
use crate::reserve::is_out_of_space;
use crate::store::Store;
use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::{block_in_place, spawn_blocking};
use wire::codec;
use wire::ids::{MetadId, SessionId};
use wire::message::check::CheckId;

/// Entries applied before one write to the store.
const APPLY_ENTRIES: usize = 256;
/// Changes of keys after which they are written at once: each entry may make many more, and all of them are in memory.
const APPLY_CHANGES: usize = 1 << 16;
/// Up to this many light entries are applied without leaving the thread.
const LIGHT_ENTRIES: usize = 4;

/// Up to where the state has applied the log; stored with the state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) applied: Option<LogId>,
    pub(super) membership: Membership,
}

/// The state machine as openraft sees it.
pub struct Machine {
    store: Arc<Store>,
    dir: PathBuf,
    /// Held while a snapshot gets its name, and during an installation until the state is that of the snapshot.
    publishing: Arc<Mutex<()>>,
    /// Held from the moment of which a snapshot is until it is written: one at a time.
    building: Arc<AsyncMutex<()>>,
    position: Position,
    digests: Arc<Digests>,
    /// The living sessions of confined clients.
    confined: BTreeSet<SessionId>,
}

impl Machine {
    /// Takes over a state. If the state is behind the node's snapshot, the snapshot replaces it.
    ///
    /// # Errors
    /// When snapshot or state cannot be read, or were made under newer rules.
    pub fn open(dir: &Path, store: Arc<Store>) -> Result<Self, Error> {
        let path = snapshot::path_in(dir);
        rules::check(rules::of(&*store))?;
        let stored = store.position().map(|bytes| codec::decode::<Position>(&bytes)).transpose()?;
        let mut position = stored.unwrap_or_default();
        let disk = |error| Error::disk(&path, error);
        let newer = |(meta, _): &(SnapshotMeta, SnapshotFile)| meta.last_log_id > position.applied;
        if let Some((meta, file)) = snapshot::open(&path).map_err(disk)?.filter(newer) {
            snapshot::verify(&file).map_err(disk)?;
            position = position_of(&meta);
            snapshot::load(&file, &store, &codec::encode(&position)).map_err(disk)?;
        }
        let (publishing, building, digests) = (Arc::default(), Arc::default(), Arc::default());
        let confined = session::confined(&*store);
        Ok(Self { store, dir: dir.to_owned(), publishing, building, position, digests, confined })
    }

    /// Returns the last entry that it has applied.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.position.applied
    }

    /// Returns the digests of its state, which others ask for.
    pub(super) fn digests(&self) -> Arc<Digests> {
        self.digests.clone()
    }

    /// Applies entries, writes the result once, or several times if it is large, and answers.
    ///
    /// # Errors
    /// When the state contradicts an entry: it has changed on the disk. The next start rebuilds it.
    fn apply_all(&mut self, entries: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let store = self.store.clone();
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let (mut view, mut replies, mut mark) = (View::new(&*store), Vec::new(), None);
            while view.changes_count() < APPLY_CHANGES
                && mark.is_none()
                && let Some((entry, responder)) = entries.next()
            {
                mark = mark_of(&entry);
                let index = entry.log_id.index;
                let applied = caught(|| self.apply_entry(&mut view, entry));
                let reply = applied.map_err(|reason| {
                    self.store.distrust();
                    io::Error::other(format!(
                        "the state contradicts the log at entry {index} ({reason}): it is rebuilt at the next start. If \
                         this comes again, and other metads do not stop at the same entry: {REPLACE}. If they do, it is a \
                         fault of this release: remove no data"
                    ))
                })?;
                if let Some(responder) = responder {
                    replies.push((responder, reply));
                }
            }
            let position = codec::encode(&self.position);
            store.apply(view.into_changes(), &position);
            // The state is now that of the mark, at every node.
            if let Some((check, applied)) = mark {
                self.digests.begin(check, applied, &store);
            }
            for (responder, reply) in replies {
                responder.send(reply);
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, view: &mut View, entry: Entry) -> CommandReply {
        self.position.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => CommandReply::Done,
            EntryPayload::Normal(stamped) => {
                let reply = fs::apply(view, &stamped);
                if !self.confined.is_empty() && stamped.command.ends_sessions() {
                    self.confined.retain(|id| session::find(view, *id).is_some());
                }
                if let (Command::OpenSession(opening), CommandReply::Session(id)) = (&stamped.command, &reply)
                    && opening.confined.is_some()
                {
                    self.confined.insert(*id);
                }
                reply
            }
            EntryPayload::Membership(membership) => {
                settings::note_metads(view, membership.nodes().map(|(id, _)| MetadId(*id)));
                self.position.membership = Membership::new(Some(entry.log_id), membership);
                CommandReply::Done
            }
        }
    }
}

/// Returns which check an entry is the mark of, and its position.
fn mark_of(entry: &Entry) -> Option<(CheckId, u64)> {
    match &entry.payload {
        EntryPayload::Normal(Stamped { command: Command::Mark(check), .. }) => Some((*check, entry.log_id.index)),
        _ => None,
    }
}

fn meta_of(position: &Position) -> SnapshotMeta {
    SnapshotMeta { last_log_id: position.applied, last_membership: position.membership.clone() }
}

fn position_of(meta: &SnapshotMeta) -> Position {
    Position { applied: meta.last_log_id, membership: meta.last_membership.clone() }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.position.applied, self.position.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut last = self.position.applied.map(|log_id| log_id.index);
        let mut later = move |entry: Result<EntryResponder<TypeConfig>, io::Error>| {
            let entry = entry?;
            let index = entry.0.log_id.index;
            // Entries that do not fit the state must not damage it further: this node stops.
            if last.is_some_and(|last| index <= last) {
                return Err(io::Error::other(format!("entry {index} of the Raft log was applied already")));
            }
            last = Some(index);
            Ok(entry)
        };
        while let Some(first) = entries.next().await {
            let mut ready = vec![later(first)?];
            while ready.len() < APPLY_ENTRIES {
                match entries.next().now_or_never() {
                    Some(Some(entry)) => ready.push(later(entry)?),
                    _ => break,
                }
            }
            // Passing a few look-ups to another thread would cost more than they do.
            let confined = &self.confined;
            let is_light = |(entry, _): &EntryResponder<TypeConfig>| match &entry.payload {
                EntryPayload::Normal(stamped) => stamped.command.is_light(confined),
                _ => true,
            };
            if ready.len() <= LIGHT_ENTRIES && ready.iter().all(is_light) && !self.store.is_behind() {
                self.apply_all(ready)?;
            } else {
                block_in_place(|| self.apply_all(ready))?;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let alone = self.building.clone().lock_owned().await;
        // Between two applies: from here on the scan sees exactly the state at this position.
        self.store.begin_snapshot();
        Builder {
            store: self.store.clone(),
            dir: self.dir.clone(),
            publishing: self.publishing.clone(),
            position: self.position.clone(),
            alone: Some(alone),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let (store, path, publishing) = (self.store.clone(), snapshot::path_in(&self.dir), self.publishing.clone());
        let (meta, position) = (meta.clone(), position_of(meta));
        let encoded = codec::encode(&position);
        let work = move || {
            // No other snapshot takes the name until the state is that of this one.
            let _one = publishing.lock();
            snapshot::verify(&snapshot)?;
            if snapshot::meta(&snapshot)? != meta {
                return Err(io::Error::other("the snapshot is of another position"));
            }
            if snapshot.path != path {
                snapshot::publish(&snapshot.path, &path)?;
            }
            snapshot::load(&snapshot, &store, &encoded)
        };
        spawn_blocking(work).await.map_err(io::Error::other)??;
        self.position = position;
        self.confined = session::confined(&*self.store);
        Ok(())
    }

    /// If the snapshot cannot be opened any more, returns a new one: a peer needs it, and an error would end this node,
    /// whose state is good.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let path = snapshot::path_in(&self.dir);
        let opened = spawn_blocking(move || snapshot::open(&path)).await.map_err(io::Error::other)?;
        match opened {
            Ok(opened) => Ok(opened.map(|(meta, snapshot)| Snapshot { meta, snapshot })),
            Err(error) => {
                snapshot::log_damage(&snapshot::path_in(&self.dir), &error);
                self.get_snapshot_builder().await.build_snapshot().await.map(Some)
            }
        }
    }
}

/// Writes a snapshot while entries go on being applied.
pub struct Builder {
    store: Arc<Store>,
    dir: PathBuf,
    publishing: Arc<Mutex<()>>,
    position: Position,
    /// Held until the snapshot is built.
    alone: Option<OwnedMutexGuard<()>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    /// Returns the snapshot that was built, or a newer one that was installed meanwhile: the newer one is then the
    /// node's. If there is no room for it, waits, and then takes one of the state as it is by then. While space is short, it
    /// takes what others need to go on, unless there is far more than it needs: then it gives back what the log has.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut meta = meta_of(&self.position);
        let (store, publishing) = (self.store.clone(), self.publishing.clone());
        let (path, building) = (snapshot::path_in(&self.dir), snapshot::building_in(&self.dir));
        let work = move || {
            let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
            let mut wanted = length(&path).saturating_mul(2);
            let whole = loop {
                let space = store.reserve();
                let written = if space.is_short_of_space() && !space.has_room_for(wanted) {
                    Err(io::ErrorKind::StorageFull.into())
                } else {
                    snapshot::write(&building, &meta, &store)
                };
                match written {
                    Err(error) if is_out_of_space(&error) => {
                        store.abandon_snapshot();
                        // Others need its space. It did not suffice.
                        wanted = wanted.max(length(&building).saturating_mul(2));
                        let _ = std::fs::remove_file(&building);
                        if !space.await_ample_space("a snapshot", wanted) {
                            return Err(error);
                        }
                        if let Some(position) = store.begin_snapshot() {
                            meta = meta_of(&codec::decode(&position).map_err(io::Error::other)?);
                        }
                    }
                    written => break written?,
                }
            };
            let _one = publishing.lock();
            // A snapshot that cannot be read is replaced.
            let there = snapshot::open(&path).ok().flatten();
            if whole && there.as_ref().is_none_or(|(there, _)| there.last_log_id <= meta.last_log_id) {
                snapshot::publish(&building, &path)?;
                return snapshot::open(&path);
            }
            Ok(there)
        };
        let opened = spawn_blocking(work).await.map_err(io::Error::other);
        self.alone = None;
        let (meta, snapshot) = opened??.ok_or_else(|| io::Error::other("the scan was given up"))?;
        Ok(Snapshot { meta, snapshot })
    }
}
