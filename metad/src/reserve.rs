//! The space that a metad keeps on the disk of its data directory.
//!
//! A metad that has acknowledged something must go on although its disk fills: what removes files takes space, too, first
//! in the log. So there is a file, `reserve`, whose space is allocated and not used. Two things follow from how much is free
//! beside it:
//!
//! - *Short*: less than the size of the reserve is free. The leader refuses batches that take space (`server`), no
//!   snapshot is begun (`raft`), and the rest goes on.
//! - *Full*: a write finds no room. Its writer removes the file, and goes on in that space. If that does not suffice, the
//!   writer waits until somebody makes room ([`Reserve::await_space`]). It has acknowledged nothing meanwhile.
//!
//! Once there is room, the file is made again. All of this is by itself, and needs no restart. Other errors of a disk still
//! end the process.

use parking_lot::{Condvar, Mutex};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::sys;

/// How often the free space is looked at. What fills a disk faster than the reserve lasts is noticed by writers.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// How long a writer waits before it tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The log says again that a writer waits after this time.
const TOLD_PAUSE: Duration = Duration::from_secs(60);
/// Bytes written at once where space cannot be allocated.
const PIECE_BYTES: usize = 1 << 20;

/// Returns whether a write has failed for lack of space, which may come back.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The space that one node keeps.
#[derive(Debug)]
pub struct Reserve {
    dir: PathBuf,
    /// Size of the file; 0 for none, and then nothing is refused early.
    bytes: u64,
    is_short: AtomicBool,
    state: Mutex<State>,
    /// Notified when there is room, and when nobody may wait any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The file is there.
    is_held: bool,
    /// The node is being stopped.
    is_over: bool,
    /// When the log said last that somebody waits.
    told: Option<Instant>,
}

/// The thread that looks at the free space. It ends when this is dropped, and nobody waits for space any more.
pub(crate) struct SpaceWatch {
    reserve: Arc<Reserve>,
    thread: Option<JoinHandle<()>>,
}

impl SpaceWatch {
    /// Has nobody wait for space any more: the node stops. What was waiting is given up; nothing of it was acknowledged.
    pub(crate) fn end_waiting(&self) {
        self.reserve.give_up_waiting();
    }
}

impl Drop for SpaceWatch {
    fn drop(&mut self) {
        self.end_waiting();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could fail.
            let _ = thread.join();
        }
    }
}

impl Reserve {
    /// Keeps nothing: writers that find no room wait for it.
    #[must_use]
    pub fn none(dir: &Path) -> Arc<Self> {
        Arc::new(Self::of(dir, 0))
    }

    fn of(dir: &Path, bytes: u64) -> Self {
        let (is_short, changed) = (AtomicBool::new(false), Condvar::new());
        Self { dir: dir.to_owned(), bytes, is_short, state: Mutex::default(), changed }
    }

