//! Calls of the system's library.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Gives the calling thread a table of descriptors of its own (`unshare(2)`), so that programs which other threads start
/// do not inherit what it opens from now on. Such a program closes what it inherits, and waits for the mounts of these
/// files before it begins.
///
/// # Panics
/// When the kernel refuses, which it does only without memory.
pub fn own_descriptors() {
    // SAFETY: unshare takes no pointers; the descriptors that the thread has stay valid.
    let result = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(result, 0, "a thread cannot have descriptors of its own");
}

/// Sets the length of a file by its name (`truncate(2)`), without opening it.
///
/// # Errors
/// As `truncate(2)`; of kind `InvalidInput` for a name with NUL.
pub fn truncate(path: &Path, len: i64) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: truncate reads the name, which lives until it returns.
    match unsafe { libc::truncate(name.as_ptr(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the FUSE connection of the mount at `path` and detaches it (`umount2(2)`). Uses the name alone: a program like
/// `umount(8)` would look at the mount, and wait for it. Returns whether something was mounted there.
#[must_use]
pub(crate) fn force_detach(path: &Path) -> bool {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: umount2 reads the name, which lives until it returns.
    unsafe { libc::umount2(name.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) == 0 }
}
