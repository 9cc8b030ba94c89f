//! Real nodes in one process, over real QUIC.

use metad::Node;
use metad::config::Config;
use metad::raft::Tuning;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::FsError;
use wire::ids::{BatchSeq, Ino, MetadId, SessionId};
use wire::issuer::IssuerKey;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::check::{CheckReply, CheckRequest, Finding};
use wire::message::meta::{MetaReply, MetaRequest};

use wire::op::{Batch, NewInode, Op, Read, ReadReply, XattrMode};
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Identity, Role, Subject};

pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// What the issuers of metads sign.
const ISSUED: [Role; 3] = [Role::Client, Role::Blockd, Role::Metad];

pub(super) struct Cluster {
    pub(super) ca: ClusterCa,
    pub(super) dir: TempDir,
    pub(super) nodes: BTreeMap<u64, Node>,
    initial: BTreeMap<MetadId, SocketAddr>,
    client: Endpoint,
    admin: Endpoint,
}

/// The nodes stop before their directory goes: one that cannot write its log ends the process.
impl Drop for Cluster {
    fn drop(&mut self) {
        let stops = std::mem::take(&mut self.nodes).into_values().map(Node::stop);
        let stopped = async { tokio::time::timeout(LIMIT, futures::future::join_all(stops)).await };
        tokio::task::block_in_place(|| {
            if tokio::runtime::Handle::current().block_on(stopped).is_err() {
                eprintln!("a node did not stop");
            }
        });
    }
}

/// A request for a session.
pub(super) fn opening(caches: bool, resumes: Option<SessionId>, token: Option<u64>) -> MetaRequest {
    MetaRequest::OpenSession { host: "h".to_owned(), purpose: "t".to_owned(), caches, resumes, token }
}

pub(super) fn free_addr() -> SocketAddr {
    // The kernel chooses one, which is free again when the probe is dropped.
    let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap()
}

pub(super) fn endpoint(ca: &ClusterCa, role: Role) -> Endpoint {
    let identity = ca.issue(&Subject::new(role, "test")).unwrap();
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap()
}

pub(super) fn config(
    ca: &ClusterCa,
    dir: &Path,
    id: u64,
    addr: SocketAddr,
    initial: &BTreeMap<MetadId, SocketAddr>,
) -> Config {
    let identity: Identity = ca.issue(&Subject::new(Role::Metad, &format!("metad-{id}"))).unwrap();
    Config {
        id: MetadId(id),
        cluster: "test".to_owned(),
        listen: addr,
        data_dir: dir.join(format!("metad-{id}")),
        identity,
        issuer: Some(Arc::new(IssuerKey::create(ca, &format!("metad-{id}"), &ISSUED).unwrap())),
        issuer_file: None,
        initial: initial.clone(),
        replicas: 1,
        min_sync: 1,
        gc_grace: Duration::from_secs(600),
        tuning: Tuning { cache_bytes: 16 << 20, snapshot_entries: 200, log_file_bytes: 2 << 20, ..Tuning::default() },
    }
}

