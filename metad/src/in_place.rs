//! Work that takes a while, in the middle of what may not block.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does work that takes a while. A runtime of one thread, which only tests have, does nothing else meanwhile.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}
