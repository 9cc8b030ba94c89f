//! Files of one and two clients, on real daemons.

use crate::cluster::{Cluster, content, create, names, open, pattern, regular, until};
use client::{Client, ClientConfig, OnConflict, OpenFlags, Opened};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::AttrChange;
use wire::ids::Ino;
use wire::op::{RangeAction, RenameMode};

/// Guards I5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_closed_on_one_client_is_seen_by_an_open_on_another() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.lazy_client().await);
    for (round, len) in [10, 5000, 300_000, 9 << 20].into_iter().enumerate() {
        let name = format!("file-{round}");
        let written = pattern(round as u64, len);
        let opened = create(&one, &name).await;
        assert_eq!(one.write(&opened.handle, 0, &written, false).await, Ok(len));
        assert_eq!(one.getattr(opened.attr.ino).await.unwrap().size, len as u64, "own writes are seen");
        one.flush(&opened.handle).await.unwrap();
        assert!(content(&two, &name).await == written);
        one.release(opened.handle).await;
        assert!(content(&one, &name).await == written);
    }
    one.shutdown().await.unwrap();
    two.shutdown().await.unwrap();
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_writers_to_the_same_bytes_the_second_gets_a_copy_and_an_error() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.lazy_client().await);
    let first = create(&one, "file").await;
    let second = open(&two, "file").await;
    one.write(&first.handle, 0, b"first", false).await.unwrap();
    two.write(&second.handle, 0, b"second", false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    assert_eq!(two.fsync(&second.handle).await, Err(FsError::Stale));
    assert_eq!(two.fsync(&second.handle).await, Ok(()), "it is reported once");
    assert_eq!(content(&two, "file").await, b"first");
    let names = names(&one).await;
    let copy = names.iter().find(|name| name.starts_with("file.conflict-")).expect("a copy");
    assert_eq!(content(&one, copy).await, b"second");
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_that_the_background_found_is_reported_by_close() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.client().await);
    let first = create(&one, "file").await;
    let second = open(&two, "file").await;
    two.write(&second.handle, 0, b"second", false).await.unwrap();
    one.write(&first.handle, 0, b"first", false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    until("a copy", || async { names(&one).await.len() == 2 }).await;
    // A handle that only reads does not take the error away.
    let reader = open(&two, "file").await;
    assert_eq!(two.seek(&reader.handle, 0, false).await, Ok(0));
    assert_eq!(two.flush(&second.handle).await, Err(FsError::Stale));
    // Later writes are based on the file as it is now.
    two.write(&second.handle, 0, b"third", false).await.unwrap();
    assert_eq!(two.flush(&second.handle).await, Ok(()));
    assert_eq!(content(&one, "file").await, b"third");
}

