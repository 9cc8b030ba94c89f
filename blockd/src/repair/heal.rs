//! The task that carries out [`Pass`]es: it fetches blocks that this daemon owes and does not hold, then gives back
//! those that it holds and does not owe. In between it hands off what owners missed ([`super::deliver`]).
//!
//! One task does all of that, so nothing is given back while a pass counts on it. A pass runs at each change of the
//! layout, again a moment later when it was incomplete, and from time to time. It ends early when the layout
//! changes, but only after the step under way: no drop is left half done.

use super::duties::Duties;
use super::fetch::fetch;
use super::healer::{Failed, Healer, PAGE_NAMES};
use super::pass::{Pass, Step};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};

/// Blocks fetched at once: enough to hide a round trip, few enough to leave the disk to others.
const FETCHES_MAX: usize = 4;
/// Time until the next pass after an incomplete one: a daemon that does not answer may be down, or behind by a
/// heartbeat.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Time until copies that belong elsewhere, and could not be given back, are tried again.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(3);

/// Heals until cancelled.
pub async fn run(mut healer: Healer, stop: CancellationToken) {
    let mut layouts = healer.layouts.watch();
    loop {
        let layout = layouts.borrow_and_update().clone();
        let mut pause = healer.compare_every;
        if layout.member(&healer.id).is_some() {
            let Some(until_next) = stop.run_until_cancelled(healer.heal(&layout)).await else { return };
            pause = until_next;
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
    /// Runs one pass, and gives back copies after it. Returns the time until the next one.
    async fn heal(&mut self, layout: &Layout) -> Duration {
        let duties = Arc::new(Duties::of(layout, &self.id));
        self.progress.begin(duties.clone());
        if !self.pass(layout, &duties).await {
            return RETRY_PAUSE;
        }
        self.progress.done(duties.placement);
        if !duties.is_final {
            // The final layout arrives by itself.
            return self.compare_every;
        }
        let empty = self.give_back(layout, &duties).await;
        if self.store.has_failed() {
            // It has sent what owners lacked. It does not drop what it has, and is not empty.
            return self.compare_every;
        }
        self.progress.set_empty(empty);
        if empty { self.compare_every } else { GIVE_BACK_PAUSE }
    }

    async fn pass(&mut self, layout: &Layout, duties: &Duties) -> bool {
        let mut pass = Pass::new(duties);
        loop {
            if self.layouts.newest().epoch != duties.epoch {
                return false;
            }
            let step = pass.step();
            let outcome = match step {
                Step::End { complete } => return complete,
                Step::Compare { source, spans } => {
                    let request = BlockRequest::Digests { epoch: duties.epoch, spans: spans.clone() };
                    match self.ask(layout, &source, &request).await {
                        Ok(BlockReply::Digests(theirs)) => {
                            pass.compared(&self.store.digests(&spans), &theirs);
                            Ok(())
                        }
                        other => Err(unexpected(other)),
                    }
                }
                Step::List { source, from, last } => {
                    let request = BlockRequest::List { from, last, limit: PAGE_NAMES };
                    match self.ask(layout, &source, &request).await {
                        Ok(BlockReply::Blocks(page)) => {
                            self.note_absent(layout, source, (from, last), &page);
                            pass.listed(&page, page.len() < PAGE_NAMES as usize, |hash| self.store.contains(hash));
                            Ok(())
                        }
                        other => Err(unexpected(other)),
                    }
                }
                Step::Fetch { source, blocks } => self.fetch_all(layout, source, blocks, &mut pass).await,
            };
            if let Err(reason) = outcome {
                tracing::debug!(reason, "a step of repair was not done");
                pass.failed();
            }
            self.progress.lacks(pass.lacking());
        }
    }

    /// Fetches those blocks that something refers to. Unreferenced blocks are not brought back (I10).
    async fn fetch_all(
        &mut self,
        layout: &Layout,
        source: BlockdId,
        blocks: Vec<(BlockHash, u32)>,
        pass: &mut Pass,
    ) -> Result<(), Failed> {
        let hashes: Vec<BlockHash> = blocks.iter().map(|(hash, _)| *hash).collect();
        let unreferenced = self.unreferenced(&hashes).await?;
        let (wanted, unwanted): (Vec<_>, Vec<_>) =
            blocks.into_iter().partition(|(hash, _)| !unreferenced.contains(hash));
        unwanted.iter().for_each(|(hash, len)| pass.came(hash, *len));
        let (endpoint, epoch) = (self.endpoint.clone(), layout.epoch);
        let addr = layout.member(&source).ok_or("the source has left the layout")?.addr;
        let mut fetching = futures::stream::iter(wanted)
            .map(|(hash, len)| {
                let endpoint = endpoint.clone();
                async move { (hash, len, fetch(&endpoint, addr, hash, epoch).await.good()) }
            })
            .buffer_unordered(FETCHES_MAX);
        let mut all_here = true;
        while let Some((hash, len, fetched)) = fetching.next().await {
            let stored = match fetched {
                Some(block) => match self.store.put(hash, block).await {
                    Err(error) if error.is_no_space() => return Err(error.to_string()),
                    stored => stored.map_err(|error| error.to_string()),
                },
                None => Err("no good copy came".to_owned()),
            };
            match stored {
                Ok(_) => {
                    self.metrics.healed.add(1);
                    self.metrics.healed_bytes.add(u64::from(len));
                    self.progress.copied(u64::from(len));
                    pass.came(&hash, len);
                    self.progress.lacks(pass.lacking());
                    self.throttle.spend(u64::from(len), &self.activity).await;
                }
                Err(reason) => {
                    tracing::debug!(%hash, reason, "a block that is owed could not be copied");
                    all_here = false;
                }
            }
        }
        pass.fetched(all_here);
        Ok(())
    }
}

fn unexpected(answer: Result<BlockReply, Failed>) -> Failed {
    match answer {
        Ok(BlockReply::Behind) => "it does not know the layout yet".to_owned(),
        Ok(other) => format!("answered {}", other.kind_name()),
        Err(reason) => reason,
    }
}
