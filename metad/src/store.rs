//! The applied state: sled on disk, which can be rebuilt from the log, and in memory the changes that are not on disk
//! yet.
//!
//! sled 0.34 never fsyncs (its `flush` calls `sync_file_range`), and a batch is atomic within one tree only. So there
//! is one tree; the effects of whole Raft entries and the applied position go into one batch; and the state is trusted
//! after a start only if nothing unsynced can have been lost: after a clean stop (which syncs the files itself), or
//! when only the process died and the kernel lived on. Otherwise it is thrown away and rebuilt from a snapshot and the
//! Raft log, which are synced before anything is acknowledged.
//!
//! Writes are delayed: a batch costs sled two rounds of its thread pool, more than the rest of a Raft round together.
//! So [`Store::apply`] puts changes into the `overlay`, and the `drain` thread writes what has gathered there to sled.
//! Changes that a killed process had not written are applied again from the log.
//!
//! Changes become visible at once, but a reader of several keys could read some before and some after a change:
//! [`Kv::hold`] keeps changes out meanwhile.
//!
//! [`Store::begin_snapshot`] begins a scan that reads the state of one moment while writes go on. The scan moves
//! through the keys in steps. A write to a key that it has not reached yet first saves the old value for it.
//!
//! A full disk: writes wait in the `drain` thread until there is room ([`Reserve`]). If the node stops meanwhile, they are
//! given up, and all later ones; the log has them.

mod ahead;
mod drain;
mod overlay;

use crate::error::Error;
use crate::fs::keys::Key;
use crate::fs::view::{Changes, Held, Kv, KvExt, Over};
use crate::reserve::{Reserve, is_out_of_space};
use ahead::Ahead;
use drain::Drain;
use overlay::Overlay;
use parking_lot::{Mutex, RwLock};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::durable;

/// Key of the applied position; no table uses this prefix.
const POSITION: &[u8] = &[0];
/// After all keys.
const END: &[u8] = &[0xFF];
/// The file that says whether the others can be trusted.
const MARK: &str = "STATE";
/// Version of the files' format.
const FORMAT: &str = "surf metadata 2";
/// How long to wait for files that another part of this process still holds.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// The kernel's name for the time since it started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The applied state.
pub struct Store {
    dir: PathBuf,
    disk: Disk,
    overlay: Arc<Overlay>,
    /// Writes the overlay to the disk; before it ends, all of it.
    drain: Drain,
    /// Scans under way, one of a kind. Guards the order of writes and the steps of scans. Taken before `still`.
    scans: Mutex<[Option<Scan>; 2]>,
    /// Held while changes are made, and by readers who need several values of one moment. A batch of sled's shows its
    /// changes together, but not to a reader that looks once before it and once after it.
    still: RwLock<()>,
    /// The state was found to be damaged.
    is_distrusted: AtomicBool,
}

/// What reads all of the state while it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScanOf {
    /// A snapshot. It is not given up for memory: the log must be shortened some time.
    Snapshot,
    /// A comparison with other nodes, which is given up when too much is overwritten meanwhile.
    Digest,
}

/// A digest's scan is given up when it would hold more overwritten values than this, in bytes.
const OVERWRITTEN_BYTES_MAX: usize = 64 << 20;

/// A scan under way.
struct Scan {
    /// Keys up to and including this one have been read.
    passed: Key,
    /// Values as they were when the scan began, of keys that were written since and that the scan has not reached.
    before: Changes,
    /// Their bytes.
    before_bytes: usize,
}

/// sled, as a plain map.
#[derive(Clone)]
struct Disk {
    db: sled::Db,
    ahead: Arc<Ahead>,
}

/// Ends the process: without its state a metad can promise nothing, and must not acknowledge anything. A full disk does not
/// come to this, unless somebody else takes what was allocated ahead.
fn stop_for(error: &sled::Error) -> ! {
    if let sled::Error::Io(error) = error
        && is_out_of_space(error)
    {
        tracing::error!(%error, "the disk is full, and the metadata store cannot go on; stopping. Make room, then start again");
        std::process::exit(74)
    }
    tracing::error!(%error, "the metadata store failed; stopping. Check the disk, then start again");
    std::process::exit(74)
}

