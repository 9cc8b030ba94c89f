//! The filesystem's operations, one in one place: each file is a family of system calls.

mod attrs;
mod delegated;
mod dirs;
pub(crate) mod locks;
mod names;
mod xattrs;
