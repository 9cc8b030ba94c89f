//! The durable Raft log: the truth of the cluster.
//!
//! One thread owns the files (raft-engine: append-only, checksummed, recycled and prewritten segments). It takes all
//! queued votes and entries in their order, writes them in one go, syncs once, and only then reports: group commit
//! without waiting. Entries can be read from memory as soon as `append` returns.
//!
//! A write that finds no room waits for it, in the thread (`patient`). A write or sync that fails otherwise ends the
//! process: after a failed fsync the kernel may have dropped the data, and trying again would report success.

use super::memory::bytes_of;
use super::patient::PatientFiles;
use super::types::{Entry, IoFlushed, LogId, TypeConfig, Vote};
use crate::error::{Error, REPLACE};
use crate::reserve::Reserve;
use futures::{Stream, TryStreamExt, stream};
use openraft::storage::RaftLogStorage;
use openraft::{LogState, RaftLogReader};
use parking_lot::Mutex;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, LogBatch, MessageExt, ReadableSize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};
use wire::codec;

type Engine = raft_engine::Engine<PatientFiles>;

/// The only Raft group in the engine.
const GROUP: u64 = 1;
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
/// Files of a new log that are written ahead.
const FILES_AHEAD: u64 = 8;
/// Files of a log before entries that snapshots have are removed. Their files are written anew.
const FILES_MAX: u64 = 32;
/// Entries that are sent to a peer, or applied, at a time, in bytes as stored. A single entry may have more.
const READ_BYTES: usize = 2 << 20;
/// Recent entries cached for replication and apply, in bytes of memory: they are kept decoded, because decoding them anew
/// for each peer would cost the leader more.
const CACHED_BYTES: usize = 64 << 20;

/// Writes that wait for the thread. With more, Raft waits for the disk: all writes come from one caller, so their order
/// stays.
const QUEUE_MAX: usize = 64;

/// How an entry is stored: its index (8 bytes, little endian), then its encoding.
struct StoredEntry;

impl MessageExt for StoredEntry {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let mut index = [0; 8];
        if let Some(stored) = entry.value.get(..8) {
            index.copy_from_slice(stored);
        }
        u64::from_le_bytes(index)
    }
}

pub(super) fn to_stored(entry: &Entry) -> BytesValue {
    let mut value = entry.log_id.index.to_le_bytes().to_vec();
    value.extend_from_slice(&codec::encode(entry));
    BytesValue { value, ..BytesValue::default() }
}

pub(super) fn from_stored(stored: &BytesValue) -> io::Result<Entry> {
    let entry = stored.value.get(8..).ok_or_else(|| io::Error::other("an entry of the Raft log is too short"))?;
    codec::decode(entry).map_err(|error| {
        let index = StoredEntry::index(stored);
        io::Error::other(format!(
            "entry {index} of the Raft log is damaged, or a newer release of Surf has written it: {error}"
        ))
    })
}

/// Work for the writer thread.
enum Work {
    /// Entries, with their ids.
    Append(Vec<BytesValue>, Vec<LogId>, IoFlushed),
    Put(&'static [u8], Vec<u8>, oneshot::Sender<io::Result<()>>),
    /// Records that entries are gone, and then removes them.
    Purge(u64, Vec<u8>, oneshot::Sender<io::Result<()>>),
}

/// The log as readers see it, guarded by one lock.
#[derive(Default)]
struct Index {
    recent: BTreeMap<u64, Recent>,
    /// Memory of these entries.
    recent_memory: usize,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
}

/// An entry in memory.
struct Recent {
    entry: Entry,
    /// Its size as stored.
    bytes: usize,
    /// Its size in memory.
    memory: usize,
    /// Whether it can be read from the files.
    written: bool,
}

impl Index {
    fn cache(&mut self, entry: Entry, bytes: usize) {
        self.last = Some(entry.log_id);
        let memory = bytes_of(&entry, bytes);
        self.recent_memory += memory;
        if let Some(before) = self.recent.insert(entry.log_id.index, Recent { entry, bytes, memory, written: false }) {
            self.recent_memory -= before.memory;
        }
    }

    /// Records that these entries are in the files. Others may have taken their places meanwhile.
    fn written(&mut self, log_ids: &[LogId]) {
        for log_id in log_ids {
            if let Some(recent) = self.recent.get_mut(&log_id.index).filter(|recent| recent.entry.log_id == *log_id) {
                recent.written = true;
            }
        }
        self.trim();
    }

    /// Drops the oldest entries from memory, if they can be read from the files.
    fn trim(&mut self) {
        while self.recent_memory > CACHED_BYTES
            && let Some(oldest) = self.recent.first_entry()
            && oldest.get().written
        {
            self.recent_memory -= oldest.remove().memory;
        }
    }

