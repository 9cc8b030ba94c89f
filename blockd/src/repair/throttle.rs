//! The one rate limit for copies by repair, lower while clients are at work. All that repairs shares it.

use crate::config::Rates;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Clients count as being at work for this long after each request.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// When clients last sent a request.
pub struct Activity {
    started: Instant,
    /// Milliseconds after `started`, plus one; 0 for never.
    last_ms: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { started: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Notes a client's request.
    pub fn note(&self) {
        // Relaxed, because it orders nothing else.
        self.last_ms.store(self.now_ms() + 1, Ordering::Relaxed);
    }

    /// Whether clients are at work.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let last = self.last_ms.load(Ordering::Relaxed);
        last > 0 && u128::from(self.now_ms() + 1 - last.min(self.now_ms() + 1)) < BUSY_FOR.as_millis()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

/// Spends bytes at a rate.
pub struct Throttle {
    rates: Rates,
    /// When the bytes spent so far are paid off.
    paid_at: Mutex<Instant>,
}

impl Throttle {
    /// Begins with nothing spent.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self { rates, paid_at: Mutex::new(Instant::now()) }
    }

    /// Spends bytes, and returns when they are due. Cancel-safe.
    pub async fn spend(&self, bytes: u64, activity: &Activity) {
        let rate = if activity.is_busy() { self.rates.busy } else { self.rates.idle };
        if rate == 0 {
            return;
        }
        let due = {
            let mut paid_at = self.paid_at.lock();
            *paid_at = (*paid_at).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *paid_at
        };
        tokio::time::sleep_until(due.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rate_is_kept_and_is_lower_while_clients_are_at_work() {
        let activity = Activity::default();
        assert!(!activity.is_busy());
        let throttle = Throttle::new(Rates { idle: 100_000, busy: 10_000 });
        let started = Instant::now();
        throttle.spend(2000, &activity).await;
        assert!(started.elapsed() >= Duration::from_millis(20));
        activity.note();
        assert!(activity.is_busy());
        let started = Instant::now();
        throttle.spend(1000, &activity).await;
        assert!(started.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn those_who_spend_at_once_share_the_rate() {
        let (activity, throttle) = (Activity::default(), Throttle::new(Rates { idle: 100_000, busy: 100_000 }));
        let started = Instant::now();
        futures::future::join_all((0..5).map(|_| throttle.spend(2000, &activity))).await;
        assert!(started.elapsed() >= Duration::from_millis(100));
    }
}
