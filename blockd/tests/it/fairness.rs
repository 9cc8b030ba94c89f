//! One client that reads as much as it can, on several connections, beside one that reads little. Of puts, see
//! `blockd/src/server_tests.rs`.

use crate::daemon_cluster::{Cluster, LIMIT, identity, random_block};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use wire::Error;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Role};

/// Connections of the greedy client.
const CONNECTIONS: usize = 4;
/// What it asks for at once on each: reads of large blocks.
const READS_ON_EACH: usize = 24;
const READ_BYTES: usize = 4 << 20;
/// What the other one reads, one after the other.
const HONEST_BYTES: usize = 64 << 10;
const HONEST_COUNT: usize = 12;

fn client(ca: &ClusterCa, name: &str) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, Role::Client, name)).unwrap()
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
    in_flight: usize,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Flood {
    fn start<F: Future<Output = bool> + Send>(
        ca: &ClusterCa,
        asked_on_each: usize,
        ask: impl Fn(Endpoint, usize) -> F + Clone + Send + 'static,
    ) -> Self {
        let (stop, done, mut tasks) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), JoinSet::new());
        for _ in 0..CONNECTIONS {
            let endpoint = client(ca, "greedy");
            for number in 0..asked_on_each {
                let (stop, done) = (stop.clone(), done.clone());
                let (ask, endpoint) = (ask.clone(), endpoint.clone());
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        done.fetch_add(usize::from(ask(endpoint.clone(), number).await), Ordering::Relaxed);
                    }
                });
            }
        }
        Self { in_flight: CONNECTIONS * asked_on_each, stop, done, tasks }
    }

    async fn until_it_flows(&self) {
        let started = Instant::now();
        while self.done.load(Ordering::Relaxed) < self.in_flight {
            assert!(started.elapsed() < LIMIT, "nothing of the flood is answered");
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
    }

    /// Asserts that a request waits for fewer of the flood than are under way, where some wait for longer than others:
    /// without turns, each would wait for all of them. Counts answers, because the machine is shared.
    async fn assert_leaves_turns(self, what: &str, mut ask: impl AsyncFnMut()) {
        self.until_it_flows().await;
        let (mut waited, started) = (Vec::new(), Instant::now());
        for _ in 0..HONEST_COUNT {
            let before = self.done.load(Ordering::Relaxed);
            ask().await;
            waited.push(self.done.load(Ordering::Relaxed) - before);
        }
        waited.sort_unstable();
        println!("{what} waits for {waited:?} of {} under way, {:?} in all", self.in_flight, started.elapsed());
        assert!(waited[HONEST_COUNT / 2] < self.in_flight * 3 / 4, "{what} waits for {waited:?} of {}", self.in_flight);
        self.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_client_go_on_beside_hundreds_of_another_one() {
    let cluster = Cluster::start(1).await;
    let honest = client(&cluster.ca, "honest");
    let addr = cluster.node(0).local_addr();
    let mut large = Vec::new();
    for _ in 0..READS_ON_EACH {
        let block = random_block(READ_BYTES);
        cluster.put_to_some(&block, 1).await;
        large.push(BlockHash::of(&block));
    }
    let small = random_block(HONEST_BYTES);
    cluster.put_to_some(&small, 1).await;
    let hash = BlockHash::of(&small);
    let flood = Flood::start(&cluster.ca, READS_ON_EACH, move |endpoint, number| {
        let hash = large[number];
        async move { get(&endpoint, addr, hash).await.is_ok() }
    });
    let read = async || assert_eq!(get(&honest, addr, hash).await.unwrap(), HONEST_BYTES);
    flood.assert_leaves_turns("a read", read).await;
}
