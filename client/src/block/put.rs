//! Storing blocks: down a chain of daemons, until enough of them have synced it (I9).

use super::layout::{Holder, Layouts};
use crate::network::Blockd;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use wire::FsError;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};
use wire::retry::Backoff;

/// One block through the whole chain, with syncs, on a slow disk.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Blocks on their way at once.
const IN_FLIGHT: usize = 8;
/// Between warnings while too few daemons answer.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// How long a full cluster is asked again before the writer is told.
const FULL_PATIENCE: Duration = Duration::from_secs(2);

/// Stores blocks.
pub struct Putter {
    blockds: Arc<dyn Blockd>,
    layouts: Arc<Layouts>,
    in_flight: Semaphore,
    soft_timeout: Option<Duration>,
}

/// How an attempt ended when too few have it.
enum Missed {
    NoSpace,
    TooFew(String),
}

impl Putter {
    /// Stores with these daemons.
    #[must_use]
    pub fn new(blockds: Arc<dyn Blockd>, layouts: Arc<Layouts>, soft_timeout: Option<Duration>) -> Self {
        Self { blockds, layouts, in_flight: Semaphore::new(IN_FLIGHT), soft_timeout }
    }

    /// Stores a block. On return it is on stable storage on at least `min_sync` daemons. Cancel-safe: a block that nobody
    /// refers to is deleted after a while.
    ///
    /// # Errors
    /// `NoSpace`, or `Io` when a soft mount's patience ends.
    pub async fn put(&self, hash: BlockHash, block: Bytes) -> Result<(), FsError> {
        let _slot = self.in_flight.acquire().await.map_err(|_| FsError::Io)?;
        let started = Instant::now();
        let mut warned = started;
        let mut backoff = Backoff::default();
        loop {
            let layout = self.layouts.newest();
            let owners = self.layouts.owners(&layout, &hash);
            match self.attempt(&layout, &owners, hash, &block).await {
                Ok(()) => return Ok(()),
                Err(Missed::NoSpace) if started.elapsed() > FULL_PATIENCE => return Err(FsError::NoSpace),
                Err(Missed::NoSpace) => {}
                Err(Missed::TooFew(reason)) => {
                    if self.soft_timeout.is_some_and(|limit| started.elapsed() > limit) {
                        return Err(FsError::Io);
                    }
                    if warned.elapsed() > WARN_EVERY {
                        warned = Instant::now();
                        tracing::warn!(%hash, reason, "waiting for block daemons");
                    }
                }
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn attempt(&self, layout: &Layout, owners: &[Holder], hash: BlockHash, block: &Bytes) -> Result<(), Missed> {
        // I9: fewer daemons than must sync it are too few, however well they do.
        let needed = usize::from(layout.min_sync.max(1));
        let Some(((first, addr), chain)) = owners.split_first().filter(|_| owners.len() >= needed) else {
            return Err(Missed::TooFew(format!("{} block daemons are known, {needed} are needed", owners.len())));
        };
        let chain = chain.iter().map(|(id, _)| *id).collect();
        let request = BlockRequest::Put { hash, epoch: layout.epoch, chain };
        match self.blockds.ask(*addr, &request, std::slice::from_ref(block), ATTEMPT).await {
            Ok((BlockReply::Stored { synced, failed, layout }, _)) => {
                self.layouts.trust(*first);
                for (id, _) in &failed {
                    self.layouts.suspect(*id);
                }
                if let Some(layout) = layout {
                    self.layouts.learn(layout);
                }
                // I9: one daemon that stands twice in the chain is one copy, and one that was not asked is none.
                let is_asked = |id: &&BlockdId| owners.iter().any(|(owner, _)| owner == *id);
                let copies = synced.iter().filter(is_asked).collect::<BTreeSet<_>>().len();
                if copies >= needed {
                    return Ok(());
                }
                Err(Missed::TooFew(format!("{copies} of {needed} stored it; {failed:?}")))
            }
            Ok((BlockReply::NoSpace, _)) => Err(Missed::NoSpace),
            Ok((other, _)) => {
                self.layouts.suspect(*first);
                Err(Missed::TooFew(format!("{addr} answered {other:?}")))
            }
            Err(error) => {
                self.layouts.suspect(*first);
                Err(Missed::TooFew(error.to_string()))
            }
        }
    }
}
