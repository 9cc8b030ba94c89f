//! How long a pass waits for each of its sources. Pure.
//!
//! A source that answers slowly, or lists much and sends nothing, would hold up the copies that others have. So each has
//! an account of time per pass: waiting for it spends, and good blocks that it sends earn. One that has nothing left, or
//! did not answer for several blocks, is left to the next pass.

use std::collections::BTreeMap;
use std::time::Duration;
use wire::ids::BlockdId;

/// What a source has at the beginning, and at most, unless a test says otherwise.
pub const PATIENCE_MAX: Duration = Duration::from_secs(30);
/// What an answer costs at least, unless it turns out to name nothing that is lacking here and referred to: a source
/// that is honest may have thousands of blocks that nothing refers to any more.
const COST_MIN: Duration = Duration::from_millis(20);
/// Blocks for which a source may give no answer: each may be one that its disk cannot read.
const UNANSWERED_MAX: u32 = 4;
/// What a block earns, and what each of its MiB does.
const EARNED_PER_BLOCK: Duration = Duration::from_millis(200);
const EARNED_PER_MIB: Duration = Duration::from_secs(1);

/// The accounts of a pass.
pub(super) struct Patience {
    /// What each source has at the beginning, and at most.
    full: Duration,
    accounts: BTreeMap<BlockdId, Account>,
}

struct Account {
    left: Duration,
    /// What the last answer cost beyond its time.
    surcharge: Duration,
    /// Blocks for which no answer came.
    unanswered: u32,
}

impl Patience {
    /// Begins with full accounts.
    pub(super) fn new(full: Duration) -> Self {
        Self { full, accounts: BTreeMap::new() }
    }

    /// Takes the time that an answer took off, or more.
    pub(super) fn answered(&mut self, source: BlockdId, time: Duration) {
        self.waited(source, time.max(COST_MIN));
        self.of(source).surcharge = COST_MIN.saturating_sub(time);
    }

    /// Gives back what the last answer cost beyond its time: nothing that it names has to be fetched.
    pub(super) fn explained(&mut self, source: BlockdId) {
        let account = self.of(source);
        let surcharge = std::mem::take(&mut account.surcharge);
        if !account.left.is_zero() {
            account.left += surcharge;
        }
    }

    /// Takes time off.
    pub(super) fn waited(&mut self, source: BlockdId, time: Duration) {
        let left = &mut self.of(source).left;
        *left = left.saturating_sub(time);
    }

    /// Adds what a good block of this length earns, unless it came too late.
    pub(super) fn came(&mut self, source: BlockdId, len: usize) {
        let (full, left) = (self.full, &mut self.of(source).left);
        if left.is_zero() {
            return;
        }
        let earned = EARNED_PER_BLOCK + EARNED_PER_MIB.mul_f64(len as f64 / f64::from(1 << 20));
        *left = left.saturating_add(earned).min(full);
    }

    /// Notes that no answer came for a block.
    pub(super) fn unanswered(&mut self, source: BlockdId) {
        self.of(source).unanswered += 1;
    }

    /// Reports whether a source is to be left to the next pass.
    pub(super) fn is_at_end(&self, source: &BlockdId) -> bool {
        self.accounts.get(source).is_some_and(|account| account.left.is_zero() || account.unanswered >= UNANSWERED_MAX)
    }

    fn of(&mut self, source: BlockdId) -> &mut Account {
        let full = Account { left: self.full, surcharge: Duration::ZERO, unanswered: 0 };
        self.accounts.entry(source).or_insert(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_sends_little_for_its_time_is_left_out_and_others_are_not() {
        let [slow, fast, lister] = [1, 2, 3].map(|number| BlockdId([number; 16]));
        let mut patience = Patience::new(PATIENCE_MAX);
        let mut blocks = 0;
        while !patience.is_at_end(&slow) {
            patience.waited(slow, Duration::from_secs(9));
            patience.came(slow, 100);
            blocks += 1;
            assert!(blocks <= 5, "{blocks} small blocks at 9 s each");
        }
        for _ in 0..10_000 {
            patience.waited(fast, Duration::from_secs(4));
            patience.came(fast, 4 << 20);
            assert!(!patience.is_at_end(&fast), "1 MiB/s is enough");
        }
        let mut answers = (0..1_000_000).take_while(|_| {
            patience.answered(lister, Duration::ZERO);
            !patience.is_at_end(&lister)
        });
        let pages = answers.by_ref().count();
        assert!(pages < 2000, "{pages} pages without a block");
    }

    #[test]
    fn an_answer_that_names_nothing_to_fetch_costs_its_time() {
        let (source, mut patience) = (BlockdId([1; 16]), Patience::new(PATIENCE_MAX));
        for _ in 0..10_000 {
            patience.answered(source, Duration::from_millis(1));
            patience.explained(source);
            patience.explained(source);
        }
        assert!(!patience.is_at_end(&source), "10 s of 30");
        (0..1000).for_each(|_| patience.answered(source, Duration::from_millis(1)));
        assert!(patience.is_at_end(&source));
    }

    #[test]
    fn a_source_may_give_no_answer_for_some_blocks() {
        let (source, mut patience) = (BlockdId([1; 16]), Patience::new(PATIENCE_MAX));
        for _ in 1..UNANSWERED_MAX {
            patience.unanswered(source);
            patience.came(source, 100);
            assert!(!patience.is_at_end(&source));
        }
        patience.unanswered(source);
        assert!(patience.is_at_end(&source));
    }
}
