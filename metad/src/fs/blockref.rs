//! How many extents refer to each block, and since when none does (I10).
//!
//! A block is counted under its policy and its hash. Daemons name blocks by their hashes alone, because there is no policy
//! but the default one yet.

use super::Context;
use super::keys;
use super::view::{Kv, KvExt, View};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::extent::BlockForm;
use wire::ids::{BlockHash, PolicyId};

/// References to a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockRef {
    /// Extents that refer to it.
    pub count: u64,
    /// Its stored bytes.
    pub len: u32,
    /// When the last reference went, in milliseconds since the epoch; meaningful while `count` is 0.
    pub zero_since_ms: u64,
}

/// Counts one more extent that refers to a block.
pub(super) fn add(view: &mut View, hash: &BlockHash, form: &BlockForm) {
    let key = keys::block_of(form.policy, hash);
    let mut block = view.load(&key).unwrap_or(BlockRef { count: 0, len: form.stored_len, zero_since_ms: 0 });
    if block.count == 0 && block.zero_since_ms != 0 {
        view.delete(keys::unreferenced_of(block.zero_since_ms, form.policy, hash));
        block.zero_since_ms = 0;
    }
    block.count += 1;
    view.store(key, &block);
}

/// Counts one extent less that refers to a block. A block without references is queued for deletion.
pub(super) fn remove(view: &mut View, context: &Context, hash: &BlockHash, policy: PolicyId) {
    let key = keys::block_of(policy, hash);
    let mut block: BlockRef = view.load(&key).expect("an extent's block is counted");
    assert!(block.count > 0, "block {hash} has fewer references than extents");
    block.count -= 1;
    if block.count == 0 {
        block.zero_since_ms = context.entry.as_millis().max(1);
        view.put(keys::unreferenced_of(block.zero_since_ms, policy, hash), Vec::new());
    }
    view.store(key, &block);
}

/// `Command::BlocksDropped`: forgets blocks that their daemons have dropped. A block that was referred to again
/// meanwhile stays counted: its writer has stored it anew, because storing precedes referring. So does one that has
/// lost that reference again, unless it did so before `before` (milliseconds since the epoch).
pub(super) fn dropped(view: &mut View, hashes: &[BlockHash], before: u64) {
    for hash in hashes {
        let key = keys::block(hash);
        let is_gone = |block: &BlockRef| block.count == 0 && block.zero_since_ms < before;
        if let Some(block) = view.load::<BlockRef>(&key).filter(is_gone) {
            view.delete(keys::unreferenced(block.zero_since_ms, hash));
            view.delete(key);
        }
    }
}

/// Returns up to `limit` blocks that nothing has referred to since before `ms`, oldest first, beginning after
/// `after`.
/// `after` is set to the last of them, or to `None` when there are no more: the next call then begins at the oldest
/// again.
pub fn next_unreferenced(kv: &dyn Kv, after: &mut Option<keys::Key>, ms: u64, limit: usize) -> Vec<BlockHash> {
    let Range { mut start, end } = keys::unreferenced_before(ms);
    if let Some(after) = after.take() {
        start = [after.as_slice(), &[0]].concat();
    }
    let found = kv.pairs(start..end, limit);
    *after = found.last().filter(|_| found.len() == limit).map(|(key, _)| key.clone());
    found.iter().map(|(key, _)| keys::unreferenced_hash(key)).collect()
}

/// Returns a page of the blocks with names from `from` to `last` that extents refer to, in order, and where the next
/// page begins. Looks at `limit` blocks, unreferenced ones included, so a page may be empty although more follow.
pub fn referenced(kv: &dyn Kv, from: BlockHash, last: BlockHash, limit: usize) -> (Vec<BlockHash>, Option<BlockHash>) {
    let range = keys::block(&from)..[keys::block(&last).as_slice(), &[0]].concat();
    if range.is_empty() {
        return (Vec::new(), None);
    }
    let found = kv.pairs(range, limit);
    let looked_at_last = found.last().filter(|_| found.len() == limit).and_then(|(key, _)| keys::block_hash(key));
    let is_counted = |value: &[u8]| wire::codec::decode::<BlockRef>(value).is_ok_and(|block| block.count > 0);
    let counted = found.iter().filter(|(_, value)| is_counted(value)).filter_map(|(key, _)| keys::block_hash(key));
    (counted.collect(), looked_at_last.and_then(|hash| hash.next()).filter(|next| *next <= last))
}

