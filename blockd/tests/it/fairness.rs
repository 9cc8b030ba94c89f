//! One client that asks for as much as it can, on several connections, beside one that asks for little.

use crate::daemon_cluster::{Cluster, LIMIT, identity, random_block};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use wire::Error;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Role};

/// Connections of the greedy client, and what it asks for at once on each.
const CONNECTIONS: usize = 4;
const ASKED_ON_EACH: usize = 24;
const GREEDY_BYTES: usize = 1 << 20;
/// What the other one stores and reads, one after the other.
const HONEST_BYTES: usize = 64 << 10;
const HONEST_COUNT: usize = 12;
/// How much longer it may take beside the greedy one. The machine is shared, too: this is far from exact.
const TIMES_MAX: u32 = 60;
/// A request takes this long on a machine that is busy with something else.
const JITTER: Duration = Duration::from_millis(250);

fn client(ca: &ClusterCa, name: &str) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, Role::Client, name)).unwrap()
}

/// Puts through the chain of the block's owners, and waits for two of them.
async fn put(from: &Endpoint, layout: &Layout, block: &Bytes) -> Result<(), Error> {
    let hash = BlockHash::of(block);
    let owners = layout.owners(&hash);
    let chain = owners[1..].iter().map(|owner| owner.id).collect();
    let request = BlockRequest::Put { hash, epoch: layout.epoch, chain, needed: 2, origin: None };
    let peer = from.peer(owners[0].addr, Role::Blockd);
    match peer.request::<_, BlockReply>(&request, std::slice::from_ref(block), LIMIT).await?.0 {
        BlockReply::Stored { synced, failed, .. } => assert!(synced.len() >= 2, "{failed:?}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}

async fn get(from: &Endpoint, addr: SocketAddr, hash: BlockHash) -> Result<usize, Error> {
    let request = BlockRequest::Get { hash, epoch: LayoutEpoch(u64::MAX), offset: 0, len: u32::MAX };
    let peer = from.peer(addr, Role::Blockd);
    match peer.request::<_, BlockReply>(&request, &[], LIMIT).await? {
        (BlockReply::Content { .. }, block) => Ok(block.len()),
        (other, _) => panic!("{other:?}"),
    }
}

/// The greedy client at work until this is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Flood {
    fn start<F: Future<Output = bool> + Send>(
        ca: &ClusterCa,
        ask: impl Fn(Endpoint, usize) -> F + Clone + Send + 'static,
    ) -> Self {
        let (stop, done, mut tasks) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), JoinSet::new());
        for _ in 0..CONNECTIONS {
            let endpoint = client(ca, "greedy");
            for number in 0..ASKED_ON_EACH {
                let (stop, done) = (stop.clone(), done.clone());
                let (ask, endpoint) = (ask.clone(), endpoint.clone());
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        done.fetch_add(usize::from(ask(endpoint.clone(), number).await), Ordering::Relaxed);
                    }
                });
            }
        }
        Self { stop, done, tasks }
    }

    async fn until_it_flows(&self) {
        let started = Instant::now();
        while self.done.load(Ordering::Relaxed) < CONNECTIONS * ASKED_ON_EACH / 2 {
            assert!(started.elapsed() < LIMIT, "nothing of the flood is answered");
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.done.load(Ordering::Relaxed)
    }
}

/// How long each of some requests takes, one after the other; the middle one, and the longest.
async fn times(mut ask: impl AsyncFnMut(usize)) -> (Duration, Duration) {
    let mut times = Vec::new();
    for number in 0..HONEST_COUNT {
        let started = Instant::now();
        ask(number).await;
        times.push(started.elapsed());
    }
    times.sort();
    (times[HONEST_COUNT / 2], times[HONEST_COUNT - 1])
}

fn assert_goes_on(what: &str, (alone, _): (Duration, Duration), (beside, longest): (Duration, Duration), done: usize) {
    println!("{what}: {alone:?} alone, {beside:?} beside {done} of the greedy client, {longest:?} at most");
    assert!(done > CONNECTIONS * ASKED_ON_EACH, "the greedy client hardly did anything");
    assert!(beside < alone * TIMES_MAX + JITTER, "{what}: {alone:?} alone, {beside:?} beside the greedy client");
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_of_a_client_go_on_beside_hundreds_of_another_one_through_whole_chains() {
    let cluster = Cluster::start(3).await;
    let honest = client(&cluster.ca, "honest");
    let layout = cluster.layout();
    let store = async |_| put(&honest, &layout, &random_block(HONEST_BYTES)).await.unwrap();
    let alone = times(store).await;
    let of_flood = layout.clone();
    let flood = Flood::start(&cluster.ca, move |endpoint, _| {
        let layout = of_flood.clone();
        async move { put(&endpoint, &layout, &random_block(GREEDY_BYTES)).await.is_ok() }
    });
    flood.until_it_flows().await;
    let beside = times(store).await;
    assert_goes_on("a put", alone, beside, flood.end().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_client_go_on_beside_hundreds_of_another_one() {
    let cluster = Cluster::start(1).await;
    let honest = client(&cluster.ca, "honest");
    let addr = cluster.node(0).local_addr();
    let mut large = Vec::new();
    for _ in 0..ASKED_ON_EACH {
        let block = random_block(4 * GREEDY_BYTES);
        cluster.put_to_some(&block, 1).await;
        large.push(BlockHash::of(&block));
    }
    let small = random_block(HONEST_BYTES);
    cluster.put_to_some(&small, 1).await;
    let hash = BlockHash::of(&small);
    let read = async |_| assert_eq!(get(&honest, addr, hash).await.unwrap(), HONEST_BYTES);
    let alone = times(read).await;
    let flood = Flood::start(&cluster.ca, move |endpoint, number| {
        let hash = large[number];
        async move { get(&endpoint, addr, hash).await.is_ok() }
    });
    flood.until_it_flows().await;
    let beside = times(read).await;
    assert_goes_on("a read", alone, beside, flood.end().await);
}
