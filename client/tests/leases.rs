//! Answers from caches: none where nothing changes goes to metad, and none is old.

mod cluster;

use client::{Client, ClientConfig, OpenFlags};
use cluster::{Cluster, content, create, names, pattern, regular, until};
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
        if !opened.keep_cache {
            client.read(&opened.handle, 0, 100).await.unwrap();
        }
        client.release(opened.handle).await;
    }
    listed.entries.len()
}

/// Waits until a client holds leases: what it has asked once it does not ask again.
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
async fn what_was_asked_once_and_does_not_change_is_not_asked_again() {
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
        maker.rename(Ino::ROOT, name.as_bytes(), Ino::ROOT, moved.as_bytes(), RenameMode::Replace).await.unwrap();
        assert_eq!(other.lookup(Ino::ROOT, name.as_bytes()).await.err(), Some(FsError::NotFound));
        assert_eq!(other.lookup(Ino::ROOT, moved.as_bytes()).await.unwrap().ino, attr.ino);
        if round % 3 == 0 {
            maker.unlink(Ino::ROOT, moved.as_bytes()).await.unwrap();
            assert_eq!(other.lookup(Ino::ROOT, moved.as_bytes()).await.err(), Some(FsError::NotFound));
        }
    }
}

/// Whoever makes a file knows its attributes, and must hear of it when another session changes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_has_made_it_does_not_keep_when_another_changes_it() {
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
    let opening =
        MetaRequest::OpenSession { host: "h".to_owned(), purpose: "t".to_owned(), caches: true, resumes: None };
    let MetaReply::Session { session, .. } = ask(opening).await else { panic!("no session") };
    // It follows events, shows a sign of life, reads the file, and is silent from then on.
    let mut events = metad.open_events(&MetaRequest::Events { session, dirty: false }).await.unwrap();
    assert!(matches!(events.next::<MetaEvent>().await.unwrap(), MetaEvent::Attached { .. }));
    let sign = || MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
    until("its leases are extended", async || {
        matches!(ask(sign()).await, MetaReply::Alive { leases: LeaseState::Extended { .. }, .. })
    })
    .await;
    let extended = Instant::now();
    let read = MetaRequest::Read { session, read: Read::GetAttr { ino }, delegate: false };
    assert!(matches!(ask(read.clone()).await, MetaReply::Read { leased: true, .. }));
    let change = |mode| AttrChange { mode: Some(mode), ..AttrChange::default() };
    let changing = tokio::spawn({
        let (one, change) = (one.clone(), change(0o600));
        async move { one.setattr(ino, change).await }
    });
    let told = events.next::<MetaEvent>().await.unwrap();
    assert!(matches!(&told, MetaEvent::Recall { inos, .. } if *inos == [ino]), "{told:?}");
    assert!(matches!(ask(sign()).await, MetaReply::Alive { leases: LeaseState::Pending, .. }));
    assert!(matches!(ask(read).await, MetaReply::Read { leased: false, .. }), "it is changing");
    changing.await.unwrap().unwrap();
    let waited = extended.elapsed();
    assert!(
        waited > Duration::from_millis(LEASE_MS / 2) && waited < Duration::from_millis(LEASE_MS + 10_000),
        "{waited:?}"
    );
    // Nothing of it is held any more.
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
    assert_eq!(one.rmdir(Ino::ROOT, b"dir").await, Err(FsError::NotEmpty));
}
