//! A backup over real QUIC, a node that is restored from it, and the blocks meanwhile.

use super::cluster::{Cluster, LIMIT, config, endpoint, free_addr};
use metad::{Node, recovery};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wire::attr::Timestamp;
use wire::backup::{Reader, Writer, verify};
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BlockHash, BlockdId, Ino, LayoutEpoch, Version};
use wire::message::admin::{AdminReply, AdminRequest, BackupPiece};
use wire::message::block::{BlockReply, BlockRequest, RepairReport};
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest};
use wire::op::{ConflictPolicy, Op, OpReply};
use wire::quic::{Endpoint, Incoming, Service};
use wire::tls::{PeerIdentity, Role};

/// Blocks are looked for and deleted every five seconds.
const TWO_ROUNDS: Duration = Duration::from_secs(11);

/// A block daemon that has every block, and reports which ones it is asked to drop.
struct Dropping(mpsc::UnboundedSender<BlockHash>);

impl Service for Dropping {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), wire::Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, incoming: Incoming) {
        match incoming.decode::<BlockRequest>() {
            Ok(BlockRequest::Drop { hashes, .. }) => {
                hashes.iter().for_each(|hash| self.0.send(*hash).unwrap());
                incoming.respond(&BlockReply::Dropped(hashes), &[]).await;
            }
            _ => incoming.refuse("not here").await,
        }
    }
}

fn heartbeat(blockd: &Endpoint, epoch: u64) -> MetaRequest {
    MetaRequest::BlockdHeartbeat(BlockdHeartbeat {
        id: BlockdId([1; 16]),
        name: "test".to_owned(),
        addr: blockd.local_addr(),
        zone: "z".to_owned(),
        weight: 1,
        capacity_bytes: 1 << 30,
        free_bytes: 1 << 30,
        block_count: 0,
        epoch: LayoutEpoch(epoch),
        every_ms: 1000,
        repair: RepairReport::default(),
        failed: false,
        revoked: wire::revoked::ListMark::default(),
    })
}

/// Makes a file of one block.
async fn file_of(cluster: &Cluster, name: &str, block: u8) -> (BlockHash, Ino) {
    let mut session = cluster.session().await;
    let hash = BlockHash([block; 32]);
    let creation = session.creation(name);
    let replies = session.run(vec![creation]).await.unwrap();
    let OpReply::Attr(attr) = &replies[0] else { panic!("{replies:?}") };
    let source = Source::block(hash, 100, 0);
    let commit = Op::Commit {
        ino: attr.ino,
        base: Version(1),
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 0, len: 100, source }],
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    };
    session.run(vec![commit]).await.unwrap();
    cluster.ask(MetaRequest::CloseSession { session: session.id }).await;
    (hash, attr.ino)
}

async fn remove(cluster: &Cluster, name: &str, ino: Ino) {
    let mut session = cluster.session().await;
    let unlink = Op::Unlink { parent: Ino::ROOT, name: name.into(), released: Some(ino) };
    session.run(vec![unlink]).await.unwrap();
    cluster.ask(MetaRequest::CloseSession { session: session.id }).await;
}

/// Returns those of these blocks that a daemon may drop.
async fn unreferenced(cluster: &Cluster, blockd: &Endpoint, blocks: &[BlockHash]) -> Vec<BlockHash> {
    let report = MetaRequest::BlockReport { id: BlockdId([1; 16]), epoch: LayoutEpoch(1), blocks: blocks.to_vec() };
    match cluster.ask_as(blockd, &report).await {
        MetaReply::Unreferenced(hashes) => hashes,
        other => panic!("{other:?}"),
    }
}

async fn backup(cluster: &Cluster, admin: &Endpoint) -> Vec<u8> {
    let leader = cluster.leader().await;
    let peer = admin.peer(cluster.nodes[&leader].local_addr(), Role::Metad);
    let mut pieces = peer.open_events(&MetaRequest::Backup).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        match pieces.next().await.unwrap() {
            BackupPiece::Bytes(piece) => bytes.extend_from_slice(&piece),
            BackupPiece::End { bytes: count } => {
                assert_eq!(count, bytes.len() as u64);
                return bytes;
            }
            BackupPiece::Failed(reason) => panic!("{reason}"),
        }
    }
}

/// Returns a backup that says that its state was made under rules that are not known here.
fn of_newer_rules(backup: &[u8]) -> Vec<u8> {
    let mut reader = Reader::open(backup).unwrap();
    let mut head = reader.head().clone();
    head.rules = head.rules.next();
    let mut writer = Writer::begin(Vec::new(), &head).unwrap();
    while let Some((key, value)) = reader.next().unwrap() {
        writer.record(&key, &value).unwrap();
    }
    writer.finish().unwrap()
}

/// Replaces the cluster's only node with a new one that is restored from a backup.
async fn restored(cluster: &mut Cluster, id: u64, file: &Path) {
    let mut config = config(&cluster.ca, cluster.dir.path(), id, free_addr(), &BTreeMap::new());
    config.gc_grace = Duration::ZERO;
    recovery::restore(&config, file).await.unwrap();
    let again = recovery::restore(&config, file).await.unwrap_err().to_string();
    assert!(again.contains("empty"), "{again}");
    cluster.nodes.insert(id, Node::start(config).await.unwrap());
}

