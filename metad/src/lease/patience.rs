//! How long others wait for a client that is alive and does not acknowledge.
//!
//! A client with much to send needs longer than a lease, and gets it: its leases are extended while a notice is open,
//! and those who asked wait. Each such extension is paid from the client's patience. New questions, streams or sessions
//! of the client do not refill that; only time in which it owes nothing does, at a tenth of the rate. So a malicious
//! client delays others for [`CLIENT_PATIENCE_MAX`] once, and for a tenth of the time after that.

use std::time::Duration;
use tokio::time::Instant;

/// How long a client may keep others waiting at a stretch.
pub const CLIENT_PATIENCE_MAX: Duration = Duration::from_secs(60);
/// Patience is regained this many times more slowly than it is spent.
const RECOVERY_FACTOR: u32 = 10;

/// The patience that is left with one client.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    /// When it was last updated.
    at: Option<Instant>,
    /// Whether the client has owed something since then.
    owes: bool,
    /// Its waiting is paid up to here: sessions of one client that owe something at the same time pay once.
    paid: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: CLIENT_PATIENCE_MAX, at: None, owes: false, paid: None }
    }
}

impl Patience {
    /// Records that the client owes nothing any more.
    pub(super) fn rests(&mut self, now: Instant) {
        let rested = self.at.replace(now).filter(|_| !self.owes);
        if let Some(at) = rested {
            self.left = (self.left + now.saturating_duration_since(at) / RECOVERY_FACTOR).min(CLIENT_PATIENCE_MAX);
        }
        self.owes = false;
    }

    /// Records that the client owes something from now on.
    pub(super) fn owes(&mut self, now: Instant) {
        if !self.owes {
            self.rests(now);
            self.owes = true;
        }
    }

    /// Pays for the waiting of others, for whom the client owes something. They wait until `from` in any case, and
    /// until `to` if that can be paid. Returns until when they wait.
    pub(super) fn pays(&mut self, from: Option<Instant>, to: Instant, now: Instant) -> Instant {
        self.owes(now);
        let from = from.max(self.paid).map_or(now, |from| from.max(now));
        let cost = to.saturating_duration_since(from).min(self.left);
        self.left -= cost;
        let paid = from + cost;
        self.paid = self.paid.max(Some(paid));
        paid
    }

    /// Returns whether forgetting it changes nothing.
    pub(super) fn is_whole(&self, now: Instant) -> bool {
        let rested = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at) / RECOVERY_FACTOR);
        !self.owes && self.left + rested >= CLIENT_PATIENCE_MAX && self.paid.is_none_or(|paid| paid <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn patience_ends_however_often_a_client_begins_anew_and_comes_back_slowly() {
        let start = Instant::now();
        let mut patience = Patience::default();
        let mut now = start;
        let mut until = now;
        while until > now || now == start {
            now += SECOND;
            until = patience.pays(None, now + 5 * SECOND, now);
        }
        assert!(now - start <= CLIENT_PATIENCE_MAX + 2 * SECOND, "{:?}", now - start);
        patience.rests(now);
        now += 100 * SECOND;
        patience.rests(now);
        assert_eq!(patience.pays(None, now + CLIENT_PATIENCE_MAX, now), now + 10 * SECOND);
    }

    #[test]
    fn sessions_of_one_client_pay_for_the_same_time_once() {
        let now = Instant::now();
        let mut patience = Patience::default();
        for _ in 0..100 {
            assert_eq!(patience.pays(None, now + 5 * SECOND, now), now + 5 * SECOND);
        }
        assert_eq!(patience.left, CLIENT_PATIENCE_MAX - 5 * SECOND);
    }
}
