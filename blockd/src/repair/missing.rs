//! Blocks that an audit did not find, and what is known of each. Pure.
//!
//! A block counts once it was not found twice: a daemon may just have been too busy to answer, or behind by a
//! heartbeat. From then on it counts until it is here, nothing refers to it any more, or another daemon has served it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use wire::ids::BlockHash;

/// Blocks that are remembered by name.
const REMEMBERED_MAX: usize = 65_536;

/// What a search for blocks has found, as far as this daemon counts them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Nobody who answers has them.
    pub absent: BTreeSet<BlockHash>,
    /// Another daemon serves them, and they are being fetched.
    pub coming: BTreeSet<BlockHash>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not found once.
    Suspected,
    /// Not found twice.
    Counted,
    /// Found elsewhere, and not here yet.
    Coming,
}

/// The blocks.
#[derive(Default)]
pub struct Missing {
    names: BTreeMap<BlockHash, State>,
    /// Those that the audit under way did not find and that are not remembered by name.
    more: u64,
    /// The same of the last audit.
    more_before: u64,
    /// As many of them as two audits in a row did not find.
    more_counted: u64,
    /// The last name that was sampled.
    sampled: Option<BlockHash>,
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
        for hash in news {
            if self.names.len() < REMEMBERED_MAX {
                self.judge(hash, found, confirms);
            } else if found.absent.contains(&hash) {
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
        let state = match (self.names.get(&hash), found.absent.contains(&hash)) {
            (Some(State::Counted), true) => State::Counted,
            (Some(State::Suspected), true) if confirms => State::Counted,
            (_, true) => State::Suspected,
            (_, false) if found.coming.contains(&hash) => State::Coming,
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

    /// Returns some names to look for: mostly those about which the next search decides, then the others in turn.
    pub fn sample(&mut self, max: usize) -> Vec<BlockHash> {
        let undecided = self.names.iter().filter(|(_, state)| **state != State::Counted).map(|(hash, _)| *hash);
        let mut sample: Vec<BlockHash> = undecided.take(max - max / 4).collect();
        let chosen: BTreeSet<BlockHash> = sample.iter().copied().collect();
        let from = self.sampled.map_or(Unbounded, Excluded);
        let behind = self.names.range((from, Unbounded));
        let before = self.names.iter().take_while(|(hash, _)| Some(**hash) <= self.sampled);
        let turns = behind.chain(before).map(|(hash, _)| *hash).filter(|hash| !chosen.contains(hash));
        let turn: Vec<BlockHash> = turns.take(max - sample.len()).collect();
        self.sampled = turn.last().copied().or(self.sampled);
        sample.extend(turn);
        sample
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

    /// Blocks about which the next search decides.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.names.values().filter(|state| **state != State::Counted).count()
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
        assert_eq!((missing.count(), missing.undecided()), (0, 2));
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
        assert_eq!((missing.count(), missing.undecided()), (0, 1));
        missing.take_sample(&[hash(1)], &absent([1]), true);
        missing.take_sample(&[hash(1)], &absent([1]), true);
        assert_eq!(missing.count(), 1);
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
