//! The steps from one layout to the next. Pure: metad's leader decides when, and proposes the result.
//!
//! States of a member, and what leads from one to the next:
//!
//! ```text
//!            joined                drained                    removed
//!   (none) ─────────► owner ◄───────────────────► draining ─────────────► (none)
//!                      │  ▲        undrained       │  ▲
//!             taken out│  │returned       taken out│  │returned
//!                      ▼  │                        ▼  │
//!                      out                     draining and out
//! ```
//!
//! A daemon whose disk has failed says so in its heartbeats, and owns nothing until it reports a working disk.
//!
//! Each change of the owners puts the owners before it into [`Layout::older`] (I11), so that the new owner of a range
//! can find what it owes, until [`Layout::finished`].

use super::{Layout, LayoutMember, OlderLayout};
use crate::ids::{BlockdId, Point};

/// Most owner sets that are not final. With so many, joins, returns and drains wait, because each set makes the read of
/// a missing block slower. A lost daemon is taken out even then: no layout becomes final while it counts as a source.
pub const OLDER_MAX: usize = 8;

impl Layout {
    /// Returns the next layout with other owners, or `None` when too many changes are under way.
    fn changed(&self, change: impl FnOnce(&mut Layout)) -> Option<Layout> {
        let next = self.changed_anyway(change);
        (next.placement == self.placement || next.older.len() <= OLDER_MAX).then_some(next)
    }

    fn changed_anyway(&self, change: impl FnOnce(&mut Layout)) -> Layout {
        let mut next = self.clone();
        next.epoch = self.epoch.next();
        change(&mut next);
        next.members.sort_by_key(|member| member.id);
        let owners = |layout: &Layout| layout.owning().map(|member| member.id).collect::<Vec<_>>();
        let (before, after) = (owners(self), owners(&next));
        let has_others =
            |member: &&LayoutMember| next.member(&member.id).is_some_and(|now| now.points != member.points);
        let points: Vec<_> =
            self.members.iter().filter(has_others).map(|member| (member.id, member.points.clone())).collect();
        next.older.iter_mut().for_each(|older| older.keep_points(&points));
        let is_same = |id: &BlockdId| points.iter().all(|(other, _)| other != id);
        if before == after && self.replicas == next.replicas && before.iter().all(is_same) {
            return next;
        }
        next.placement = next.epoch;
        let (placement, replicas) = (self.placement, self.replicas);
        let last = OlderLayout { placement, replicas, owners: before, points };
        // Owners that come back before anything was final are listed once.
        let is_listed = |older: &OlderLayout| {
            (&older.owners, older.replicas, &older.points) == (&last.owners, last.replicas, &last.points)
        };
        if !last.owners.is_empty() && !next.older.iter().any(is_listed) {
            next.older.push(last);
        }
        next
    }

    /// Returns the layout with these members instead: a daemon joins, or comes back at another address.
    #[must_use]
    pub fn with_members(&self, members: Vec<LayoutMember>) -> Option<Layout> {
        self.changed(|next| next.members = members)
    }

    /// Like [`Layout::with_members`], however many changes are under way: for a daemon that can own nothing any more.
    #[must_use]
    pub fn with_members_anyway(&self, members: Vec<LayoutMember>) -> Self {
        self.changed_anyway(|next| next.members = members)
    }

    /// Returns the layout in which a silent daemon is out.
    #[must_use]
    pub fn taken_out(&self, id: &BlockdId) -> Layout {
        self.changed_anyway(|next| set(next, id, |member| member.out = true))
    }

    /// Returns the layout in which a daemon begins or ceases to drain.
    #[must_use]
    pub fn drained(&self, id: &BlockdId, draining: bool) -> Option<Layout> {
        self.changed(|next| {
            set(next, id, |member| {
                member.draining = draining;
                member.drained = false;
            });
        })
    }

    /// Returns the layout in which a daemon has another weight, with these points for it.
    #[must_use]
    pub fn weighed(&self, id: &BlockdId, weight: u32, points: &[Point]) -> Option<Layout> {
        self.changed(|next| {
            set(next, id, |member| (member.weight, member.points) = (weight, points.to_vec()));
        })
    }

    /// Returns the layout in which a draining daemon is known to hold nothing any more. `None` when it is not draining,
    /// or already known to be empty.
    #[must_use]
    pub fn emptied(&self, id: &BlockdId) -> Option<Layout> {
        let is_news = self.is_final() && self.member(id).is_some_and(|member| member.draining && !member.drained);
        is_news.then(|| self.changed_anyway(|next| set(next, id, |member| member.drained = true)))
    }

    /// Returns the layout with the name of a future daemon that takes over what this one owns.
    #[must_use]
    pub fn succeeded_by(&self, id: &BlockdId, name: &str) -> Layout {
        self.changed_anyway(|next| set(next, id, |member| member.successor = Some(name.to_owned())))
    }

