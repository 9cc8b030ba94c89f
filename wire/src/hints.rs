//! Hints of peers that something is to be asked for: they may come as often as they like, and are heeded now and then.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Hints of one kind.
#[derive(Debug)]
pub struct Hints {
    given: Notify,
    /// Least time between two returns of [`Hints::wait`].
    pause: Duration,
    /// When it has returned last.
    last: Mutex<Option<Instant>>,
}

impl Hints {
    /// Hints that are heeded no more often than once in this time. The first one is heeded at once.
    #[must_use]
    pub fn new(pause: Duration) -> Self {
        Self { given: Notify::new(), pause, last: Mutex::new(None) }
    }

    /// Gives a hint.
    pub fn hint(&self) {
        self.given.notify_one();
    }

    /// Waits for a hint that was given since the last return, and for the pause. A caller that cancels it may lose the hint.
    pub async fn wait(&self) {
        self.given.notified().await;
        let last = *self.last.lock();
        if let Some(last) = last {
            sleep_until(last + self.pause).await;
        }
        *self.last.lock() = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_hint_is_heeded_at_once_and_others_once_in_a_while() {
        let (hints, begun) = (Hints::new(Duration::from_secs(1)), Instant::now());
        for seconds in 0..3 {
            (0..100).for_each(|_| hints.hint());
            hints.wait().await;
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
        tokio::time::timeout(Duration::from_secs(60), hints.wait()).await.unwrap_err();
    }
}
