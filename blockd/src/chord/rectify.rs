//! Rectification of the predecessor (Zave §IV.D).
//!
//! A member is notified by another that believes itself to be the predecessor. A candidate that lies closer than the
//! present predecessor replaces it. Otherwise the present one is asked first, and replaced only when it is dead. The
//! original protocol clears a silent predecessor in a task of its own, and then knows none for a while.

use super::{Action, Chord, Operation};
use wire::message::block::{ChordRequest, Member};

impl Chord {
    /// Remembers the candidate until no operation is under way. The closest one wins; those that are passed over
    /// announce themselves again in their next round.
    pub(crate) fn notified(&mut self, candidate: Member) {
        if candidate.point == self.me.point {
            return;
        }
        let closer = self.notified.is_none_or(|waiting| {
            waiting.point == candidate.point || Self::between(waiting.point, candidate.point, self.me.point)
        });
        if closer {
            self.notified = Some(candidate);
        }
    }

    pub(crate) fn rectify(&mut self, actions: &mut Vec<Action>) {
        let Some(candidate) = self.notified.take() else { return };
        match self.predecessor {
            Some(present) if present.point == candidate.point => self.predecessor = Some(candidate),
            Some(present) if !Self::between(present.point, candidate.point, self.me.point) => {
                self.ask_predecessor(present, candidate, 1, actions);
            }
            _ => self.predecessor = Some(candidate),
        }
    }

    fn ask_predecessor(&mut self, present: Member, candidate: Member, attempt: u32, actions: &mut Vec<Action>) {
        // GetState rather than Ping: a daemon that was started again and has not joined is not a predecessor.
        let operation = Operation::Predecessor { present, candidate, attempt };
        self.begin(operation, present, ChordRequest::GetState, actions);
    }

    pub(crate) fn predecessor_failed(
        &mut self,
        present: Member,
        candidate: Member,
        attempt: u32,
        outside: bool,
        actions: &mut Vec<Action>,
    ) {
        if attempt < self.options.attempts && !outside {
            self.ask_predecessor(present, candidate, attempt + 1, actions);
        } else {
            self.fingers.forget(present.point);
            self.predecessor = Some(candidate);
        }
    }
}
