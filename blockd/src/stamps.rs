//! When each block was last stored or renewed (I10), in memory.
//!
//! An upload renews the stamp *before* it looks at the store, even if it finds its block there already. A drop first
//! marks the block, and only when its stamp is old. So when an upload and a drop of one block run at once, either the
//! drop sees the new stamp and gives up, or the upload waits for the drop to end and stores the block again. The upload
//! never acknowledges a copy that is about to vanish.
//!
//! A block without a stamp was last renewed before the daemon started, so its age counts from the start.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use wire::ids::BlockHash;

/// Older stamps are forgotten; the block then counts as this old. This is longer than any sensible grace period.
pub const STAMP_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Number of new stamps between two sweeps of old ones.
const SWEEP_EVERY: usize = 65_536;

/// Stamps of all blocks.
pub struct Stamps {
    started: Instant,
    state: Mutex<State>,
    dropped: Notify,
}

#[derive(Default)]
struct State {
    renewed: HashMap<BlockHash, Instant>,
    dropping: HashSet<BlockHash>,
    until_sweep: usize,
}

impl Default for Stamps {
    fn default() -> Self {
        Self { started: Instant::now(), state: Mutex::default(), dropped: Notify::new() }
    }
}

impl Stamps {
    /// Renews a block's stamp, once no drop of it is under way. Cancel-safe.
    pub async fn renew(&self, hash: BlockHash) {
        loop {
            let ended = self.dropped.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.try_renew(hash) {
                return;
            }
            ended.await;
        }
    }

    /// Renews a block's stamp. Returns false while a drop of it is under way.
    #[must_use]
    pub fn try_renew(&self, hash: BlockHash) -> bool {
        let mut state = self.state.lock();
        if state.dropping.contains(&hash) {
            return false;
        }
        let now = Instant::now();
        state.renewed.insert(hash, now);
        state.until_sweep = state.until_sweep.checked_sub(1).unwrap_or_else(|| {
            state.renewed.retain(|_, renewed| now.duration_since(*renewed) < STAMP_LIFETIME);
            SWEEP_EVERY
        });
        true
    }

    /// Reports whether a block was renewed less than `limit` ago; `None` when this daemon has not run for that long and
    /// cannot know.
    #[must_use]
    pub fn is_younger(&self, hash: &BlockHash, limit: Duration) -> Option<bool> {
        match self.state.lock().renewed.get(hash) {
            Some(renewed) => Some(renewed.elapsed() < limit),
            None => (self.started.elapsed() >= limit).then_some(false),
        }
    }

    /// Begins to drop a block, unless it was renewed less than `grace` ago. The drop ends when the result is dropped.
    #[must_use]
    pub fn begin_drop(&self, hash: BlockHash, grace: Duration) -> Option<Dropping<'_>> {
        let mut state = self.state.lock();
        let renewed = state.renewed.get(&hash).copied().unwrap_or(self.started);
        // I10: a block renewed within the grace period stays.
        if renewed.elapsed() < grace || !state.dropping.insert(hash) {
            return None;
        }
        Some(Dropping { stamps: self, hash, is_done: false })
    }
}

/// A drop under way: the block cannot be renewed until it ends.
pub struct Dropping<'a> {
    stamps: &'a Stamps,
    hash: BlockHash,
    is_done: bool,
}

impl Dropping<'_> {
    /// Notes that the block is gone, and its stamp with it. Without this call the drop was given up, and the stamp
    /// stays.
    pub fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Dropping<'_> {
    fn drop(&mut self) {
        let mut state = self.stamps.state.lock();
        state.dropping.remove(&self.hash);
        if self.is_done {
            state.renewed.remove(&self.hash);
        }
        drop(state);
        self.stamps.dropped.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: BlockHash = BlockHash([7; 32]);

    /// Guards I10.
    #[tokio::test]
    async fn a_renewed_block_is_not_dropped_within_its_grace() {
        let stamps = Stamps::default();
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none(), "started just now");
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_some());
        stamps.renew(HASH).await;
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none());
    }

    /// Guards I10.
    #[tokio::test]
    async fn a_drop_that_was_given_up_leaves_the_stamp() {
        let stamps =
            Stamps { started: Instant::now().checked_sub(Duration::from_secs(3600)).unwrap(), ..Stamps::default() };
        stamps.renew(HASH).await;
        drop(stamps.begin_drop(HASH, Duration::ZERO).unwrap());
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none());
        stamps.begin_drop(HASH, Duration::ZERO).unwrap().done();
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_some(), "nothing is known of it any more");
    }

    /// Guards I10.
    #[tokio::test]
    async fn a_renewal_waits_for_the_drop_under_way() {
        let stamps = Stamps::default();
        let dropping = stamps.begin_drop(HASH, Duration::ZERO).unwrap();
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_none(), "only one at a time");
        let renewal = stamps.renew(HASH);
        tokio::pin!(renewal);
        assert!(futures::poll!(renewal.as_mut()).is_pending());
        dropping.done();
        renewal.await;
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none());
    }
}
