//! A queue in which parties take turns: one that sends much waits behind itself, not others behind it. Pure.
//!
//! Each item has a cost. Parties that wait get equal shares by cost, whatever the sizes of their items ("Self-Clocked Fair
//! Queueing", Golestani, 1994). The queue has a clock of its own, its virtual time, in units of cost: each unit is the time
//! in which every party that waits is given one unit. The first item of each party has a tag, the virtual time at which it
//! would end if all of them were served side by side, and the smallest tag is next. The virtual time is the tag of the item
//! that was taken last, so whatever is taken brings everybody who waits nearer to a turn, even if all others are parties
//! that nobody has seen before.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// The virtual time at which an item would end, and a number among equals.
type Tag = (u64, u64);

/// What waits, by party. The items of one party keep their order. Nothing is kept of a party for which nothing waits.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// Items with their costs; no line is empty.
    lines: HashMap<K, VecDeque<(u64, T)>>,
    /// Parties in the order of their first items' tags.
    order: BTreeMap<Tag, K>,
    /// The virtual time: the tag of the item that was taken last. No item that waits has a smaller one. A new party
    /// begins here, and so does one that comes back: what it was given has ended by now.
    now: u64,
    /// Number of the next tag.
    number: u64,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self { lines: HashMap::new(), order: BTreeMap::new(), now: 0, number: 0 }
    }
}

impl<K: Clone + Eq + Hash, T> FairQueue<K, T> {
    /// Queues an item of this party. `cost` is in any unit, the same for all items; at least one counts.
    pub fn push(&mut self, party: K, cost: u64, item: T) {
        let cost = cost.max(1);
        let line = self.lines.entry(party).or_insert_with_key(|party| {
            let tag = (self.now.saturating_add(cost), self.number);
            self.number += 1;
            self.order.insert(tag, party.clone());
            VecDeque::new()
        });
        line.push_back((cost, item));
    }

    /// Returns the item whose turn is next.
    pub fn peek(&self) -> Option<&T> {
        let (_, party) = self.order.first_key_value()?;
        self.lines.get(party)?.front().map(|(_, item)| item)
    }

    /// Takes the item whose turn is next. The party's following item waits until others have been given as much.
    pub fn pop(&mut self) -> Option<T> {
        let (tag, party) = self.order.pop_first()?;
        self.now = tag.0;
        let line = self.lines.get_mut(&party)?;
        let (_, item) = line.pop_front()?;
        match line.front() {
            Some((cost, _)) => {
                let tag = (self.now.saturating_add(*cost), self.number);
                self.number += 1;
                self.order.insert(tag, party);
            }
            None => drop(self.lines.remove(&party)),
        }
        Some(item)
    }

    /// Reports whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Number of items that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.values().map(VecDeque::len).sum()
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

    /// However many parties come that nobody has seen before.
    #[test]
    fn who_waits_is_served_though_fresh_parties_come_without_end() {
        for (at_once, cost) in [(1, 1), (1, 8), (20, 1), (20, 8)] {
            let mut queue = FairQueue::default();
            let mut fresh = 1_u64..;
            let mut come = |queue: &mut FairQueue<u64, u64>| queue.push(fresh.next().unwrap(), cost, 1);
            (0..at_once).for_each(|_| come(&mut queue));
            queue.push(0, 8, 0);
            let mut before = 0;
            while queue.pop() != Some(0) {
                before += cost;
                come(&mut queue);
                assert!(before <= 8 * at_once, "{at_once} at a time, which cost {cost}, were given {before}");
            }
        }
    }

    proptest! {
        /// Pushes are by parties that come once, or by one of three that come again. A party that waits is served before each
        /// of the others that wait at a time was given as much as it asks for, and one of its items more.
        #[test]
        fn every_party_is_served_within_a_bound_and_nothing_is_kept_of_those_that_were(
            pushes in proptest::collection::vec((proptest::option::of(0_u64..3), 1_u64..=10), 1..200),
            most in 1_usize..30,
        ) {
            let mut queue = FairQueue::default();
            let (mut waiting, mut given) = (0, 0_u64);
            for (number, (known, cost)) in (3..).zip(pushes) {
                queue.push(known.unwrap_or(number), cost, (known.unwrap_or(number), cost, given));
                waiting += 1;
                // What is ahead of it: its own line counts, too, of which there are no more than wait.
                while waiting > most {
                    let (party, cost, before) = queue.pop().unwrap();
                    waiting -= 1;
                    if party >= 3 {
                        prop_assert!(given - before <= (cost + 10) * (most as u64 + 1));
                    }
                    given += cost;
                }
                prop_assert_eq!((queue.lines.len(), queue.len()), (queue.order.len(), waiting));
                prop_assert!(queue.lines.len() <= waiting && queue.lines.values().all(|line| !line.is_empty()));
            }
        }

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
