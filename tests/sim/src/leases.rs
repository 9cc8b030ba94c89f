//! Since when clients have held their leases without a gap: as long as they do, what they are told is done is seen by all
//! others, though the metads do not know it yet. Who is silent for longer than a lease is not waited for.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::limits::LEASE_MS;

const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// Who has_unsent something that does not come is waited for so long in all, or a little longer.
const PATIENCE: Duration = Duration::from_secs(50);

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
    /// A client hears that its leases hold, as it has asked at this time; it may owe something that others wait for.
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

    /// A client has died.
    pub fn lost(&self, client: usize) {
        self.0.lock().remove(&client);
    }

    /// Whether a client has held its leases from then until now.
    #[must_use]
    pub fn are_held(&self, client: usize, from: Instant) -> bool {
        let held = self.0.lock().get(&client).copied();
        held.is_some_and(|held| held.since <= from && held.until >= Instant::now() && held.owed < PATIENCE)
    }
}
