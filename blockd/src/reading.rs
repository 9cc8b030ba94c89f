//! Turns of those who read blocks: so many reads are under way that the disk is busy, and no more, so a read of one peer
//! waits for a few of another one, however many that one has asked for.
//!
//! A turn is held while the disk and the hash are at work, and never while anything else is waited for but the writer,
//! which makes a damaged trailer anew and needs no turn. So every turn ends, and nobody waits for ever.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::oneshot;
use wire::fair_queue::FairQueue;
use wire::ids::PartyId;
use wire::limits::BLOCK_BYTES_MAX;

/// Reads under way at once: disks with long queues are fast only if these are filled.
const READS_MAX: usize = 32;
/// Bytes that they read together. Large reads fill any disk, and share it.
const BYTES_MAX: u64 = 8 * BLOCK_BYTES_MAX as u64;
/// What a small read costs at least: the seek and the check.
const COST_MIN: u64 = 64 << 10;

const _: () = assert!(COST_MIN * READS_MAX as u64 <= BYTES_MAX && BLOCK_BYTES_MAX as u64 <= BYTES_MAX);

/// Who reads, and who waits. Those that wait are requests under way, which the budgets of their connections bound.
#[derive(Default)]
pub(crate) struct Reading {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// One entry for each party, whoever of it is first. What is first is never a party for which nobody waits.
    order: FairQueue<PartyId, Next>,
    /// The parties in `order`, and who waits of each, in the order of their numbers. Of some, everybody has gone.
    lines: HashMap<PartyId, BTreeMap<u64, Waiting>>,
    /// Number of the next one that waits.
    number: u64,
    reads: usize,
    bytes: u64,
}

/// A party's place in the order, and for what cost it stands there.
struct Next {
    party: PartyId,
    cost: u64,
}

struct Waiting {
    cost: u64,
    turn: oneshot::Sender<Turn>,
}

/// A turn, which ends when this is dropped.
pub(crate) struct Turn {
    reading: Arc<Reading>,
    cost: u64,
}

/// One that waits. It leaves its line when this is dropped.
struct Place<'a> {
    reading: &'a Arc<Reading>,
    party: PartyId,
    number: u64,
}

impl Reading {
    /// Waits for a turn of this party to read so many bytes, of one block at most. Cancel-safe: nothing is kept of one
    /// that does not wait any more.
    pub async fn turn(self: &Arc<Self>, party: PartyId, bytes: u64) -> Turn {
        let cost = bytes.clamp(COST_MIN, BLOCK_BYTES_MAX as u64);
        let (wait, _place) = {
            let mut state = self.state.lock();
            if state.order.is_empty() && state.has_room(cost) {
                return self.begin(&mut state, cost);
            }
            let (turn, wait) = oneshot::channel();
            let number = state.push(party, Waiting { cost, turn });
            (wait, Place { reading: self, party, number })
        };
        wait.await.expect("the line is as old as this, and gives each a turn before it drops it")
    }

    /// Number of those that wait.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.state.lock().lines.values().map(BTreeMap::len).sum()
    }

    fn begin(self: &Arc<Self>, state: &mut State, cost: u64) -> Turn {
        state.reads += 1;
        state.bytes += cost;
        Turn { reading: self.clone(), cost }
    }

    /// Gives turns to those that are next, as long as there is room.
    fn go_on(self: &Arc<Self>) {
        loop {
            let (to, turn) = {
                let mut state = self.state.lock();
                let Some(Waiting { cost, turn }) = state.next() else { return };
                (turn, self.begin(&mut state, cost))
            };
            // A reader that has gone in this moment does not take it. It ends here, which lets the next one begin.
            drop(to.send(turn));
        }
    }
}

impl State {
    fn has_room(&self, cost: u64) -> bool {
        self.reads < READS_MAX && self.bytes + cost <= BYTES_MAX
    }

    fn push(&mut self, party: PartyId, waiting: Waiting) -> u64 {
        let number = self.number;
        self.number += 1;
        let cost = waiting.cost;
        let line = self.lines.entry(party).or_insert_with(|| {
            self.order.push(party, cost, Next { party, cost });
            BTreeMap::new()
        });
        line.insert(number, waiting);
        number
    }

    /// Takes the next one that waits, if there is room for it.
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let Next { party, cost: paid } = *self.order.peek()?;
            let first = self.lines.get(&party).and_then(|line| line.values().next().map(|waiting| waiting.cost));
            let Some(cost) = first else {
                self.order.pop();
                self.lines.remove(&party);
                continue;
            };
            if cost > paid {
                // The one for which the party came here has gone. This one waits for the rest of its own turn.
                self.order.pop();
                self.order.push(party, cost - paid, Next { party, cost });
                continue;
            }
            if !self.has_room(cost) {
                return None;
            }
            self.order.pop();
            let line = self.lines.get_mut(&party)?;
            let (_, waiting) = line.pop_first()?;
            match line.values().next().map(|waiting| waiting.cost) {
                Some(cost) => self.order.push(party, cost, Next { party, cost }),
                None => drop(self.lines.remove(&party)),
            }
            return Some(waiting);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let has_gone = {
            let mut state = self.reading.state.lock();
            state.lines.get_mut(&self.party).and_then(|line| line.remove(&self.number)).is_some()
        };
        if has_gone {
            // There may be room for the one behind it.
            self.reading.go_on();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.reading.state.lock();
            state.reads -= 1;
            state.bytes -= self.cost;
        }
        self.reading.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::future::BoxFuture;

