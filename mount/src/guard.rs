//! The mount point: prepared before, and left empty afterwards, whatever happens.
//!
//! When the process is killed, the kernel ends the connection by itself and leaves a dead mount, which the next
//! [`prepare`] clears away.

use crate::error::Error;
use crate::sys;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long users of the mount are waited for before it is detached while in use.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between attempts to unmount.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Makes the mount point usable: makes it, or clears the remains of a mount whose process died. Returns it without
/// symbolic links.
///
/// # Errors
/// [`Error::MountPoint`].
pub(crate) fn prepare(path: &Path) -> Result<PathBuf, Error> {
    let wrong = |reason: String| Error::mount_point(path, reason);
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => return Err(wrong("not a directory; name one to mount on".to_owned())),
        Ok(_) => {}
        Err(error) if is_dead(&error) => clear(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path).map_err(|error| {
            wrong(format!("mount point missing, and it cannot be made ({error}): choose another place"))
        })?,
        Err(error) => return Err(wrong(format!("cannot be used ({error}): choose another place"))),
    }
    let path = path.canonicalize().map_err(|error| wrong(format!("cannot be used ({error}): choose another place")))?;
    if let Some(mounted) = mounted_at(&path) {
        return Err(wrong(format!("{mounted} is mounted there; unmount it first, or choose another place")));
    }
    Ok(path)
}

/// Reports whether a FUSE mount there has lost its process.
fn is_dead(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected || error.kind() == io::ErrorKind::ConnectionAborted
}

fn clear(path: &Path) -> Result<(), Error> {
    // The path cannot be resolved: its end is the dead mount.
    let kind = mounted_at(path).unwrap_or_default();
    if !kind.starts_with("fuse") {
        return Err(Error::mount_point(path, "its filesystem has lost its connection; unmount it first"));
    }
    tracing::warn!(path = %path.display(), "clearing away a mount whose process has died");
    sys::unmount(path, true)
        .map_err(|error| Error::mount_point(path, format!("a dead mount that cannot be cleared: {error}")))
}

/// Type of the filesystem that the kernel's table names there. Does not touch the mount itself.
fn mounted_at(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let found = table.lines().rfind(|line| is_at(line, path))?;
    // proc_pid_mountinfo(5): optional fields end with a dash, the type follows.
    let (_, behind) = found.split_once(" - ")?;
    behind.split(' ').next().map(str::to_owned)
}

fn is_at(line: &str, path: &Path) -> bool {
    let escaped: String = path
        .display()
        .to_string()
        .chars()
        .map(|c| match c {
            ' ' => "\\040".to_owned(),
            '\t' => "\\011".to_owned(),
            '\n' => "\\012".to_owned(),
            '\\' => "\\134".to_owned(),
            other => other.to_string(),
        })
        .collect();
    line.split(' ').nth(4) == Some(&escaped)
}

/// Device number (`MAJOR:MINOR`) of the mount there.
pub(crate) fn device_at(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let found = table.lines().rfind(|line| is_at(line, path))?;
    found.split(' ').nth(2).map(str::to_owned)
}

/// A mount that is taken down when this is dropped: by the end of the program, an error, or a panic.
pub(crate) struct Guard {
    path: PathBuf,
    /// Distinguishes our mount from one that took its place.
    device: Option<String>,
}

impl Guard {
    /// Takes over the mount that is there now.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), device: device_at(path) }
    }

    fn stands(&self) -> bool {
        let now = device_at(&self.path);
        now.is_some() && now == self.device
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let started = Instant::now();
        while self.stands() {
            let patient = started.elapsed() < BUSY_PATIENCE;
            match sys::unmount(&self.path, !patient) {
                Ok(()) => {}
                Err(_) if patient => std::thread::sleep(BUSY_PAUSE),
                Err(error) => {
                    let path = self.path.display();
                    tracing::error!(%error, "{path} is left mounted; `umount -l {path}` removes it");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_a_mount_is_no_mount_point_and_a_missing_one_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(prepare(&file).unwrap_err().to_string().contains("not a directory"));
        assert!(prepare(&file.join("below")).unwrap_err().to_string().contains("cannot be used"));
        assert!(prepare(Path::new("/proc")).unwrap_err().to_string().contains("proc is mounted there"));
        assert!(prepare(Path::new("/proc/surf")).unwrap_err().to_string().contains("mount point missing"));
        assert!(prepare(&dir.path().join("a/b")).unwrap().is_dir());
    }

    #[test]
    fn names_with_spaces_are_found_in_the_kernels_table() {
        let line = r"36 35 0:42 / /mnt/a\040b rw shared:1 - fuse.surf embedded rw";
        assert!(is_at(line, Path::new("/mnt/a b")));
        assert!(!is_at(line, Path::new("/mnt/a")));
    }
}