impl Store {
    /// Opens the state in `dir`. Makes an empty one if there is none, or none that can be trusted.
    ///
    /// # Errors
    /// When the directory cannot be used at all.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        Self::open_with(dir, cache_bytes, &Reserve::none(dir))
    }

    /// Opens it on a disk with a reserve. Waits while there is no room.
    pub(crate) fn open_with(dir: &Path, cache_bytes: u64, reserve: &Arc<Reserve>) -> Result<Self, Error> {
        if dir.exists() && !is_trusted(dir) {
            tracing::warn!(dir = %dir.display(), "the state may have lost writes; rebuilding it from snapshot and log");
            fs::remove_dir_all(dir).map_err(|error| Error::disk(dir, error))?;
        }
        let store = match Self::open_files(dir, cache_bytes, reserve) {
            Ok(store) => store,
            Err(Error::Disk { file, source }) => return Err(Error::Disk { file, source }),
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "the state does not open; rebuilding it from snapshot and log");
                fs::remove_dir_all(dir).map_err(|error| Error::disk(dir, error))?;
                Self::open_files(dir, cache_bytes, reserve)?
            }
        };
        store.mark("open")?;
        Ok(store)
    }

    fn open_files(dir: &Path, cache_bytes: u64, reserve: &Arc<Reserve>) -> Result<Self, Error> {
        let failed = |error| Error::disk(dir, error);
        reserve.patiently(ahead::WHAT, || fs::create_dir_all(dir)).map_err(failed)?;
        let path = dir.join("sled");
        let db = open_sled(&path, cache_bytes, reserve)?;
        let disk = Disk { db, ahead: Arc::new(Ahead::of(&path, reserve).map_err(failed)?) };
        let overlay = Arc::default();
        let drain = Drain::start(&disk, &overlay).map_err(failed)?;
        Ok(Self {
            dir: dir.to_owned(),
            disk,
            overlay,
            drain,
            scans: Mutex::default(),
            still: RwLock::new(()),
            is_distrusted: AtomicBool::new(false),
        })
    }

    fn mark(&self, state: &str) -> Result<(), Error> {
        let path = self.dir.join(MARK);
        let text = format!("{FORMAT}\n{state}\n{}", boot_id());
        // After a kill it is there, and a full disk has no room for it.
        let written = if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            durable::sync_parent(&path)
        } else {
            self.reserve().patiently(ahead::WHAT, || durable::replace(&path, text.as_bytes()))
        };
        written.map_err(|error| Error::disk(&path, error))
    }

    /// Returns the reserve of its disk.
    pub(crate) fn reserve(&self) -> &Arc<Reserve> {
        self.disk.ahead.reserve()
    }

    /// Has the next start rebuild the state from snapshot and log.
    pub fn distrust(&self) {
        self.is_distrusted.store(true, Ordering::Relaxed);
        let path = self.dir.join(MARK);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "remove this file: the state is damaged");
        }
    }

    /// Returns whether there is nothing, not even a position.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.any(Vec::new()..END.to_vec())
    }

    /// Syncs everything and marks the state as trustworthy, even if the machine fails later. A snapshot under way is
    /// given up.
    ///
    /// # Errors
    /// When the disk fails; the next start rebuilds the state.
    pub fn close(&self) -> Result<(), Error> {
        // Otherwise the snapshot would go on reading files that belong to somebody else by then, or are gone.
        *self.scans.lock() = Default::default();
        self.drain.now();
        self.disk.db.flush().map_err(|error| Error::Store(error.to_string()))?;
        sync_files(&self.dir.join("sled"))?;
        if self.is_distrusted.load(Ordering::Relaxed) {
            return Err(Error::Store("the state contradicts the log".to_owned()));
        }
        self.mark("clean")
    }

    /// Returns the position up to which the state has applied the log, as [`Store::apply`] stored it.
    #[must_use]
    pub fn position(&self) -> Option<Vec<u8>> {
        self.get(POSITION)
    }

    /// Applies changes together with the position to which they lead. Blocks while the disk is far behind.
    pub fn apply(&self, mut changes: Changes, position: &[u8]) {
        self.drain.wait_for_room();
        let mut scans = self.scans.lock();
        for scan in scans.iter_mut().flatten() {
            for key in changes.keys() {
                if *key > scan.passed && !scan.before.contains_key(key) {
                    let value = self.get(key);
                    scan.before_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                    scan.before.insert(key.clone(), value);
                }
            }
        }
        let digest = &mut scans[ScanOf::Digest as usize];
        if digest.as_ref().is_some_and(|scan| scan.before_bytes > OVERWRITTEN_BYTES_MAX) {
            *digest = None;
        }
        changes.insert(POSITION.to_vec(), Some(position.to_vec()));
        {
            let _alone = self.still.write();
            self.overlay.add(changes);
        }
        self.drain.wake();
    }

    /// Returns whether applying may have to wait for the disk.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.drain.is_behind()
    }

    /// Deletes everything. Call [`Store::load`] afterwards, and [`Store::apply`] once with the position.
    pub fn clear(&self) {
        *self.scans.lock() = Default::default();
        self.drain.now();
        if self.disk.ahead.secure(0, 0) {
            self.disk.db.clear().unwrap_or_else(|error| stop_for(&error));
        }
    }

    /// Loads pairs without a position: the state is incomplete until one is applied.
    pub fn load(&self, pairs: Vec<(Key, Vec<u8>)>) {
        // If they are given up, no position is written after them.
        let _ = self.disk.write(pairs.iter().map(|(key, value)| (key, Some(value))));
    }

    /// Begins to read the state as it is now for a snapshot. As [`Store::begin_scan`].
    pub fn begin_snapshot(&self) -> Option<Vec<u8>> {
        self.begin_scan(ScanOf::Snapshot)
    }

    /// Returns the next pairs for a snapshot. As [`Store::next_of_scan`].
    pub fn next_of_snapshot(&self, count: usize) -> Option<Vec<(Key, Vec<u8>)>> {
        self.next_of_scan(ScanOf::Snapshot, count)
    }

    /// Gives up a snapshot under way.
    pub(crate) fn abandon_snapshot(&self) {
        self.scans.lock()[ScanOf::Snapshot as usize] = None;
    }

    /// Begins to read the state as it is now, and returns its position. Only one scan of a kind goes on at a time: an
    /// older one ends, and [`Store::next_of_scan`] then returns `None`.
    pub fn begin_scan(&self, of: ScanOf) -> Option<Vec<u8>> {
        let mut scans = self.scans.lock();
        scans[of as usize] = Some(Scan { passed: POSITION.to_vec(), before: Changes::new(), before_bytes: 0 });
        self.position()
    }

    /// Returns the next pairs of the state as it was when the scan began; none at its end. Returns `None` when there is
    /// no scan.
    pub fn next_of_scan(&self, of: ScanOf, count: usize) -> Option<Vec<(Key, Vec<u8>)>> {
        let mut scans = self.scans.lock();
        let slot = &mut scans[of as usize];
        let scan = slot.as_mut()?;
        // The smallest key after the last one.
        let mut from = scan.passed.clone();
        from.push(0);
        let pairs = Over { base: self, changes: &scan.before }.pairs(from..END.to_vec(), count);
        if let Some((last, _)) = pairs.last() {
            scan.passed.clone_from(last);
        }
        if pairs.is_empty() {
            *slot = None;
        }
        Some(pairs)
    }
}

