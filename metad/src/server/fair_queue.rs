//! A queue in which sessions take turns: one that sends much waits behind itself, not others behind it. Pure.

use std::collections::{HashMap, VecDeque};
use wire::ids::SessionId;

/// What waits, by session. The items of one session keep their order.
pub(super) struct FairQueue<T> {
    waiting: HashMap<SessionId, VecDeque<T>>,
    /// Sessions for which something waits, in the order of their turns.
    order: VecDeque<SessionId>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> FairQueue<T> {
    /// Queues an item of this session.
    pub fn push(&mut self, session: SessionId, item: T) {
        let queued = self.waiting.entry(session).or_insert_with(|| {
            self.order.push_back(session);
            VecDeque::new()
        });
        queued.push_back(item);
    }

    /// Returns the item whose turn is next.
    pub fn peek(&self) -> Option<&T> {
        self.waiting.get(self.order.front()?)?.front()
    }

    /// Takes the item whose turn is next. The session's following item waits until all others have had a turn.
    pub fn pop(&mut self) -> Option<T> {
        let session = self.order.pop_front()?;
        let queued = self.waiting.get_mut(&session)?;
        let item = queued.pop_front();
        if queued.is_empty() {
            self.waiting.remove(&session);
        } else {
            self.order.push_back(session);
        }
        item
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_session_that_sends_little_does_not_wait_behind_one_that_sends_much() {
        let mut queue = FairQueue::default();
        (0..1_000).for_each(|number| queue.push(SessionId(1), number));
        queue.push(SessionId(2), 5_000);
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(0), Some(5_000), Some(1)]);
    }

    proptest! {
        #[test]
        fn everything_comes_once_in_the_order_of_its_session_and_shares_are_equal(
            pushed in proptest::collection::vec(0_u64..4, 0..60),
        ) {
            let mut queue = FairQueue::default();
            for (number, session) in pushed.iter().enumerate() {
                queue.push(SessionId(*session), (*session, number));
            }
            let mut taken: Vec<(u64, usize)> = Vec::new();
            while let Some(next) = queue.peek().copied() {
                prop_assert_eq!(queue.pop(), Some(next));
                // Nobody who still waits is more than one turn behind.
                let count = |session| taken.iter().filter(|(other, _)| *other == session).count();
                let (mine, left) = (count(next.0), |session| pushed.iter().filter(|other| **other == session).count());
                prop_assert!((0..4).all(|other| count(other) == left(other) || count(other) >= mine));
                taken.push(next);
            }
            prop_assert!(queue.pop().is_none());
            prop_assert_eq!(taken.len(), pushed.len());
            for session in 0..4 {
                let numbers = |(other, number): &(u64, usize)| (*other == session).then_some(*number);
                prop_assert!(taken.iter().filter_map(numbers).is_sorted());
            }
        }
    }
}
