//! Waiting between attempts: exponential backoff with full jitter, so that clients of a returning server do not all
//! knock at once.

use crate::chance;
use std::time::Duration;

/// Delays of an exponential backoff.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Starts at `first`, doubles up to `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// How long to wait before the next attempt: uniformly between half and all of the present step.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + chance::fraction() / 2.0)
    }
}

/// The delays, without end: callers bound their attempts by a deadline or a count.
impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.delay())
    }
}

impl Default for Backoff {
    /// From 10 ms up to 1 s: an election takes about a second, so waiting longer would only add to it.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_their_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(40));
        let delays: Vec<Duration> = (0..6).map(|_| backoff.delay()).collect();
        assert!(delays[0] <= Duration::from_millis(10));
        assert!(delays.iter().all(|delay| *delay >= Duration::from_millis(5) && *delay <= Duration::from_millis(40)));
        assert!(delays[5] >= Duration::from_millis(20));
    }
}
