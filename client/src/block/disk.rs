//! Blocks on the local disk: a cache that outlives the mount. Blocks are named by their content, so a cached block is
//! never stale; and each is checked against its name when it is read, so it is never wrong (I9), whatever happened to
//! the disk.
//!
//! - `file` is one block as a file; `index` knows which blocks are on disk and which go first; `worker` is the one
//!   thread that writes, evicts and removes.
//! - Reads have threads of their own, a few at a time, and race with the network when they take long: a disk that hangs
//!   delays a reader by no more than a moment.
//! - Nothing is synced. After a power loss some files are empty or torn, and are dropped when they are read.
//! - Nobody waits for the worker. When its queue is full, a block is not cached.
//! - The first error switches the cache off, with one warning; a full disk makes it smaller.
//!
//! Until the worker has listed what an earlier mount left, readers look for the files themselves.

mod file;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod index;
mod worker;

use crate::local_dir::LocalDir;
use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use file::Found;
use index::Index;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use wire::ids::BlockHash;
use wire::sections::Sections;
use worker::{Job, Worker};

/// Folder of the blocks within the mount's directory.
const BLOCKS: &str = "blocks";
/// Files read at once. A disk that hangs can hold this many threads.
const READERS: usize = 16;
/// After this time the network is asked as well. A spinning disk under load answers faster.
const DISK_PATIENCE: Duration = Duration::from_millis(200);
/// For this long after a slow answer, the network is asked at once.
const SLOW_FOR: Duration = Duration::from_secs(5);
/// Bytes of blocks that wait to be written; further ones are not cached. Eight large blocks, as many as are read
/// ahead.
const QUEUE_BYTES: usize = 32 << 20;
/// Jobs that wait in the queue, small blocks included.
const QUEUE_COUNT: usize = 2048;
/// A block's use is noted on disk if the last note is older than this: the order after a remount need not be exact.
const TOUCH_EVERY: Duration = Duration::from_secs(600);
/// What is queued when the mount ends is written within this time or dropped.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The cache. Dropping it ends its thread; see [`DiskCache::close`].
pub struct DiskCache {
    shared: Arc<Shared>,
    jobs: Ordered<Option<SyncSender<Job>>>,
    /// Receives the end of the worker.
    ended: Ordered<Option<oneshot::Receiver<()>>>,
    slow_until: Ordered<Instant>,
}

/// What readers and the worker share.
struct Shared {
    dir: PathBuf,
    /// The lock on the directory, so that nobody else uses it while one of us may.
    _local: Arc<LocalDir>,
    index: Ordered<Index>,
    /// Set once the index knows all blocks on disk.
    is_listed: AtomicBool,
    is_off: AtomicBool,
    /// Bytes of blocks in the worker's queue.
    queued_bytes: AtomicUsize,
    readers: Arc<Semaphore>,
}