    const LARGE: u64 = BLOCK_BYTES_MAX as u64;

    fn party(number: u8) -> PartyId {
        PartyId([number; 16])
    }

    /// Asks for turns; those that are given at once come first.
    fn ask(
        reading: &Arc<Reading>,
        party: PartyId,
        bytes: u64,
        count: usize,
    ) -> (Vec<Turn>, Vec<BoxFuture<'static, Turn>>) {
        let (mut given, mut waiting) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let reading = reading.clone();
            let mut turn = async move { reading.turn(party, bytes).await }.boxed();
            match (&mut turn).now_or_never() {
                Some(turn) => given.push(turn),
                None => waiting.push(turn),
            }
        }
        (given, waiting)
    }

    #[test]
    fn a_read_waits_for_one_read_of_another_party_however_many_that_one_asks_for() {
        let reading = Arc::<Reading>::default();
        let (mut given, mut greedy) = ask(&reading, party(1), LARGE, 500);
        assert_eq!((given.len(), greedy.len()), (8, 492));
        for bytes in [100, LARGE] {
            let (at_once, mut honest) = ask(&reading, party(2), bytes, 1);
            assert!(at_once.is_empty());
            let mut ended = 0;
            let turn = loop {
                if let Some(turn) = (&mut honest[0]).now_or_never() {
                    break turn;
                }
                drop(given.remove(0));
                ended += 1;
                greedy.retain_mut(|waiting| waiting.now_or_never().map(|turn| given.push(turn)).is_none());
            };
            assert!(ended <= 2, "{ended} reads of the other one had to end");
            drop(turn);
            greedy.retain_mut(|waiting| waiting.now_or_never().map(|turn| given.push(turn)).is_none());
        }
    }

    #[test]
    fn reads_under_way_are_few_and_have_few_bytes_and_all_that_wait_get_a_turn() {
        for (bytes, most) in [(1, READS_MAX), (LARGE, 8), (LARGE / 2, 16)] {
            let reading = Arc::<Reading>::default();
            let (mut given, mut waiting) = ask(&reading, party(1), bytes, 100);
            let mut count = given.len();
            while !given.is_empty() {
                assert_eq!(given.len(), most.min(100 - count + given.len()));
                drop(given.remove(0));
                waiting.retain_mut(|one| one.now_or_never().map(|turn| given.push(turn)).is_none());
                count = 100 - waiting.len();
            }
            assert!(waiting.is_empty());
        }
    }

    #[test]
    fn nothing_is_kept_of_those_that_have_gone_and_who_is_behind_them_need_not_wait_for_their_turns() {
        let reading = Arc::<Reading>::default();
        let (mut given, _) = ask(&reading, party(1), LARGE, 8);
        let (_, mut stays) = ask(&reading, party(2), LARGE, 1);
        for number in 0..1000 {
            let (at_once, waiting) = ask(&reading, party(number as u8 % 4), LARGE, 10);
            assert!(at_once.is_empty());
            drop(waiting);
        }
        assert_eq!(reading.waiting(), 1);
        {
            let state = reading.state.lock();
            assert!(state.lines.len() <= 4 && state.order.len() == state.lines.len());
        }
        given.pop();
        assert!((&mut stays[0]).now_or_never().is_some());
        drop((given, stays));
        // A small read fits beside seven large ones, once the large one before it has gone.
        let (_given, _) = ask(&reading, party(1), LARGE, 7);
        let (_small, _) = ask(&reading, party(1), 1, 1);
        let (_, large) = ask(&reading, party(2), LARGE, 1);
        let (_, mut small) = ask(&reading, party(3), 1, 1);
        assert!((&mut small[0]).now_or_never().is_none());
        drop(large);
        assert!((&mut small[0]).now_or_never().is_some());
    }

    #[test]
    fn a_large_read_does_not_take_the_turn_of_a_small_one_of_its_party_that_has_gone() {
        let reading = Arc::<Reading>::default();
        let (mut given, _) = ask(&reading, party(1), LARGE, 8);
        let (_, first) = ask(&reading, party(1), 1, 1);
        let (_, mut large) = ask(&reading, party(1), LARGE, 1);
        let (_, mut honest) = ask(&reading, party(2), LARGE / 2, 1);
        drop(first);
        given.pop();
        assert!((&mut large[0]).now_or_never().is_none());
        assert!((&mut honest[0]).now_or_never().is_some());
        given.clear();
        assert!((&mut large[0]).now_or_never().is_some());
    }

    #[test]
    fn a_turn_of_one_that_has_gone_is_passed_on() {
        let reading = Arc::<Reading>::default();
        let (given, waiting) = ask(&reading, party(1), LARGE, 20);
        let (_, mut last) = ask(&reading, party(2), LARGE, 1);
        drop(waiting);
        drop(given);
        assert!((&mut last[0]).now_or_never().is_some());
        drop(last);
        let state = reading.state.lock();
        assert_eq!((state.reads, state.bytes), (0, 0));
    }
}
