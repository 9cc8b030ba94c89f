//! The task that carries out [`Pass`]es: it fetches blocks that this daemon owes and does not hold, then gives back
//! those that it holds and does not owe. In between it hands off what owners missed ([`super::deliver`]).
//!
//! One task does all of that, so nothing is given back while a pass counts on it. A pass runs at each change of the
//! layout, again a moment later until a round of passes is complete, and from time to time. It ends early when the layout
//! changes, after the block or the request under way; giving back ends after its step, so that no drop is left half done.
//!
//! A source that is silent, slow, or lists what it does not send is left to the next pass ([`Patience`]), so it holds up
//! nothing that others have. The next pass goes on with it where this one has left it. What it says of lengths is not
//! believed either. Nothing is fetched for which there is no room.

use super::duties::Duties;
use super::fetch::{Fetched, fetch};
use super::healer::{Failed, Healer, PAGE_NAMES};
use super::pass::{Pass, Step};
use super::patience::Patience;
use crate::store;
use futures::StreamExt;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::limits::BLOCK_BYTES_MAX;
use wire::message::block::{BlockReply, BlockRequest};
use wire::retry::Backoff;

/// Blocks fetched at once: enough to hide a round trip, few enough to leave the disk to others.
const FETCHES_MAX: usize = 4;
/// First and longest time until the next pass after an incomplete one: a daemon that does not answer may be down, or
/// behind by a heartbeat.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Time until copies that belong elsewhere, and could not be given back, are tried again.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(3);

/// Heals until cancelled.
pub async fn run(mut healer: Healer, stop: CancellationToken) {
    let mut layouts = healer.layouts.watch();
    let first = Backoff::new(RETRY_PAUSE, RETRY_PAUSE_MAX);
    let (mut retries, mut epoch) = (first.clone(), None);
    loop {
        let layout = layouts.borrow_and_update().clone();
        if epoch.replace(layout.epoch) != Some(layout.epoch) {
            retries = first.clone();
        }
        let mut pause = healer.compare_every;
        if layout.member(&healer.id).is_some() {
            let Some(until_next) = stop.run_until_cancelled(healer.heal(&layout)).await else { return };
            pause = match until_next {
                Some(pause) => {
                    retries = first.clone();
                    pause
                }
                None => retries.delay(),
            };
        }
        let next = tokio::time::Instant::now() + pause;
        loop {
            let handoff = healer.handoff.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = layouts.changed() => break,
                () = tokio::time::sleep_until(next) => break,
                () = handoff.wait_due() => {}
            }
            // A round may wait for owners. It is given up when a pass is due.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = layouts.changed() => break,
                () = tokio::time::sleep_until(next) => break,
                () = healer.hand_off(&layout) => {}
            }
        }
    }
}

impl Healer {
    /// Runs one pass, and gives back copies after it. Returns the time until the next one; `None` while its round is not
    /// complete.
    async fn heal(&mut self, layout: &Layout) -> Option<Duration> {
        let duties = Arc::new(Duties::of(layout, &self.id));
        self.progress.begin(duties.clone());
        if !self.pass(layout, &duties).await {
            return None;
        }
        self.progress.done(duties.placement);
        self.handoff.end_first_comparison();
        if !duties.is_final {
            // The final layout arrives by itself.
            return Some(self.compare_every);
        }
        let empty = self.give_back(layout, &duties).await;
        if self.store.has_failed() {
            // It has sent what owners lacked. It does not drop what it has, and is not empty.
            return Some(self.compare_every);
        }
        self.progress.set_empty(empty);
        Some(if empty { self.compare_every } else { GIVE_BACK_PAUSE })
    }

    /// Runs one pass. Returns whether it completes its round.
    pub(super) async fn pass(&mut self, layout: &Layout, duties: &Duties) -> bool {
        let (mut pass, mut patience) = (Pass::new(duties, self.round.clone()), Patience::new(self.account));
        loop {
            if self.layouts.newest().epoch != duties.epoch {
                self.round = pass.given_up();
                return false;
            }
            let step = pass.step();
            let Some(source) = step.source() else {
                self.round = pass.into_round();
                return step == Step::End { complete: true };
            };
            if let Err(reason) = self.carry_out(layout, step, &mut pass, &mut patience).await {
                tracing::debug!(%source, reason, "a step of repair was not done");
                pass.failed();
            } else if patience.is_at_end(&source) {
                tracing::debug!(%source, "it takes too long for what it sends: it is left to the next pass");
                pass.leave(source);
            }
            self.progress.lacks(pass.lacking());
        }
    }

