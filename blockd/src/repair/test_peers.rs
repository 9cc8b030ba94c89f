//! Block daemons and a metad of a test's own, over real QUIC: each answers as the test says.

use super::handoff::Handoff;
use super::healer::{Healer, References};
use super::pass::Round;
use super::patience::PATIENCE_MAX;
use super::progress::Progress;
use super::throttle::{Activity, Throttle};
use crate::config::Rates;
use crate::heartbeat::Metads;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::stamps::Stamps;
use crate::store::{Store, StoreOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use wire::Error;
use wire::error::FsError;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, Point};
use wire::layout::ring::Span;
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest, Digest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::{Endpoint, Incoming, ServerHandle, Service};
use wire::tls::{ClusterCa, PeerIdentity, Role, Subject};

/// Time that one which lists slowly takes for a list.
const LIST_TIME: Duration = Duration::from_millis(30);

/// How a block daemon behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Manner {
    #[default]
    Honest,
    /// It does not know the layout.
    Behind,
    /// It does not know the layout at the first question.
    BehindOnce,
    Busy,
    Mute,
    /// It gives an answer to another question.
    Nonsense,
    /// It says that it has everything.
    Claims,
    /// It also serves a first byte of everything.
    ClaimsAndServesBytes,
    /// It says that it has nothing, and serves what it has.
    FailedDisk,
    /// It does not answer for this block.
    MuteAbout(BlockHash),
    /// It names what it has, and sends nothing of it.
    SendsNothing,
    /// It takes its time for each list.
    ListsSlowly,
    /// It says that its blocks are as long as a number can say.
    ListsEndlessBlocks,
}

/// A block daemon.
#[derive(Default)]
pub struct Other {
    pub me: Option<BlockdId>,
    pub manner: Mutex<Manner>,
    pub blocks: Mutex<BTreeMap<BlockHash, Bytes>>,
    /// How many names each probe had.
    pub probes: Mutex<Vec<usize>>,
    /// How often a whole block was asked for.
    pub fetches: AtomicUsize,
}

impl Other {
    pub fn give(&self, block: &Bytes) {
        self.blocks.lock().insert(BlockHash::of(block), block.clone());
    }

    fn probed(&self, hashes: &[BlockHash]) -> BlockReply {
        self.probes.lock().push(hashes.len());
        let mut manner = self.manner.lock();
        match *manner {
            Manner::Behind => BlockReply::Behind,
            Manner::BehindOnce => {
                *manner = Manner::Honest;
                BlockReply::Behind
            }
            Manner::Nonsense => BlockReply::Failed("x".repeat(1 << 20)),
            Manner::Claims | Manner::ClaimsAndServesBytes => BlockReply::Present(vec![true; hashes.len()]),
            Manner::FailedDisk => BlockReply::Present(vec![false; hashes.len()]),
            _ => {
                let blocks = self.blocks.lock();
                BlockReply::Present(hashes.iter().map(|hash| blocks.contains_key(hash)).collect())
            }
        }
    }

    fn digests(&self, spans: &[Span]) -> BlockReply {
        let blocks = self.blocks.lock();
        let of = |span: &Span| {
            let mut digest = Digest::default();
            let within = blocks.range(span.first_hash()..=span.last_hash());
            within.for_each(|(hash, block)| digest.add(hash, block.len() as u32));
            digest
        };
        BlockReply::Digests(spans.iter().map(of).collect())
    }

    fn list(&self, from: BlockHash, last: BlockHash) -> BlockReply {
        let is_endless = *self.manner.lock() == Manner::ListsEndlessBlocks;
        let len = |block: &Bytes| if is_endless { u32::MAX } else { block.len() as u32 };
        BlockReply::Blocks(self.blocks.lock().range(from..=last).map(|(hash, block)| (*hash, len(block))).collect())
    }

    fn read(&self, hash: &BlockHash, len: u32) -> (BlockReply, Option<Bytes>) {
        if *self.manner.lock() == Manner::ClaimsAndServesBytes && len == 1 {
            return (BlockReply::Content { block_len: 1000 }, Some(Bytes::from_static(b"x")));
        }
        match self.blocks.lock().get(hash) {
            Some(block) => {
                let bytes = block.slice(..block.len().min(len as usize));
                (BlockReply::Content { block_len: block.len() as u32 }, Some(bytes))
            }
            None => (BlockReply::NotHere { corrupt: false, layout: None }, None),
        }
    }
}

