//! The same commands on several replicas, on disk and in memory, and readers while commands are applied.

use super::plain;
use super::world::{World, block, bytes, commit, config, create};
use metad::fs::view::{KvExt, MemoryKv, View};
use metad::fs::{Command, Stamped, apply, check, read};
use metad::store::Store;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use wire::codec;
use wire::extent::{ExtentWrite, Source};
use wire::ids::{Ino, Version};
use wire::limits::{HEAD_BYTES_MAX, INLINE_BYTES_MAX};
use wire::op::{ConflictPolicy, NewInode, Op, Read, ReadReply, With};

const CACHE: u64 = 16 << 20;

/// Applies commands together, with one write.
fn apply_to(store: &Store, commands: &[Stamped], position: &[u8]) {
    let mut view = View::new(store);
    for command in commands {
        apply(&mut view, command);
    }
    store.apply(view.into_changes(), position);
}

/// Returns everything but the position.
fn content(store: &Store) -> MemoryKv {
    MemoryKv(store.pairs(vec![1]..vec![u8::MAX], usize::MAX).into_iter().collect())
}

fn snapshot_step(store: &Store, step: usize, read: &mut Option<MemoryKv>, done: &mut bool) {
    let Some(read) = read.as_mut().filter(|_| !*done) else { return };
    let pairs = store.next_of_snapshot(step).expect("one scan at a time");
    *done = pairs.is_empty();
    read.0.extend(pairs);
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn replicas_hold_the_same_bytes_and_a_snapshot_is_of_one_moment(
        steps in proptest::collection::vec(plain::step(), 1..40),
        group in 1_usize..9,
        begin in any::<prop::sample::Index>(),
        step in 1_usize..40,
    ) {
        let world = plain::run(&steps);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let store = Store::open(&path, CACHE).unwrap();
        let groups: Vec<&[Stamped]> = world.log.chunks(group).collect();
        let begin = begin.index(groups.len());
        let (mut expected, mut snapshot, mut done) = (MemoryKv::default(), None, false);
        for (index, commands) in groups.iter().enumerate() {
            apply_to(&store, commands, &index.to_be_bytes());
            if index == begin {
                expected = content(&store);
                prop_assert_eq!(store.begin_snapshot(), Some(index.to_be_bytes().to_vec()));
                snapshot = Some(MemoryKv::default());
            }
            snapshot_step(&store, step, &mut snapshot, &mut done);
        }
        while !done {
            snapshot_step(&store, step, &mut snapshot, &mut done);
        }
        prop_assert_eq!(snapshot.unwrap(), expected);
        prop_assert_eq!(&content(&store), &world.kv, "grouped on disk or one by one in memory");
        store.close().unwrap();
        drop(store);
        let store = Store::open(&path, CACHE).unwrap();
        prop_assert_eq!(&content(&store), &world.kv, "reopened");
        prop_assert_eq!(store.position(), Some((groups.len() - 1).to_be_bytes().to_vec()));
    }
}

/// Writes `pieces` runs of 16 bytes to a file.
fn pieces(ino: Ino, base: Version, pieces: u64) -> Op {
    let write = |index| ExtentWrite {
        file_off: index * 64 / pieces,
        len: 64 / pieces,
        source: Source::block(block(index as u8 + 1), 64, 0),
    };
    Op::Commit {
        ino,
        base,
        own: Vec::new(),
        writes: (0..pieces).map(write).collect(),
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::LastWriter,
    }
}

/// Guards I2.
#[test]
fn a_reader_never_sees_half_of_a_commit() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
    let made = world.log.len();
    for round in 0..600 {
        world.one(id, pieces(ino, Version(1), if round % 2 == 0 { 1 } else { 16 })).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state"), CACHE).unwrap();
    apply_to(&store, &world.log[..=made], b"made");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for command in &world.log[made + 1..] {
                apply_to(&store, std::slice::from_ref(command), b"written");
            }
            ended.store(true, Ordering::Release);
        });
        while !ended.load(Ordering::Acquire) {
            let page = read::read(&store, id, &Read::Extents { ino, off: 0, len: 64 });
            let Ok(ReadReply::Extents(page)) = page else { panic!("{page:?}") };
            let covered: u64 = page.extents.iter().map(|extent| extent.len).sum();
            assert_eq!((covered, page.size), (64, 64), "no hole and no overlap: {page:?}");
            assert!(page.extents.iter().all(|extent| extent.version == page.version), "all of one commit");
        }
    });
}

