//! The store on a disk whose power is cut at any moment.

use super::disk::{Disk, SegmentFile};
use super::{Error, Store, StoreOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::ids::BlockHash;

/// A file: what is stable, and what was written since the last sync.
#[derive(Default, Clone)]
struct Content {
    stable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

impl Content {
    fn now(&self) -> Vec<u8> {
        let mut bytes = self.stable.clone();
        for (offset, written) in &self.pending {
            lay(&mut bytes, *offset, written);
        }
        bytes
    }
}

fn lay(bytes: &mut Vec<u8>, offset: u64, written: &[u8]) {
    let end = offset as usize + written.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[offset as usize..end].copy_from_slice(written);
}

#[derive(Default)]
struct Inner {
    files: Mutex<BTreeMap<PathBuf, Content>>,
    /// Calls that still succeed before the power goes.
    left: AtomicU64,
    free: AtomicU64,
}

/// A disk in memory that loses what was not synced.
#[derive(Clone, Default)]
struct TestDisk(Arc<Inner>);

impl TestDisk {
    fn new() -> Self {
        let disk = Self::default();
        disk.0.left.store(u64::MAX / 2, Ordering::SeqCst);
        disk.0.free.store(u64::MAX / 2, Ordering::SeqCst);
        disk
    }

    fn cut_after(&self, calls: u64) {
        self.0.left.store(calls, Ordering::SeqCst);
    }

    fn call(&self) -> io::Result<()> {
        let before = self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if before.is_ok() { Ok(()) } else { Err(io::Error::other("the power is off")) }
    }

    /// The power comes back: of what was not synced, some pieces arrived and some did not.
    fn power_on(&self, mut luck: u64) {
        for content in self.0.files.lock().values_mut() {
            for (offset, written) in std::mem::take(&mut content.pending) {
                for (index, piece) in written.chunks(4096).enumerate() {
                    luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if luck >> 63 == 1 {
                        lay(&mut content.stable, offset + index as u64 * 4096, piece);
                    }
                }
            }
        }
        self.cut_after(u64::MAX / 2);
    }

    fn flip(&self, path: &Path, at: usize) {
        self.0.files.lock().get_mut(path).unwrap().stable[at] ^= 1;
    }

    fn segments(&self) -> Vec<PathBuf> {
        let files = self.0.files.lock();
        files.keys().filter(|path| path.extension().is_some_and(|end| end == "segment")).cloned().collect()
    }
}

struct TestFile(TestDisk, PathBuf);

impl TestFile {
    fn with<T>(&self, work: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut files = self.0.0.files.lock();
        files.get_mut(&self.1).map(work).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SegmentFile for TestFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let powered = self.0.call();
        // Without power the write may still have reached the disk's cache in part.
        self.with(|content| content.pending.push((offset, bytes.to_vec())))?;
        powered
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|content| {
            let bytes = content.now();
            let from = (offset as usize).min(bytes.len());
            let count = buffer.len().min(bytes.len() - from);
            buffer[..count].copy_from_slice(&bytes[from..from + count]);
            count
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.0.call()?;
        self.with(|content| {
            content.stable = content.now();
            content.pending.clear();
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.sync()?;
        self.with(|content| content.stable.truncate(len as usize))
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|content| content.now().len() as u64)
    }
}

impl Disk for TestDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.call()
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.0.files.lock().keys().cloned().collect())
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn SegmentFile>> {
        self.call()?;
        let content = Content { stable: vec![0; len as usize], pending: Vec::new() };
        self.0.files.lock().insert(path.to_owned(), content);
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(TestFile(self.clone(), path.to_owned())))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        TestFile(self.clone(), path.to_owned()).with(|content| content.now())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.call()?;
        let content = Content { stable: bytes.to_vec(), pending: Vec::new() };
        self.0.files.lock().insert(path.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        self.0.files.lock().remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.call()
    }

    fn space(&self, _dir: &Path) -> io::Result<(u64, u64)> {
        Ok((u64::MAX / 2, self.0.free.load(Ordering::SeqCst)))
    }
}

const DIR: &str = "/store";

fn open(disk: &TestDisk) -> Store {
    let options = StoreOptions { segment_bytes: 64 << 10, reserve_bytes: 0 };
    Store::open_on(Path::new(DIR), options, Arc::new(disk.clone())).unwrap()
}

fn block(number: u16) -> (BlockHash, Bytes) {
    let content: Vec<u8> = (0..usize::from(number) * 37 % 9000 + 1).map(|i| (i as u8) ^ (number as u8)).collect();
    let content = [number.to_le_bytes().to_vec(), content].concat();
    (BlockHash::of(&content), Bytes::from(content))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u16),
    Drop(u16),
    Compact,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u16..24).prop_map(Step::Put),
        4 => (0_u16..24).prop_map(Step::Drop),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Guards I9.
    #[test]
    fn whatever_was_acknowledged_before_the_power_went_is_so_afterwards(
        steps in proptest::collection::vec(step(), 1..60),
        calls in 0_u64..150,
        luck: u64,
    ) {
        let runtime = runtime();
        let disk = TestDisk::new();
        let mut store = open(&disk);
        // Some(true): acknowledged as stored; Some(false): as dropped; None: nobody was told.
        let mut known: BTreeMap<u16, Option<bool>> = BTreeMap::new();
        disk.cut_after(calls);
        for step in &steps {
            match step {
                Step::Put(number) => {
                    let (hash, content) = block(*number);
                    let stored = runtime.block_on(store.put(hash, content)).is_ok();
                    known.insert(*number, stored.then_some(true));
                }
                Step::Drop(number) => {
                    let dropped = runtime.block_on(store.drop_block(block(*number).0));
                    known.insert(*number, dropped.is_ok().then_some(false));
                }
                Step::Compact => {
                    let _ = runtime.block_on(store.compact_step());
                }
                Step::Reopen => {
                    if disk.0.left.load(Ordering::SeqCst) > 1000 {
                        drop(store);
                        store = open(&disk);
                    }
                }
            }
        }
        drop(store);
        disk.power_on(luck);
        let store = open(&disk);
        for (number, state) in known {
            let (hash, content) = block(number);
            let found = runtime.block_on(store.get(hash)).unwrap();
            match state {
                Some(true) => prop_assert_eq!(found, Some(content)),
                Some(false) => prop_assert_eq!(found, None),
                None => prop_assert!(found.is_none_or(|found| found == content)),
            }
        }
    }

    #[test]
    fn one_flipped_bit_harms_no_other_block_and_is_never_served(at in 0_usize..100_000, puts in 1_u16..20) {
        let runtime = runtime();
        let disk = TestDisk::new();
        let store = open(&disk);
        for number in 0..puts {
            let (hash, content) = block(number);
            runtime.block_on(store.put(hash, content)).unwrap();
        }
        drop(store);
        let segments = disk.segments();
        let path = &segments[at % segments.len()];
        let len = disk.0.files.lock()[path].stable.len();
        disk.flip(path, at % len);
        let store = open(&disk);
        let mut lost = 0;
        for number in 0..puts {
            let (hash, content) = block(number);
            match runtime.block_on(store.get(hash)) {
                Ok(Some(found)) => prop_assert_eq!(found, content),
                Ok(None) => lost += 1,
                Err(Error::Corrupt { .. }) => {
                    lost += 1;
                    prop_assert!(runtime.block_on(store.put(hash, content.clone())).unwrap(), "it can be repaired");
                    prop_assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content));
                }
                Err(error) => panic!("{error}"),
            }
        }
        prop_assert!(lost <= 1);
    }
}

