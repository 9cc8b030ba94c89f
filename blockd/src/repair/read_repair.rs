//! Repair of single copies: a copy that reading or scrub finds corrupt is replaced by a good one, and a copy that a
//! check or an audit misses is fetched.
//!
//! There is one task with two bounded queues, one for each kind: neither waits for the other. A block waits once in each.
//! When too many are damaged, the store says which, once those that wait are done. So it does for those that could not be
//! replaced, because others did not answer in time or there was no room: they are tried again after pauses that grow.
//! When too many are missing, the next audit finds them again. The daemons that are said to have copies have queues of
//! their own, and take turns ([`super::absent`]): one that sends nothing holds up no other.

use super::absent::{Absent, Wanted};
use super::claims::Claims;
use super::fetch::{Fetched, fetch};
use super::throttle::{Activity, Throttle};
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::store::{self, Store};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::ring::Ring;
use wire::limits::BLOCK_BYTES_MAX;
use wire::quic::Endpoint;
use wire::retry::Backoff;

/// Most damaged copies that wait.
const QUEUE_MAX: usize = 1024;
/// Copies that are fetched at once for one queue: a daemon that sends slowly must not keep the others waiting.
const FETCHES_MAX: usize = 4;
/// Missing copies that are fetched at once, from all daemons together.
const ABSENT_FETCHES_MAX: usize = 8;
/// Shortest and longest pause before damaged copies that could not be replaced are tried again. Some may have no good copy
/// anywhere, because nothing refers to their blocks any more.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(5);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);

/// Passes copies that are wanted to the repairing task.
#[derive(Clone)]
pub struct RepairQueue {
    damaged: Lane,
    absent: Arc<Absent>,
}

/// The other end of a [`RepairQueue`], for [`run`].
pub struct Wants {
    damaged: DamagedEnd,
    absent: Arc<Absent>,
}

/// The queue of damaged copies.
#[derive(Clone)]
struct Lane {
    sender: mpsc::Sender<Damaged>,
    /// Blocks that wait, or are being fetched.
    waiting: Arc<Mutex<HashSet<BlockHash>>>,
    /// Some were left out, because too many wait.
    left_out: Arc<AtomicBool>,
}

/// The other end of that queue.
struct DamagedEnd {
    receiver: mpsc::Receiver<Damaged>,
    lane: Lane,
    /// From where on the store is asked for those that were left out, or could not be replaced.
    rest: Option<BlockHash>,
    /// Pauses before it is asked again.
    pauses: Backoff,
}

/// A copy that is to be replaced. As long as it lives, the block is not taken again.
struct Damaged {
    hash: BlockHash,
    waiting: Arc<Mutex<HashSet<BlockHash>>>,
}

impl Drop for Damaged {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.hash);
    }
}

impl Lane {
    fn new() -> (Self, DamagedEnd) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let lane = Self { sender, waiting: Arc::default(), left_out: Arc::default() };
        (
            lane.clone(),
            DamagedEnd { receiver, lane, rest: None, pauses: Backoff::new(RETRY_PAUSE_MIN, RETRY_PAUSE_MAX) },
        )
    }

    fn push(&self, hash: BlockHash) {
        if !self.waiting.lock().insert(hash) {
            return;
        }
        // What is not taken is dropped, and does not wait any more.
        let taken = self.sender.try_send(Damaged { hash, waiting: self.waiting.clone() });
        // Relaxed, because whoever reads it has seen the queue that was full.
        if taken.is_err() && !self.left_out.swap(true, Ordering::Relaxed) {
            tracing::warn!(%hash, "too many damaged copies wait to be replaced: this one and others are looked for later");
        }
    }
}

impl DamagedEnd {
    /// Waits for the next one. When none waits, those that were left out have their turn, and after a pause all that are
    /// still damaged.
    async fn next(&mut self, store: &Store) -> Option<Damaged> {
        loop {
            if let Ok(damaged) = self.receiver.try_recv() {
                return Some(damaged);
            }
            if self.rest.is_none() && self.lane.left_out.swap(false, Ordering::Relaxed) {
                self.rest = Some(BlockHash([0; 32]));
            }
            let Some(from) = self.rest.take() else {
                if let Ok(fresh) = timeout(self.pauses.delay(), self.receiver.recv()).await {
                    self.pauses = Backoff::new(RETRY_PAUSE_MIN, RETRY_PAUSE_MAX);
                    return fresh;
                }
                match store.bad_count() {
                    0 => self.pauses = Backoff::new(RETRY_PAUSE_MIN, RETRY_PAUSE_MAX),
                    _ if store.has_room_for(BLOCK_BYTES_MAX as u32) => self.rest = Some(BlockHash([0; 32])),
                    _ => {}
                }
                continue;
            };
            let names = store.damaged(from, QUEUE_MAX).await;
            self.rest = names.last().filter(|_| names.len() == QUEUE_MAX).and_then(BlockHash::next);
            names.into_iter().for_each(|hash| self.lane.push(hash));
        }
    }
}

