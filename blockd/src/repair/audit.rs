//! Finding blocks that something refers to, and that no daemon which answers has.
//!
//! Comparing daemons with each other shows what one has and another lacks, never what all lack. So each owner asks
//! metad for the names of what it owes, page by page, and looks for those that are not here on all other daemons
//! ([`super::search`]). What another one has is fetched. What nobody has is *missing*: heartbeats report how many there
//! are.
//!
//! An audit goes through everything after each change of owners, and from time to time. One that did not hear everybody
//! is repeated sooner; what it has found stays. In between, some of the missing blocks, and of those that others only
//! say they have, are looked for again, at pauses that grow while nothing changes: a client that commits names of blocks
//! that never were must not keep all daemons busy, nor must a daemon that is silent whenever it matters.
//!
//! Owner: one task.

use super::duties::Duties;
use super::missing::Missing;
use super::probe::{NoAnswer, probe};
use super::progress::Progress;
use super::search::{FETCHED_MAX, FETCHED_TO_CHECK, Search, Voices};
use crate::heartbeat::Metads;
use crate::layouts::Layouts;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::chance;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::Layout;
use wire::limits::BLOCK_BYTES_MAX;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::retry::Backoff;

/// Pause after a page, and after so many spans without one: metad has more urgent work.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// The spans.
const SPANS_AT_ONCE: u32 = 16;
/// An audit begins within this time after a change of the owners, because all daemons begin one then.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// First pause before an audit is repeated that was not completed: a daemon may be behind by a heartbeat, or metad
/// away.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Shortest pause before an audit is repeated that did not hear everybody.
const INCOMPLETE_PAUSE: Duration = Duration::from_secs(10);
/// First pause before missing blocks are looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Pause after a look that found something, while there are more blocks to look for.
const LOOK_ON: Duration = Duration::from_millis(500);
/// Missing blocks that are looked for at once. metad is asked for each whether something still refers to it.
const SAMPLE_MAX: usize = 64;
/// A daemon that does not know the layout for this long after its change is in no worse a position than a silent one.
const SETTLE_TIME: Duration = Duration::from_secs(30);
/// How long silent daemons may take to show that they are back, and how many of them are asked at once.
const RETURNED_TIMEOUT: Duration = Duration::from_secs(1);
const RETURNED_AT_ONCE: usize = 8;

/// What an audit needs.
pub struct Auditor {
    /// How blocks are looked for.
    pub search: Search,
    /// What is known of the layout.
    pub layouts: Arc<Layouts>,
    /// Who knows what is referred to.
    pub metads: Metads,
    /// What heartbeats report.
    pub progress: Arc<Progress>,
    /// Time between two audits while nothing changes.
    pub every: Duration,
}

/// How an audit ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Audited {
    /// Everybody has answered about everything.
    Complete,
    /// Everything was looked for, but these daemons, as they were last known, or parts of their answers are left out.
    Incomplete(Vec<(BlockdId, NoAnswer)>),
    /// metad did not say what comes next, for this reason. The next audit goes on there.
    Interrupted(String),
    /// Blocks have other owners now.
    Superseded,
}

/// An audit that was interrupted.
#[derive(Clone, Copy, Default)]
pub(super) struct Resume {
    /// The first name that was not looked for.
    pub(super) from: Option<BlockHash>,
    /// Somebody was not heard before.
    is_partial: bool,
}

/// What is due when.
struct Plan {
    every: Duration,
    epoch: Option<LayoutEpoch>,
    placement: Option<LayoutEpoch>,
    /// Until then, a daemon that does not know the layout is about to.
    settled_at: Instant,
    audit_at: Instant,
    retries: Backoff,
    resume: Resume,
    /// The last audit was a second one, to confirm what the one before has found.
    confirmed: bool,
    look_at: Option<Instant>,
    looks: Backoff,
    /// Daemons that were silent at the last search, and when to see whether they are back.
    silent: Vec<BlockdId>,
    returned_at: Instant,
    /// Daemons that came back, and when each may do so again: one that is silent whenever it is asked for blocks must
    /// not have them looked for all the time.
    returns: BTreeMap<BlockdId, (Instant, Backoff)>,
    is_partial: bool,
}