    /// Returns the layout with a newcomer in the place of the member of which it is the successor, and that member
    /// draining; `None` when there is no such member, or too many changes are under way. The newcomer's points lie just
    /// before those of the other, which owns nothing any more, so nothing else moves, and the other can be found by its own.
    #[must_use]
    pub fn with_successor(&self, newcomer: &LayoutMember) -> Option<Layout> {
        let leaving = self.members.iter().find(|member| member.successor.as_deref() == Some(&newcomer.name))?;
        let points = leaving.points.iter().map(|point| Point(point.0.wrapping_sub(1))).collect();
        let successor = LayoutMember { points, weight: leaving.weight, ..newcomer.clone() };
        let id = leaving.id;
        self.changed(|next| {
            set(next, &id, |member| (member.draining, member.successor) = (true, None));
            next.members.push(successor);
        })
    }

    /// Returns the layout without a daemon that will not come back.
    #[must_use]
    pub fn removed(&self, id: &BlockdId) -> Layout {
        self.changed_anyway(|next| next.members.retain(|member| member.id != *id))
    }

    /// Returns the layout with another number of replicas.
    #[must_use]
    pub fn with_redundancy(&self, replicas: u8, min_sync: u8) -> Option<Layout> {
        self.changed(|next| (next.replicas, next.min_sync) = (replicas, min_sync))
    }

    /// Returns the final layout: all that is referred to lies where it says, and the earlier owner sets are forgotten.
    #[must_use]
    pub fn finished(&self) -> Layout {
        Layout { epoch: self.epoch.next(), older: Vec::new(), ..self.clone() }
    }

    /// Reports whether a silent daemon may be taken out without asking an operator. Of the owners of any layout that is
    /// not final, at most `replicas - 1` may be gone, and enough must stay to store blocks at all.
    #[must_use]
    pub fn may_take_out(&self, id: &BlockdId) -> bool {
        let Some(member) = self.member(id).filter(|member| !member.out) else { return false };
        let is_gone = |owner: &BlockdId| owner == id || self.member(owner).is_none_or(|member| member.out);
        let spared = self
            .older
            .iter()
            .all(|older| older.owners.iter().filter(|owner| is_gone(owner)).count() < usize::from(older.replicas));
        let left = self.owning().filter(|owner| owner.id != *id).count();
        spared && self.replicas > 1 && (!member.is_owner() || left >= usize::from(self.min_sync.max(1)))
    }
}

impl OlderLayout {
    /// Keeps points that members have no more.
    fn keep_points(&mut self, points: &[(BlockdId, Vec<Point>)]) {
        for (id, had) in points {
            if let Err(at) = self.points.binary_search_by_key(id, |(id, _)| *id) {
                self.points.insert(at, (*id, had.clone()));
            }
        }
    }
}

