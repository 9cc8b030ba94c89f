//! Compares the blocks that metad knows with those that block daemons hold.
//!
//! Page by page, in the order of names, every daemon lists its blocks between the same two names. Blocks that seem to
//! be missing are gathered and checked again, for some seconds, by the newest layout and the newest references: a block
//! that is just being stored, moved or deleted is not a fault.
//!
//! A daemon may answer nothing, late, or nonsense (see `answers`). That is a finding about this daemon, and the check
//! goes on without it. Each has an account of time (see `daemons`): many slow answers do not make a check endless.

use super::Cluster;
use super::answers;
use super::copies::{Copies, State, judge};
use super::daemons::Daemons;
use super::report::{Line, Outcome, Report};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::ids::{BlockHash, BlockdId};
use wire::layout::ring::Ring;
use wire::message::block::{BlockReply, BlockRequest, FETCHED_MAX, VERIFIED_MAX};
use wire::message::check::{CHECKED_HASHES_MAX, CheckId, CheckReply, CheckRequest, CheckedBlock};

/// How long a daemon may take to answer.
const DAEMON_LIMIT: Duration = Duration::from_secs(10);
/// How long a daemon may take to read blocks.
const VERIFY_LIMIT: Duration = Duration::from_secs(120);
/// Most names that one daemon lists at once.
const LIST_MAX: u32 = 16_384;
/// Most blocks that are checked again together.
const SUSPECTS_MAX: usize = 32_768;
/// How long, and at which pause, they are checked again.
const RECHECK_LIMIT: Duration = Duration::from_secs(8);
const RECHECK_PAUSE: Duration = Duration::from_millis(500);
/// Repairs by daemons are given up when they make no progress for this long.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// How blocks are checked.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// Every copy is read.
    pub verify: bool,
    /// Daemons are asked to fetch what they lack.
    pub repair: bool,
}

/// Blocks that nothing needs.
#[derive(Default)]
struct Surplus {
    overdue: u64,
    overdue_bytes: u64,
    unknown: u64,
    extra: u64,
    moving: u64,
}

struct Checking<'a> {
    cluster: &'a Cluster,
    check: CheckId,
    report: &'a mut Report,
    how: How,
    daemons: Daemons,
    suspects: BTreeSet<BlockHash>,
    surplus: Surplus,
    looked: u64,
}

pub(super) async fn check(cluster: &Cluster, check: CheckId, report: &mut Report, how: How) -> Result<()> {
    let layout = cluster.admin.status(cluster.wait).await?.layout;
    let daemons = Daemons::new(layout);
    let (suspects, surplus) = (BTreeSet::new(), Surplus::default());
    let mut checking = Checking { cluster, check, report, how, daemons, suspects, surplus, looked: 0 };
    checking.all().await?;
    checking.end();
    Ok(())
}

