//! Repair of single copies: a copy that reading or scrub finds corrupt is replaced by a good one, and a copy that a
//! check or an audit misses is fetched.
//!
//! There is one task with two bounded queues, one for each kind: neither waits for the other. A block waits once in each.
//! When a queue is full the block is left out: the next read, scrub or audit finds it again. The daemons that are said
//! to have copies have queues of their own, and take turns ([`super::absent`]): one that sends nothing holds up no other.

use super::absent::{Absent, Wanted};
use super::claims::Claims;
use super::fetch::{Fetched, fetch};
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::store::Store;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::ring::Ring;
use wire::quic::Endpoint;

/// Most damaged copies that wait.
const QUEUE_MAX: usize = 1024;
/// Copies that are fetched at once for one queue: a daemon that sends slowly must not keep the others waiting.
const FETCHES_MAX: usize = 4;
/// The same for copies that are missing, from all daemons together.
const ABSENT_FETCHES_MAX: usize = 8;

/// Passes copies that are wanted to the repairing task.
#[derive(Clone)]
pub struct RepairQueue {
    damaged: Lane,
    absent: Arc<Absent>,
}

/// The other end of a [`RepairQueue`], for [`run`].
pub struct Wants {
    damaged: mpsc::Receiver<Damaged>,
    absent: Arc<Absent>,
}

/// The queue of damaged copies.
#[derive(Clone)]
struct Lane {
    sender: mpsc::Sender<Damaged>,
    /// Blocks that wait, or are being fetched.
    waiting: Arc<Mutex<HashSet<BlockHash>>>,
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
    fn new() -> (Self, mpsc::Receiver<Damaged>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Self { sender, waiting: Arc::default() }, receiver)
    }

    /// Returns false when too many wait.
    fn push(&self, hash: BlockHash) -> bool {
        if !self.waiting.lock().insert(hash) {
            return true;
        }
        // What is not taken is dropped, and does not wait any more.
        self.sender.try_send(Damaged { hash, waiting: self.waiting.clone() }).is_ok()
    }
}

impl RepairQueue {
    /// The queue, and its other end.
    #[must_use]
    pub fn new() -> (Self, Wants) {
        let ((damaged, damaged_end), absent) = (Lane::new(), Arc::<Absent>::default());
        (Self { damaged, absent: absent.clone() }, Wants { damaged: damaged_end, absent })
    }

    /// Asks for a corrupt copy to be replaced.
    pub fn push(&self, hash: BlockHash) {
        if !self.damaged.push(hash) {
            tracing::debug!(%hash, "too many repairs wait: this one is left to the next scrub");
        }
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
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Repairs what is queued until cancelled.
pub async fn run(repairer: Repairer, wants: Wants, stop: CancellationToken) {
    let Wants { damaged, absent } = wants;
    let repairing = async { tokio::join!(replace_all(&repairer, damaged), supply_all(&repairer, absent)) };
    let _ = stop.run_until_cancelled(repairing).await;
}

async fn replace_all(repairer: &Repairer, mut damaged: mpsc::Receiver<Damaged>) {
    let damaged = futures::stream::poll_fn(|context| damaged.poll_recv(context));
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
        match self.fetch_from_owners(damaged.hash, None).await {
            Some(block) => self.store(damaged.hash, block).await,
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
        match fetched {
            Some(_) if self.store.is_full() => self.claims.note_elsewhere(hash),
            Some(block) => self.store(hash, block).await,
            None => nowhere(&hash),
        }
    }

    async fn store(&self, hash: BlockHash, block: Bytes) {
        match self.store.put(hash, block).await {
            Ok(_) => {
                self.metrics.repaired.add(1);
                tracing::info!(%hash, "a copy was repaired");
            }
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

    fn hash(number: u16) -> BlockHash {
        BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap())
    }

    #[test]
    fn neither_kind_of_copy_fills_the_queue_of_the_other_and_none_waits_twice() {
        let (queue, mut ends) = RepairQueue::new();
        let from = BlockdId([1; 16]);
        assert!((0..QUEUE_MAX as u16).any(|number| !queue.fetch(hash(number), from)), "the queue is full");
        (0..QUEUE_MAX as u16).for_each(|number| queue.push(hash(number)));
        queue.push(hash(0));
        queue.push(hash(u16::MAX));
        assert_eq!(ends.damaged.len(), QUEUE_MAX);
        drop(ends.damaged.try_recv().unwrap());
        queue.push(hash(0));
        assert_eq!(ends.damaged.len(), QUEUE_MAX, "it was damaged once more");
    }
}
