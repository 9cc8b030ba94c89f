//! A daemon that answers over real QUIC, with a disk of the test's own.

use crate::chord::Options;
use crate::chord::driver::Ring;
use crate::layouts::Layouts;
use crate::refused::Refused;
use crate::repair::read_repair::RepairQueue;
use crate::repair::test_peers::{ME, Manner, Peers, bind, block, id_of, until};
use crate::replicate::Replicator;
use crate::server::Server;
use crate::store::tests::TestDisk;
use crate::store::{Store, StoreOptions};
use bytes::Bytes;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use wire::Error;
use wire::attr::Timestamp;
use wire::cert::KeyId;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, PartyId, Point};
use wire::layout::ring::Span;
use wire::limits::TICKET_LIFE_SECS;
use wire::limits::{BLOCK_BYTES_MAX, CLIENT_BYTES_MAX, DAEMON_BYTES_MAX};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::{Endpoint, Peer};
use wire::sections::SECTION_BYTES;
use wire::ticket::{TicketKey, TicketKeys};
use wire::tls::{Role, Squash, Subject};

const LIMIT: Duration = Duration::from_secs(20);

/// Puts of the greedy client, their length, and the connections on which it sends them.
const FLOOD: usize = 200;
const FLOOD_BYTES: usize = 64 << 10;
const CONNECTIONS: usize = 4;

/// The daemon of this id, which calls and answers from this endpoint.
fn server(peers: &Peers, id: BlockdId, endpoint: &Endpoint, disk: &TestDisk) -> Arc<Server> {
    let options = StoreOptions { segment_bytes: 16 << 20, reserve_bytes: 0 };
    let layouts = Arc::new(Layouts::default());
    layouts.learn(peers.layout.clone());
    Arc::new(Server {
        id,
        store: Arc::new(Store::open_on(Path::new("/blocks"), options, Arc::new(disk.clone())).unwrap()),
        stamps: Arc::default(),
        replicator: Replicator::new(endpoint.clone()),
        layouts,
        ring: Arc::new(Ring::new(id, endpoint.clone(), Options::default())),
        repairs: RepairQueue::new().0,
        handoff: Arc::default(),
        drop_grace_min: Duration::ZERO,
        refused: Arc::new(Refused::open(endpoint.clone(), Path::new("/blocks"))),
        tickets: Arc::default(),
        activity: Arc::default(),
        reading: Arc::default(),
        origins: Arc::default(),
        metrics: Arc::default(),
        disk_failed: CancellationToken::new(),
    })
}

