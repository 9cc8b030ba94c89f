//! A time of day that goes on when the clock that it goes by is set back.

use crate::attr::Timestamp;
use std::time::Duration;

/// Times that grow. If the clock is set back, they go on at half the pace until it has caught up, so that what is changed
/// later still has a later time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steady {
    /// The last time returned, and when that was, counted as by [`since_boot`](crate::sys::since_boot).
    last: Option<(Timestamp, Duration)>,
}

impl Steady {
    /// Returns the time when the clock says `said`, and [`since_boot`](crate::sys::since_boot) says `boot`.
    pub fn at(&mut self, said: Timestamp, boot: Duration) -> Timestamp {
        let now = self.last.map_or(said, |(before, at)| {
            let passed = boot.saturating_sub(at).as_nanos() / 2;
            said.max(before.shifted(i128::try_from(passed).unwrap_or(0)))
        });
        self.last = Some((now, boot));
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_goes_on_at_half_the_pace_until_it_has_caught_up() {
        let (mut steady, second) = (Steady::default(), Duration::from_secs(1));
        let at = |secs| Timestamp { secs, nanos: 0 };
        assert_eq!(steady.at(at(10_000), second), at(10_000));
        assert_eq!(steady.at(at(13_600), second * 2), at(13_600), "it was set forward");
        let mut later = |seconds: u32| steady.at(at(10_000 + i64::from(seconds)), second * (2 + seconds));
        assert_eq!([2, 4, 4, 7000].map(&mut later), [at(13_601), at(13_602), at(13_602), at(17_100)]);
        assert_eq!(later(7200), at(17_200), "the clock has caught up");
        assert_eq!(later(7300), at(17_300));
    }
}
