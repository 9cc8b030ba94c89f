//! Which bytes of a mapped page a program has changed, and commits without the others. Pure.

use rangemap::RangeSet;
use std::ops::Range;
use wire::extent::{Extent, ExtentWrite};
use wire::ids::Version;

/// Bytes that are compared at once where nothing has changed.
const STRIDE: usize = 64;

/// Returns the runs of bytes that are alike in both, moved by `offset`, in order.
pub(crate) fn alike(offset: u64, old: &[u8], new: &[u8]) -> Vec<Range<u64>> {
    let len = old.len().min(new.len());
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < len {
        let start = at;
        while at + STRIDE <= len && old[at..at + STRIDE] == new[at..at + STRIDE] {
            at += STRIDE;
        }
        at += old[at..len].iter().zip(&new[at..len]).take_while(|(old, new)| old == new).count();
        if start < at {
            runs.push(offset + start as u64..offset + at as u64);
        }
        at += old[at..len].iter().zip(&new[at..len]).take_while(|(old, new)| old != new).count();
    }
    runs
}

/// Returns these writes without what they write in the `unchanged` parts.
pub(crate) fn without(writes: &[ExtentWrite], unchanged: &RangeSet<u64>) -> Vec<ExtentWrite> {
    let mut rest = Vec::with_capacity(writes.len());
    for ExtentWrite { file_off, len, source } in writes {
        let whole = Extent { file_off: *file_off, len: *len, source: source.clone(), version: Version(0) };
        for part in unchanged.gaps(&whole.range()) {
            let Extent { file_off, len, source, .. } = whole.slice(&part);
            rest.push(ExtentWrite { file_off, len, source });
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::dirty::lay;
    use proptest::prelude::*;
    use wire::extent::Source;
    use wire::ids::BlockHash;

    proptest! {
        /// Guards I6.
        #[test]
        fn a_commit_has_exactly_the_bytes_that_differ_and_those_that_did_not_come_in_pages(
            old in proptest::collection::vec(0_u8..3, 300),
            changes in proptest::collection::vec((0_usize..300, 0_u8..3), 0..40),
            cuts in proptest::collection::btree_set(1_usize..300, 0..4),
            mapped in (0_usize..300, 0_usize..300),
        ) {
            const AT: u64 = 4096;
            let mut new = old.clone();
            changes.iter().for_each(|(at, byte)| new[*at] = *byte);
            let mapped = mapped.0.min(mapped.1)..mapped.0.max(mapped.1);
            let bounds: Vec<usize> = std::iter::once(0).chain(cuts).chain(std::iter::once(300)).collect();
            let writes: Vec<ExtentWrite> = bounds.windows(2).map(|part| ExtentWrite {
                file_off: AT + part[0] as u64,
                len: (part[1] - part[0]) as u64,
                source: Source::Inline(new[part[0]..part[1]].to_vec()),
            }).collect();
            let unchanged = alike(AT + mapped.start as u64, &old[mapped.clone()], &new[mapped.clone()]);
            let rest = without(&writes, &unchanged.into_iter().collect());
            let mut written = vec![u8::MAX; 300];
            let mut end = 0;
            for write in &rest {
                let Source::Inline(bytes) = &write.source else { panic!("inline") };
                prop_assert!(write.file_off >= end && bytes.len() as u64 == write.len);
                end = write.file_off + write.len;
                lay(write.file_off, bytes, AT, &mut written);
            }
            for at in 0..300 {
                let kept = !mapped.contains(&at) || old[at] != new[at];
                prop_assert_eq!(written[at], if kept { new[at] } else { u8::MAX }, "at {}", at);
            }
        }
    }

    #[test]
    fn what_is_left_of_a_block_is_where_it_was_in_it() {
        let source = Source::block(BlockHash([7; 32]), 5000, 100);
        let writes = [ExtentWrite { file_off: 8192, len: 4096, source }];
        let unchanged = RangeSet::from_iter([8192..8200, 8300..12_288]);
        let rest = without(&writes, &unchanged);
        let left = ExtentWrite { file_off: 8200, len: 100, source: Source::block(BlockHash([7; 32]), 5000, 108) };
        assert_eq!(rest, [left]);
        assert!(without(&writes, &std::iter::once(8192..12_288).collect()).is_empty());
    }
}
