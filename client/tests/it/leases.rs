//! Answers from caches: what does not change is not asked of metad, and no answer is old.

use crate::cluster::{Cluster, content, create, names, open, pattern, regular, until};
use client::{Client, ClientConfig, OpenFlags};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::FsError;
use wire::attr::AttrChange;
use wire::ids::{Ino, LayoutEpoch};
use wire::limits::LEASE_MS;
use wire::message::event::MetaEvent;
use wire::message::meta::{LeaseState, MetaReply, MetaRequest};
use wire::op::{NewInode, Read, RenameMode};
use wire::quic::Endpoint;
use wire::tls::Role;

const LIMIT: Duration = Duration::from_secs(10);

/// Walks a directory as `ls -l` and `git status` do, and reads each file.
async fn walk(client: &Client) -> usize {
    let listed = client.readdir(Ino::ROOT, 0, 1000, true).await.unwrap();
    for entry in &listed.entries {
        let attr = client.lookup(Ino::ROOT, &entry.name).await.unwrap();
        assert_eq!(client.getattr(attr.ino).await.unwrap().ino, entry.ino);
        let absent = [entry.name.as_slice(), b".absent"].concat();
        assert_eq!(client.lookup(Ino::ROOT, &absent).await.err(), Some(FsError::NotFound));
        let opened = client.open(attr.ino, OpenFlags::default()).await.unwrap();
        // This includes files that were closed since: the kernel does not cache all of them.
        assert_eq!(&client.read(&opened.handle, 0, 100).await.unwrap()[..], b"content");
        client.release(opened.handle).await;
    }
    listed.entries.len()
}

/// Waits until a client holds leases: until it does not ask again what it has asked once.
async fn leased(client: &Arc<Client>) {
    until("the client holds leases", || async {
        client.getattr(Ino::ROOT).await.unwrap();
        let before = client.requests();
        client.getattr(Ino::ROOT).await.unwrap();
        client.requests() == before
    })
    .await;
}

async fn leased_client(config: ClientConfig) -> Arc<Client> {
    let client = Client::connect(config).await.unwrap();
    leased(&client).await;
    client
}

