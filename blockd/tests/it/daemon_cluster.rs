//! Several block daemons in one process on loopback, with a layout of the test's own.

use blockd::{Config, LayoutSource, Node};
use bytes::Bytes;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, Point};
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest, BlockdStatus};
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Identity, Role, Subject};

pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub ca: ClusterCa,
    pub nodes: Vec<Option<Node>>,
    dirs: Vec<TempDir>,
    layout: watch::Sender<Layout>,
    pub client: Endpoint,
    metad: Endpoint,
}

pub fn identity(ca: &ClusterCa, role: Role, name: &str) -> Identity {
    ca.issue(&Subject::new(role, name)).unwrap()
}

pub fn caller(ca: &ClusterCa, role: Role) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, role, "caller")).unwrap()
}

impl Cluster {
    pub async fn start(count: usize) -> Self {
        let ca = ClusterCa::create("test").unwrap();
        let (client, metad) = (caller(&ca, Role::Client), caller(&ca, Role::Metad));
        let dirs = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let layout = watch::Sender::new(Layout::default());
        let mut cluster = Self { ca, nodes: Vec::new(), dirs, layout, client, metad };
        for index in 0..count {
            let node = cluster.boot(index).await;
            cluster.nodes.push(Some(node));
        }
        cluster.publish();
        cluster
    }

    async fn boot(&self, index: usize) -> Node {
        let name = format!("blockd-{index}");
        let mut config = Config::new(&name, "127.0.0.1:0".parse().unwrap(), self.dirs[index].path(), Vec::new());
        config.segment_bytes = 64 << 20;
        config.drop_grace_min = Duration::ZERO;
        config.ring.stabilize_every = Duration::from_millis(200);
        config.ring.finger_every = Duration::from_millis(100);
        let source = LayoutSource::Given(self.layout.subscribe());
        Node::start_with(config, identity(&self.ca, Role::Blockd, &name), source).await.unwrap()
    }

    /// Makes a layout of the daemons that run; members that do not run stay in their places.
    pub fn publish(&self) {
        self.layout.send_modify(|layout| {
            layout.epoch = layout.epoch.next();
            (layout.replicas, layout.min_sync) = (3, 2);
            for node in self.nodes.iter().flatten() {
                let addr = node.local_addr();
                match layout.members.iter_mut().find(|member| member.id == node.id()) {
                    Some(member) => member.addr = addr,
                    None => layout.members.push(LayoutMember {
                        points: (0..8).map(|_| Point(rand::random())).collect(),
                        ..LayoutMember::new(node.id(), node.id().to_string(), addr, node.id().to_string())
                    }),
                }
            }
            layout.members.sort_by_key(|member| member.id);
        });
    }

    /// Publishes the layout that follows the present one.
    pub fn change(&self, step: impl FnOnce(&Layout) -> Layout) {
        self.layout.send_modify(|layout| *layout = step(layout));
    }

    /// Adds a daemon, as a member of the next layout.
    pub async fn grow(&mut self) {
        self.dirs.push(tempfile::tempdir().unwrap());
        let node = self.boot(self.nodes.len()).await;
        let (id, addr) = (node.id(), node.local_addr());
        self.nodes.push(Some(node));
        self.change(|layout| {
            let newcomer = LayoutMember {
                id,
                addr,
                points: (0..8).map(|_| Point(rand::random())).collect(),
                ..layout.members[0].clone()
            };
            let newcomer = LayoutMember { name: id.to_string(), zone: id.to_string(), ..newcomer };
            layout.with_members([layout.members.clone(), vec![newcomer]].concat()).unwrap()
        });
    }

    pub fn layout(&self) -> Layout {
        self.layout.borrow().clone()
    }