/// A disk that syncs nothing until this is dropped.
struct Stalled {
    release: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stalled {
    /// On a thread of its own, for a lock that is held is not sent.
    fn new(disk: &TestDisk) -> Self {
        let (release, released) = mpsc::channel::<()>();
        let (stalled, stalls) = mpsc::channel();
        let disk = disk.clone();
        let thread = std::thread::spawn(move || {
            let _held = disk.0.syncs.lock();
            let _ = stalled.send(());
            let _ = released.recv();
        });
        stalls.recv().unwrap();
        Self { release: Some(release), thread: Some(thread) }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.release.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Puts a block that the daemon and those behind it should store, and so many must before the answer.
async fn put(
    peer: &Peer,
    epoch: LayoutEpoch,
    content: &Bytes,
    (behind, needed): (&[BlockdId], u8),
) -> Result<BlockReply, Error> {
    let hash = BlockHash::of(content);
    let request = BlockRequest::Put { hash, epoch, chain: behind.to_vec(), needed, origin: None };
    Ok(peer.request(&request, std::slice::from_ref(content), LIMIT * 3).await?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_wait_for_the_writer_count_in_the_senders_budget_though_they_were_acknowledged() {
    let (peers, disk) = (Peers::start([Manner::Honest]), TestDisk::new());
    let server = server(&peers, ME, &peers.endpoint, &disk);
    let _serving = peers.endpoint.serve(server.clone(), &Handle::current());
    let client = bind(&peers.ca, Role::Client, "client");
    let peer = client.peer(peers.endpoint.local_addr(), Role::Blockd);
    let content = Bytes::from(vec![7; BLOCK_BYTES_MAX]);
    let (hash, epoch) = (BlockHash::of(&content), peers.layout.epoch);
    let stalled = Stalled::new(&disk);
    let on_both = [id_of(0)];
    let BlockReply::Stored { synced, .. } = put(&peer, epoch, &content, (&on_both, 1)).await.unwrap() else {
        panic!("not stored")
    };
    assert_eq!(synced, [id_of(0)], "the writer here stands still");
    assert!(!server.store.contains(&hash));
    // Announced, and never sent: with the block that waits there is no room for another one.
    let announced = BlockRequest::Put { hash, epoch, chain: Vec::new(), needed: 1, origin: None };
    let mut waiting = Vec::new();
    for _ in 0..CLIENT_BYTES_MAX / BLOCK_BYTES_MAX - 2 {
        waiting.push(peer.open_request(&announced, BLOCK_BYTES_MAX as u32, LIMIT * 2).await.unwrap());
    }
    // The daemon may come to those later than to this.
    let started = Instant::now();
    let refused = loop {
        match put(&peer, epoch, &content, (&on_both, 1)).await {
            Ok(BlockReply::Stored { .. }) => assert!(started.elapsed() < LIMIT, "what waits does not count"),
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    drop(waiting);
    drop(stalled);
    let started = Instant::now();
    while let Err(error) = put(&peer, epoch, &content, (&[], 1)).await {
        assert!(matches!(error, Error::Busy { .. }) && started.elapsed() < LIMIT, "{error}");
    }
    assert!(server.store.contains(&hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn confined_clients_get_by_ticket_what_the_ticket_is_for_and_nothing_else_of_a_daemon() {
    let (peers, disk) = (Peers::start([Manner::Honest]), TestDisk::new());
    let server = server(&peers, ME, &peers.endpoint, &disk);
    let _serving = peers.endpoint.serve(server.clone(), &Handle::current());
    let mut keys = TicketKeys::default();
    assert!(keys.add(TicketKey::make(1, Timestamp::default())));
    let (signing, now) = (keys.newest().unwrap().clone(), Timestamp { secs: 100, nanos: 0 });
    server.tickets.learn(keys.clone(), now);
    let content = Bytes::from_static(b"content");
    let (hash, epoch) = (BlockHash::of(&content), peers.layout.epoch);
    let client = bind(&peers.ca, Role::Client, "free");
    let free = client.peer(peers.endpoint.local_addr(), Role::Blockd);
    let stored = put(&free, epoch, &content, (&[], 1)).await;
    assert!(matches!(stored, Ok(BlockReply::Stored { receipt: None, .. })), "{stored:?}");
    let grants = [(Some("/home".to_owned()), Squash::None), (None, Squash::All { uid: 1, gid: 1 })];
    for (subtree, squash) in grants {
        let mut subject = Subject::new(Role::Client, "confined");
        (subject.grant.subtree, subject.grant.squash) = (subtree, squash);
        let identity = peers.ca.issue(&subject).unwrap();
        let holder = identity.certificate().key;
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        let peer = endpoint.peer(peers.endpoint.local_addr(), Role::Blockd);
        for request in [
            BlockRequest::Get { hash, epoch, offset: 0, len: 7 },
            BlockRequest::Lookup { point: hash.point() },
            BlockRequest::Status,
        ] {
            let refused = peer.request::<_, BlockReply>(&request, &[], LIMIT).await;
            assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        }
        let get = async |(offset, len), ticket| {
            let request = BlockRequest::GetByTicket { hash, epoch, offset, len, ticket };
            peer.request::<_, BlockReply>(&request, &[], LIMIT).await.unwrap()
        };
        let ticket = signing.ticket(&holder, &hash, (1, 4), now);
        for (part, expected) in [((1, u32::MAX), "onte"), ((2, 9), "nte"), ((2, 1), "n"), ((4, 1), "e")] {
            let (reply, bytes) = get(part, ticket).await;
            assert!(matches!(reply, BlockReply::Content { .. }), "{reply:?}");
            assert_eq!(bytes, expected.as_bytes());
        }
        let of_another = signing.ticket(&KeyId([7; 32]), &hash, (0, 7), now);
        let of_another_block = signing.ticket(&holder, &BlockHash([7; 32]), (0, 7), now);
        let ended = signing.ticket(&holder, &hash, (0, 7), Timestamp { secs: 99 - TICKET_LIFE_SECS, nanos: 0 });
        for (part, ticket) in [
            ((0, 1), ticket),
            ((5, 1), ticket),
            ((u32::MAX, u32::MAX), ticket),
            ((0, 7), of_another),
            ((0, 7), of_another_block),
            ((0, 7), ended),
        ] {
            let (reply, bytes) = get(part, ticket).await;
            assert!(matches!(reply, BlockReply::TicketRefused) && bytes.is_empty(), "{reply:?}");
        }
        // For what it stores it gets a receipt, whether others have stored the same before or not.
        let stored = put(&peer, epoch, &content, (&[], 1)).await;
        let Ok(BlockReply::Stored { receipt: Some(receipt), .. }) = stored else { panic!("{stored:?}") };
        assert!(receipt.hash == hash && keys.confirms(&receipt, &holder));
    }
}

/// Both disks stand still until all puts have come, so the order is that of the turns, however fast the machine is.
#[tokio::test(flavor = "multi_thread")]
async fn puts_of_a_client_go_on_beside_hundreds_of_another_one_through_whole_chains() {
    let mut peers = Peers::start([Manner::Honest]);
    let behind = bind(&peers.ca, Role::Blockd, "behind");
    peers.layout.members[1].addr = behind.local_addr();
    let disks = [TestDisk::new(), TestDisk::new()];
    let daemons = [(ME, &peers.endpoint, &disks[0]), (id_of(0), &behind, &disks[1])]
        .map(|(id, endpoint, disk)| (server(&peers, id, endpoint, disk), endpoint));
    let _serving = daemons.each_ref().map(|(server, endpoint)| endpoint.serve(server.clone(), &Handle::current()));
    let (addr, epoch) = (peers.endpoint.local_addr(), peers.layout.epoch);
    let stalled = disks.each_ref().map(Stalled::new);
    let mut clients = Vec::new();
    let mut connect = |name: &str| {
        let endpoint = bind(&peers.ca, Role::Client, name);
        let peer = endpoint.peer(addr, Role::Blockd);
        clients.push(endpoint);
        peer
    };
    let mut puts = JoinSet::new();
    let mut begin = |peer: &Peer, content: Vec<u8>| {
        let (peer, content) = (peer.clone(), Bytes::from(content));
        let hash = BlockHash::of(&content);
        puts.spawn(async move { put(&peer, epoch, &content, (&[id_of(0)], 2)).await });
        hash
    };
    let greedy: Vec<Peer> = (0..CONNECTIONS).map(|_| connect("greedy")).collect();
    let content = |number: usize| (number as u64).to_le_bytes().repeat(FLOOD_BYTES / 8);
    let all_wait = async |what: &str, count: usize| {
        until(what, || daemons.iter().all(|(one, _)| one.store.waiting() == count)).await
    };
    begin(&greedy[0], content(0));
    until("both writers stand still", || disks.iter().all(|disk| !disk.0.writes.lock().is_empty())).await;
    let flood: Vec<BlockHash> =
        (1..=FLOOD).map(|number| begin(&greedy[number % CONNECTIONS], content(number))).collect();
    all_wait("the flood is there", FLOOD).await;
    let honest = begin(&connect("honest"), vec![7; FLOOD_BYTES]);
    all_wait("the put of the other client is there", FLOOD + 1).await;
    drop(stalled);
    while let Some(put) = puts.join_next().await {
        let reply = put.unwrap().unwrap();
        assert!(matches!(&reply, BlockReply::Stored { synced, .. } if synced.len() == 2), "{reply:?}");
    }
    for (server, _) in &daemons {
        let place = server.store.place_of(&honest);
        let before = flood.iter().filter(|hash| server.store.place_of(hash) < place).count();
        assert!(before <= 1, "{before} of {FLOOD} were written before it on {}", server.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_not_here_waits_for_no_turn_and_no_read_waits_longer_than_its_reader() {
    let peers = Peers::start([Manner::Honest]);
    let server = server(&peers, ME, &peers.endpoint, &TestDisk::new());
    let (hash, content) = block(1);
    server.store.put(hash, content.clone()).await.unwrap();
    let (party, part) = (PartyId([1; 16]), (0, u32::MAX));
    let get = async |hash, limit| server.get(party, (hash, peers.layout.epoch), part, Instant::now() + limit).await;
    let mut turns = Vec::new();
    while let Ok(turn) = timeout(Duration::ZERO, server.reading.turn(PartyId([2; 16]), u64::MAX)).await {
        turns.push(turn);
    }
    assert!(!turns.is_empty());
    let absent = timeout(LIMIT, get(block(2).0, LIMIT * 2)).await.expect("it needs no turn").unwrap();
    assert!(matches!(absent, (BlockReply::NotHere { corrupt: false, .. }, None)));
    let late = timeout(LIMIT, get(hash, Duration::from_millis(10))).await.expect("nobody waits for it any more");
    assert!(late.is_none());
    drop(turns);
    let found = timeout(LIMIT, get(hash, LIMIT)).await.unwrap().unwrap();
    assert_eq!(found.1, Some(content));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_part_costs_no_turn_and_another_one_the_sections_that_are_read() {
    let peers = Peers::start([Manner::Honest]);
    let server = server(&peers, ME, &peers.endpoint, &TestDisk::new());
    let content = Bytes::from(vec![7; 4 * SECTION_BYTES]);
    let (hash, len) = (BlockHash::of(&content), content.len() as u32);
    server.store.put(hash, content.clone()).await.unwrap();
    let get = async |part, limit| {
        let got = server.get(PartyId([1; 16]), (hash, peers.layout.epoch), part, Instant::now() + limit);
        timeout(LIMIT, got).await.expect("it ends with its reader").map(|(reply, bytes)| {
            assert!(matches!(reply, BlockReply::Content { block_len } if block_len == len), "{reply:?}");
            bytes.unwrap()
        })
    };
    // Large reads of another one leave room for what one section costs at least.
    let other = PartyId([2; 16]);
    let mut turns = Vec::new();
    for bytes in [&[BLOCK_BYTES_MAX; 7][..], &[BLOCK_BYTES_MAX - SECTION_BYTES]].concat() {
        turns.push(timeout(LIMIT, server.reading.turn(other, bytes as u64)).await.unwrap());
    }
    let at_once = Duration::from_millis(50);
    let across = (SECTION_BYTES as u32 - 1, 2);
    assert_eq!(get(across, at_once).await, None, "it reads two sections");
    turns.push(timeout(LIMIT, server.reading.turn(other, 1)).await.unwrap());
    for part in [(0, 0), (5, 0), (len, 1), (u32::MAX, u32::MAX)] {
        assert_eq!(get(part, LIMIT * 2).await, Some(Bytes::new()));
    }
    drop(turns);
    assert_eq!(get(across, LIMIT).await, Some(content.slice(..2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_wait_for_room_among_the_answers_that_their_caller_has_not_fetched() {
    let peers = Peers::start([Manner::Honest]);
    let server = server(&peers, ME, &peers.endpoint, &TestDisk::new());
    let _serving = peers.endpoint.serve(server.clone(), &Handle::current());
    let (hash, content) = block(1);
    server.store.put(hash, content).await.unwrap();
    let asker = bind(&peers.ca, Role::Blockd, "asker");
    let (peer, epoch) = (asker.peer(peers.endpoint.local_addr(), Role::Blockd), peers.layout.epoch);
    let mut turns = Vec::new();
    while let Ok(turn) = timeout(Duration::ZERO, server.reading.turn(PartyId([2; 16]), u64::MAX)).await {
        turns.push(turn);
    }
    // Each has room for a whole block until its turn has come.
    let mut reads = JoinSet::new();
    let count = DAEMON_BYTES_MAX / 2 / BLOCK_BYTES_MAX;
    for _ in 0..count {
        let peer = peer.clone();
        reads.spawn(async move {
            let get = BlockRequest::Get { hash, epoch, offset: 0, len: u32::MAX };
            peer.request::<_, BlockReply>(&get, &[], LIMIT * 2).await
        });
    }
    until("all of them wait for their turns", || server.reading.waiting() == count).await;
    let span = Span { first: Point(0), last: Point(1) };
    let lists = [
        BlockRequest::List { from: hash, last: hash, limit: 1 },
        BlockRequest::Probe { epoch, hashes: vec![hash] },
        BlockRequest::Digests { epoch, spans: vec![span] },
    ];
    for request in &lists {
        let answer = peer.request::<_, BlockReply>(request, &[], Duration::from_millis(300)).await;
        assert!(answer.is_err(), "{answer:?}");
    }
    drop(turns);
    while let Some(read) = reads.join_next().await {
        assert!(matches!(read.unwrap(), Ok((BlockReply::Content { .. }, _))));
    }
    for request in &lists {
        peer.request::<_, BlockReply>(request, &[], LIMIT).await.unwrap();
    }
}

/// Guards I11.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_for_owners_that_are_not_known_here_yet_waits_for_their_layout() {
    let mut peers = Peers::start([Manner::Honest, Manner::Honest]);
    peers.layout.replicas = 2;
    let server = server(&peers, ME, &peers.endpoint, &TestDisk::new());
    let _serving = peers.endpoint.serve(server.clone(), &Handle::current());
    let client = bind(&peers.ca, Role::Client, "client");
    let peer = client.peer(peers.endpoint.local_addr(), Role::Blockd);
    let ((hash, content), behind) = (block(1), [id_of(0)]);
    let raised = peers.layout.with_redundancy(3, 2).unwrap();
    let learning = async {
        server.layouts.wanted().await;
        assert!(!server.store.contains(&hash));
        server.layouts.learn(raised.clone());
    };
    let (stored, ()) = tokio::join!(put(&peer, raised.epoch, &content, (&behind, 2)), learning);
    assert!(matches!(&stored, Ok(BlockReply::Stored { synced, .. }) if synced.len() == 2), "{stored:?}");
    until("the third owner gets it", || server.handoff.is_noted(&id_of(1), &hash)).await;
    let (unknown, (absent, content)) = (raised.epoch.next(), block(2));
    let refused = put(&peer, unknown, &content, (&[], 1)).await;
    assert!(matches!(refused, Ok(BlockReply::Failed(_))), "{refused:?}");
    assert!(!server.store.contains(&absent));
}