    async fn carry_out(
        &mut self,
        layout: &Layout,
        step: Step,
        pass: &mut Pass,
        patience: &mut Patience,
    ) -> Result<(), Failed> {
        match step {
            Step::Compare { source, spans } => {
                let request = BlockRequest::Digests { epoch: layout.epoch, spans: spans.clone() };
                let BlockReply::Digests(theirs) = self.ask_in_time(layout, source, &request, patience).await? else {
                    return Err("it gives no digests".to_owned());
                };
                let mine = self.store.digests(&spans);
                for (span, _) in spans.iter().zip(&theirs).filter(|(_, theirs)| theirs.count == 0) {
                    // Nothing will be listed.
                    self.note_absent(layout, source, (span.first_hash(), span.last_hash()), &[]);
                }
                pass.compared(&mine, &theirs);
            }
            Step::List { source, from, last } => {
                let request = BlockRequest::List { from, last, limit: PAGE_NAMES };
                let BlockReply::Blocks(page) = self.ask_in_time(layout, source, &request, patience).await? else {
                    return Err("it gives no list".to_owned());
                };
                self.note_absent(layout, source, (from, last), &page);
                pass.listed(&page, page.len() < PAGE_NAMES as usize, |hash| self.store.contains(hash));
                if !pass.is_fetching() {
                    patience.explained(source);
                }
            }
            Step::Fetch { source, blocks } => self.fetch_all(layout, (source, blocks), pass, patience).await?,
            Step::End { .. } => {}
        }
        Ok(())
    }

    async fn ask_in_time(
        &self,
        layout: &Layout,
        source: BlockdId,
        request: &BlockRequest,
        patience: &mut Patience,
    ) -> Result<BlockReply, Failed> {
        let begun = Instant::now();
        let answer = self.ask(layout, &source, request).await;
        patience.answered(source, begun.elapsed());
        match answer? {
            BlockReply::Behind => Err("it does not know the layout yet".to_owned()),
            answer => Ok(answer),
        }
    }

    /// Fetches those blocks that something refers to. Unreferenced blocks are not brought back (I10).
    async fn fetch_all(
        &mut self,
        layout: &Layout,
        (source, blocks): (BlockdId, Vec<(BlockHash, u32)>),
        pass: &mut Pass,
        patience: &mut Patience,
    ) -> Result<(), Failed> {
        let wanted = self.referenced_of(source, blocks, pass, patience).await?;
        if wanted.is_empty() {
            patience.explained(source);
        }
        // What is fetched without room would be fetched again and again.
        let has_room = |len: u32| self.store.has_room_for(len.min(BLOCK_BYTES_MAX as u32));
        let (wanted, too_long): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, len)| has_room(*len));
        if wanted.is_empty() && !too_long.is_empty() {
            return Err(store::Error::NoSpace.to_string());
        }
        let (endpoint, epoch) = (self.endpoint.clone(), layout.epoch);
        let addr = layout.member(&source).ok_or("the source has left the layout")?.addr;
        let mut open: BTreeSet<BlockHash> = wanted.iter().map(|(hash, _)| *hash).collect();
        let mut fetching = futures::stream::iter(wanted)
            .map(|(hash, len)| {
                let endpoint = endpoint.clone();
                async move { (hash, len, fetch(&endpoint, addr, hash, epoch).await) }
            })
            .buffer_unordered(FETCHES_MAX);
        let mut all_here = too_long.is_empty();
        loop {
            let begun = Instant::now();
            let Some((hash, listed_len, fetched)) = fetching.next().await else { break };
            patience.waited(source, begun.elapsed());
            open.remove(&hash);
            let stored = match fetched {
                Fetched::Sent(block) => {
                    let len = block.len();
                    patience.came(source, len);
                    match self.store.put(hash, block).await {
                        Err(error) if error.is_no_space() => return Err(error.to_string()),
                        stored => stored.map(|_| len as u64).map_err(|error| error.to_string()),
                    }
                }
                Fetched::Refused => Err("no good copy came".to_owned()),
                Fetched::Busy => Err("the source has too much to do".to_owned()),
                Fetched::Silent => {
                    patience.unanswered(source);
                    Err("no answer came".to_owned())
                }
            };
            match stored {
                Ok(len) => {
                    self.metrics.healed.add(1);
                    self.metrics.healed_bytes.add(len);
                    self.progress.copied(len);
                    pass.came(&hash, listed_len);
                    self.progress.lacks(pass.lacking());
                    self.throttle.spend(len, &self.activity).await;
                }
                Err(reason) => {
                    tracing::debug!(%hash, reason, "a block that is owed could not be copied");
                    all_here = false;
                }
            }
            // A page may take minutes, and a pass for other owners may be urgent.
            let is_outdated = self.layouts.newest().epoch != epoch;
            if (is_outdated || patience.is_at_end(&source))
                && let Some(next) = open.first()
            {
                pass.stopped_before(next, all_here);
                return Ok(());
            }
        }
        pass.fetched(all_here);
        Ok(())
    }

    /// Those of the blocks that something refers to. The others are looked at once more a little later. The source pays for
    /// the time that it takes to learn that.
    async fn referenced_of(
        &mut self,
        source: BlockdId,
        mut blocks: Vec<(BlockHash, u32)>,
        pass: &mut Pass,
        patience: &mut Patience,
    ) -> Result<Vec<(BlockHash, u32)>, Failed> {
        let hashes: Vec<BlockHash> = blocks.iter().map(|(hash, _)| *hash).collect();
        let begun = Instant::now();
        let unreferenced = self.unreferenced(&hashes).await?;
        patience.waited(source, begun.elapsed());
        blocks.retain(|(hash, len)| {
            let is_unreferenced = unreferenced.contains(hash);
            if is_unreferenced {
                pass.came(hash, *len);
                // A client may be about to commit it, and nobody else knows that it is lacking here.
                self.handoff.add(self.id, *hash);
                self.handoff.postpone(&self.id, hash);
            }
            !is_unreferenced
        });
        Ok(blocks)
    }
}
