//! A disk in memory that loses unsynced writes.

use crate::store::disk::{Disk, SegmentFile};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file: its stable content, and its writes since the last sync.
#[derive(Default, Clone)]
pub struct Content {
    pub stable: Vec<u8>,
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

/// Chooses reads by the file, the offset and the length.
type ReadFault = Box<dyn Fn(&Path, u64, usize) -> bool + Send>;

/// State of the disk.
#[derive(Default)]
pub struct DiskState {
    pub files: Mutex<BTreeMap<PathBuf, Content>>,
    /// Number of calls that still succeed before the power goes.
    pub left: AtomicU64,
    pub free: AtomicU64,
    /// If it is not zero: bytes that all files may have together. What they leave is free.
    pub capacity: AtomicU64,
    /// The least that was free when a segment had been made.
    pub least_free: AtomicU64,
    /// While a test holds this, no segment is synced.
    pub syncs: Mutex<()>,
    read: AtomicU64,
    /// Reads of a segment that give an error.
    read_fault: Mutex<Option<ReadFault>>,
    /// Offset and length of each write to a segment.
    pub writes: Mutex<Vec<(u64, u64)>>,
}

/// A disk in memory that loses unsynced writes.
#[derive(Clone, Default)]
pub struct TestDisk(pub Arc<DiskState>);

impl TestDisk {
    pub fn new() -> Self {
        let disk = Self::default();
        disk.0.left.store(u64::MAX / 2, Ordering::SeqCst);
        disk.0.free.store(u64::MAX / 2, Ordering::SeqCst);
        disk
    }

    /// From now on there are so many bytes beside what the files have.
    pub fn leave_free(&self, bytes: u64) {
        self.0.capacity.store(self.used() + bytes, Ordering::SeqCst);
        self.0.least_free.store(bytes, Ordering::SeqCst);
    }

    fn used(&self) -> u64 {
        self.0.files.lock().values().map(|content| content.stable.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        match self.0.capacity.load(Ordering::SeqCst) {
            0 => self.0.free.load(Ordering::SeqCst),
            capacity => capacity.saturating_sub(self.used()),
        }
    }

    pub fn cut_after(&self, calls: u64) {
        self.0.left.store(calls, Ordering::SeqCst);
    }

    fn call(&self) -> io::Result<()> {
        let before = self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if before.is_ok() { Ok(()) } else { Err(io::Error::other("the power is off")) }
    }

    /// The power comes back: some unsynced pieces have arrived and some have not.
    pub fn power_on(&self, mut luck: u64) {
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

    /// Lays a file down.
    pub fn lay(&self, path: &Path, bytes: Vec<u8>) {
        self.0.files.lock().insert(path.to_owned(), Content { stable: bytes, pending: Vec::new() });
    }

    pub fn flip(&self, path: &Path, at: usize) {
        self.0.files.lock().get_mut(path).unwrap().stable[at] ^= 1;
    }

    /// Lets these reads of segments fail, by the file, the offset and the length.
    pub fn fail_reads(&self, is_failing: impl Fn(&Path, u64, usize) -> bool + Send + 'static) {
        *self.0.read_fault.lock() = Some(Box::new(is_failing));
    }

    /// Lets all reads succeed again.
    pub fn mend_reads(&self) {
        *self.0.read_fault.lock() = None;
    }

    /// Bytes that were read from segments.
    pub fn bytes_read(&self) -> u64 {
        self.0.read.load(Ordering::SeqCst)
    }

    pub fn segments(&self) -> Vec<PathBuf> {
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
        self.0.0.writes.lock().push((offset, bytes.len() as u64));
        // Without power the write may still reach the disk's cache in part.
        self.with(|content| content.pending.push((offset, bytes.to_vec())))?;
        powered
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.0.0.read_fault.lock().as_ref().is_some_and(|fails| fails(&self.1, offset, buffer.len())) {
            return Err(io::Error::other("a sector cannot be read"));
        }
        let count = self.with(|content| {
            let bytes = content.now();
            let from = (offset as usize).min(bytes.len());
            let count = buffer.len().min(bytes.len() - from);
            buffer[..count].copy_from_slice(&bytes[from..from + count]);
            count
        })?;
        self.0.0.read.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        let _may_sync = self.0.0.syncs.lock();
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
        self.0.least_free.fetch_min(self.free(), Ordering::SeqCst);
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
        Ok((u64::MAX / 2, self.free()))
    }
}
