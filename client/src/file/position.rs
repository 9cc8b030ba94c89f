//! Where a file's readers are: a sequential reader gets blocks fetched ahead. Pure: no I/O, no clock.

/// Reads this close to the end of the last one may be sequential, because the kernel's readahead runs in parallel. Two
/// such reads in a row are needed: one alone comes about by chance, and what is fetched ahead is thousands of times as
/// much as it asks for.
const NEAR_BYTES: u64 = 4 << 20;

/// Where the last read ended, and how far has been read ahead.
#[derive(Default)]
pub(crate) struct Position {
    /// End of the last read, in bytes of file offset.
    end: u64,
    /// The last read was near the one before.
    near: bool,
    /// Offset up to which blocks were fetched ahead.
    ahead: u64,
}

impl Position {
    /// Notes a read from `offset` to `end`. Returns whether it is part of sequential reading.
    pub fn note_read(&mut self, offset: u64, end: u64) -> bool {
        let near = offset.abs_diff(self.end) <= NEAR_BYTES;
        let sequential = offset == self.end || (near && self.near);
        (self.near, self.end) = (near, end);
        if !sequential {
            self.ahead = 0;
        }
        sequential
    }

    /// Forgets what was fetched ahead, because the content has changed.
    pub fn forget_ahead(&mut self) {
        self.ahead = 0;
    }

    /// Returns where to begin fetching for a reader who has come to `end`, so that all up to `until` is under way.
    /// `None` while too little is missing: not every read looks for blocks. `last` says that the file ends at `until`.
    pub fn ahead_from(&self, end: u64, until: u64, (portion, last): (u64, bool)) -> Option<u64> {
        let from = self.ahead.max(end);
        (from < until && (until - from >= portion || last)).then_some(from)
    }

    /// Notes that all up to `until` is under way.
    pub fn fetched_ahead(&mut self, until: u64) {
        self.ahead = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns for each of these reads of 4 KiB whether it counts as sequential.
    fn sequential(offsets: &[u64]) -> Vec<bool> {
        let mut position = Position::default();
        offsets.iter().map(|offset| position.note_read(*offset, offset + 4096)).collect()
    }

    #[test]
    fn a_reader_is_sequential_when_it_goes_on_or_stays_near_and_not_because_of_one_read_that_is_near_by_chance() {
        const FAR: u64 = 1 << 30;
        assert_eq!(sequential(&[0, 4096, 8192]), [true; 3], "from the start");
        assert_eq!(sequential(&[FAR, FAR + 4096]), [false, true], "from the middle");
        assert_eq!(
            sequential(&[FAR, FAR + 65_536, FAR + 20_480, FAR + 131_072]),
            [false, false, true, true],
            "in parallel"
        );
        assert_eq!(sequential(&[FAR, FAR + 65_536, 5 * FAR, 5 * FAR - 65_536, FAR]), [false; 5], "scattered");
    }

    #[test]
    fn blocks_are_fetched_ahead_in_portions_and_at_the_end_whatever_is_left() {
        let mut position = Position::default();
        assert_eq!(position.ahead_from(0, 100, (25, false)), Some(0));
        position.fetched_ahead(100);
        assert_eq!(position.ahead_from(20, 120, (25, false)), None, "too little");
        assert_eq!(position.ahead_from(20, 120, (25, true)), Some(100), "the file ends there");
        assert_eq!(position.ahead_from(30, 130, (25, false)), Some(100));
        position.note_read(1 << 40, (1 << 40) + 10);
        assert_eq!(position.ahead_from(30, 130, (25, false)), Some(30), "begun anew");
    }
}
