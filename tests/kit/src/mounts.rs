//! What the kernel says of mounts, and the hard way out of a dead one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::run;

/// Whether something is mounted at `path`. Reads the kernel's table only, so it cannot hang on a dead mount.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    device_of(path).is_some()
}

/// Minor device number of the mount at `path`, which names its FUSE connection.
fn device_of(path: &Path) -> Option<u32> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (Path::new(fields.get(4)?) == path).then(|| fields[2].split(':').nth(1)?.parse().ok()).flatten()
    })
}

/// Ends every FUSE connection below `dir`, the innermost first.
pub fn abort_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for mount in mounts.rev().filter(|mount| mount.starts_with(dir)) {
        abort(mount);
    }
}

/// Ends the FUSE connection at `path` and detaches the mount: nothing that waits for it goes on waiting.
pub fn abort(path: &Path) {
    while let Some(minor) = device_of(path) {
        // Fails only when the connection is gone already.
        let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        let umount = run(Command::new("umount").arg("-l").arg(path), Duration::from_secs(10));
        if !umount.status.success() {
            break;
        }
    }
}
