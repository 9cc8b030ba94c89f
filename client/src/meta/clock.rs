//! The leader's clock, as known from its answers.

use std::time::Duration;
use wire::attr::Timestamp;
use wire::steady::Steady;
use wire::sys::since_boot;

/// How much less exact an estimate becomes with each answer.
const LESS_EXACT: Duration = Duration::from_micros(100);

/// An estimate of the leader's clock.
#[derive(Default)]
pub(super) struct LeaderClock {
    /// What it says at the moment that [`since_boot`] counts from, and how exactly that is known. This machine's own
    /// clock may be set at any time.
    at_boot: Option<(Timestamp, Duration)>,
    /// An estimate may be replaced by an earlier one, and a leader by another one.
    steady: Steady,
}

impl LeaderClock {
    /// Returns the time as the leader would stamp it, and later than what was stamped here before.
    pub(super) fn stamp(&mut self) -> Timestamp {
        let boot = since_boot();
        let now = self.at_boot.map_or_else(Timestamp::now, |(at_boot, _)| at_boot.shifted(nanos(boot)));
        self.steady.at(now, boot)
    }

    /// Learns the leader's time, asked for at this time of [`since_boot`].
    pub(super) fn learn(&mut self, asked: Duration, now: Timestamp) {
        let answered = since_boot();
        let within = answered.saturating_sub(asked);
        if let Some((_, known)) = &mut self.at_boot {
            // An estimate becomes less exact: clocks drift, and leaders change.
            *known += LESS_EXACT;
            if within > *known {
                return;
            }
        }
        self.at_boot = Some((now.shifted(nanos(within / 2) - nanos(answered)), within));
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}
