//! Stabilization (Zave §IV.C, "StabilizeFromSuccessor" and "StabilizeFromPredecessor").
//!
//! A member asks its first successor for list and predecessor, and adopts that list behind the successor. If the
//! successor's predecessor lies closer, it is asked in turn, and its list is adopted only when it has answered: the
//! original protocol adopts a candidate that may be dead, and so loses the ring. At the end the first successor is
//! notified of this member (rectify).
//!
//! A successor that is dead is dropped from the list, and the next one is asked at once.

use super::{Action, Chord, Operation};
use wire::message::block::{ChordReply, ChordRequest, Member};

/// Every this many rounds, a daemon of the layout that lies before the first successor is tried as a candidate, which
/// joins rings that were cut apart. This is rare, because most such daemons are dead.
const OFFER_ROUNDS: u64 = 4;

impl Chord {
    pub(crate) fn stabilize(&mut self, actions: &mut Vec<Action>) {
        let Some(first) = self.successors().first().copied() else { return };
        if first.point != self.me.point {
            self.ask_successor(first, 1, actions);
        } else if let Some(candidate) = self.predecessor.filter(|member| member.point != self.me.point) {
            // Alone, a member is its own successor: the daemon that announced itself as predecessor is the candidate.
            self.begin(Operation::Candidate { candidate }, candidate, ChordRequest::GetState, actions);
        } else {
            self.try_known(actions);
        }
    }

    fn ask_successor(&mut self, successor: Member, attempt: u32, actions: &mut Vec<Action>) {
        self.begin(Operation::Successor { successor, attempt }, successor, ChordRequest::GetState, actions);
    }

    pub(crate) fn successor_replied(&mut self, asked: Member, reply: ChordReply, actions: &mut Vec<Action>) {
        let ChordReply::State { me: successor, predecessor, successors } = reply else { return };
        if successor.point != asked.point {
            // Another daemon answers at that address: the member is gone.
            self.drop_successor(asked, actions);
            return;
        }
        self.adopt(std::iter::once(successor).chain(successors), actions);
        let closer = predecessor.filter(|entry| Self::between(self.me.point, entry.point, successor.point));
        match closer {
            Some(candidate) => {
                self.begin(Operation::Candidate { candidate }, candidate, ChordRequest::GetState, actions);
            }
            None if self.rounds.is_multiple_of(OFFER_ROUNDS) && self.try_known(actions) => {}
            None => self.notify_successor(actions),
        }
    }

    pub(crate) fn candidate_replied(&mut self, asked: Member, reply: ChordReply, actions: &mut Vec<Action>) {
        let ChordReply::State { me: candidate, successors, .. } = reply else { return };
        let first = self.successors().first().copied().unwrap_or(self.me);
        if candidate.point == asked.point && Self::between(self.me.point, candidate.point, first.point) {
            self.adopt(std::iter::once(candidate).chain(successors), actions);
        }
        self.notify_successor(actions);
    }

    pub(crate) fn candidate_failed(&mut self, candidate: Member, actions: &mut Vec<Action>) {
        let alone = self.successors().first().is_some_and(|first| first.point == self.me.point);
        if alone && self.predecessor.is_some_and(|present| present.point == candidate.point) {
            self.predecessor = None;
        }
        self.notify_successor(actions);
    }

    pub(crate) fn successor_failed(
        &mut self,
        successor: Member,
        attempt: u32,
        outside: bool,
        actions: &mut Vec<Action>,
    ) {
        // A daemon that answers but is no member has been started again: the member it was is gone.
        if attempt < self.options.attempts && !outside {
            self.ask_successor(successor, attempt + 1, actions);
        } else {
            self.drop_successor(successor, actions);
        }
    }

    fn drop_successor(&mut self, dead: Member, actions: &mut Vec<Action>) {
        self.fingers.forget(dead.point);
        let rest: Vec<Member> = self.successors().iter().copied().filter(|entry| entry.point != dead.point).collect();
        self.adopt(rest, actions);
        self.stabilize(actions);
    }

    pub(crate) fn notify_successor(&mut self, actions: &mut Vec<Action>) {
        if let Some(first) = self.successors().first().copied().filter(|first| first.point != self.me.point) {
            self.ask(first, ChordRequest::Notify { candidate: self.me }, actions);
        }
    }

    /// Tries one of the layout's daemons that lie before the first successor, a different one each time.
    fn try_known(&mut self, actions: &mut Vec<Action>) -> bool {
        let first = self.successors().first().copied().unwrap_or(self.me);
        let mut closer: Vec<Member> = self.known.iter().flatten().copied().collect();
        closer.retain(|known| Self::between(self.me.point, known.point, first.point));
        closer.sort_by_key(|known| self.me.point.distance_to(known.point));
        let turn = (self.rounds / OFFER_ROUNDS) as usize;
        let Some(&candidate) = turn.checked_rem(closer.len()).and_then(|index| closer.get(index)) else {
            return false;
        };
        self.begin(Operation::Candidate { candidate }, candidate, ChordRequest::GetState, actions);
        true
    }
}
