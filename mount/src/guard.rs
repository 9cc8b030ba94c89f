//! The mount point: prepared before, and left empty afterwards, whatever happens.

use crate::sys;
use anyhow::{Context, bail};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long users of the mount are waited for before it is detached from under them.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);

/// Makes the mount point usable: makes it, or clears the remains of a mount whose process died.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn prepare(path: &Path) -> anyhow::Result<PathBuf> {
    match fs::metadata(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            tracing::warn!(path = %path.display(), "clearing a mount whose process has died");
            sys::unmount(path, true)
                .with_context(|| format!("{}: a dead mount that cannot be cleared", path.display()))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).with_context(|| format!("{}: cannot be made", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("{}: cannot be used", path.display())),
        Ok(found) if !found.is_dir() => bail!("{}: not a directory; name one to mount on", path.display()),
        Ok(_) => {}
    }
    let path = path.canonicalize().with_context(|| format!("{}: cannot be used", path.display()))?;
    if is_mounted(&path) {
        bail!("{}: something is mounted there; unmount it first, or choose another place", path.display());
    }
    Ok(path)
}

/// Whether the kernel's table names a mount there. Never touches the mount itself.
fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let escaped = path.display().to_string().replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011");
    table.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}

/// A mount that is taken down when this is dropped.
pub(crate) struct Guard {
    path: PathBuf,
}

impl Guard {
    /// Takes over a mount.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let started = Instant::now();
        while is_mounted(&self.path) {
            let patient = started.elapsed() < BUSY_PATIENCE;
            match sys::unmount(&self.path, !patient) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && patient => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                // Without the right to: fuser's own way through fusermount3 comes after this.
                Err(error) => {
                    tracing::debug!(%error, "not unmounted here");
                    return;
                }
            }
        }
    }
}
