//! The agreement of the metads, without Raft: one log, one leader at a time, and nodes that do not know yet that
//! another one leads. Every node has a state of its own that stays behind when it is cut off from its peers.
//!
//! As with Raft, an entry whose proposer is deposed before a majority has it may be in the log or not, and the proposer
//! does not learn which. A leader that was cut off goes on believing that it leads, and finds out only when it asks its
//! peers. A new leader is elected when the read lease of the old one has run out ([`ELECTION_MIN`]).

use futures::FutureExt;
use futures::future::BoxFuture;
use kit::chance::Chance;
use metad::consensus::{Consensus, Member};
use metad::error::ProposeError;
use metad::fs::view::{Changes, Kv, MemoryKv, View};
use metad::fs::{self, CommandReply, Stamped, keys::Key};
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::ids::MetadId;

/// No leader is elected before one that was cut off can have served its last read without asking its peers.
pub const ELECTION_MIN: Duration = Duration::from_millis(700);

/// A callback for each command as it is applied, with its answer.
pub type Watch = Box<dyn FnMut(&Stamped, &CommandReply) + Send>;

/// A node's state: the newest one while the node leads, otherwise one that does not change.
struct NodeKv(RwLock<Arc<SharedKv>>);

struct SharedKv(RwLock<MemoryKv>);

impl Kv for NodeKv {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.read().0.read().get(key)
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.0.read().0.read().scan(range, visit);
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        self.0.read().0.read().last(range)
    }
}

struct NodeState {
    kv: Arc<NodeKv>,
    /// How often the node was started.
    life: u64,
    alive: bool,
    /// Since when the node is cut off from its peers, but not from clients.
    cut_off: Option<Instant>,
    /// The term in which it believes to lead.
    leads_in: Option<u64>,
}

struct Pending {
    number: u64,
    node: usize,
    life: u64,
    term: u64,
    stamped: Stamped,
}

struct Log {
    newest: Arc<SharedKv>,
    nodes: Vec<NodeState>,
    term: u64,
    leader: Option<usize>,
    /// Proposed entries that are not committed yet, in order.
    pending: VecDeque<Pending>,
    proposed: u64,
    /// Answers to committed entries that their proposers have not taken yet.
    replies: Vec<(u64, CommandReply)>,
    committed: u64,
    last_due: Option<Instant>,
    chance: Chance,
    watch: Option<Watch>,
}

/// The agreement of the metads.
pub struct Agreement {
    log: Mutex<Log>,
    /// Notified when something about the leader has changed.
    changed: Notify,
}

impl Agreement {
    /// Creates nodes `0..nodes` without a leader. `chance` decides how long commits take, and what happens to those
    /// under way when a leader falls.
    #[must_use]
    pub fn new(nodes: usize, chance: Chance) -> Arc<Self> {
        let newest = Arc::new(SharedKv(RwLock::default()));
        let node = |_| NodeState {
            kv: Arc::new(NodeKv(RwLock::new(newest.clone()))),
            life: 0,
            alive: false,
            cut_off: None,
            leads_in: None,
        };
        let nodes = (0..nodes).map(node).collect();
        let log = Log {
            newest,
            nodes,
            term: 0,
            leader: None,
            pending: VecDeque::new(),
            proposed: 0,
            replies: Vec::new(),
            committed: 0,
            last_due: None,
            chance,
            watch: None,
        };
        Arc::new(Self { log: Mutex::new(log), changed: Notify::new() })
    }

    /// Calls `watch` from now on with what is applied.
    pub fn watch(&self, watch: Watch) {
        self.log.lock().watch = Some(watch);
    }

    /// Starts a node, and returns its part. An earlier part of the node is dead.
    #[must_use]
    pub fn start(self: &Arc<Self>, node: usize) -> Arc<SimulatedConsensus> {
        let mut log = self.log.lock();
        let state = &mut log.nodes[node];
        state.alive = true;
        state.life += 1;
        let (life, kv) = (state.life, state.kv.clone());
        Arc::new(SimulatedConsensus { agreement: self.clone(), node, life, state: kv })
    }

    /// Returns whether a node is still the one that was started then.
    #[must_use]
    pub fn lives(&self, node: usize, life: u64) -> bool {
        let log = self.log.lock();
        log.nodes[node].alive && log.nodes[node].life == life
    }

