//! Whole rings of 3 to 50 daemons under a seeded scheduler: puts, commits, removals, deaths, late returns, joins, drains,
//! other weights and more replicas in any order, one step of one daemon at a time. The decisions are those of the daemons ([`Duties`],
//! [`Pass`], [`fate`]) and of metad's leader ([`Layout`]'s steps); stores, network and the leader's memory are modelled.
//!
//! At each step every block that was acknowledged, and is referred to or about to be, has as many copies that can be read
//! as its deaths have left, and nothing that nobody refers to spreads (I10). In the end every block lies on its owners and
//! nowhere else, and these are as many as the layout owes.

use super::duties::Duties;
use super::give_back::{Fate, fate};
use super::pass::{Pass, Round, Step};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, Point};
use wire::layout::ring::Span;
use wire::layout::{Layout, LayoutMember};
use wire::message::block::Digest;

const LEN: u32 = 7;
const STEPS: usize = 600;

struct Daemon {
    alive: bool,
    blocks: BTreeSet<BlockHash>,
    layout: Layout,
    pass: Option<(Duties, Pass)>,
    round: Round,
    done: LayoutEpoch,
    empty: bool,
    /// Asked about, and not carried out yet: the block, the epoch, and the decision.
    giving: Option<(BlockHash, LayoutEpoch, Fate)>,
}

impl Daemon {
    fn new() -> Self {
        let (layout, done) = (Layout::default(), LayoutEpoch(0));
        Self {
            alive: true,
            blocks: BTreeSet::new(),
            layout,
            pass: None,
            round: Round::default(),
            done,
            empty: false,
            giving: None,
        }
    }

    fn learn(&mut self, layout: &Layout) {
        if layout.epoch > self.layout.epoch {
            self.layout = layout.clone();
            (self.pass, self.empty, self.giving) = (None, false, None);
        }
    }

    fn digests(&self, spans: &[Span]) -> Vec<Digest> {
        let of = |span: &Span| {
            let mut digest = Digest::default();
            self.blocks.range(span.first_hash()..=span.last_hash()).for_each(|hash| digest.add(hash, LEN));
            digest
        };
        spans.iter().map(of).collect()
    }
}

struct World {
    random: StdRng,
    layout: Layout,
    daemons: BTreeMap<BlockdId, Daemon>,
    referenced: BTreeSet<BlockHash>,
    /// Blocks that are acknowledged and not committed yet, with their placement.
    pending: BTreeMap<BlockHash, LayoutEpoch>,
    /// Copies that each block must have at least, of those that are referred to or about to be: `min_sync` when it was
    /// acknowledged, and when all were last whole, less the daemons with a copy that died since.
    promised: BTreeMap<BlockHash, usize>,
    /// Daemons that had a block when it became unreferenced.
    garbage: BTreeMap<BlockHash, BTreeSet<BlockdId>>,
    client: Layout,
    /// Daemons that died since all blocks were last whole.
    deaths: usize,
    /// No more faults are injected.
    is_settling: bool,
}

