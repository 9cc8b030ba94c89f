//! Wrong secrets that newcomers have shown: counted, and reported to operators.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Wrong secrets since the start of this node.
#[derive(Default)]
pub struct WrongSecrets(AtomicU64);

impl WrongSecrets {
    /// Counts one. The log has the first ones, and then fewer and fewer of them.
    pub(super) fn count(&self, addr: SocketAddr) {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(%addr, count, "a newcomer has shown a wrong secret, or one of a forgotten token");
        }
    }
}
