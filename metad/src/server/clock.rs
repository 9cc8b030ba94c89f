//! The time that a leader stamps commands with.

use parking_lot::Mutex;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::sys::since_boot;

/// The leader's clock as commands see it. It never goes backwards: if the machine's clock is set back, it goes on at half
/// the pace until that has caught up, so that what is changed later still has a later time.
#[derive(Default)]
pub struct Clock {
    /// The last time returned, and when that was, counted as by [`since_boot`].
    last: Mutex<Option<(Timestamp, Duration)>>,
}

impl Clock {
    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        self.at(Timestamp::now(), since_boot())
    }

    /// Returns the time when the machine's clock says `said`.
    fn at(&self, said: Timestamp, boot: Duration) -> Timestamp {
        let mut last = self.last.lock();
        let now = last.map_or(said, |(before, at)| {
            let passed = boot.saturating_sub(at).as_nanos() / 2;
            said.max(before.shifted(i128::try_from(passed).unwrap_or(0)))
        });
        *last = Some((now, boot));
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_goes_on_at_half_the_pace_until_the_machines_has_caught_up() {
        let (clock, second) = (Clock::default(), Duration::from_secs(1));
        let at = |secs| Timestamp { secs, nanos: 0 };
        assert_eq!(clock.at(at(10_000), second), at(10_000));
        assert_eq!(clock.at(at(13_600), second * 2), at(13_600), "it was set forward");
        let later = |seconds: u32| clock.at(at(10_000 + i64::from(seconds)), second * (2 + seconds));
        assert_eq!([2, 4, 4, 7000].map(later), [at(13_601), at(13_602), at(13_602), at(17_100)]);
        assert_eq!(later(7200), at(17_200), "the machine's clock has caught up");
        assert_eq!(later(7300), at(17_300));
    }
}