fn still(cluster: &Cluster) -> ClientConfig {
    let mut config = cluster.config();
    config.access_times = false;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_not_asked_again_while_its_answer_does_not_change() {
    let cluster = Cluster::start().await;
    let (one, two) = (leased_client(still(&cluster)).await, leased_client(still(&cluster)).await);
    for number in 0..50 {
        let made = create(&one, &format!("file-{number}")).await;
        one.write(&made.handle, 0, b"content", false).await.unwrap();
        one.flush(&made.handle).await.unwrap();
        one.release(made.handle).await;
    }
    for client in [&one, &two] {
        assert_eq!(walk(client).await, 50);
        let before = client.requests();
        for _ in 0..3 {
            assert_eq!(walk(client).await, 50);
        }
        assert_eq!(client.requests() - before, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_seen_by_others_as_soon_as_its_call_has_returned() {
    let cluster = Cluster::start().await;
    let (one, two) = (leased_client(still(&cluster)).await, leased_client(still(&cluster)).await);
    for round in 0..100_u32 {
        let (maker, other) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let (name, moved) = (format!("file-{round}"), format!("moved-{round}"));
        assert_eq!(other.lookup(Ino::ROOT, name.as_bytes()).await.err(), Some(FsError::NotFound));
        let before = names(other).await.len();
        let made = create(maker, &name).await;
        let attr = other.lookup(Ino::ROOT, name.as_bytes()).await.unwrap();
        assert_eq!((attr.ino, names(other).await.len()), (made.attr.ino, before + 1));
        let written = pattern(u64::from(round), 100);
        maker.write(&made.handle, 0, &written, false).await.unwrap();
        maker.flush(&made.handle).await.unwrap();
        maker.release(made.handle).await;
        assert_eq!(other.getattr(attr.ino).await.unwrap().size, 100);
        assert_eq!(content(other, &name).await, written);
        let change = AttrChange { mode: Some(0o600 + (round & 7)), ..AttrChange::default() };
        maker.setattr(attr.ino, change).await.unwrap();
        assert_eq!(other.getattr(attr.ino).await.unwrap().mode, 0o600 + (round & 7));
        maker
            .rename((Ino::ROOT, name.as_bytes()), (Ino::ROOT, moved.as_bytes()), RenameMode::Replace, None)
            .await
            .unwrap();
        assert_eq!(other.lookup(Ino::ROOT, name.as_bytes()).await.err(), Some(FsError::NotFound));
        assert_eq!(other.lookup(Ino::ROOT, moved.as_bytes()).await.unwrap().ino, attr.ino);
        if round % 3 == 0 {
            maker.unlink(Ino::ROOT, moved.as_bytes()).await.unwrap();
            assert_eq!(other.lookup(Ino::ROOT, moved.as_bytes()).await.err(), Some(FsError::NotFound));
        }
    }
}

/// A client that makes a file knows its attributes, and must learn of a change by another session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_of_what_a_client_made_are_not_cached_when_another_changes_it() {
    let cluster = Cluster::start().await;
    let (maker, other) = (leased_client(still(&cluster)).await, leased_client(still(&cluster)).await);
    for round in 0..20_u32 {
        let made = create(&maker, &format!("file-{round}")).await;
        let ino = made.attr.ino;
        maker.release(made.handle).await;
        let change = AttrChange { mode: Some(0o600 + (round & 7)), ..AttrChange::default() };
        other.setattr(ino, change).await.unwrap();
        assert_eq!(maker.getattr(ino).await.unwrap().mode, 0o600 + (round & 7), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_change_one_directory_at_once_do_not_wait_for_each_other() {
    let cluster = Cluster::start().await;
    let (one, two) = (leased_client(still(&cluster)).await, leased_client(still(&cluster)).await);
    let started = Instant::now();
    let make = |client: Arc<Client>, who: &'static str| async move {
        for number in 0..200 {
            let name = format!("{who}-{number}");
            client.create(Ino::ROOT, name.as_bytes(), regular(), OpenFlags::default()).await.unwrap();
            assert!(names(&client).await.contains(&name));
        }
    };
    tokio::join!(make(one.clone(), "one"), make(two.clone(), "two"));
    assert_eq!(names(&one).await.len(), 400);
    assert_eq!(names(&two).await.len(), 400);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_a_client_that_has_gone_silent_until_its_leases_run_out() {
    let cluster = Cluster::start().await;
    let one = leased_client(still(&cluster)).await;
    let ino = create(&one, "file").await.attr.ino;
    let bundle = cluster.embedded.bundle();
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &bundle.identity).unwrap();
    let metad = endpoint.peer(bundle.metads[0], Role::Metad);
    let ask = async |request: MetaRequest| metad.request::<_, MetaReply>(&request, &[], LIMIT).await.unwrap().0;
    let opening = MetaRequest::OpenSession {
        host: "h".to_owned(),
        purpose: "t".to_owned(),
        caches: true,
        resumes: None,
        token: None,
    };
    let MetaReply::Session { session, .. } = ask(opening).await else { panic!("no session") };
    // It follows events, sends a keep-alive, reads the file, and is silent from then on.
    let mut events = metad.open_events(&MetaRequest::Events { session, dirty: false }).await.unwrap();
    assert!(matches!(events.next::<MetaEvent>().await.unwrap(), MetaEvent::Attached { .. }));
    let sign = || MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
    until("its leases are extended", async || {
        matches!(ask(sign()).await, MetaReply::Alive { leases: LeaseState::Extended { .. }, .. })
    })
    .await;
    let extended = Instant::now();
    let read = MetaRequest::Read { session, read: Read::GetAttr { ino }, delegate: false, sends: false, caller: None };
    assert!(matches!(ask(read.clone()).await, MetaReply::Read { leased: true, .. }));
    let change = |mode| AttrChange { mode: Some(mode), ..AttrChange::default() };
    let changing = tokio::spawn({
        let (one, change) = (one.clone(), change(0o600));
        async move { one.setattr(ino, change).await }
    });
    let event = events.next::<MetaEvent>().await.unwrap();
    assert!(matches!(&event, MetaEvent::Recall { inos, .. } if *inos == [ino]), "{event:?}");
    assert!(matches!(ask(sign()).await, MetaReply::Alive { leases: LeaseState::Pending, .. }));
    assert!(matches!(ask(read).await, MetaReply::Read { leased: false, .. }), "it is changing");
    changing.await.unwrap().unwrap();
    let waited = extended.elapsed();
    assert!(
        waited > Duration::from_millis(LEASE_MS / 2) && waited < Duration::from_millis(LEASE_MS + 10_000),
        "{waited:?}"
    );
    // None of its leases hold any more.
    let started = Instant::now();
    one.setattr(ino, change(0o640)).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(LEASE_MS / 2));
    endpoint.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_made_by_one_is_filled_by_the_other() {
    let cluster = Cluster::start().await;
    let (one, two) = (leased_client(still(&cluster)).await, leased_client(still(&cluster)).await);
    let mut node = regular();
    node.node = NewInode::Directory;
    let dir = one.make_node(Ino::ROOT, b"dir", node).await.unwrap();
    assert_eq!(one.lookup(dir.ino, b"file").await.err(), Some(FsError::NotFound));
    let found = two.lookup(Ino::ROOT, b"dir").await.unwrap();
    two.create(found.ino, b"file", regular(), OpenFlags::default()).await.unwrap();
    assert!(one.lookup(dir.ino, b"file").await.is_ok());
    assert_eq!(one.rmdir(Ino::ROOT, b"dir", None).await, Err(FsError::NotEmpty));
}

/// A walk through a tree, and lookups of one name after the other in a directory, are answered from what was asked
/// ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_and_a_row_of_lookups_take_a_question_for_many_entries_and_see_what_others_change() {
    let cluster = Cluster::start().await;
    let one = leased_client(still(&cluster)).await;
    let dir_node = || {
        let mut node = regular();
        (node.node, node.mode) = (NewInode::Directory, 0o755);
        node
    };
    let mut dirs = Vec::new();
    for number in 0..40 {
        let dir = one.make_node(Ino::ROOT, format!("dir-{number}").as_bytes(), dir_node()).await.unwrap();
        for file in 0..10 {
            one.make_node(dir.ino, format!("file-{file}").as_bytes(), regular()).await.unwrap();
        }
        dirs.push(dir.ino);
    }
    let flat = one.make_node(Ino::ROOT, b"flat", dir_node()).await.unwrap().ino;
    for file in 0..300 {
        one.make_node(flat, format!("file-{file}").as_bytes(), regular()).await.unwrap();
    }
    one.send_all().await.unwrap();

    let two = leased_client(still(&cluster)).await;
    let before = two.requests();
    let listed = two.readdir(Ino::ROOT, 0, 1024, true).await.unwrap();
    assert_eq!(listed.entries.len(), 41);
    for entry in listed.entries.iter().filter(|entry| entry.ino != flat) {
        assert_eq!(two.readdir(entry.ino, 0, 1024, true).await.unwrap().entries.len(), 10);
    }
    assert!(two.requests() - before < 10, "{} questions for 40 directories", two.requests() - before);

    one.make_node(dirs[7], b"another", regular()).await.unwrap();
    one.unlink(dirs[8], b"file-0").await.unwrap();
    assert_eq!(two.readdir(dirs[7], 0, 1024, true).await.unwrap().entries.len(), 11);
    assert_eq!(two.readdir(dirs[8], 0, 1024, true).await.unwrap().entries.len(), 9);

    let three = leased_client(still(&cluster)).await;
    three.getattr(flat).await.unwrap();
    for file in 0..10 {
        // The kernel does this on the way.
        three.getattr(flat).await.unwrap();
        three.lookup(flat, format!("file-{file}").as_bytes()).await.unwrap();
    }
    let mut at = 299;
    // Each asks for a name that was not asked for yet.
    let known = loop {
        let before = three.requests();
        three.lookup(flat, format!("file-{at}").as_bytes()).await.unwrap();
        if three.requests() == before {
            break at;
        }
        at -= 1;
    };
    let before = three.requests();
    for file in 10..known {
        three.lookup(flat, format!("file-{file}").as_bytes()).await.unwrap();
    }
    assert!(known > 100 && three.requests() - before < 10, "{} questions up to {known}", three.requests() - before);
    for client in [one, two, three] {
        client.shutdown().await.unwrap();
    }
}

/// Files that are read one after the other are asked about together, and what others write meanwhile is seen. Guards I5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_opened_one_after_the_other_take_a_question_for_many_of_them() {
    let cluster = Cluster::start().await;
    let one = leased_client(still(&cluster)).await;
    let name = |number: usize| format!("file-{number}");
    for number in 0..300 {
        let opened = create(&one, &name(number)).await;
        one.write(&opened.handle, 0, &pattern(number as u64, 5000), false).await.unwrap();
        one.release(opened.handle).await;
    }
    one.send_all().await.unwrap();

    let two = leased_client(still(&cluster)).await;
    // Each is a file that was not opened yet.
    let mut at = 0;
    let known = loop {
        // The kernel does this on the way.
        two.getattr(Ino::ROOT).await.unwrap();
        let before = two.requests();
        assert!(content(&two, &name(at)).await == pattern(at as u64, 5000));
        if two.requests() == before {
            break at;
        }
        at += 1;
    };
    let changed = open(&one, &name(250)).await;
    one.write(&changed.handle, 0, &pattern(1, 6000), false).await.unwrap();
    one.fsync(&changed.handle).await.unwrap();
    one.release(changed.handle).await;
    let before = two.requests();
    for number in known..300 {
        let expected = if number == 250 { pattern(1, 6000) } else { pattern(number as u64, 5000) };
        assert!(content(&two, &name(number)).await == expected, "file {number}");
    }
    assert!(known < 200, "{known} were asked about one by one");
    let asked = two.requests() - before;
    assert!(asked < 20, "{asked} questions for {} files", 300 - known);
    for client in [one, two] {
        client.shutdown().await.unwrap();
    }
}
