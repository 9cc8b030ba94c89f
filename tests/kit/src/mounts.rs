//! The kernel's view of mounts, and the hard way out of a dead one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::command::run;
use crate::sys::force_detach;
use crate::wait::until;

/// Where services mount the kernel's file system of FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Returns whether something is mounted at `path`. Reads the kernel's table only, so it cannot hang on a dead mount.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    device_of(path).is_some()
}

/// Returns the minor device number of the mount at `path`, which names its FUSE connection.
pub(crate) fn device_of(path: &Path) -> Option<u32> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (Path::new(fields.get(4)?) == path).then(|| fields[2].split(':').nth(1)?.parse().ok()).flatten()
    })
}

/// Waits until the mount at `path` has answered all requests of the kernel. `close(2)` does not wait until the mount
/// knows that a file is closed: a test that needs this calls this function afterwards.
///
/// # Panics
/// When it takes longer than `limit`, nothing is mounted there, or the kernel does not show its connections.
pub fn answered(path: &Path, limit: Duration) {
    let minor = device_of(path).expect("a mount is there");
    let connections = Connections::new();
    let waiting = connections.dir.join(format!("{minor}/waiting"));
    until("all requests of the kernel are answered", limit, || {
        let waiting = fs::read_to_string(&waiting).expect("the kernel shows how many requests wait");
        (waiting.trim() == "0").then_some(())
    });
}

/// The kernel's file system of FUSE connections. If no service has mounted it, it is mounted here while it is needed.
struct Connections {
    dir: PathBuf,
    own: Option<TempDir>,
}

impl Connections {
    fn new() -> Self {
        let dir = PathBuf::from(CONNECTIONS);
        if fs::read_dir(&dir).is_ok_and(|mut connections| connections.next().is_some()) {
            return Self { dir, own: None };
        }
        let own = tempfile::tempdir().expect("a folder can be made");
        let mut mount = Command::new("mount");
        let mounted = run(mount.args(["-t", "fusectl", "none"]).arg(own.path()), Duration::from_secs(10));
        assert!(mounted.status.success(), "fusectl cannot be mounted: {mounted:?}");
        Self { dir: own.path().to_owned(), own: Some(own) }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            run(Command::new("umount").arg(own.path()), Duration::from_secs(10));
        }
    }
}

/// Ends every FUSE connection below `dir`, the innermost first.
pub fn abort_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for mount in mounts.rev().filter(|mount| mount.starts_with(dir)) {
        abort(mount);
    }
}

/// Ends the FUSE connection at `path` and detaches the mount. Everything that waits for the mount gets an error.
pub fn abort(path: &Path) {
    while is_mounted(path) && force_detach(path) {}
}
