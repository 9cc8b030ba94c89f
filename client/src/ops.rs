//! The filesystem's operations, one in one place: each file is a family of system calls.

mod attrs;
mod delegated;
mod dirs;
pub(crate) mod files;
pub(crate) mod flushing;
pub(crate) mod locks;
mod mounting;
mod names;
mod xattrs;
