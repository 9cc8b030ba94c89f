//! Repair of single copies: a copy that reading or scrub finds corrupt is replaced by a good one, and a copy that a
//! check or an audit misses is fetched.
//!
//! There is one task with two bounded queues, one for each kind: neither waits for the other. A block waits once in each.
//! When a queue is full the block is left out: the next read, scrub or audit finds it again.

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

/// Most copies that wait in one queue.
const QUEUE_MAX: usize = 1024;
/// Copies that are fetched at once for one queue: a daemon that sends slowly must not keep the others waiting.
const FETCHES_MAX: usize = 4;

/// Passes copies that are wanted to the repairing task.
#[derive(Clone)]
pub struct RepairQueue {
    damaged: Lane,
    absent: Lane,
}

/// The other end of a [`RepairQueue`], for [`run`].
pub struct Wants {
    damaged: mpsc::Receiver<Wanted>,
    absent: mpsc::Receiver<Wanted>,
}

/// One of the queues.
#[derive(Clone)]
struct Lane {
    sender: mpsc::Sender<Wanted>,
    /// Blocks that wait, or are being fetched.
    waiting: Arc<Mutex<HashSet<BlockHash>>>,
}

/// A copy that is wanted. As long as it lives, the block is not taken again.
struct Wanted {
    hash: BlockHash,
    /// A daemon with a copy, though it may not belong there.
    from: Option<BlockdId>,
    waiting: Arc<Mutex<HashSet<BlockHash>>>,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.hash);
    }
}

impl Lane {
    fn new() -> (Self, mpsc::Receiver<Wanted>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Self { sender, waiting: Arc::default() }, receiver)
    }

    /// Returns false when too many wait.
    fn push(&self, hash: BlockHash, from: Option<BlockdId>) -> bool {
        if !self.waiting.lock().insert(hash) {
            return true;
        }
        // What is not taken is dropped, and does not wait any more.
        self.sender.try_send(Wanted { hash, from, waiting: self.waiting.clone() }).is_ok()
    }
}

impl RepairQueue {
    /// The queue, and its other end.
    #[must_use]
    pub fn new() -> (Self, Wants) {
        let ((damaged, damaged_end), (absent, absent_end)) = (Lane::new(), Lane::new());
        (Self { damaged, absent }, Wants { damaged: damaged_end, absent: absent_end })
    }

    /// Asks for a corrupt copy to be replaced.
    pub fn push(&self, hash: BlockHash) {
        if !self.damaged.push(hash, None) {
            tracing::debug!(%hash, "too many repairs wait: this one is left to the next scrub");
        }
    }

    /// Asks for a copy that is missing here. Returns false when too many wait.
    #[must_use]
    pub fn fetch(&self, hash: BlockHash, from: BlockdId) -> bool {
        self.absent.push(hash, Some(from))
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
    let repairing = async { tokio::join!(repair_all(&repairer, wants.damaged), repair_all(&repairer, wants.absent)) };
    let _ = stop.run_until_cancelled(repairing).await;
}

async fn repair_all(repairer: &Repairer, mut queue: mpsc::Receiver<Wanted>) {
    let wanted = futures::stream::poll_fn(|context| queue.poll_recv(context));
    wanted.for_each_concurrent(FETCHES_MAX, |wanted| repairer.repair(wanted)).await;
}

impl Repairer {
    async fn repair(&self, wanted: Wanted) {
        let hash = wanted.hash;
        // What is wanted because it is owed may belong elsewhere by now. It would lie here until the next comparison.
        if wanted.from.is_some() && !self.wants(&hash) {
            return;
        }
        let Some(block) = self.fetch(hash, wanted.from).await else {
            tracing::warn!(%hash, "a copy cannot be repaired now: no other daemon has a good one");
            return;
        };
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
        !self.store.contains(hash) && !self.store.is_full() && owns()
    }

    /// Fetches a good copy from that daemon, or from any other owner, in the present layout or one that is not final.
    async fn fetch(&self, hash: BlockHash, from: Option<BlockdId>) -> Option<Bytes> {
        let layout = self.layouts.newest();
        if let Some(claimant) = from.and_then(|id| layout.member(&id)) {
            match fetch(&self.endpoint, claimant.addr, hash, layout.epoch).await {
                Fetched::Good(block) => {
                    self.claims.note(claimant.id, hash, true);
                    return Some(block);
                }
                Fetched::Nothing => self.claims.note(claimant.id, hash, false),
                // It may be starting, or busy: that is no lie.
                Fetched::NoAnswer => {}
            }
        }
        let ring = Ring::new(&layout);
        let mut owners = ring.owners(hash.point());
        let older = ring.older_owners(hash.point());
        owners.extend(older);
        let owners = owners.into_iter().map(|index| &layout.members[index]);
        let mut asked: Vec<BlockdId> = from.into_iter().chain([self.id]).collect();
        for owner in owners {
            if asked.contains(&owner.id) {
                continue;
            }
            asked.push(owner.id);
            if let Some(block) = fetch(&self.endpoint, owner.addr, hash, layout.epoch).await.good() {
                return Some(block);
            }
        }
        None
    }
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
        (0..QUEUE_MAX as u16).for_each(|number| assert!(queue.fetch(hash(number), from)));
        assert!(!queue.fetch(hash(u16::MAX), from), "the queue is full");
        assert!(queue.fetch(hash(0), from), "it waits already");
        queue.push(hash(0));
        queue.push(hash(0));
        assert_eq!(ends.damaged.len(), 1);
        drop(ends.absent.try_recv().unwrap());
        assert!(queue.fetch(hash(u16::MAX), from), "there is room again");
        assert_eq!(ends.absent.len(), QUEUE_MAX);
        drop(ends.damaged.try_recv().unwrap());
        queue.push(hash(0));
        assert_eq!(ends.damaged.len(), 1, "it was damaged once more");
    }
}
