//! The daemon's counters, and their form for Prometheus. Names are listed in `docs/operations.md`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        // Relaxed, because counters order nothing.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Blocks stored for a sender, including present ones that were renewed.
    pub puts: Counter,
    /// Their bytes.
    pub put_bytes: Counter,
    /// Daemons of a chain that failed to store.
    pub chain_failures: Counter,
    /// Payloads refused because they do not match their hash.
    pub mismatches: Counter,
    /// Blocks or parts of them served.
    pub gets: Counter,
    /// Their bytes.
    pub get_bytes: Counter,
    /// Requests for blocks that are not here.
    pub misses: Counter,
    /// Copies found corrupt, by reading or by scrub.
    pub corrupt: Counter,
    /// Corrupt copies replaced by good ones.
    pub repaired: Counter,
    /// Blocks copied here because the layout says so.
    pub healed: Counter,
    /// Their bytes.
    pub healed_bytes: Counter,
    /// Copies that belong elsewhere, dropped here.
    pub given_back: Counter,
    /// Blocks dropped.
    pub dropped: Counter,
    /// Drops that were refused because the block was renewed within the grace period.
    pub drops_refused: Counter,
    /// Heartbeats that metad answered.
    pub heartbeats: Counter,
    /// Heartbeats that no metad answered.
    pub heartbeat_failures: Counter,
    /// Requests refused for the sender's role.
    pub unauthorized: Counter,
}

impl Metrics {
    /// The counters in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let all = [
            ("puts_total", &self.puts),
            ("put_bytes_total", &self.put_bytes),
            ("chain_failures_total", &self.chain_failures),
            ("mismatches_total", &self.mismatches),
            ("gets_total", &self.gets),
            ("get_bytes_total", &self.get_bytes),
            ("misses_total", &self.misses),
            ("corrupt_total", &self.corrupt),
            ("repaired_total", &self.repaired),
            ("healed_total", &self.healed),
            ("healed_bytes_total", &self.healed_bytes),
            ("given_back_total", &self.given_back),
            ("dropped_total", &self.dropped),
            ("drops_refused_total", &self.drops_refused),
            ("heartbeats_total", &self.heartbeats),
            ("heartbeat_failures_total", &self.heartbeat_failures),
            ("unauthorized_total", &self.unauthorized),
        ];
        let mut text = String::new();
        for (name, counter) in all {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# TYPE surf_blockd_{name} counter\nsurf_blockd_{name} {}", counter.get());
        }
        text
    }
}