#[test]
fn a_page_of_inline_content_fits_a_message() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
    let len = INLINE_BYTES_MAX as u64;
    for index in 0..2500 {
        let source = Source::Inline(vec![(index % 251) as u8; INLINE_BYTES_MAX]);
        let base = world.version(ino);
        world.one(id, commit(ino, base, index * len, len, source, ConflictPolicy::Fail)).unwrap();
    }
    let reply = read::read(&world.kv, id, &Read::Open { ino }).unwrap();
    assert!(codec::encode(&reply).len() < HEAD_BYTES_MAX);
    let ReadReply::Opened { page, .. } = reply else { panic!() };
    assert!(page.more_from.is_some(), "the rest is on further pages");
    let read = bytes(&world.kv, ino);
    assert!((0..2500).all(|index| read[index * INLINE_BYTES_MAX] == (index % 251) as u8));
}

#[test]
fn the_content_of_a_removed_file_is_deleted_piece_by_piece() {
    let mut world = World::new();
    let id = world.session();
    let mut files = Vec::new();
    for (index, count) in [2000_u64, 10, 65, 64].into_iter().enumerate() {
        let name = format!("f{index}");
        let ino = world.create(id, Ino::ROOT, &name, NewInode::Regular);
        let write = |at| ExtentWrite { file_off: at * 16, len: 8, source: Source::block(block(1), 64, 0) };
        let writes = (0..count).map(write).collect();
        let policy = ConflictPolicy::Fail;
        let (append_from, mtime, clear_privileges) = (None, None, false);
        world
            .one(
                id,
                Op::Commit {
                    ino,
                    base: Version(1),
                    own: Vec::new(),
                    writes,
                    append_from,
                    mtime,
                    clear_privileges,
                    policy,
                },
            )
            .unwrap();
        files.push((name, ino));
    }
    let unlink = |(name, ino): &(String, Ino)| Op::Unlink {
        parent: Ino::ROOT,
        name: name.clone().into_bytes(),
        released: Some(*ino),
    };
    world.run(id, files.iter().map(unlink).collect()).unwrap();
    world.assert_sound();
    let extents = |world: &World| world.kv.0.keys().filter(|key| key[0] == b'E').count();
    assert!(extents(&world) > 1500, "one entry does a bounded part");
    let mut rounds = 0;
    while metad::fs::orphan::has_reaping(&world.kv) {
        world.apply(Command::Reap);
        world.assert_sound();
        rounds += 1;
    }
    assert_eq!(extents(&world), 0);
    assert!((4..=6).contains(&rounds), "{rounds}");
    assert_eq!(metad::fs::blockref::next_unreferenced(&world.kv, &mut None, u64::MAX, 10), [block(1)]);
}

/// Prints how fast files are made. `cargo test --release -p metad --test it -- --ignored --nocapture creates`
#[test]
#[ignore = "a measurement, of use with --release alone"]
fn creates_per_second() {
    const BATCHES: u64 = 2000;
    const OPS: u64 = 64;
    let mut world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state"), 256 << 20).unwrap();
    let id = world.session();
    apply_to(&store, &world.log, b"opened");
    world.log.clear();
    // After the range that the session got when it was opened.
    let mut number = Ino::FIRST_FREE.0 + 4096;
    for index in 0..BATCHES {
        let mut ops = Vec::new();
        if index % 64 == 0 {
            ops.push(Op::LeaseInos { count: 4096 });
        }
        for _ in 0..OPS {
            number += 1;
            ops.push(create(Ino::ROOT, &format!("file-{number}"), Ino(number - 1), NewInode::Regular));
        }
        let batch = world.batch(id, ops);
        let now = world.stamp();
        world.log.push(Stamped { now, command: Command::Batches(vec![(id, batch)]) });
    }
    let started = Instant::now();
    for commands in world.log.chunks(16) {
        apply_to(&store, commands, b"created");
    }
    let elapsed = started.elapsed();
    let made = metad::fs::settings::inode_count(&store) - 1;
    println!("{made} creates in {elapsed:?}: {:.0} per second", made as f64 / elapsed.as_secs_f64());
    assert_eq!(made, BATCHES * OPS);
    assert_eq!(check::check(&store), Vec::<String>::new());
    let started = Instant::now();
    let (mut after, mut listed) = (0, 0);
    loop {
        let question = Read::ReadDir { ino: Ino::ROOT, after, limit: 4096, with: With::Attributes };
        let Ok(ReadReply::Page { entries, end, .. }) = read::read(&store, id, &question) else { panic!("no page") };
        listed += entries.len();
        after = entries.last().map_or(0, |entry| entry.cookie);
        if end {
            break;
        }
    }
    println!("{listed} entries listed with attributes in {:?}", started.elapsed());
}