impl Kv for Store {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.overlay.get(key) {
            Some(change) => change,
            None => self.disk.get(key),
        }
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.overlay.over(&self.disk, |state| state.scan(range, visit));
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        self.overlay.over(&self.disk, |state| state.last(range))
    }

    fn hold(&self) -> Held<'_> {
        Held::by(self.still.read())
    }
}

impl Disk {
    /// Makes changes in one batch, once there is room. Returns false when they were given up, because the node stops.
    fn write<'a>(&self, changes: impl IntoIterator<Item = (&'a Key, Option<&'a Vec<u8>>)>) -> bool {
        let mut batch = sled::Batch::default();
        let (mut bytes, mut keys) = (0, 0);
        for (key, change) in changes {
            bytes += (key.len() + change.map_or(0, Vec::len)) as u64;
            keys += 1;
            match change {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        if !self.ahead.secure(bytes, keys) {
            return false;
        }
        self.db.apply_batch(batch).unwrap_or_else(|error| stop_for(&error));
        true
    }
}

impl Kv for Disk {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.db.get(key).unwrap_or_else(|error| stop_for(&error)).map(|value| value.to_vec())
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if range.start >= range.end {
            return;
        }
        for pair in self.db.range(range) {
            let (key, value) = pair.unwrap_or_else(|error| stop_for(&error));
            if !visit(&key, &value) {
                return;
            }
        }
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        if range.start >= range.end {
            return None;
        }
        let pair = self.db.range(range).next_back()?;
        let (key, value) = pair.unwrap_or_else(|error| stop_for(&error));
        Some((key.to_vec(), value.to_vec()))
    }
}