    pub fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().unwrap()
    }

    pub fn index_of(&self, id: BlockdId) -> usize {
        self.nodes.iter().position(|node| node.as_ref().is_some_and(|node| node.id() == id)).unwrap()
    }

    pub fn dir(&self, index: usize) -> &Path {
        self.dirs[index].path()
    }

    pub async fn stop(&mut self, index: usize) {
        self.nodes[index].take().unwrap().stop().await;
    }

    /// Starts a daemon again on the same directory, at another port.
    pub async fn start_again(&mut self, index: usize) {
        let node = self.boot(index).await;
        self.nodes[index] = Some(node);
        self.publish();
    }

    pub async fn ask_as(
        &self,
        endpoint: &Endpoint,
        index: usize,
        request: &BlockRequest,
    ) -> Result<(BlockReply, Bytes), wire::Error> {
        endpoint.peer(self.node(index).local_addr(), Role::Blockd).request(request, &[], LIMIT).await
    }

    pub async fn ask(&self, index: usize, request: &BlockRequest) -> (BlockReply, Bytes) {
        self.ask_as(&self.client, index, request).await.unwrap()
    }

    pub async fn ask_as_metad(&self, index: usize, request: &BlockRequest) -> BlockReply {
        self.ask_as(&self.metad, index, request).await.unwrap().0
    }

    /// Puts through the chain of the block's owners, and waits for all of them.
    pub async fn put(&self, block: &Bytes) -> (Vec<BlockdId>, Vec<(BlockdId, String)>, Option<Layout>) {
        self.put_to_some(block, 3).await
    }

    /// Puts through the chain of the block's owners, and waits for this many of them.
    pub async fn put_to_some(
        &self,
        block: &Bytes,
        needed: u8,
    ) -> (Vec<BlockdId>, Vec<(BlockdId, String)>, Option<Layout>) {
        let layout = self.layout();
        let hash = BlockHash::of(block);
        let owners = layout.owners(&hash);
        let chain = owners[1..].iter().map(|owner| owner.id).collect();
        let request = BlockRequest::Put { hash, epoch: layout.epoch, chain, needed, origin: None };
        let peer = self.client.peer(owners[0].addr, Role::Blockd);
        match peer.request::<_, BlockReply>(&request, std::slice::from_ref(block), LIMIT).await.unwrap().0 {
            BlockReply::Stored { synced, failed, layout, .. } => (synced, failed, layout),
            other => panic!("{other:?}"),
        }
    }

    pub async fn get(&self, index: usize, hash: BlockHash) -> Result<Bytes, BlockReply> {
        let request = BlockRequest::Get { hash, epoch: LayoutEpoch(u64::MAX), offset: 0, len: u32::MAX };
        match self.ask(index, &request).await {
            (BlockReply::Content { .. }, block) => Ok(block),
            (other, _) => Err(other),
        }
    }

    pub async fn status(&self, index: usize) -> BlockdStatus {
        match self.ask(index, &BlockRequest::Status).await.0 {
            BlockReply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Reports whether every running daemon's neighbours are those of the ideal ring.
    pub fn ring_is_ideal(&self) -> bool {
        let layout = self.layout();
        let mut ring: Vec<(Point, BlockdId)> =
            self.nodes.iter().flatten().map(|node| (layout.member(&node.id()).unwrap().points[0], node.id())).collect();
        ring.sort();
        let at = |index: usize| ring[index % ring.len()].1;
        ring.iter().enumerate().all(|(index, (_, id))| {
            let (predecessor, successors) = self.node(self.index_of(*id)).ring().neighbours();
            let length = ring.len().min(4);
            predecessor.is_some_and(|member| member.id == at(index + ring.len() - 1))
                && successors.len() == length
                && successors.iter().enumerate().all(|(step, member)| member.id == at(index + step + 1))
        })
    }
}

pub fn random_block(len: usize) -> Bytes {
    let mut block = vec![0; len];
    rand::fill(&mut block[..]);
    block.into()
}

/// Flips one byte of a block on disk, in any file below `dir`. Reads whole segments, so not on a thread that keeps
/// connections alive.
pub async fn flip_a_byte(dir: &Path, block: &Bytes) -> bool {
    let (dir, block) = (dir.to_owned(), block.clone());
    tokio::task::spawn_blocking(move || flip_below(&dir, &block)).await.unwrap()
}

fn flip_below(dir: &Path, block: &[u8]) -> bool {
    let needle = &block[..32.min(block.len())];
    let mut is_flipped = false;
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            is_flipped |= flip_below(&entry, block);
            continue;
        }
        let content = fs::read(&entry).unwrap();
        // A block that came twice at the same moment was written twice, and only one of the two is read. Payloads begin
        // at multiples of eight.
        let places = (0..content.len()).step_by(8).filter(|at| content[*at..].starts_with(needle));
        for at in places {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(&entry).unwrap();
            file.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
            is_flipped = true;
        }
    }
    is_flipped
}

pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