fn point(random: &mut StdRng) -> Point {
    Point(random.random())
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (replicas, min_sync) = [(3, 2), (3, 3), (2, 2), (5, 3)][random.random_range(0..4)];
        let layout = Layout { replicas, min_sync, ..Layout::default() };
        let count = random.random_range(usize::from(replicas).max(3)..=if seed.is_multiple_of(8) { 50 } else { 9 });
        let client = layout.clone();
        let mut world = Self {
            random,
            layout,
            daemons: BTreeMap::new(),
            referenced: BTreeSet::new(),
            pending: BTreeMap::new(),
            promised: BTreeMap::new(),
            garbage: BTreeMap::new(),
            client,
            deaths: 0,
            is_settling: false,
        };
        (0..count).for_each(|_| world.join());
        world.layout = world.layout.finished();
        world
    }

    fn join(&mut self) {
        let id = BlockdId(self.random.random());
        let (addr, zone) = (([127, 0, 0, 1], 1).into(), self.random.random_range(0..12).to_string());
        let points = (0..4).map(|_| point(&mut self.random)).collect();
        let member = LayoutMember { points, ..LayoutMember::new(id, id.to_string(), addr, zone) };
        let members = [self.layout.members.clone(), vec![member]].concat();
        if let Some(next) = self.layout.with_members(members) {
            // A ring that is being made holds no blocks yet.
            self.layout = if self.daemons.len() < 3 { next.finished() } else { next };
            self.daemons.insert(id, Daemon::new());
        }
    }

    fn any(&mut self, alive: bool) -> Option<BlockdId> {
        let all: Vec<BlockdId> =
            self.daemons.iter().filter(|(_, daemon)| daemon.alive == alive).map(|(id, _)| *id).collect();
        (!all.is_empty()).then(|| all[self.random.random_range(0..all.len())])
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..20 => self.put(),
            20..30 => self.commit(),
            30..34 => self.unlink(),
            34..36 => self.collect_garbage(),
            36..38 => self.kill(),
            38..40 => self.start_again(),
            40..41 if self.daemons.len() < 60 => self.join(),
            41..42 => self.drain(),
            42..43 => self.raise_replicas(),
            43..46 => self.lead(),
            46..56 => self.learn(),
            56..57 => self.compare_again(),
            57..58 => self.weigh(),
            _ => {
                if let Some(id) = self.any(true) {
                    self.work(&id);
                }
            }
        }
        self.check();
    }

    fn put(&mut self) {
        let bytes: [u8; 32] = self.random.random();
        let hash = BlockHash(bytes);
        let layout = self.client.clone();
        let owners: Vec<BlockdId> = layout.owners(&hash).iter().map(|owner| owner.id).collect();
        let mut synced = 0;
        for id in owners {
            let (reached, is_told) = (self.random.random_range(0..10) > 0, self.random.random_range(0..4) > 0);
            let Some(daemon) = self.daemons.get_mut(&id).filter(|daemon| daemon.alive && reached) else { continue };
            if daemon.layout.epoch < layout.epoch {
                // It waits for the sender's layout, and stores nothing without it.
                if !is_told {
                    continue;
                }
                daemon.learn(&self.layout);
            }
            // The block is stored first, and acknowledged only if the owners are still the same.
            daemon.blocks.insert(hash);
            synced += usize::from(daemon.layout.placement <= layout.epoch);
        }
        if synced >= usize::from(layout.min_sync) {
            self.pending.insert(hash, layout.epoch);
            self.promised.insert(hash, usize::from(layout.min_sync));
        } else {
            self.client = self.layout.clone();
            self.mark_garbage(hash);
        }
    }

    fn commit(&mut self) {
        if let Some((hash, _)) = self.pending.pop_first() {
            self.referenced.insert(hash);
        }
    }

    fn unlink(&mut self) {
        if let Some(hash) = self.referenced.pop_first() {
            self.promised.remove(&hash);
            self.mark_garbage(hash);
        }
    }

    fn mark_garbage(&mut self, hash: BlockHash) {
        let holders = self.daemons.iter().filter(|(_, daemon)| daemon.blocks.contains(&hash)).map(|(id, _)| *id);
        self.garbage.insert(hash, holders.collect());
    }

    fn collect_garbage(&mut self) {
        for daemon in self.daemons.values_mut().filter(|daemon| daemon.alive) {
            daemon.blocks.retain(|hash| !self.garbage.contains_key(hash));
        }
    }

    /// Kills only as many as the copies allow: acknowledged blocks lie on `min_sync` daemons.
    fn kill(&mut self) {
        if self.deaths + 1 >= usize::from(self.layout.min_sync) {
            return;
        }
        let Some(id) = self.any(true) else { return };
        let for_good = self.random.random_range(0..2) == 0;
        let daemon = self.daemons.get_mut(&id).unwrap();
        // `min_sync` may have been raised since a block was acknowledged.
        if daemon.blocks.iter().any(|hash| self.promised.get(hash) == Some(&1)) {
            return;
        }
        (daemon.alive, daemon.pass, daemon.giving) = (false, None, None);
        for hash in &daemon.blocks {
            self.promised.entry(*hash).and_modify(|copies| *copies -= 1);
        }
        if for_good {
            daemon.blocks.clear();
        }
        self.deaths += 1;
    }

    fn start_again(&mut self) {
        let Some(id) = self.any(false) else { return };
        if self.daemons[&id].blocks.is_empty() {
            return; // its disk is gone
        }
        self.daemons.get_mut(&id).unwrap().alive = true;
        let mut members = self.layout.members.clone();
        if let Some(member) = members.iter_mut().find(|member| member.id == id && member.out) {
            member.out = false;
            if let Some(next) = self.layout.with_members(members) {
                self.layout = next;
            }
        }
    }

    fn drain(&mut self) {
        let Some(id) = self.any(true) else { return };
        let left = self.layout.owning().filter(|owner| owner.id != id).count();
        if left > usize::from(self.layout.replicas) && self.layout.member(&id).is_some_and(LayoutMember::is_owner) {
            self.layout = self.layout.drained(&id, true).unwrap_or_else(|| self.layout.clone());
        }
    }

    fn weigh(&mut self) {
        let Some(id) = self.any(true) else { return };
        let Some(mut points) = self.layout.member(&id).map(|member| member.points.clone()) else { return };
        if points.len() > 2 && self.random.random_range(0..2) == 0 {
            points.pop();
        } else {
            points.push(point(&mut self.random));
        }
        let weight = points.len() as u32;
        self.layout = self.layout.weighed(&id, weight, &points).unwrap_or_else(|| self.layout.clone());
    }

    fn raise_replicas(&mut self) {
        let Layout { replicas, min_sync, .. } = self.layout;
        // With more, so many could die that the others are too few to store a block.
        let min_sync = (min_sync + self.random.random_range(0..2)).min(3);
        let is_meant = self.random.random_range(0..4) == 0;
        if is_meant && replicas < 5 && self.layout.owning().count() > usize::from(replicas) {
            self.layout = self.layout.with_redundancy(replicas + 1, min_sync).unwrap_or_else(|| self.layout.clone());
        }
    }

    /// Plays metad's leader.
    fn lead(&mut self) {
        let dead: Vec<BlockdId> = self.daemons.iter().filter(|(_, daemon)| !daemon.alive).map(|(id, _)| *id).collect();
        for id in dead {
            if self.layout.may_take_out(&id) {
                self.layout = self.layout.taken_out(&id);
            }
        }
        let done = |member: &LayoutMember| {
            self.daemons.get(&member.id).is_some_and(|daemon| daemon.done >= self.layout.placement)
        };
        if !self.layout.is_final() && self.layout.owning().all(done) {
            self.layout = self.layout.finished();
        }
        let current = |daemon: &Daemon| daemon.layout.epoch == self.layout.epoch && daemon.empty;
        let drained = |member: &&LayoutMember| {
            member.draining && self.daemons.get(&member.id).is_some_and(|daemon| daemon.alive && current(daemon))
        };
        let is_whole = self.daemons.values().filter(|daemon| daemon.alive).all(current)
            && self.layout.owning().all(|owner| self.daemons.get(&owner.id).is_some_and(|daemon| daemon.alive))
            && self.pending.values().all(|placement| *placement >= self.layout.placement);
        let min_sync = usize::from(self.layout.min_sync);
        // What was committed after the daemons had compared may still lack copies.
        if self.layout.is_final() && is_whole && self.promised.keys().all(|hash| self.copies(hash) >= min_sync) {
            self.deaths = 0;
            self.promised.values_mut().for_each(|copies| *copies = min_sync);
        }
        if let Some(id) = self.layout.members.iter().find(drained).map(|member| member.id) {
            self.layout = self.layout.removed(&id);
            self.daemons.remove(&id);
        }
    }

    fn learn(&mut self) {
        if self.random.random_range(0..4) == 0 {
            self.client = self.layout.clone();
        }
        if let Some(id) = self.any(true) {
            let layout = self.layout.clone();
            self.daemons.get_mut(&id).unwrap().learn(&layout);
        }
    }

    /// Begins a comparison though the layout has not changed.
    fn compare_again(&mut self) {
        let Some(id) = self.any(true) else { return };
        let daemon = self.daemons.get_mut(&id).unwrap();
        if daemon.pass.is_none() {
            let duties = Duties::of(&daemon.layout, &id);
            let pass = Pass::new(&duties, daemon.round.clone());
            daemon.pass = Some((duties, pass));
        }
    }

    /// One step of a daemon's repair.
    fn work(&mut self, id: &BlockdId) {
        let daemon = self.daemons.get_mut(id).unwrap();
        if daemon.done < daemon.layout.placement || daemon.pass.is_some() {
            let (layout, round) = (&daemon.layout, &daemon.round);
            let (duties, pass) = daemon.pass.get_or_insert_with(|| {
                let duties = Duties::of(layout, id);
                let pass = Pass::new(&duties, round.clone());
                (duties, pass)
            });
            let (epoch, step) = (duties.epoch, pass.step());
            self.carry_out(id, epoch, step);
        } else if daemon.layout.is_final() {
            self.give_back(id);
        }
    }

    fn carry_out(&mut self, id: &BlockdId, epoch: LayoutEpoch, step: Step) {
        let answers = |daemon: &&Daemon| daemon.alive && daemon.layout.epoch >= epoch;
        let source = match &step {
            Step::Compare { source, .. } | Step::List { source, .. } | Step::Fetch { source, .. } => {
                self.daemons.get(source).filter(answers).map(|daemon| daemon.blocks.clone())
            }
            Step::End { complete } => {
                let daemon = self.daemons.get_mut(id).unwrap();
                if *complete {
                    daemon.done = daemon.layout.placement;
                }
                daemon.round = daemon.pass.take().map(|(_, pass)| pass.into_round()).unwrap_or_default();
                return;
            }
        };
        let has_run_out = !self.is_settling && self.random.random_range(0..16) == 0;
        let daemon = self.daemons.get_mut(id).unwrap();
        let pass = &mut daemon.pass.as_mut().unwrap().1;
        let Some(theirs) = source else { return pass.failed() };
        let asked = step.source();
        match step {
            Step::Compare { spans, .. } => {
                let other = Daemon { blocks: theirs, ..Daemon::new() };
                let digests = other.digests(&spans);
                let mine = Daemon { blocks: daemon.blocks.clone(), ..Daemon::new() }.digests(&spans);
                pass.compared(&mine, &digests);
            }
            Step::List { from, last, .. } => {
                let page: Vec<_> = theirs.range(from..=last).take(3).map(|hash| (*hash, LEN)).collect();
                let here = &daemon.blocks;
                pass.listed(&page, page.len() < 3, |hash| here.contains(hash));
            }
            Step::Fetch { blocks, .. } => {
                for (hash, _) in blocks.iter().filter(|(hash, _)| self.referenced.contains(hash)) {
                    daemon.blocks.insert(*hash);
                }
                pass.fetched(true);
            }
            Step::End { .. } => {}
        }
        if let Some(source) = asked.filter(|_| has_run_out) {
            pass.leave(source);
        }
    }

    /// Asks about one copy that belongs elsewhere, or carries out the decision.
    fn give_back(&mut self, id: &BlockdId) {
        if let Some((hash, asked_at, fate)) = self.daemons.get_mut(id).unwrap().giving.take() {
            if asked_at == self.daemons[id].layout.epoch {
                self.decided(id, hash, asked_at, fate);
            }
            return;
        }
        let daemon = &self.daemons[id];
        let (layout, epoch) = (daemon.layout.clone(), daemon.layout.epoch);
        let duties = Duties::of(&layout, id);
        let matters = |hash: &&BlockHash| {
            duties.is_foreign(hash) && (self.referenced.contains(hash) || self.pending.contains_key(hash))
        };
        let Some(hash) = daemon.blocks.iter().find(matters).copied() else {
            self.daemons.get_mut(id).unwrap().empty = true;
            return;
        };
        let owners: Vec<BlockdId> = layout.owners(&hash).iter().map(|owner| owner.id).collect();
        let answers = |owner: &BlockdId| {
            self.daemons.get(owner).is_some_and(|daemon| daemon.alive && daemon.layout.epoch >= epoch)
        };
        if !owners.iter().all(answers) {
            return;
        }
        let lacking: Vec<BlockdId> =
            owners.iter().filter(|owner| !self.daemons[owner].blocks.contains(&hash)).copied().collect();
        let is_young = Some(self.pending.contains_key(&hash));
        let decided =
            fate(self.referenced.contains(&hash), is_young, (&owners, usize::from(layout.min_sync)), &lacking);
        self.daemons.get_mut(id).unwrap().giving = Some((hash, epoch, decided));
    }

    fn decided(&mut self, id: &BlockdId, hash: BlockHash, epoch: LayoutEpoch, fate: Fate) {
        if let Fate::Send(owners) = &fate {
            let takes =
                |owner: &BlockdId| self.daemons.get(owner).is_some_and(|to| to.alive && to.layout.placement <= epoch);
            if !owners.iter().all(takes) {
                return;
            }
            // A block that was removed since it was asked about is garbage there, too.
            self.garbage.entry(hash).and_modify(|holders| holders.extend(owners));
            for owner in owners {
                self.daemons.get_mut(owner).unwrap().blocks.insert(hash);
            }
        }
        if matches!(fate, Fate::Send(_) | Fate::Drop) {
            self.daemons.get_mut(id).unwrap().blocks.remove(&hash);
        }
    }

    fn holders(&self, hash: &BlockHash) -> impl Iterator<Item = (&BlockdId, &Daemon)> {
        self.daemons.iter().filter(move |(_, daemon)| daemon.blocks.contains(hash))
    }

    /// Copies that can be read.
    fn copies(&self, hash: &BlockHash) -> usize {
        self.holders(hash).filter(|(_, daemon)| daemon.alive).count()
    }

    fn check(&self) {
        assert!(self.referenced.iter().chain(self.pending.keys()).all(|hash| self.promised.contains_key(hash)));
        for (hash, promised) in &self.promised {
            let copies = self.copies(hash);
            assert!(copies >= *promised, "{hash} has {copies} copies instead of {promised}; {} died", self.deaths);
            assert!(copies > 0, "{hash} cannot be read; {} died", self.deaths);
        }
        for (hash, before) in &self.garbage {
            let spread: Vec<_> = self.holders(hash).filter(|(id, _)| !before.contains(id)).collect();
            assert!(spread.is_empty(), "{hash} was brought back");
        }
    }

    /// Injects no more faults, and lets everything come to rest.
    fn settle(&mut self) {
        self.is_settling = true;
        while !self.pending.is_empty() {
            self.commit();
        }
        // The regular comparison finds what puts left out, and what was committed since the last one.
        for daemon in self.daemons.values_mut() {
            (daemon.done, daemon.empty) = (LayoutEpoch(0), false);
            (daemon.pass, daemon.round) = (None, Round::default());
        }
        for round in 0.. {
            assert!(round < 200, "it does not come to rest: {:?}", self.layout.older);
            self.lead();
            // An operator gives up daemons that metad does not take out by itself.
            let lost = |member: &&LayoutMember| self.daemons.get(&member.id).is_none_or(|daemon| !daemon.alive);
            if let Some(id) = self.layout.members.iter().find(lost).map(|member| member.id) {
                self.layout = self.layout.removed(&id);
            }
            let living = |owner: &&LayoutMember| self.daemons.get(&owner.id).is_some_and(|daemon| daemon.alive);
            if self.layout.owning().filter(living).count() < usize::from(self.layout.replicas) {
                self.join();
            }
            let ids: Vec<BlockdId> = self.daemons.keys().copied().collect();
            let layout = self.layout.clone();
            for id in ids.iter().filter(|id| self.daemons[id].alive).copied().collect::<Vec<_>>() {
                self.daemons.get_mut(&id).unwrap().learn(&layout);
            }
            for _ in 0..400 {
                for id in &ids {
                    if self.daemons.get(id).is_some_and(|daemon| daemon.alive) {
                        self.work(id);
                    }
                }
                self.check();
                if self
                    .daemons
                    .values()
                    .filter(|d| d.alive)
                    .all(|d| d.empty || !d.layout.is_final() && d.pass.is_none())
                {
                    break;
                }
            }
            let is_whole = |daemon: &Daemon| daemon.empty && daemon.layout.epoch == self.layout.epoch;
            if self.layout.is_final() && self.daemons.values().filter(|daemon| daemon.alive).all(is_whole) {
                return;
            }
        }
    }

    fn check_settled(&self) {
        for hash in &self.referenced {
            let owners: Vec<BlockdId> = self.layout.owners(hash).iter().map(|owner| owner.id).collect();
            let holders: Vec<BlockdId> =
                self.holders(hash).filter(|(_, daemon)| daemon.alive).map(|(id, _)| *id).collect();
            assert_eq!(owners.len(), usize::from(self.layout.replicas), "{hash} has too few owners");
            let missing: Vec<_> = owners.iter().filter(|owner| !holders.contains(owner)).collect();
            assert!(missing.is_empty(), "{hash} lacks copies: {missing:?}");
            assert!(holders.iter().all(|holder| owners.contains(holder)), "{hash} lies where it does not belong");
        }
    }
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    world.check_settled();
}

/// Guards I10 and I11.
#[test]
fn every_block_survives_deaths_joins_returns_and_drains_and_ends_on_its_owners() {
    let (count, first) = (kit::scale("HEAL_SEEDS", 120), kit::scale("HEAL_SEED", 0));
    (first..first + count).for_each(run);
}
