//! The servers: real metads above the simulated agreement of [`crate::consensus`], and a block daemon.

use crate::blocks::Blocks;
use crate::consensus::{Agreement, ELECTION_MIN, SimulatedConsensus, address};
use crate::watched::Watched;
use kit::chance::Chance;
use metad::Shared;
use metad::config::Config;
use metad::consensus::Consensus;
use metad::fs::{Command, Stamped, settings};
use metad::raft::Tuning;
use metad::server::{Followed, Server, expire_silent};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use wire::attr::Timestamp;
use wire::bundle::Bundle;
use wire::ids::{ClusterId, MetadId, SessionId};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, PeerIdentity, Role, Subject};

/// How many metads there are.
pub const NODES: usize = 3;

/// Shared by all simulations of a process, because certificates cost more than a simulation.
pub struct Certificates {
    config: Config,
    bundle: Bundle,
    cluster: ClusterId,
    /// An endpoint, because metads need one; nothing is ever sent by it.
    endpoint: Endpoint,
    _runtime: Runtime,
}

impl Certificates {
    /// Returns those of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Certificates> = OnceLock::new();
        SHARED.get_or_init(|| {
            let ca = ClusterCa::create("sim").expect("a cluster's key");
            let issue = |role, name| ca.issue(&Subject::new(role, name)).expect("a certificate");
            let identity = issue(Role::Metad, "metad");
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("threads");
            let unused = Endpoint::bind_within(([127, 0, 0, 1], 0).into(), &identity, runtime.handle().clone());
            let config = Config {
                id: MetadId(1),
                cluster: "sim".to_owned(),
                listen: address(0),
                data_dir: PathBuf::new(),
                identity,
                issuer: None,
                issuer_file: None,
                initial: BTreeMap::new(),
                replicas: 1,
                min_sync: 1,
                gc_grace: Duration::from_secs(600),
                tuning: Tuning::default(),
            };
            let metads = (0..NODES).map(address).collect();
            let bundle = Bundle { cluster: "sim".to_owned(), metads, identity: issue(Role::Client, "client") };
            let cluster = bundle.identity.cluster_id();
            Self { config, bundle, cluster, endpoint: unused.expect("a port"), _runtime: runtime }
        })
    }

    /// Returns a client's bundle.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        self.bundle.clone()
    }

    /// Returns a client's identity as a metad sees it.
    #[must_use]
    pub fn peer(&self) -> PeerIdentity {
        let subject = self.bundle.identity.subject().clone();
        let certificate = self.bundle.identity.certificate().clone();
        PeerIdentity { subject, certificate, cluster: self.cluster, addr: SocketAddr::from(([10, 0, 2, 1], 1)) }
    }
}

/// A metad, for as long as its process lives.
pub struct Node {
    server: Server,
    dead: Watched<bool>,
    expiry: AbortHandle,
}

impl Node {
    fn start(number: usize, consensus: Arc<SimulatedConsensus>) -> Arc<Self> {
        let certificates = Certificates::shared();
        let config = Config { id: MetadId(number as u64 + 1), listen: address(number), ..certificates.config.clone() };
        let shared = Arc::new(Shared::new(config, consensus, certificates.endpoint.clone()));
        let expiry = tokio::spawn(expire_silent(shared.clone())).abort_handle();
        Arc::new(Self { server: Server { shared }, dead: Watched::default(), expiry })
    }

    /// Waits until the process is dead.
    pub async fn death(&self) {
        self.dead.wait_for(|dead| *dead).await;
    }

    /// Begins a stream of events.
    ///
    /// # Errors
    /// Returns why there is none.
    pub async fn follow(&self, peer: &PeerIdentity, request: &MetaRequest) -> Result<Followed, &'static str> {
        match request {
            MetaRequest::Events { session, dirty } => self.server.follow(peer, *session, *dirty).await,
            _ => Err("this is no stream"),
        }
    }

    async fn ask(&self, peer: &PeerIdentity, request: MetaRequest) -> Option<MetaReply> {
        tokio::select! {
            biased;
            () = self.death() => None,
            reply = self.server.answer(peer, request) => Some(reply),
        }
    }

    fn kill(&self) {
        self.dead.change(|dead| *dead = true);
        self.expiry.abort();
    }
}

