//! Which bytes of a mapped page a program has changed. Pure.
//!
//! A program that writes a text anew finds every few bytes one that was there already. Each run would be an extent of its
//! own, so in a page with many runs those are joined between which little is the same. What they are joined over is then
//! written, too: its value is what the program has seen, and if others have changed it since, a needless conflict copy is
//! made. So they are joined only while nobody else is known to change the file.

use std::ops::Range;

/// Bytes that are compared at once where nothing has changed.
const STRIDE: usize = 64;

/// Pages are of this size. It matters only for how many runs there may be.
const PAGE: usize = 4096;
/// A page with more runs than this has some joined.
const RUNS_MAX: usize = 128;
/// They are joined over less than this many bytes.
const GAP_BYTES: usize = 64;

/// Returns the runs of bytes of `new` that are not the same in `old`, in order, some of them joined where there are many,
/// unless it must be `exact`. Both are of one length.
pub(crate) fn changed(old: &[u8], new: &[u8], exact: bool) -> Vec<Range<usize>> {
    let runs = differing(old, new);
    if exact || runs.len() <= RUNS_MAX {
        return runs;
    }
    let mut joined: Vec<Range<usize>> = Vec::new();
    for page in runs.chunk_by(|one, next| one.start / PAGE == next.start / PAGE) {
        let first = joined.len();
        for run in page {
            match joined[first..].last_mut().filter(|last| run.start - last.end < GAP_BYTES) {
                Some(last) if page.len() > RUNS_MAX => last.end = run.end,
                _ => joined.push(run.clone()),
            }
        }
    }
    joined
}

/// Returns the runs of bytes that are not the same, in order.
fn differing(old: &[u8], new: &[u8]) -> Vec<Range<usize>> {
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
            let runs = differing(&old, &new);
            prop_assert!(runs.is_sorted_by(|one, next| one.end < next.start), "{:?}", runs);
            for at in 0..300 {
                let within = runs.iter().any(|run| run.contains(&at));
                prop_assert_eq!(within, old[at] != new[at], "at {}", at);
            }
            prop_assert_eq!(&changed(&old, &new, true), &runs);
            let joined = changed(&old, &new, false);
            if runs.len() <= RUNS_MAX {
                prop_assert_eq!(&joined, &runs);
            }
            prop_assert!(runs.iter().all(|run| joined.iter().any(|over| over.start <= run.start && run.end <= over.end)));
            prop_assert!(joined.is_sorted_by(|one, next| one.end < next.start), "{:?}", joined);
            let ends_with_runs = joined.iter().all(|over| {
                runs.iter().any(|run| run.start == over.start) && runs.iter().any(|run| run.end == over.end)
            });
            prop_assert!(ends_with_runs, "{:?}", joined);
        }
    }

    #[test]
    fn a_page_that_is_written_anew_with_a_few_bytes_as_before_is_few_runs_and_other_pages_are_compared_to_the_byte() {
        let old = vec![b'.'; 3 * PAGE];
        let is_changed = |at: usize| match at / PAGE {
            0 => !at.is_multiple_of(7),
            1 => at % 512 == 100,
            _ => at % 64 < 16,
        };
        let new: Vec<u8> = (0..3 * PAGE).map(|at| if is_changed(at) { b'x' } else { b'.' }).collect();
        let runs = changed(&old, &new, false);
        let of = |page: usize| runs.iter().filter(|run| run.start / PAGE == page).cloned().collect::<Vec<_>>();
        assert_eq!(of(0), std::slice::from_ref(&(1..PAGE - 1)), "joined");
        let few: Vec<Range<usize>> = (0..8).map(|run| PAGE + run * 512 + 100..PAGE + run * 512 + 101).collect();
        assert_eq!(of(1), few, "few");
        assert_eq!(of(2).len(), 64, "they are not so many");
        assert_eq!(changed(&old, &new, true).len(), 585 + 8 + 64, "others change the file");
    }
}