    /// Keeps this many bytes in a data directory from now on, if there is room for them, and looks at the free space as
    /// long as the returned watch lives. Blocks.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn keep(dir: &Path, bytes: u64) -> io::Result<(Arc<Self>, SpaceWatch)> {
        let reserve = Arc::new(Self::of(dir, bytes));
        let (path, mut thread) = (reserve.path(), None);
        if bytes == 0 {
            // A reserve of an earlier configuration.
            let _ = fs::remove_file(path);
        } else {
            reserve.state.lock().is_held = is_whole(&path, bytes).unwrap_or(false);
            reserve.look_at_space();
            let watched = reserve.clone();
            thread = Some(std::thread::Builder::new().name("space".to_owned()).spawn(move || watched.watch())?);
        }
        Ok((reserve.clone(), SpaceWatch { reserve, thread }))
    }

    fn path(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    /// Returns whether little space is left: what takes more is to be refused.
    #[must_use]
    pub fn is_short_of_space(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Returns whether the node is being stopped: writes that found no room were given up.
    #[must_use]
    pub(crate) fn is_waiting_over(&self) -> bool {
        self.state.lock().is_over
    }

    fn give_up_waiting(&self) {
        self.state.lock().is_over = true;
        self.changed.notify_all();
    }

    /// To be called when a write of `what` has found no room. Removes the reserve, or waits a moment. Returns whether the
    /// write is to be tried again; false when the node stops. Blocks.
    #[must_use]
    pub(crate) fn await_space(&self, what: &str) -> bool {
        let mut state = self.state.lock();
        if state.is_over {
            return false;
        }
        if self.bytes > 0 {
            self.is_short.store(true, Ordering::Relaxed);
        }
        if std::mem::take(&mut state.is_held) {
            match fs::remove_file(self.path()) {
                Ok(()) => {
                    let (dir, mib) = (self.dir.display(), self.bytes >> 20);
                    tracing::warn!(%dir, what, "the disk is full: metad goes on in its reserve of {mib} MiB. Make room there");
                    return true;
                }
                Err(error) => tracing::warn!(%error, path = %self.path().display(), "the reserve cannot be removed"),
            }
        }
        self.tell(&mut state, what);
        self.changed.wait_for(&mut state, RETRY_PAUSE);
        !state.is_over
    }

    /// Does work that takes space, again and again as long as there is none, until the node stops. Blocks.
    ///
    /// # Errors
    /// Those of the work.
    pub(crate) fn patiently<T>(&self, what: &str, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match work() {
                Err(error) if is_out_of_space(&error) && self.await_space(what) => {}
                done => return done,
            }
        }
    }

    /// Returns whether this many bytes are free. If nobody knows, they are.
    #[must_use]
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        !sys::free_space(&self.dir).is_ok_and(|free| free < bytes)
    }

    /// Waits until there is more space than the reserve needs, and room for this many bytes. Returns false when the node
    /// stops. Blocks.
    #[must_use]
    pub(crate) fn await_ample_space(&self, what: &str, bytes: u64) -> bool {
        let mut state = self.state.lock();
        while !state.is_over {
            self.tell(&mut state, what);
            self.changed.wait_for(&mut state, RETRY_PAUSE);
            if !self.is_short_of_space() && self.has_room_for(bytes) {
                return !state.is_over;
            }
        }
        false
    }

    fn tell(&self, state: &mut State, what: &str) {
        if state.told.is_none_or(|told| told.elapsed() >= TOLD_PAUSE) {
            state.told = Some(Instant::now());
            let dir = self.dir.display();
            tracing::error!(%dir, what, "the disk is full, and this waits: make room there, and metad goes on by itself");
        }
    }

    fn watch(&self) {
        let mut state = self.state.lock();
        while !state.is_over {
            self.changed.wait_for(&mut state, LOOK_PAUSE);
            parking_lot::MutexGuard::unlocked(&mut state, || self.look_at_space());
        }
    }

    fn look_at_space(&self) {
        match sys::free_space(&self.dir) {
            Ok(free) => self.judge(free),
            Err(error) => tracing::debug!(%error, dir = %self.dir.display(), "the free space is not known"),
        }
    }

    /// Judges by how much is free beside the reserve, and makes the reserve again if there is room.
    fn judge(&self, free: u64) {
        let mut state = self.state.lock();
        let was_short = self.is_short_of_space();
        // What the file is to take does not count.
        let left = if state.is_held { free } else { free.saturating_sub(self.bytes) };
        let mut short = is_short(was_short, left, self.bytes);
        if !short && !state.is_held {
            match make(&self.path(), self.bytes) {
                Ok(()) => state.is_held = true,
                // Somebody else has taken the space.
                Err(error) if is_out_of_space(&error) => short = true,
                Err(error) => {
                    if state.told.is_none_or(|told| told.elapsed() >= TOLD_PAUSE) {
                        state.told = Some(Instant::now());
                        tracing::warn!(%error, path = %self.path().display(), "there is no reserve");
                    }
                }
            }
        }
        self.is_short.store(short, Ordering::Relaxed);
        let (dir, mib) = (self.dir.display(), self.bytes >> 20);
        if short && !was_short {
            tracing::warn!(%dir, "the disk has less than {mib} MiB left: what takes space is refused with ENOSPC. Make room there");
        }
        if !short && was_short {
            state.told = None;
            tracing::info!(%dir, "there is room again");
            self.changed.notify_all();
        }
    }
}