/// Returns whether an extent refers to a block.
pub fn is_referenced(kv: &dyn Kv, hash: &BlockHash) -> bool {
    kv.load::<BlockRef>(&keys::block(hash)).is_some_and(|block| block.count > 0)
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_block_that_lost_a_newer_reference_survives_a_round_of_deletion_that_began_before() {
        let hash = BlockHash([1; 32]);
        let mut kv = MemoryKv::default();
        let block = BlockRef { count: 0, len: 9, zero_since_ms: 70 };
        kv.0.insert(keys::block(&hash), wire::codec::encode(&block));
        kv.0.insert(keys::unreferenced(70, &hash), Vec::new());
        for (before, stays) in [(70, true), (71, false)] {
            let mut view = View::new(&kv);
            dropped(&mut view, &[hash], before);
            let changes = view.into_changes();
            kv.absorb(changes);
            assert_eq!(kv.get(&keys::block(&hash)).is_some(), stays);
        }
    }

    #[test]
    fn pages_of_referenced_blocks_have_each_once_and_end_at_the_last_name() {
        let name = |number: u8| BlockHash([number; 32]);
        let block = |number: u8| BlockRef { count: u64::from(number % 3), len: 1, zero_since_ms: 0 };
        let pair = |number| (keys::block(&name(number)), wire::codec::encode(&block(number)));
        let kv = MemoryKv([0, 1, 2, 3, 4, 7, 254, 255].into_iter().map(pair).collect());
        let all = |first: u8, last: u8, limit| {
            let (mut seen, mut from) = (Vec::new(), Some(name(first)));
            while let Some(start) = from {
                let (blocks, next) = referenced(&kv, start, name(last), limit);
                seen.extend(blocks.iter().map(|hash| hash.0[0]));
                from = next;
            }
            seen
        };
        for limit in 1..10 {
            assert_eq!(all(0, 255, limit), [1, 2, 4, 7, 254], "{limit} at a time: what has no reference is left out");
            assert_eq!(all(2, 7, limit), [2, 4, 7]);
            assert_eq!(all(7, 2, limit), [0; 0]);
        }
    }

    /// Counts the rows that are looked at.
    struct Counting<'a>(&'a MemoryKv, std::sync::atomic::AtomicUsize);

    impl Kv for Counting<'_> {
        fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
            self.0.get(key)
        }

        fn scan(&self, range: Range<keys::Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
            self.0.scan(range, &mut |key, value| {
                self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                visit(key, value)
            });
        }

        fn last(&self, range: Range<keys::Key>) -> Option<(keys::Key, Vec<u8>)> {
            self.0.last(range)
        }
    }

    #[test]
    fn a_page_of_referenced_blocks_looks_at_a_bounded_number_of_rows_however_few_it_finds() {
        let name = |number: u32| BlockHash([&number.to_be_bytes()[..], &[0; 28]].concat().try_into().unwrap());
        let block = |number| BlockRef { count: u64::from(number == 9_999), len: 1, zero_since_ms: 1 };
        let pair = |number| (keys::block(&name(number)), wire::codec::encode(&block(number)));
        let kv = MemoryKv((0..10_000).map(pair).collect());
        let (mut from, mut found, mut pages) = (Some(name(0)), Vec::new(), 0);
        while let Some(start) = from {
            let counting = Counting(&kv, Default::default());
            let (blocks, next) = referenced(&counting, start, BlockHash([255; 32]), 100);
            assert!(counting.1.into_inner() <= 100);
            found.extend(blocks);
            (from, pages) = (next, pages + 1);
        }
        assert_eq!((found, pages), (vec![name(9_999)], 101), "one page after the last full one is empty");
    }

    #[test]
    fn blocks_that_daemons_retain_do_not_hold_up_the_others() {
        let hash = |number: u64| BlockHash([number as u8; 32]);
        let kv = MemoryKv((0..20).map(|ms| (keys::unreferenced(ms, &hash(ms)), Vec::new())).collect());
        let (mut after, mut seen) = (None, Vec::new());
        let rounds: Vec<usize> = (0..4)
            .map(|_| {
                let found = next_unreferenced(&kv, &mut after, 18, 8);
                seen.extend(found.iter().map(|hash| hash.0[0]));
                found.len()
            })
            .collect();
        assert_eq!(rounds, [8, 8, 2, 8], "then from the start again");
        assert_eq!(seen[..18].iter().collect::<BTreeSet<_>>().len(), 18);
        assert_eq!(seen[18..], seen[..8]);
    }
}