impl Service for Other {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, mut incoming: Incoming) {
        let manner = *self.manner.lock();
        let request = incoming.decode::<BlockRequest>().unwrap();
        if matches!(request, BlockRequest::Get { len: u32::MAX, .. }) {
            self.fetches.fetch_add(1, Ordering::Relaxed);
        }
        match (manner, &request) {
            (Manner::Mute, _) | (Manner::SendsNothing, BlockRequest::Get { .. }) => {
                return std::future::pending().await;
            }
            (Manner::MuteAbout(about), BlockRequest::Get { hash, .. }) if about == *hash => {
                return std::future::pending().await;
            }
            (Manner::ListsSlowly, BlockRequest::List { .. }) => tokio::time::sleep(LIST_TIME).await,
            (Manner::Busy, _) => return incoming.refuse_busy("no time").await,
            _ => {}
        }
        let (reply, payload) = match request {
            BlockRequest::Probe { hashes, .. } => (self.probed(&hashes), None),
            BlockRequest::Get { hash, len, .. } => self.read(&hash, len),
            BlockRequest::Digests { spans, .. } => (self.digests(&spans), None),
            BlockRequest::List { from, last, .. } => (self.list(from, last), None),
            BlockRequest::Put { .. } => {
                let block = incoming.read_payload().await.unwrap();
                self.give(&block);
                let synced = self.me.into_iter().collect();
                (BlockReply::Stored { synced, failed: Vec::new(), full: Vec::new(), layout: None, receipt: None }, None)
            }
            other => panic!("{other:?}"),
        };
        incoming.respond(&reply, payload.as_slice()).await;
    }
}

/// A metad that leads.
#[derive(Default)]
pub struct Metad {
    pub referenced: Mutex<BTreeSet<BlockHash>>,
    /// Names in a page; none for all.
    pub page: Mutex<Option<usize>>,
    /// The first names of the pages that were asked for.
    pub asked: Mutex<Vec<BlockHash>>,
    /// It fails at this page, counted from 1.
    pub fails_at: Mutex<Option<usize>>,
    /// A layout that is learned at the second page.
    pub at_second_page: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Metad {
    fn page(&self, from: BlockHash, last: BlockHash) -> MetaReply {
        let number = {
            let mut asked = self.asked.lock();
            asked.push(from);
            asked.len()
        };
        if number == 2
            && let Some(act) = self.at_second_page.lock().take()
        {
            act();
        }
        if *self.fails_at.lock() == Some(number) {
            return MetaReply::Failed(FsError::Io);
        }
        let mut blocks: Vec<BlockHash> = self.referenced.lock().range(from..=last).copied().collect();
        let next = self.page.lock().filter(|page| blocks.len() > *page).map(|page| blocks.split_off(page)[0]);
        MetaReply::Referenced { blocks, next }
    }
}

impl Service for Metad {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, incoming: Incoming) {
        let reply = match incoming.decode::<MetaRequest>().unwrap() {
            MetaRequest::Referenced { from, last, .. } => self.page(from, last),
            MetaRequest::BlockReport { blocks, .. } => {
                let referenced = self.referenced.lock();
                MetaReply::Unreferenced(blocks.into_iter().filter(|hash| !referenced.contains(hash)).collect())
            }
            other => panic!("{other:?}"),
        };
        incoming.respond(&reply, &[]).await;
    }
}

/// The daemon under test is the first owner of every block, and all others are owners, too.
pub const ME: BlockdId = BlockdId([0; 16]);

/// The others, and what they need to be reached.
pub struct Peers {
    pub others: Vec<Arc<Other>>,
    pub metad: Arc<Metad>,
    pub metad_addr: std::net::SocketAddr,
    pub layout: Layout,
    /// The endpoint of the daemon under test.
    pub endpoint: Endpoint,
    pub ca: ClusterCa,
    pub dir: tempfile::TempDir,
    _serving: Vec<(Endpoint, ServerHandle)>,
}