impl Checking<'_> {
    async fn all(&mut self) -> Result<()> {
        let mut after = None;
        loop {
            let CheckReply::Blocks { blocks, last } =
                self.cluster.step(CheckRequest::Blocks { check: self.check, after }).await?
            else {
                bail!("metad answered something else when asked for blocks");
            };
            let from = after.map_or(Some(BlockHash([0; 32])), |hash| next_name(&hash));
            let to = if last { BlockHash([0xff; 32]) } else { blocks.last().map_or(BlockHash([0xff; 32]), |b| b.hash) };
            if let Some(from) = from {
                self.page(&blocks, from, to).await?;
            }
            self.looked += blocks.len() as u64;
            self.report.progress(&format!("checking blocks: {} looked at", self.looked));
            if last || self.suspects.len() >= SUSPECTS_MAX {
                self.settle().await?;
            }
            if last {
                return Ok(());
            }
            after = Some(to);
        }
    }

    /// Compares a page of blocks with what the daemons have between two names.
    async fn page(&mut self, blocks: &[CheckedBlock], from: BlockHash, to: BlockHash) -> Result<()> {
        let mut holders: BTreeMap<BlockHash, BTreeSet<BlockdId>> =
            blocks.iter().map(|block| (block.hash, BTreeSet::new())).collect();
        for (id, addr) in self.daemons.asked() {
            let mut next = Some(from);
            while let Some(first) = next {
                let request = BlockRequest::List { from: first, last: to, limit: LIST_MAX };
                let Some(reply) = self.ask(id, addr, &request, DAEMON_LIMIT).await else { break };
                let page = match answers::listed(reply, (first, to), LIST_MAX as usize) {
                    Ok(page) => page,
                    Err(nonsense) => {
                        self.is_unfit(id, &nonsense);
                        break;
                    }
                };
                next = page.last().filter(|_| page.len() >= LIST_MAX as usize).and_then(|(hash, _)| next_name(hash));
                if next.is_some() && !self.daemons.may_list_on(id) {
                    self.is_unfit(id, "it lists blocks without end");
                    break;
                }
                for (hash, _) in page {
                    match holders.get_mut(&hash) {
                        Some(holders) => {
                            holders.insert(id);
                        }
                        None => self.surplus.unknown += 1,
                    }
                }
            }
        }
        if self.how.verify {
            self.verify(&mut holders).await?;
        }
        for holders in holders.values_mut() {
            holders.retain(|id| !self.daemons.away.contains(id));
        }
        let ring = Ring::new(&self.daemons.layout);
        for block in blocks {
            let holders = holders.remove(&block.hash).unwrap_or_default();
            if !block.referenced {
                if block.overdue {
                    self.surplus.overdue += holders.len() as u64;
                    self.surplus.overdue_bytes += holders.len() as u64 * u64::from(block.len);
                }
                continue;
            }
            let replicas = usize::from(self.daemons.layout.replicas);
            self.surplus.extra += holders.len().saturating_sub(replicas) as u64;
            let copies = Copies { hash: block.hash, holders };
            match judge(&self.daemons.layout, &ring, &copies, &self.daemons.away) {
                State::Whole => {}
                State::Moving => self.surplus.moving += 1,
                _ => {
                    self.suspects.insert(block.hash);
                }
            }
        }
        Ok(())
    }

    /// Has every copy read. Removes bad ones from the holders.
    async fn verify(&mut self, holders: &mut BTreeMap<BlockHash, BTreeSet<BlockdId>>) -> Result<()> {
        let mut bad = Vec::new();
        for (id, addr) in self.daemons.asked() {
            let held: Vec<BlockHash> =
                holders.iter().filter(|(_, holders)| holders.contains(&id)).map(|(hash, _)| *hash).collect();
            for hashes in held.chunks(VERIFIED_MAX) {
                let request = BlockRequest::Verify { hashes: hashes.to_vec() };
                let Some(reply) = self.ask(id, addr, &request, VERIFY_LIMIT).await else { break };
                let good = match answers::verified(reply, hashes.len()) {
                    Ok(good) => good,
                    Err(nonsense) => {
                        self.is_unfit(id, &nonsense);
                        break;
                    }
                };
                bad.extend(
                    hashes.iter().zip(good).filter(|(_, good)| *good == Some(false)).map(|(hash, _)| (*hash, id)),
                );
            }
        }
        let replaced = self.replaced(&bad).await?;
        for (hash, id) in bad {
            holders.entry(hash).or_default().remove(&id);
            let outcome = if replaced.contains(&(hash, id)) { Outcome::Repaired } else { Outcome::Repairable };
            let (place, what) = (format!("block {hash} on {}", self.daemons.name(&id)), "its copy is damaged");
            self.report.find(&Line { kind: "corrupt", place: &place, what, outcome, advice: "the daemon replaces it" });
        }
        Ok(())
    }

    /// Returns which of these copies were replaced, once all are, or no progress is made.
    async fn replaced(&mut self, bad: &[(BlockHash, BlockdId)]) -> Result<HashSet<(BlockHash, BlockdId)>> {
        let mut replaced = HashSet::new();
        let begun = Instant::now();
        while self.how.repair && begun.elapsed() < STALL_LIMIT {
            let (round, away) = (Instant::now(), &self.daemons.away);
            let late = || bad.iter().filter(|copy| !replaced.contains(*copy) && !away.contains(&copy.1));
            let (hashes, ids): (BTreeSet<_>, BTreeSet<_>) = late().copied().unzip();
            if hashes.is_empty() {
                break;
            }
            let holders = self.probe(&hashes).await?;
            replaced
                .extend(bad.iter().filter(|(hash, id)| holders.get(hash).is_some_and(|on| on.contains(id))).copied());
            tokio::time::sleep(RECHECK_PAUSE).await;
            self.waited_for(ids, round.elapsed());
        }
        Ok(replaced)
    }

    /// Checks the suspects again until they are found or patience ends; then reports them, or has them mended.
    async fn settle(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut faults = self.look_again().await?;
        while !faults.is_empty() && begun.elapsed() < RECHECK_LIMIT {
            self.report.progress(&format!("looking again at {} blocks", faults.len()));
            tokio::time::sleep(RECHECK_PAUSE).await;
            faults = self.look_again().await?;
        }
        let mended = if self.how.repair { self.mend(&faults).await? } else { BTreeSet::new() };
        let lost: Vec<BlockHash> =
            faults.iter().filter(|(_, state)| matches!(state, State::Missing)).map(|(hash, _)| *hash).collect();
        for (hash, state) in &faults {
            self.report_fault(hash, state, mended.contains(hash));
        }
        for some in lost.chunks(CHECKED_HASHES_MAX) {
            self.report_lost(some).await?;
        }
        self.suspects.clear();
        Ok(())
    }

    /// Returns the suspects that are still a fault by the newest state.
    async fn look_again(&mut self) -> Result<BTreeMap<BlockHash, State>> {
        let mut suspects = BTreeSet::new();
        let all: Vec<BlockHash> = std::mem::take(&mut self.suspects).into_iter().collect();
        for some in all.chunks(CHECKED_HASHES_MAX) {
            let CheckReply::Referenced(are) = self.cluster.step(CheckRequest::Referenced(some.to_vec())).await? else {
                bail!("metad answered something else when asked for references");
            };
            suspects.extend(some.iter().zip(are).filter(|(_, is)| *is).map(|(hash, _)| *hash));
        }
        if suspects.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.daemons.layout = self.cluster.admin.status(self.cluster.wait).await?.layout;
        let holders = self.probe(&suspects).await?;
        let mut faults = BTreeMap::new();
        let ring = Ring::new(&self.daemons.layout);
        for (hash, holders) in holders {
            let copies = Copies { hash, holders };
            match judge(&self.daemons.layout, &ring, &copies, &self.daemons.away) {
                State::Whole | State::Moving => {}
                fault => {
                    faults.insert(hash, fault);
                }
            }
        }
        self.suspects = faults.keys().copied().collect();
        Ok(faults)
    }

    /// Returns which daemons have each of these blocks now.
    async fn probe(&mut self, hashes: &BTreeSet<BlockHash>) -> Result<BTreeMap<BlockHash, BTreeSet<BlockdId>>> {
        let mut holders: BTreeMap<BlockHash, BTreeSet<BlockdId>> =
            hashes.iter().map(|hash| (*hash, BTreeSet::new())).collect();
        for (id, addr) in self.daemons.asked() {
            let request =
                BlockRequest::Probe { epoch: self.daemons.layout.epoch, hashes: hashes.iter().copied().collect() };
            let mut reply = self.ask(id, addr, &request, DAEMON_LIMIT).await;
            let begun = Instant::now();
            while matches!(reply, Some(BlockReply::Behind)) && begun.elapsed() < DAEMON_LIMIT {
                tokio::time::sleep(RECHECK_PAUSE).await;
                self.waited_for([id], RECHECK_PAUSE);
                reply = self.ask(id, addr, &request, DAEMON_LIMIT).await;
            }
            let are = match reply {
                Some(BlockReply::Behind) => {
                    self.is_away(id, "it does not follow the changes of the layout");
                    continue;
                }
                Some(reply) => answers::present(reply, hashes.len()),
                None => continue,
            };
            match are {
                Ok(are) => {
                    for (hash, _) in hashes.iter().zip(are).filter(|(_, is)| *is) {
                        holders.entry(*hash).or_default().insert(id);
                    }
                }
                Err(nonsense) => self.is_unfit(id, &nonsense),
            }
        }
        Ok(holders)
    }

    /// Has owners fetch what they lack. Returns the blocks that all of their owners have got.
    async fn mend(&mut self, faults: &BTreeMap<BlockHash, State>) -> Result<BTreeSet<BlockHash>> {
        let lacking: Vec<(BlockHash, &Vec<BlockdId>, BlockdId)> = faults
            .iter()
            .filter_map(|(hash, state)| match state {
                State::Lacking { owners, from, .. } => Some((*hash, owners, *from)),
                _ => None,
            })
            .collect();
        let mut mended = BTreeSet::new();
        for some in lacking.chunks(FETCHED_MAX) {
            let mut asked: BTreeMap<(BlockdId, BlockdId), Vec<BlockHash>> = BTreeMap::new();
            for (hash, owners, from) in some {
                owners.iter().for_each(|owner| asked.entry((*owner, *from)).or_default().push(*hash));
            }
            for ((owner, from), hashes) in asked {
                let Some(addr) = self.daemons.addr(&owner) else { continue };
                self.ask(owner, addr, &BlockRequest::Fetch { hashes, from }, DAEMON_LIMIT).await;
            }
            let mut waiting: BTreeSet<BlockHash> = some.iter().map(|(hash, ..)| *hash).collect();
            let mut progress = Instant::now();
            while !waiting.is_empty() && progress.elapsed() < STALL_LIMIT {
                self.report.progress(&format!("waiting for copies of {} blocks", waiting.len()));
                let round = Instant::now();
                let holders = self.probe(&waiting).await?;
                let mut late = BTreeSet::new();
                for (hash, owners, _) in some {
                    let lacks = |owner: &&BlockdId| holders.get(hash).is_none_or(|on| !on.contains(*owner));
                    let lacking: Vec<BlockdId> = owners.iter().filter(lacks).copied().collect();
                    let is_whole = lacking.is_empty();
                    // One that is not asked any more is not waited for either.
                    let ends = is_whole || lacking.iter().any(|owner| self.daemons.away.contains(owner));
                    if ends && waiting.remove(hash) && is_whole {
                        mended.insert(*hash);
                        progress = Instant::now();
                    } else if waiting.contains(hash) {
                        late.extend(lacking);
                    }
                }
                if !waiting.is_empty() {
                    tokio::time::sleep(RECHECK_PAUSE).await;
                }
                self.waited_for(late, round.elapsed());
            }
        }
        Ok(mended)
    }

    fn report_fault(&mut self, hash: &BlockHash, state: &State, mended: bool) {
        let (repair, place) = (self.how.repair, format!("block {hash}"));
        let outcome = match (mended, repair) {
            (true, _) => Outcome::Repaired,
            (false, true) => Outcome::Failed,
            (false, false) => Outcome::Repairable,
        };
        let advice = "its owners fetch it at once: by themselves they do when they compare next";
        match state {
            State::Lacking { owners, from, misplaced } => {
                let names: Vec<&str> = owners.iter().map(|id| self.daemons.name(id)).collect();
                let what = format!("{} lack it, {} has it", names.join(", "), self.daemons.name(from));
                let kind = if *misplaced { "misplaced" } else { "under-replicated" };
                self.report.find(&Line { kind, place: &place, what: &what, outcome, advice });
            }
            State::Unavailable => {
                let what = "no daemon that could be asked has it";
                let advice = "start the daemons that are away, and check again";
                let outcome = Outcome::ByHand;
                self.report.find(&Line { kind: "unavailable", place: &place, what, outcome, advice });
            }
            State::Missing | State::Whole | State::Moving => {}
        }
    }

    /// Reports files that read from blocks that nobody has.
    async fn report_lost(&mut self, hashes: &[BlockHash]) -> Result<()> {
        let advice = "nothing is removed: restore the file from elsewhere, or bring back a daemon that had it";
        let mut after = None;
        let mut reported: BTreeSet<BlockHash> = BTreeSet::new();
        loop {
            self.report.progress("looking for the files of missing blocks");
            let request = CheckRequest::Uses { check: self.check, hashes: hashes.to_vec(), after };
            let CheckReply::Uses { uses, after: next } = self.cluster.step(request).await? else {
                bail!("metad answered something else when asked for files");
            };
            for used in uses {
                let what = format!(
                    "bytes {} to {} are in block {}, which no daemon has",
                    used.range.start, used.range.end, used.hash
                );
                reported.insert(used.hash);
                let (place, outcome) = (used.path.as_str(), Outcome::ByHand);
                self.report.find(&Line { kind: "missing", place, what: &what, outcome, advice });
            }
            match next {
                Some(_) => after = next,
                None => break,
            }
        }
        for hash in hashes.iter().filter(|hash| !reported.contains(hash)) {
            let (place, what) = (format!("block {hash}"), "no daemon has it");
            self.report.find(&Line { kind: "missing", place: &place, what, outcome: Outcome::ByHand, advice });
        }
        Ok(())
    }

    /// Returns a daemon's answer, or `None` when it gives none; it is then not asked again.
    async fn ask(
        &mut self,
        id: BlockdId,
        addr: SocketAddr,
        request: &BlockRequest,
        limit: Duration,
    ) -> Option<BlockReply> {
        if self.daemons.away.contains(&id) {
            return None;
        }
        self.daemons.grant(id, request);
        let begun = Instant::now();
        match self.cluster.admin.ask_blockd(addr, request, limit).await {
            Ok(BlockReply::Failed(reason)) => self.is_away(id, &reason),
            Ok(reply) => {
                self.waited_for([id], begun.elapsed());
                return (!self.daemons.away.contains(&id)).then_some(reply);
            }
            Err(error) => self.is_away(id, &format!("{error:#}")),
        }
        None
    }

    /// Takes the time from the accounts of daemons that were waited for. One whose account is used up is reported, and
    /// not asked again.
    fn waited_for(&mut self, daemons: impl IntoIterator<Item = BlockdId>, waited: Duration) {
        for id in daemons {
            if !self.daemons.spend(id, waited) && self.daemons.away.insert(id) {
                let (place, outcome) = (self.daemons.name(&id).to_owned(), Outcome::ByHand);
                let what = "it did not answer in time: all its answers together took too long";
                let advice = "look at its log and its disk, or replace it; the check goes on without it";
                self.report.find(&Line { kind: "slow-answers", place: &place, what, outcome, advice });
            }
        }
    }

    /// Reports a daemon that answers nonsense. It is not asked again, and what it has said does not count.
    fn is_unfit(&mut self, id: BlockdId, nonsense: &str) {
        if !self.daemons.away.insert(id) {
            return;
        }
        let (place, outcome) = (self.daemons.name(&id).to_owned(), Outcome::ByHand);
        let advice = "look at its log and its version, or replace it; the check goes on without it";
        self.report.find(&Line { kind: "bad-answer", place: &place, what: nonsense, outcome, advice });
    }

    fn is_away(&mut self, id: BlockdId, reason: &str) {
        self.daemons.away.insert(id);
        // A daemon that owns nothing may be away.
        if self.daemons.layout.member(&id).is_some_and(|member| member.is_owner()) {
            let name = self.daemons.name(&id).to_owned();
            self.report.fail(&format!("{name} cannot be asked what it holds: {reason}"));
        }
    }

    fn end(self) {
        let Surplus { overdue, overdue_bytes, unknown, extra, moving } = self.surplus;
        let mut note = |count: u64, text: String| {
            if count > 0 {
                self.report.note(text);
            }
        };
        note(
            overdue,
            format!(
                "{overdue} copies, {overdue_bytes} bytes, that nothing refers to for longer than the grace period, are about to be deleted"
            ),
        );
        note(
            unknown,
            format!(
                "{unknown} copies of blocks that metad does not know: just being written, or to be dropped after their grace"
            ),
        );
        note(extra, format!("{extra} copies more than there are to be: they are given back"));
        note(moving, format!("{moving} blocks are moving to other daemons"));
    }
}

/// The next name in order; `None` after the last possible one.
fn next_name(hash: &BlockHash) -> Option<BlockHash> {
    let mut next = *hash;
    for byte in next.0.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests;
