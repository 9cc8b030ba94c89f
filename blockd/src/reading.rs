//! Turns of those who read blocks: so many reads are under way that the disk is busy, and no more, so a read of one peer
//! waits for a few of another one, however many that one has asked for.
//!
//! A turn is held while the disk and the hash are at work, and never while anything else is waited for but the writer,
//! which makes a damaged trailer anew and needs no turn. So every turn ends, and nobody waits for ever.

use parking_lot::Mutex;
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
    waiting: FairQueue<PartyId, Waiting>,
    reads: usize,
    bytes: u64,
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

impl Reading {
    /// Waits for a turn of this party to read so many bytes, of one block at most. Cancel-safe: a turn for which nobody
    /// waits any more is skipped.
    pub async fn turn(self: &Arc<Self>, party: PartyId, bytes: u64) -> Turn {
        let cost = bytes.clamp(COST_MIN, BLOCK_BYTES_MAX as u64);
        let wait = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() && state.has_room(cost) {
                return self.begin(&mut state, cost);
            }
            let (turn, wait) = oneshot::channel();
            state.waiting.push(party, cost, Waiting { cost, turn });
            wait
        };
        wait.await.expect("the queue is as old as this, and gives each a turn before it drops it")
    }

    fn begin(self: &Arc<Self>, state: &mut State, cost: u64) -> Turn {
        state.reads += 1;
        state.bytes += cost;
        Turn { reading: self.clone(), cost }
    }

    /// Takes the next one that waits, if there is room for it.
    fn next(self: &Arc<Self>) -> Option<(oneshot::Sender<Turn>, Turn)> {
        let mut state = self.state.lock();
        while state.waiting.peek()?.turn.is_closed() {
            state.waiting.pop();
        }
        let cost = state.waiting.peek()?.cost;
        if !state.has_room(cost) {
            return None;
        }
        let waiting = state.waiting.pop()?;
        let turn = self.begin(&mut state, waiting.cost);
        Some((waiting.turn, turn))
    }
}

impl State {
    fn has_room(&self, cost: u64) -> bool {
        self.reads < READS_MAX && self.bytes + cost <= BYTES_MAX
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.reading.state.lock();
            state.reads -= 1;
            state.bytes -= self.cost;
        }
        while let Some((to, turn)) = self.reading.next() {
            // Whoever has gone in this moment does not take it. It ends here, which lets the next one begin.
            drop(to.send(turn));
        }
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
