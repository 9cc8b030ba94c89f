//! Answers requests: who may ask what, which layout the sender knows (I11), and the dispatch of [`BlockRequest`].
//!
//! Any certificate of the cluster may open a connection; each request then needs a role. State: none of its own, all in
//! the parts that [`Server`] holds.

use crate::chord::driver::Ring;
use crate::error::NOT_A_MEMBER;
use crate::heartbeat::drop_blocks;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::repair::read_repair::RepairQueue;
use crate::replicate::{Chain, Received, Replicator};
use crate::stamps::Stamps;
use crate::store::{self, Store};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::limits::BLOCK_BYTES_MAX;
use wire::message::block::{BlockReply, BlockRequest, BlockRequestKind, BlockdStatus};
use wire::quic::{Incoming, Service};
use wire::tls::{PeerIdentity, Role, Subject};
use wire::{Error, describe};

/// Most names in one reply of `List`.
const LIST_MAX: u32 = 65_536;

/// The answering side of a block daemon.
pub struct Server {
    /// This daemon.
    pub id: BlockdId,
    /// Where blocks are.
    pub store: Arc<Store>,
    /// When they were renewed.
    pub stamps: Arc<Stamps>,
    /// How they reach the rest of their chain.
    pub replicator: Replicator,
    /// What is known of the layout.
    pub layouts: Arc<Layouts>,
    /// This daemon's place among its neighbours.
    pub ring: Arc<Ring>,
    /// Where corrupt copies are reported.
    pub repairs: RepairQueue,
    /// Blocks renewed less than this long ago are not dropped, whoever asks for it.
    pub drop_grace_min: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the disk has failed for good: the daemon is to stop.
    pub disk_failed: CancellationToken,
}

/// Whether the holder of a certificate may ask this.
fn may_ask(subject: &Subject, request: BlockRequestKind) -> bool {
    match request {
        BlockRequestKind::Put => match subject.role {
            Role::Client => !subject.grant.read_only,
            Role::Blockd | Role::Admin => true,
            Role::Metad => false,
        },
        BlockRequestKind::Get | BlockRequestKind::Lookup | BlockRequestKind::Status => true,
        BlockRequestKind::Drop => subject.role == Role::Metad,
        BlockRequestKind::List | BlockRequestKind::Probe => subject.role != Role::Client,
        BlockRequestKind::Chord => subject.role == Role::Blockd,
    }
}

/// Whether it stays within the bounds of this daemon. Those of its lists were checked when it was decoded.
fn is_bounded(request: &BlockRequest, payload_len: usize) -> bool {
    match request {
        BlockRequest::Put { .. } => (1..=BLOCK_BYTES_MAX).contains(&payload_len),
        _ => payload_len == 0,
    }
}

impl Service for Server {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(()) // every role may ask something
    }

    async fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, mut incoming: Incoming) {
        // The role is checked on the first bytes: nothing else is decoded for who may not ask.
        let kind = match incoming.kind::<BlockRequestKind>() {
            Ok(kind) => kind,
            Err(error) => return incoming.refuse(&error.to_string()).await,
        };
        if !may_ask(&peer.subject, kind) {
            self.metrics.unauthorized.add(1);
            return incoming.refuse(&format!("a {} may not ask this of a blockd", peer.subject.role)).await;
        }
        let request = match incoming.decode::<BlockRequest>() {
            Ok(request) => request,
            Err(error) => return incoming.refuse(&error.to_string()).await,
        };
        tracing::debug!(?request, "request");
        if !is_bounded(&request, incoming.payload_len()) {
            return incoming.refuse("the request exceeds a limit").await;
        }
        let (reply, payload) = match request {
            BlockRequest::Put { hash, epoch, chain } => return self.put(hash, epoch, chain, incoming).await,
            BlockRequest::Get { hash, epoch, offset, len } => {
                if incoming.reserve_answer((len as usize).min(BLOCK_BYTES_MAX)).await.is_err() {
                    return incoming.refuse_busy("too many answers wait to be fetched").await;
                }
                self.get(hash, epoch, offset, len).await
            }
            other => (self.answer(other).await, None),
        };
        incoming.respond(&reply, payload.as_slice()).await;
    }
}

impl Server {
    async fn answer(&self, request: BlockRequest) -> BlockReply {
        match request {
            BlockRequest::Drop { hashes, grace_ms } => {
                let grace = Duration::from_millis(grace_ms).max(self.drop_grace_min);
                BlockReply::Dropped(drop_blocks(&self.store, &self.stamps, &self.metrics, &hashes, grace).await)
            }
            BlockRequest::List { from, limit } => {
                BlockReply::Blocks(self.store.list(from, limit.min(LIST_MAX) as usize))
            }
            BlockRequest::Probe { hashes } => {
                BlockReply::Present(hashes.iter().map(|hash| self.store.contains(hash)).collect())
            }
            BlockRequest::Chord(question) => match self.ring.answer(&question) {
                Some(reply) => BlockReply::Chord(reply),
                None => BlockReply::Failed(NOT_A_MEMBER.to_owned()),
            },
            BlockRequest::Lookup { point } => match self.ring.look_up(point).await {
                Some((member, hops)) => BlockReply::Found { member, hops },
                None => BlockReply::Failed(NOT_A_MEMBER.to_owned()),
            },
            BlockRequest::Status => BlockReply::Status(self.status()),
            BlockRequest::Put { .. } | BlockRequest::Get { .. } => unreachable!("dispatched by the caller"),
        }
    }

