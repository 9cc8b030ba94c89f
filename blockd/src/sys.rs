//! System calls and memory that the standard library does not offer. The only unsafe code of the crate.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// Alignment of memory for O_DIRECT: the largest one that disks in use need.
pub(crate) const ALIGN: usize = 4096;

/// Zeroed, aligned memory.
pub(crate) struct Aligned {
    bytes: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned by this value alone, and nothing in it is tied to a thread.
unsafe impl Send for Aligned {}
// SAFETY: shared references only read.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// Memory of `len` bytes, rounded up to the alignment; at least one unit.
    pub(crate) fn new(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(ALIGN);
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let bytes = unsafe { alloc_zeroed(layout) };
        let bytes = NonNull::new(bytes).unwrap_or_else(|| handle_alloc_error(layout));
        Self { bytes, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGN).expect("buffers are far smaller than the address space")
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and zeroed, and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and not freed before.
        unsafe { dealloc(self.bytes.as_ptr(), Self::layout(self.len)) };
    }
}

/// Reserves a file's space without changing its content.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; no pointers are passed.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Capacity of the filesystem that holds `path`, and the space that is free for this process, in bytes.
pub(crate) fn space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with NUL, and `stats` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid value of this plain struct, and the call has filled it.
    let stats = unsafe { stats.assume_init() };
    Ok((stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize))
}