/// All servers.
pub struct Cluster {
    agreement: Arc<Agreement>,
    nodes: Mutex<Vec<Option<Arc<Node>>>>,
    blocks: Blocks,
    chance: Mutex<Chance>,
}

impl Cluster {
    /// Starts metads, elects one, and founds the cluster.
    pub async fn start(seed: u64) -> Arc<Self> {
        let agreement = Agreement::new(NODES, Chance::of(seed, "agreement"));
        let consensus: Vec<_> = (0..NODES).map(|node| agreement.start(node)).collect();
        agreement.elect();
        let first = consensus[agreement.leader().expect("all can be elected")].clone();
        let nodes = consensus.into_iter().enumerate().map(|(number, consensus)| Some(Node::start(number, consensus)));
        let nodes = Mutex::new(nodes.collect());
        let cluster =
            Self { agreement, nodes, blocks: Blocks::default(), chance: Mutex::new(Chance::of(seed, "cluster")) };
        let init = Command::Init { cluster: "sim".to_owned(), replicas: 1, min_sync: 1 };
        let propose = |command| first.propose(Stamped { now: Timestamp::now(), command });
        propose(init).await.expect("the first command");
        let layout = cluster.agreement.with_newest(settings::layout);
        propose(Command::SetLayout(Blocks::layout(&layout))).await.expect("the second command");
        Arc::new(cluster)
    }

    /// Returns the agreement of the metads.
    #[must_use]
    pub fn agreement(&self) -> &Arc<Agreement> {
        &self.agreement
    }

    /// Returns the block daemon.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Returns the metad at this address, if it lives.
    #[must_use]
    pub fn node(&self, addr: SocketAddr) -> Option<Arc<Node>> {
        let number = (0..NODES).find(|number| address(*number) == addr)?;
        self.nodes.lock()[number].clone()
    }

    /// Delivers a request to this address. A process that is dead, or dies meanwhile, does not answer.
    pub async fn ask(&self, addr: SocketAddr, peer: &PeerIdentity, request: MetaRequest) -> Option<MetaReply> {
        let node = self.node(addr)?;
        node.ask(peer, request).await
    }

    /// Kills the leader. Another one is elected after a while, and this one starts again after `down`.
    pub fn kill_leader(self: &Arc<Self>, down: Duration) {
        let Some(number) = self.agreement.leader() else { return };
        self.agreement.kill(number);
        if let Some(node) = self.nodes.lock()[number].take() {
            node.kill();
        }
        self.elect_soon();
        let cluster = self.clone();
        tokio::spawn(async move {
            sleep(down).await;
            let consensus = cluster.agreement.start(number);
            cluster.nodes.lock()[number] = Some(Node::start(number, consensus));
            cluster.elect_soon();
        });
    }

    /// Cuts the leader off from its peers for this long, but not from clients.
    pub fn depose_leader(self: &Arc<Self>, cut_off: Duration) {
        let Some(number) = self.agreement.leader() else { return };
        self.agreement.cut_off(number);
        self.elect_soon();
        let cluster = self.clone();
        tokio::spawn(async move {
            sleep(cut_off).await;
            cluster.agreement.rejoin();
            cluster.elect_soon();
        });
    }

    fn elect_soon(self: &Arc<Self>) {
        let more = Duration::from_millis(self.chance.lock().below(900));
        let cluster = self.clone();
        tokio::spawn(async move {
            sleep(ELECTION_MIN + more).await;
            cluster.agreement.elect();
        });
    }

    /// Waits until a metad leads.
    ///
    /// # Errors
    /// Fails when none does within a minute.
    pub async fn wait_for_leader(&self) -> Result<(), String> {
        let waits = async {
            while self.agreement.leader().is_none() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), waits).await.map_err(|_| "no leader is elected".to_owned())
    }

    /// Returns whether a session has ended.
    #[must_use]
    pub fn has_ended(&self, session: SessionId) -> bool {
        self.agreement.with_newest(|kv| metad::fs::session::find(kv, session).is_none())
    }
}
