//! How long others wait for a client that shows that it lives and does not acknowledge.
//!
//! A client that has much to send needs more than a lease for it, and gets it: its leases are extended though something is
//! open, and whoever asked waits. Each such extension is paid from what is here, and no new question, stream or session
//! of the same client fills that up: only time does in which it owes nothing, a tenth of it. So a client that lies holds
//! others up for [`PATIENCE`] once, and then for a tenth of the time at most.

use std::time::Duration;
use tokio::time::Instant;

/// How long a client may keep others waiting in one go.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Patience comes back so many times more slowly than it goes.
const RECOVERY: u32 = 10;

/// What is left of the patience with one client.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    /// When it was last looked at.
    at: Option<Instant>,
    /// The client owes something since then.
    owes: bool,
    /// Up to here its waiting is paid for: sessions of one client that owe something at the same time pay once.
    paid: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: PATIENCE, at: None, owes: false, paid: None }
    }
}

impl Patience {
    /// The client owes nothing any more.
    pub(super) fn rests(&mut self, now: Instant) {
        let rested = self.at.replace(now).filter(|_| !self.owes);
        if let Some(at) = rested {
            self.left = (self.left + now.saturating_duration_since(at) / RECOVERY).min(PATIENCE);
        }
        self.owes = false;
    }

    /// The client owes something from now on.
    pub(super) fn owes(&mut self, now: Instant) {
        if !self.owes {
            self.rests(now);
            self.owes = true;
        }
    }

    /// The client owes something: until when others wait for it, who wait until `from` in any case, and until `to` if that
    /// can be paid.
    pub(super) fn pays(&mut self, from: Option<Instant>, to: Instant, now: Instant) -> Instant {
        self.owes(now);
        let from = from.max(self.paid).map_or(now, |from| from.max(now));
        let cost = to.saturating_duration_since(from).min(self.left);
        self.left -= cost;
        let paid = from + cost;
        self.paid = self.paid.max(Some(paid));
        paid
    }

    /// Whether forgetting it changes nothing.
    pub(super) fn is_whole(&self, now: Instant) -> bool {
        let rested = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at) / RECOVERY);
        !self.owes && self.left + rested >= PATIENCE && self.paid.is_none_or(|paid| paid <= now)
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
        assert!(now - start <= PATIENCE + 2 * SECOND, "{:?}", now - start);
        patience.rests(now);
        now += 100 * SECOND;
        patience.rests(now);
        assert_eq!(patience.pays(None, now + PATIENCE, now), now + 10 * SECOND);
    }

    #[test]
    fn sessions_of_one_client_pay_for_the_same_time_once() {
        let now = Instant::now();
        let mut patience = Patience::default();
        for _ in 0..100 {
            assert_eq!(patience.pays(None, now + 5 * SECOND, now), now + 5 * SECOND);
        }
        assert_eq!(patience.left, PATIENCE - 5 * SECOND);
    }
}
