//! Disks in memory, and directories in memory where there are any: a target runs thousands of times a second.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

thread_local! {
    static DIR: TempDir = {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        made.expect("a temporary directory can be made")
    };
}

/// Returns a directory that belongs to this thread as long as it lives.
#[must_use]
pub fn dir() -> PathBuf {
    DIR.with(|dir| dir.path().to_owned())
}

/// Returns a new, empty directory below [`dir`], in place of one of that name.
///
/// # Panics
/// When the directory cannot be made.
#[must_use]
pub fn empty_dir(name: &str) -> PathBuf {
    let path = dir().join(name);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", path.display()),
        _ => std::fs::create_dir(&path).expect("a directory can be made"),
    }
    path
}

type Content = Arc<Mutex<Vec<u8>>>;

/// Files in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<BTreeMap<PathBuf, Content>>>);

/// A file in memory.
#[derive(Debug)]
struct MemoryFile(Content);

impl MemoryDisk {
    /// Puts a file there.
    pub fn put(&self, path: &Path, content: &[u8]) {
        self.0.lock().insert(path.to_owned(), Arc::new(Mutex::new(content.to_vec())));
    }

    /// Returns all files with their content.
    #[must_use]
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.0.lock().iter().map(|(path, content)| (path.clone(), content.lock().clone())).collect()
    }

    /// Removes a file, if it is there.
    pub fn forget(&self, path: &Path) {
        self.0.lock().remove(path);
    }

    fn file(&self, path: &Path) -> io::Result<Content> {
        self.0.lock().get(path).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl MemoryFile {
    fn lay(&self, bytes: &[u8], offset: u64) {
        let (mut content, from) = (self.0.lock(), offset as usize);
        let len = content.len().max(from + bytes.len());
        content.resize(len, 0);
        content[from..from + bytes.len()].copy_from_slice(bytes);
    }
}

impl blockd::store::disk::SegmentFile for MemoryFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.lay(bytes, offset);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.0.lock();
        let from = usize::try_from(offset).map_or(content.len(), |from| from.min(content.len()));
        let count = buffer.len().min(content.len() - from);
        buffer[..count].copy_from_slice(&content[from..from + count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.lock().truncate(len as usize);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
}

impl blockd::store::disk::Disk for MemoryDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.0.lock().keys().cloned().collect())
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn blockd::store::disk::SegmentFile>> {
        self.put(path, &vec![0; len as usize]);
        blockd::store::disk::Disk::open(self, path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn blockd::store::disk::SegmentFile>> {
        Ok(Arc::new(MemoryFile(self.file(path)?)))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.file(path)?.lock().clone())
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.put(path, content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.lock().remove(path).map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<(u64, u64)> {
        Ok((u64::MAX / 2, u64::MAX / 2))
    }
}

impl client::disk::DiskFile for MemoryFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.lay(bytes, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().truncate(len as usize);
        Ok(())
    }
}

impl client::disk::Disk for MemoryDisk {
    fn path(&self) -> &Path {
        Path::new("journal")
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().keys().map(|path| path.to_string_lossy().into_owned()).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.file(Path::new(name))?.lock().clone())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn client::disk::DiskFile>> {
        self.put(Path::new(name), &[]);
        Ok(Box::new(MemoryFile(self.file(Path::new(name))?)))
    }

    fn rename(&self, name: &str, new_name: &str) -> io::Result<()> {
        let content = self.file(Path::new(name))?;
        let mut files = self.0.lock();
        files.remove(Path::new(name));
        files.insert(new_name.into(), content);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        blockd::store::disk::Disk::remove(self, Path::new(name))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
