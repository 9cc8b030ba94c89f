//! Since when clients have held their leases without a gap. As long as a client does, all others see what it was
//! answered is done, even if the metads do not know it yet. Nobody waits for a client that is silent for longer than a
//! lease.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::limits::LEASE_MS;

const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// A client with unsent operations that others wait for is waited for this long in all, or a little longer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(50);

#[derive(Clone, Copy, Debug)]
struct Held {
    since: Instant,
    until: Instant,
    /// How long others may have waited for it.
    owed: Duration,
}

/// The leases of all clients.
#[derive(Debug, Default)]
pub struct Leases(Mutex<BTreeMap<usize, Held>>);

impl Leases {
    /// Notes that a client's leases are extended from when it asked. It may have unsent operations that others wait
    /// for.
    pub fn extended(&self, client: usize, asked: Instant, has_unsent: bool) {
        let now = Instant::now();
        let mut all = self.0.lock();
        let held = all.entry(client).or_insert(Held { since: now, until: now, owed: Duration::ZERO });
        if held.until < now {
            held.since = now;
        }
        let until = asked + LEASE;
        if has_unsent {
            held.owed += until.saturating_duration_since(held.until.max(now));
        }
        held.until = held.until.max(until);
    }

    /// Notes that a client has died.
    pub fn lost(&self, client: usize) {
        self.0.lock().remove(&client);
    }

    /// Returns whether a client has held its leases from then until now.
    #[must_use]
    pub fn are_held(&self, client: usize, from: Instant) -> bool {
        let held = self.0.lock().get(&client).copied();
        held.is_some_and(|held| held.since <= from && held.until >= Instant::now() && held.owed < CLIENT_PATIENCE)
    }
}