    fn status(&self) -> BlockdStatus {
        let stats = self.store.stats();
        let (predecessor, successors) = self.ring.neighbours();
        BlockdStatus {
            id: self.id,
            capacity_bytes: stats.capacity_bytes,
            free_bytes: stats.free_bytes,
            block_count: stats.block_count,
            epoch: self.layouts.newest().epoch,
            predecessor,
            successors,
        }
    }

    /// Receives, verifies, stores, and passes on. The copy is on stable storage before it is acknowledged (I9).
    async fn put(&self, hash: BlockHash, epoch: LayoutEpoch, chain: Chain, mut incoming: Incoming) {
        let layout = self.layouts.naming(epoch, &chain).await;
        let mut forward = self.replicator.forward(hash, epoch, (&*layout, chain), &incoming).await;
        let (block, sections) = match self.replicator.receive(&mut incoming, &mut forward).await {
            Ok(Received::Block(block, sections)) => (block, sections),
            Ok(Received::Mismatch) => {
                self.metrics.mismatches.add(1);
                return incoming.refuse(&format!("the payload does not match its name {hash}")).await;
            }
            Err(error) => {
                tracing::debug!(%hash, %error, "the sender went away");
                return;
            }
        };
        let local = async {
            // I10: renewed before the store is looked at, so that no drop slips in between.
            self.stamps.renew(hash).await;
            self.store.put_with_sections(hash, block.clone(), sections).await
        };
        let (stored, mut outcome) = tokio::join!(local, forward.finish(&block));
        self.metrics.chain_failures.add(outcome.failed.len() as u64);
        let alone = outcome.synced.is_empty();
        match stored {
            Ok(_) => {
                self.metrics.puts.add(1);
                self.metrics.put_bytes.add(block.len() as u64);
                // I9: the store has synced it.
                outcome.synced.insert(0, self.id);
            }
            Err(error) if alone && error.is_no_space() => {
                return incoming.respond(&BlockReply::NoSpace, &[]).await;
            }
            Err(error) => {
                if matches!(error, store::Error::Failed) {
                    self.disk_failed.cancel();
                }
                outcome.failed.push((self.id, describe(&error)));
            }
        }
        let layout = self.layouts.compare(epoch);
        let reply = BlockReply::Stored { synced: outcome.synced, failed: outcome.failed, layout };
        incoming.respond(&reply, &[]).await;
    }

    async fn get(&self, hash: BlockHash, epoch: LayoutEpoch, offset: u32, len: u32) -> (BlockReply, Option<Bytes>) {
        let layout = self.layouts.compare(epoch);
        // I9: the store verifies what it gives out, the whole block or those of its sections that hold the part.
        match self.store.get_part(hash, offset, len).await {
            Ok(Some((block_len, bytes))) => {
                self.metrics.gets.add(1);
                self.metrics.get_bytes.add(bytes.len() as u64);
                (BlockReply::Content { block_len }, Some(bytes))
            }
            Ok(None) => {
                self.metrics.misses.add(1);
                (BlockReply::NotHere { corrupt: false, layout }, None)
            }
            // A copy that cannot be read is as bad as one that reads wrongly.
            Err(store::Error::Corrupt { .. } | store::Error::Io { .. }) => {
                self.metrics.corrupt.add(1);
                tracing::warn!(%hash, "a corrupt copy was quarantined; it is repaired from another daemon");
                self.repairs.push(hash);
                (BlockReply::NotHere { corrupt: true, layout }, None)
            }
            Err(error) => (BlockReply::Failed(describe(&error)), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_needs_its_role() {
        let (drop, put, probe) = (BlockRequestKind::Drop, BlockRequestKind::Put, BlockRequestKind::Probe);
        let subject = |role| Subject::new(role, "x");
        assert!(may_ask(&subject(Role::Metad), drop) && !may_ask(&subject(Role::Admin), drop));
        assert!(may_ask(&subject(Role::Client), put) && !may_ask(&subject(Role::Metad), put));
        assert!(!may_ask(&subject(Role::Client), probe), "a hash is no permission");
        let mut reader = subject(Role::Client);
        reader.grant.read_only = true;
        assert!(!may_ask(&reader, put));
    }

    #[test]
    fn a_block_is_between_one_byte_and_four_mebibytes_long() {
        let put = BlockRequest::Put { hash: BlockHash([0; 32]), epoch: LayoutEpoch(0), chain: Vec::new() };
        assert!(!is_bounded(&put, 0) && is_bounded(&put, 1));
        assert!(is_bounded(&put, BLOCK_BYTES_MAX) && !is_bounded(&put, BLOCK_BYTES_MAX + 1));
    }
}