impl Plan {
    fn new(every: Duration) -> Self {
        let now = Instant::now();
        Self {
            every,
            epoch: None,
            placement: None,
            settled_at: now,
            audit_at: now,
            retries: Backoff::new(RETRY_PAUSE.min(every), every),
            resume: Resume::default(),
            confirmed: false,
            look_at: None,
            looks: Backoff::new(LOOK_AGAIN.min(every), every),
            silent: Vec::new(),
            returned_at: now,
            returns: BTreeMap::new(),
            is_partial: false,
        }
    }

    /// Takes the newest layout. Returns whether blocks have other owners.
    fn follow(&mut self, layout: &Layout) -> bool {
        if self.epoch != Some(layout.epoch) {
            self.epoch = Some(layout.epoch);
            self.settled_at = Instant::now() + SETTLE_TIME;
            self.look_soon();
        }
        let moved = self.placement != Some(layout.placement);
        if moved {
            self.placement = Some(layout.placement);
            self.audit_at = Instant::now() + BEGIN_WITHIN.mul_f64(chance::fraction());
            self.retries = Backoff::new(RETRY_PAUSE.min(self.every), self.every);
            (self.resume, self.confirmed, self.look_at) = (Resume::default(), false, None);
            self.returns.clear();
        }
        moved
    }

    /// Daemons that were silent, and may show that they are back.
    fn may_return(&self) -> Vec<BlockdId> {
        let now = Instant::now();
        let may = |id: &BlockdId| self.returns.get(id).is_none_or(|(at, _)| *at <= now);
        self.silent.iter().copied().filter(may).collect()
    }

    /// Takes back daemons, which are asked again at once.
    fn take_back(&mut self, returned: &[BlockdId]) {
        let now = Instant::now();
        for id in returned {
            let first = || (now, Backoff::new(2 * LOOK_AGAIN.min(self.every), self.every));
            let (at, pauses) = self.returns.entry(*id).or_insert_with(first);
            *at = now + pauses.delay();
        }
        self.silent.retain(|id| !returned.contains(id));
        self.look_soon();
        self.look_at = Some(now);
    }

    /// Begins the pauses between looks anew.
    fn look_soon(&mut self) {
        self.looks = Backoff::new(LOOK_AGAIN.min(self.every), self.every);
        if let Some(at) = &mut self.look_at {
            *at = (*at).min(Instant::now() + LOOK_AGAIN);
        }
    }

    fn wake_at(&self) -> Instant {
        let look_at = self.look_at.map_or(self.audit_at, |at| at.min(self.returned_at));
        look_at.min(self.audit_at)
    }

    fn audited(&mut self, outcome: &Audited, missing: &Missing) {
        let now = Instant::now();
        self.audit_at = match outcome {
            Audited::Complete => now + self.every,
            Audited::Incomplete(_) => now + self.retries.delay().max(INCOMPLETE_PAUSE.min(self.every)),
            Audited::Interrupted(_) | Audited::Superseded => now + self.retries.delay(),
        };
        if *outcome == Audited::Complete {
            self.retries = Backoff::new(RETRY_PAUSE.min(self.every), self.every);
        }
        // Looks would take too long to confirm so many.
        let confirms =
            missing.suspected() > SAMPLE_MAX && !self.confirmed && !matches!(outcome, Audited::Interrupted(_));
        if confirms {
            self.audit_at = self.audit_at.min(now + LOOK_AGAIN);
        }
        self.confirmed = confirms;
        self.look_soon();
        self.next_look(missing, false, LOOK_AGAIN);
    }

    /// Sets the next look, after an audit or a look. `on` is the pause while there is more to look for.
    fn next_look(&mut self, missing: &Missing, has_changed: bool, on: Duration) {
        if has_changed || missing.suspected() > 0 {
            self.look_soon();
        }
        let now = Instant::now();
        let pause = if has_changed && missing.names() > SAMPLE_MAX { on } else { self.looks.delay() };
        // The backoff shortens its pauses at random; two looks must not come too close to each other.
        let pause = if has_changed { pause } else { pause.max(LOOK_AGAIN.min(self.every)) };
        self.look_at = (missing.names() > 0).then_some(now + pause);
        self.returned_at = now + LOOK_AGAIN;
    }
}

