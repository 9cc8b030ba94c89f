//! One schedule from its beginning to its end: servers, clients, programs, faults, and checks.

use crate::cluster::{Certificates, Cluster};
use crate::consensus::address;
use crate::content::{self, Piece};
use crate::disk::SimulatedDisk;
use crate::history::History;
use crate::leases::Leases;
use crate::network::{Links, SimulatedNetwork, Split, Weather, show};
use crate::plan::Plan;
use crate::program::{Program, Scene};
use crate::steps::{Act, Fault, Step};
use crate::themes::Theme;
use crate::tree::{compare, content as content_of, tree};
use crate::truth::Truth;
use crate::watched::Watched;
use client::{Client, ClientConfig};
use kit::chance::Chance;
use metad::fs::check::check;
use parking_lot::Mutex;
use std::cell::{LazyCell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use wire::ids::Ino;

/// The longest time of an act once all faults have ended.
const ACT_LIMIT: Duration = Duration::from_secs(45);
/// The longest time of an act in a schedule without faults: below what a lease takes to run out, so clients that wait
/// for each other until then are found.
const QUIET_LIMIT: Duration = Duration::from_secs(3);
/// Where messages may be later than this, a few of them take as long as a lease.
const QUIET_LATE_MS: u64 = 300;
/// The longest time of an act while messages go on being lost.
const STORM_LIMIT: Duration = Duration::from_secs(240);
/// A lock that a dead client held is free when its session has expired.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
/// The longest time until all programs are done, once all faults have ended.
const END_LIMIT: Duration = Duration::from_secs(600);
/// How often a client tries to start again while servers are away.
const BOOTS_TRIED: usize = 5;
/// The simulated clock's time at the beginning.
const WALL: Duration = Duration::from_secs(1_900_000_000);

/// The result of a schedule.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Violations that were found.
    pub problems: Vec<String>,
    /// A hash of everything that happened.
    pub trace: u64,
    /// Number of acts of programs.
    pub acts: u64,
    /// How long it took by the simulated clock.
    pub took: Duration,
}

/// A client's machine: its disk outlives the processes.
struct Machine {
    number: usize,
    leases: Arc<Leases>,
    disk: SimulatedDisk,
    chance: Mutex<Chance>,
    /// The running process, if there is one.
    running: Watched<Option<Running>>,
    lives: Mutex<u64>,
}

#[derive(Clone)]
struct Running {
    client: Arc<Client>,
    links: Arc<Links>,
}

struct World {
    plan: Plan,
    begun: Instant,
    cluster: Arc<Cluster>,
    machines: Vec<Arc<Machine>>,
    scene: Arc<Scene>,
    trace: Arc<Mutex<u64>>,
    /// When the last fault ends.
    calm_from: Instant,
}

thread_local! {
    /// Panics on this thread: nobody would notice those of tasks.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note_panics() {
    static NOTED: Once = Once::new();
    NOTED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            before(panic);
        }));
    });
}

/// Runs a schedule on this thread.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    note_panics();
    let mut outcome = run_to_its_end(plan);
    outcome.problems.extend(PANICS.take());
    outcome
}

fn run_to_its_end(plan: &Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs nothing");
    let plan = plan.clone();
    runtime.block_on(async move {
        let entered = wire::simulation::enter(plan.seed, SystemTime::UNIX_EPOCH + WALL);
        let outcome = play(plan).await;
        drop(entered);
        outcome
    })
}

async fn play(plan: Plan) -> Outcome {
    let begun = Instant::now();
    let (truth, trace) = (Arc::new(Mutex::new(Truth::default())), Arc::new(Mutex::new(0_u64)));
    let world = match World::start(plan, truth.clone(), trace).await {
        Ok(world) => Arc::new(world),
        Err(problem) => return Outcome { problems: vec![problem], ..Outcome::default() },
    };
    let mut problems = match world.go().await {
        Ok(()) => world.look_at_the_end().await,
        Err(problem) => vec![problem],
    };
    problems.extend(std::mem::take(&mut world.scene.history.lock().problems));
    problems.extend(std::mem::take(&mut truth.lock().problems));
    world.end().await;
    let trace = *world.trace.lock();
    Outcome { problems, trace, acts: world.scene.history.lock().acts, took: begun.elapsed() }
}

