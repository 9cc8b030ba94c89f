//! Small files that survive a crash whole.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long another program may hold the lock of a directory.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// Pause between attempts to take it.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Makes a file, or replaces it as a whole: after a crash it has either the old or the new content. Only its owner can
/// read it, whatever the umask. Durable on return.
///
/// # Errors
/// Errors of the local filesystem. The file then still has its old content.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with_mode(path, content, 0o600)
}

/// Makes a file, or replaces it as a whole, like [`replace`]. Everybody can read it.
///
/// # Errors
/// As [`replace`].
pub fn replace_public(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with_mode(path, content, 0o644)
}

/// Gives a file that is there another content, as a whole, like [`replace`], and lets its owner and its mode be as they
/// are. A symbolic link is followed. `change` gets the path of the file itself, and returns the content, or `None` if the file
/// is to stay as it is. Only one program at a time is between reading and writing, so that none undoes what another one has
/// written. May wait for others for some seconds.
///
/// # Errors
/// As [`replace`], and those of `change`.
pub fn rewrite<E: From<io::Error>>(
    path: &Path,
    change: impl FnOnce(&Path) -> Result<Option<Vec<u8>>, E>,
) -> Result<(), E> {
    let path = fs::canonicalize(path)?;
    let _only = lock_parent(&path)?;
    let Some(content) = change(&path)? else { return Ok(()) };
    let found = fs::metadata(&path)?;
    let partial = partial_of(&path);
    write_partial(&partial, &content, |file| {
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (found.uid(), found.gid()) {
            fchown(file, Some(found.uid()), Some(found.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(found.mode() & 0o777))
    })?;
    Ok(rename(&partial, &path)?)
}

/// Locks the directory that holds `path`, against others that do the same. A filesystem without locks has none.
fn lock_parent(path: &Path) -> io::Result<File> {
    let dir = File::open(parent_of(path))?;
    let begun = Instant::now();
    loop {
        match dir.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_LIMIT => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(dir),
        }
    }
}

fn replace_with_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let partial = partial_of(path);
    write_partial(&partial, content, |file| file.set_permissions(Permissions::from_mode(mode)))?;
    rename(&partial, path)
}

/// Writes a file that takes another one's place when it is complete. `permit` sets who may read it, before it has content.
fn write_partial(partial: &Path, content: &[u8], permit: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    // A crash may have left one with other permissions, and the mode below is for new files only. Whoever else may write
    // in the directory may have put a link there.
    if let Err(error) = fs::remove_file(partial)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
    if let Err(error) = permit(&file).and_then(|()| file.write_all(content)).and_then(|()| file.sync_all()) {
        // On a full disk, others need its space.
        let _ = fs::remove_file(partial);
        return Err(error);
    }
    Ok(())
}

/// Makes a daemon's data directory and missing parents, readable by their owner alone, whatever the umask. An existing
/// directory that others may read stays as it is, with a line in the log. Durable on return, as [`make_dir`].
///
/// # Errors
/// As [`make_dir`].
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    if let Ok(found) = dir.metadata()
        && found.is_dir()
        && found.permissions().mode() & 0o077 != 0
    {
        let mode = format_args!("{:o}", found.permissions().mode() & 0o777);
        tracing::warn!(dir = %dir.display(), %mode, "others may read this data directory: `chmod 700` it");
    }
    make_dir(dir)
}

/// Makes a directory and missing parents, readable by their owner alone, if it is not there. Their names are durable on
/// return: by POSIX, a sync of what lies in a directory does not cover the directory's own name. A process that was
/// killed may have made the directory without syncing its name, so an existing one is treated in the same way. A parent
/// that cannot be synced at all is left alone ([`is_beyond_sync`]).
///
/// # Errors
/// As `mkdir(2)` and `fsync(2)`.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let named = if missing.is_empty() { &[dir][..] } else { &missing };
    named.iter().try_for_each(|name| match sync_parent(name) {
        Err(error) if is_beyond_sync(&error) => {
            tracing::debug!(dir = %name.display(), %error, "the directory that holds this one cannot be synced");
            Ok(())
        }
        synced => synced,
    })
}

/// Reports whether a directory is one that no process like this one can sync, rather than one whose sync failed: its
/// filesystem does not sync directories (EINVAL), is read-only (EROFS), or this process may not read it (EACCES).
fn is_beyond_sync(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
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
    sync_dir(parent_of(path))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
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

    /// Somebody who may write in the directory puts it there before root writes.
    #[test]
    fn a_link_in_place_of_the_partial_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let [path, partial, other] = ["metad.toml", "metad.toml.partial", "other"].map(|name| dir.path().join(name));
        fs::write(&other, b"of somebody else").unwrap();
        std::os::unix::fs::symlink(&other, &partial).unwrap();
        replace_public(&path, b"new").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), fs::read(&other).unwrap()),
            (b"new".to_vec(), b"of somebody else".to_vec())
        );
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o644, "{found:?}");
    }

    #[test]
    fn a_rewritten_file_has_the_mode_and_the_place_that_it_had_and_a_link_to_it_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link] = ["kept/real", "link"].map(|name| dir.path().join(name));
        fs::create_dir(dir.path().join("kept")).unwrap();
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        rewrite::<io::Error>(&link, |real| Ok(Some([fs::read(real)?, b" new".to_vec()].concat()))).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"old new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        rewrite::<io::Error>(&link, |_| Ok(None)).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("kept")).unwrap().count(), 1, "nothing is left beside it");
        assert!(rewrite::<io::Error>(&dir.path().join("none"), |_| Ok(None)).is_err());
    }

    #[test]
    fn of_programs_that_rewrite_a_file_at_once_none_undoes_what_another_has_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("count");
        fs::write(&path, b"").unwrap();
        let add = || {
            rewrite::<io::Error>(&path, |path| {
                let before = fs::read(path)?;
                std::thread::sleep(Duration::from_millis(2));
                Ok(Some([before, vec![b'x']].concat()))
            })
        };
        std::thread::scope(|scope| {
            for thread in (0..4).map(|_| scope.spawn(|| (0..10).try_for_each(|_| add()))).collect::<Vec<_>>() {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(fs::read(&path).unwrap().len(), 40);
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

    /// procfs has no sync of directories: it answers EINVAL.
    #[test]
    fn a_directory_whose_parent_cannot_be_synced_is_used_all_the_same() {
        assert_eq!(sync_dir(Path::new("/proc")).unwrap_err().kind(), ErrorKind::InvalidInput);
        make_dir(Path::new("/proc/self")).unwrap();
    }

    #[test]
    fn a_sync_that_failed_is_told_from_one_that_is_not_possible() {
        let is_forgiven = |code| is_beyond_sync(&io::Error::from_raw_os_error(code));
        // EACCES, EINVAL, EROFS, then EIO, ENOSPC.
        assert_eq!([13, 22, 30, 5, 28].map(is_forgiven), [true, true, true, false, false]);
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
