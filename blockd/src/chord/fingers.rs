//! The finger table (Stoica §4.3, §4.4 "fix_fingers"): finger i is the successor of `me + 2^i`.
//!
//! Fingers are hints: they shorten lookups and have no part in correctness, so their repair has a question of its own
//! beside the one operation, and a finger that does not answer is simply forgotten.

use super::lookup::{Lookup, Outcome};
use super::{Action, Chord};
use wire::ids::Point;
use wire::message::block::{ChordReply, Member};

/// Bits of a point.
pub(crate) const BITS: usize = 128;

/// Fingers of one member.
#[derive(Debug)]
pub struct Fingers {
    owner: Point,
    entries: [Option<Member>; BITS],
    /// Which one is repaired next. From the farthest down: the first few of them matter most.
    next: usize,
}

impl Fingers {
    pub(crate) fn new(owner: Point) -> Self {
        Self { owner, entries: [None; BITS], next: BITS - 1 }
    }

    /// The point whose successor finger `index` is.
    #[must_use]
    pub fn target(&self, index: usize) -> Point {
        Point(self.owner.0.wrapping_add(1 << index))
    }

    /// All that are known.
    pub fn known(&self) -> impl Iterator<Item = Member> {
        self.entries.iter().flatten().copied()
    }

    /// A daemon that does not answer leads nowhere.
    pub(crate) fn forget(&mut self, dead: Point) {
        for entry in &mut self.entries {
            entry.take_if(|finger| finger.point == dead);
        }
    }

    /// The next finger to repair. Those up to the first successor need no lookup: with n members about log2 n remain.
    fn turn(&mut self, first: Point) -> usize {
        let index = self.next;
        let nearest = index == 0 || self.target(index - 1).in_arc(self.owner, first);
        self.next = if nearest { BITS - 1 } else { index - 1 };
        index
    }
}

impl Chord {
    pub(crate) fn fix_finger(&mut self, actions: &mut Vec<Action>) {
        let Some(first) = self.successors().first().copied().filter(|first| first.point != self.me.point) else {
            return; // alone
        };
        let index = self.fingers.turn(first.point);
        let lookup = Lookup::new(self.fingers.target(index));
        self.advance_finger(index, lookup, actions);
    }

    /// Takes the lookup as far as local knowledge goes, then asks.
    fn advance_finger(&mut self, index: usize, mut lookup: Lookup, actions: &mut Vec<Action>) {
        match lookup.advance(self) {
            Outcome::Found(member) => self.fingers.entries[index] = Some(member),
            Outcome::Lost => {}
            Outcome::Ask(to, request) => {
                let query = self.ask(to, request, actions);
                self.finger_query = Some((query, index, lookup));
            }
        }
    }

    pub(crate) fn finger_replied(
        &mut self,
        index: usize,
        mut lookup: Lookup,
        reply: ChordReply,
        actions: &mut Vec<Action>,
    ) {
        lookup.replied(reply);
        self.advance_finger(index, lookup, actions);
    }

    pub(crate) fn finger_failed(&mut self, index: usize, mut lookup: Lookup, actions: &mut Vec<Action>) {
        if let Some(dead) = lookup.failed() {
            self.fingers.forget(dead.point);
        }
        self.advance_finger(index, lookup, actions);
    }
}