    /// Returns the node that leads, if any does.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.log.lock().leader
    }

    /// Kills a node's process.
    pub fn kill(&self, node: usize) {
        let mut log = self.log.lock();
        log.nodes[node].alive = false;
        log.nodes[node].leads_in = None;
        log.falls(node);
        drop(log);
        self.changed.notify_waiters();
    }

    /// Cuts a node off from its peers.
    pub fn cut_off(&self, node: usize) {
        let mut log = self.log.lock();
        log.nodes[node].cut_off.get_or_insert_with(Instant::now);
        log.falls(node);
    }

    /// Ends all cuts between nodes.
    pub fn rejoin(&self) {
        let mut log = self.log.lock();
        let leader = log.leader;
        for (node, state) in log.nodes.iter_mut().enumerate() {
            state.cut_off = None;
            if leader != Some(node) {
                state.leads_in = None;
            }
        }
        drop(log);
        self.changed.notify_waiters();
    }

    /// Elects another leader, if there is none and a majority of nodes can.
    pub fn elect(&self) {
        let mut log = self.log.lock();
        let able = |state: &NodeState| state.alive && state.cut_off.is_none();
        let able: Vec<usize> = (0..log.nodes.len()).filter(|node| able(&log.nodes[*node])).collect();
        if log.leader.is_some() || able.len() * 2 <= log.nodes.len() {
            return;
        }
        let chosen = able[log.chance.below(able.len() as u64) as usize];
        // Some of these nodes have entries that the last leader had under way: all of them up to some entry.
        let pending = log.pending.len() as u64;
        let kept = log.chance.below(pending + 1);
        for _ in 0..kept {
            let Some(entry) = log.pending.pop_front() else { break };
            log.apply(&entry);
        }
        log.pending.clear();
        log.term += 1;
        let term = log.term;
        log.leader = Some(chosen);
        log.nodes[chosen].leads_in = Some(term);
        let newest = log.newest.clone();
        *log.nodes[chosen].kv.0.write() = newest;
        drop(log);
        self.changed.notify_waiters();
    }

    /// Looks at the newest state.
    pub fn with_newest<T>(&self, look: impl FnOnce(&dyn Kv) -> T) -> T {
        let newest = self.log.lock().newest.clone();
        let state = newest.0.read();
        look(&*state)
    }

    /// Returns how many commands were applied.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.log.lock().committed
    }
}

impl Log {
    /// Ends the leadership of a node, whether it knows or not. Its state stays as it is.
    fn falls(&mut self, node: usize) {
        if self.leader == Some(node) {
            self.leader = None;
            let frozen = Arc::new(SharedKv(RwLock::new(self.newest.0.read().clone())));
            *self.nodes[node].kv.0.write() = frozen;
        }
    }

    fn apply(&mut self, entry: &Pending) {
        let (reply, changes) = self.computed(&entry.stamped);
        self.newest.0.write().absorb(changes);
        self.committed += 1;
        if let Some(watch) = &mut self.watch {
            watch(&entry.stamped, &reply);
        }
        self.replies.push((entry.number, reply));
    }

    fn computed(&self, stamped: &Stamped) -> (CommandReply, Changes) {
        let newest = self.newest.0.read();
        let mut view = View::new(&*newest);
        let reply = fs::apply(&mut view, stamped);
        (reply, view.into_changes())
    }

    /// Draws how long an entry takes to reach a majority.
    fn delay(&mut self) -> Duration {
        let slow = self.chance.happens(0.02);
        Duration::from_micros(if slow { 20_000 + self.chance.below(200_000) } else { 200 + self.chance.below(2_000) })
    }
}

/// One node's part.
pub struct SimulatedConsensus {
    agreement: Arc<Agreement>,
    node: usize,
    life: u64,
    state: Arc<dyn Kv>,
}

/// Returns the address of a node.
#[must_use]
pub fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + node as u8], 1))
}

/// Returns whether an address is that of a node.
#[must_use]
pub fn is_metad(addr: SocketAddr) -> bool {
    (0..crate::cluster::NODES).any(|node| address(node) == addr)
}

impl SimulatedConsensus {
    /// Returns how often the node was started.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Looks at what the node knows; `None` once its process is dead.
    fn with<T>(&self, look: impl FnOnce(&mut Log) -> T) -> Option<T> {
        let mut log = self.agreement.log.lock();
        let state = &log.nodes[self.node];
        (state.alive && state.life == self.life).then(|| look(&mut log))
    }