impl DiskCache {
    /// Caches up to `limit` bytes in this directory, with what an earlier mount left there. Does not touch the disk
    /// itself.
    ///
    /// # Errors
    /// Fails when no thread can be started.
    pub fn start(local: Arc<LocalDir>, limit: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            dir: local.path().join(BLOCKS),
            _local: local,
            index: Ordered::new(Rank::Leaf, Index::new(limit)),
            is_listed: AtomicBool::new(false),
            is_off: AtomicBool::new(false),
            queued_bytes: AtomicUsize::new(0),
            readers: Arc::new(Semaphore::new(READERS)),
        });
        let (jobs, ended) = Worker::start(shared.clone(), QUEUE_COUNT)?;
        let (jobs, ended) = (Ordered::new(Rank::Leaf, Some(jobs)), Ordered::new(Rank::Leaf, Some(ended)));
        Ok(Self { shared, jobs, ended, slow_until: Ordered::new(Rank::Leaf, Instant::now()) })
    }

    /// Begins to read a block, or a part of it; `None` when it is not cached. What is read is verified: a whole block
    /// by its name, a part by the sections that hold it. The future ends with `None` when nothing good was found, and
    /// may end late, or never: see [`DiskCache::patience`]. Cancel-safe.
    #[must_use]
    pub fn read(
        &self,
        hash: BlockHash,
        part: Option<Range<usize>>,
    ) -> Option<impl Future<Output = Option<Bytes>> + use<>> {
        if !self.shared.may_have(&hash) {
            return None;
        }
        let (shared, jobs) = (self.shared.clone(), self.jobs.lock().clone()?);
        Some(async move {
            let permit = shared.readers.clone().acquire_owned().await.ok()?;
            let read = spawn_blocking(move || {
                let _permit = permit;
                shared.read_now(&hash, part, &jobs)
            });
            read.await.ok().flatten()
        })
    }

    /// Returns how long to wait for the disk alone.
    #[must_use]
    pub fn patience(&self) -> Duration {
        if Instant::now() < *self.slow_until.lock() { Duration::ZERO } else { DISK_PATIENCE }
    }

    /// Notes that a reader's patience has ended.
    pub fn was_slow(&self) {
        *self.slow_until.lock() = Instant::now() + SLOW_FOR;
    }

    /// Queues a verified block to be written, unless it is cached already or the queue is full.
    pub fn insert(&self, hash: BlockHash, block: Bytes, sections: Sections) {
        let Some(jobs) = self.jobs.lock().clone() else { return };
        if self.shared.is_off() || self.shared.index.lock().contains(&hash) {
            return;
        }
        let len = block.len();
        if self.shared.queued_bytes.fetch_add(len, Ordering::AcqRel) + len > QUEUE_BYTES
            || jobs.try_send(Job::Insert { hash, block, sections }).is_err()
        {
            self.shared.queued_bytes.fetch_sub(len, Ordering::AcqRel);
        }
    }

    /// Ends the worker. It still writes what is queued if that takes no longer than a moment.
    pub async fn close(&self) {
        drop(self.jobs.lock().take());
        let Some(ended) = self.ended.lock().take() else { return };
        if tokio::time::timeout(CLOSE_LIMIT, ended).await.is_err() {
            self.shared.is_off.store(true, Ordering::Release);
        }
    }
}

impl Shared {
    fn is_off(&self) -> bool {
        self.is_off.load(Ordering::Acquire)
    }

    fn may_have(&self, hash: &BlockHash) -> bool {
        !self.is_off() && (!self.is_listed.load(Ordering::Acquire) || self.index.lock().contains(hash))
    }

    /// Reads and verifies a block. Blocks the thread.
    fn read_now(&self, hash: &BlockHash, part: Option<Range<usize>>, jobs: &SyncSender<Job>) -> Option<Bytes> {
        let path = file::path(&self.dir, hash);
        // I9: nothing leaves here unverified.
        let found = match part {
            Some(part) => file::read_part(&path, hash, part),
            None => file::read(&path, hash),
        };
        // A full queue loses a note of use, or leaves a damaged file to be found another time.
        match found {
            Ok(Found::Good(bytes)) => {
                if self.index.lock().touch(hash, now_s(), TOUCH_EVERY) {
                    let _ = jobs.try_send(Job::Touch(*hash));
                }
                return Some(bytes);
            }
            Ok(Found::Absent) => {
                // Somebody else removed the file, unless the files are not listed yet.
                if self.is_listed.load(Ordering::Acquire) {
                    self.index.lock().remove(hash);
                    let _ = jobs.try_send(Job::Drop(*hash));
                }
            }
            Ok(Found::Damaged) => {
                tracing::warn!(path = %path.display(), "a block in the cache is damaged; it is dropped");
                self.index.lock().remove(hash);
                let _ = jobs.try_send(Job::Drop(*hash));
            }
            Err(error) => self.fail(&path, &error),
        }
        None
    }

    /// Switches the cache off.
    fn fail(&self, path: &Path, error: &io::Error) {
        if !self.is_off.swap(true, Ordering::AcqRel) {
            tracing::warn!(path = %path.display(), %error, "the disk cache is switched off until the next mount");
        }
    }
}

/// Returns the seconds since 1970, the unit of files' times.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
