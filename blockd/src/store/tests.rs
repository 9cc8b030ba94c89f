//! The store on a disk whose power is cut at any moment.

mod damage;
mod disk;
mod parts;
mod prewrite;
mod replacing;
mod small;
mod turns;
mod versions;

use super::{Error, Party, Store, StoreOptions};
use bytes::Bytes;
pub(crate) use disk::TestDisk;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wire::ids::BlockHash;
use wire::sections::Sections;

const DIR: &str = "/store";
const SEGMENT_BYTES: u64 = 256 << 10;

fn open(disk: &TestDisk) -> Store {
    open_with(disk, SEGMENT_BYTES)
}

fn open_with(disk: &TestDisk, segment_bytes: u64) -> Store {
    open_as(disk, StoreOptions { segment_bytes, reserve_bytes: 0 })
}

fn open_as(disk: &TestDisk, options: StoreOptions) -> Store {
    Store::open_on(Path::new(DIR), options, Arc::new(disk.clone())).unwrap()
}

/// Some of the blocks are long enough for a trailer.
fn block(number: u16) -> (BlockHash, Bytes) {
    let large = if number % 8 == 7 { 64 << 10 } else { 0 };
    let len = large + usize::from(number) * 37 % 9000 + 1;
    let content: Vec<u8> = (0..len).map(|i| (i as u8) ^ (number as u8)).collect();
    let content = [number.to_le_bytes().to_vec(), content].concat();
    (BlockHash::of(&content), Bytes::from(content))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u16),
    Drop(u16),
    Compact,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u16..24).prop_map(Step::Put),
        4 => (0_u16..24).prop_map(Step::Drop),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Guards I9.
    #[test]
    fn acknowledged_puts_and_drops_survive_a_power_cut(
        steps in proptest::collection::vec(step(), 1..60),
        calls in 0_u64..150,
        luck: u64,
    ) {
        let runtime = runtime();
        let disk = TestDisk::new();
        let mut store = open(&disk);
        // Some(true): acknowledged as stored; Some(false): as dropped; None: not acknowledged.
        let mut known: BTreeMap<u16, Option<bool>> = BTreeMap::new();
        disk.cut_after(calls);
        for step in &steps {
            match step {
                Step::Put(number) => {
                    let (hash, content) = block(*number);
                    let stored = runtime.block_on(store.put(hash, content)).is_ok();
                    known.insert(*number, stored.then_some(true));
                }
                Step::Drop(number) => {
                    let dropped = runtime.block_on(store.drop_block(block(*number).0));
                    known.insert(*number, dropped.is_ok().then_some(false));
                }
                Step::Compact => {
                    let _ = runtime.block_on(store.compact_step(&mut Vec::new()));
                }
                Step::Reopen => {
                    if disk.0.left.load(Ordering::SeqCst) > 1000 {
                        drop(store);
                        store = open(&disk);
                    }
                }
            }
        }
        drop(store);
        disk.power_on(luck);
        let store = open(&disk);
        for (number, state) in known {
            let (hash, content) = block(number);
            let found = runtime.block_on(store.get(hash)).unwrap();
            let part = runtime.block_on(store.get_part(hash, 1, 3)).unwrap();
            prop_assert_eq!(part.map(|(_, part)| part), found.as_ref().map(|found| found.slice(1..4.min(found.len()))));
            match state {
                Some(true) => prop_assert_eq!(found, Some(content)),
                Some(false) => prop_assert_eq!(found, None),
                None => prop_assert!(found.is_none_or(|found| found == content)),
            }
        }
    }

    #[test]
    fn one_flipped_bit_harms_no_other_block_and_is_never_served(at in 0_usize..1_000_000, puts in 1_u16..20) {
        let runtime = runtime();
        let disk = TestDisk::new();
        let store = open(&disk);
        for number in 0..puts {
            let (hash, content) = block(number);
            runtime.block_on(store.put(hash, content)).unwrap();
        }
        drop(store);
        let segments = disk.segments();
        let path = &segments[at % segments.len()];
        let len = disk.0.files.lock()[path].stable.len();
        disk.flip(path, at % len);
        let store = open(&disk);
        let mut lost = 0;
        for number in 0..puts {
            let (hash, content) = block(number);
            let from = content.len() / 2;
            if let Ok(Some((_, part))) = runtime.block_on(store.get_part(hash, from as u32, 100)) {
                prop_assert_eq!(part, content.slice(from..content.len().min(from + 100)));
            }
            match runtime.block_on(store.get(hash)) {
                Ok(Some(found)) => prop_assert_eq!(found, content),
                Ok(None) => lost += 1,
                Err(Error::Corrupt { .. }) => {
                    lost += 1;
                    prop_assert!(runtime.block_on(store.put(hash, content.clone())).unwrap(), "it can be repaired");
                    prop_assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content));
                }
                Err(error) => panic!("{error}"),
            }
        }
        prop_assert!(lost <= 1);
    }
}

