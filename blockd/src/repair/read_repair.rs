//! Repair of single copies: a copy that reading or scrub finds corrupt is replaced by a good one, and a copy that a
//! check or an audit misses is fetched.
//!
//! There is one task with a bounded queue. When the queue is full the block is left out: the next read or scrub finds
//! the damage again.

use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::store::Store;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::LayoutMember;
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

/// Most corrupt copies that wait for repair.
const QUEUE_MAX: usize = 1024;
/// How long one replica may take to send its copy.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Passes corrupt copies to the repairing task.
#[derive(Clone)]
pub struct RepairQueue(mpsc::Sender<Wanted>);

/// A copy that is wanted.
pub struct Wanted {
    hash: BlockHash,
    /// A daemon with a copy, though it may not belong there.
    from: Option<BlockdId>,
}

impl RepairQueue {
    /// The queue, and its other end for [`run`].
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Wanted>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Self(sender), receiver)
    }

    /// Asks for a copy to be repaired.
    pub fn push(&self, hash: BlockHash) {
        if self.0.try_send(Wanted { hash, from: None }).is_err() {
            tracing::debug!(%hash, "too many repairs wait: this one is left to the next scrub");
        }
    }

    /// Asks for a copy that is missing here. Returns false when too many wait.
    #[must_use]
    pub fn fetch(&self, hash: BlockHash, from: BlockdId) -> bool {
        self.0.try_send(Wanted { hash, from: Some(from) }).is_ok()
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
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Repairs what is queued until cancelled.
pub async fn run(repairer: Repairer, mut queue: mpsc::Receiver<Wanted>, stop: CancellationToken) {
    while let Some(Some(Wanted { hash, from })) = stop.run_until_cancelled(queue.recv()).await {
        // What is wanted because it is owed may belong elsewhere by now. It would lie here until the next comparison.
        if from.is_some() && !repairer.wants(&hash) {
            continue;
        }
        let Some(fetched) = stop.run_until_cancelled(repairer.fetch(hash, from)).await else { return };
        let Some(block) = fetched else {
            tracing::warn!(%hash, "a copy cannot be repaired now: no other daemon has a good one");
            continue;
        };
        match repairer.store.put(hash, block).await {
            Ok(_) => {
                repairer.metrics.repaired.add(1);
                tracing::info!(%hash, "a copy was repaired");
            }
            Err(error) => tracing::warn!(%hash, %error, "a good copy could not be stored"),
        }
    }
}

impl Repairer {
    fn wants(&self, hash: &BlockHash) -> bool {
        let owns = || self.layouts.newest().owners(hash).iter().any(|owner| owner.id == self.id);
        !self.store.contains(hash) && !self.store.is_full() && owns()
    }

    /// Fetches a good copy from that daemon, or from any other owner, in the present layout or one that is not final.
    async fn fetch(&self, hash: BlockHash, from: Option<BlockdId>) -> Option<Bytes> {
        let layout = self.layouts.newest();
        let owners = layout.owners(&hash).into_iter().chain(layout.older_owners(&hash));
        let owners = from.and_then(|id| layout.member(&id)).into_iter().chain(owners);
        for owner in owners.filter(|owner| owner.id != self.id) {
            if let Some(block) = self.fetch_from(owner, hash, layout.epoch).await {
                return Some(block);
            }
        }
        None
    }

    async fn fetch_from(&self, owner: &LayoutMember, hash: BlockHash, epoch: LayoutEpoch) -> Option<Bytes> {
        let peer = self.endpoint.peer(owner.addr, Role::Blockd);
        let request = BlockRequest::Get { hash, epoch, offset: 0, len: u32::MAX };
        match peer.request::<_, BlockReply>(&request, &[], FETCH_TIMEOUT).await {
            // I9: the copy is verified here again, whatever its sender says.
            Ok((BlockReply::Content { .. }, block)) if matches(hash, &block).await => Some(block),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%hash, peer = owner.name, %error, "no copy from there");
                None
            }
        }
    }
}

async fn matches(hash: BlockHash, block: &Bytes) -> bool {
    let block = block.clone();
    tokio::task::spawn_blocking(move || BlockHash::of(&block) == hash).await.unwrap_or(false)
}
