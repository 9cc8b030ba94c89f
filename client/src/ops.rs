//! The filesystem's operations: each file is a family of system calls.

mod admission;
mod attrs;
mod delegated;
mod dirs;
pub(crate) mod files;
pub(crate) mod flushing;
pub(crate) mod locks;
pub(crate) mod mapped;
mod mounting;
mod names;
pub(crate) mod opening;
mod sending;
mod xattrs;

use crate::Client;
use std::sync::Arc;

impl Client {
    /// Returns this client as an `Arc`, for work that runs on when its caller is gone.
    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("a method runs only while the client lives")
    }
}
