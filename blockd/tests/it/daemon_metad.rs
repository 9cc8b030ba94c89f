//! The exchange of a daemon with metad, against metads of the test's own.

use crate::daemon_cluster::{LIMIT, caller, identity, random_block, until};
use crate::revoked::all_of;
use blockd::{Config, Node};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use wire::Error;
use wire::attr::Timestamp;
use wire::cert::Term;
use wire::ids::{BlockHash, LayoutEpoch, MetadId, Point};
use wire::issuer::IssuerKey;
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::cert::{RenewRefusal, RenewReply};
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest, Redirect};
use wire::quic::{Endpoint, Incoming, ServerHandle, Service};
use wire::revoked::Revocations;
use wire::ticket::TicketKeys;
use wire::tls::{ClusterCa, PeerIdentity, Role};
use wire::trust::SignedTrust;

/// A metad that leads, and makes a layout of the one daemon that it hears of, or that names the leader.
#[derive(Default)]
pub(crate) struct Metad {
    pub(crate) leader: Option<SocketAddr>,
    pub(crate) epoch: Mutex<u64>,
    pub(crate) heard: Mutex<Vec<BlockdHeartbeat>>,
    pub(crate) unreferenced: Mutex<Vec<BlockHash>>,
    pub(crate) referenced: Mutex<Vec<BlockHash>>,
    pub(crate) revoked: Mutex<Revocations>,
    /// How the CAs that are trusted have come to be.
    pub(crate) steps: Mutex<Vec<SignedTrust>>,
    /// With what it renews certificates.
    pub(crate) issuer: OnceLock<IssuerKey>,
    /// Answers nothing any more, as a machine without power.
    pub(crate) silent: AtomicBool,
    pub(crate) own: OnceLock<SocketAddr>,
}

/// Names the leader of a cluster of which no other member is known.
fn names(leader: Option<(MetadId, SocketAddr)>) -> MetaReply {
    MetaReply::NotLeader(Redirect { leader, nodes: leader.into_iter().collect(), ..Redirect::default() })
}

impl Metad {
    fn heartbeat(&self, beat: BlockdHeartbeat) -> MetaReply {
        let member = LayoutMember {
            weight: beat.weight,
            points: vec![Point(1)],
            ..LayoutMember::new(beat.id, &beat.name, beat.addr, &beat.zone)
        };
        let epoch = LayoutEpoch(*self.epoch.lock().unwrap());
        let layout = Layout {
            epoch,
            placement: epoch,
            replicas: 1,
            min_sync: 1,
            members: vec![member],
            down_after_ms: 60_000,
            older: Vec::new(),
        };
        let known = beat.epoch;
        let revoked = self.revoked.lock().unwrap().clone();
        let revoked = (revoked.mark() != beat.revoked).then_some(revoked);
        self.heard.lock().unwrap().push(beat);
        let (layout, now) = ((known < epoch).then_some(layout), Timestamp::now());
        MetaReply::BlockdAlive { layout, revoked, tickets: TicketKeys::default(), now }
    }
}

impl Metad {
    fn renew(&self, peer: &PeerIdentity) -> RenewReply {
        let Some(issuer) = self.issuer.get() else { return RenewReply::Refused(RenewRefusal::NoIssuer(MetadId(1))) };
        let now = Timestamp::now();
        let term = Term { issued: now, ends: Some(Timestamp { secs: now.secs + 1_000, nanos: 0 }) };
        let certificate = issuer.renew(&peer.certificate, &peer.subject, &term).unwrap();
        RenewReply::Renewed { certificate, issuer: issuer.cert().to_vec() }
    }
}

impl Service for Metad {
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), Error> {
        assert_eq!(peer.subject.role, Role::Blockd);
        Ok(())
    }

    async fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, incoming: Incoming) {
        if self.silent.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let reply = match (self.leader, incoming.decode::<MetaRequest>().unwrap()) {
            (Some(leader), _) => names(Some((MetadId(2), leader))),
            (None, MetaRequest::BlockdHeartbeat(beat)) => self.heartbeat(beat),
            (None, MetaRequest::BlockReport { blocks, .. }) => {
                let unreferenced = self.unreferenced.lock().unwrap();
                MetaReply::Unreferenced(blocks.into_iter().filter(|hash| unreferenced.contains(hash)).collect())
            }
            (None, MetaRequest::WhoLeads) => names(self.own.get().map(|own| (MetadId(1), *own))),
            (None, MetaRequest::Referenced { from, last, .. }) => {
                let referenced = self.referenced.lock().unwrap();
                let page = referenced.iter().filter(|hash| (from..=last).contains(*hash)).copied().collect();
                MetaReply::Referenced { blocks: page, next: None }
            }
            (None, MetaRequest::Trust { .. }) => MetaReply::Trust { steps: self.steps.lock().unwrap().clone() },
            (None, MetaRequest::Renew) => MetaReply::Renewal(self.renew(&peer)),
            other => panic!("{other:?}"),
        };
        incoming.respond(&reply, &[]).await;
    }
}

