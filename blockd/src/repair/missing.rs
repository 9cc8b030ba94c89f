//! Blocks that an audit did not find, and what is known of each. Pure.
//!
//! A block counts once it was not found twice: a daemon may just have been too busy to answer, or behind by a
//! heartbeat. From then on it counts until it is here, nothing refers to it any more, or another daemon has sent it.
//! That a daemon says it has the block is not enough: it is remembered until it is here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use wire::ids::BlockHash;

/// Blocks that are remembered by name.
const REMEMBERED_MAX: usize = 65_536;
/// As many of them as others say they have: these leave room for those that nobody has.
const COMING_MAX: usize = REMEMBERED_MAX / 4;

/// What a search for blocks has found, limited to what this daemon counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Nobody who answers has them.
    pub absent: BTreeSet<BlockHash>,
    /// Another daemon says that it has them. They are to be fetched.
    pub coming: BTreeSet<BlockHash>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not found once.
    Suspected,
    /// Not found twice.
    Counted,
    /// Another daemon says that it has it, and it is not here yet.
    Coming,
}

/// The blocks.
#[derive(Default)]
pub struct Missing {
    names: BTreeMap<BlockHash, State>,
    /// Those that the audit under way did not find and that are not remembered by name.
    more: u64,
    /// Those of the last audit.
    more_before: u64,
    /// As many of them as two audits in a row did not find.
    more_counted: u64,
    /// The last name that was sampled.
    sampled: Option<BlockHash>,
    /// The same among those about which the next search decides.
    undecided_sampled: Option<BlockHash>,
}

impl Missing {
    /// Begins a whole audit. Forgets blocks that this daemon does not owe.
    pub fn begin(&mut self, is_owed: impl Fn(&BlockHash) -> bool) {
        self.names.retain(|hash, _| is_owed(hash));
        self.more = 0;
    }

    /// Takes a page of the audit: all names from `first` to `last` were looked at. Only with `confirms` do blocks begin
    /// to count that were not found before.
    pub fn take_page(&mut self, (first, last): (BlockHash, BlockHash), found: &Found, confirms: bool) {
        let before: Vec<BlockHash> = self.names.range(first..=last).map(|(hash, _)| *hash).collect();
        let news = found.absent.iter().chain(&found.coming).filter(|hash| !self.names.contains_key(hash));
        let news: Vec<BlockHash> = news.copied().collect();
        before.iter().for_each(|hash| self.judge(*hash, found, confirms));
        let mut coming = self.names.values().filter(|state| **state == State::Coming).count();
        for hash in news {
            let is_absent = found.absent.contains(&hash);
            if self.names.len() < REMEMBERED_MAX && (is_absent || coming < COMING_MAX) {
                coming += usize::from(!is_absent);
                self.judge(hash, found, confirms);
            } else if is_absent {
                self.more += 1;
            }
        }
    }

    /// Ends a whole audit.
    pub fn end(&mut self) {
        self.more_counted = self.more.min(self.more_before);
        self.more_before = self.more;
    }

    /// Takes a search for some of the names. Returns whether it has changed anything.
    pub fn take_sample(&mut self, sample: &[BlockHash], found: &Found, confirms: bool) -> bool {
        let before: Vec<_> = sample.iter().map(|hash| self.names.get(hash).copied()).collect();
        sample.iter().for_each(|hash| self.judge(*hash, found, confirms));
        before.iter().zip(sample).any(|(before, hash)| *before != self.names.get(hash).copied())
    }

    fn judge(&mut self, hash: BlockHash, found: &Found, confirms: bool) {
        let is_coming = found.coming.contains(&hash);
        let state = match (self.names.get(&hash), found.absent.contains(&hash)) {
            (Some(State::Counted), is_absent) if is_absent || is_coming => State::Counted,
            (Some(State::Suspected), true) if confirms => State::Counted,
            (_, true) => State::Suspected,
            (_, false) if is_coming => State::Coming,
            (_, false) => {
                self.names.remove(&hash);
                return;
            }
        };
        self.names.insert(hash, state);
    }

    /// Forgets what is here. Returns whether anything was.
    pub fn forget(&mut self, is_here: impl Fn(&BlockHash) -> bool) -> bool {
        let before = self.names.len();
        self.names.retain(|hash, _| !is_here(hash));
        self.names.len() < before
    }

    /// Returns some names to look for: mostly of those about which the next search decides, then of all. Both take
    /// turns.
    pub fn sample(&mut self, max: usize) -> Vec<BlockHash> {
        let mut sample = self.behind(self.undecided_sampled, max - max / 4, |_, state| state != State::Counted);
        self.undecided_sampled = sample.last().copied().or(self.undecided_sampled);
        let chosen: BTreeSet<BlockHash> = sample.iter().copied().collect();
        let turn = self.behind(self.sampled, max - sample.len(), |hash, _| !chosen.contains(hash));
        self.sampled = turn.last().copied().or(self.sampled);
        sample.extend(turn);
        sample
    }