impl RepairQueue {
    /// The queue, and its other end.
    #[must_use]
    pub fn new() -> (Self, Wants) {
        let ((lane, damaged), absent) = (Lane::new(), Arc::<Absent>::default());
        (Self { damaged: lane, absent: absent.clone() }, Wants { damaged, absent })
    }

    /// Asks for a corrupt copy to be replaced.
    pub fn push(&self, hash: BlockHash) {
        self.damaged.push(hash);
    }

    /// Asks for a copy that is missing here, and that this daemon is said to have. Returns false when too many wait.
    #[must_use]
    pub fn fetch(&self, hash: BlockHash, from: BlockdId) -> bool {
        self.absent.push(hash, from)
    }
}

/// State that repairing needs.
pub struct Repairer {
    /// This daemon.
    pub id: BlockdId,
    /// Where good copies go.
    pub store: Arc<Store>,
    /// Knows which daemons have copies.
    pub layouts: Arc<Layouts>,
    /// Endpoint for calls to them.
    pub endpoint: Endpoint,
    /// Which daemons could not send what they said they had.
    pub claims: Arc<Claims>,
    /// The rate of copying. What waits in the queues waits for it.
    pub throttle: Arc<Throttle>,
    /// Whether clients are at work.
    pub activity: Arc<Activity>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Repairs what is queued until cancelled.
pub async fn run(repairer: Repairer, wants: Wants, stop: CancellationToken) {
    let Wants { damaged, absent } = wants;
    let repairing = async { tokio::join!(replace_all(&repairer, damaged), supply_all(&repairer, absent)) };
    let _ = stop.run_until_cancelled(repairing).await;
}

async fn replace_all(repairer: &Repairer, damaged: DamagedEnd) {
    let damaged = futures::stream::unfold(damaged, |mut damaged| async move {
        let next = damaged.next(&repairer.store).await?;
        Some((next, damaged))
    });
    damaged.for_each_concurrent(FETCHES_MAX, |damaged| repairer.replace(damaged)).await;
}

async fn supply_all(repairer: &Repairer, absent: Arc<Absent>) {
    let wanted = futures::stream::unfold(absent, |absent| async move {
        let wanted = absent.next().await;
        Some((wanted, absent))
    });
    wanted.for_each_concurrent(ABSENT_FETCHES_MAX, |wanted| repairer.supply(wanted)).await;
}

impl Repairer {
    async fn replace(&self, damaged: Damaged) {
        // It may be as long as any. It is tried again once there is room.
        if !self.store.has_room_for(BLOCK_BYTES_MAX as u32) {
            return tracing::warn!(hash = %damaged.hash, "a damaged copy is not replaced yet: there is no room");
        }
        // It has waited: a block that was removed meanwhile is not worth fetching. The store asks once more.
        if !self.store.is_damaged(&damaged.hash) {
            return;
        }
        match self.fetch_from_owners(damaged.hash, None).await {
            Some(block) => {
                let len = block.len() as u64;
                self.note_repair(&damaged.hash, self.store.replace(damaged.hash, block).await);
                self.throttle.spend(len, &self.activity).await;
            }
            None => nowhere(&damaged.hash),
        }
    }

    async fn supply(&self, wanted: Wanted) {
        let hash = wanted.hash;
        // What is wanted because it is owed may belong elsewhere by now. It would lie here until the next comparison.
        if !self.wants(&hash) {
            return;
        }
        let mut fetched = None;
        let layout = self.layouts.newest();
        if let Some(claimant) = layout.member(&wanted.from) {
            let answer = fetch(&self.endpoint, claimant.addr, hash, layout.epoch).await;
            if matches!(answer, Fetched::Silent) {
                // It would not answer for the others either. The next audit asks it again.
                wanted.forget_source();
            }
            self.claims.note(wanted.from, hash, &answer);
            fetched = answer.sent();
        }
        if fetched.is_none() {
            fetched = self.fetch_from_owners(hash, Some(wanted.from)).await;
        }
        let Some(block) = fetched else { return nowhere(&hash) };
        let len = block.len();
        if !self.store.has_room_for(len as u32) {
            self.claims.note_elsewhere(hash);
        } else {
            self.note_repair(&hash, self.store.put(hash, block).await);
        }
        self.throttle.spend(len as u64, &self.activity).await;
    }

    fn note_repair(&self, hash: &BlockHash, stored: Result<bool, store::Error>) {
        match stored {
            Ok(true) => {
                self.metrics.repaired.add(1);
                tracing::info!(%hash, "a copy was repaired");
            }
            Ok(false) => tracing::debug!(%hash, "a copy is not repaired: it was stored or dropped meanwhile"),
            Err(error) => tracing::warn!(%hash, %error, "a good copy could not be stored"),
        }
    }

    fn wants(&self, hash: &BlockHash) -> bool {
        let owns = || self.layouts.newest().owners(hash).iter().any(|owner| owner.id == self.id);
        !self.store.contains(hash) && owns()
    }