/// Opens sled. Waits for a previous store of this process: its threads close the files a moment after it was dropped. Waits
/// for room, too: opening writes what it has found.
fn open_sled(path: &Path, cache_bytes: u64, reserve: &Reserve) -> Result<sled::Db, Error> {
    let mut started = Instant::now();
    loop {
        let config = sled::Config::default()
            .path(path)
            .cache_capacity(cache_bytes)
            // The log provides durability; flushing only bounds what a restart of the process replays.
            .flush_every_ms(Some(1_000));
        let opened = ahead::prepare(path).map_err(sled::Error::Io).and_then(|()| config.open());
        match opened {
            Ok(db) => return Ok(db),
            Err(sled::Error::Io(error)) if is_out_of_space(&error) => {
                if !reserve.await_space(ahead::WHAT) {
                    return Err(Error::disk(path, error));
                }
                started = Instant::now();
            }
            // The state is not damaged, only its files cannot be used: nothing may be thrown away for that.
            Err(sled::Error::Io(error)) if started.elapsed() > OPEN_LIMIT => return Err(Error::disk(path, error)),
            Err(sled::Error::Io(_)) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(Error::Store(error.to_string())),
        }
    }
}

fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// Returns whether nothing that was written can be missing.
fn is_trusted(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join(MARK)) else { return false };
    let lines: Vec<&str> = text.lines().collect();
    match lines.as_slice() {
        [FORMAT, "clean", _] => true,
        [FORMAT, "open", boot] => !boot.is_empty() && *boot == boot_id(),
        _ => false,
    }
}

fn sync_files(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(|error| Error::disk(dir, error))? {
        let path = entry.map_err(|error| Error::disk(dir, error))?.path();
        if path.is_dir() {
            sync_files(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|error| Error::disk(&path, error))?;
        }
    }
    File::open(dir).and_then(|file| file.sync_all()).map_err(|error| Error::disk(dir, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CACHE: u64 = 8 << 20;

    fn change(key: u8, value: Option<u8>) -> Changes {
        [(vec![1, key], value.map(|value| vec![value]))].into()
    }

    #[test]
    fn a_state_that_was_not_closed_is_trusted_only_within_the_same_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let store = Store::open(&path, CACHE).unwrap();
        store.apply(change(1, Some(1)), b"one");
        drop(store);
        let store = Store::open(&path, CACHE).unwrap();
        assert_eq!(store.position().unwrap(), b"one", "only the process ended");
        drop(store);
        fs::write(path.join(MARK), format!("{FORMAT}\nopen\nanother-boot")).unwrap();
        assert_eq!(Store::open(&path, CACHE).unwrap().position(), None, "the machine may have lost writes");
    }

    #[test]
    fn a_closed_state_is_trusted_after_a_reboot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let store = Store::open(&path, CACHE).unwrap();
        store.apply(change(1, Some(1)), b"one");
        store.close().unwrap();
        drop(store);
        fs::write(path.join(MARK), format!("{FORMAT}\nclean\nanother-boot")).unwrap();
        assert_eq!(Store::open(&path, CACHE).unwrap().position().unwrap(), b"one");
    }

    #[test]
    fn closing_gives_up_a_snapshot_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state"), CACHE).unwrap();
        store.apply(change(1, Some(1)), b"one");
        store.begin_snapshot();
        store.close().unwrap();
        assert!(store.next_of_snapshot(1).is_none());
    }

    #[test]
    fn a_state_that_does_not_open_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let store = Store::open(&path, CACHE).unwrap();
        store.apply(change(1, Some(1)), b"one");
        store.close().unwrap();
        drop(store);
        let len = fs::metadata(path.join("sled/db")).unwrap().len() as usize;
        fs::write(path.join("sled/db"), vec![0xA5; len]).unwrap();
        assert_eq!(Store::open(&path, CACHE).unwrap().position(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn a_snapshot_is_the_state_when_it_began_whatever_is_written_meanwhile(
            before in proptest::collection::btree_map(any::<u8>(), any::<u8>(), 0..30),
            during in proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u8>())), 0..60),
            step in 1_usize..7,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("state"), CACHE).unwrap();
            for (key, value) in &before {
                store.apply(change(*key, Some(*value)), b"p");
            }
            store.begin_snapshot();
            let mut read = Vec::new();
            let mut writes = during.iter();
            loop {
                let pairs = store.next_of_snapshot(step).unwrap();
                if pairs.is_empty() {
                    break;
                }
                read.extend(pairs);
                for (key, value) in writes.by_ref().take(2) {
                    store.apply(change(*key, *value), b"q");
                }
            }
            let expected: Vec<(Key, Vec<u8>)> = before.into_iter().map(|(k, v)| (vec![1, k], vec![v])).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
