//! Small files that survive a crash whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Puts a file in place of what has its name, if anything: after a crash the old or the new content is there. The file is
/// readable by its owner alone, whatever the umask. Durable on return.
///
/// # Errors
/// What the disk refuses; the old content is still there then.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = partial_of(path);
    // Left by a crash, perhaps with other rights: the mode below is for new files only.
    if let Err(error) = fs::remove_file(&partial)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    if let Err(error) = file.write_all(content).and_then(|()| file.sync_all()) {
        // On a full disk it takes room that others need.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    rename(&partial, path)
}

/// Makes a directory for data of a daemon if it is not there, with those above it: for its owner alone, whatever the
/// umask. One that is there and that others may read stays as it is, and a line of the log says so.
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

/// Gives a complete, synced file another name in the same directory. Durable on return.
///
/// # Errors
/// What the disk refuses.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Syncs a directory: names that were made or removed in it survive a crash.
///
/// # Errors
/// What the disk refuses.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Syncs the directory that holds `path`.
///
/// # Errors
/// What the disk refuses.
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
