//! What liars do. Each goes on until it is told to stop, and returns how often it was answered, or refused, as one
//! expects: what fails in another way is no attack.

use crate::flood::flood;
use fuse::random;
use kit::Surf;
use kit::lies::{Raw, nested};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking, yield_now};
use tokio::time::{sleep, timeout};
use wire::attr::Timestamp;
use wire::ids::{BatchSeq, BlockHash, Ino, LayoutEpoch, SessionId};
use wire::layout::Layout;
use wire::limits::{BATCH_OPS_MAX, BLOCK_BYTES_MAX, HEAD_BYTES_MAX, INO_RANGE, READDIR_PAGE_MAX};
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::{Batch, Lock, LockFamily, NewInode, Op, OpReply, Read, With};
use wire::quic::{Endpoint, Peer};
use wire::tls::{ClusterCa, Role, Subject};
use wire::{Error, FsError, codec};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Levels of a nested operation: far more than any stack has room for.
const LEVELS: usize = 200_000;
/// Elements of a list, far beyond each bound.
const LONG: usize = 500_000;
/// Sessions that fill batches at the same time.
const FILLING: usize = 2;
/// Streams of events that a client which attaches again and again leaves open.
const STREAMS: usize = 16;
/// Sessions that read no events.
const DEAF: usize = 16;
/// Files that are locked and unlocked by each batch.
const LOCKED_AT_ONCE: usize = 512;
/// Answers of up to 4 MiB that are not read on each connection.
const UNREAD: usize = 32;
/// Payloads that are announced to each block daemon, and how much of each comes.
const OWED: usize = 16;
const SENT_OF_OWED: usize = 64 << 10;

pub(super) type Stopped = Arc<AtomicBool>;

/// A cluster whose CA signs whatever the test asks for.
pub(super) struct Prey {
    ca: ClusterCa,
    leader: SocketAddr,
    metads: Vec<SocketAddr>,
    blockds: Vec<SocketAddr>,
}

/// A client that lies, and where the daemons are.
#[derive(Clone)]
pub(super) struct Liar {
    endpoint: Endpoint,
    leader: SocketAddr,
    metads: Vec<SocketAddr>,
    blockds: Vec<SocketAddr>,
}

impl Prey {
    pub(super) fn of(surf: &Surf) -> Self {
        let address = |text: &str| -> SocketAddr { text.parse().expect("a daemon has an address") };
        let addresses = |kind: &str| -> Vec<SocketAddr> {
            let daemons = surf.daemons().into_iter().filter(|daemon| daemon.name.starts_with(kind));
            daemons.map(|daemon| address(&daemon.address)).collect()
        };
        Self {
            ca: ClusterCa::load(&surf.cluster_dir().join("ca.pem")).expect("the CA is there"),
            leader: address(&surf.daemon(&surf.leader()).address),
            metads: addresses("metad"),
            blockds: addresses("blockd"),
        }
    }

    /// A client that may do everything.
    pub(super) fn liar(&self, name: &str) -> Liar {
        self.holder_of(&Subject::new(Role::Client, name))
    }

    /// A client that may only read.
    pub(super) fn reader(&self, name: &str) -> Liar {
        let mut subject = Subject::new(Role::Client, name);
        subject.grant.read_only = true;
        self.holder_of(&subject)
    }

    fn holder_of(&self, subject: &Subject) -> Liar {
        let identity = self.ca.issue(subject).expect("the CA signs");
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &identity).expect("loopback has free ports");
        let (metads, blockds) = (self.metads.clone(), self.blockds.clone());
        Liar { endpoint, leader: self.leader, metads, blockds }
    }
}

impl Liar {
    fn leader(&self) -> Peer {
        self.endpoint.peer(self.leader, Role::Metad)
    }

    fn blockd(&self, number: usize) -> Peer {
        self.endpoint.peer(self.blockds[number % self.blockds.len()], Role::Blockd)
    }

    fn daemons(&self) -> Vec<Peer> {
        let metads = self.metads.iter().map(|addr| self.endpoint.peer(*addr, Role::Metad));
        metads.chain((0..self.blockds.len()).map(|number| self.blockd(number))).collect()
    }

    async fn layout(&self) -> Option<Layout> {
        match self.leader().request::<_, MetaReply>(&MetaRequest::GetLayout, &[], LIMIT).await {
            Ok((MetaReply::Layout(layout), _)) => Some(layout),
            _ => None,
        }
    }

    async fn put(&self, layout: &Layout, block: Vec<u8>, deadline: Duration) -> Result<BlockHash, Error> {
        let hash = BlockHash::of(&block);
        let (first, request) = put(layout, hash);
        let peer = self.endpoint.peer(first, Role::Blockd);
        peer.request::<_, BlockReply>(&request, &[block.into()], deadline).await.map(|_| hash)
    }
}