impl Cluster {
    pub(super) async fn start(count: u64) -> Self {
        let ca = ClusterCa::create("test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let initial: BTreeMap<_, _> = (1..=count).map(|id| (MetadId(id), free_addr())).collect();
        let mut cluster = Self::of(ca, dir, initial);
        for id in 1..=count {
            cluster.start_node(id).await;
        }
        cluster
    }

    /// A cluster whose nodes are started by the caller.
    pub(super) fn of(ca: ClusterCa, dir: tempfile::TempDir, initial: BTreeMap<MetadId, SocketAddr>) -> Self {
        let (client, admin) = (endpoint(&ca, Role::Client), endpoint(&ca, Role::Admin));
        Self { ca, dir, nodes: BTreeMap::new(), initial, client, admin }
    }

    pub(super) async fn start_node(&mut self, id: u64) {
        let addr = self.initial[&MetadId(id)];
        let started = Instant::now();
        let node = loop {
            match Node::start(config(&self.ca, self.dir.path(), id, addr, &self.initial)).await {
                Ok(node) => break node,
                // The socket or the files of the node that was just stopped are still held.
                Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.nodes.insert(id, node);
    }

    pub(super) async fn stop_node(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stop().await;
    }

    pub(super) async fn leader(&self) -> u64 {
        let started = Instant::now();
        loop {
            if let Some((id, _)) = self.nodes.iter().find(|(_, node)| node.leads()) {
                return *id;
            }
            assert!(started.elapsed() < LIMIT, "no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks the leader, until it answers.
    pub(super) async fn ask_as(&self, endpoint: &Endpoint, request: &MetaRequest) -> MetaReply {
        let started = Instant::now();
        loop {
            for node in self.nodes.values() {
                let peer = endpoint.peer(node.local_addr(), Role::Metad);
                match peer.request::<_, MetaReply>(request, &[], Duration::from_secs(10)).await {
                    Ok((MetaReply::NotLeader { .. }, _)) | Err(_) => {}
                    Ok((reply, _)) => return reply,
                }
            }
            assert!(started.elapsed() < LIMIT, "not answered: {request:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn ask(&self, request: MetaRequest) -> MetaReply {
        self.ask_as(&self.client, &request).await
    }

    pub(super) async fn admin(&self, request: AdminRequest) -> AdminReply {
        match self.ask_as(&self.admin, &MetaRequest::Admin(request)).await {
            MetaReply::Admin(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Returns what a check finds.
    pub(super) async fn findings(&self) -> Vec<Finding> {
        let CheckReply::Begun { check, .. } = self.check(CheckRequest::Begin).await else { panic!("no check") };
        let mut all = Vec::new();
        loop {
            match self.check(CheckRequest::Findings(check)).await {
                CheckReply::Findings { findings, ended, .. } => {
                    all.extend(findings);
                    if ended {
                        break;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        self.check(CheckRequest::End(check)).await;
        all
    }

    async fn check(&self, request: CheckRequest) -> CheckReply {
        match self.admin(AdminRequest::Check(request)).await {
            AdminReply::Check(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Opens a session and makes `file-0`, `file-1` and so on in the root directory.
    pub(super) async fn session_with_files(&self, count: usize) -> SessionId {
        let mut session = self.session().await;
        for number in 0..count {
            session.create(&format!("file-{number}")).await;
        }
        session.id
    }

    pub(super) async fn session(&self) -> Session<'_> {
        let started = Instant::now();
        loop {
            let request = opening(false, None, None);
            if let MetaReply::Session { session, .. } = self.ask(request).await {
                let mut session = Session { cluster: self, id: session, seq: 0, next: Ino(0) };
                match session.run(vec![Op::LeaseInos { count: 4096 }]).await {
                    Ok(replies) => match replies[0] {
                        wire::op::OpReply::Inos { start, .. } => session.next = start,
                        ref other => panic!("{other:?}"),
                    },
                    Err(error) => panic!("{error:?}"),
                }
                // The first leader may not have written the root directory yet.
                if self.lookup(session.id, ".").await.is_some() {
                    return session;
                }
            }
            assert!(started.elapsed() < LIMIT, "no session");
        }
    }

    pub(super) async fn lookup(&self, session: SessionId, name: &str) -> Option<Ino> {
        let read = Read::Lookup { parent: Ino::ROOT, name: name.into() };
        match self.ask(MetaRequest::Read { session, read, delegate: false, sends: false, caller: None }).await {
            MetaReply::Read { answer: Ok(ReadReply::Attr(attr)), .. } => Some(attr.ino),
            MetaReply::Read { answer: Err(_), .. } => None,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) struct Session<'a> {
    cluster: &'a Cluster,
    pub(super) id: SessionId,
    pub(super) seq: u64,
    next: Ino,
}

impl Session<'_> {
    pub(super) async fn run(&mut self, ops: Vec<Op>) -> wire::op::BatchReply {
        self.seq += 1;
        let batch = Batch { seq: BatchSeq(self.seq), acked: BatchSeq(self.seq - 1), caller: None, ops };
        match self.cluster.ask(MetaRequest::Submit { session: self.id, batch, receipts: Vec::new() }).await {
            MetaReply::Batch { reply, .. } => reply,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn create(&mut self, name: &str) {
        let op = self.creation(name);
        self.run(vec![op]).await.unwrap();
    }

    pub(super) fn creation(&mut self, name: &str) -> Op {
        let ino = self.next;
        self.next = ino.next();
        Op::Create {
            parent: Ino::ROOT,
            name: name.into(),
            ino,
            node: NewInode::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_on_without_its_leader_and_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let (id, seq, next) = {
        let mut session = cluster.session().await;
        for number in 0..50 {
            session.create(&format!("before-{number}")).await;
        }
        (session.id, session.seq, session.next)
    };
    let leader = cluster.leader().await;
    cluster.stop_node(leader).await;
    {
        let mut session = Session { cluster: &cluster, id, seq, next };
        for number in 0..50 {
            session.create(&format!("after-{number}")).await;
        }
        for number in 0..50 {
            assert!(cluster.lookup(id, &format!("before-{number}")).await.is_some());
            assert!(cluster.lookup(id, &format!("after-{number}")).await.is_some());
        }
    }
    cluster.start_node(leader).await;
    assert_eq!(cluster.findings().await, []);
}

/// Guards I1.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_sent_again_to_a_new_leader_answers_as_the_first_time() {
    let mut cluster = Cluster::start(3).await;
    let (id, batch) = {
        let mut session = cluster.session().await;
        let op = session.creation("once");
        (
            session.id,
            Batch { seq: BatchSeq(session.seq + 1), acked: BatchSeq(session.seq), caller: None, ops: vec![op] },
        )
    };
    let submit = MetaRequest::Submit { session: id, batch, receipts: Vec::new() };
    let MetaReply::Batch { reply: Ok(first), .. } = cluster.ask(submit.clone()).await else { panic!("not created") };
    let leader = cluster.leader().await;
    cluster.stop_node(leader).await;
    let MetaReply::Batch { reply: Ok(again), .. } = cluster.ask(submit).await else { panic!("created twice or lost") };
    assert_eq!(first, again);
}

/// Guards I2.
#[tokio::test(flavor = "multi_thread")]
async fn an_answered_change_is_read_at_once() {
    let cluster = Cluster::start(3).await;
    let mut session = cluster.session().await;
    for number in 0..100 {
        let name = format!("file-{number}");
        session.create(&name).await;
        assert!(cluster.lookup(session.id, &name).await.is_some(), "{name}");
    }
}

/// Guards I7.
#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_a_restart_of_all_nodes() {
    let mut cluster = Cluster::start(3).await;
    // More entries than two snapshots take: the log is shortened meanwhile.
    let id = cluster.session_with_files(500).await;
    for id in [1, 2, 3] {
        cluster.stop_node(id).await;
    }
    for id in [1, 2, 3] {
        cluster.start_node(id).await;
    }
    for number in 0..500 {
        assert!(cluster.lookup(id, &format!("file-{number}")).await.is_some(), "file-{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_state_was_deleted_rebuilds_it_from_snapshot_and_log() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.session_with_files(450).await;
    cluster.stop_node(1).await;
    std::fs::remove_dir_all(cluster.dir.path().join("metad-1/state")).unwrap();
    cluster.start_node(1).await;
    for number in 0..450 {
        assert!(cluster.lookup(id, &format!("file-{number}")).await.is_some(), "file-{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_to_three_and_five_and_shrinks_while_it_works() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.session_with_files(450).await;
    // The log of the first entries is gone: newcomers need the snapshot.
    assert!(matches!(cluster.admin(AdminRequest::Snapshot).await, AdminReply::Done));
    for new in 2..=5 {
        let addr = free_addr();
        let node = Node::start(config(&cluster.ca, cluster.dir.path(), new, addr, &BTreeMap::new())).await.unwrap();
        cluster.nodes.insert(new, node);
        let added = cluster.admin(AdminRequest::AddMetad { id: MetadId(new), addr }).await;
        assert!(matches!(added, AdminReply::Done), "{added:?}");
    }
    for gone in [1, 2] {
        let removed = cluster.admin(AdminRequest::RemoveMetad { id: MetadId(gone) }).await;
        assert!(matches!(removed, AdminReply::Done), "{removed:?}");
        cluster.stop_node(gone).await;
    }
    assert!(cluster.lookup(id, "file-0").await.is_some());
    let AdminReply::Status(status) = cluster.admin(AdminRequest::Status).await else { panic!("no status") };
    assert_eq!(status.metads.len(), 3);
}

/// Makes an operation of a little more than this many KiB, up to 64.
fn large(kib: usize) -> Op {
    let value = vec![7; kib << 10];
    Op::SetXattr { ino: Ino::ROOT, name: b"user.large".to_vec(), value, mode: XattrMode::Set, clear_sgid: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_catches_up_with_more_than_one_message_carries() {
    let mut cluster = Cluster::start(3).await;
    let (id, seq, next) = {
        let session = cluster.session().await;
        (session.id, session.seq, session.next)
    };
    let leader = cluster.leader().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop_node(away).await;
    {
        let mut session = Session { cluster: &cluster, id, seq, next };
        for _ in 0..8 {
            session.run((0..20).map(|_| large(60)).collect()).await.unwrap();
        }
    }
    cluster.start_node(away).await;
    let started = Instant::now();
    loop {
        let AdminReply::Status(status) = cluster.admin(AdminRequest::Status).await else { panic!("no status") };
        let matched = |id: u64| status.metads.iter().find(|metad| metad.0 == MetadId(id)).map_or(0, |metad| metad.3);
        if matched(away) >= status.applied {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_too_large_for_a_message_to_a_peer_is_refused_from_the_operation_that_exceeds_it() {
    let cluster = Cluster::start(3).await;
    let mut session = cluster.session().await;
    let refused = session.run((0..80).map(|_| large(60)).collect()).await.unwrap_err();
    assert_eq!((refused.index, refused.error), (68, FsError::ArgumentTooLarge));
    session.run((0..68).map(|_| large(60)).collect()).await.unwrap();
    session.create("afterwards").await;
    assert!(cluster.lookup(session.id, "afterwards").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_purpose_is_too_long_is_not_opened() {
    let cluster = Cluster::start(1).await;
    let purpose = "x".repeat(5 << 20);
    let request = MetaRequest::OpenSession { host: "h".to_owned(), purpose, caches: false, resumes: None, token: None };
    assert!(matches!(cluster.ask(request).await, MetaReply::Failed(FsError::Invalid)));
    cluster.session().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: cargo test --release -p metad --test it -- --ignored cluster --nocapture"]
async fn latency_of_one_client() {
    let cluster = Cluster::start(3).await;
    let mut session = cluster.session().await;
    let mut times = Vec::new();
    let leader = cluster.leader().await;
    let peer = cluster.client.peer(cluster.nodes[&leader].local_addr(), Role::Metad);
    for number in 0..3000 {
        let op = session.creation(&format!("file-{number}"));
        session.seq += 1;
        let batch = Batch { seq: BatchSeq(session.seq), acked: BatchSeq(session.seq - 1), caller: None, ops: vec![op] };
        let started = Instant::now();
        let request = MetaRequest::Submit { session: session.id, batch, receipts: Vec::new() };
        peer.request::<_, MetaReply>(&request, &[], LIMIT).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("create p50 {:?} p99 {:?}", times[1500], times[2970]);
    let mut times = Vec::new();
    for _ in 0..3000 {
        let started = Instant::now();
        let read = Read::Lookup { parent: Ino::ROOT, name: b"file-7".to_vec() };
        let request = MetaRequest::Read { session: session.id, read, delegate: false, sends: false, caller: None };
        peer.request::<_, MetaReply>(&request, &[], LIMIT).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("lookup p50 {:?} p99 {:?}", times[1500], times[2970]);
}

/// Nobody acknowledges anything to it, and there is no other node to ask.
#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_is_alone_goes_on_leading() {
    let cluster = Cluster::start(1).await;
    let leader = cluster.leader().await;
    let addr = cluster.nodes[&leader].local_addr();
    let admin = endpoint(&cluster.ca, Role::Admin);
    let peer = admin.peer(addr, Role::Metad);
    let says = async || {
        let asked = peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.unwrap().0;
        let MetaReply::NotLeader(said) = asked else { panic!("{asked:?}") };
        said.leader
    };
    let started = Instant::now();
    // It leads a moment before it knows that it was elected.
    while says().await.is_none() {
        assert!(started.elapsed() < LIMIT, "it does not know that it leads");
    }
    let started = Instant::now();
    // Far longer than one leader of several is believed without a majority.
    while started.elapsed() < Duration::from_secs(2) {
        assert_eq!(says().await, Some((MetadId(leader), addr)));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
