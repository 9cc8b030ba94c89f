//! Which owners a put went past.

use crate::replicate::Outcome;
use wire::ids::BlockdId;

/// Returns the owners that a put went past, for `me` to note: those behind it in the chain that did not take the block,
/// and for a client's put those that its chain leaves out. Where one behind answered, it notes those behind itself.
///
/// A daemon without a copy could not send one, so it notes nothing. A full one to which the client came notes itself and
/// the others if somebody has a copy: it fetches that once there is room.
pub(crate) fn missed(
    me: BlockdId,
    owners: &[BlockdId],
    behind: &[BlockdId],
    copies: &Outcome,
    is_of_client: bool,
) -> Vec<BlockdId> {
    let may_get_it = is_of_client && owners.contains(&me) && copies.full.contains(&me) && !copies.synced.is_empty();
    if !copies.synced.contains(&me) && !may_get_it {
        return Vec::new();
    }
    let one_answered = behind.iter().any(|id| copies.synced.contains(id));
    let is_missed = |id: &BlockdId| {
        let refused = copies.full.contains(id) || copies.failed.iter().any(|(failed, _)| failed == id);
        let silent = !one_answered && behind.contains(id);
        let left_out = is_of_client && *id != me && !behind.contains(id);
        refused || silent || left_out
    };
    owners.iter().filter(|id| !copies.synced.contains(id) && is_missed(id)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which daemon of the chain 1, 2, 3 notes what, with the outcome that it learns.
    #[test]
    fn each_daemon_of_a_chain_notes_the_owners_that_nobody_behind_it_notes() {
        let [one, two, three, stranger] = [1, 2, 3, 9].map(|id| BlockdId([id; 16]));
        let owners = [one, two, three];
        let outcome = |synced: &[BlockdId], failed: &[BlockdId], full: &[BlockdId]| Outcome {
            synced: synced.to_vec(),
            failed: failed.iter().map(|id| (*id, String::new())).collect(),
            full: full.to_vec(),
            newer: None,
        };
        let first = |copies: &Outcome| missed(one, &owners, &[two, three], copies, true);
        assert_eq!(first(&outcome(&owners, &[], &[])), []);
        assert_eq!(first(&outcome(&[one, three], &[two], &[])), [two]);
        assert_eq!(first(&outcome(&[one, two], &[], &[three])), [three]);
        assert_eq!(first(&outcome(&[one, two], &[], &[])), [], "the second one knows about the third");
        assert_eq!(first(&outcome(&[one], &[], &[])), [two, three], "nobody behind it has answered");
        assert_eq!(first(&outcome(&[two, three], &[one], &[])), [], "its disk has failed");
        assert_eq!(first(&outcome(&[two, three], &[], &[one])), [one], "it had no room");
        assert_eq!(first(&outcome(&[], &[], &[one, two, three])), [], "there is nothing to fetch");
        // The second one is asked by the first, and knows nothing of it.
        let second = |copies: &Outcome| missed(two, &owners, &[three], copies, false);
        assert_eq!(second(&outcome(&[two], &[], &[])), [three]);
        assert_eq!(second(&outcome(&[two], &[three], &[])), [three]);
        assert_eq!(second(&outcome(&[two, three], &[], &[])), []);
        assert_eq!(second(&outcome(&[three], &[], &[two])), [], "the first one notes it");
        // A client may leave owners out, and name daemons that own nothing of the block.
        assert_eq!(missed(two, &owners, &[three], &outcome(&[two, three], &[], &[]), true), [one]);
        assert_eq!(missed(two, &owners, &[stranger], &outcome(&[two], &[stranger], &[]), true), [one, three]);
        assert_eq!(missed(stranger, &owners, &[two], &outcome(&[two], &[], &[stranger]), true), []);
    }
}
