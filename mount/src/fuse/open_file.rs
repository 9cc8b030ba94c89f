//! An open file as the kernel has it.

use super::locked::LockOwners;
use client::Handle;

/// A handle as the kernel has it.
pub(super) struct OpenFile {
    pub handle: Handle,
    /// Opened with `O_APPEND`: writes through it go to the end.
    pub append: bool,
    /// Opened for writing.
    pub writes: bool,
    pub lock_owners: LockOwners,
}