/// A session of a liar, with a directory of its own.
struct Session {
    peer: Peer,
    id: SessionId,
    seq: u64,
    dir: Ino,
}

impl Session {
    async fn begin(liar: &Liar, name: &str) -> Option<Self> {
        let peer = liar.leader();
        let id = open(&peer, false).await?;
        let mut session = Self { peer, id, seq: 0, dir: Ino::ROOT };
        let dir = session.lease().await?;
        session.run(vec![create(Ino::ROOT, name, dir, NewInode::Directory)]).await?;
        Some(Self { dir, ..session })
    }

    async fn run(&mut self, ops: Vec<Op>) -> Option<Vec<OpReply>> {
        self.seq += 1;
        match self.peer.request::<_, MetaReply>(&submit(self.id, self.seq, ops), &[], LIMIT).await {
            Ok((MetaReply::Batch { reply, .. }, _)) => reply.ok(),
            _ => None,
        }
    }

    /// Leases numbers for inodes, and returns the first one.
    async fn lease(&mut self) -> Option<Ino> {
        match self.run(vec![Op::LeaseInos { count: INO_RANGE }]).await?[..] {
            [OpReply::Inos { start, .. }] => Some(start),
            _ => None,
        }
    }
}

async fn open(peer: &Peer, caches: bool) -> Option<SessionId> {
    match peer.request::<_, MetaReply>(&opening(caches), &[], LIMIT).await {
        Ok((MetaReply::Session { session, .. }, _)) => Some(session),
        _ => None,
    }
}

fn opening(caches: bool) -> MetaRequest {
    let (host, purpose) = ("liar".to_owned(), "lies".to_owned());
    MetaRequest::OpenSession { host, purpose, caches, resumes: None, token: None }
}

fn submit(session: SessionId, seq: u64, ops: Vec<Op>) -> MetaRequest {
    let batch = Batch { seq: BatchSeq(seq), acked: BatchSeq(seq - 1), caller: None, ops };
    MetaRequest::Submit { session, batch, receipts: Vec::new() }
}

fn create(parent: Ino, name: &str, ino: Ino, node: NewInode) -> Op {
    Op::Create { parent, name: name.into(), ino, node, mode: 0o755, umask: 0, uid: 0, gid: 0 }
}

/// Returns a put of a block through all of its owners, and the first of them.
fn put(layout: &Layout, hash: BlockHash) -> (SocketAddr, BlockRequest) {
    let owners = layout.owners(&hash);
    let chain = owners[1..].iter().map(|owner| owner.id).collect();
    let needed = owners.len() as u8;
    (owners[0].addr, BlockRequest::Put { hash, epoch: layout.epoch, chain, needed, origin: None })
}

/// Has so many tasks ask again and again until they are told to stop. Returns how often the answer was as expected.
async fn repeat<F: Future<Output = bool> + Send + 'static>(
    count: usize,
    stop: Stopped,
    ask: impl Fn(usize) -> F + Clone + Send + 'static,
) -> usize {
    let mut asking = JoinSet::new();
    for number in 0..count {
        let (ask, stop) = (ask.clone(), stop.clone());
        asking.spawn(async move {
            let mut expected = 0;
            while !stop.load(Ordering::Relaxed) {
                expected += usize::from(ask(number).await);
                // What fails at once must not keep the other tasks from their turns.
                yield_now().await;
            }
            expected
        });
    }
    asking.join_all().await.into_iter().sum()
}

async fn until_stopped(stop: &Stopped) {
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Sends these messages to all daemons, which refuse them.
async fn be_refused(liar: Liar, messages: Vec<Raw>, stop: Stopped) -> usize {
    let (peers, messages) = (liar.daemons(), Arc::new(messages));
    let ask = move |number: usize| {
        let (peer, messages) = (peers[number].clone(), messages.clone());
        async move {
            let mut all_refused = true;
            for message in messages.iter() {
                let asked = peer.request::<_, MetaReply>(message, &[], LIMIT).await;
                all_refused &= matches!(asked, Err(Error::Refused { .. }));
            }
            all_refused
        }
    };
    repeat(liar.metads.len() + liar.blockds.len(), stop, ask).await
}

/// Returns what was encoded without the byte for the version, which is put before it when it is sent.
fn without_version(encoded: &[u8]) -> Vec<u8> {
    encoded[1..].to_vec()
}

pub(super) async fn nest_operations(liar: Liar, stop: Stopped) -> usize {
    let deferred = |op| Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(op) };
    let once = deferred(Op::LeaseInos { count: 1 });
    let message = without_version(&codec::encode(&submit(SessionId(1), 1, vec![once.clone()])));
    let encoded = |op: &Op| without_version(&codec::encode(op));
    let nested = nested(&message, &encoded(&once), &encoded(&deferred(once.clone())), LEVELS);
    be_refused(liar, vec![nested], stop).await
}