/// Audits until cancelled.
pub async fn run(mut auditor: Auditor, stop: CancellationToken) {
    let mut layouts = auditor.layouts.watch();
    let (mut plan, mut missing) = (Plan::new(auditor.every), Missing::default());
    loop {
        let layout = layouts.borrow_and_update().clone();
        if plan.follow(&layout) {
            auditor.search.claims.clear();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = layouts.changed() => continue,
            () = tokio::time::sleep_until(plan.wake_at()) => {}
        }
        let mut newer = layouts.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = owners_change(&mut newer, layout.placement) => {}
            () = auditor.step(&mut plan, &mut missing) => {}
        }
        auditor.progress.set_missing(missing.count());
    }
}

/// Waits until blocks have other owners than those of `placement`. Cancel-safe.
async fn owners_change(layouts: &mut watch::Receiver<Arc<Layout>>, placement: LayoutEpoch) {
    if layouts.wait_for(|layout| layout.placement != placement).await.is_err() {
        // No other layout will come.
        std::future::pending().await
    }
}

impl Auditor {
    /// Does what is due.
    async fn step(&mut self, plan: &mut Plan, missing: &mut Missing) {
        let now = Instant::now();
        if plan.audit_at <= now {
            let (before, confirms_at) = (missing.count(), plan.settled_at);
            let outcome = self.audit(&mut plan.resume, missing, confirms_at, &mut plan.silent).await;
            match &outcome {
                Audited::Incomplete(unheard) if !plan.is_partial => {
                    let layout = self.layouts.newest();
                    let name = |id| layout.member(id).map_or_else(|| id.to_string(), |member| member.name.clone());
                    let unheard: Vec<String> =
                        unheard.iter().map(|(id, reason)| format!("{}: {reason}", name(id))).collect();
                    tracing::info!(?unheard, "an audit for missing blocks is incomplete, and will be repeated");
                }
                outcome => tracing::debug!(?outcome, "audit for missing blocks"),
            }
            plan.is_partial = matches!(outcome, Audited::Incomplete(_));
            plan.audited(&outcome, missing);
            warn_of(before, missing);
            return;
        }
        let is_here = missing.forget(|hash| self.search.store.contains(hash));
        let returned = self.returned(&plan.may_return()).await;
        if !returned.is_empty() {
            plan.take_back(&returned);
        }
        let on = if self.compares() { LOOK_AGAIN } else { LOOK_ON };
        plan.returned_at = Instant::now() + LOOK_AGAIN;
        if plan.look_at.is_some_and(|at| at <= Instant::now()) {
            let before = missing.count();
            let changed = self.look_again(missing, plan.settled_at, &mut plan.silent).await;
            plan.next_look(missing, is_here || changed, on);
            warn_of(before, missing);
        } else if is_here {
            plan.next_look(missing, true, on);
        }
    }

    /// Whether copies come by comparing, or cannot be stored: then audits fetch few.
    fn compares(&self) -> bool {
        let has_room = self.search.store.has_room_for(BLOCK_BYTES_MAX as u32);
        !has_room || !self.progress.is_done(self.layouts.newest().placement)
    }

