//! Small files that survive a crash whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes a file, or replaces it as a whole: after a crash it has either the old or the new content. Only its owner can
/// read it, whatever the umask. Durable on return.
///
/// # Errors
/// Errors of the local filesystem. The file then still has its old content.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = partial_of(path);
    // A crash may have left one with other permissions, and the mode below is for new files only.
    if let Err(error) = fs::remove_file(&partial)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    if let Err(error) = file.write_all(content).and_then(|()| file.sync_all()) {
        // On a full disk, others need its space.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    rename(&partial, path)
}

/// Makes a daemon's data directory and missing parents, readable by their owner alone, whatever the umask. An existing
/// directory that others may read stays as it is, with a line in the log.
///
/// # Errors
/// As `mkdir(2)`.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    match dir.metadata() {
        Ok(found) if found.is_dir() => {
            let mode = found.permissions().mode();
            if mode & 0o077 != 0 {
                let mode = format_args!("{:o}", mode & 0o777);
                tracing::warn!(dir = %dir.display(), %mode, "others may read this data directory: `chmod 700` it");
            }
            Ok(())
        }
        _ => DirBuilder::new().recursive(true).mode(0o700).create(dir),
    }
}

/// Renames a complete, synced file within its directory. Durable on return.
///
/// # Errors
/// Errors of the local filesystem.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Syncs a directory, so that names made or removed in it survive a crash.
///
/// # Errors
/// Errors of the local filesystem.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Syncs the directory that holds `path`.
///
/// # Errors
/// Errors of the local filesystem.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    sync_dir(dir.unwrap_or(Path::new(".")))
}

fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_for_its_owner_alone_whatever_a_crash_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        replace(&path, b"old").unwrap();
        fs::write(dir.path().join("id.partial"), b"torn").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_data_directory_is_made_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_private_dir(&path).unwrap();
        make_private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("file"), "").unwrap();
        assert!(make_private_dir(&path.join("file")).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        replace(&path, b"old").unwrap();
        fs::create_dir(dir.path().join("id.partial")).unwrap();
        assert!(replace(&path, b"new").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
