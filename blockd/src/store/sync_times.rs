//! How long it takes lately to bring a group to stable storage. A disk that still works, and takes far longer for that
//! than those of other daemons, shows in it (a gray failure).

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Older times say nothing of the disk as it is now.
const WINDOW: Duration = Duration::from_secs(60);
/// Times that are remembered at most.
const KEPT_MAX: usize = 4096;
/// A percent of the slowest times is left out, and at least so many: a daemon is paused now and then.
const LEFT_OUT: usize = 2;
/// With fewer times, and less time in all, nothing is said.
const COUNT_MIN: usize = 20;
/// A disk that takes seconds each time comes to few of them.
const SUM_MIN: Duration = Duration::from_secs(5);

/// Times of the last minute, in their order.
#[derive(Default)]
pub(super) struct SyncTimes(Mutex<VecDeque<(Instant, Duration)>>);

impl SyncTimes {
    /// Notes that a group was brought to stable storage just now, and took this long.
    pub(super) fn took(&self, now: Instant, time: Duration) {
        let mut times = self.0.lock();
        times.push_back((now, time));
        forget(&mut times, now);
    }

    /// Returns the time within which 99 of 100 groups got to stable storage. `None` when they were too few.
    pub(super) fn most_took(&self, now: Instant) -> Option<Duration> {
        let mut times: Vec<Duration> = {
            let mut times = self.0.lock();
            forget(&mut times, now);
            times.iter().map(|(_, time)| *time).collect()
        };
        if times.len() < COUNT_MIN && times.iter().sum::<Duration>() < SUM_MIN {
            return None;
        }
        let at = times.len().checked_sub(1 + LEFT_OUT.max(times.len() / 100))?;
        Some(*times.select_nth_unstable(at).1)
    }
}

fn forget(times: &mut VecDeque<(Instant, Duration)>, now: Instant) {
    while times.len() > KEPT_MAX || times.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
        times.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_disk_shows_and_a_pause_does_not() {
        let (times, begun) = (SyncTimes::default(), Instant::now());
        (0..19).for_each(|_| times.took(begun, MS * 4));
        assert_eq!(times.most_took(begun), None, "they are too few");
        times.took(begun, MS * 3000);
        times.took(begun, MS * 9000);
        assert_eq!(times.most_took(begun), Some(MS * 4), "somebody paused the daemon twice");
        times.took(begun, MS * 80);
        assert_eq!(times.most_took(begun), Some(MS * 80));
        (0..400).for_each(|_| times.took(begun, MS * 5));
        assert_eq!(times.most_took(begun), Some(MS * 5), "these are a percent at most");
        assert_eq!(times.most_took(begun + WINDOW + MS), None, "that was long ago");
    }

    #[test]
    fn few_times_count_if_they_are_long() {
        let (times, begun) = (SyncTimes::default(), Instant::now());
        for seconds in [3_u32, 4] {
            times.took(begun, MS * 1000 * seconds);
            assert_eq!(times.most_took(begun), None);
        }
        times.took(begun, MS * 2000);
        assert_eq!(times.most_took(begun), Some(MS * 2000));
    }

    #[test]
    fn no_more_are_remembered_than_have_room() {
        let (times, begun) = (SyncTimes::default(), Instant::now());
        (0..KEPT_MAX * 2).for_each(|_| times.took(begun, MS));
        assert_eq!(times.0.lock().len(), KEPT_MAX);
    }
}
