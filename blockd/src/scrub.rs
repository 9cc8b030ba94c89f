//! Scrub: reading every copy from time to time, and comparing it with its name, so that damage shows while others
//! still have good copies. What is found corrupt goes to repair.
//!
//! How far it is, and when the last pass ended, stands in a file: a disk that takes a week to read would never be
//! read to its end by a daemon that is restarted now and then.

use crate::metrics::Metrics;
use crate::repair::progress::Progress;
use crate::repair::read_repair::RepairQueue;
use crate::store::{Scrubbed, Store};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::attr::Timestamp;
use wire::ids::BlockHash;

/// Pause between two passes: a small store need not be read all the time.
const IDLE: Duration = Duration::from_secs(600);
/// Pauses are at least this long: those of several small blocks are added up and made at once, because each would
/// cost more in timers than in reading.
const SLICE: Duration = Duration::from_millis(100);
/// How often it is noted how far it is.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// What scrub needs.
pub(crate) struct Scrubber {
    /// What is read.
    pub store: Arc<Store>,
    /// Replaces what is corrupt.
    pub repairs: RepairQueue,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What heartbeats report.
    pub progress: Arc<Progress>,
    /// The file that says how far it is.
    pub record: PathBuf,
    /// The rate; 0 is no scrub.
    pub bytes_per_s: u64,
}

/// How far scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Record {
    /// When the last whole pass ended.
    passed: Option<Timestamp>,
    /// Where the pass under way goes on; `None` between two passes.
    next: Option<BlockHash>,
    /// The pass under way has read every block so far.
    is_whole: bool,
}

impl Record {
    /// Reads the record. Without a readable file, everything is read anew.
    fn load(path: &Path) -> Self {
        let anew = Self { passed: None, next: None, is_whole: true }.begun();
        std::fs::read(path).ok().and_then(|bytes| wire::codec::decode(&bytes).ok()).unwrap_or(anew)
    }

    /// A new pass begins.
    fn begun(self) -> Self {
        Self { next: Some(BlockHash([0; 32])), is_whole: true, ..self }
    }

    /// The pass has ended. Only a whole one says that every copy was read.
    fn ended(self) -> Self {
        let passed = if self.is_whole { Some(Timestamp::now()) } else { self.passed };
        Self { passed, next: None, ..self }
    }

    /// How long to wait after a pass that an earlier process has ended.
    fn pause(&self) -> Duration {
        let since = self.passed.map_or(0, |at| Timestamp::now().as_millis().saturating_sub(at.as_millis()));
        IDLE.saturating_sub(Duration::from_millis(since))
    }
}

/// How long so many bytes take at a rate.
pub(crate) fn time_at_rate(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64)
}

impl Scrubber {
    /// Reads everything, over and over.
    pub(crate) async fn run(self) {
        let path = self.record.clone();
        let Ok(mut record) = tokio::task::spawn_blocking(move || Record::load(&path)).await else { return };
        let mut pause = record.pause();
        loop {
            if let Some(passed) = record.passed {
                self.progress.set_scrubbed(passed);
            }
            if record.next.is_none() {
                tokio::time::sleep(pause).await;
                record = record.begun();
            }
            self.pass(&mut record).await;
            (record, pause) = (record.ended(), IDLE);
            self.note(record).await;
        }
    }

    /// Reads from where the record says to the end.
    async fn pass(&self, record: &mut Record) {
        let (mut owed, mut noted) = (Duration::ZERO, Instant::now());
        while let Some((hash, len, outcome)) = match record.next {
            Some(from) => self.store.scrub_step(from).await,
            None => None,
        } {
            match outcome {
                Scrubbed::Good => {}
                Scrubbed::Damaged => {
                    self.metrics.corrupt.add(1);
                    tracing::warn!(%hash, "scrub found a corrupt copy; it is repaired from another daemon");
                    self.repairs.push(hash);
                }
                Scrubbed::Unread(error) => {
                    if record.is_whole {
                        tracing::warn!(%hash, %error, "scrub could not read a copy: this pass does not count");
                    }
                    record.is_whole = false;
                }
            }
            record.next = hash.next();
            owed += time_at_rate(u64::from(len), self.bytes_per_s);
            if owed >= SLICE {
                tokio::time::sleep(owed).await;
                owed = Duration::ZERO;
            }
            if noted.elapsed() >= NOTED_EVERY {
                noted = Instant::now();
                self.note(*record).await;
            }
        }
    }