pub(super) async fn send_long_lists(liar: Liar, stop: Stopped) -> usize {
    let lists = [
        vec![Op::LeaseInos { count: 1 }; LONG],
        vec![Op::ReleaseOrphans { inos: vec![Ino(1); LONG] }],
        vec![Op::Accessed { ino: Ino(1), at: Timestamp::default() }; BATCH_OPS_MAX + 1],
    ];
    let raw = |ops| Raw(without_version(&codec::encode(&submit(SessionId(1), 1, ops))));
    be_refused(liar, lists.map(raw).into(), stop).await
}

pub(super) async fn send_large_heads(liar: Liar, stop: Stopped) -> usize {
    be_refused(liar, vec![Raw(vec![0xff; HEAD_BYTES_MAX - 1])], stop).await
}

/// Makes as many files as fit in a batch, and removes them with the next one.
pub(super) async fn fill_batches(liar: Liar, stop: Stopped) -> usize {
    let mut filling = JoinSet::new();
    for number in 0..FILLING {
        filling.spawn(fill(number, liar.clone(), stop.clone()));
    }
    filling.join_all().await.into_iter().sum()
}

async fn fill(number: usize, liar: Liar, stop: Stopped) -> usize {
    let Some(mut session) = Session::begin(&liar, &format!("filled-{number}")).await else { return 0 };
    let (dir, mut done) = (session.dir, 0);
    while !stop.load(Ordering::Relaxed) {
        let Some(Ino(first)) = session.lease().await else { break };
        let numbers = || (first..).take(BATCH_OPS_MAX);
        let make = |ino: u64| create(dir, &ino.to_string(), Ino(ino), NewInode::Regular);
        let unlink =
            |ino: u64| Op::Unlink { parent: dir, name: ino.to_string().into_bytes(), released: Some(Ino(ino)) };
        let made = session.run(numbers().map(make).collect()).await.is_some();
        let removed = session.run(numbers().map(unlink).collect()).await.is_some();
        done += usize::from(made && removed);
    }
    done
}

/// Attaches again and again with something to send, as it says. It may only read: for others everybody may wait once, as
/// long as patience with them lasts.
pub(super) async fn attach_dirty(reader: Liar, stop: Stopped) -> usize {
    let peer = reader.leader();
    let Some(session) = open(&peer, true).await else { return 0 };
    let alive = MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
    let (mut streams, mut attached) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = peer.open_events(&MetaRequest::Events { session, dirty: true }).await else { break };
        streams.push(stream);
        if streams.len() > STREAMS {
            streams.remove(0);
        }
        let answer = peer.request::<_, MetaReply>(&alive, &[], LIMIT).await;
        attached += usize::from(matches!(answer, Ok((MetaReply::Alive { .. }, _))));
    }
    attached
}

/// Opens sessions, also when there are as many as there may be.
pub(super) async fn open_sessions(liar: Liar, stop: Stopped) -> usize {
    let ask = move |_: usize| {
        let peer = liar.leader();
        async move {
            let answer = peer.request::<_, MetaReply>(&opening(false), &[], LIMIT).await;
            matches!(answer, Ok((MetaReply::Session { .. } | MetaReply::Failed(FsError::Busy), _)))
        }
    };
    repeat(8, stop, ask).await
}

/// Opens sessions that read no events, and causes many.
pub(super) async fn ignore_events(liar: Liar, stop: Stopped) -> usize {
    let (peer, mut streams) = (liar.leader(), Vec::new());
    for _ in 0..DEAF {
        let Some(session) = open(&peer, true).await else { return 0 };
        let Ok(stream) = peer.open_events(&MetaRequest::Events { session, dirty: false }).await else { return 0 };
        streams.push(stream);
    }
    let Some(mut session) = Session::begin(&liar, "events").await else { return 0 };
    let dir = session.dir;
    // The numbers behind that of the directory are leased, too.
    let files = || (dir.0 + 1..).take(LOCKED_AT_ONCE).map(Ino);
    let make = |ino: Ino| create(dir, &ino.to_string(), ino, NewInode::Regular);
    if session.run(files().map(make).collect()).await.is_none() {
        return 0;
    }
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        done += usize::from(session.run(files().flat_map(lock_and_unlock).collect()).await.is_some());
    }
    drop(streams);
    done
}

/// All sessions are told that the lock is free again.
fn lock_and_unlock(ino: Ino) -> [Op; 2] {
    let (family, owner, start, end) = (LockFamily::Flock, 1, 0, u64::MAX);
    let lock = Lock { family, owner, pid: 1, start, end, exclusive: true };
    [Op::SetLock { ino, lock }, Op::Unlock { ino, family, owner, start, end }]
}

