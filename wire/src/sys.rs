//! System calls that the standard library does not offer.

use std::ffi::CString;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A killed process holds its locks and ports until the kernel has torn it down, which takes at most this long.
const KILLED_HOLDER_LIMIT: Duration = Duration::from_secs(1);
/// Pause between attempts to take what it holds.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// Attempts to take something that a process which was killed a moment ago may still hold: the kernel closes its
/// files and sockets a moment after its pid is gone. Blocks for up to a second: for starting.
///
/// # Errors
/// That of the last attempt.
pub fn after_a_kill<T, E>(mut attempt: impl FnMut() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_held(&error) && started.elapsed() < KILLED_HOLDER_LIMIT => {
                std::thread::sleep(ATTEMPT_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Takes a lock on a file, also after a process that was killed a moment ago. Blocks for up to a second: for
/// starting.
///
/// # Errors
/// `WouldBlock` when a living process holds it.
pub fn lock_after_a_kill(file: &File) -> Result<(), TryLockError> {
    after_a_kill(|| file.try_lock(), |error| matches!(error, TryLockError::WouldBlock))
}

/// Time since the machine was started, by a clock that goes on while it sleeps (`CLOCK_BOOTTIME`,
/// `clock_gettime(2)`). [`std::time::Instant`] does not.
#[must_use]
pub fn since_boot() -> Duration {
    #[cfg(feature = "simulation")]
    if let Some(now) = crate::simulation::since_boot() {
        return now;
    }
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call. The clock is there since Linux 2.6.39, so the call
    // cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Returns the user whose rights this process has (`geteuid(2)`).
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Returns the space that is free for this process on the filesystem that holds `path`, in bytes (`statvfs(3)`).
///
/// # Errors
/// As `statvfs(3)`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with NUL, and `stats` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid value of this plain struct, and the call has filled it.
    let stats = unsafe { stats.assume_init() };
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Allocates the space of a range of a file (`fallocate(2)`), which neither changes its content nor its length: the range
/// may lie behind its end. Returns false where the filesystem cannot do that.
///
/// # Errors
/// As `fallocate(2)`: `StorageFull` when there is no room.
pub fn allocate_ahead(file: &File, from: u64, len: u64) -> io::Result<bool> {
    let (from, len) = (i64::try_from(from).map_err(io::Error::other)?, i64::try_from(len).map_err(io::Error::other)?);
    // SAFETY: the descriptor is open; no pointers are passed.
    if unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, from, len) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(false),
        _ => Err(error),
    }
}

/// Asks for socket buffers beyond the system's limit; does nothing without the right to.
pub(crate) fn force_buffers(socket: &impl AsRawFd, bytes: usize) {
    let size = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the descriptor is open, and the option's value is one int that outlives the call. A failure (no
        // CAP_NET_ADMIN) leaves the buffers as they were.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_when_its_holder_has_gone_and_refused_while_it_lives() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = File::open(file.path()).unwrap();
        held.try_lock().unwrap();
        let other = File::open(file.path()).unwrap();
        assert!(matches!(lock_after_a_kill(&other), Err(TryLockError::WouldBlock)));
        let dying = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
        });
        lock_after_a_kill(&other).unwrap();
        dying.join().unwrap();
    }

    #[test]
    fn space_behind_the_end_of_a_file_is_allocated_and_its_length_stays() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let is_allocated = allocate_ahead(file.as_file(), 0, 1 << 20).unwrap();
        let found = file.as_file().metadata().unwrap();
        assert_eq!((found.len(), found.blocks() * 512 >= 1 << 20), (0, is_allocated));
        assert!(free_space(file.path()).unwrap() > 0);
    }

    #[test]
    fn the_clock_of_the_machine_goes_on() {
        let before = since_boot();
        std::thread::sleep(Duration::from_millis(5));
        assert!(since_boot() - before >= Duration::from_millis(5) && before > Duration::ZERO);
    }
}