/// Guards I6: a part of it is committed while the next is written, and only the first one is in conflict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_a_writer_writes_after_a_conflict_is_in_one_copy() {
    const BLOCK: usize = 64 << 10;
    const WRITTEN: usize = 6 << 20;
    let cluster = Cluster::start().await;
    let one = cluster.lazy_client().await;
    let mut config = cluster.config();
    (config.window_bytes, config.block_bytes) = (8 << 20, BLOCK as u64);
    config.dirty_age = Duration::from_secs(3600);
    let two = Client::connect(config).await.unwrap();
    let (before, after) = (pattern(1, WRITTEN + BLOCK), pattern(2, WRITTEN));
    let first = create(&one, "file").await;
    one.write(&first.handle, 0, &before, false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    let second = open(&two, "file").await;
    two.write(&second.handle, 0, &after[..BLOCK], false).await.unwrap();
    one.write(&first.handle, 0, b"theirs", false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    for at in (BLOCK..WRITTEN).step_by(BLOCK) {
        two.write(&second.handle, at as u64, &after[at..at + BLOCK], false).await.unwrap();
        if at == WRITTEN / 2 {
            until("a part is committed", || async { names(&one).await.len() == 2 }).await;
        }
    }
    assert_eq!(two.flush(&second.handle).await, Err(FsError::Stale));
    assert_eq!(two.flush(&second.handle).await, Ok(()), "it was reported");
    let names = names(&one).await;
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(content(&one, "file").await == [b"theirs", &before[6..]].concat());
    // The order of a listing means nothing.
    let copy = names.iter().find(|name| *name != "file").unwrap();
    assert!(content(&one, copy).await == [&after[..], &before[WRITTEN..]].concat());
    // Later writes are based on the file as it is now.
    two.write(&second.handle, 0, b"mine", false).await.unwrap();
    assert_eq!(two.flush(&second.handle).await, Ok(()));
    assert_eq!(content(&one, "file").await[..6], *b"miners");
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_apart_are_merged_and_appends_follow_each_other() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.lazy_client().await);
    let first = create(&one, "file").await;
    let second = open(&two, "file").await;
    one.write(&first.handle, 0, b"one", false).await.unwrap();
    two.write(&second.handle, 3, b"two", false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    two.flush(&second.handle).await.unwrap();
    assert_eq!(content(&one, "file").await, b"onetwo");
    assert_eq!(&two.read(&second.handle, 0, 100).await.unwrap()[..], b"onetwo");
    let append = OpenFlags { append: true, ..OpenFlags::default() };
    let first = one.open(first.attr.ino, append).await.unwrap();
    let second = two.open(second.attr.ino, append).await.unwrap();
    one.write(&first.handle, 6, b"-A", false).await.unwrap();
    two.write(&second.handle, 6, b"-B", false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    two.flush(&second.handle).await.unwrap();
    two.write(&second.handle, 6, b"-C", false).await.unwrap();
    two.flush(&second.handle).await.unwrap();
    assert_eq!(content(&one, "file").await, b"onetwo-A-B-C");
}

/// Returns a file that two clients have open. The second one's content is in conflict, and its policy decides.
async fn in_conflict(cluster: &Cluster, mut config: ClientConfig, policy: OnConflict) -> (Arc<Client>, Opened) {
    let one = cluster.lazy_client().await;
    config.on_conflict = policy;
    let two = Client::connect(config).await.unwrap();
    let first = create(&one, "file").await;
    let second = open(&two, "file").await;
    one.write(&first.handle, 0, b"first", false).await.unwrap();
    two.write(&second.handle, 0, b"second", false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    (two, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_of_two_writers_overwrites_where_the_policy_says_so() {
    let cluster = Cluster::start().await;
    let (two, second) = in_conflict(&cluster, cluster.config(), OnConflict::LastWriter).await;
    assert_eq!(two.flush(&second.handle).await, Ok(()));
    assert_eq!(content(&two, "file").await, b"second");
    assert_eq!(names(&two).await, ["file"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_conflict_keeps_the_content_until_the_file_is_closed() {
    let cluster = Cluster::start().await;
    let (two, second) = in_conflict(&cluster, cluster.config(), OnConflict::Fail).await;
    assert_eq!(two.flush(&second.handle).await, Err(FsError::Stale));
    assert_eq!(&two.read(&second.handle, 0, 10).await.unwrap()[..], b"second");
    two.release(second.handle).await;
    assert_eq!(content(&two, "file").await, b"first");
    assert_eq!(names(&two).await, ["file"]);
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_on_writing_beside_another_is_not_in_conflict_with_itself() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client().await, cluster.lazy_client().await);
    let first = create(&one, "file").await;
    one.write(&first.handle, 0, &[b'.'; 30_000], false).await.unwrap();
    one.flush(&first.handle).await.unwrap();
    let second = open(&two, "file").await;
    for round in 0..40_u8 {
        let again = vec![round; 10_000];
        // The background commits some of it while the next is written.
        for _ in 0..20 {
            one.write(&first.handle, 0, &again, false).await.unwrap();
            tokio::task::yield_now().await;
        }
        two.write(&second.handle, 20_000, &again, false).await.unwrap();
        assert_eq!(two.flush(&second.handle).await, Ok(()), "round {round}");
        one.write(&first.handle, 0, &again, false).await.unwrap();
        let (flushed, written) = tokio::join!(one.flush(&first.handle), one.write(&first.handle, 0, &again, false),);
        assert_eq!((flushed, written), (Ok(()), Ok(10_000)), "round {round}");
    }
    one.flush(&first.handle).await.unwrap();
    assert_eq!(names(&two).await, ["file"]);
    let expected = [[39; 10_000], [b'.'; 10_000], [39; 10_000]].concat();
    assert!(content(&two, "file").await == expected);
}

/// The background commits full blocks as soon as there are many, and the partial one at the start with the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appended_content_is_in_order_though_full_blocks_are_committed_before_the_first_one() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    (config.window_bytes, config.block_bytes) = (8 << 20, 64 << 10);
    config.dirty_age = Duration::from_secs(3600);
    let client = Client::connect(config).await.unwrap();
    let written = pattern(1, 13_000_000);
    let (start, rest) = written.split_at(100_000);
    let opened = create(&client, "file").await;
    client.write(&opened.handle, 0, start, false).await.unwrap();
    client.flush(&opened.handle).await.unwrap();
    let flags = OpenFlags { append: true, ..OpenFlags::default() };
    let appending = client.open(opened.attr.ino, flags).await.unwrap();
    for part in rest.chunks(40_000) {
        client.write(&appending.handle, 0, part, false).await.unwrap();
    }
    assert_eq!(client.flush(&appending.handle).await, Ok(()));
    assert!(content(&client, "file").await == written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_goes_on_after_a_refusal_gets_the_error_and_holds_nobody_up() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    (config.window_bytes, config.dirty_age) = (8 << 20, Duration::from_secs(3600));
    let (two, second) = in_conflict(&cluster, config, OnConflict::Fail).await;
    // As much as may be uncommitted before writers wait.
    two.write(&second.handle, 0, &pattern(1, 8 << 20), false).await.unwrap();
    assert_eq!(two.flush(&second.handle).await, Err(FsError::Stale));
    assert_eq!(two.write(&second.handle, 9 << 20, b"more", false).await, Err(FsError::Stale));
    let other = create(&two, "other").await;
    for part in 0..20 {
        let content = pattern(part, 1 << 20);
        let written = two.write(&other.handle, part << 20, &content, false);
        tokio::time::timeout(Duration::from_secs(60), written).await.expect("there is room").unwrap();
    }
    two.flush(&other.handle).await.unwrap();
    two.release(second.handle).await;
    assert_eq!(content(&two, "file").await, b"first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_file_shows_what_another_client_writes_to_it() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.lazy_client().await);
    let first = create(&one, "file").await;
    let second = open(&two, "file").await;
    // Its stream of events is opened in the background.
    until("the change is seen", || async {
        one.write(&first.handle, 0, b"news", false).await.unwrap();
        one.flush(&first.handle).await.unwrap();
        &two.read(&second.handle, 0, 10).await.unwrap()[..] == b"news"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_is_there_until_it_is_closed() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let before = one.statfs().await.unwrap().inodes;
    let opened = create(&one, "file").await;
    let other = open(&two, "file").await;
    one.write(&opened.handle, 0, b"content", false).await.unwrap();
    one.flush(&opened.handle).await.unwrap();
    one.unlink(Ino::ROOT, b"file").await.unwrap();
    assert_eq!(one.lookup(Ino::ROOT, b"file").await, Err(FsError::NotFound));
    assert_eq!(&one.read(&opened.handle, 0, 10).await.unwrap()[..], b"content");
    one.write(&opened.handle, 0, b"changed", false).await.unwrap();
    one.release(opened.handle).await;
    two.write(&other.handle, 0, b"C", false).await.unwrap();
    two.flush(&other.handle).await.unwrap();
    assert_eq!(&two.read(&other.handle, 0, 10).await.unwrap()[..], b"Content");
    drop(other.handle);
    until("the inode is gone", || async { one.statfs().await.unwrap().inodes == before }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_written_anew_and_renamed_is_complete_under_its_name() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.lazy_client().await);
    let old = create(&one, "file").await;
    one.write(&old.handle, 0, b"old", false).await.unwrap();
    one.flush(&old.handle).await.unwrap();
    let new = create(&one, "file.new").await;
    one.write(&new.handle, 0, b"new content", false).await.unwrap();
    one.rename((Ino::ROOT, b"file.new"), (Ino::ROOT, b"file"), RenameMode::Replace, None).await.unwrap();
    assert_eq!(content(&two, "file").await, b"new content");
    assert_eq!(names(&two).await, ["file"]);
    assert_eq!(&one.read(&old.handle, 0, 10).await.unwrap()[..], b"old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_and_holes_are_found_and_ranges_are_copied_by_sharing() {
    let cluster = Cluster::start().await;
    let client = cluster.lazy_client().await;
    let opened = create(&client, "file").await;
    let far = 3_u64 << 30;
    client.write(&opened.handle, far, b"far away", false).await.unwrap();
    assert_eq!(client.seek(&opened.handle, 0, false).await, Ok(far));
    assert_eq!(client.seek(&opened.handle, 0, true).await, Ok(0));
    assert_eq!(client.seek(&opened.handle, far + 1, true).await, Ok(far + 8), "the end is a hole");
    assert_eq!(client.seek(&opened.handle, far + 8, false).await, Err(FsError::NoSuchDataOrHole));
    let target = create(&client, "copy").await;
    let copied = client.copy_range((&opened.handle, far + 4), (&target.handle, 2), 100).await;
    assert_eq!(copied, Ok(4), "up to the source's end");
    assert_eq!(&client.read(&target.handle, 0, 100).await.unwrap()[..], b"\0\0away");
    // Its own change of the target is no conflict for later writes.
    client.write(&target.handle, 0, b"go", false).await.unwrap();
    assert_eq!(client.flush(&target.handle).await, Ok(()));
    assert_eq!(content(&client, "copy").await, b"goaway");
}

/// One step of a random history.
async fn step(
    client: &Client,
    opened: &client::Opened,
    model: &mut Vec<u8>,
    rng: &mut SmallRng,
    log: &mut Vec<String>,
) {
    let size_max = 6_u64 << 20;
    let offset = if rng.random_bool(0.5) { rng.random_range(0..size_max) } else { rng.random_range(0..64) * 4096 };
    let len = *[10_usize, 4096, 70_000, 1 << 20].get(rng.random_range(0..4)).unwrap();
    match rng.random_range(0..20) {
        0..=8 => {
            let data = pattern(rng.random(), len);
            log.push(format!("write {offset} {len}"));
            client.write(&opened.handle, offset, &data, false).await.unwrap();
            let end = offset as usize + len;
            model.resize(model.len().max(end), 0);
            model[offset as usize..end].copy_from_slice(&data);
        }
        9..=14 => {
            log.push(format!("read {offset} {len}"));
            let read = client.read(&opened.handle, offset, len).await.unwrap();
            let end = (offset as usize + len).min(model.len());
            let expected = model.get(offset as usize..end).unwrap_or_default();
            assert!(read == expected, "differs: {log:?}");
        }
        15 => {
            log.push("flush".to_owned());
            client.flush(&opened.handle).await.unwrap();
        }
        16 | 17 => {
            log.push(format!("truncate {offset}"));
            let change = AttrChange { size: Some(offset), ..AttrChange::default() };
            let attr = client.setattr(opened.attr.ino, change).await.unwrap();
            assert_eq!(attr.size, offset);
            model.resize(offset as usize, 0);
        }
        18 => {
            log.push(format!("punch {offset} {len}"));
            client.fallocate(&opened.handle, offset, len as u64, RangeAction::Punch).await.unwrap();
            let end = (offset as usize + len).min(model.len());
            if let Some(hole) = model.get_mut(offset as usize..end) {
                hole.fill(0);
            }
        }
        _ => {
            let attr = client.getattr(opened.attr.ino).await.unwrap();
            assert_eq!(attr.size, model.len() as u64, "size differs: {log:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_reads_as_a_byte_array_would_through_two_handles_while_the_background_commits() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    config.dirty_age = Duration::from_millis(3);
    config.window_bytes = 8 << 20;
    let client = Client::connect(config).await.unwrap();
    let reader = cluster.client().await;
    for seed in 0..6 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let name = format!("file-{seed}");
        let opened = create(&client, &name).await;
        let again = client.open(opened.handle.ino(), OpenFlags::default()).await.unwrap();
        let (mut model, mut log) = (Vec::new(), Vec::new());
        for _ in 0..250 {
            let through = if rng.random_bool(0.5) { &opened } else { &again };
            step(&client, through, &mut model, &mut rng, &mut log).await;
        }
        client.flush(&again.handle).await.unwrap();
        client.flush(&opened.handle).await.unwrap();
        assert!(content(&reader, &name).await == model, "differs at the end: {log:?}");
        client.release(opened.handle).await;
        client.release(again.handle).await;
    }
    assert_eq!(names(&client).await.len(), 6, "nothing was in conflict with itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_creators_at_once_make_every_file_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let before = client.statfs().await.unwrap().inodes;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let client: Arc<Client> = client.clone();
        tasks.spawn(async move {
            for number in 0..100 {
                let name = format!("{worker}-{number}");
                let made = client.create(Ino::ROOT, name.as_bytes(), regular(), OpenFlags::default()).await.unwrap();
                client.flush(&made.handle).await.unwrap();
                client.release(made.handle).await;
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(client.statfs().await.unwrap().inodes, before + 800);
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_based_on_what_others_wrote_while_its_content_came() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.lazy_client().await, cluster.lazy_client().await);
    let first = create(&one, "file").await;
    one.write(&first.handle, 0, b"before", false).await.unwrap();
    one.fsync(&first.handle).await.unwrap();
    for round in 0..5 {
        let second = open(&two, "file").await;
        let comes = Box::pin(async {
            two.write(&second.handle, 0, b"others", false).await?;
            two.fsync(&second.handle).await?;
            Ok(b"mine")
        });
        assert_eq!(one.write_content(&first.handle, 0, (4, comes), false).await, Ok(4));
        assert_eq!(one.fsync(&first.handle).await, Ok(()), "round {round}: it is in conflict with what came before");
        two.release(second.handle).await;
        assert_eq!(content(&two, "file").await, b"miners");
    }
    assert_eq!(names(&one).await, ["file"], "no conflict copy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_whose_content_does_not_come_keep_no_room_from_others() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    config.window_bytes = 8 << 20;
    let client = Client::connect(config).await.unwrap();
    let (waiting, other) = (create(&client, "waiting").await, create(&client, "other").await);
    let (comes, coming) = tokio::sync::oneshot::channel::<Vec<u8>>();
    let late = async { coming.await.map_err(|_| FsError::Io) };
    let waits = client.write_content(&waiting.handle, 0, (9 << 20, late), false);
    let others = async {
        let written = pattern(1, 100_000);
        let write = client.write(&other.handle, 0, &written, false);
        let count = tokio::time::timeout(Duration::from_secs(20), write).await.expect("it finds room");
        assert_eq!(count, Ok(written.len()));
        comes.send(pattern(2, 9 << 20)).unwrap();
    };
    let (count, ()) = tokio::join!(waits, others);
    assert_eq!(count, Ok(9 << 20));
    client.fsync(&waiting.handle).await.unwrap();
    assert!(content(&client, "waiting").await == pattern(2, 9 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soft_mount_waits_for_content_no_longer_than_its_patience() {
    let cluster = Cluster::start().await;
    let mut config = cluster.config();
    config.soft_timeout = Some(Duration::from_millis(300));
    let client = Client::connect(config).await.unwrap();
    let opened = create(&client, "file").await;
    let never = std::future::pending::<Result<Vec<u8>, FsError>>();
    let write = client.write_content(&opened.handle, 0, (10, never), false);
    let written = tokio::time::timeout(Duration::from_secs(20), write).await.expect("patience ends");
    assert_eq!(written, Err(FsError::Io));
    assert_eq!(client.write(&opened.handle, 0, b"next", false).await, Ok(4), "its room is free again");
}
