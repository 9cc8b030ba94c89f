//! Finding blocks that something refers to, and that no daemon which answers has.
//!
//! Comparing daemons with each other shows what one has and another lacks, never what all lack. So each owner asks
//! metad for the names of what it owes, page by page, and looks for those that are not here on all other daemons.
//! What another one has is fetched. What nobody has is *missing*: heartbeats report how many there are, and they are
//! looked for again every few seconds, because a daemon that was away may bring them back.
//!
//! Owner: one task. It goes through everything after each change of the layout, and from time to time.

use super::duties::Duties;
use super::progress::Progress;
use super::read_repair::RepairQueue;
use crate::heartbeat::Metads;
use crate::layouts::Layouts;
use crate::store::Store;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::retry::Backoff;
use wire::tls::Role;
use wire::{Error, chance};

/// Pause after a page, and after so many spans without one: metad has more urgent work.
const PAUSE: Duration = Duration::from_millis(50);
/// The spans.
const SPANS_AT_ONCE: u32 = 16;
/// An audit begins within this time after a change of the layout, because all daemons begin one then.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// Pauses before the next attempt after one that was not completed: a daemon may be behind by a heartbeat, or metad
/// away.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often missing blocks are looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How long another daemon may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Missing blocks that are remembered by name, and looked for again between two audits.
const REMEMBERED_MAX: usize = 65_536;
/// Blocks that are fetched because of one page at most. Comparing with others copies more, at a rate of its own.
const FETCHED_MAX: usize = 64;
/// While no more blocks are missing, metad is asked for each whether something still refers to it.
const ASKED_SINGLY_MAX: usize = 64;

/// Why an audit was not completed.
type Failed = String;

/// What an audit needs.
pub struct Auditor {
    /// This daemon.
    pub id: BlockdId,
    /// What is here.
    pub store: Arc<Store>,
    /// What is known of the layout.
    pub layouts: Arc<Layouts>,
    /// How others are reached.
    pub endpoint: Endpoint,
    /// Who knows what is referred to.
    pub metads: Metads,
    /// Fetches what others have.
    pub repairs: RepairQueue,
    /// What heartbeats report.
    pub progress: Arc<Progress>,
    /// Time between two audits while nothing changes.
    pub every: Duration,
}

/// What was found missing.
#[derive(Default)]
struct Missing {
    names: BTreeSet<BlockHash>,
    /// Those that are not remembered by name.
    more: u64,
}

impl Missing {
    fn add(&mut self, hash: BlockHash) {
        if self.names.len() < REMEMBERED_MAX {
            self.names.insert(hash);
        } else {
            self.more += 1;
        }
    }

    fn count(&self) -> u64 {
        self.names.len() as u64 + self.more
    }
}

/// Audits until cancelled.
pub async fn run(mut auditor: Auditor, stop: CancellationToken) {
    let mut layouts = auditor.layouts.watch();
    let mut missing = Missing::default();
    let mut reported = 0;
    let mut retries = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
    let (mut due, mut next_look, mut at) = (Instant::now(), None, None);
    loop {
        let layout = layouts.borrow_and_update().clone();
        if at != Some(layout.epoch) {
            due = Instant::now() + BEGIN_WITHIN.mul_f64(chance::fraction());
            (next_look, at) = (None, Some(layout.epoch));
            retries = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
        }
        let wake = next_look.map_or(due, |look: Instant| look.min(due));
        tokio::select! {
            () = stop.cancelled() => return,
            _ = layouts.changed() => continue,
            () = tokio::time::sleep_until(wake) => {}
        }
        let is_audit = due <= Instant::now();
        let step =
            async { if is_audit { auditor.audit(&layout).await } else { auditor.look_again(&layout, &missing).await } };
        match stop.run_until_cancelled(step).await {
            None => return,
            Some(Ok(found)) => {
                // Reported is what was not found twice: a daemon may just have been too busy to answer.
                let count = if is_audit { found.count().min(reported) } else { found.count() };
                if count > reported {
                    tracing::warn!(count, "no daemon that can be reached has blocks that this one owes");
                }
                (missing, reported) = (found, count);
                if is_audit {
                    due = Instant::now() + auditor.every;
                    retries = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
                }
            }
            Some(Err(reason)) => {
                tracing::debug!(reason, "blocks that are owed could not be looked for");
                if is_audit {
                    due = Instant::now() + retries.delay();
                }
            }
        }
        next_look = (missing.count() > 0).then(|| Instant::now() + LOOK_AGAIN);
        auditor.progress.set_missing(reported);
    }
}

/// Daemons that did not answer during this audit: they are not waited for again.
type Silent = BTreeSet<BlockdId>;

