//! The one thread that changes what is on disk. It lists what is there, then writes, evicts, notes uses and removes.

use super::file;
use super::index::room;
use super::{Shared, now_s};
use bytes::Bytes;
use std::fs::{self, DirEntry, File, FileTimes, Metadata};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use wire::ids::BlockHash;
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::Sections;

/// A cache that finds less room than this on a full disk is of no use.
const LIMIT_MIN: u64 = 1 << 20;

/// What the worker is to do.
pub(super) enum Job {
    /// Write this block.
    Insert { hash: BlockHash, block: Bytes, sections: Sections },
    /// Note that this block was used.
    Touch(BlockHash),
    /// Remove this block, because it is damaged.
    Drop(BlockHash),
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    /// The operator has been warned that the disk is full.
    has_reported_full: bool,
    /// Dropped at the end.
    _ended: oneshot::Sender<()>,
}

/// A block that an earlier mount left.
struct Left {
    hash: BlockHash,
    file_len: u64,
    used_s: u64,
}

impl Worker {
    /// Starts the thread. It ends when the sender is gone and all jobs are done, or when the cache is off.
    pub(super) fn start(
        shared: Arc<Shared>,
        queue_count: usize,
    ) -> io::Result<(SyncSender<Job>, oneshot::Receiver<()>)> {
        let (sender, jobs) = sync_channel(queue_count);
        let (end, ended) = oneshot::channel();
        let worker = Self { shared, jobs, has_reported_full: false, _ended: end };
        std::thread::Builder::new().name("surf-cache".to_owned()).spawn(move || worker.run())?;
        Ok((sender, ended))
    }

    fn run(mut self) {
        if let Err(error) = self.list() {
            self.shared.fail(&self.shared.dir, &error);
        }
        self.shared.is_listed.store(true, Ordering::Release);
        while let Ok(job) = self.jobs.recv() {
            if !self.shared.is_off() {
                self.perform(&job);
            }
            if let Job::Insert { block, .. } = &job {
                self.shared.queued_bytes.fetch_sub(block.len(), Ordering::AcqRel);
            }
        }
        self.shared.index.lock().clear();
    }

    fn perform(&mut self, job: &Job) {
        let (Job::Insert { hash, .. } | Job::Touch(hash) | Job::Drop(hash)) = job;
        let path = file::path(&self.shared.dir, hash);
        let done = match job {
            Job::Insert { hash, block, sections } => self.insert(*hash, &path, block, sections),
            Job::Touch(_) => touch(&path),
            Job::Drop(hash) => {
                self.shared.index.lock().remove(hash);
                remove(&path)
            }
        };
        if let Err(error) = done {
            self.shared.fail(&path, &error);
        }
    }

    fn insert(&mut self, hash: BlockHash, path: &Path, block: &[u8], sections: &Sections) -> io::Result<()> {
        let len = file::len_of(block.len());
        if self.shared.index.lock().contains(&hash) || room(len) > self.shared.index.lock().limit() {
            return Ok(());
        }
        self.make_room(len)?;
        match file::write(path, block, sections) {
            Ok(()) => self.shared.index.lock().insert(hash, len, now_s()),
            Err(error) if is_full(&error) => {
                remove(path)?;
                let limit = self.shared.index.lock().shrink();
                if limit < LIMIT_MIN {
                    return Err(error);
                }
                if !std::mem::replace(&mut self.has_reported_full, true) {
                    let path = self.shared.dir.display();
                    tracing::warn!(%path, bytes = limit, "the disk is full: the cache stays as small as it is now");
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn make_room(&self, file_len: u64) -> io::Result<()> {
        loop {
            let evicted = self.shared.index.lock().evict_for(file_len);
            match evicted {
                Some(hash) => remove(&file::path(&self.shared.dir, &hash))?,
                None => return Ok(()),
            }
        }
    }

    /// Adds what an earlier mount left to the index, the most recently used last. Other files are left alone.
    fn list(&self) -> io::Result<()> {
        let mut left = Vec::new();
        let folders = match fs::read_dir(&self.shared.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            folders => folders?,
        };
        for folder in folders {
            let folder = folder?;
            if !folder.file_type()?.is_dir() || folder.file_name().len() != 2 {
                continue;
            }
            for entry in fs::read_dir(folder.path())? {
                // The mount may have ended meanwhile.
                if self.shared.is_off() {
                    return Ok(());
                }
                left.extend(look_at(&entry?, &folder)?);
            }
        }
        left.sort_unstable_by_key(|left: &Left| left.used_s);
        for Left { hash, file_len, used_s } in left {
            self.make_room(file_len)?;
            self.shared.index.lock().insert(hash, file_len, used_s);
        }
        Ok(())
    }
}

/// Returns the block in a file, if the file's name is that of a block.
fn look_at(entry: &DirEntry, folder: &DirEntry) -> io::Result<Option<Left>> {
    let name = entry.file_name();
    let hash = name.to_str().and_then(|name| name.parse::<BlockHash>().ok());
    // Only with the name and in the folder that we would have used.
    let Some(hash) = hash.filter(|hash| {
        let written = hash.to_string();
        name == written.as_str() && folder.file_name() == written[..2]
    }) else {
        return Ok(None);
    };
    let found = match entry.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    if !found.is_file() {
        return Ok(None);
    }
    // The file was never finished, or somebody else has written it.
    if found.len() == 0 || found.len() > file::len_of(BLOCK_BYTES_MAX) {
        remove(&entry.path())?;
        return Ok(None);
    }
    Ok(Some(Left { hash, file_len: found.len(), used_s: seconds(&found) }))
}

fn seconds(found: &Metadata) -> u64 {
    let modified = found.modified().unwrap_or(UNIX_EPOCH);
    modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn touch(path: &Path) -> io::Result<()> {
    let times = FileTimes::new().set_modified(SystemTime::now());
    absent_is_fine(File::options().write(true).open(path).and_then(|file| file.set_times(times)))
}

fn remove(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(path))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
