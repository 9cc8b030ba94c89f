//! System calls that the standard library does not offer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
#[cfg(target_env = "gnu")]
use wire::limits::BLOCK_BYTES_MAX;

/// Reports whether this process runs as root.
pub(crate) fn is_root() -> bool {
    wire::sys::effective_uid() == 0
}

/// Number of the allocator's heaps, for all threads together.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;
/// Memory of this size or more is mapped on its own: the buffers of blocks. In a heap, the parts that are not used yet
/// would have been used by others before, and nothing there is given back while something behind it is in use.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = BLOCK_BYTES_MAX as libc::c_int;
/// So much may be free at the end of a heap before it is given back, to be asked for again soon.
#[cfg(target_env = "gnu")]
const FREE_BYTES_MAX: libc::c_int = 16 << 20;

/// Bounds what the allocator holds beyond what is in use. By itself, glibc gives each thread that comes and goes a heap of
/// its own, and puts everything below 32 MiB into heaps once such memory was freed. Must be called before there are other
/// threads.
pub(crate) fn bound_heaps() {
    // SAFETY: mallopt(3) takes two numbers, and there is no other thread yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_BYTES_MAX);
    }
}

/// From now on a write beyond the user's limit on file sizes (`RLIMIT_FSIZE`) fails like any other one, and does not end
/// the process.
pub(crate) fn outlive_file_size_limit() {
    // SAFETY: signal(2) is given no function.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Space on the filesystem of this file that is free for this process, in bytes (`fstatvfs(3)`).
pub(crate) fn free_bytes(file: &File) -> io::Result<u64> {
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the descriptor is open, and `stats` has room for the answer.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), stats.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid value of this plain struct, and the call has filled it.
    let stats = unsafe { stats.assume_init() };
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Gives the space of a part of a file back; the file stays as long as it is (`fallocate(2)`).
pub(crate) fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (offset.try_into().map_err(io::Error::other)?, len.try_into().map_err(io::Error::other)?);
    // SAFETY: fallocate takes numbers alone, and the descriptor is open.
    let result = unsafe {
        libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts. With `detach`, a mount in use goes too, and ends with its last user. Users other than root go through
/// fusermount3, which asks the kernel for them.
pub(crate) fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    if !is_root() {
        return fusermount(path, detach);
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let flags = if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path ends with NUL and outlives the call.
    let result = unsafe { libc::umount2(path.as_ptr(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn fusermount(path: &Path, detach: bool) -> io::Result<()> {
    let how = if detach { "-uz" } else { "-u" };
    let output = Command::new("fusermount3").args([how, "--"]).arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Reports whether a program is in PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join(program).is_file())
}

/// The pipe through which the child of [`detach`] reports to its parent.
pub(crate) struct Parent {
    pipe: File,
}

impl Parent {
    /// Reports that the mount stands: the parent ends with success.
    pub(crate) fn succeeded(mut self) {
        // A parent that was killed in the meantime needs no answer.
        let _ = self.pipe.write_all(b"+");
    }

    /// Reports a failure: the parent prints the reason and ends with failure.
    pub(crate) fn failed(mut self, reason: &str) {
        let _ = self.pipe.write_all(reason.as_bytes());
    }
}

/// Which process this is after [`detach`].
pub(crate) enum Forked {
    /// This is the parent, with the outcome that the child has reported: success, or why it failed.
    Parent(Result<(), String>),
    /// This is the child.
    Child(Parent),
}

/// Forks a child with a session of its own, and waits in the parent for the child's report. Must be called while there
/// is only one thread.
pub(crate) fn detach() -> io::Result<Forked> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors were just opened and belong to nobody else.
    let (mut read, write) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: there is one thread (see above), so the child's memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: setsid takes nothing; it fails only for a group leader, which a fresh child is not.
            unsafe { libc::setsid() };
            Ok(Forked::Child(Parent { pipe: write }))
        }
        _ => {
            drop(write);
            let mut said = String::new();
            read.read_to_string(&mut said)?;
            Ok(Forked::Parent(match said.as_str() {
                "+" => Ok(()),
                "" => Err("the background process ended before it had mounted".to_owned()),
                reason => Err(reason.to_owned()),
            }))
        }
    }
}

/// Detaches from the terminal: input and output of the background process lead nowhere.
pub(crate) fn leave_terminal() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for target in 0..=2 {
        // SAFETY: both descriptors are open for the whole call.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
