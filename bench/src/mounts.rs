//! Mounts of the bench: made, taken down, and made again before rows that need empty caches.

use crate::process::{START_LIMIT, Service, wait_for};
use crate::signals::POLL;
use crate::sys;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long users of a mount are waited for before it is detached while in use.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// Device number (`MAJOR:MINOR`) of the mount there. Reads only the kernel's table, so it cannot hang on a dead mount.
fn device_at(path: &Path) -> Option<String> {
    device_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, path)
}

/// Fields as of proc_pid_mountinfo(5); the last mount is the one on top.
fn device_in(table: &str, path: &Path) -> Option<String> {
    let is_at = |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path);
    table.lines().rfind(is_at)?.split(' ').nth(2).map(str::to_owned)
}

/// Sets the kernel's readahead, which only root may do.
pub(crate) fn set_readahead(path: &Path, bytes: u32) {
    let Some(device) = device_at(path) else { return };
    if let Err(error) = fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), (bytes >> 10).to_string()) {
        eprintln!("the kernel keeps its own readahead: {error}");
    }
}

/// Unmounts, once its users are done with it.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    let started = Instant::now();
    while device_at(path).is_some() {
        let patient = started.elapsed() < BUSY_LIMIT;
        match sys::unmount(path, !patient) {
            Err(error) if !patient => return Err(error).with_context(|| format!("{} stays mounted", path.display())),
            Err(_) => std::thread::sleep(POLL),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The processes that serve a mount.
pub(crate) enum Serving {
    /// A process for each mount, which ends with it.
    Once(Box<dyn Fn() -> Command>),
    /// One process, which mounts for each line of its input.
    Again(Box<dyn Fn() -> Command>),
}

/// A mounted file system. Dropping it unmounts and ends its process.
pub(crate) struct Mount {
    name: String,
    path: PathBuf,
    log: PathBuf,
    serving: Serving,
    process: Option<Service>,
}

impl Mount {
    /// Mounts below `dir`.
    pub(crate) fn new(name: &str, dir: &Path, serving: Serving) -> Result<Self> {
        let path = dir.join("mnt");
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let log = dir.join("mount.log");
        let mut mount = Self { name: name.to_owned(), path, log, serving, process: None };
        mount.mount()?;
        Ok(mount)
    }

    /// The mount point below a column's directory.
    pub(crate) fn path_below(dir: &Path) -> PathBuf {
        dir.join("mnt")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn mount(&mut self) -> Result<()> {
        let mut process = match (self.process.take(), &self.serving) {
            (Some(process), Serving::Again(_)) => process,
            (_, Serving::Again(command) | Serving::Once(command)) => {
                Service::start(&format!("the mount of {}", self.name), command(), &self.log)?
            }
        };
        if let (Serving::Again(_), Some(pipe)) = (&self.serving, process.stdin()) {
            pipe.write_all(b"mount\n").and_then(|()| pipe.flush()).with_context(|| self.name.clone())?;
        }
        let path = &self.path;
        let waited = wait_for(&format!("{} is mounted", self.name), START_LIMIT, || {
            process.check()?;
            Ok(device_at(path).is_some())
        });
        // Some file systems mount first and connect afterwards.
        let waited = waited.and_then(|()| {
            wait_for(&format!("{} serves", self.name), START_LIMIT, || {
                process.check()?;
                Ok(fs::read_dir(path).is_ok())
            })
        });
        self.process = Some(process);
        waited
    }

    fn unmount(&mut self) -> Result<()> {
        unmount(&self.path)?;
        if let (Serving::Once(_), Some(process)) = (&self.serving, &mut self.process) {
            process.wait();
            self.process = None;
        }
        Ok(())
    }

    /// Unmounts and mounts again, so that the mount forgets what it knew.
    pub(crate) fn remount(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{}: {error:#}", self.name);
        }
        if let Some(mut process) = self.process.take() {
            process.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_on_top_is_the_one_that_counts() {
        let table = "1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:41 / /m rw - fuse a rw\n3 2 0:42 / /m rw - fuse b rw\n";
        assert_eq!(device_in(table, Path::new("/m")).as_deref(), Some("0:42"));
        assert_eq!(device_in(table, Path::new("/")).as_deref(), Some("254:0"));
        assert_eq!(device_in(table, Path::new("/mm")), None);
    }
}