    async fn note(&self, record: Record) {
        let path = self.record.clone();
        let noted = tokio::task::spawn_blocking(move || wire::durable::replace(&path, &wire::codec::encode(&record)));
        if let Ok(Err(error)) = noted.await {
            tracing::debug!(%error, "it could not be noted how far scrub is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;
    use crate::store::disk::{Disk, RealDisk, SegmentFile};
    use bytes::Bytes;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// The machine's disk; a read of a segment panics once when a test asks for it, as a fault in this program would.
    #[derive(Clone, Default)]
    struct Faulty(Arc<AtomicBool>);

    struct FaultyFile(Arc<dyn SegmentFile>, Faulty);

    impl SegmentFile for FaultyFile {
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(bytes, offset)
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            assert!(!self.1.0.swap(false, Ordering::Relaxed), "the fault of the test");
            self.0.read_at(buffer, offset)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }

        fn truncate(&self, len: u64) -> io::Result<()> {
            self.0.truncate(len)
        }

        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }
    }

    impl Disk for Faulty {
        fn create_dir(&self, dir: &Path) -> io::Result<()> {
            RealDisk.create_dir(dir)
        }

        fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
            RealDisk.list(dir)
        }

        fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn SegmentFile>> {
            Ok(Arc::new(FaultyFile(RealDisk.create(path, len)?, self.clone())))
        }

        fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
            Ok(Arc::new(FaultyFile(RealDisk.open(path)?, self.clone())))
        }

        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            RealDisk.read(path)
        }

        fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
            RealDisk.replace(path, content)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            RealDisk.remove(path)
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            RealDisk.sync_dir(dir)
        }

        fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
            Ok((1 << 40, RealDisk.space(dir)?.1.max(1 << 30)))
        }
    }

    struct Setup {
        dir: tempfile::TempDir,
        faulty: Faulty,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        progress: Arc<Progress>,
    }

    impl Setup {
        async fn new() -> Self {
            let (dir, faulty) = (tempfile::tempdir().unwrap(), Faulty::default());
            let store = Self::open(dir.path(), &faulty);
            Self { dir, faulty, store, metrics: Arc::default(), progress: Arc::default() }
        }

        fn open(dir: &Path, faulty: &Faulty) -> Arc<Store> {
            let options = StoreOptions { segment_bytes: 8 << 20, reserve_bytes: 0 };
            Arc::new(Store::open_on(&dir.join("blocks"), options, Arc::new(faulty.clone())).unwrap())
        }

        async fn put(&self, content: Vec<u8>) -> BlockHash {
            let hash = BlockHash::of(&content);
            self.store.put(hash, Bytes::from(content)).await.unwrap();
            hash
        }

        fn record(&self) -> PathBuf {
            self.dir.path().join("scrub")
        }

        fn scrubber(&self, bytes_per_s: u64) -> Scrubber {
            Scrubber {
                store: self.store.clone(),
                repairs: RepairQueue::new().0,
                metrics: self.metrics.clone(),
                progress: self.progress.clone(),
                record: self.record(),
                bytes_per_s,
            }
        }

        fn scrubbed(&self) -> Option<Timestamp> {
            self.progress.report(&self.store).scrubbed
        }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(3000), waiting).await.is_ok(), "not in time: {what}");
    }

    /// Flips a bit of a block on disk.
    fn damage(dir: &Path, content: &[u8]) {
        use std::os::unix::fs::FileExt;
        for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let bytes = std::fs::read(&entry).unwrap();
            for (at, _) in bytes.windows(32).enumerate().filter(|(_, window)| *window == &content[..32]) {
                let file = std::fs::OpenOptions::new().write(true).open(&entry).unwrap();
                file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            }
        }
    }

    #[test]
    fn a_record_that_is_not_there_or_damaged_lets_everything_be_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scrub");
        let anew = Record { passed: None, next: Some(BlockHash([0; 32])), is_whole: true };
        assert_eq!(Record::load(&path), anew);
        let record = Record { passed: Some(Timestamp::now()), next: Some(BlockHash([7; 32])), is_whole: false };
        let bytes = wire::codec::encode(&record);
        wire::durable::replace(&path, &bytes).unwrap();
        assert_eq!(Record::load(&path), record);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(Record::load(&path), anew);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_goes_on_after_a_restart_where_it_was() {
        let mut setup = Setup::new().await;
        let mut contents: Vec<Vec<u8>> = (0..3_u8).map(|number| vec![number; 100_000]).collect();
        contents.sort_by_key(|content| BlockHash::of(content));
        for content in &contents {
            setup.put(content.clone()).await;
        }
        let [first, second] = [0, 1].map(|index: usize| BlockHash::of(&contents[index]));
        // A block takes a hundred seconds, so it is noted after each how far the pass is.
        let scrubbing = tokio::spawn(setup.scrubber(1000).run());
        let is_noted = || Record::load(&setup.record()).next == first.next();
        until("the first block is read", is_noted).await;
        scrubbing.abort();
        assert!(scrubbing.await.unwrap_err().is_cancelled());
        // Damage before that place is found only by a pass that begins anew; damage behind it by this one.
        setup.store.close();
        [0, 2].iter().for_each(|index: &usize| damage(&setup.dir.path().join("blocks"), &contents[*index]));
        setup.store = Setup::open(setup.dir.path(), &setup.faulty);
        let scrubbing = tokio::spawn(setup.scrubber(1000).run());
        until("the pass has ended", || setup.scrubbed().is_some()).await;
        assert_eq!(setup.metrics.corrupt.get(), 1);
        assert!(setup.store.contains(&first) && setup.store.contains(&second));
        scrubbing.abort();
        setup.store.close();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_could_not_read_a_block_does_not_count() {
        let setup = Setup::new().await;
        setup.put(vec![1; 1000]).await;
        let mut record = Record::load(&setup.record());
        setup.faulty.0.store(true, Ordering::Relaxed);
        setup.scrubber(1 << 30).pass(&mut record).await;
        assert_eq!(record.ended(), Record { passed: None, next: None, is_whole: false });
        let mut record = record.ended().begun();
        setup.scrubber(1 << 30).pass(&mut record).await;
        assert!(record.ended().passed.is_some(), "the next pass has read everything");
        assert_eq!(setup.metrics.corrupt.get(), 0);
        setup.store.close();
    }
}
