//! Figures, on request: `cargo test --release -p client --test it -- --ignored throughput --nocapture`.

use crate::cluster::{Cluster, create, open, pattern, regular};
use client::{Client, OpenFlags};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::ids::Ino;

const MIB: usize = 1 << 20;

fn report(what: &str, amount: f64, unit: &str, since: Instant) {
    println!("{what:44} {:10.0} {unit}/s", amount / since.elapsed().as_secs_f64());
}

/// Touches memory first, because a page that the machine has not used lately is slow, and that is not to be measured.
fn warm_memory() {
    for _ in 0..2 {
        let blocks: Vec<Vec<u8>> = (0..512).map(|_| vec![1; 4 * MIB]).collect();
        assert_eq!(blocks.iter().map(|block| block[MIB] as usize).sum::<usize>(), 512);
    }
}

async fn write_all(client: &Client, handle: &client::Handle, total: usize, call: usize) {
    let data = pattern(total as u64, 16 * MIB);
    for offset in (0..total).step_by(call) {
        let from = offset % (16 * MIB - call + 1);
        let part = &data[from..from + call];
        match client.try_write(handle, offset as u64, part, false) {
            Some(written) => assert_eq!(written, Ok(call)),
            None => assert_eq!(client.write(handle, offset as u64, part, false).await, Ok(call)),
        }
    }
}

async fn sequential(cluster: &Cluster, client: &Client, name: &str, mib: usize) {
    let opened = create(client, name).await;
    let started = Instant::now();
    write_all(client, &opened.handle, mib * MIB, MIB).await;
    client.fsync(&opened.handle).await.unwrap();
    report(&format!("{name}: sequential write of {mib} MiB + fsync"), mib as f64, "MiB", started);
    for (call, ahead) in [(MIB, 16), (MIB, 32), (128 << 10, 32)] {
        let mut config = cluster.config();
        config.readahead_bytes = ahead << 20;
        let reader = Client::connect(config).await.unwrap();
        let opened = open(&reader, name).await;
        let started = Instant::now();
        for offset in (0..mib * MIB).step_by(call) {
            assert_eq!(reader.read(&opened.handle, offset as u64, call).await.unwrap().len(), call);
        }
        let what = format!("{name}: read, {} KiB calls, {ahead} MiB ahead", call >> 10);
        report(&what, mib as f64, "MiB", started);
        reader.release(opened.handle).await;
        reader.shutdown().await.unwrap();
    }
}

async fn random(cluster: &Cluster, client: &Client, mib: usize) {
    let opened = create(client, "random").await;
    write_all(client, &opened.handle, mib * MIB, MIB).await;
    client.fsync(&opened.handle).await.unwrap();
    let reader = cluster.client().await;
    let file = open(&reader, "random").await;
    let mut rng = SmallRng::seed_from_u64(1);
    let started = Instant::now();
    for _ in 0..3000 {
        let offset = rng.random_range(0..(mib * MIB) as u64 / 4096) * 4096;
        reader.read(&file.handle, offset, 4096).await.unwrap();
    }
    report("random 4 KiB reads, cold, one reader", 3000.0, "op", started);
    let page = pattern(3, 4096);
    let started = Instant::now();
    for _ in 0..20_000 {
        let offset = rng.random_range(0..(mib * MIB) as u64 / 4096) * 4096;
        if client.try_write(&opened.handle, offset, &page, false).is_none() {
            client.write(&opened.handle, offset, &page, false).await.unwrap();
        }
    }
    client.fsync(&opened.handle).await.unwrap();
    report("random 4 KiB writes, fsync at the end", 20_000.0, "op", started);
    let small = create(client, "small").await;
    let started = Instant::now();
    for number in 0..500 {
        client.write(&small.handle, number % 64 * 4096, &page, false).await.unwrap();
        client.fsync(&small.handle).await.unwrap();
    }
    report("4 KiB writes into 256 KiB, fsync each", 500.0, "op", started);
    let started = Instant::now();
    for _ in 0..1000 {
        let offset = rng.random_range(0..(mib * MIB) as u64 / 4096) * 4096;
        client.write(&opened.handle, offset, &page, false).await.unwrap();
        client.fsync(&opened.handle).await.unwrap();
    }
    report("random 4 KiB writes, fsync each", 1000.0, "op", started);
    client.release(opened.handle).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let file = open(&reader, "random").await;
    let started = Instant::now();
    for offset in (0..mib * MIB).step_by(MIB) {
        reader.read(&file.handle, offset as u64, MIB).await.unwrap();
    }
    report("sequential read of what was written so", mib as f64, "MiB", started);
}

async fn small_files(client: &Arc<Client>, workers: usize, each: usize, len: usize) {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..workers {
        let client = client.clone();
        tasks.spawn(async move {
            let data = pattern(worker as u64, len);
            for number in 0..each {
                let name = format!("{workers}-{len}-{worker}-{number}");
                let made = client.create(Ino::ROOT, name.as_bytes(), regular(), OpenFlags::default()).await.unwrap();
                client.write(&made.handle, 0, &data, false).await.unwrap();
                client.flush(&made.handle).await.unwrap();
                client.release(made.handle).await;
            }
        });
    }
    tasks.join_all().await;
    report(&format!("create + write {len} B + close, {workers} at once"), (workers * each) as f64, "file", started);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn figures() {
    warm_memory();
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    sequential(&cluster, &client, "first", 512).await;
    sequential(&cluster, &client, "second", 1024).await;
    random(&cluster, &client, 256).await;
    for (workers, each, len) in [(1, 1000, 0), (8, 500, 0), (1, 500, 16 << 10), (8, 200, 16 << 10), (8, 500, 1000)] {
        small_files(&client, workers, each, len).await;
    }
    client.shutdown().await.unwrap();
    cluster.embedded.stop().await;
}