/// Asks for large blocks on several connections of one certificate, and reads no answer.
pub(super) async fn ignore_answers(liars: Vec<Liar>, stop: Stopped) -> usize {
    let Some(layout) = liars[0].layout().await else { return 0 };
    let Ok(hash) = liars[0].put(&layout, random(1, BLOCK_BYTES_MAX), LIMIT).await else { return 0 };
    let get = BlockRequest::Get { hash, epoch: layout.epoch, offset: 0, len: u32::MAX };
    let mut answers = Vec::new();
    for liar in &liars {
        for number in 0..UNREAD {
            let Ok(asked) = liar.blockd(number).open_request(&get, 0, LIMIT).await else { continue };
            let mut answer = Box::pin(asked.finish::<BlockReply>());
            // Polled once, which ends the request, and then no more.
            if timeout(Duration::ZERO, &mut answer).await.is_err() {
                answers.push(answer);
            }
        }
    }
    until_stopped(&stop).await;
    answers.len()
}

/// Puts blocks with deadlines that daemons can hardly keep.
pub(super) async fn hurry_puts(liar: Liar, stop: Stopped) -> usize {
    let Some(layout) = liar.layout().await else { return 0 };
    let (layout, count) = (Arc::new(layout), Arc::<AtomicU64>::default());
    let ask = move |_: usize| {
        let (liar, layout) = (liar.clone(), layout.clone());
        let number = count.fetch_add(1, Ordering::Relaxed);
        async move {
            let deadline = Duration::from_millis([1, 2, 5][number as usize % 3]);
            let outcome = liar.put(&layout, random(number + 2, 10_000), deadline).await;
            matches!(outcome, Ok(_) | Err(Error::Unanswered { .. }))
        }
    };
    repeat(2, stop, ask).await
}

/// Announces payloads, and sends only the beginning of each.
pub(super) async fn owe_payloads(liar: Liar, stop: Stopped) -> usize {
    let Some(layout) = liar.layout().await else { return 0 };
    let mut open = Vec::new();
    for number in 0..OWED * liar.blockds.len() {
        let (first, request) = put(&layout, BlockHash::of(&number.to_le_bytes()));
        let peer = liar.endpoint.peer(first, Role::Blockd);
        let begun = async {
            let mut begun = peer.open_request(&request, BLOCK_BYTES_MAX as u32, 6 * LIMIT).await?;
            begun.write(vec![7_u8; SENT_OF_OWED].into()).await.map(|()| begun)
        };
        // A daemon takes so many and no more.
        let Ok(Ok(begun)) = timeout(Duration::from_secs(1), begun).await else { break };
        open.push(begun);
    }
    until_stopped(&stop).await;
    open.len()
}

/// Lists the root directory, reads a large block, and asks which blocks there are, which clients may not.
pub(super) async fn read_without_end(liar: Liar, stop: Stopped) -> usize {
    let Some(session) = open(&liar.leader(), false).await else { return 0 };
    let Some(layout) = liar.layout().await else { return 0 };
    let Ok(hash) = liar.put(&layout, random(1, BLOCK_BYTES_MAX), LIMIT).await else { return 0 };
    let epoch = layout.epoch;
    let ask = move |number: usize| {
        let (leader, blockd) = (liar.leader(), liar.blockd(number / 3));
        async move {
            match number % 3 {
                0 => {
                    let read =
                        Read::ReadDir { ino: Ino::ROOT, after: 0, limit: READDIR_PAGE_MAX, with: With::Contents };
                    let read = MetaRequest::Read { session, read, delegate: false, sends: false, caller: None };
                    let answer = leader.request::<_, MetaReply>(&read, &[], LIMIT).await;
                    matches!(answer, Ok((MetaReply::Read { answer: Ok(_), .. }, _)))
                }
                1 => {
                    let get = BlockRequest::Get { hash, epoch, offset: 0, len: u32::MAX };
                    let answer = blockd.request::<_, BlockReply>(&get, &[], LIMIT).await;
                    matches!(answer, Ok((BlockReply::Content { .. }, _)))
                }
                _ => {
                    let probe = BlockRequest::Probe { epoch, hashes: vec![hash; 1_000] };
                    let answer = blockd.request::<_, BlockReply>(&probe, &[], LIMIT).await;
                    matches!(answer, Err(Error::Refused { .. }))
                }
            }
        }
    };
    repeat(24, stop, ask).await
}

/// Sends first packets of connections that do not go on, from many addresses.
pub(super) async fn begin_handshakes(liar: Liar, packets: Vec<Vec<u8>>, stop: Stopped) -> usize {
    let flooding = spawn_blocking(move || flood(&packets, &liar.metads, &stop).0);
    flooding.await.expect("the flood does not panic")
}
