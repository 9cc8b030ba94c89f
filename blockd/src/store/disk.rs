//! Every call that reaches the disk, behind two traits: the place where tests cut the power or fill the disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::durable;

/// An open segment. Offsets and lengths are multiples of 4,096, buffers are aligned.
pub trait SegmentFile: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reads up to the buffer's length from `offset`; less only at the file's end.
    ///
    /// # Errors
    /// As `pread(2)`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Brings content and size to stable storage.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As `fstat(2)`.
    fn size(&self) -> io::Result<u64>;
}

/// A disk with directories of files.
pub trait Disk: Send + Sync {
    /// Makes a directory, if it is not there. Its name is durable on return.
    ///
    /// # Errors
    /// As `mkdir(2)` and `fsync(2)`.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Files of a directory.
    ///
    /// # Errors
    /// As `readdir(3)`.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes a segment with `len` bytes reserved.
    ///
    /// # Errors
    /// As `open(2)` and `fallocate(2)`.
    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn SegmentFile>>;

    /// Opens a segment.
    ///
    /// # Errors
    /// As `open(2)`.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>>;

    /// Reads a small file.
    ///
    /// # Errors
    /// As `open(2)` and `read(2)`.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Replaces a small file, whole or not at all, and syncs it.
    ///
    /// # Errors
    /// As `open(2)`, `write(2)`, `fsync(2)` and `rename(2)`.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As `unlink(2)`.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Brings the names of a directory to stable storage.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Capacity and free bytes.
    ///
    /// # Errors
    /// As `statvfs(3)`.
    fn space(&self, dir: &Path) -> io::Result<(u64, u64)>;
}

/// The machine's disk.
pub struct RealDisk;

/// Opens a file for direct I/O, because the page cache would only hold a second copy of what clients cache. Uses the
/// page cache where the filesystem has no other way (tmpfs before Linux 6.6).
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path),
        opened => opened,
    }
}

impl SegmentFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut count = 0;
        while count < buffer.len() {
            match FileExt::read_at(self, &mut buffer[count..], offset + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !count.is_multiple_of(4096) {
                // Only the end of the file is not a whole unit, and O_DIRECT refuses to read on from there.
                break;
            }
        }
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.sync_all()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        durable::make_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn SegmentFile>> {
        let file = open_direct(OpenOptions::new().create_new(true).read(true).write(true).mode(0o600), path)?;
        let reserved = match crate::sys::allocate(&file, len) {
            // A filesystem that cannot reserve space reports that it is full when it is written to.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        };
        if let Err(error) = reserved.and_then(|()| file.sync_all()) {
            // What was reserved would be lost to all, and the name is needed for the next attempt.
            fs::remove_file(path)?;
            return Err(error);
        }
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(open_direct(OpenOptions::new().read(true).write(true), path)?))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        durable::replace(path, content)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<(u64, u64)> {
        crate::sys::space(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_segment_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        RealDisk.create(&path, 4096).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
