//! When each block was last stored or renewed (I10), in memory.
//!
//! An upload renews the stamp *before* it looks at the store, even if it finds its block there already. A drop first
//! marks the block, and only when its stamp is old and no put of it is under way. So when an upload and a drop of one
//! block run at once, either the drop sees the new stamp and gives up, or the upload waits for the drop to end and stores
//! the block again. The upload never acknowledges a copy that is about to vanish.
//!
//! A block without a stamp was last renewed before the daemon started, so its age counts from the start.
//!
//! A put that is refused, because the disk is full, leaves no stamp: clients may try as many blocks as they like.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Puts of each block that are under way, and whether one of them may have stored it.
    putting: HashMap<BlockHash, Putting>,
    until_sweep: usize,
}

#[derive(Default)]
struct Putting {
    count: usize,
    may_be_here: bool,
}

impl Default for Stamps {
    fn default() -> Self {
        Self { started: Instant::now(), state: Mutex::default(), dropped: Notify::new() }
    }
}

impl Stamps {
    /// Renews a block's stamp for a put, once no drop of it is under way. The put ends when the result is dropped.
    /// Cancel-safe.
    pub async fn begin_put(&self, hash: BlockHash) -> PutStamp<'_> {
        loop {
            let ended = self.dropped.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.renew(hash) {
                    state.putting.entry(hash).or_default().count += 1;
                    return PutStamp { stamps: self, hash, is_refused: false };
                }
            }
            ended.await;
        }
    }

    /// Renews a block's stamp. Returns false while a drop of it is under way.
    #[must_use]
    pub fn try_renew(&self, hash: BlockHash) -> bool {
        self.state.lock().renew(hash)
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

    /// Begins to drop a block, unless it was renewed less than `grace` ago, or a put of it is under way: that may take
    /// longer than any grace period, and acknowledges the copy at its end. The drop ends when nobody holds the result any
    /// more.
    #[must_use]
    pub fn begin_drop(self: &Arc<Self>, hash: BlockHash, grace: Duration) -> Option<Arc<Dropping>> {
        let mut state = self.state.lock();
        let renewed = state.renewed.get(&hash).copied().unwrap_or(self.started);
        // I10: a block renewed within the grace period stays.
        if renewed.elapsed() < grace || state.putting.contains_key(&hash) || !state.dropping.insert(hash) {
            return None;
        }
        Some(Arc::new(Dropping { stamps: self.clone(), hash, is_done: AtomicBool::new(false) }))
    }
}

impl State {
    fn renew(&mut self, hash: BlockHash) -> bool {
        if self.dropping.contains(&hash) {
            return false;
        }
        let now = Instant::now();
        self.renewed.insert(hash, now);
        self.until_sweep = self.until_sweep.checked_sub(1).unwrap_or_else(|| {
            self.renewed.retain(|_, renewed| now.duration_since(*renewed) < STAMP_LIFETIME);
            SWEEP_EVERY
        });
        true
    }
}

/// A put under way.
pub struct PutStamp<'a> {
    stamps: &'a Stamps,
    hash: BlockHash,
    is_refused: bool,
}

impl PutStamp<'_> {
    /// Notes that the block was not stored, and is not here. Its stamp goes, unless another put of it succeeds. Without
    /// this call the stamp stays: the store may still write the block of a put that was given up.
    pub fn refused(mut self) {
        self.is_refused = true;
    }
}

impl Drop for PutStamp<'_> {
    fn drop(&mut self) {
        let mut state = self.stamps.state.lock();
        let Some(putting) = state.putting.get_mut(&self.hash) else { return };
        putting.count -= 1;
        putting.may_be_here |= !self.is_refused;
        if putting.count > 0 {
            return;
        }
        let is_absent = state.putting.remove(&self.hash).is_some_and(|putting| !putting.may_be_here);
        if is_absent {
            state.renewed.remove(&self.hash);
        }
    }
}

/// A drop under way: the block cannot be renewed until it ends. The task that carries it out holds it, too: that goes on when
/// the one that began it goes away.
pub struct Dropping {
    stamps: Arc<Stamps>,
    hash: BlockHash,
    is_done: AtomicBool,
}

impl Dropping {
    /// Notes that the block is gone, and its stamp with it. Without this call the drop may have been given up, and the
    /// stamp stays.
    pub fn done(&self) {
        self.is_done.store(true, Ordering::Release);
    }
}

impl Drop for Dropping {
    fn drop(&mut self) {
        let mut state = self.stamps.state.lock();
        state.dropping.remove(&self.hash);
        if *self.is_done.get_mut() {
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
        let stamps = Arc::new(Stamps::default());
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none(), "started just now");
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_some());
        drop(stamps.begin_put(HASH).await);
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none());
    }

    /// Guards I10.
    #[tokio::test]
    async fn a_drop_that_was_given_up_leaves_the_stamp() {
        let started = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        let stamps = Arc::new(Stamps { started, ..Stamps::default() });
        drop(stamps.begin_put(HASH).await);
        drop(stamps.begin_drop(HASH, Duration::ZERO).unwrap());
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none());
        stamps.begin_drop(HASH, Duration::ZERO).unwrap().done();
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_some(), "nothing is known of it any more");
    }

    /// Guards I10.
    #[tokio::test]
    async fn a_renewal_waits_for_the_drop_under_way() {
        let stamps = Arc::new(Stamps::default());
        let dropping = stamps.begin_drop(HASH, Duration::ZERO).unwrap();
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_none(), "only one at a time");
        let renewal = stamps.begin_put(HASH);
        tokio::pin!(renewal);
        assert!(futures::poll!(renewal.as_mut()).is_pending());
        dropping.done();
        let carried_out = dropping.clone();
        drop(dropping);
        assert!(futures::poll!(renewal.as_mut()).is_pending(), "somebody still carries it out");
        drop(carried_out);
        renewal.await;
        assert!(stamps.begin_drop(HASH, Duration::from_secs(60)).is_none());
    }

    /// Guards I10.
    #[tokio::test]
    async fn a_block_that_is_being_put_is_not_dropped_however_long_the_put_takes() {
        let stamps = Arc::new(Stamps::default());
        let [put, another] = [stamps.begin_put(HASH).await, stamps.begin_put(HASH).await];
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_none());
        another.refused();
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_none(), "the other one goes on");
        drop(put);
        assert!(stamps.begin_drop(HASH, Duration::ZERO).is_some());
    }

    /// Guards I10.
    #[tokio::test]
    async fn a_refused_put_leaves_no_stamp_unless_another_one_of_the_block_succeeds() {
        let stamps = Stamps::default();
        let has_stamp = || stamps.state.lock().renewed.contains_key(&HASH);
        let [first, second] = [stamps.begin_put(HASH).await, stamps.begin_put(HASH).await];
        first.refused();
        assert!(has_stamp(), "the other one goes on");
        second.refused();
        assert!(!has_stamp() && stamps.state.lock().putting.is_empty());
        let [first, second] = [stamps.begin_put(HASH).await, stamps.begin_put(HASH).await];
        drop(first);
        second.refused();
        assert!(has_stamp(), "the first one may have stored it");
    }
}
