//! Peers that failed a moment ago. They are passed over or asked last for a while, so that not every request waits for
//! the same dead one.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;
use tokio::time::Instant;

/// Peers under suspicion. Each is forgotten a fixed time after its last failure, if there is such a time, and otherwise when
/// it is cleared.
pub struct Suspects<K> {
    lasts: Option<Duration>,
    failed: RwLock<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Suspects<K> {
    /// A suspicion lasts this long.
    #[must_use]
    pub fn new(lasts: Duration) -> Self {
        Self { lasts: Some(lasts), failed: RwLock::default() }
    }

    /// A suspicion lasts until the peer is cleared. The owner bounds the suspects by [`Suspects::retain`].
    #[must_use]
    pub fn until_cleared() -> Self {
        Self { lasts: None, failed: RwLock::default() }
    }

    /// Suspects a peer that has failed now.
    pub fn add(&self, peer: K) {
        let now = Instant::now();
        let mut failed = self.failed.write();
        // Bounded by the number of peers that fail within this time.
        failed.retain(|_, at| !self.is_over(*at));
        failed.insert(peer, now);
    }

    /// Clears a peer that answers again.
    pub fn clear(&self, peer: &K) {
        // Mostly nobody is suspected, so readers should not wait for each other.
        if self.failed.read().contains_key(peer) {
            self.failed.write().remove(peer);
        }
    }

    /// Forgets the peers for which this is false.
    pub fn retain(&self, is_member: impl Fn(&K) -> bool) {
        self.failed.write().retain(|peer, _| is_member(peer));
    }

    /// Reports whether a peer has failed a moment ago, or was not cleared since.
    #[must_use]
    pub fn contains(&self, peer: &K) -> bool {
        self.failed.read().get(peer).is_some_and(|at| !self.is_over(*at))
    }

    /// Reports whether a peer is suspected, and has not failed again for this long.
    #[must_use]
    pub fn has_aged(&self, peer: &K, age: Duration) -> bool {
        self.failed.read().get(peer).is_some_and(|at| !self.is_over(*at) && at.elapsed() >= age)
    }

    fn is_over(&self, at: Instant) -> bool {
        self.lasts.is_some_and(|lasts| at.elapsed() >= lasts)
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

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_without_an_end_stays_until_the_peer_is_cleared_or_gone() {
        const AGE: Duration = Duration::from_secs(4);
        let suspects = Suspects::until_cleared();
        (1..=3).for_each(|peer| suspects.add(peer));
        assert!(!suspects.has_aged(&1, AGE));
        tokio::time::advance(AGE).await;
        suspects.add(2);
        assert!(suspects.has_aged(&1, AGE) && !suspects.has_aged(&2, AGE) && !suspects.has_aged(&4, AGE));
        tokio::time::advance(Duration::from_secs(1 << 20)).await;
        assert!((1..=3).all(|peer| suspects.contains(&peer)));
        suspects.clear(&1);
        suspects.retain(|peer| *peer != 2);
        assert_eq!((1..=3).filter(|peer| suspects.contains(peer)).collect::<Vec<_>>(), [3]);
    }
}