/// FNV-1a over words.
fn mix(trace: &mut u64, word: u64) {
    *trace = (*trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
}

impl World {
    async fn start(plan: Plan, truth: Arc<Mutex<Truth>>, trace: Arc<Mutex<u64>>) -> Result<Self, String> {
        let cluster = Cluster::start(plan.seed).await;
        let (seen, traced, began) = (truth.clone(), trace.clone(), Instant::now());
        cluster.agreement().watch(Box::new(move |stamped, reply| {
            let mut trace = traced.lock();
            mix(&mut trace, began.elapsed().as_micros() as u64);
            for byte in wire::codec::encode(stamped).chunks(8) {
                let mut word = [0; 8];
                word[..byte.len()].copy_from_slice(byte);
                mix(&mut trace, u64::from_le_bytes(word));
            }
            seen.lock().see(stamped, reply);
        }));
        let looked_at = cluster.clone();
        let pieces_in = move |ino: Ino| {
            let content = looked_at.agreement().with_newest(|kv| content_of(kv, looked_at.blocks(), ino));
            let pieces = content.and_then(|content| content::parse(&content)).unwrap_or_default();
            pieces.into_iter().flatten().collect()
        };
        let leases = Arc::<Leases>::default();
        let mut machines = Vec::new();
        for number in 0..plan.clients {
            let chance = Mutex::new(Chance::of(plan.seed, &format!("machine {number}")));
            let (disk, running) = (SimulatedDisk::default(), Watched::default());
            let leases = leases.clone();
            let machine = Arc::new(Machine { number, leases, disk, chance, running, lives: Mutex::new(0) });
            machine.boot(&cluster, Weather::default()).await?;
            machines.push(machine);
        }
        let begun = Instant::now();
        let (history, keeps_dirs_open) = (Mutex::new(History::default()), plan.theme != Theme::Anything);
        let scene = Arc::new(Scene { begun, keeps_dirs_open, history, truth, leases, pieces_in: Box::new(pieces_in) });
        let calm_from = calm_from(&plan, begun);
        Ok(Self { plan, begun, cluster, machines, scene, trace, calm_from })
    }

    /// Runs programs and faults as the plan says, until all programs are done.
    async fn go(self: &Arc<Self>) -> Result<(), String> {
        for machine in &self.machines {
            machine.set_weather(self.plan.weather);
        }
        let mut running = JoinSet::new();
        for client in 0..self.plan.clients {
            for lane in 0..self.plan.lanes {
                running.spawn(self.clone().run_program(client, lane));
            }
        }
        let begun = self.begun;
        for step in &self.plan.steps {
            if let Step::Fault { at_ms, fault } = *step {
                let world = self.clone();
                tokio::spawn(async move {
                    sleep_until(begun + Duration::from_millis(at_ms)).await;
                    world.fail(fault).await;
                });
            }
        }
        let all = async { while running.join_next().await.is_some() {} };
        let limit = self.calm_from + END_LIMIT;
        tokio::time::timeout_at(limit, all).await.map_err(|_| "programs do not come to their end".to_owned())?;
        sleep_until(self.calm_from).await;
        for machine in &self.machines {
            machine.set_weather(Weather::default());
        }
        Ok(())
    }

    async fn run_program(self: Arc<Self>, client: usize, lane: usize) {
        let machine = &self.machines[client];
        let mut program = Program::new(self.scene.clone(), client, lane);
        let mut used: Option<Weak<Client>> = None;
        let mine = |step: &&Step| matches!(step, Step::Act { client: c, lane: l, .. } if (*c, *l) == (client, lane));
        for step in self.plan.steps.iter().filter(mine) {
            let Step::Act { pause_ms, act, .. } = *step else { continue };
            sleep(Duration::from_millis(pause_ms)).await;
            let Some(process) = machine.running.wait_for(Option::is_some).await else { return };
            if !used.as_ref().is_some_and(|used| Weak::ptr_eq(used, &Arc::downgrade(&process.client))) {
                // The process in which it had files open is dead.
                program.forget();
                used = Some(Arc::downgrade(&process.client));
            }
            let begun = Instant::now();
            let done = tokio::select! {
                biased;
                _ = machine.running.wait_for(|now| !is_same(now, &process)) => None,
                done = program.act(&process.client, act) => Some(done),
            };
            if matches!(act, Act::Until(_)) {
                continue;
            }
            self.note_act((client, lane), act, begun, done.map(|done| done.is_ok()));
        }
    }

    fn note_act(&self, (client, lane): (usize, usize), act: Act, begun: Instant, done: Option<bool>) {
        let (who, since) = (format_args!("client-{client} program {lane}").to_string(), begun.elapsed());
        show(who, format_args!("has done, in {since:?}, {done:?}"), &act);
        let took = begun.max(self.calm_from).elapsed().min(begun.elapsed());
        let mut trace = self.trace.lock();
        mix(&mut trace, (client * 10 + lane) as u64);
        mix(&mut trace, begun.elapsed().as_micros() as u64 * 4 + done.map_or(2, u64::from));
        let mut history = self.scene.history.lock();
        history.acts += 1;
        let Weather { lost, broken, late_ms, .. } = self.plan.weather;
        let limit = match act {
            Act::Lock(_) => LOCK_LIMIT,
            // Each message that is lost costs some seconds, and there may be any number of them.
            _ if lost > 0.0 || broken > 0.0 => STORM_LIMIT,
            _ if late_ms <= QUIET_LATE_MS && !self.plan.steps.iter().any(|step| matches!(step, Step::Fault { .. })) => {
                QUIET_LIMIT
            }
            _ => ACT_LIMIT,
        };
        if took > limit {
            history.problem(format!("client {client} took {took:?} for {act:?}, with nothing wrong any more"));
        }
    }

    async fn fail(&self, fault: Fault) {
        match fault {
            Fault::Cut { client, .. } => {
                self.scene.history.lock().troubled.insert(client);
                let machine = &self.machines[client];
                machine.cut(true);
                sleep(fault.lasts()).await;
                machine.cut(false);
            }
            Fault::Crash { client, power, .. } => self.crash(client, power, fault.lasts()).await,
            Fault::KillLeader { .. } => self.cluster.kill_leader(fault.lasts()),
            Fault::DeposeLeader { .. } => self.cluster.depose_leader(fault.lasts()),
            Fault::Split { client, .. } => {
                let Some(leader) = self.cluster.agreement().leader() else { return };
                self.scene.history.lock().troubled.insert(client);
                let split = |with_it| Split { metad: address(leader), with_it };
                self.machines.iter().for_each(|machine| machine.split(Some(split(machine.number == client))));
                self.cluster.depose_leader(fault.lasts());
                sleep(fault.lasts()).await;
                self.machines.iter().for_each(|machine| machine.split(None));
            }
            Fault::NoBlocks { .. } => {
                self.cluster.blocks().set_away(true);
                sleep(fault.lasts()).await;
                self.cluster.blocks().set_away(false);
            }
        }
    }

    async fn crash(&self, client: usize, power: bool, down: Duration) {
        let machine = &self.machines[client];
        // A machine that is down already cannot crash.
        let Some(process) = machine.running.change(|running| *running = None) else { return };
        process.links.kill();
        if power {
            machine.disk.cut_power(&mut machine.chance.lock());
        } else {
            machine.disk.kill_user();
        }
        process.client.abandon();
        drop(process);
        machine.leases.lost(client);
        self.note_crash(machine);
        sleep(down).await;
        let mut booted = Ok(());
        for _ in 0..BOOTS_TRIED {
            booted = machine.boot(&self.cluster, self.plan.weather).await;
            if booted.is_ok() {
                return;
            }
        }
        if let Err(problem) = booted {
            self.scene.history.lock().problem(problem);
        }
    }

    /// Content that the client had reported as closed is promised only if it was stored, here or there.
    fn note_crash(&self, machine: &Machine) {
        let mut history = self.scene.history.lock();
        let client = machine.number;
        history.troubled.insert(client);
        history.crashed.insert(client);
        for holders in history.holders.values_mut() {
            holders.retain(|(holder, _)| *holder != client);
        }
        for (number, write) in history.writes.iter_mut().filter(|(_, write)| write.client == client) {
            if write.durable.is_some() {
                continue;
            }
            let in_file = LazyCell::new(|| (self.scene.pieces_in)(write.ino));
            let stored = |index: u32| {
                machine.disk.contains(&content::piece(*number, index))
                    || in_file.contains(&Piece { write: *number, index })
            };
            write.lost |= !(0..write.pieces).all(stored);
        }
    }

    /// Checks, once everything has come to rest, where content is, and whether every client sees it.
    async fn look_at_the_end(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(problem) = self.cluster.wait_for_leader().await {
            return vec![problem];
        }
        for machine in &self.machines {
            if let Err(problem) = machine.settle().await {
                problems.push(problem);
            }
        }
        // Leases of clients that do not answer run out, and background work is done.
        sleep(Duration::from_secs(12)).await;
        let agreement = self.cluster.agreement();
        let found = agreement.with_newest(|kv| {
            problems.extend(check(kv));
            tree(kv, self.cluster.blocks())
        });
        let tree = match found {
            Ok(tree) => tree,
            Err(problem) => return vec![problem],
        };
        let mut everywhere = BTreeMap::new();
        {
            let (mut history, truth) = (self.scene.history.lock(), self.scene.truth.lock());
            for (path, (_, content)) in &tree {
                match content::parse(content) {
                    Ok(pieces) => {
                        let counts = content::count(&pieces);
                        history.check_once(&truth, path, &counts);
                        counts.into_iter().for_each(|(piece, count)| *everywhere.entry(piece).or_insert(0) += count);
                    }
                    Err(problem) => problems.push(format!("{path}: {problem}")),
                }
            }
            history.check_durable(&truth, &everywhere);
            history.check_conflicts(&truth);
        }
        for machine in &self.machines {
            if let Err(problem) = machine.compare(&tree).await {
                problems.push(problem);
            }
        }
        problems
    }

    async fn end(&self) {
        for machine in &self.machines {
            if let Some(process) = machine.running.change(|running| *running = None) {
                process.links.kill();
                process.client.abandon();
            }
        }
    }
}

/// Returns when the last fault ends, including its effects: leases and sessions run out, and others wait for that.
fn calm_from(plan: &Plan, begun: Instant) -> Instant {
    let ends = plan.steps.iter().filter_map(|step| match step {
        Step::Fault { at_ms, fault } => Some(Duration::from_millis(*at_ms) + fault.lasts()),
        Step::Act { .. } => None,
    });
    begun + ends.max().unwrap_or_default()
}

/// Returns whether this is the running process.
fn is_same(running: &Option<Running>, process: &Running) -> bool {
    running.as_ref().is_some_and(|running| Arc::ptr_eq(&running.client, &process.client))
}

impl Machine {
    async fn boot(&self, cluster: &Arc<Cluster>, weather: Weather) -> Result<(), String> {
        let certificates = Certificates::shared();
        let life = {
            let mut lives = self.lives.lock();
            *lives += 1;
            *lives
        };
        let chance = Chance::new(self.chance.lock().number());
        let links =
            Links::new((self.number, self.leases.clone()), cluster.clone(), Arc::new(certificates.peer()), chance);
        let config = ClientConfig {
            window_bytes: 8 << 20,
            cache_bytes: 8 << 20,
            readahead_bytes: 1 << 20,
            ..ClientConfig::new(certificates.bundle(), &format!("client-{}", self.number))
        };
        let network = Arc::new(SimulatedNetwork(links.clone()));
        let booted = Client::connect_over(config, network, Some(self.disk.open())).await;
        let client = booted.map_err(|error| format!("client {} does not start ({life}): {error}", self.number))?;
        links.set_weather(weather);
        self.running.change(|running| *running = Some(Running { client, links }));
        Ok(())
    }

    fn set_weather(&self, weather: Weather) {
        if let Some(process) = self.running.get() {
            process.links.set_weather(weather);
        }
    }

    fn cut(&self, cut: bool) {
        if let Some(process) = self.running.get() {
            process.links.cut(cut);
        }
    }

    fn split(&self, split: Option<Split>) {
        if let Some(process) = self.running.get() {
            process.links.split(split);
        }
    }

    async fn process(&self) -> Option<Running> {
        timeout(END_LIMIT, self.running.wait_for(Option::is_some)).await.ok()?
    }

    /// Waits until the servers know everything that was done.
    async fn settle(&self) -> Result<(), String> {
        let number = self.number;
        let process = self.process().await.ok_or_else(|| format!("client {number} does not come back"))?;
        let settles = async {
            // Its programs have been notified of conflicts already.
            let _ = process.client.sync_all().await;
            process.client.send_all().await
        };
        match timeout(END_LIMIT, settles).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("client {number} cannot send what was done: {error}")),
            Err(_) => Err(format!("client {number} does not come to an end with what was done")),
        }
    }

    /// I2, I5: checks that the client sees everything, once nothing changes any more.
    async fn compare(&self, tree: &crate::tree::Tree) -> Result<(), String> {
        let number = self.number;
        let process = self.process().await.ok_or_else(|| format!("client {number} does not come back"))?;
        let looks = compare(&process.client, tree);
        timeout(END_LIMIT, looks)
            .await
            .map_err(|_| format!("client {number} hangs at the end"))?
            .map_err(|problem| format!("client {number} at the end: {problem}"))
    }
}