impl Auditor {
    /// Looks for everything that this daemon owes under a layout.
    async fn audit(&mut self, layout: &Layout) -> Result<Missing, Failed> {
        let (mut missing, mut silent, mut spans) = (Missing::default(), Silent::new(), 0);
        for span in Duties::of(layout, &self.id).owed {
            let mut from = Some(span.first_hash());
            while let Some(first) = from {
                let (page, next) = self.referenced(layout, first, span.last_hash()).await?;
                self.look_for(layout, page, &mut missing, &mut silent).await?;
                if self.layouts.newest().epoch != layout.epoch {
                    return Err("the layout has changed".to_owned());
                }
                from = next;
                spans += 1;
                if from.is_some() || spans >= SPANS_AT_ONCE {
                    spans = 0;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(missing)
    }

    /// Looks for what was missing.
    async fn look_again(&mut self, layout: &Layout, before: &Missing) -> Result<Missing, Failed> {
        let mut missing = Missing { more: before.more, ..Missing::default() };
        let mut names: Vec<BlockHash> = before.names.iter().copied().collect();
        if names.len() <= ASKED_SINGLY_MAX {
            let all = std::mem::take(&mut names);
            for hash in all {
                names.extend(self.referenced(layout, hash, hash).await?.0);
            }
        }
        self.look_for(layout, names, &mut missing, &mut Silent::new()).await?;
        Ok(missing)
    }

    /// Looks for blocks that this daemon owes: what others have is fetched, and what nobody has is missing.
    async fn look_for(
        &self,
        layout: &Layout,
        hashes: Vec<BlockHash>,
        missing: &mut Missing,
        silent: &mut Silent,
    ) -> Result<(), Failed> {
        let mut absent: Vec<BlockHash> = hashes.into_iter().filter(|hash| !self.store.contains(hash)).collect();
        let mut elsewhere: Vec<(BlockHash, BlockdId)> = Vec::new();
        // Those that serve reads and own nothing come last.
        let mut others: Vec<&LayoutMember> = layout.members.iter().filter(|member| member.id != self.id).collect();
        others.sort_by_key(|member| member.failed || member.out);
        for member in others {
            if absent.is_empty() {
                break;
            }
            if silent.contains(&member.id) {
                continue;
            }
            match self.held_by(layout, member, &absent).await? {
                Some(held) => {
                    absent.retain(|hash| !held.contains(hash));
                    elsewhere.extend(held.into_iter().map(|hash| (hash, member.id)));
                }
                None => {
                    silent.insert(member.id);
                }
            }
        }
        // Before a pass under this layout has ended, that copies what is not here, and at its own rate.
        if self.progress.is_done(layout.placement) {
            for (hash, from) in elsewhere.iter().take(FETCHED_MAX) {
                // When too many wait, the next audit finds it again.
                let _ = self.repairs.fetch(*hash, *from);
            }
        }
        for hash in absent {
            // Of the owners that answer, the first counts it: the sum over all daemons counts each block once.
            let owners = layout.owners(&hash);
            if owners.iter().find(|owner| !silent.contains(&owner.id)).map(|owner| owner.id) == Some(self.id) {
                missing.add(hash);
            }
        }
        Ok(())
    }

    /// Those of the blocks that another daemon has; `None` when it does not answer.
    async fn held_by(
        &self,
        layout: &Layout,
        member: &LayoutMember,
        hashes: &[BlockHash],
    ) -> Result<Option<BTreeSet<BlockHash>>, Failed> {
        if member.failed || member.out {
            // A daemon with a failed disk answers every probe with no, but still serves what it has; one that is out
            // may know an old layout, and be cut off from the metads alone.
            return Ok(self.readable_at(layout, member, hashes).await);
        }
        let request = BlockRequest::Probe { epoch: layout.epoch, hashes: hashes.to_vec() };
        let peer = self.endpoint.peer(member.addr, Role::Blockd);
        match peer.request::<_, BlockReply>(&request, &[], ASK_TIMEOUT).await {
            Ok((BlockReply::Present(present), _)) if present.len() == hashes.len() => {
                Ok(Some(hashes.iter().zip(present).filter(|(_, here)| *here).map(|(hash, _)| *hash).collect()))
            }
            Ok((BlockReply::Behind, _)) => Err(format!("{} does not know the layout yet", member.name)),
            Ok((other, _)) => Err(format!("{} answered {other:?}", member.name)),
            Err(error @ Error::Busy { .. }) => Err(error.to_string()),
            Err(_) => Ok(None),
        }
    }

    /// Those of the blocks of which a daemon sends the first byte.
    async fn readable_at(
        &self,
        layout: &Layout,
        member: &LayoutMember,
        hashes: &[BlockHash],
    ) -> Option<BTreeSet<BlockHash>> {
        let peer = self.endpoint.peer(member.addr, Role::Blockd);
        let mut readable = BTreeSet::new();
        for hash in hashes {
            let request = BlockRequest::Get { hash: *hash, epoch: layout.epoch, offset: 0, len: 1 };
            let (reply, _) = peer.request::<_, BlockReply>(&request, &[], ASK_TIMEOUT).await.ok()?;
            if matches!(reply, BlockReply::Content { .. }) {
                readable.insert(*hash);
            }
        }
        Some(readable)
    }

    async fn referenced(
        &mut self,
        layout: &Layout,
        from: BlockHash,
        last: BlockHash,
    ) -> Result<(Vec<BlockHash>, Option<BlockHash>), Failed> {
        let request = MetaRequest::Referenced { epoch: layout.epoch, from, last };
        match self.metads.ask(&request).await {
            // `next` must grow, or this would loop for ever.
            Ok(MetaReply::Referenced { next: Some(next), .. }) if next <= from => Err("a page went back".to_owned()),
            Ok(MetaReply::Referenced { blocks, next }) => Ok((blocks, next)),
            Ok(other) => Err(format!("metad answered {other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