    async fn commit(&self, wanted: Option<u64>, stamped: Stamped) -> Result<CommandReply, ProposeError> {
        let begun = self.with(|log| {
            let term = log.nodes[self.node].leads_in.filter(|term| wanted.is_none_or(|wanted| wanted == *term))?;
            log.proposed += 1;
            if log.leader != Some(self.node) {
                // No other node ever learns of it.
                return Some((log.proposed, term, Instant::now()));
            }
            let (number, node, life) = (log.proposed, self.node, self.life);
            log.pending.push_back(Pending { number, node, life, term, stamped });
            // Entries commit in order.
            let due = log.last_due.max(Some(Instant::now())).unwrap_or_else(Instant::now) + log.delay();
            log.last_due = Some(due);
            Some((number, term, due))
        });
        let Some((number, term, due)) = begun.unwrap_or_default() else {
            return Err(ProposeError::NotLeader(self.known_leader()));
        };
        tokio::time::sleep_until(due).await;
        loop {
            let changed = self.agreement.changed.notified();
            let outcome = self.with(|log| {
                if log.leader == Some(self.node) && log.term == term {
                    while log.pending.front().is_some_and(|entry| entry.number <= number) {
                        if let Some(entry) = log.pending.pop_front() {
                            debug_assert_eq!((entry.node, entry.life, entry.term), (self.node, self.life, term));
                            log.apply(&entry);
                        }
                    }
                }
                let at = log.replies.iter().position(|(of, _)| *of == number);
                // A deposed leader does not learn what became of its entry.
                let still = log.nodes[self.node].leads_in == Some(term);
                match at {
                    Some(at) if still => Some(Ok(log.replies.swap_remove(at).1)),
                    _ if !still => Some(Err(ProposeError::Unknown)),
                    _ => None,
                }
            });
            match outcome {
                Some(Some(outcome)) => return outcome,
                Some(None) => changed.await,
                None => futures::future::pending::<()>().await,
            }
        }
    }

    async fn barrier(&self) -> Result<(), ProposeError> {
        loop {
            let changed = self.agreement.changed.notified();
            let current = self.with(|log| {
                let state = &log.nodes[self.node];
                let Some(term) = state.leads_in else { return Some(false) };
                if log.leader == Some(self.node) && log.term == term {
                    return Some(true);
                }
                // It reads under the lease that its peers have given it. After that it asks them, and gets no answer.
                state.cut_off.filter(|since| since.elapsed() < ELECTION_MIN).map(|_| true)
            });
            match current {
                Some(Some(true)) => return Ok(()),
                Some(Some(false)) => return Err(ProposeError::NotLeader(self.known_leader())),
                Some(None) => {
                    // Its peers do not answer in time.
                    let _ = tokio::time::timeout(Duration::from_secs(1), changed).await;
                    let leads = self.with(|log| log.leader == Some(self.node));
                    if leads == Some(false) {
                        return Err(ProposeError::NotLeader(None));
                    }
                }
                None => futures::future::pending::<()>().await,
            }
        }
    }

    fn known_leader(&self) -> Option<MetadId> {
        let log = self.agreement.log.lock();
        let cut_off = log.nodes[self.node].cut_off.is_some();
        log.leader.filter(|_| !cut_off).map(|leader| MetadId(leader as u64 + 1))
    }
}

impl Consensus for SimulatedConsensus {
    fn state(&self) -> &Arc<dyn Kv> {
        &self.state
    }

    fn propose_in(&self, term: Option<u64>, stamped: Stamped) -> BoxFuture<'_, Result<CommandReply, ProposeError>> {
        self.commit(term, stamped).boxed()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ProposeError>> {
        self.barrier().boxed()
    }

    fn leadership(&self) -> Option<u64> {
        self.with(|log| log.nodes[self.node].leads_in).flatten()
    }

    fn leader(&self) -> BoxFuture<'_, Option<MetadId>> {
        futures::future::ready(self.known_leader()).boxed()
    }

    fn members(&self) -> Vec<Member> {
        let nodes = self.agreement.log.lock().nodes.len();
        let member =
            |node| Member { id: MetadId(node as u64 + 1), addr: address(node), voter: true, matched: 0, heard: None };
        (0..nodes).map(member).collect()
    }

    fn progress(&self) -> (u64, u64) {
        let log = self.agreement.log.lock();
        (log.term, log.committed)
    }
}