#[test]
fn a_full_disk_refuses_puts_and_serves_what_is_there() {
    let runtime = runtime();
    let disk = TestDisk::new();
    let store = open(&disk);
    let (first, content) = block(1);
    runtime.block_on(store.put(first, content)).unwrap();
    disk.0.free.store(0, Ordering::SeqCst);
    let mut refused = false;
    for number in 2..60 {
        let (hash, content) = block(number);
        match runtime.block_on(store.put(hash, content)) {
            Ok(_) => assert!(!refused, "once full, it stays full"),
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                refused = true;
            }
        }
    }
    assert!(refused);
    assert!(runtime.block_on(store.get(first)).unwrap().is_some());
}

#[test]
fn compaction_gives_back_the_space_of_dropped_blocks_and_keeps_the_others() {
    let runtime = runtime();
    let disk = TestDisk::new();
    let store = open(&disk);
    for number in 0..200 {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).unwrap();
    }
    for number in (0..200).filter(|number| number % 5 != 0) {
        assert!(runtime.block_on(store.drop_block(block(number).0)).unwrap());
    }
    let before = disk.segments().len();
    while runtime.block_on(store.compact_step()).unwrap().is_some() {}
    assert!(disk.segments().len() < before / 2, "{before} segments became {}", disk.segments().len());
    drop(store);
    let store = open(&disk);
    for number in 0..200 {
        let (hash, content) = block(number);
        let found = runtime.block_on(store.get(hash)).unwrap();
        assert_eq!(found, (number % 5 == 0).then_some(content));
    }
}

#[test]
fn a_real_directory_holds_blocks_over_a_restart() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { segment_bytes: 8 << 20, reserve_bytes: 0 };
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let large = Bytes::from(vec![5; 4 << 20]);
    let blocks: Vec<(BlockHash, Bytes)> = (0..50).map(block).chain([(BlockHash::of(&large), large)]).collect();
    for (hash, content) in &blocks {
        assert!(runtime.block_on(store.put(*hash, content.clone())).unwrap());
        assert!(!runtime.block_on(store.put(*hash, content.clone())).unwrap(), "the second time costs nothing");
    }
    drop(store);
    let store = Store::open(dir.path(), options).unwrap();
    for (hash, content) in blocks {
        assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content));
    }
}

#[test]
#[ignore = "measures: cargo test --release -p blockd --lib -- --ignored --nocapture"]
fn throughput_of_puts() {
    let runtime = runtime();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Arc::new(Store::open(dir.path(), StoreOptions::default()).unwrap());
    for (len, count, lanes) in [(4 << 20, 256_u32, 4), (4 << 10, 8192, 64), (4 << 10, 2000, 1)] {
        let blocks: Vec<Bytes> = (0..count)
            .map(|number| {
                let mut content = vec![len as u8; len];
                content[..4].copy_from_slice(&number.to_le_bytes());
                content[4] = lanes;
                Bytes::from(content)
            })
            .collect();
        let named: Vec<_> = blocks.into_iter().map(|content| (BlockHash::of(&content), content)).collect();
        let started = std::time::Instant::now();
        runtime.block_on(async {
            let lanes: Vec<_> = (0..usize::from(lanes))
                .map(|lane| {
                    let (store, step) = (store.clone(), usize::from(lanes));
                    let mine: Vec<_> = named.iter().skip(lane).step_by(step).cloned().collect();
                    tokio::spawn(async move {
                        for (hash, content) in mine {
                            store.put(hash, content).await.unwrap();
                        }
                    })
                })
                .collect();
            for lane in lanes {
                lane.await.unwrap();
            }
        });
        let took = started.elapsed();
        let mb = f64::from(count) * len as f64 / 1e6 / took.as_secs_f64();
        println!("{len} B x {count}, {lanes} in flight: {mb:.0} MB/s, {:?} each", took / count);
    }
}
