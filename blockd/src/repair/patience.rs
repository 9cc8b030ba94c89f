//! How long a pass waits for each of its sources. Pure.
//!
//! A source that answers slowly, or lists much and sends nothing, would hold up the copies that others have. So each has
//! an account of time per pass: waiting for it spends, and good blocks that it sends earn. One that has nothing left is
//! left to the next pass.

use std::collections::BTreeMap;
use std::time::Duration;
use wire::ids::BlockdId;

/// What a source has at the beginning, and at most.
const ACCOUNT: Duration = Duration::from_secs(30);
/// What an answer costs at least: metad has to be asked about each page that a source lists.
const ANSWER: Duration = Duration::from_millis(20);
/// What a block earns, and what each of its MiB does.
const EARNED_PER_BLOCK: Duration = Duration::from_millis(200);
const EARNED_PER_MIB: Duration = Duration::from_secs(1);

/// The accounts of a pass.
#[derive(Default)]
pub(super) struct Patience(BTreeMap<BlockdId, Duration>);

impl Patience {
    /// Takes the time that an answer took off. Returns false once nothing is left.
    pub(super) fn answered(&mut self, source: BlockdId, time: Duration) -> bool {
        self.waited(source, time.max(ANSWER))
    }

    /// Takes time off. Returns false once nothing is left.
    pub(super) fn waited(&mut self, source: BlockdId, time: Duration) -> bool {
        let left = self.0.entry(source).or_insert(ACCOUNT);
        *left = left.saturating_sub(time);
        !left.is_zero()
    }

    /// Adds what a good block of this length earns.
    pub(super) fn came(&mut self, source: BlockdId, len: usize) {
        let left = self.0.entry(source).or_insert(ACCOUNT);
        let earned = EARNED_PER_BLOCK + EARNED_PER_MIB.mul_f64(len as f64 / f64::from(1 << 20));
        *left = left.saturating_add(earned).min(ACCOUNT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_sends_little_for_its_time_is_left_out_and_others_are_not() {
        let [slow, fast, lister] = [1, 2, 3].map(|number| BlockdId([number; 16]));
        let mut patience = Patience::default();
        let mut blocks = 0;
        while patience.waited(slow, Duration::from_secs(9)) {
            patience.came(slow, 100);
            blocks += 1;
        }
        assert!(blocks < 5, "{blocks} small blocks at 9 s each");
        for _ in 0..10_000 {
            assert!(patience.waited(fast, Duration::from_secs(4)), "1 MiB/s is enough");
            patience.came(fast, 4 << 20);
        }
        let pages = (0..1_000_000).take_while(|_| patience.answered(lister, Duration::ZERO)).count();
        assert!(pages < 2000, "{pages} pages without a block");
    }
}
