//! Joining the ring (Zave §IV.B): find the member that is to precede this one, fetch its *whole* successor list, and
//! become a member in one step by adopting it. Until then this daemon answers no question about the ring.
//!
//! The predecessor is found by a lookup of one's own point: it is the member that answers "my successor is
//! responsible". When none of the daemons in the layout that answer is a member, the one with the lowest point among
//! them starts the ring, and the others join it. A daemon that nobody answers waits: it is more likely cut off than the
//! first.

use super::{Action, Chord, Operation};
use wire::ids::Point;
use wire::message::block::{ChordReply, ChordRequest, Member};

/// A lookup that takes longer is going in circles.
const HOPS_MAX: u32 = 256;

/// State of joining.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The known daemon to be asked next.
    next: usize,
    /// The lowest point among daemons that are alive but not members either.
    lowest_waiting: Option<Point>,
    /// Whether a member was met in this round, or a daemon that may be one.
    pub(crate) ring_met: bool,
}

impl Chord {
    pub(crate) fn try_join(&mut self, actions: &mut Vec<Action>) {
        let Some(known) = &self.known else { return };
        if let Some(&asked) = known.get(self.join.next) {
            self.join.next += 1;
            let request = ChordRequest::Step { point: self.me.point };
            self.begin(Operation::JoinFind { asked, hops: 1 }, asked, request, actions);
            return;
        }
        // All known daemons were asked.
        let nobody = known.is_empty();
        let progress = std::mem::take(&mut self.join);
        let first = progress.lowest_waiting.is_some_and(|lowest| self.me.point < lowest);
        if nobody || (first && !progress.ring_met) {
            self.adopt([], actions);
            actions.push(Action::Joined);
        }
    }

    pub(crate) fn join_found(&mut self, asked: Member, hops: u32, reply: ChordReply, actions: &mut Vec<Action>) {
        self.join.ring_met = true;
        match reply {
            ChordReply::Responsible(_) => {
                let operation = Operation::JoinFetch { predecessor: asked };
                self.begin(operation, asked, ChordRequest::GetState, actions);
            }
            ChordReply::Next(next) if hops < HOPS_MAX && next.point != self.me.point => {
                let request = ChordRequest::Step { point: self.me.point };
                self.begin(Operation::JoinFind { asked: next, hops: hops + 1 }, next, request, actions);
            }
            _ => {}
        }
    }

    pub(crate) fn join_fetched(&mut self, asked: Member, reply: ChordReply, actions: &mut Vec<Action>) {
        let ChordReply::State { me, successors, .. } = reply else { return };
        // The ring may still list this daemon from an earlier life.
        let list: Vec<Member> = successors.into_iter().filter(|entry| entry.point != self.me.point).collect();
        let first = list.first().copied().unwrap_or(me);
        if me.point != asked.point || !Self::between(me.point, self.me.point, first.point) {
            return; // others joined meanwhile: look again
        }
        // A list that holds nothing but its owner is a ring of one: the owner is the successor.
        let list = if list.is_empty() { vec![me] } else { list };
        self.predecessor = Some(me);
        self.adopt(list, actions);
        self.join = Progress::default();
        actions.push(Action::Joined);
    }

    pub(crate) fn join_failed(&mut self, asked: Member, hops: u32, outside: bool) {
        // Only daemons of the layout count: a dead member that a live one named is the ring's own affair.
        if outside && hops == 1 {
            let lowest = self.join.lowest_waiting.get_or_insert(asked.point);
            *lowest = asked.point.min(*lowest);
        }
    }
}