    /// Looks for everything that this daemon owes, from where the last audit was interrupted on.
    pub(super) async fn audit(
        &mut self,
        resume: &mut Resume,
        missing: &mut Missing,
        settled_at: Instant,
        silent: &mut Vec<BlockdId>,
    ) -> Audited {
        let layout = self.layouts.newest();
        let (placement, duties) = (layout.placement, Duties::of(&layout, &self.search.id));
        let from = std::mem::take(&mut resume.from);
        if from.is_none() {
            resume.is_partial = false;
            missing.begin(|hash| !duties.is_foreign(hash));
        }
        let (mut voices, mut spans) = (Voices::default(), 0);
        for span in duties.owed {
            let mut next = Some(from.map_or(span.first_hash(), |from| from.max(span.first_hash())));
            while let Some(first) = next.filter(|first| *first <= span.last_hash()) {
                // The same owners under a newer layout: its epoch and addresses are asked about.
                let layout = self.layouts.newest();
                if layout.placement != placement {
                    return Audited::Superseded;
                }
                let (page, then) = match self.referenced(&layout, first, span.last_hash()).await {
                    Ok(page) => page,
                    Err(reason) => {
                        resume.from = Some(first);
                        resume.is_partial |= !voices.is_complete();
                        return Audited::Interrupted(reason);
                    }
                };
                // What others only say they have is remembered. Looking again checks it.
                let fetched_max = if self.compares() { 0 } else { FETCHED_MAX };
                let found = self.search.look_for(&layout, &page, &mut voices, fetched_max).await;
                let last = then.and_then(|then| before(&then)).unwrap_or(span.last_hash());
                missing.take_page((first, last), &found, confirms(&voices, settled_at));
                next = then;
                spans += 1;
                if next.is_some() || spans >= SPANS_AT_ONCE {
                    spans = 0;
                    tokio::time::sleep(PAGE_PAUSE).await;
                }
            }
        }
        missing.end();
        *silent = silent_of(&voices);
        if voices.is_complete() && !resume.is_partial {
            return Audited::Complete;
        }
        Audited::Incomplete(voices.unheard().map(|(id, reason)| (*id, reason)).collect())
    }

    /// Looks for some of what was missing, on all daemons but those that are known to be silent. Returns whether
    /// anything has changed.
    pub(super) async fn look_again(
        &mut self,
        missing: &mut Missing,
        settled_at: Instant,
        silent: &mut Vec<BlockdId>,
    ) -> bool {
        let layout = self.layouts.newest();
        let (sample, mut referenced) = (missing.sample(SAMPLE_MAX), Vec::new());
        for hash in &sample {
            match self.referenced(&layout, *hash, *hash).await {
                Ok((page, _)) => referenced.extend(page),
                Err(reason) => {
                    tracing::debug!(reason, "missing blocks could not be looked for");
                    return false;
                }
            }
        }
        let mut voices = Voices::without(silent);
        let fetched_max = if self.compares() { FETCHED_TO_CHECK } else { FETCHED_MAX };
        let found = self.search.look_for(&layout, &referenced, &mut voices, fetched_max).await;
        *silent = silent_of(&voices);
        missing.take_sample(&sample, &found, confirms(&voices, settled_at))
    }

    /// Returns those of these daemons that answer again.
    pub(super) async fn returned(&self, silent: &[BlockdId]) -> Vec<BlockdId> {
        let layout = self.layouts.newest();
        let members: Vec<_> =
            silent.iter().filter_map(|id| layout.member(id)).map(|member| (member.id, member.addr)).collect();
        let (endpoint, epoch) = (self.search.endpoint.clone(), layout.epoch);
        let mut answers = futures::stream::iter(members)
            .map(move |(id, addr)| {
                let endpoint = endpoint.clone();
                async move { (id, probe(&endpoint, addr, epoch, &[], RETURNED_TIMEOUT).await) }
            })
            .buffer_unordered(RETURNED_AT_ONCE);
        let (mut returned, until) = (Vec::new(), Instant::now() + LOOK_AGAIN);
        while let Ok(Some((id, answer))) = tokio::time::timeout_at(until, answers.next()).await {
            if answer != Err(NoAnswer::Silent) {
                returned.push(id);
            }
        }
        returned
    }

