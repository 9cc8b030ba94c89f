//! A daemon that answers over real QUIC, with a disk of the test's own.

use crate::chord::Options;
use crate::chord::driver::Ring;
use crate::layouts::Layouts;
use crate::repair::read_repair::RepairQueue;
use crate::repair::test_peers::{ME, Manner, Peers, bind, block, id_of};
use crate::replicate::Replicator;
use crate::server::Server;
use crate::store::tests::TestDisk;
use crate::store::{Store, StoreOptions};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use wire::Error;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, PartyId};
use wire::limits::{BLOCK_BYTES_MAX, CLIENT_BYTES_MAX};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Peer;
use wire::tls::Role;

const LIMIT: Duration = Duration::from_secs(20);

fn server(peers: &Peers, disk: &TestDisk) -> Arc<Server> {
    let options = StoreOptions { segment_bytes: 16 << 20, reserve_bytes: 0 };
    let layouts = Arc::new(Layouts::default());
    layouts.learn(peers.layout.clone());
    Arc::new(Server {
        id: ME,
        store: Arc::new(Store::open_on(Path::new("/blocks"), options, Arc::new(disk.clone())).unwrap()),
        stamps: Arc::default(),
        replicator: Replicator::new(peers.endpoint.clone()),
        layouts,
        ring: Arc::new(Ring::new(ME, peers.endpoint.clone(), Options::default())),
        repairs: RepairQueue::new().0,
        handoff: Arc::default(),
        drop_grace_min: Duration::ZERO,
        activity: Arc::default(),
        reading: Arc::default(),
        origins: Arc::default(),
        metrics: Arc::default(),
        disk_failed: CancellationToken::new(),
    })
}

/// Puts a block that the daemon and those behind it should store, and one must before the answer.
async fn put(peer: &Peer, epoch: LayoutEpoch, content: &Bytes, behind: &[BlockdId]) -> Result<BlockReply, Error> {
    let hash = BlockHash::of(content);
    let request = BlockRequest::Put { hash, epoch, chain: behind.to_vec(), needed: 1, origin: None };
    Ok(peer.request(&request, std::slice::from_ref(content), LIMIT).await?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_wait_for_the_writer_count_in_the_senders_budget_though_they_were_acknowledged() {
    let (peers, disk) = (Peers::start([Manner::Honest]), TestDisk::new());
    let server = server(&peers, &disk);
    let _serving = peers.endpoint.serve(server.clone(), &Handle::current());
    let client = bind(&peers.ca, Role::Client, "client");
    let peer = client.peer(peers.endpoint.local_addr(), Role::Blockd);
    let content = Bytes::from(vec![7; BLOCK_BYTES_MAX]);
    let (hash, epoch) = (BlockHash::of(&content), peers.layout.epoch);
    // Until the test ends, and on a thread of its own, for a lock that is held is not sent.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (stalled, stalls) = tokio::sync::oneshot::channel();
    let stalling = std::thread::spawn({
        let disk = disk.clone();
        move || {
            let _held = disk.0.syncs.lock();
            let _ = stalled.send(());
            let _ = released.recv();
        }
    });
    stalls.await.unwrap();
    let BlockReply::Stored { synced, .. } = put(&peer, epoch, &content, &[id_of(0)]).await.unwrap() else {
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
        match put(&peer, epoch, &content, &[id_of(0)]).await {
            Ok(BlockReply::Stored { .. }) => assert!(started.elapsed() < LIMIT, "what waits does not count"),
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    drop(waiting);
    drop(release);
    stalling.join().unwrap();
    let started = Instant::now();
    while let Err(error) = put(&peer, epoch, &content, &[]).await {
        assert!(matches!(error, Error::Busy { .. }) && started.elapsed() < LIMIT, "{error}");
    }
    assert!(server.store.contains(&hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_not_here_waits_for_no_turn_and_no_read_waits_longer_than_its_reader() {
    let peers = Peers::start([Manner::Honest]);
    let server = server(&peers, &TestDisk::new());
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
