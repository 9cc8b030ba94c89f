//! How long others wait for a client that is alive and does not acknowledge.
//!
//! A client with much to send needs longer than a lease, and gets it: while a notice is open, and the client is heard of,
//! those who asked go on waiting. What they wait beyond the lease is paid from the client's patience. New questions, streams
//! or sessions of the client do not refill that; only time in which nobody waits for it does, at a tenth of the rate. So a
//! malicious client delays others for [`CLIENT_PATIENCE_MAX`] once, and for a tenth of the time after that. Many honest
//! sessions of one client, which acknowledge within their leases, pay nothing, however often they are asked.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::SessionId;

/// How long a client may keep others waiting at a stretch.
pub const CLIENT_PATIENCE_MAX: Duration = Duration::from_secs(60);
/// Patience is regained this many times more slowly than it is spent.
const RECOVERY_FACTOR: u32 = 10;

/// The patience that is left with one client, or with one session.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    /// Up to when it is counted.
    counted: Option<Instant>,
    /// The sessions for which others wait: from when, and until when they look again.
    waited_for: BTreeMap<SessionId, (Instant, Instant)>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: CLIENT_PATIENCE_MAX, counted: None, waited_for: BTreeMap::new() }
    }
}

impl Patience {
    /// Records that somebody waits for a session of the client from now or later, until it looks again.
    pub(super) fn spends(&mut self, session: SessionId, from: Instant, until: Instant, now: Instant) {
        // Those who wait look often.
        if self.waited_for.get(&session).is_some_and(|(_, known)| *known >= until) {
            return;
        }
        self.count(now);
        let waited = self.waited_for.entry(session).or_insert((from, until));
        waited.1 = waited.1.max(until);
    }

    /// Records that nobody waits for a session any more.
    pub(super) fn rests(&mut self, session: SessionId, now: Instant) {
        self.count(now);
        self.waited_for.remove(&session);
    }

    /// Returns how long others go on waiting.
    pub(super) fn left_at(&mut self, now: Instant) -> Duration {
        self.count(now);
        self.left
    }

    /// Returns whether forgetting it changes nothing.
    pub(super) fn is_whole(&mut self, now: Instant) -> bool {
        self.left_at(now) == CLIENT_PATIENCE_MAX && self.waited_for.is_empty()
    }

    /// Counts the time up to now. Whoever waits for several sessions at the same time waits once.
    fn count(&mut self, now: Instant) {
        let before = *self.counted.get_or_insert(now);
        if now <= before {
            return;
        }
        let clipped = self.waited_for.values().map(|(from, until)| ((*from).max(before), (*until).min(now)));
        let mut spans: Vec<(Instant, Instant)> = clipped.filter(|(from, until)| from < until).collect();
        spans.sort_unstable();
        let (mut spent, mut end) = (Duration::ZERO, before);
        for (from, until) in spans {
            spent += until.saturating_duration_since(from.max(end));
            end = end.max(until);
        }
        let regained = (now - before).saturating_sub(spent) / RECOVERY_FACTOR;
        self.left = (self.left.saturating_sub(spent) + regained).min(CLIENT_PATIENCE_MAX);
        self.waited_for.retain(|_, (_, until)| *until > now);
        self.counted = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ONE: SessionId = SessionId(1);

    #[test]
    fn patience_ends_however_often_a_client_begins_anew_and_comes_back_slowly() {
        let start = Instant::now();
        let (mut patience, mut now) = (Patience::default(), start);
        let mut session = ONE;
        while !patience.left_at(now).is_zero() {
            patience.spends(session, now, now + 5 * SECOND, now);
            now += SECOND;
            patience.rests(session, now);
            session.0 += 1;
        }
        assert_eq!(now, start + CLIENT_PATIENCE_MAX);
        assert_eq!(patience.left_at(now + 100 * SECOND), 10 * SECOND);
        assert!(!patience.is_whole(now + 100 * SECOND));
        assert!(patience.is_whole(now + 10 * CLIENT_PATIENCE_MAX));
    }

    #[test]
    fn sessions_of_one_client_pay_for_the_same_time_once() {
        let now = Instant::now();
        let mut patience = Patience::default();
        for session in 0..100 {
            patience.spends(SessionId(session), now, now + 4 * SECOND, now);
        }
        patience.spends(ONE, now, now + 5 * SECOND, now + SECOND);
        assert_eq!(patience.left_at(now + 5 * SECOND), CLIENT_PATIENCE_MAX - 5 * SECOND);
    }

    #[test]
    fn only_time_in_which_somebody_waits_is_counted() {
        let now = Instant::now();
        let mut patience = Patience::default();
        // A lease would have held until then anyway.
        patience.spends(ONE, now + 5 * SECOND, now + 9 * SECOND, now);
        patience.rests(ONE, now + 2 * SECOND);
        assert_eq!(patience.left_at(now + 9 * SECOND), CLIENT_PATIENCE_MAX);
        // Whoever has waited does not look again.
        patience.spends(ONE, now + 10 * SECOND, now + 15 * SECOND, now + 10 * SECOND);
        assert_eq!(patience.left_at(now + 65 * SECOND), CLIENT_PATIENCE_MAX);
        patience.spends(ONE, now + 70 * SECOND, now + 75 * SECOND, now + 70 * SECOND);
        assert_eq!(patience.left_at(now + 75 * SECOND), CLIENT_PATIENCE_MAX - 5 * SECOND);
    }
}