    /// Fetches a good copy from any other owner, in the present layout or one that is not final.
    async fn fetch_from_owners(&self, hash: BlockHash, but: Option<BlockdId>) -> Option<Bytes> {
        let layout = self.layouts.newest();
        let ring = Ring::new(&layout);
        let mut owners = ring.owners(hash.point());
        let older = ring.older_owners(hash.point());
        owners.extend(older);
        let owners = owners.into_iter().map(|index| &layout.members[index]);
        let mut asked: Vec<BlockdId> = but.into_iter().chain([self.id]).collect();
        for owner in owners {
            if asked.contains(&owner.id) {
                continue;
            }
            asked.push(owner.id);
            if let Some(block) = fetch(&self.endpoint, owner.addr, hash, layout.epoch).await.sent() {
                return Some(block);
            }
        }
        None
    }
}

fn nowhere(hash: &BlockHash) {
    tracing::warn!(%hash, "a copy cannot be repaired now: no other daemon has a good one");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rates;
    use crate::repair::test_peers::{ME, Manner, Peers, block, until};
    use crate::store::StoreOptions;
    use std::path::Path;

    fn hash(number: u16) -> BlockHash {
        BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap())
    }

    /// Overwrites all that a store has in its files.
    fn corrupt(dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let len = std::fs::metadata(&entry).unwrap().len() as usize;
            let file = std::fs::OpenOptions::new().write(true).open(&entry).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; len], 0).unwrap();
            file.sync_all().unwrap();
        }
    }

    #[test]
    fn neither_kind_of_copy_fills_the_queue_of_the_other_and_none_waits_twice() {
        let (queue, mut ends) = RepairQueue::new();
        let from = BlockdId([1; 16]);
        assert!((0..QUEUE_MAX as u16).any(|number| !queue.fetch(hash(number), from)), "the queue is full");
        (0..QUEUE_MAX as u16).for_each(|number| queue.push(hash(number)));
        queue.push(hash(0));
        queue.push(hash(u16::MAX));
        assert_eq!(ends.damaged.receiver.len(), QUEUE_MAX);
        drop(ends.damaged.receiver.try_recv().unwrap());
        queue.push(hash(0));
        assert_eq!(ends.damaged.receiver.len(), QUEUE_MAX, "it was damaged once more");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_more_damaged_copies_than_can_wait_each_has_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { segment_bytes: 16 << 20, reserve_bytes: 0 };
        let store = Store::open(dir.path(), options).unwrap();
        let blocks = (0..QUEUE_MAX as u16 + 50).map(|number| Bytes::from(number.to_le_bytes().repeat(50)));
        let blocks: Vec<(BlockHash, Bytes)> = blocks.map(|block| (BlockHash::of(&block), block)).collect();
        let puts = blocks.iter().map(|(hash, block)| store.put(*hash, block.clone()));
        assert!(futures::future::join_all(puts).await.into_iter().all(|put| put.is_ok()));
        corrupt(dir.path());
        let (queue, mut ends) = RepairQueue::new();
        for (hash, _) in &blocks {
            assert!(store.get(*hash).await.is_err());
            queue.push(*hash);
        }
        let mut turns = HashSet::new();
        while turns.len() < blocks.len() {
            let next = tokio::time::timeout(Duration::from_secs(20), ends.damaged.next(&store)).await;
            turns.insert(next.expect("none is forgotten").unwrap().hash);
        }
        store.close();
    }

    /// A daemon that is busy when it is asked, or away for a moment, leaves the copy damaged until it is asked again.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_copy_that_nobody_sends_when_it_is_found_is_replaced_soon_after() {
        let peers = Peers::start([Manner::Busy]);
        let options = StoreOptions { segment_bytes: 16 << 20, reserve_bytes: 0 };
        let store = Arc::new(Store::open(peers.dir.path(), options).unwrap());
        let (hash, content) = block(1);
        peers.others[0].give(&content);
        store.put(hash, content).await.unwrap();
        corrupt(peers.dir.path());
        assert!(store.get(hash).await.is_err());
        let layouts = Arc::new(Layouts::default());
        layouts.learn(peers.layout.clone());
        let repairer = Repairer {
            id: ME,
            store: store.clone(),
            layouts,
            endpoint: peers.endpoint.clone(),
            claims: Arc::default(),
            throttle: Arc::new(Throttle::new(Rates { idle: 0, busy: 0 })),
            activity: Arc::default(),
            metrics: Arc::default(),
        };
        let (queue, mut wants) = RepairQueue::new();
        wants.damaged.pauses = Backoff::new(Duration::from_millis(20), Duration::from_millis(20));
        let stop = CancellationToken::new();
        queue.push(hash);
        let repairing = tokio::spawn(run(repairer, wants, stop.clone()));
        until("it was asked", || peers.others[0].fetches.load(Ordering::Relaxed) > 0).await;
        assert!(store.is_damaged(&hash));
        *peers.others[0].manner.lock() = Manner::Honest;
        until("the copy is replaced", || store.contains(&hash)).await;
        stop.cancel();
        repairing.await.unwrap();
    }
}
