//! Every call of the journal that reaches the disk, behind two traits. Tests cut the power here.

use crate::local_dir::LocalDir;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::durable::sync_dir;

/// Folder of the journal within the mount's directory.
pub(crate) const FOLDER: &str = crate::local_dir::JOURNAL;

/// One flat folder of files on a disk. All calls block.
pub trait Disk: Debug + Send + Sync {
    /// Returns where it is, for messages.
    fn path(&self) -> &Path;

    /// Returns whether calls take no time, so that they may be made on a runtime thread: true of a simulated disk
    /// alone.
    fn is_instant(&self) -> bool {
        false
    }

    /// Lists the names of the files.
    ///
    /// # Errors
    /// As `readdir(3)`.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// As `open(2)` and `read(2)`.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Creates an empty file for writing, in place of one of that name.
    ///
    /// # Errors
    /// As `open(2)`.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file, in place of a file that had the new name.
    ///
    /// # Errors
    /// As `rename(2)`.
    fn rename(&self, name: &str, new_name: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As `unlink(2)`.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Brings the names to stable storage.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync(&self) -> io::Result<()>;
}

/// A file that is open for writing.
pub trait DiskFile: Debug + Send {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Brings content and length to stable storage.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    fn sync(&self) -> io::Result<()>;

    /// Sets the file's length.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// The journal's folder in a mount's own directory.
#[derive(Debug)]
pub(crate) struct LocalDisk {
    dir: PathBuf,
    /// The lock on the directory, so that nobody else uses it while one of us may.
    _local: Arc<LocalDir>,
}

impl LocalDisk {
    /// Opens the folder, and creates it if needed.
    ///
    /// # Errors
    /// As `mkdir(2)` and `fsync(2)`.
    pub(crate) fn open(local: Arc<LocalDir>, folder: &str) -> io::Result<Self> {
        let dir = local.path().join(folder);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        sync_dir(local.path())?;
        Ok(Self { dir, _local: local })
    }
}

impl Disk for LocalDisk {
    fn path(&self) -> &Path {
        &self.dir
    }

    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let options = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).clone();
        Ok(Box::new(options.open(self.dir.join(name))?))
    }

    fn rename(&self, name: &str, new_name: &str) -> io::Result<()> {
        fs::rename(self.dir.join(name), self.dir.join(new_name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }
}

impl DiskFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// Removes a file. Returns false when there is none.
///
/// # Errors
/// Fails when the disk does.
pub(super) fn remove_if_there(disk: &dyn Disk, name: &str) -> io::Result<bool> {
    match disk.remove(name) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
