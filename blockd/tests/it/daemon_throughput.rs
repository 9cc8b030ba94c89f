//! How fast three daemons take and serve blocks. Run by hand:
//! `cargo test --release -p blockd --test it -- --ignored daemon_throughput --nocapture`

use crate::daemon_cluster::{Cluster, random_block};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::time::Instant;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest};

const BLOCKS: usize = 128;
const BLOCK_BYTES: usize = 4 << 20;
const IN_FLIGHT: usize = 4;

/// Touches memory that the machine has not used lately. Otherwise the first touch would be measured.
fn warm_memory() {
    let mut pages = vec![0_u8; 6 << 30];
    pages.chunks_mut(4096).for_each(|page| page[0] = 1);
    std::hint::black_box(&pages);
}

fn report(what: &str, started: Instant) {
    let mib = (BLOCKS * BLOCK_BYTES) >> 20;
    println!("{what}: {:.0} MB/s", (mib << 20) as f64 / 1e6 / started.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run by hand on an idle machine"]
async fn throughput_of_a_chain_of_three() {
    warm_memory();
    let cluster = Cluster::start(3).await;
    for round in 0..3 {
        let blocks: Vec<Bytes> = (0..BLOCKS).map(|_| random_block(BLOCK_BYTES)).collect();
        let started = Instant::now();
        stream::iter(&blocks)
            .for_each_concurrent(IN_FLIGHT, async |block| assert_eq!(cluster.put(block).await.0.len(), 3))
            .await;
        report(&format!("round {round}: put through the chain"), started);
        let names: Vec<BlockHash> = blocks.iter().map(|block| BlockHash::of(block)).collect();
        let started = Instant::now();
        stream::iter(names.iter().enumerate())
            .for_each_concurrent(IN_FLIGHT, async |(index, hash)| {
                assert_eq!(cluster.get(index % 3, *hash).await.unwrap().len(), BLOCK_BYTES);
            })
            .await;
        report(&format!("round {round}: get"), started);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run by hand on an idle machine"]
async fn cost_of_parts_and_of_whole_blocks() {
    let cluster = Cluster::start(1).await;
    let mut names = Vec::new();
    for _ in 0..64 {
        let block = random_block(BLOCK_BYTES);
        cluster.put(&block).await;
        names.push(BlockHash::of(&block));
    }
    for len in [4 << 10, 64 << 10, 256 << 10, u32::MAX] {
        let mut took = Vec::new();
        for (index, hash) in names.iter().cycle().take(512).enumerate() {
            let offset = if len == u32::MAX { 0 } else { (index * 331 % 900) as u32 * 4096 };
            let request = BlockRequest::Get { hash: *hash, epoch: LayoutEpoch(u64::MAX), offset, len };
            let started = Instant::now();
            let (reply, bytes) = cluster.ask(0, &request).await;
            assert!(matches!(reply, BlockReply::Content { .. }), "{reply:?}");
            // The client does the same with a whole block.
            assert!(len < u32::MAX || BlockHash::of(&bytes) == *hash);
            took.push(started.elapsed());
        }
        took.sort_unstable();
        println!("{} B of {BLOCK_BYTES} B: median {:?}", len.min(BLOCK_BYTES as u32), took[took.len() / 2]);
    }
}
