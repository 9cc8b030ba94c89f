//! Sessions that end, leaders that change, chunks in many pieces: work behind the files.

use crate::cluster::{Cluster, content, create, names, open, pattern, until};
use client::network::Network;
use client::{Client, ClientConfig, Error, Wait};
use embed::EmbedOptions;
use futures::FutureExt;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::ids::SessionId;
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::{ExtentPage, Lock, LockFamily, Read, ReadReply};
use wire::quic::Endpoint;
use wire::tls::Role;

const ASK: Duration = Duration::from_secs(5);

/// Asks metad beside the client, in another role or in the client's name.
async fn ask(cluster: &Cluster, admin: bool, request: &MetaRequest) -> MetaReply {
    let bundle = if admin { cluster.embedded.admin_bundle() } else { cluster.embedded.bundle() };
    let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &bundle.identity).unwrap();
    for addr in bundle.metads.iter().cycle().take(30) {
        match endpoint.peer(*addr, Role::Metad).request::<_, MetaReply>(request, &[], ASK).await {
            Ok((MetaReply::NotLeader { .. }, _)) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Ok((reply, _)) => {
                endpoint.close().await;
                return reply;
            }
        }
    }
    panic!("no leader answers");
}

async fn status(cluster: &Cluster) -> ClusterStatus {
    match ask(cluster, true, &MetaRequest::Admin(AdminRequest::Status)).await {
        MetaReply::Admin(AdminReply::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

async fn sessions(cluster: &Cluster) -> BTreeSet<SessionId> {
    status(cluster).await.sessions.into_iter().map(|(id, ..)| id).collect()
}

async fn extents(cluster: &Cluster, read: Read) -> ExtentPage {
    let session = *sessions(cluster).await.first().unwrap();
    match ask(cluster, false, &MetaRequest::Read { session, read, delegate: false, sends: false, caller: None }).await {
        MetaReply::Read { answer: Ok(ReadReply::Extents(page)), .. } => page,
        other => panic!("{other:?}"),
    }
}

/// This includes work that waits for tasks that end with the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_dropped_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let config = cluster.config();
    let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &config.bundle.identity).unwrap();
    let network: Arc<dyn Network> = Arc::new(endpoint);
    let left = Arc::downgrade(&network);
    let client = Client::connect_over(config, network, None).await.unwrap();
    for name in ["one", "two"] {
        let opened = create(&client, name).await;
        client.write(&opened.handle, 0, b"written", false).await.unwrap();
        assert!(client.sync_all().now_or_never().is_none(), "it waits for metad");
    }
    drop(client);
    until("everything of it is gone", || async { left.strong_count() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_session_ended_goes_on_with_a_new_one() {
    let cluster = Cluster::start().await;
    let client = cluster.lazy_client().await;
    let opened = create(&client, "file").await;
    client.write(&opened.handle, 0, b"before", false).await.unwrap();
    client.flush(&opened.handle).await.unwrap();
    client.write(&opened.handle, 6, b" and after", false).await.unwrap();
    let session = *sessions(&cluster).await.first().unwrap();
    ask(&cluster, false, &MetaRequest::CloseSession { session }).await;
    create(&client, "other").await;
    assert_eq!(client.fsync(&opened.handle).await, Ok(()));
    assert_eq!(content(&client, "file").await, b"before and after");
    assert_eq!(names(&client).await.len(), 2);
    assert!(!sessions(&cluster).await.contains(&session));
    client.shutdown().await.unwrap();
    assert!(sessions(&cluster).await.is_empty());
}

/// Guards I1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_leave_the_session_in_order() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let before = sessions(&cluster).await;
    for number in 0..300_u32 {
        // The caller gives up at any point between the request and the answer.
        let limit = Duration::from_micros(u64::from(number) * 5);
        let _ = tokio::time::timeout(limit, create(&client, &format!("file-{number}"))).await;
    }
    for number in 0..3000_u32 {
        let name = format!("file-{}", number % 300);
        let _ = client.lookup(wire::ids::Ino::ROOT, name.as_bytes()).await;
    }
    create(&client, "last").await;
    assert_eq!(sessions(&cluster).await, before, "no new session was needed");
    let listed = names(&client).await;
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_in_many_pieces_is_joined_and_reads_the_same() {
    let cluster = Cluster::start().await;
    let client = cluster.lazy_client().await;
    let opened = create(&client, "file").await;
    let ino = opened.attr.ino;
    let mut model = pattern(1, 6 << 20);
    client.write(&opened.handle, 0, &model, false).await.unwrap();
    client.flush(&opened.handle).await.unwrap();
    let piece = pattern(2, 1000);
    for number in 0..700 {
        let at = number * 8192;
        client.write(&opened.handle, at as u64, &piece, false).await.unwrap();
        model[at..at + piece.len()].copy_from_slice(&piece);
    }
    client.flush(&opened.handle).await.unwrap();
    let before = client.getattr(ino).await.unwrap();
    let list = || extents(&cluster, Read::Extents { ino, off: 0, len: u64::MAX });
    assert!(list().await.extents.len() > 1024);
    until("few extents", || async { list().await.extents.len() < 10 }).await;
    let after = client.getattr(ino).await.unwrap();
    assert_eq!((after.size, after.mtime), (before.size, before.mtime));
    assert!(content(&client, "file").await == model);
    assert!(content(&*cluster.client().await, "file").await == model);
    // The next write is based on the joined version.
    client.write(&opened.handle, 0, b"x", false).await.unwrap();
    assert_eq!(client.flush(&opened.handle).await, Ok(()));
    assert_eq!(names(&client).await, ["file"]);
}

/// Guards I9.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_are_written_and_any_of_them_read() {
    let cluster = Cluster::of(EmbedOptions { metads: 3, blockds: 3, replicas: 3 }).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let opened = create(&one, "file").await;
    let written = pattern(5, 10 << 20);
    one.write(&opened.handle, 0, &written, false).await.unwrap();
    one.fsync(&opened.handle).await.unwrap();
    assert!(content(&two, "file").await == written);
    let half = open(&two, "file").await;
    // Scattered reads fetch only their part of a block.
    for at in [9 << 20, 100, 5 << 20, 4 << 20] {
        let read = two.read(&half.handle, at as u64, 5000).await.unwrap();
        assert!(read == written[at..at + 5000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_waited_for_until_another_client_releases_it() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let first = create(&one, "file").await;
    let second = open(&two, "file").await;
    let ino = first.attr.ino;
    let lock = |pid| Lock { family: LockFamily::Posix, owner: 1, pid, start: 0, end: u64::MAX, exclusive: true };
    one.setlk(ino, lock(1), Wait::No).await.unwrap().confirm(&one);
    assert_eq!(two.setlk(ino, lock(2), Wait::No).await.err(), Some(FsError::WouldBlock));
    assert_eq!(two.getlk(ino, lock(2)).await.unwrap().map(|held| held.pid), Some(1));
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.setlk(ino, lock(2), Wait::Yes).await.map(|taken| taken.confirm(&two)) }
    });
    one.write(&first.handle, 0, b"under the lock", false).await.unwrap();
    one.unlock(ino, LockFamily::Posix, 1, 0, u64::MAX).await.unwrap();
    waiting.await.unwrap().unwrap();
    // Taking the lock shows what its last holder wrote.
    assert_eq!(&two.read(&second.handle, 0, 100).await.unwrap()[..], b"under the lock");
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_ended_with_its_session_counts_as_lost_until_it_is_given_up() {
    const OWNERS: fn() -> Vec<u64> = || vec![1];
    let cluster = Cluster::start().await;
    let one = cluster.client().await;
    let ino = create(&one, "file").await.attr.ino;
    let lock = |pid| Lock { family: LockFamily::Flock, owner: 1, pid, start: 0, end: u64::MAX, exclusive: true };
    one.setlk(ino, lock(1), Wait::No).await.unwrap().confirm(&one);
    let session = *sessions(&cluster).await.first().unwrap();
    ask(&cluster, false, &MetaRequest::CloseSession { session }).await;
    let two = cluster.client().await;
    two.setlk(ino, lock(2), Wait::No).await.unwrap().confirm(&two);
    // The client learns this by itself.
    until("the lock is known to be lost", async || one.has_lost_locks(ino, OWNERS)).await;
    assert_eq!(one.setlk(ino, lock(1), Wait::No).await.err(), Some(FsError::WouldBlock));
    assert!(one.has_lost_locks(ino, OWNERS) && !one.has_lost_locks(ino, || vec![2]));
    one.unlock(ino, LockFamily::Flock, 1, 0, u64::MAX).await.unwrap();
    assert!(!one.has_lost_locks(ino, OWNERS));
    assert_eq!(two.getlk(ino, lock(3)).await.unwrap(), None, "nobody but its holder is in the way");
    two.unlock(ino, LockFamily::Flock, 1, 0, u64::MAX).await.unwrap();
    one.setlk(ino, lock(1), Wait::No).await.unwrap().confirm(&one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_cannot_enter_gets_the_reason() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let mut bundle = cluster.embedded.bundle().clone();
    bundle.metads.clone_from(&other.embedded.bundle().metads);
    let error = Client::connect(ClientConfig::new(bundle, "test")).await.err().unwrap();
    assert!(matches!(error, Error::Refused(wire::Error::WrongCluster { .. })), "{error}");
    let admin = cluster.embedded.admin_bundle().clone();
    let error = Client::connect(ClientConfig::new(admin, "test")).await.err().unwrap();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    let mut config = cluster.config();
    config.window_bytes = 1;
    let error = Client::connect(config).await.err().unwrap();
    assert!(matches!(error, Error::Config(_)), "{error}");
}