    fn forget(&mut self, gone: &BTreeMap<u64, Recent>) {
        self.recent_memory -= gone.values().map(|recent| recent.memory).sum::<usize>();
    }
}

/// What a log holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// A vote. Every node that has ever heard of a cluster has one.
    pub voted: bool,
    /// Entries up to this one are in a snapshot only.
    pub purged: Option<LogId>,
    /// The last entry.
    pub last: Option<LogId>,
}

/// The log. Clones share it.
#[derive(Clone)]
pub struct Log {
    engine: Arc<Engine>,
    index: Arc<Mutex<Index>>,
    work: mpsc::Sender<Work>,
    _writer: Arc<Writer>,
}

/// Ends when the last `Log` is dropped.
struct Writer(#[allow(dead_code, reason = "held so that the thread is named and owned")] JoinHandle<()>);

fn stop_for(error: &raft_engine::Error) -> ! {
    tracing::error!(%error, "the Raft log cannot be written; stopping. Check the disk, then start again");
    std::process::exit(74)
}

impl Log {
    /// Opens the log in `dir`, and cuts off what a crash left unfinished at its end. New files have `file_bytes`.
    ///
    /// # Errors
    /// When it does not open.
    pub fn open(dir: &Path, file_bytes: u64) -> Result<Self, Error> {
        Self::open_with(dir, file_bytes, &Reserve::none(dir))
    }

    /// Opens it on a disk with a reserve. Waits while there is no room.
    pub(super) fn open_with(dir: &Path, file_bytes: u64, reserve: &Arc<Reserve>) -> Result<Self, Error> {
        let failed = |error: raft_engine::Error| Error::Raft(format!("{}: {error}", dir.display()));
        let config = Config {
            dir: dir.display().to_string(),
            target_file_size: ReadableSize(file_bytes),
            purge_threshold: ReadableSize(FILES_MAX * file_bytes),
            // Prewritten files: a sync then need not commit the filesystem's journal as well.
            enable_log_recycle: true,
            prefill_for_recycle: true,
            prefill_limit: Some(ReadableSize(FILES_AHEAD * file_bytes)),
            format_version: raft_engine::Version::V2,
            ..Config::default()
        };
        let engine = Engine::open_with_file_system(config, Arc::new(PatientFiles::with(reserve)));
        let engine = Arc::new(engine.map_err(failed)?);
        leave_first_file(&engine, file_bytes).map_err(failed)?;
        let index = Index {
            last: last_stored(&engine)?,
            purged: get(&engine, PURGED)?,
            vote: get(&engine, VOTE)?,
            ..Index::default()
        };
        let index = Arc::new(Mutex::new(index));
        let (work, mut queue) = mpsc::channel(QUEUE_MAX);
        let writer = {
            let (engine, index, reserve) = (engine.clone(), index.clone(), reserve.clone());
            std::thread::Builder::new()
                .name("raft-log".to_owned())
                .spawn(move || write_all(&engine, &index, &reserve, &mut queue))
                .map_err(|error| Error::disk(dir, error))?
        };
        Ok(Self { engine, index, work, _writer: Arc::new(Writer(writer)) })
    }

    /// Returns what it holds.
    pub(super) fn held(&self) -> Held {
        let index = self.index.lock();
        Held { voted: index.vote.is_some(), purged: index.purged, last: index.last }
    }

    /// Queues a write after the previous ones, once there is room. openraft calls the log from one task only, and
    /// awaits each call: votes and entries are never reordered.
    async fn send(&self, work: Work) -> io::Result<()> {
        self.work.send(work).await.map_err(|_| io::Error::other("the log's writer has ended"))
    }

    async fn put(&self, key: &'static [u8], value: Vec<u8>) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(Work::Put(key, value, done)).await?;
        wait.await.map_err(io::Error::other)?
    }
}

/// Fills the first file of a new log: it alone is not prewritten, and a sync takes the filesystem twice as long when it
/// makes the file longer.
fn leave_first_file(engine: &Engine, file_bytes: u64) -> raft_engine::Result<()> {
    const FILLER: &[u8] = b"filler";
    if engine.last_index(GROUP).is_some() || engine.get(GROUP, VOTE).is_some() {
        return Ok(());
    }
    // Random, because the engine would compress zeros.
    let mut filler = vec![0; file_bytes as usize];
    rand::fill(&mut filler[..]);
    let mut batch = LogBatch::default();
    batch.put(GROUP, FILLER.to_vec(), filler)?;
    engine.write(&mut batch, false)?;
    batch.delete(GROUP, FILLER.to_vec());
    engine.write(&mut batch, true).map(|_| ())
}

fn get<T: serde::de::DeserializeOwned>(engine: &Engine, key: &[u8]) -> Result<Option<T>, Error> {
    let decoded = engine.get(GROUP, key).map(|bytes| codec::decode(&bytes)).transpose();
    decoded.map_err(|error| Error::Raft(format!("the log's {} is damaged ({error}): {REPLACE}", key.escape_ascii())))
}

fn last_stored(engine: &Engine) -> Result<Option<LogId>, Error> {
    let Some(index) = engine.last_index(GROUP) else { return Ok(None) };
    let failed = |error: &dyn std::fmt::Display| {
        Error::Raft(format!("the last entry of the log cannot be read ({error}): {REPLACE}"))
    };
    let stored = engine.get_entry::<StoredEntry>(GROUP, index).map_err(|error| failed(&error))?;
    let Some(stored) = stored else { return Ok(None) };
    Ok(Some(from_stored(&stored).map_err(|error| failed(&error))?.log_id))
}

/// Runs the writer thread: everything that is queued goes into one write and one sync.
fn write_all(engine: &Engine, index: &Mutex<Index>, reserve: &Reserve, queue: &mut mpsc::Receiver<Work>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = LogBatch::default();
        let mut flushed = Vec::new();
        let mut done = Vec::new();
        let (mut purge, mut written) = (None, Vec::new());
        let mut next = Some(first);
        while let Some(work) = next.take().or_else(|| queue.try_recv().ok()) {
            let added = match work {
                Work::Append(entries, log_ids, callback) => {
                    flushed.push(callback);
                    written.extend(log_ids);
                    batch.add_entries::<StoredEntry>(GROUP, &entries)
                }
                Work::Put(key, value, reply) => {
                    done.push(reply);
                    batch.put(GROUP, key.to_vec(), value)
                }
                Work::Purge(upto, value, reply) => {
                    done.push(reply);
                    purge = Some(upto);
                    batch.put(GROUP, PURGED.to_vec(), value)
                }
            };
            added.unwrap_or_else(|error| stop_for(&error));
            if purge.is_some() {
                // What follows a purge may leave a gap after the existing entries: the engine must have dropped those
                // first.
                break;
            }
        }
        // I7: entries are synced before anybody gets an acknowledgement.
        match engine.write(&mut batch, true) {
            Ok(_) => {}
            // It waited for room. Nobody gets an acknowledgement.
            Err(_) if reserve.is_waiting_over() => return,
            Err(error) => stop_for(&error),
        }
        index.lock().written(&written);
        for callback in flushed {
            callback.io_completed(Ok(()));
        }
        for reply in done {
            let _ = reply.send(Ok(()));
        }
        if let Some(upto) = purge {
            engine.compact_to(GROUP, upto + 1);
            // This may write, too, and wait for room.
            if let Err(error) = engine.purge_expired_files() {
                tracing::warn!(%error, "old files of the Raft log could not be removed");
            }
        }
    }
}