    async fn referenced(
        &mut self,
        layout: &Layout,
        from: BlockHash,
        last: BlockHash,
    ) -> Result<(Vec<BlockHash>, Option<BlockHash>), String> {
        let request = MetaRequest::Referenced { epoch: layout.epoch, from, last };
        match self.metads.ask(&request).await {
            // `next` must grow, or this would loop for ever.
            Ok(MetaReply::Referenced { next: Some(next), .. }) if next <= from => Err("a page went back".to_owned()),
            Ok(MetaReply::Referenced { blocks, next }) => Ok((blocks, next)),
            Ok(other) => Err(format!("metad answered {}", other.kind_name())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Whether a search may begin to count what it has not found: not while daemons are still learning the layout.
fn confirms(voices: &Voices, settled_at: Instant) -> bool {
    !voices.was_behind || Instant::now() >= settled_at
}

fn silent_of(voices: &Voices) -> Vec<BlockdId> {
    voices.unheard().filter(|(_, reason)| *reason == NoAnswer::Silent).map(|(id, _)| *id).collect()
}

fn warn_of(before: u64, missing: &Missing) {
    let count = missing.count();
    if count > before {
        tracing::warn!(count, "no daemon that can be reached has blocks that this one owes");
    }
}

/// The name before this one.
fn before(hash: &BlockHash) -> Option<BlockHash> {
    let mut hash = *hash;
    for byte in hash.0.iter_mut().rev() {
        let (lower, borrows) = byte.overflowing_sub(1);
        *byte = lower;
        if !borrows {
            return Some(hash);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::missing::Found;
    use super::*;

    const ALL: (BlockHash, BlockHash) = (BlockHash([0; 32]), BlockHash([0xff; 32]));

    fn missing(count: u16) -> Missing {
        let name = |number: u16| BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap());
        let (mut missing, absent) = (Missing::default(), (0..count).map(name).collect());
        let found = Found { absent, ..Found::default() };
        (0..2).for_each(|_| missing.take_page(ALL, &found, true));
        missing
    }

    fn pause(plan: &Plan) -> Duration {
        plan.look_at.unwrap() - Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_between_looks_grow_until_something_changes() {
        let (every, missing) = (Duration::from_secs(600), missing(500));
        let mut plan = Plan::new(every);
        plan.follow(&Layout::default());
        plan.audited(&Audited::Complete, &missing);
        assert_eq!(pause(&plan), LOOK_AGAIN);
        (0..20).for_each(|_| plan.next_look(&missing, false, LOOK_ON));
        assert!(pause(&plan) >= every / 2);
        plan.next_look(&missing, true, LOOK_ON);
        assert_eq!(pause(&plan), LOOK_ON, "there are more than one look takes");
        plan.next_look(&missing, false, LOOK_ON);
        (0..20).for_each(|_| plan.next_look(&missing, false, LOOK_ON));
        plan.follow(&Layout { epoch: LayoutEpoch(1), ..Layout::default() });
        assert_eq!(pause(&plan), LOOK_AGAIN, "a layout has come");
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_returns_again_and_again_begins_the_pauses_anew_more_and_more_rarely() {
        let mut plan = Plan::new(Duration::from_secs(600));
        let id = BlockdId([1; 16]);
        let mut returns = 0;
        for _ in 0..1200 {
            // It is silent at each look, and answers whenever it is asked whether it is back.
            plan.silent = vec![id];
            let may_return = plan.may_return();
            if !may_return.is_empty() {
                plan.take_back(&may_return);
                returns += 1;
            }
            tokio::time::advance(Duration::from_secs(3)).await;
        }
        assert!((5..20).contains(&returns), "{returns} times within an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn audits_begin_anew_when_blocks_have_other_owners_and_sooner_after_an_incomplete_one() {
        let (every, none) = (Duration::from_secs(600), Missing::default());
        let mut plan = Plan::new(every);
        let layout = |epoch, placement| Layout {
            epoch: LayoutEpoch(epoch),
            placement: LayoutEpoch(placement),
            ..Layout::default()
        };
        let pause = |plan: &Plan| plan.audit_at - Instant::now();
        assert!(plan.follow(&layout(1, 1)) && pause(&plan) <= BEGIN_WITHIN);
        plan.audited(&Audited::Complete, &none);
        assert!(!plan.follow(&layout(2, 1)) && pause(&plan) == every, "the owners are the same");
        plan.audited(&Audited::Incomplete(Vec::new()), &none);
        assert_eq!(pause(&plan), INCOMPLETE_PAUSE);
        plan.audited(&Audited::Interrupted(String::new()), &none);
        assert!(pause(&plan) < INCOMPLETE_PAUSE);
        plan.audited(&Audited::Complete, &none);
        assert!(plan.follow(&layout(3, 3)) && pause(&plan) <= BEGIN_WITHIN);
    }
}
