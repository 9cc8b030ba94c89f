//! The filesystem's operations, one in one place: each file is a family of system calls.

mod attrs;
mod delegated;
mod dirs;
pub(crate) mod files;
pub(crate) mod flushing;
pub(crate) mod locks;
mod mounting;
mod names;
mod sending;
mod xattrs;

use crate::Client;
use std::sync::Arc;

impl Client {
    /// This client, as what goes on though its caller is gone holds it.
    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("a method runs only while the client lives")
    }
}
