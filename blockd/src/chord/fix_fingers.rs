//! The repair of fingers (Stoica §4.4, "fix_fingers"). It has a question of its own beside the one operation.

use super::lookup::{Lookup, Outcome};
use super::{Action, Chord};
use wire::message::block::ChordReply;

impl Chord {
    pub(crate) fn fix_finger(&mut self, actions: &mut Vec<Action>) {
        let Some(first) = self.successors().first().copied().filter(|first| first.point != self.me.point) else {
            return; // alone
        };
        let index = self.fingers.turn(first.point);
        let lookup = Lookup::new(self.fingers.target(index));
        self.advance_finger(index, lookup, actions);
    }

    /// Advances the lookup by local knowledge, then asks.
    fn advance_finger(&mut self, index: usize, mut lookup: Lookup, actions: &mut Vec<Action>) {
        match lookup.advance(self) {
            Outcome::Found(member) => self.fingers.set(index, member),
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
