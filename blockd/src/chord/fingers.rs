//! The finger table (Stoica §4.3, §4.4 "fix_fingers"): finger i is the successor of `me + 2^i`.
//!
//! Fingers are hints: they shorten lookups and have no part in correctness. One that does not answer is simply
//! forgotten.

use wire::ids::Point;
use wire::message::block::Member;

/// Bits of a point.
pub(crate) const POINT_BITS: usize = 128;

/// Fingers of one member.
#[derive(Debug)]
pub struct Fingers {
    owner: Point,
    entries: [Option<Member>; POINT_BITS],
    /// The finger to be repaired next. The order is from the farthest down: the first few matter most.
    next: usize,
}

impl Fingers {
    pub(crate) fn new(owner: Point) -> Self {
        Self { owner, entries: [None; POINT_BITS], next: POINT_BITS - 1 }
    }

    /// The point whose successor finger `index` is.
    #[must_use]
    pub fn target(&self, index: usize) -> Point {
        Point(self.owner.0.wrapping_add(1 << index))
    }

    /// All known fingers.
    pub fn known(&self) -> impl Iterator<Item = Member> {
        self.entries.iter().flatten().copied()
    }

    /// Removes a daemon that does not answer.
    pub(crate) fn forget(&mut self, dead: Point) {
        for entry in &mut self.entries {
            entry.take_if(|finger| finger.point == dead);
        }
    }

    /// Sets a finger to the member that a lookup has found.
    pub(super) fn set(&mut self, index: usize, member: Member) {
        self.entries[index] = Some(member);
    }

    /// The next finger to repair. Those up to the first successor need no lookup: with n members about log2 n remain.
    pub(super) fn turn(&mut self, first: Point) -> usize {
        let index = self.next;
        let nearest = index == 0 || self.target(index - 1).in_arc(self.owner, first);
        self.next = if nearest { POINT_BITS - 1 } else { index - 1 };
        index
    }
}