/// Returns whether too little is left beside a reserve of this size. To count as ample again, it has to be a bit more:
/// otherwise each removal would let one file in.
fn is_short(was_short: bool, left: u64, bytes: u64) -> bool {
    left < if was_short { bytes + bytes / 4 } else { bytes }
}

/// Returns whether the file has all of its space.
fn is_whole(path: &Path, bytes: u64) -> io::Result<bool> {
    let found = fs::metadata(path)?;
    Ok(found.is_file() && found.len() == bytes && found.st_blocks().saturating_mul(512) >= bytes)
}

/// Makes the file, with all of its space.
fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let made = fill(path, bytes);
    if made.is_err() {
        // Others need its space.
        let _ = fs::remove_file(path);
    }
    made
}

fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if sys::allocate_ahead(&file, 0, bytes)? {
        file.set_len(bytes)?;
        if is_whole(path, bytes)? {
            return Ok(());
        }
    }
    // Random, because a filesystem may compress zeros, or store none.
    let mut piece = vec![0; PIECE_BYTES];
    rand::fill(&mut piece[..]);
    let mut left = bytes;
    while left > 0 {
        let len = left.min(PIECE_BYTES as u64);
        file.write_all(&piece[..len as usize])?;
        left -= len;
    }
    // Only then a filesystem that allocates late has allocated it.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn is_there(dir: &Path) -> bool {
        is_whole(&dir.join("reserve"), MIB).unwrap_or(false)
    }

    #[test]
    fn a_reserve_takes_its_space_is_removed_for_a_writer_and_made_again_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path(), MIB);
        reserve.judge(10 * MIB);
        assert!(is_there(dir.path()) && !reserve.is_short_of_space());
        reserve.judge(MIB - 1);
        assert!(is_there(dir.path()) && reserve.is_short_of_space(), "it stays as long as nobody needs it");
        assert!(reserve.await_space("the log"));
        assert!(!dir.path().join("reserve").exists() && reserve.is_short_of_space());
        // As much as it needs itself, and a bit less than is to be left beside it.
        reserve.judge(2 * MIB + MIB / 4 - 1);
        assert!(!is_there(dir.path()) && reserve.is_short_of_space());
        reserve.judge(2 * MIB + MIB / 4);
        assert!(is_there(dir.path()) && !reserve.is_short_of_space());
    }

    #[test]
    fn a_writer_without_room_is_told_to_try_again_until_the_node_stops() {
        let dir = tempfile::tempdir().unwrap();
        for reserve in [Reserve::none(dir.path()), Arc::new(Reserve::of(dir.path(), MIB))] {
            assert!(reserve.await_space("the log"));
            let waiting = {
                let reserve = reserve.clone();
                std::thread::spawn(move || while reserve.await_space("the log") {})
            };
            assert!(!reserve.is_waiting_over());
            reserve.give_up_waiting();
            waiting.join().unwrap();
            assert!(!reserve.await_space("the log") && !reserve.await_ample_space("a snapshot", 0));
        }
    }

    #[test]
    fn a_watched_reserve_is_kept_and_one_of_another_size_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        drop(Reserve::keep(dir.path(), 2 * MIB).unwrap());
        assert!(!is_there(dir.path()));
        let (_, watch) = Reserve::keep(dir.path(), MIB).unwrap();
        assert!(is_there(dir.path()));
        drop(watch);
        drop(Reserve::keep(dir.path(), 0).unwrap());
        assert!(!dir.path().join("reserve").exists());
    }
}