#[test]
fn a_full_disk_fills_its_last_segment_refuses_puts_and_serves_what_is_there() {
    let runtime = runtime();
    let disk = TestDisk::new();
    let store = open(&disk);
    let (first, content) = block(1);
    runtime.block_on(store.put(first, content)).unwrap();
    disk.0.free.store(0, Ordering::SeqCst);
    // Once there is no room for a block, there is none for a longer one. Shorter ones fill the segment up.
    let (mut refused, mut stored) = (usize::MAX, 0);
    for number in 2..120 {
        let (hash, content) = block(number);
        let len = content.len();
        match runtime.block_on(store.put(hash, content)) {
            Ok(_) => {
                assert!(len < refused, "{len} bytes were stored after {refused} were refused");
                stored += usize::from(refused < usize::MAX);
            }
            Err(error) => {
                assert!(error.is_no_space() && !store.has_room_for(len as u32), "{error}");
                refused = refused.min(len);
            }
        }
    }
    assert!(refused < 5000 && stored > 0, "{stored} blocks were stored beyond one that was refused");
    assert_eq!(disk.segments().len(), 1);
    assert!(!store.has_room_for(refused as u32));
    disk.0.free.store(u64::MAX / 2, Ordering::SeqCst);
    assert!(store.has_room_for(refused as u32), "there is room again, though nobody has stored anything yet");
    let (hash, content) = block(120);
    assert!(runtime.block_on(store.put(hash, content)).unwrap() && store.has_room_for(refused as u32));
    assert!(runtime.block_on(store.get(first)).unwrap().is_some());
}

#[test]
fn a_disk_that_is_full_to_the_reserve_takes_no_block_and_drops_and_compacts() {
    let runtime = runtime();
    let disk = TestDisk::new();
    let options = StoreOptions { segment_bytes: SEGMENT_BYTES, reserve_bytes: 4 * SEGMENT_BYTES };
    let store = open_as(&disk, options.clone());
    for number in 0..100 {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).unwrap();
    }
    disk.0.free.store(options.reserve_bytes, Ordering::SeqCst);
    let refused = |number| {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).is_err_and(|error| error.is_no_space())
    };
    assert!((100..160).any(refused), "the open segment takes a few");
    for number in (0..100).filter(|number| number % 5 != 0) {
        assert!(runtime.block_on(store.drop_block(block(number).0)).unwrap());
    }
    disk.0.free.store(options.reserve_bytes - SEGMENT_BYTES, Ordering::SeqCst);
    assert!(refused(200), "what was made for dropping takes no new block");
    let before = disk.segments().len();
    while runtime.block_on(store.compact_step(&mut Vec::new())).unwrap().is_some() {}
    assert!(disk.segments().len() < before, "{before} segments became {}", disk.segments().len());
    disk.0.free.store(u64::MAX / 2, Ordering::SeqCst);
    assert!(!refused(200));
    for number in (0..100).step_by(5) {
        assert!(runtime.block_on(store.get(block(number).0)).unwrap().is_some());
    }
}

#[test]
fn the_last_room_of_a_disk_is_used_by_smaller_segments() {
    let runtime = runtime();
    let disk = TestDisk::new();
    let (segment_bytes, reserve_bytes) = (64 << 20, 1 << 20);
    let store = open_as(&disk, StoreOptions { segment_bytes, reserve_bytes });
    disk.0.free.store(reserve_bytes + (20 << 20), Ordering::SeqCst);
    let (hash, content) = block(1);
    runtime.block_on(store.put(hash, content.clone())).unwrap();
    assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content));
}