/// The id of a daemon, by its place among the others.
pub fn id_of(place: usize) -> BlockdId {
    BlockdId([place as u8 + 1; 16])
}

pub fn bind(ca: &ClusterCa, role: Role, name: &str) -> Endpoint {
    let identity = ca.issue(&Subject::new(role, name)).unwrap();
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap()
}

impl Peers {
    pub fn start<const N: usize>(manners: [Manner; N]) -> Self {
        let ca = ClusterCa::create("test").unwrap();
        let endpoint = bind(&ca, Role::Blockd, "me");
        let metad = Arc::new(Metad::default());
        let metad_endpoint = bind(&ca, Role::Metad, "metad");
        let metad_addr = metad_endpoint.local_addr();
        let handle = metad_endpoint.serve(metad.clone(), &Handle::current());
        let mut serving = vec![(metad_endpoint, handle)];
        let member = |id, addr, point| LayoutMember {
            points: vec![point],
            ..LayoutMember::new(id, id.to_string(), addr, id.to_string())
        };
        let mut members = vec![member(ME, endpoint.local_addr(), Point(u128::MAX))];
        let mut others = Vec::new();
        for (place, manner) in manners.into_iter().enumerate() {
            let other = Arc::new(Other { manner: Mutex::new(manner), me: Some(id_of(place)), ..Other::default() });
            let endpoint = bind(&ca, Role::Blockd, &format!("other-{place}"));
            members.push(member(id_of(place), endpoint.local_addr(), Point(place as u128)));
            let handle = endpoint.serve(other.clone(), &Handle::current());
            serving.push((endpoint, handle));
            others.push(other);
        }
        let layout = Layout {
            epoch: LayoutEpoch(1),
            placement: LayoutEpoch(1),
            replicas: N as u8 + 1,
            min_sync: 1,
            down_after_ms: 60_000,
            members,
            older: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        Self { others, metad, metad_addr, layout, endpoint, ca, dir, _serving: serving }
    }
}

impl Peers {
    /// Gives each of three daemons many places on the ring, of which two own each block: the daemon under test owes
    /// `count` spans that the first one has, and as many that the second one has.
    pub fn spread(&mut self, count: u8) {
        assert_eq!(self.layout.members.len(), 3);
        self.layout.replicas = 2;
        let step = u128::MAX / (3 * u128::from(count));
        for (place, member) in (0..).zip(&mut self.layout.members) {
            member.points = (0..count).map(|number| Point(step * (3 * u128::from(number) + place))).collect();
        }
    }

    /// A daemon's store without room.
    pub fn full_store(&self) -> Arc<Store> {
        let options = StoreOptions { segment_bytes: 8 << 20, reserve_bytes: u64::MAX / 2 };
        Arc::new(Store::open(&self.dir.path().join("full"), options).unwrap())
    }

    /// What heals the daemon under test.
    pub fn healer(&self) -> Healer {
        let options = StoreOptions { segment_bytes: 8 << 20, reserve_bytes: 0 };
        let layouts = Arc::new(Layouts::default());
        layouts.learn(self.layout.clone());
        Healer {
            id: ME,
            store: Arc::new(Store::open(self.dir.path(), options).unwrap()),
            stamps: Arc::new(Stamps::default()),
            layouts,
            endpoint: self.endpoint.clone(),
            references: References::Metads(Metads::new(self.endpoint.clone(), vec![self.metad_addr])),
            activity: Arc::new(Activity::default()),
            throttle: Arc::new(Throttle::new(Rates { idle: 0, busy: 0 })),
            progress: Arc::new(Progress::default()),
            handoff: Arc::new(Handoff::default()),
            metrics: Arc::new(Metrics::default()),
            compare_every: Duration::from_secs(600),
            account: PATIENCE_MAX,
            round: Round::default(),
        }
    }
}

pub fn block(number: u8) -> (BlockHash, Bytes) {
    let block = Bytes::from(vec![number; 1000]);
    (BlockHash::of(&block), block)
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "not in time: {what}");
}