    /// The next of these names behind the last one, then those before it.
    fn behind(
        &self,
        last: Option<BlockHash>,
        max: usize,
        is_one: impl Fn(&BlockHash, State) -> bool,
    ) -> Vec<BlockHash> {
        let behind = self.names.range((last.map_or(Unbounded, Excluded), Unbounded));
        let before = self.names.iter().take_while(|(hash, _)| Some(**hash) <= last);
        let names = behind.chain(before).filter(|(hash, state)| is_one(hash, **state));
        names.map(|(hash, _)| *hash).take(max).collect()
    }

    /// Blocks that count as missing.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.names.values().filter(|state| **state == State::Counted).count() as u64 + self.more_counted
    }

    /// Blocks that are remembered by name.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// Blocks that were not found once.
    #[must_use]
    pub fn suspected(&self) -> usize {
        self.names.values().filter(|state| **state == State::Suspected).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (BlockHash, BlockHash) = (BlockHash([0; 32]), BlockHash([0xff; 32]));

    fn hash(number: u32) -> BlockHash {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        BlockHash(hash)
    }

    fn absent(numbers: impl IntoIterator<Item = u32>) -> Found {
        Found { absent: numbers.into_iter().map(hash).collect(), ..Found::default() }
    }

    #[test]
    fn a_block_counts_once_it_was_not_found_twice() {
        let mut missing = Missing::default();
        missing.begin(|_| true);
        missing.take_page(ALL, &absent([1, 2]), true);
        missing.end();
        assert_eq!((missing.count(), missing.suspected()), (0, 2));
        assert!(!missing.take_sample(&[hash(1), hash(2)], &absent([1, 2]), false), "somebody was behind");
        assert_eq!(missing.count(), 0);
        assert!(missing.take_sample(&[hash(1), hash(2)], &absent([1]), true));
        assert_eq!((missing.count(), missing.names()), (1, 1), "the other one was found");
        assert!(missing.forget(|hash_| *hash_ == hash(1)));
        assert_eq!(missing.count(), 0);
    }

    #[test]
    fn a_page_replaces_what_lies_in_it_and_leaves_the_rest() {
        let mut missing = Missing::default();
        for _ in 0..2 {
            missing.begin(|_| true);
            missing.take_page(ALL, &absent([1, 5, 9]), true);
            missing.end();
        }
        assert_eq!(missing.count(), 3);
        missing.begin(|hash_| *hash_ != hash(9));
        missing.take_page((hash(0), hash(4)), &absent([]), true);
        assert_eq!((missing.count(), missing.names()), (1, 1), "one was found, one is not owed any more");
    }

    #[test]
    fn a_block_that_comes_does_not_count_unless_it_stays_away() {
        let mut missing = Missing::default();
        let coming = Found { coming: [hash(1)].into(), ..Found::default() };
        missing.take_page(ALL, &coming, true);
        assert_eq!((missing.count(), missing.names()), (0, 1));
        missing.take_sample(&[hash(1)], &absent([1]), true);
        missing.take_sample(&[hash(1)], &absent([1]), true);
        assert_eq!(missing.count(), 1);
        missing.take_page(ALL, &coming, true);
        assert_eq!(missing.count(), 1, "that somebody says so is not enough");
        missing.take_page(ALL, &Found::default(), true);
        assert_eq!(missing.count(), 0, "it was sent, or nothing refers to it");
    }

    #[test]
    fn blocks_that_others_say_they_have_leave_room_for_those_that_nobody_has() {
        let mut missing = Missing::default();
        let many = REMEMBERED_MAX as u32;
        let found = Found { absent: [hash(2 * many)].into(), coming: (0..many).map(hash).collect() };
        missing.take_page(ALL, &found, true);
        assert_eq!((missing.names(), missing.suspected()), (COMING_MAX + 1, 1));
        let (first, second) = (missing.sample(64), missing.sample(64));
        assert!(first[..48].iter().all(|hash| !second.contains(hash)), "each is looked for in its turn");
    }

    #[test]
    fn samples_take_turns_and_begin_with_what_is_undecided() {
        let mut missing = Missing::default();
        (0..2).for_each(|_| missing.take_page(ALL, &absent(0..10), true));
        missing.take_page((hash(20), hash(20)), &absent([20]), true);
        assert_eq!(missing.sample(4), [20, 0, 1, 2].map(hash));
        assert_eq!(missing.sample(4), [20, 3, 4, 5].map(hash));
        missing.take_sample(&[hash(20)], &absent([20]), true);
        assert_eq!(missing.sample(6), [6, 7, 8, 9, 20, 0].map(hash));
        assert_eq!(missing.sample(99).len(), 11);
    }

    #[test]
    fn beyond_the_names_that_are_remembered_the_lower_of_two_audits_counts() {
        let mut missing = Missing::default();
        let all = REMEMBERED_MAX as u32;
        for (more, counted) in [(5, 0), (3, 3), (4, 3)] {
            missing.begin(|_| true);
            missing.take_page(ALL, &absent(0..all + more), true);
            missing.end();
            assert_eq!(missing.more_counted, counted);
        }
        assert_eq!((missing.names(), missing.count()), (REMEMBERED_MAX, u64::from(all) + 3));
    }
}