#[test]
fn compaction_gives_back_the_space_of_dropped_blocks_and_keeps_the_others() {
    let runtime = runtime();
    let disk = TestDisk::new();
    let store = open(&disk);
    for number in 0..200 {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).unwrap();
    }
    for number in (0..200).filter(|number| number % 5 != 0) {
        assert!(runtime.block_on(store.drop_block(block(number).0)).unwrap());
    }
    let before = disk.segments().len();
    while runtime.block_on(store.compact_step(&mut Vec::new())).unwrap().is_some() {}
    assert!(disk.segments().len() < before / 2, "{before} segments became {}", disk.segments().len());
    drop(store);
    let store = open(&disk);
    for number in 0..200 {
        let (hash, content) = block(number);
        let found = runtime.block_on(store.get(hash)).unwrap();
        assert_eq!(found, (number % 5 == 0).then_some(content));
    }
}

#[test]
fn a_store_knows_how_long_its_disk_takes() {
    let (disk, runtime) = (TestDisk::new(), runtime());
    let store = open(&disk);
    assert_eq!(store.sync_time(), None);
    // One after the other, each is a group of its own.
    for number in 0..20 {
        let (hash, content) = block(number);
        runtime.block_on(store.put(hash, content)).unwrap();
    }
    assert!(store.sync_time().is_some_and(|time| time < std::time::Duration::from_secs(60)));
}

#[test]
fn a_real_directory_holds_blocks_over_a_restart() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { segment_bytes: 8 << 20, reserve_bytes: 0 };
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let large = Bytes::from(vec![5; 4 << 20]);
    let blocks: Vec<(BlockHash, Bytes)> = (0..50).map(block).chain([(BlockHash::of(&large), large)]).collect();
    for (hash, content) in &blocks {
        assert!(runtime.block_on(store.put(*hash, content.clone())).unwrap());
        assert!(!runtime.block_on(store.put(*hash, content.clone())).unwrap(), "the second time costs nothing");
    }
    drop(store);
    let store = Store::open(dir.path(), options).unwrap();
    for (hash, content) in blocks {
        assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content));
    }
}

#[test]
#[ignore = "measures: cargo test --release -p blockd --lib -- --ignored --nocapture"]
fn throughput_of_puts() {
    let runtime = runtime();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Arc::new(Store::open(dir.path(), StoreOptions::default()).unwrap());
    for (len, count, lanes) in [(4 << 20, 256_u32, 4), (4 << 10, 8192, 64), (4 << 10, 2000, 1)] {
        let blocks: Vec<Bytes> = (0..count)
            .map(|number| {
                let mut content = vec![len as u8; len];
                content[..4].copy_from_slice(&number.to_le_bytes());
                content[4] = lanes;
                Bytes::from(content)
            })
            .collect();
        let named: Vec<_> = blocks
            .into_iter()
            .map(|content| {
                let (hash, sections) = Sections::of(&content);
                (hash, content, sections)
            })
            .collect();
        let started = std::time::Instant::now();
        runtime.block_on(async {
            let lanes: Vec<_> = (0..usize::from(lanes))
                .map(|lane| {
                    let (store, step) = (store.clone(), usize::from(lanes));
                    let mine: Vec<_> = named.iter().skip(lane).step_by(step).cloned().collect();
                    tokio::spawn(async move {
                        for (hash, content, sections) in mine {
                            store.put_with_sections(Party::Repair, hash, content, sections).await.unwrap();
                        }
                    })
                })
                .collect();
            for lane in lanes {
                lane.await.unwrap();
            }
        });
        let took = started.elapsed();
        let mb = f64::from(count) * len as f64 / 1e6 / took.as_secs_f64();
        println!("{len} B x {count}, {lanes} in flight: {mb:.0} MB/s, {:?} each", took / count);
    }
}

#[test]
#[ignore = "measures: cargo test --release -p blockd --lib -- --ignored --nocapture"]
fn latency_of_small_puts_one_after_the_other() {
    let runtime = runtime();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let mut took: Vec<std::time::Duration> = (0..1000_u32)
        .map(|number| {
            let content = Bytes::from(number.to_le_bytes().repeat(1024));
            let hash = BlockHash::of(&content);
            let started = std::time::Instant::now();
            runtime.block_on(store.put(hash, content)).unwrap();
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    println!("4096 B: median {:?}, 90 % below {:?}, 99 % below {:?}", took[500], took[900], took[990]);
}