pub(crate) fn serve(ca: &ClusterCa, metad: Metad) -> (Arc<Metad>, Endpoint, ServerHandle) {
    let endpoint = caller(ca, Role::Metad);
    metad.own.set(endpoint.local_addr()).unwrap();
    let metad = Arc::new(metad);
    let handle = endpoint.serve(metad.clone(), &Handle::current());
    (metad, endpoint, handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_the_leader_learns_layouts_and_drops_what_nothing_refers_to() {
    let ca = ClusterCa::create("t").unwrap();
    let (leader, leader_endpoint, _leading) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
    let follower = Metad { leader: Some(leader_endpoint.local_addr()), ..Metad::default() };
    let (_follower, follower_endpoint, _following) = serve(&ca, follower);
    let dir = tempfile::tempdir().unwrap();
    let silent = "127.0.0.1:1".parse().unwrap();
    let metads = vec![silent, follower_endpoint.local_addr()];
    let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), dir.path(), metads);
    // Heartbeats are so rare that only a sender with a newer layout can cause one in time.
    (config.heartbeat_every, config.report_every) = (Duration::from_secs(3600), Duration::from_millis(100));
    config.grace = Duration::ZERO;
    let node = Node::start(config, identity(&ca, Role::Blockd, "b1")).await.unwrap();
    until("it knows the layout", async || node.layouts().newest().epoch == LayoutEpoch(1)).await;
    assert_eq!(leader.heard.lock().unwrap()[0].id, node.id());

    *leader.epoch.lock().unwrap() = 2;
    let client = caller(&ca, Role::Client);
    let peer = client.peer(node.local_addr(), Role::Blockd);
    let blocks = [random_block(10), random_block(20)];
    for block in &blocks {
        let put = BlockRequest::Put {
            hash: BlockHash::of(block),
            epoch: LayoutEpoch(2),
            chain: Vec::new(),
            needed: 1,
            origin: None,
        };
        let (reply, _) = peer.request(&put, std::slice::from_ref(block), LIMIT).await.unwrap();
        assert!(matches!(reply, BlockReply::Stored { .. }));
    }
    until("it has fetched the layout that the sender knew", async || node.layouts().newest().epoch == LayoutEpoch(2))
        .await;

    leader.unreferenced.lock().unwrap().push(BlockHash::of(&blocks[0]));
    until("the block is dropped", async || node.metrics().dropped.get() == 1).await;
    let get = BlockRequest::Get { hash: BlockHash::of(&blocks[1]), epoch: LayoutEpoch(2), offset: 0, len: u32::MAX };
    assert_eq!(peer.request::<_, BlockReply>(&get, &[], LIMIT).await.unwrap().1, blocks[1]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_away_learns_with_its_heartbeat_what_is_revoked() {
    let ca = ClusterCa::create("t").unwrap();
    let (leader, endpoint, _leading) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
    let list = vec![all_of(Role::Client, "caller")];
    *leader.revoked.lock().unwrap() = Revocations { version: 3, list };
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), dir.path(), vec![endpoint.local_addr()]);
    config.heartbeat_every = Duration::from_millis(50);
    let client = caller(&ca, Role::Client);
    *leader.revoked.lock().unwrap() = Revocations { version: 4, list: vec![all_of(Role::Client, "caller")] };
    let node = Node::start(config, identity(&ca, Role::Blockd, "b1")).await.unwrap();
    let peer = client.peer(node.local_addr(), Role::Blockd);
    until("it has learned the list", async || {
        let asked = peer.request::<_, BlockReply>(&BlockRequest::Status, &[], LIMIT).await;
        matches!(asked, Err(Error::Revoked { .. }))
    })
    .await;
    until("its heartbeats say so", async || leader.heard.lock().unwrap().last().unwrap().revoked.version == 4).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_something_refers_to_and_nobody_has_is_reported_as_missing_until_it_comes() {
    let ca = ClusterCa::create("t").unwrap();
    let (leader, endpoint, _leading) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
    let (here, gone, forgotten) = (random_block(10), random_block(20), random_block(30));
    *leader.referenced.lock().unwrap() = [&here, &gone, &forgotten].map(|block| BlockHash::of(block)).to_vec();
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), dir.path(), vec![endpoint.local_addr()]);
    config.heartbeat_every = Duration::from_millis(50);
    let node = Node::start(config, identity(&ca, Role::Blockd, "b1")).await.unwrap();
    let reported = || leader.heard.lock().unwrap().last().map(|beat| beat.repair.missing_blocks);
    until("all three are missing", async || reported() == Some(3)).await;

    let client = caller(&ca, Role::Client);
    let peer = client.peer(node.local_addr(), Role::Blockd);
    let put = async |block: &bytes::Bytes| {
        let put = BlockRequest::Put {
            hash: BlockHash::of(block),
            epoch: LayoutEpoch(1),
            chain: Vec::new(),
            needed: 1,
            origin: None,
        };
        let (reply, _) = peer.request(&put, std::slice::from_ref(block), LIMIT).await.unwrap();
        assert!(matches!(reply, BlockReply::Stored { .. }));
    };
    put(&here).await;
    until("one is here", async || reported() == Some(2)).await;
    // What nothing refers to any more is not missing.
    leader.referenced.lock().unwrap().retain(|hash| *hash != BlockHash::of(&forgotten));
    until("one is forgotten", async || reported() == Some(1)).await;
    put(&gone).await;
    until("the last one is here", async || reported() == Some(0)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_falls_silent_is_not_waited_for_when_another_one_leads() {
    let ca = ClusterCa::create("t").unwrap();
    let (first, first_endpoint, _first_serving) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
    let (second, second_endpoint, _second_serving) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
    let dir = tempfile::tempdir().unwrap();
    let metads = vec![first_endpoint.local_addr(), second_endpoint.local_addr()];
    let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), dir.path(), metads);
    config.heartbeat_every = Duration::from_millis(50);
    let node = Node::start(config, identity(&ca, Role::Blockd, "b1")).await.unwrap();
    until("the first one hears of it", async || !first.heard.lock().unwrap().is_empty()).await;
    first.silent.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    until("the second one does", async || !second.heard.lock().unwrap().is_empty()).await;
    // An attempt that is waited for to its end takes three seconds.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    node.stop().await;
}