impl Log {
    /// Returns the range as half-open bounds, within the log.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let index = self.index.lock();
        let last = index.last.map_or(0, |last| last.index + 1);
        let first = index.purged.map_or(0, |purged| purged.index + 1);
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => (end + 1).min(last),
            Bound::Excluded(end) => (*end).min(last),
            Bound::Unbounded => last,
        };
        start.max(first)..end
    }

    /// Returns the entries of a range within the log: all, or the first ones of about `bytes` bytes together, but at
    /// least one.
    async fn read(&self, range: Range<u64>, bytes: Option<usize>) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (first_recent, recent) = {
            let index = self.index.lock();
            let mut together = 0;
            let recent: Vec<Entry> = index
                .recent
                .range(range.clone())
                .enumerate()
                .take_while(|(count, (_, recent))| {
                    together += recent.bytes;
                    *count == 0 || bytes.is_none_or(|most| together <= most)
                })
                .map(|(_, (_, recent))| recent.entry.clone())
                .collect();
            (recent.first().map_or(range.end, |entry| entry.log_id.index), recent)
        };
        // Entries that are not in memory are in the files: `trim` drops only those.
        let stored_from = self.engine.first_index(GROUP).unwrap_or(first_recent);
        let first = self.index.lock().purged.map_or(range.start, |purged| range.start.max(purged.index + 1));
        let first = first.max(stored_from);
        if first >= first_recent {
            return Ok(recent);
        }
        let engine = self.engine.clone();
        let mut entries = tokio::task::spawn_blocking(move || {
            let mut stored = Vec::new();
            engine
                .fetch_entries_to::<StoredEntry>(GROUP, first, first_recent, bytes, &mut stored)
                .map_err(io::Error::other)?;
            stored.iter().map(from_stored).collect::<io::Result<Vec<Entry>>>()
        })
        .await
        .map_err(io::Error::other)??;
        // The entries in memory come after all others of the range. With a limit they are left for the next call.
        if bytes.is_none() {
            entries.extend(recent);
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(self.bounds(&range), None).await
    }

    /// Returns as many entries as one message to a peer may carry.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(self.bounds(&(start..end)), Some(READ_BYTES)).await
    }

    /// Reads piece by piece: after a long absence, the entries to apply may need more memory than there is.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (mut bounds, first) = (self.bounds(&range), range.start_bound().cloned());
        if let Bound::Included(first) = first {
            // Entries that were purged at the beginning count as missing, too.
            bounds.start = first;
        }
        let pieces = stream::try_unfold((self.clone(), bounds), |(log, left)| async move {
            let entries = log.read(left.clone(), Some(READ_BYTES)).await?;
            // Entries to apply are committed, and must not be left out.
            let mut found = entries.iter().map(|entry| entry.log_id.index);
            let missing = left.clone().take(entries.len().max(1)).find(|index| found.next() != Some(*index));
            if let Some(missing) = missing {
                return Err(io::Error::other(format!("entry {missing} of the Raft log is missing")));
            }
            let Some(last) = entries.last() else { return Ok::<_, io::Error>(None) };
            let behind = last.log_id.index + 1..left.end;
            Ok(Some((stream::iter(entries.into_iter().map(Ok)), (log, behind))))
        });
        pieces.try_flatten()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.index.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let index = self.index.lock();
        let last = index.last.max(index.purged);
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.index.lock().vote = Some(*vote);
        self.put(VOTE, codec::encode(vote)).await
    }

    async fn append<I>(&mut self, entries: I, callback: IoFlushed) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let stored: Vec<BytesValue> = entries.iter().map(to_stored).collect();
        let log_ids: Vec<LogId> = entries.iter().map(|entry| entry.log_id).collect();
        {
            let mut index = self.index.lock();
            for (entry, stored) in entries.into_iter().zip(&stored) {
                index.cache(entry, stored.value.len());
            }
        }
        self.send(Work::Append(stored, log_ids, callback)).await
    }

    /// Forgets entries after `last_log_id`. On disk they stay until others take their place, which the engine does in
    /// one step: after a crash in between, the node has its old tail again, as if it had never been asked to cut it.
    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let mut index = self.index.lock();
        let first_gone = last_log_id.map_or(0, |last| last.index + 1);
        let gone = index.recent.split_off(&first_gone);
        index.forget(&gone);
        index.last = index.last.min(last_log_id);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut index = self.index.lock();
            let rest = index.recent.split_off(&(log_id.index + 1));
            let gone = std::mem::replace(&mut index.recent, rest);
            index.forget(&gone);
            index.purged = Some(log_id);
        }
        let (done, wait) = oneshot::channel();
        self.send(Work::Purge(log_id.index, codec::encode(&log_id), done)).await?;
        wait.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Command, Stamped};
    use openraft::EntryPayload;
    use wire::attr::Timestamp;
    use wire::ids::{BatchSeq, SessionId};
    use wire::limits::BATCH_OPS_MAX;
    use wire::op::{Batch, Op};

    #[test]
    fn entries_that_are_small_as_stored_are_cached_by_what_they_take_in_memory() {
        let ops = vec![Op::LeaseInos { count: 1 }; BATCH_OPS_MAX];
        let (mut index, last) = (Index::default(), 499);
        for number in 0..=last {
            let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops: ops.clone() };
            let command = Command::Batches(vec![(SessionId(1), batch)]);
            let payload = EntryPayload::Normal(Stamped { now: Timestamp::default(), command });
            let entry = Entry { log_id: openraft::testing::log_id::<TypeConfig>(1, 1, number), payload };
            let (log_id, stored) = (entry.log_id, to_stored(&entry).value.len());
            assert!(stored * last as usize <= CACHED_BYTES, "as stored, all of them fit");
            index.cache(entry, stored);
            index.written(&[log_id]);
        }
        let held = index.recent.len() * BATCH_OPS_MAX * size_of::<Op>();
        assert!(held <= CACHED_BYTES && 2 * held > CACHED_BYTES, "{held}");
        assert_eq!(index.recent.last_key_value().map(|(number, _)| *number), Some(last), "the newest stay");
        let all = index.recent.split_off(&0);
        index.forget(&all);
        assert_eq!(index.recent_memory, 0);
    }
}
