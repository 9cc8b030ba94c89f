//! Which bytes of a mapped page a program has changed. Pure.

use std::ops::Range;

/// Bytes that are compared at once where nothing has changed.
const STRIDE: usize = 64;

/// Returns the runs of bytes of `new` that are not the same in `old`, in order. Both are of one length.
pub(crate) fn changed(old: &[u8], new: &[u8]) -> Vec<Range<usize>> {
    debug_assert_eq!(old.len(), new.len());
    let len = old.len().min(new.len());
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < len {
        while at + STRIDE <= len && old[at..at + STRIDE] == new[at..at + STRIDE] {
            at += STRIDE;
        }
        at += old[at..len].iter().zip(&new[at..len]).take_while(|(old, new)| old == new).count();
        let start = at;
        at += old[at..len].iter().zip(&new[at..len]).take_while(|(old, new)| old != new).count();
        if start < at {
            runs.push(start..at);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Guards I6.
        #[test]
        fn the_runs_have_exactly_the_bytes_that_differ(
            old in proptest::collection::vec(0_u8..3, 300),
            changes in proptest::collection::vec((0_usize..300, 0_u8..3), 0..40),
        ) {
            let mut new = old.clone();
            changes.iter().for_each(|(at, byte)| new[*at] = *byte);
            let runs = changed(&old, &new);
            prop_assert!(runs.is_sorted_by(|one, next| one.end < next.start), "{:?}", runs);
            for at in 0..300 {
                let within = runs.iter().any(|run| run.contains(&at));
                prop_assert_eq!(within, old[at] != new[at], "at {}", at);
            }
        }
    }
}
