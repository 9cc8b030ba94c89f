//! Peers that failed a moment ago. They are passed over or asked last for a while, so that not every request waits for
//! the same dead one.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;
use tokio::time::Instant;

/// Peers under suspicion. Each is forgotten a fixed time after its last failure.
pub struct Suspects<K> {
    lasts: Duration,
    failed: RwLock<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Suspects<K> {
    /// A suspicion lasts this long.
    #[must_use]
    pub fn new(lasts: Duration) -> Self {
        Self { lasts, failed: RwLock::default() }
    }

    /// Suspects a peer that has failed now.
    pub fn add(&self, peer: K) {
        let now = Instant::now();
        let mut failed = self.failed.write();
        // Bounded by the number of peers that fail within this time.
        failed.retain(|_, at| now.duration_since(*at) < self.lasts);
        failed.insert(peer, now);
    }

    /// Clears a peer that answers again.
    pub fn clear(&self, peer: &K) {
        // Mostly nobody is suspected, so readers should not wait for each other.
        if self.failed.read().contains_key(peer) {
            self.failed.write().remove(peer);
        }
    }

    /// Reports whether a peer has failed a moment ago.
    #[must_use]
    pub fn contains(&self, peer: &K) -> bool {
        self.failed.read().get(peer).is_some_and(|at| at.elapsed() < self.lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspicion_ends_with_an_answer_or_with_time() {
        let suspects = Suspects::new(Duration::from_secs(600));
        suspects.add(1);
        suspects.add(2);
        assert!(suspects.contains(&1) && suspects.contains(&2) && !suspects.contains(&3));
        suspects.clear(&1);
        assert!(!suspects.contains(&1) && suspects.contains(&2));
        let brief = Suspects::new(Duration::ZERO);
        brief.add(1);
        brief.add(2);
        assert!(!brief.contains(&2));
        assert_eq!(brief.failed.read().len(), 1, "what is over is forgotten");
    }
}
