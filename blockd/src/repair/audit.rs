//! Finding blocks that something refers to, and that no daemon which answers has.
//!
//! Comparing daemons with each other shows what one has and another lacks, never what all lack. So each owner asks metad for
//! the names of what it owes, page by page, and looks for those that are not here on all other daemons. What another one has
//! is fetched. What nobody has is *missing*: heartbeats report how many there are, and they are looked for again every few
//! seconds, because a daemon that was away may bring them back.
//!
//! Owner: one task. It goes through everything after each change of the layout, and from time to time.

use super::duties::Duties;
use super::progress::Progress;
use super::read_repair::RepairQueue;
use crate::heartbeat::Metads;
use crate::layouts::Layouts;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

/// After so many names a pause is made: metad has more urgent work.
const NAMES_AT_ONCE: usize = 4096;
/// Its length.
const PAUSE: Duration = Duration::from_millis(200);
/// Until the next attempt after one that was not completed: a daemon may be behind by a heartbeat.
const RETRY: Duration = Duration::from_secs(1);
/// How often missing blocks are looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How long another daemon may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Missing blocks that are remembered by name, and looked for again between two audits.
const REMEMBERED_MAX: usize = 65_536;

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
    let (mut due, mut at) = (Instant::now(), None);
    loop {
        let layout = layouts.borrow_and_update().clone();
        if at != Some(layout.epoch) {
            (due, at) = (Instant::now(), Some(layout.epoch));
        }
        let step = async {
            if due <= Instant::now() {
                auditor.audit(&layout).await.map(|found| (found, Instant::now() + auditor.every))
            } else {
                auditor.look_again(&layout, &missing).await.map(|found| (found, due))
            }
        };
        match stop.run_until_cancelled(step).await {
            None => return,
            Some(Ok((found, next))) => {
                if found.count() > missing.count() {
                    let count = found.count();
                    tracing::warn!(count, "no daemon that can be reached has blocks that this one owes");
                }
                (missing, due) = (found, next);
            }
            Some(Err(reason)) => {
                tracing::debug!(reason, "blocks that are owed could not be looked for");
                due = Instant::now() + RETRY;
            }
        }
        auditor.progress.set_missing(missing.count());
        let pause = if missing.names.is_empty() { due } else { due.min(Instant::now() + LOOK_AGAIN) };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = layouts.changed() => {}
            () = tokio::time::sleep_until(pause) => {}
        }
    }
}

impl Auditor {
    /// Looks for everything that this daemon owes under a layout.
    async fn audit(&mut self, layout: &Layout) -> Result<Missing, Failed> {
        let (mut missing, mut names) = (Missing::default(), 0);
        for span in Duties::of(layout, &self.id).owed {
            let mut from = Some(span.first_hash());
            while let Some(first) = from {
                let (page, next) = self.referenced(layout, first, span.last_hash()).await?;
                names += page.len();
                self.look_for(layout, page, &mut missing).await?;
                if self.layouts.newest().epoch != layout.epoch {
                    return Err("the layout has changed".to_owned());
                }
                from = next;
                if names >= NAMES_AT_ONCE {
                    names = 0;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(missing)
    }

    /// Looks for what was missing.
    async fn look_again(&mut self, layout: &Layout, before: &Missing) -> Result<Missing, Failed> {
        let names: Vec<BlockHash> = before.names.iter().copied().collect();
        let unreferenced = self.unreferenced(layout, &names).await?;
        let mut missing = Missing { more: before.more, ..Missing::default() };
        let wanted = names.into_iter().filter(|hash| !unreferenced.contains(hash)).collect();
        self.look_for(layout, wanted, &mut missing).await?;
        Ok(missing)
    }

    /// Looks for blocks that this daemon owes: what others have is fetched, and what nobody has is missing.
    async fn look_for(&self, layout: &Layout, hashes: Vec<BlockHash>, missing: &mut Missing) -> Result<(), Failed> {
        let absent: Vec<BlockHash> = hashes.into_iter().filter(|hash| !self.store.contains(hash)).collect();
        if absent.is_empty() {
            return Ok(());
        }
        let mut reached = BTreeSet::from([self.id]);
        let mut elsewhere: BTreeMap<BlockHash, BlockdId> = BTreeMap::new();
        for member in layout.members.iter().filter(|member| member.id != self.id && !member.out) {
            if let Some(held) = self.held_by(layout, member, &absent).await? {
                reached.insert(member.id);
                elsewhere.extend(held.into_iter().map(|hash| (hash, member.id)));
            }
        }
        for hash in absent {
            match elsewhere.get(&hash) {
                // When too many wait, comparing with others brings it, or the next audit.
                Some(from) => drop(self.repairs.fetch(hash, *from)),
                // Of the owners that answer, the first counts it: the sum over all daemons counts each block once.
                None if layout.owners(&hash).iter().find(|owner| reached.contains(&owner.id)).map(|owner| owner.id)
                    == Some(self.id) =>
                {
                    missing.add(hash);
                }
                None => {}
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
    ) -> Result<Option<Vec<BlockHash>>, Failed> {
        if member.failed {
            // A daemon with a failed disk answers every probe with no, but still serves what it has.
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
            Err(_) => Ok(None),
        }
    }

    /// Those of the blocks of which a daemon sends the first byte.
    async fn readable_at(
        &self,
        layout: &Layout,
        member: &LayoutMember,
        hashes: &[BlockHash],
    ) -> Option<Vec<BlockHash>> {
        let peer = self.endpoint.peer(member.addr, Role::Blockd);
        let mut readable = Vec::new();
        for hash in hashes {
            let request = BlockRequest::Get { hash: *hash, epoch: layout.epoch, offset: 0, len: 1 };
            let (reply, _) = peer.request::<_, BlockReply>(&request, &[], ASK_TIMEOUT).await.ok()?;
            if matches!(reply, BlockReply::Content { .. }) {
                readable.push(*hash);
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

    async fn unreferenced(&mut self, layout: &Layout, hashes: &[BlockHash]) -> Result<BTreeSet<BlockHash>, Failed> {
        if hashes.is_empty() {
            return Ok(BTreeSet::new());
        }
        let request = MetaRequest::BlockReport { id: self.id, epoch: layout.epoch, blocks: hashes.to_vec() };
        match self.metads.ask(&request).await {
            Ok(MetaReply::Unreferenced(hashes)) => Ok(hashes.into_iter().collect()),
            Ok(other) => Err(format!("metad answered {other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
