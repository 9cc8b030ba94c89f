//! Deleting blocks that nothing refers to (I10), and taking removed files apart.

use crate::Shared;
use crate::fs::keys::Key;
use crate::fs::{Command, blockref, orphan, retention, settings};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::ids::BlockHash;
use wire::message::block::{BlockReply, BlockRequest};
use wire::tls::Role;

/// Blocks looked at in one round.
const ROUND_BLOCKS: usize = 512;
/// After a round that came to the end of the list, or failed.
const PAUSE: Duration = Duration::from_secs(5);
/// A daemon that takes longer to drop blocks is passed over.
const DROP_TIMEOUT: Duration = Duration::from_secs(20);
/// Between rounds in which daemons keep blocks: they are asked again and again.
const KEPT_PAUSE: Duration = Duration::from_millis(200);
/// Between pieces of a removed file: other commands go in between.
const REAP_PAUSE: Duration = Duration::from_millis(5);

/// Deletes unreferenced blocks until cancelled, while this node leads.
pub async fn run(shared: Arc<Shared>) {
    let mut after = None;
    loop {
        let looked_at = if shared.consensus.leads() { round(&shared, &mut after).await } else { 0 };
        if looked_at < ROUND_BLOCKS {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Asks for the next blocks to be dropped, behind those of the last round: blocks that daemons keep must not hold up the others.
/// Returns how many it has dealt with; fewer than [`ROUND_BLOCKS`] means that there are no more for now.
async fn round(shared: &Shared, after: &mut Option<Key>) -> usize {
    let grace_ms = u64::try_from(shared.config.gc_grace.as_millis()).unwrap_or(u64::MAX);
    let (now, state) = (Timestamp::now(), shared.consensus.state());
    let Some(unpinned) = retention::deletable_before(&**state, now) else { return 0 };
    let before = now.as_millis().saturating_sub(grace_ms).min(unpinned);
    let blocks = blockref::next_unreferenced(&**state, after, before, ROUND_BLOCKS);
    if blocks.is_empty() {
        return 0;
    }
    let layout = settings::layout(&**state);
    let mut by_daemon: BTreeMap<SocketAddr, Vec<BlockHash>> = BTreeMap::new();
    for hash in &blocks {
        let owners = layout.owners(hash).into_iter().chain(layout.older_owners(hash));
        for addr in owners.map(|owner| owner.addr).collect::<BTreeSet<_>>() {
            by_daemon.entry(addr).or_default().push(*hash);
        }
    }
    // I10: each daemon decides for itself, against the stamps of its own copies. One that is away finds out by its block
    // report when it comes back.
    let asking = by_daemon.into_iter().map(|(addr, hashes)| {
        let request = BlockRequest::Drop { hashes: hashes.clone(), epoch: layout.epoch, grace_ms };
        kept_by(shared, addr, hashes, request)
    });
    // All at once: one that answers late holds up no other.
    let kept: BTreeSet<BlockHash> = futures::future::join_all(asking).await.into_iter().flatten().collect();
    if !kept.is_empty() {
        tokio::time::sleep(KEPT_PAUSE).await;
    }
    let count = blocks.len();
    let gone: Vec<BlockHash> = blocks.into_iter().filter(|hash| !kept.contains(hash)).collect();
    if gone.is_empty() {
        return count;
    }
    match shared.propose(Command::BlocksDropped(gone)).await {
        Ok(_) => count,
        Err(error) => {
            tracing::debug!(%error, "dropped blocks are forgotten in a later round");
            0
        }
    }
}

/// Has a daemon drop its copies of these blocks. Returns those that it keeps; none when it does not answer.
async fn kept_by(shared: &Shared, addr: SocketAddr, hashes: Vec<BlockHash>, request: BlockRequest) -> Vec<BlockHash> {
    let peer = shared.endpoint.peer(addr, Role::Blockd);
    match peer.request::<_, BlockReply>(&request, &[], DROP_TIMEOUT).await {
        Ok((BlockReply::Dropped(dropped), _)) if dropped.len() <= hashes.len() => {
            let dropped: BTreeSet<BlockHash> = dropped.into_iter().collect();
            hashes.into_iter().filter(|hash| !dropped.contains(hash)).collect()
        }
        Ok((BlockReply::Dropped(dropped), _)) => {
            tracing::warn!(%addr, count = dropped.len(), "the daemon says that it dropped more blocks than it was asked to");
            hashes
        }
        Ok((other, _)) => {
            tracing::warn!(%addr, ?other, "blocks were not dropped");
            Vec::new()
        }
        Err(error) => {
            tracing::debug!(%addr, %error, "blocks will be dropped when the daemon is back");
            Vec::new()
        }
    }
}

/// Takes the content of removed files apart, piece by piece, until cancelled.
pub async fn reap(shared: Arc<Shared>) {
    loop {
        let waiting = shared.consensus.leads() && orphan::has_reaping(&**shared.consensus.state());
        if waiting && shared.propose(Command::Reap).await.is_ok() {
            tokio::time::sleep(REAP_PAUSE).await;
        } else {
            tokio::time::sleep(PAUSE / 5).await;
        }
    }
}