/// Guards I10 and I11.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_backup_are_retained_and_a_restored_cluster_deletes_none_until_an_operator_allows_it() {
    let mut cluster = Cluster::start(1).await;
    let (admin, blockd) = (endpoint(&cluster.ca, Role::Admin), endpoint(&cluster.ca, Role::Blockd));
    let (pinned, ino) = file_of(&cluster, "pinned", 1).await;
    let (gone, gone_ino) = file_of(&cluster, "gone", 2).await;
    remove(&cluster, "gone", gone_ino).await;
    let pin = |name: &str| AdminRequest::PinBlocks { name: name.to_owned(), keep_ms: 3_600_000 };
    assert!(matches!(cluster.admin(pin("p")).await, AdminReply::Done));
    assert!(matches!(cluster.admin(pin("p")).await, AdminReply::Failed(_)), "names are given once");
    let bytes = backup(&cluster, &admin).await;
    remove(&cluster, "pinned", ino).await;
    let (later, _) = file_of(&cluster, "later", 3).await;
    assert_eq!(unreferenced(&cluster, &blockd, &[pinned, gone, later]).await, [gone], "the pin retains one");
    let release = |name: &str| AdminRequest::ReleasePin { name: name.to_owned() };
    assert!(matches!(cluster.admin(release("other")).await, AdminReply::Failed(_)));
    assert!(matches!(cluster.admin(release("p")).await, AdminReply::Done));
    assert_eq!(unreferenced(&cluster, &blockd, &[pinned, gone, later]).await, [pinned, gone]);
    let AdminReply::Status(status) = cluster.admin(AdminRequest::Status).await else { panic!("no status") };

    let (head, counts, _) = verify(&bytes[..]).unwrap();
    assert_eq!((head.cluster.as_str(), counts.of(b'I'), counts.of(b'S')), ("test", 2, 0));
    assert!(head.index > 0 && head.index < status.applied && head.at <= Timestamp::now());
    let file = cluster.dir.path().join("backup");
    std::fs::write(&file, &bytes).unwrap();
    cluster.stop_node(1).await;
    restored(&mut cluster, 7, &file).await;
    let session = cluster.session().await.id;
    assert_eq!(cluster.lookup(session, "pinned").await, Some(ino));
    assert_eq!(cluster.lookup(session, "later").await, None);
    cluster.ask(MetaRequest::CloseSession { session }).await;
    let AdminReply::Status(now) = cluster.admin(AdminRequest::Status).await else { panic!("no status") };
    assert!(now.deletion_stopped.is_some() && now.pins.len() == 1, "the pin is part of the backup");
    assert!(now.layout.epoch > status.layout.epoch && now.applied > status.applied && now.term > status.term);

    // A block daemon from before the backup joins. One that knows a later layout than this cluster is refused.
    let (to_drop, mut dropped) = mpsc::unbounded_channel();
    let _serving = blockd.serve(Arc::new(Dropping(to_drop)), &tokio::runtime::Handle::current());
    let peer = blockd.peer(cluster.nodes[&7].local_addr(), Role::Metad);
    let (beyond, _) =
        peer.request::<_, MetaReply>(&heartbeat(&blockd, now.layout.epoch.0 + 9), &[], LIMIT).await.unwrap();
    assert!(matches!(beyond, MetaReply::NotLeader { .. }), "{beyond:?}");
    let (id, epoch) = (BlockdId([1; 16]), LayoutEpoch(now.layout.epoch.0 + 9));
    let beyond = MetaRequest::BlockReport { id, epoch, blocks: vec![later] };
    let (beyond, _) = peer.request::<_, MetaReply>(&beyond, &[], LIMIT).await.unwrap();
    assert!(matches!(beyond, MetaReply::NotLeader { .. }), "it gets no answer: {beyond:?}");
    let joined = cluster.ask_as(&blockd, &heartbeat(&blockd, status.layout.epoch.0)).await;
    assert!(matches!(joined, MetaReply::BlockdAlive { layout: Some(_), .. }), "{joined:?}");

    // Even without the pin nothing is deleted while deletion is stopped.
    assert!(matches!(cluster.admin(release("p")).await, AdminReply::Done));
    remove(&cluster, "pinned", ino).await;
    assert!(unreferenced(&cluster, &blockd, &[pinned, later]).await.is_empty());
    let early = tokio::time::timeout(TWO_ROUNDS, dropped.recv()).await;
    assert!(early.is_err(), "{early:?} was to be dropped");
    let resume = AdminRequest::ResumeDeletion { force: false };
    assert!(matches!(cluster.admin(resume).await, AdminReply::Done));
    assert_eq!(unreferenced(&cluster, &blockd, &[pinned, later]).await, [pinned, later]);
    let started = Instant::now();
    let first = tokio::time::timeout(LIMIT, dropped.recv()).await.unwrap();
    assert!([Some(pinned), Some(gone)].contains(&first), "{first:?} after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_backup_of_this_cluster_is_not_restored() {
    let cluster = Cluster::start(1).await;
    let admin = endpoint(&cluster.ca, Role::Admin);
    file_of(&cluster, "file", 1).await;
    let bytes = backup(&cluster, &admin).await;
    let file = cluster.dir.path().join("backup");
    let other = Cluster::start(1).await;
    let newer = of_newer_rules(&bytes);
    for (content, ca, word) in [
        (&newer[..], &cluster.ca, "a newer release"),
        (&bytes[..bytes.len() / 2], &cluster.ca, "cut off"),
        (b"text", &cluster.ca, "no backup"),
        (&bytes[..], &other.ca, "same CA"),
    ] {
        std::fs::write(&file, content).unwrap();
        let config = config(ca, cluster.dir.path(), 7, free_addr(), &BTreeMap::new());
        let error = recovery::restore(&config, &file).await.unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("backup"), "{error}");
        assert!(!config.data_dir.exists(), "nothing is made of it");
    }
    let client = endpoint(&cluster.ca, Role::Client);
    let peer = client.peer(cluster.nodes[&1].local_addr(), Role::Metad);
    let mut refused = peer.open_events(&MetaRequest::Backup).await.unwrap();
    assert!(matches!(refused.next::<BackupPiece>().await, Err(wire::Error::Refused { .. })));
}
