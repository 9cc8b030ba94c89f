//! Deletion of blocks that nothing refers to (I10), and of the content of removed files.

use crate::Shared;
use crate::error::ProposeError;
use crate::fs::keys::Key;
use crate::fs::{Command, Stamped, blockref, hidden, orphan, remains, retention, settings};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::attr::Timestamp;
use wire::ids::{BlockHash, Ino, SessionId};
use wire::message::block::{BlockReply, BlockRequest};
use wire::tls::Role;

/// Blocks handled in one round.
const ROUND_BLOCKS: usize = 512;
/// Pause after a round that came to the end of the list, or failed.
const ROUND_PAUSE: Duration = Duration::from_secs(5);
/// How long a daemon is waited for; blocks of a slower one count as dropped, and its block report finds them later.
const DROP_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between rounds in which daemons retain blocks: they are asked again and again.
const RETAINED_PAUSE: Duration = Duration::from_millis(200);
/// Pause between pieces of a removed file: other commands go in between.
const REAP_PAUSE: Duration = Duration::from_millis(5);
/// Files whose cuts are settled together.
const SETTLED_AT_ONCE: usize = 64;
/// The machine's clock was set forward if it has gained more than this between two looks at it.
const CLOCK_GAIN_MAX: Duration = Duration::from_secs(1);

/// Watches the machine's clock, by which the age of unreferenced blocks is measured. When it is set forward, all of them
/// seem to be older than they are.
#[derive(Default)]
struct ClockWatch {
    last: Option<(Instant, Timestamp)>,
    set_forward: Option<Instant>,
}

impl ClockWatch {
    /// Looks at the clock, which says `said` at the instant `now`. Returns whether ages of up to `grace` are right: the
    /// clock was not set forward for so long. It must be asked regularly, also while this node does not lead.
    fn looks_right(&mut self, (now, said): (Instant, Timestamp), grace: Duration) -> bool {
        if let Some((before, said_before)) = self.last.replace((now, said)) {
            let gained = said.as_millis().saturating_sub(said_before.as_millis());
            if Duration::from_millis(gained) > now.duration_since(before) + CLOCK_GAIN_MAX {
                tracing::warn!("the clock was set forward: no block is deleted before the grace of all is over");
                self.set_forward = Some(now);
            }
        }
        self.set_forward.is_none_or(|at| now.duration_since(at) >= grace)
    }
}

/// Deletes unreferenced blocks until cancelled, while this node leads.
pub async fn run(shared: Arc<Shared>) {
    let (mut after, mut clock) = (None, ClockWatch::default());
    loop {
        let may_delete = clock.looks_right((Instant::now(), Timestamp::now()), shared.config.gc_grace);
        let looked_at = if may_delete && shared.consensus.leads() { round(&shared, &mut after).await } else { 0 };
        if looked_at < ROUND_BLOCKS {
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }
}

/// Asks daemons to drop the next blocks, after those of the last round: blocks that daemons retain must not hold up the
/// others. Returns how many blocks were handled; fewer than [`ROUND_BLOCKS`] means that there are no more for now.
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
    // I10: each daemon decides for itself, by the stamps of its own copies. A daemon that is away learns it from the
    // answer to its block report when it comes back.
    let asking = by_daemon.into_iter().map(|(addr, hashes)| {
        let request = BlockRequest::Drop { hashes: hashes.clone(), epoch: layout.epoch, grace_ms };
        retained_by(shared, addr, hashes, request)
    });
    // All daemons at once: a slow answer holds up no other.
    let retained: BTreeSet<BlockHash> = futures::future::join_all(asking).await.into_iter().flatten().collect();
    if !retained.is_empty() {
        tokio::time::sleep(RETAINED_PAUSE).await;
    }
    let count = blocks.len();
    let gone: Vec<BlockHash> = blocks.into_iter().filter(|hash| !retained.contains(hash)).collect();
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

/// Asks a daemon to drop its copies of these blocks. Returns those that it retains; none when it does not answer.
async fn retained_by(
    shared: &Shared,
    addr: SocketAddr,
    hashes: Vec<BlockHash>,
    request: BlockRequest,
) -> Vec<BlockHash> {
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

/// Deletes what ended sessions have left, the content of removed files, and what was cut off others, piece by piece, until
/// cancelled.
pub async fn reap(shared: Arc<Shared>) {
    loop {
        let state = &**shared.consensus.state();
        let is_left =
            || remains::are_left(state) || orphan::has_reaping(state) || !hidden::unfinished(state, 1).is_empty();
        let waiting = shared.consensus.leads() && is_left();
        if waiting && shared.propose(Command::Reap).await.is_ok() {
            tokio::time::sleep(REAP_PAUSE).await;
        } else {
            tokio::time::sleep(ROUND_PAUSE / 5).await;
        }
    }
}

/// Corrects how much files take of which something was cut off, once all of it is removed, until cancelled.
pub async fn settle_cuts(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(ROUND_PAUSE / 5).await;
        let inos = if shared.consensus.leads() {
            hidden::finished(&**shared.consensus.state(), SETTLED_AT_ONCE)
        } else {
            Vec::new()
        };
        if !inos.is_empty()
            && let Err(error) = settle(&shared, inos).await
        {
            tracing::debug!(%error, "what was cut off files is deducted later");
        }
    }
}

/// Corrects attributes of files once nobody answers from a cache how much they take.
async fn settle(shared: &Shared, inos: Vec<Ino>) -> Result<(), ProposeError> {
    let Some(term) = shared.consensus.leadership() else { return Err(ProposeError::Unknown) };
    shared.wait_for_others(None).await?;
    // There is no session: whatever any session has cached is recalled.
    let _changing = shared.begin_change(term, (SessionId::default(), None), (inos.clone(), Vec::new()), false).await?;
    let stamped = Stamped { now: shared.clock.now(), command: Command::SettleCuts(inos) };
    shared.consensus.propose_in(Some(term), stamped).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards I10.
    #[test]
    fn after_the_clock_was_set_forward_no_age_is_believed_until_the_grace_is_over() {
        const GRACE: Duration = Duration::from_secs(600);
        let (begun, mut watch) = (Instant::now(), ClockWatch::default());
        let mut look = |second: u64, ahead_s: i128| {
            let said = Timestamp::default().shifted((i128::from(second) + 10_000 + ahead_s) * 1_000_000_000);
            watch.looks_right((begun + Duration::from_secs(second), said), GRACE)
        };
        assert!(look(0, 0) && look(5, 0) && look(25, 0));
        assert!(!look(30, 3_600), "an hour too far");
        assert!(!look(35, 3_600) && !look(629, 3_600));
        assert!(look(630, 3_600), "what was unreferenced by then is ten minutes old");
        assert!(look(635, 0) && look(640, 0), "set back, it only makes blocks seem younger");
        assert!(!look(645, 3_600));
    }
}
