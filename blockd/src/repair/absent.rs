//! Copies that are missing here, by the daemon that is said to have each. Daemons take turns, so one that is slow, or
//! sends nothing, holds up only what it is said to have.
//!
//! Owner: [`Absent`]. Audits and checks of an operator put copies in, the repairing task takes them out.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use tokio::sync::Notify;
use wire::ids::{BlockHash, BlockdId};

/// Copies that wait for one daemon at most.
const FROM_ONE_MAX: usize = 128;
/// Daemons for which copies wait at most.
const SOURCES_MAX: usize = 1024;
/// Copies that are fetched from one daemon at once.
const FETCHES_FROM_ONE_MAX: usize = 2;

/// The copies.
#[derive(Default)]
pub(super) struct Absent {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    sources: BTreeMap<BlockdId, Source>,
    /// Blocks that wait, or are being fetched.
    waiting: HashSet<BlockHash>,
    /// The daemon whose turn it was last.
    last: Option<BlockdId>,
}

#[derive(Default)]
struct Source {
    queue: VecDeque<BlockHash>,
    fetches: usize,
}

/// A copy that is wanted. As long as it lives, the block is not taken again.
pub(super) struct Wanted {
    pub hash: BlockHash,
    /// A daemon that is said to have it, though it may not belong there.
    pub from: BlockdId,
    absent: Arc<Absent>,
}

impl Absent {
    /// Returns false when too many wait.
    pub(super) fn push(&self, hash: BlockHash, from: BlockdId) -> bool {
        let mut state = self.state.lock();
        if state.waiting.contains(&hash) {
            return true;
        }
        let is_known = state.sources.contains_key(&from);
        if !is_known && state.sources.len() >= SOURCES_MAX {
            return false;
        }
        let source = state.sources.entry(from).or_default();
        if source.queue.len() >= FROM_ONE_MAX {
            return false;
        }
        source.queue.push_back(hash);
        state.waiting.insert(hash);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Waits for the next one. For one task. Cancel-safe.
    pub(super) async fn next(self: &Arc<Self>) -> Wanted {
        loop {
            if let Some(wanted) = self.try_next() {
                return wanted;
            }
            self.changed.notified().await;
        }
    }

    fn try_next(self: &Arc<Self>) -> Option<Wanted> {
        let mut state = self.state.lock();
        let is_ready = |source: &Source| !source.queue.is_empty() && source.fetches < FETCHES_FROM_ONE_MAX;
        let behind = state.sources.range((state.last.map_or(Unbounded, Excluded), Unbounded));
        let turn = behind.chain(&state.sources).find(|(_, source)| is_ready(source));
        let from = turn.map(|(from, _)| *from)?;
        let source = state.sources.get_mut(&from)?;
        let hash = source.queue.pop_front()?;
        source.fetches += 1;
        state.last = Some(from);
        Some(Wanted { hash, from, absent: self.clone() })
    }
}

impl Wanted {
    /// Forgets what else waits for the same daemon.
    pub(super) fn forget_source(&self) {
        let mut state = self.absent.state.lock();
        let forgotten = state.sources.get_mut(&self.from).map(|source| std::mem::take(&mut source.queue));
        for hash in forgotten.into_iter().flatten() {
            state.waiting.remove(&hash);
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut state = self.absent.state.lock();
        state.waiting.remove(&self.hash);
        if let Some(source) = state.sources.get_mut(&self.from) {
            source.fetches -= 1;
            if source.fetches == 0 && source.queue.is_empty() {
                state.sources.remove(&self.from);
            }
        }
        drop(state);
        self.absent.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> BlockdId {
        BlockdId([number; 16])
    }

    fn hash(number: u16) -> BlockHash {
        BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap())
    }

    #[test]
    fn a_daemon_that_is_said_to_have_much_leaves_room_and_turns_to_others() {
        let absent = Arc::new(Absent::default());
        let taken = (0..1000).filter(|number| absent.push(hash(*number), id(1))).count();
        assert_eq!(taken, FROM_ONE_MAX);
        assert!(absent.push(hash(0), id(1)), "it waits already");
        assert!(absent.push(hash(5000), id(2)));
        let wanted: Vec<Wanted> = std::iter::from_fn(|| absent.try_next()).collect();
        assert_eq!(wanted.iter().map(|wanted| wanted.from).collect::<Vec<_>>(), [id(1), id(2), id(1)]);
        wanted[0].forget_source();
        drop(wanted);
        assert!(absent.try_next().is_none() && absent.state.lock().sources.is_empty());
        assert!(absent.push(hash(0), id(2)) && absent.try_next().is_some(), "it can be asked for again");
        assert!(absent.state.lock().waiting.is_empty());
    }
}
