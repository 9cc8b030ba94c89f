//! The leader's clock, as known from its answers.

use std::time::Duration;
use wire::attr::Timestamp;
use wire::sys::since_boot;

/// An estimate of the leader's clock.
#[derive(Default)]
pub(super) struct LeaderClock {
    /// How far it is ahead of this machine's, in nanoseconds; and, next, how exactly that is known.
    ahead: i128,
    within: Option<Duration>,
    /// The last time that was returned or seen: the clock never runs backwards here.
    last: Timestamp,
}

impl LeaderClock {
    /// Returns the time as the leader would stamp it, later than everything that was stamped here.
    pub(super) fn stamp(&mut self) -> Timestamp {
        self.last = self.last.max(Timestamp::now().shifted(self.ahead));
        self.last
    }

    /// Learns the leader's time, asked for at this time of [`since_boot`].
    pub(super) fn learn(&mut self, asked: Duration, now: Timestamp) {
        let within = since_boot().saturating_sub(asked);
        // An estimate becomes less exact: clocks drift, and leaders change.
        let known = self.within.map(|within| within + Duration::from_micros(100));
        self.within = known;
        if known.is_none_or(|known| within <= known) {
            let middle = i128::try_from(within.as_nanos() / 2).unwrap_or(0);
            self.ahead = now.nanos_since(Timestamp::now()) + middle;
            self.within = Some(within);
        }
    }
}