fn set(layout: &mut Layout, id: &BlockdId, change: impl FnOnce(&mut LayoutMember)) {
    if let Some(member) = layout.members.iter_mut().find(|member| member.id == *id) {
        change(member);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::Ring;
    use super::super::tests::member;
    use super::*;
    use crate::ids::BlockHash;

    fn ring_of(count: u8) -> Layout {
        let members = (1..=count).map(|id| member(id, &format!("z{id}"), &[u128::from(id) * 1000])).collect();
        Layout { replicas: 3, min_sync: 2, members, ..Layout::default() }
    }

    fn id(number: u8) -> BlockdId {
        BlockdId([number; 16])
    }

    /// Guards I11.
    #[test]
    fn owners_before_a_change_are_searched_until_it_is_final() {
        let layout = ring_of(4);
        let out = layout.taken_out(&id(2));
        assert_eq!((out.epoch, out.placement), (layout.epoch.next(), layout.epoch.next()));
        assert_eq!(out.older[0].owners.len(), 4);
        let back = out.changed(|next| super::set(next, &id(2), |member| member.out = false)).unwrap();
        assert_eq!(back.older.len(), 2);
        let out_again = back.taken_out(&id(2));
        assert_eq!(out_again.older.len(), 2, "each owner set is listed once");
        let done = out_again.finished();
        assert!(done.is_final() && done.placement == out_again.placement && done.epoch > out_again.epoch);
    }

    #[test]
    fn no_more_are_taken_out_than_copies_can_bear() {
        let mut layout = ring_of(6);
        for gone in [1, 2] {
            assert!(layout.may_take_out(&id(gone)), "{gone}");
            layout = layout.taken_out(&id(gone));
        }
        assert!(!layout.may_take_out(&id(3)), "a third one could have had the last copy");
        assert!(layout.finished().may_take_out(&id(3)), "all is whole again");
        assert!(!layout.may_take_out(&id(1)), "it is out already");
    }

    #[test]
    fn joins_wait_for_too_many_changes_and_losses_do_not() {
        let mut layout = ring_of(3);
        for number in 4..4 + OLDER_MAX as u8 {
            let newcomer = member(number, "z", &[u128::from(number) * 1000]);
            layout = layout.with_members([layout.members.clone(), vec![newcomer]].concat()).unwrap();
        }
        assert_eq!((layout.older.len(), layout.drained(&id(2), true)), (OLDER_MAX, None));
        assert_eq!(layout.taken_out(&id(2)).older.len(), OLDER_MAX + 1);
        assert!(layout.removed(&id(2)).member(&id(2)).is_none());
    }

    /// Guards I11.
    #[test]
    fn a_successor_takes_over_what_the_other_owned_and_nothing_else_moves() {
        let layout = ring_of(5).succeeded_by(&id(2), "blockd-9");
        assert!(layout.is_final() && layout.with_successor(&member(8, "z8", &[])).is_none());
        let next = layout.with_successor(&member(9, "z9", &[])).unwrap();
        assert!(next.with_successor(&member(9, "z9", &[])).is_none(), "once");
        for point in (0..60).map(|step| u128::from(step as u8) * 100 + 7) {
            let mut hash = BlockHash([0; 32]);
            hash.0[..16].copy_from_slice(&point.to_be_bytes());
            let owners = |layout: &Layout| layout.owners(&hash).iter().map(|owner| owner.id).collect::<Vec<_>>();
            let expected: Vec<_> =
                owners(&layout).into_iter().map(|owner| if owner == id(2) { id(9) } else { owner }).collect();
            assert_eq!(owners(&next), expected);
            let older: Vec<_> = next.older_owners(&hash).iter().map(|owner| owner.id).collect();
            assert_eq!(older.contains(&id(2)), owners(&layout).contains(&id(2)), "what it has is found there");
        }
    }

    #[test]
    fn a_drained_daemon_stays_so_until_it_owns_blocks_again() {
        let draining = ring_of(4).drained(&id(2), true).unwrap();
        assert!(draining.emptied(&id(2)).is_none(), "the others do not have all yet");
        let emptied = draining.finished().emptied(&id(2)).unwrap();
        assert!(emptied.is_final() && emptied.emptied(&id(2)).is_none() && emptied.emptied(&id(1)).is_none());
        assert!(!emptied.drained(&id(2), false).unwrap().member(&id(2)).unwrap().drained);
    }

    /// Guards I11.
    #[test]
    fn owners_before_a_change_of_weight_are_found_by_the_points_that_they_had() {
        let layout = ring_of(5);
        let points = [Point(500), Point(2000), Point(4500)];
        let heavier = layout.weighed(&id(2), 3, &points).unwrap();
        assert_eq!((heavier.placement, heavier.member(&id(2)).unwrap().weight), (layout.epoch.next(), 3));
        // A second change, and others beside it, do not hide the first owners.
        let lighter = heavier.weighed(&id(2), 1, &points[2..]).unwrap();
        let out = lighter.taken_out(&id(4));
        let named = |members: Vec<&LayoutMember>| members.iter().map(|member| member.id).collect::<Vec<_>>();
        for point in (0..600).map(|step| step * 10) {
            let mut hash = BlockHash([0; 32]);
            hash.0[..16].copy_from_slice(&u128::to_be_bytes(point));
            for (now, before) in [(&heavier, &layout), (&lighter, &heavier), (&out, &layout), (&out, &heavier)] {
                let found = [named(now.owners(&hash)), named(now.older_owners(&hash))].concat();
                assert!(named(before.owners(&hash)).iter().all(|owner| found.contains(owner)), "{point}");
            }
        }
        let spans = |layout: &Layout| Ring::new(layout).spans().len();
        assert_eq!((spans(&heavier), spans(&heavier.finished())), (8, 8), "all points cut spans");
        assert_eq!((spans(&lighter), spans(&lighter.finished())), (8, 6));
        let same = layout.weighed(&id(2), 9, &layout.member(&id(2)).unwrap().points).unwrap();
        assert!(same.is_final() && same.placement == layout.placement, "no block has other owners");
        // What a daemon without blocks of its own held before is found, too.
        let drained = layout.drained(&id(2), true).unwrap().weighed(&id(2), 3, &points[..1]).unwrap();
        assert_eq!((drained.older.len(), drained.older[0].points.len()), (1, 1));
    }

    #[test]
    fn enough_stay_to_store_blocks() {
        let layout = ring_of(3).taken_out(&id(1)).finished();
        assert!(!layout.may_take_out(&id(2)), "one daemon cannot sync two copies");
    }
}
