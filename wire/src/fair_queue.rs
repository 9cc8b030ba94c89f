//! A queue in which parties take turns: one that sends much waits behind itself, not others behind it. Pure.
//!
//! Each item has a cost. Parties that wait get equal shares by cost, whatever the sizes of their items ("Start-time Fair
//! Queueing", Goyal, Vin and Cheng, 1996): the next turn is that of the party to which the least has been given since it
//! came. One that came back at once would otherwise be ahead of all that wait, so what it was given counts until its next
//! turn has passed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// When a turn is: what its party had been given, on the scale of the queue, and a number among equals.
type Turn = (u64, u64);

/// What waits, by party. The items of one party keep their order.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    lines: HashMap<K, Line<T>>,
    /// Parties in the order of their next turns. One for which nothing waits any more leaves when its turn comes.
    order: BTreeMap<Turn, K>,
    /// Start of the last turn. Who comes anew begins here.
    now: u64,
    /// Number of the next turn to be noted.
    number: u64,
}

#[derive(Debug)]
struct Line<T> {
    turn: Turn,
    items: VecDeque<(u64, T)>,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self { lines: HashMap::new(), order: BTreeMap::new(), now: 0, number: 0 }
    }
}

impl<K: Clone + Eq + Hash, T> FairQueue<K, T> {
    /// Queues an item of this party. `cost` is in any unit, the same for all items; at least one counts.
    pub fn push(&mut self, party: K, cost: u64, item: T) {
        let line = self.lines.entry(party).or_insert_with_key(|party| {
            let turn = (self.now, self.number);
            self.number += 1;
            self.order.insert(turn, party.clone());
            Line { turn, items: VecDeque::new() }
        });
        line.items.push_back((cost.max(1), item));
    }

    /// Returns the item whose turn is next.
    pub fn peek(&mut self) -> Option<&T> {
        let party = self.next()?;
        self.lines.get(&party)?.items.front().map(|(_, item)| item)
    }

    /// Takes the item whose turn is next. The party's following item waits until others have been given as much.
    pub fn pop(&mut self) -> Option<T> {
        let party = self.next()?;
        let line = self.lines.get_mut(&party)?;
        let (cost, item) = line.items.pop_front()?;
        self.order.remove(&line.turn);
        self.now = line.turn.0;
        line.turn = (self.now.saturating_add(cost), self.number);
        self.number += 1;
        self.order.insert(line.turn, party);
        Some(item)
    }

    /// Reports whether nothing waits.
    pub fn is_empty(&mut self) -> bool {
        self.next().is_none()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the party whose turn is next. Those without items leave when their turns have come.
    fn next(&mut self) -> Option<K> {
        while let Some(first) = self.order.first_entry() {
            if self.lines.get(first.get()).is_some_and(|line| !line.items.is_empty()) {
                return Some(first.get().clone());
            }
            let ((start, _), party) = first.remove_entry();
            self.now = self.now.max(start);
            self.lines.remove(&party);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_party_that_sends_little_does_not_wait_behind_one_that_sends_much() {
        let mut queue = FairQueue::default();
        (0..1_000).for_each(|number| queue.push('a', 1, number));
        queue.push('b', 1, 5_000);
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(0), Some(5_000), Some(1)]);
    }

    #[test]
    fn shares_are_equal_by_cost_and_not_by_number() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|_| queue.push("large", 64, 64));
        (0..1_000).for_each(|_| queue.push("small", 1, 1));
        let taken: Vec<u64> = std::iter::from_fn(|| queue.pop()).take(650).collect();
        let of = |cost| taken.iter().filter(|other| **other == cost).sum::<u64>();
        assert!(of(64).abs_diff(of(1)) <= 64, "{} and {}", of(64), of(1));
    }

    /// A party that always has one item, and sends the next one as soon as that is taken.
    #[test]
    fn who_comes_back_at_once_is_not_ahead_of_those_that_wait() {
        let mut queue = FairQueue::default();
        (0..10).for_each(|_| queue.push("waits", 8, "waits"));
        queue.push("returns", 8, "returns");
        let mut taken = Vec::new();
        for _ in 0..20 {
            let item = queue.pop().unwrap();
            taken.push(item);
            if item == "returns" {
                queue.push("returns", 8, "returns");
            }
        }
        assert_eq!(taken.iter().filter(|item| **item == "waits").count(), 10);
    }

    #[test]
    fn parties_are_forgotten_once_nothing_of_them_waits() {
        let mut queue = FairQueue::default();
        for party in 0..1_000 {
            queue.push(party, 3, ());
            queue.push(party, 3, ());
        }
        while queue.pop().is_some() {}
        assert!(queue.is_empty() && queue.lines.is_empty() && queue.order.is_empty());
    }

    proptest! {
        #[test]
        fn everything_comes_once_in_the_order_of_its_party_and_shares_are_equal(
            pushed in proptest::collection::vec(0_u64..4, 0..60),
        ) {
            let mut queue = FairQueue::default();
            for (number, party) in pushed.iter().enumerate() {
                queue.push(*party, 1, (*party, number));
            }
            let mut taken: Vec<(u64, usize)> = Vec::new();
            while let Some(next) = queue.peek().copied() {
                prop_assert_eq!(queue.pop(), Some(next));
                // Nobody who still waits is more than one turn behind.
                let count = |party| taken.iter().filter(|(other, _)| *other == party).count();
                let (mine, left) = (count(next.0), |party| pushed.iter().filter(|other| **other == party).count());
                prop_assert!((0..4).all(|other| count(other) == left(other) || count(other) >= mine));
                taken.push(next);
            }
            prop_assert!(queue.pop().is_none());
            prop_assert_eq!(taken.len(), pushed.len());
            for party in 0..4 {
                let numbers = |(other, number): &(u64, usize)| (*other == party).then_some(*number);
                prop_assert!(taken.iter().filter_map(numbers).is_sorted());
            }
        }

        /// However pushes and pops alternate, an item waits for no more of each other party than has been taken of its
        /// own since it came, and two of the largest items.
        #[test]
        fn an_item_waits_for_a_bounded_cost_of_each_other_party(
            steps in proptest::collection::vec(proptest::option::of((0_usize..3, 1_u64..=10)), 0..200),
        ) {
            let mut queue = FairQueue::default();
            let mut given = [0_u64; 3];
            for step in steps {
                if let Some((party, cost)) = step {
                    queue.push(party, cost, (party, cost, given));
                    continue;
                }
                let Some((party, cost, before)) = queue.pop() else { continue };
                let own = given[party] - before[party];
                for other in (0..3).filter(|other| *other != party) {
                    let passed = given[other] - before[other];
                    prop_assert!(passed <= own + 3 * 10, "{passed} of another party, {own} of its own");
                }
                given[party] += cost;
            }
        }
    }
}
