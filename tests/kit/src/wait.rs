//! Waiting for a condition, and never for a fixed time.

use std::thread;
use std::time::{Duration, Instant};

/// Polls `condition` until it holds, and returns what it found.
///
/// # Panics
/// When it does not hold within `limit`; the message says `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
