//! Digests of the good blocks in any part of the ring, stored with the index: a sum for each prefix of names, so that
//! two daemons find where they differ without reading a disk or walking their indexes.

use wire::ids::{BlockHash, Point};
use wire::layout::ring::Span;
use wire::message::block::Digest;

/// Bits of a name that choose its sum. The rest of a span, which covers only a part of a prefix, is added up from the
/// index, a few thousand entries on the largest disks; all sums take a quarter of a megabyte.
const PREFIX_BITS: u32 = 13;

/// One sum per prefix.
pub(super) struct Digests(Box<[Digest]>);

impl Default for Digests {
    fn default() -> Self {
        Self(vec![Digest::default(); 1 << PREFIX_BITS].into())
    }
}

fn prefix(point: Point) -> usize {
    (point.0 >> (u128::BITS - PREFIX_BITS)) as usize
}

fn first_of(prefix: usize) -> Point {
    Point((prefix as u128) << (u128::BITS - PREFIX_BITS))
}

fn last_of(prefix: usize) -> Point {
    Point(first_of(prefix).0 | (u128::MAX >> PREFIX_BITS))
}

impl Digests {
    /// Adds a block.
    pub(super) fn add(&mut self, hash: &BlockHash, len: u32) {
        self.0[prefix(hash.point())].add(hash, len);
    }

    /// Removes a block.
    pub(super) fn remove(&mut self, hash: &BlockHash, len: u32) {
        self.0[prefix(hash.point())].remove(hash, len);
    }

    /// How many blocks there are.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|digest| digest.count).sum()
    }

    /// The digest of a span: whole prefixes from their sums; `add_good` adds the good blocks of a part of one.
    pub(super) fn of(&self, span: Span, add_good: impl Fn(Span, &mut Digest)) -> Digest {
        let mut digest = Digest::default();
        if span.first > span.last {
            return digest;
        }
        for prefix in prefix(span.first)..=prefix(span.last) {
            let covered = Span { first: span.first.max(first_of(prefix)), last: span.last.min(last_of(prefix)) };
            if (covered.first, covered.last) == (first_of(prefix), last_of(prefix)) {
                digest.join(&self.0[prefix]);
            } else if self.0[prefix].count > 0 {
                add_good(covered, &mut digest);
            }
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_span_sums_up_its_good_blocks(
            blocks in prop::collection::vec((any::<[u8; 32]>(), 1_u32..100, any::<bool>()), 0..200),
            first in any::<u128>(),
            last in any::<u128>(),
        ) {
            let mut digests = Digests::default();
            let mut index = BTreeMap::new();
            let mut expected = Digest::default();
            let span = Span { first: Point(first.min(last)), last: Point(first.max(last)) };
            for (hash, len, bad) in blocks {
                let hash = BlockHash(hash);
                if index.insert(hash, (len, bad)).is_some() {
                    return Ok(());
                }
                digests.add(&hash, len);
                if bad {
                    digests.remove(&hash, len);
                } else if span.contains(&hash) {
                    expected.add(&hash, len);
                }
            }
            let digest = digests.of(span, |part, digest| {
                let good = index.range(part.first_hash()..=part.last_hash()).filter(|(_, (_, bad))| !bad);
                good.for_each(|(hash, (len, _))| digest.add(hash, *len));
            });
            prop_assert_eq!(digest, expected);
        }
    }
}
