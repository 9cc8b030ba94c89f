//! Judges whether the copies of blocks are where they belong. Pure.

use std::collections::BTreeSet;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::layout::ring::Ring;

/// What is known of a block's copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copies {
    /// The block.
    pub hash: BlockHash,
    /// Daemons that have an intact copy.
    pub holders: BTreeSet<BlockdId>,
}

/// State of a block's copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Every owner that could be asked has it.
    Whole,
    /// Owners lack it, but there are enough copies: it is on its way.
    Moving,
    /// These owners lack it, and a daemon has it.
    Lacking {
        /// Owners without a copy.
        owners: Vec<BlockdId>,
        /// A daemon that has a copy.
        from: BlockdId,
        /// No owner has a copy.
        misplaced: bool,
    },
    /// No daemon that could be asked has it, and some could not be asked.
    Unavailable,
    /// No daemon has it.
    Missing,
}

/// Judges by a layout; `away` are daemons that could not be asked.
pub fn judge(layout: &Layout, ring: &Ring, copies: &Copies, away: &BTreeSet<BlockdId>) -> State {
    let Copies { hash, holders } = copies;
    let owners: Vec<BlockdId> = ring.owners(hash.point()).into_iter().map(|index| layout.members[index].id).collect();
    let lacking: Vec<BlockdId> =
        owners.iter().filter(|owner| !holders.contains(owner) && !away.contains(owner)).copied().collect();
    let Some(any) = holders.first().copied() else {
        return if away.is_empty() { State::Missing } else { State::Unavailable };
    };
    if lacking.is_empty() {
        return State::Whole;
    }
    if !layout.is_final() && holders.len() >= usize::from(layout.replicas) {
        return State::Moving;
    }
    let owner = owners.iter().find(|owner| holders.contains(owner)).copied();
    State::Lacking { owners: lacking, from: owner.unwrap_or(any), misplaced: owner.is_none() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::{LayoutEpoch, Point};
    use wire::layout::{LayoutMember, OlderLayout};

    fn layout(replicas: u8) -> Layout {
        let member = |id: u8| LayoutMember {
            points: vec![Point(u128::from(id) << 120)],
            ..LayoutMember::new(BlockdId([id; 16]), format!("b{id}"), ([127, 0, 0, 1], 1).into(), format!("z{id}"))
        };
        Layout { replicas, min_sync: 1, members: (1..=3).map(member).collect(), ..Layout::default() }
    }

    fn judged(layout: &Layout, holders: &[u8], away: &[u8]) -> State {
        let ids = |list: &[u8]| list.iter().map(|id| BlockdId([*id; 16])).collect::<BTreeSet<_>>();
        let copies = Copies { hash: BlockHash([0; 32]), holders: ids(holders) };
        judge(layout, &Ring::new(layout), &copies, &ids(away))
    }

    #[test]
    fn a_block_belongs_to_its_owners_and_is_missing_only_when_all_daemons_lack_it() {
        let layout = layout(2);
        let [one, two, three] = [1, 2, 3].map(|id| BlockdId([id; 16]));
        assert_eq!(judged(&layout, &[1, 2], &[]), State::Whole);
        assert_eq!(judged(&layout, &[1, 2, 3], &[]), State::Whole, "a copy too many harms nobody");
        assert_eq!(judged(&layout, &[1], &[2]), State::Whole, "nothing is known of the other one");
        let lacking =
            |owners: &[BlockdId], from, misplaced| State::Lacking { owners: owners.to_vec(), from, misplaced };
        assert_eq!(judged(&layout, &[2], &[]), lacking(&[one], two, false));
        assert_eq!(judged(&layout, &[2, 3], &[]), lacking(&[one], two, false));
        assert_eq!(judged(&layout, &[3], &[]), lacking(&[one, two], three, true));
        assert_eq!(judged(&layout, &[], &[]), State::Missing);
        assert_eq!(judged(&layout, &[], &[3]), State::Unavailable);
    }

    #[test]
    fn blocks_with_enough_copies_are_no_fault_while_they_move() {
        let mut layout = layout(2);
        let owners = vec![BlockdId([2; 16]), BlockdId([3; 16])];
        layout.older = vec![OlderLayout { placement: LayoutEpoch(1), replicas: 2, owners, points: Vec::new() }];
        assert_eq!(judged(&layout, &[2, 3], &[]), State::Moving);
        assert!(matches!(judged(&layout, &[3], &[]), State::Lacking { misplaced: true, .. }));
    }
}
