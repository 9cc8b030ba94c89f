//! The machine: its caches, its memory, its name; and system calls that the standard library does not offer.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Drops clean pages, dentries and inodes, so that the next reading is a cold one.
pub(crate) fn drop_caches() {
    // SAFETY: sync takes nothing and cannot fail.
    unsafe { libc::sync() };
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("caches cannot be dropped ({error}): cold rows are warm; run as root");
    }
}

/// Touches memory and gives it back.
pub(crate) fn warm_memory(gib: u64) {
    let mut touched = Vec::new();
    for _ in 0..gib {
        let mut block = vec![0_u8; 1 << 30];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        touched.push(std::hint::black_box(block));
    }
}

/// The machine that was measured.
pub(crate) fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({ "kernel": read("/proc/sys/kernel/osrelease"), "cores": cores, "memory": memory })
}

pub(crate) fn is_root() -> bool {
    owner().0 == 0
}

/// User and group that this process acts as.
pub(crate) fn owner() -> (u32, u32) {
    // SAFETY: both take nothing, change nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Hides the mounts of this process and its children from all others. The mounts go with the last of these processes.
/// Namespaces that are made from here on follow them, or a copy of a mount there would outlive it. Must be called while
/// there is only one thread.
pub(crate) fn leave_mount_namespace() -> Result<()> {
    // SAFETY: unshare takes no pointers.
    let left = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    let left = if left == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    left.context("a mount namespace cannot be made")?;
    propagate(libc::MS_PRIVATE).and_then(|()| propagate(libc::MS_SHARED)).context("mounts cannot be kept apart")
}

/// Sets whether mounts and unmounts here happen elsewhere too (mount_namespaces(7)).
fn propagate(how: libc::c_ulong) -> io::Result<()> {
    let (root, none) = (c"/".as_ptr(), std::ptr::null());
    // SAFETY: the path ends with NUL, and mount(2) ignores the other pointers when it changes how mounts propagate.
    let changed = unsafe { libc::mount(std::ptr::null(), root, none, libc::MS_REC | how, std::ptr::null()) };
    if changed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts. With `detach`, a mount in use goes too. Users other than root go through fusermount3.
pub(crate) fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    if !is_root() {
        let how = if detach { "-uz" } else { "-u" };
        let output = Command::new("fusermount3").args([how, "--"]).arg(path).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return if output.status.success() { Ok(()) } else { Err(io::Error::other(said)) };
    }
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: the path ends with NUL and outlives the call.
    let result = unsafe { libc::umount2(path.as_ptr(), if detach { libc::MNT_DETACH } else { 0 }) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel kill the process when this one ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let arm = || {
        // SAFETY: prctl with this option takes no pointers.
        let armed = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if armed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only a system call is made, and nothing is allocated.
    unsafe { command.pre_exec(arm) };
}

/// A child's number, as system calls take it.
pub(crate) fn pid(child: &Child) -> i32 {
    // The kernel's own numbers end far below.
    child.id() as i32
}

/// Kills a process group that this process has made. May be called by a signal handler.
pub(crate) fn kill_group(group: i32) {
    // SAFETY: kill takes no pointers. A group that is gone already is no failure.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

/// Ends this process without any cleaning up. May be called by a signal handler.
pub(crate) fn exit_at_once(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Sets `handler` for the signal, unless this process was started with the signal ignored.
pub(crate) fn on_signal(signal: i32, handler: extern "C" fn(libc::c_int)) -> Result<()> {
    // SAFETY: the handler calls only what may be called there (atomics, kill, _exit).
    let before = unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    if before == libc::SIG_IGN {
        // SAFETY: nothing is called.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()).context("signals cannot be handled") } else { Ok(()) }
}
