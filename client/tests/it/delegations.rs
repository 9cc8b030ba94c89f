//! Work under delegations: done in memory, sent in batches, and seen by every session that looks.

use crate::cluster::{Cluster, pattern, until};
use client::NewNode;
use client::{Client, ClientConfig, OpenFlags};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wire::FsError;
use wire::attr::{AttrChange, TimeChange, Timestamp};
use wire::ids::Ino;
use wire::op::{NewInode, RenameMode};

/// Files that are made where nobody else looks.
const FILES: u64 = 200;

fn node(node: NewInode) -> NewNode {
    NewNode { node, mode: 0o755, umask: 0, uid: 0, gid: 0 }
}

fn quiet(cluster: &Cluster) -> ClientConfig {
    let mut config = cluster.config();
    config.access_times = false;
    config
}

/// Connects a client with an empty directory, in which it works alone and knows that there are no names. metad knows the
/// directory: another client that uses its number without having looked it up would otherwise learn that it is not there.
async fn at_home(config: ClientConfig, name: &str) -> (Arc<Client>, Ino) {
    let client = Client::connect(config).await.unwrap();
    let home = OnceLock::new();
    until("the client works alone", || {
        let (client, home, name) = (client.clone(), &home, name.as_bytes());
        async move {
            let dir = client.make_node(Ino::ROOT, name, node(NewInode::Directory)).await.unwrap().ino;
            client.make_node(dir, b"first", node(NewInode::Regular)).await.unwrap();
            client.unlink(dir, b"first").await.unwrap();
            let before = client.requests();
            client.make_node(dir, b"second", node(NewInode::Regular)).await.unwrap();
            let alone = client.requests() == before;
            client.unlink(dir, b"second").await.unwrap();
            if alone {
                home.set(dir).unwrap();
            } else {
                client.rmdir(Ino::ROOT, name, None).await.unwrap();
            }
            alone
        }
    })
    .await;
    client.send_all().await.unwrap();
    (client, *home.get().unwrap())
}

/// Makes a file, writes to it, sets its times and closes it, as `tar` does.
async fn unpack(client: &Client, dir: Ino, name: &str, written: &[u8]) -> Ino {
    let opened = client.create(dir, name.as_bytes(), node(NewInode::Regular), OpenFlags::default()).await.unwrap();
    let ino = opened.attr.ino;
    client.write(&opened.handle, 0, written, false).await.unwrap();
    let old = Timestamp { secs: 1_000_000_000, nanos: 7 };
    let change = AttrChange { mtime: Some(TimeChange::To(old)), mode: Some(0o640), ..AttrChange::default() };
    let set = client.setattr(ino, change).await.unwrap();
    assert_eq!((set.mtime, set.mode, set.size), (old, 0o640, written.len() as u64));
    client.close(&opened.handle).await.unwrap();
    client.release(opened.handle).await;
    ino
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_one_client_unpacks_costs_it_few_requests_and_others_see_all_of_it() {
    let cluster = Cluster::start().await;
    // First, while another client arrives, for about a second, nobody works alone.
    let two = Client::connect(quiet(&cluster)).await.unwrap();
    let (one, dir) = at_home(quiet(&cluster), "home").await;
    let before = one.requests();
    for number in 0..FILES {
        unpack(&one, dir, &format!("file-{number}"), &pattern(number, 9000)).await;
    }
    let asked = one.requests() - before;
    assert!(asked < FILES / 2, "{asked} requests for {FILES} files");
    // Nothing has been waited for yet: a session that looks now waits.
    let listed = two.readdir(dir, 0, 1000, true).await.unwrap();
    assert_eq!(listed.entries.len() as u64, FILES);
    for entry in &listed.entries {
        let attr = two.getattr(entry.ino).await.unwrap();
        assert_eq!((attr.size, attr.mode, attr.mtime.secs), (9000, 0o640, 1_000_000_000));
        assert_eq!(one.getattr(entry.ino).await.unwrap(), attr, "both say the same");
    }
    for number in [0, 77, FILES - 1] {
        let found = two.lookup(dir, format!("file-{number}").as_bytes()).await.unwrap();
        let opened = two.open(found.ino, OpenFlags::default()).await.unwrap();
        assert_eq!(two.read(&opened.handle, 0, 10_000).await.unwrap(), pattern(number, 9000));
        two.release(opened.handle).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_that_are_sent_later_look_the_same_before_and_after() {
    let cluster = Cluster::start().await;
    let (one, dir) = at_home(quiet(&cluster), "home").await;
    let sub = one.make_node(dir, b"sub", node(NewInode::Directory)).await.unwrap().ino;
    for number in 0..20 {
        unpack(&one, sub, &format!("file-{number}"), &pattern(number, 100)).await;
    }
    one.rename((sub, b"file-3"), (dir, b"moved"), RenameMode::Replace, None).await.unwrap();
    one.rename((sub, b"file-4"), (sub, b"file-5"), RenameMode::Replace, None).await.unwrap();
    one.unlink(sub, b"file-6").await.unwrap();
    one.make_node(dir, b"link", node(NewInode::Symlink(b"sub/file-7".to_vec()))).await.unwrap();
    let mut seen = Vec::new();
    for (parent, name) in
        [(dir, "sub"), (dir, "moved"), (dir, "link"), (sub, "file-5"), (sub, "file-7"), (Ino::ROOT, "home")]
    {
        seen.push((parent, name, one.lookup(parent, name.as_bytes()).await.unwrap()));
    }
    assert_eq!(one.lookup(sub, b"file-6").await.err(), Some(FsError::NotFound));
    one.send_all().await.unwrap();
    let two = Client::connect(quiet(&cluster)).await.unwrap();
    for (parent, name, mut before) in seen {
        let after = two.lookup(parent, name.as_bytes()).await.unwrap();
        // Commits count versions, and determine the room that content takes.
        (before.version, before.allocated) = (after.version, after.allocated);
        assert_eq!(after, before, "{name}");
    }
    assert_eq!(two.lookup(sub, b"file-6").await.err(), Some(FsError::NotFound));
    assert_eq!(two.readdir(sub, 0, 100, false).await.unwrap().entries.len(), 17);
    assert_eq!(one.readlink(one.lookup(dir, b"link").await.unwrap().ino).await.unwrap(), b"sub/file-7");
}

/// Guards I7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_includes_everything_that_was_done_before() {
    let cluster = Cluster::start().await;
    let (one, dir) = at_home(quiet(&cluster), "home").await;
    for number in 0..50 {
        unpack(&one, dir, &format!("file-{number}"), &pattern(number, 5000)).await;
    }
    let last = one.create(dir, b"last", node(NewInode::Regular), OpenFlags::default()).await.unwrap();
    one.fsync(&last.handle).await.unwrap();
    let before = one.requests();
    one.send_all().await.unwrap();
    assert_eq!(one.requests(), before, "nothing is left to send");
    one.release(last.handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_by_one_client_alone_are_seen_by_the_other_at_once_whichever_begins() {
    let cluster = Cluster::start().await;
    let (one, dir) = at_home(quiet(&cluster), "home").await;
    let two = Client::connect(quiet(&cluster)).await.unwrap();
    for round in 0..30_u64 {
        let (maker, other) = if round % 10 < 5 { (&one, &two) } else { (&two, &one) };
        let (name, moved) = (format!("file-{round}"), format!("moved-{round}"));
        let ino = unpack(maker, dir, &name, &pattern(round, 300)).await;
        let found = other.lookup(dir, name.as_bytes()).await.unwrap();
        assert_eq!((found.ino, found.size, found.mode), (ino, 300, 0o640));
        maker.rename((dir, name.as_bytes()), (dir, moved.as_bytes()), RenameMode::NoReplace, None).await.unwrap();
        assert_eq!(other.lookup(dir, name.as_bytes()).await.err(), Some(FsError::NotFound));
        let opened =
            other.open(other.lookup(dir, moved.as_bytes()).await.unwrap().ino, OpenFlags::default()).await.unwrap();
        assert_eq!(other.read(&opened.handle, 0, 1000).await.unwrap(), pattern(round, 300));
        other.release(opened.handle).await;
        maker.unlink(dir, moved.as_bytes()).await.unwrap();
        assert_eq!(other.lookup(dir, moved.as_bytes()).await.err(), Some(FsError::NotFound));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_made_and_removed_again_and_again_before_it_is_sent() {
    let cluster = Cluster::start().await;
    let (one, dir) = at_home(quiet(&cluster), "home").await;
    for round in 0..100 {
        unpack(&one, dir, "again", &pattern(round, 50)).await;
        if round % 3 > 0 {
            one.unlink(dir, b"again").await.unwrap();
        } else {
            one.rename((dir, b"again"), (dir, b"kept"), RenameMode::Replace, None).await.unwrap();
        }
    }
    let two = Client::connect(quiet(&cluster)).await.unwrap();
    let listed = two.readdir(dir, 0, 100, false).await.unwrap().entries;
    assert_eq!(listed.iter().map(|entry| entry.name.as_slice()).collect::<Vec<_>>(), [b"kept"]);
    let opened = two.open(listed[0].ino, OpenFlags::default()).await.unwrap();
    assert_eq!(two.read(&opened.handle, 0, 100).await.unwrap(), pattern(99, 50));
    two.release(opened.handle).await;
    let _ = tokio::time::timeout(Duration::from_secs(10), one.shutdown()).await.unwrap();
}
