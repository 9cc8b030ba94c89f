//! What a metad needs for many files: one node in its own process, with the settings of a real one.
#![allow(missing_docs)]

use metad::Node;
use metad::config::Config;
use metad::raft::Tuning;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use wire::Error;
use wire::attr::Timestamp;
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BatchSeq, BlockHash, Ino, MetadId, SessionId, Version};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::{Batch, ConflictPolicy, NewInode, Op, OpReply, Read, ReadReply, With};
use wire::quic::{Endpoint, Peer};
use wire::tls::{ClusterCa, Role, Subject};

const LIMIT: Duration = Duration::from_secs(30);
/// Files, unless `METAD_FILES` says otherwise: `just long` makes a million.
const FILES: u64 = 100_000;
/// Files made by one batch.
const BATCH: u64 = 2_000;
/// Entries in a page of the listing.
const PAGE: u32 = 1_024;
/// Bytes of memory, however many files there are, and beside that per file.
const MEMORY_MAX: (u64, u64) = (512 << 20, 1 << 10);

fn config(ca: &ClusterCa, dir: &Path, listen: SocketAddr) -> Config {
    Config {
        id: MetadId(1),
        cluster: "test".to_owned(),
        listen,
        data_dir: dir.to_owned(),
        identity: ca.issue(&Subject::new(Role::Metad, "metad-1")).unwrap(),
        issuer: None,
        issuer_file: None,
        initial: [(MetadId(1), listen)].into(),
        replicas: 1,
        min_sync: 1,
        gc_grace: Duration::from_secs(600),
        // Several snapshots are taken during the run.
        tuning: Tuning { snapshot_entries: 100, ..Tuning::default() },
    }
}

/// Returns the most memory that this process has used, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

struct Session {
    metad: Peer,
    id: SessionId,
    seq: u64,
}

impl Session {
    async fn open(metad: Peer) -> Self {
        let started = Instant::now();
        loop {
            let request = MetaRequest::OpenSession {
                host: "h".to_owned(),
                purpose: "t".to_owned(),
                caches: false,
                resumes: None,
                token: None,
            };
            match metad.request::<_, MetaReply>(&request, &[], LIMIT).await {
                Ok((MetaReply::Session { session, .. }, _)) => return Self { metad, id: session, seq: 0 },
                other => assert!(started.elapsed() < LIMIT, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the number of entries of a directory, listed page by page as a mount does.
    async fn count(&self, directory: Ino) -> u64 {
        let (mut after, mut count) = (0, 0);
        loop {
            let read = Read::ReadDir { ino: directory, after, limit: PAGE, with: With::Attributes };
            let request = MetaRequest::Read { session: self.id, read, delegate: false, sends: false, caller: None };
            let (entries, end) = match self.request(&request).await {
                MetaReply::Read { answer: Ok(ReadReply::Page { entries, end, .. }), .. } => (entries, end),
                other => panic!("{other:?}"),
            };
            assert!(entries.iter().all(|entry| entry.cookie > after && entry.attr.is_some()));
            count += entries.len() as u64;
            match entries.last() {
                Some(last) if !end => after = last.cookie,
                _ => return count,
            }
        }
    }

    async fn lease(&mut self, count: u64) -> Ino {
        let leased = self.run(vec![Op::LeaseInos { count }]).await;
        let [OpReply::Inos { start, .. }] = leased.as_slice() else { panic!("{leased:?}") };
        *start
    }

    async fn run(&mut self, ops: Vec<Op>) -> Vec<OpReply> {
        self.seq += 1;
        let batch = Batch { seq: BatchSeq(self.seq), acked: BatchSeq(self.seq - 1), caller: None, ops };
        let request = MetaRequest::Submit { session: self.id, batch, receipts: Vec::new() };
        match self.request(&request).await {
            MetaReply::Batch { reply: Ok(replies), .. } => replies,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request again whose connection ends, as that of a machine that is too busy does. A batch is applied once,
    /// and a read may be answered twice.
    async fn request(&self, request: &MetaRequest) -> MetaReply {
        let started = Instant::now();
        loop {
            match self.metad.request::<_, MetaReply>(request, &[], LIMIT).await {
                Ok((reply, _)) => return reply,
                Err(Error::Unanswered { .. }) if started.elapsed() < LIMIT => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn create(parent: Ino, name: String, ino: Ino, node: NewInode) -> Op {
    Op::Create { parent, name: name.into_bytes(), ino, node, mode: 0o755, umask: 0, uid: 0, gid: 0 }
}

/// Gives a file one block.
fn fill(ino: Ino) -> Op {
    let hash = BlockHash::of(&ino.0.to_le_bytes());
    let source = Source::block(hash, 8192, 0);
    Op::Commit {
        ino,
        base: Version(0),
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 0, len: 8192, source }],
        append_from: None,
        mtime: Some(Timestamp::now()),
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    }
}

#[test]
fn many_files_in_one_directory_are_listed_and_take_less_than_half_a_gib_and_a_kib_each() {
    let files = kit::scale("METAD_FILES", FILES);
    assert!(files >= BATCH, "METAD_FILES is at least {BATCH}");
    metad::runtime().unwrap().block_on(async {
        let ca = ClusterCa::create("test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let listen = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let node = Node::start(config(&ca, dir.path(), listen)).await.unwrap();
        let client = ca.issue(&Subject::new(Role::Client, "client")).unwrap();
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &client).unwrap();
        let mut session = Session::open(endpoint.peer(listen, Role::Metad)).await;
        let directory = session.lease(1).await;
        session.run(vec![create(Ino::ROOT, "directory".to_owned(), directory, NewInode::Directory)]).await;
        for _ in 0..files / BATCH {
            let start = session.lease(BATCH).await;
            let inos = (start.0..start.0 + BATCH).map(Ino);
            let ops =
                inos.flat_map(|ino| [create(directory, format!("file-{ino}"), ino, NewInode::Regular), fill(ino)]);
            session.run(ops.collect()).await;
        }
        let listed = Instant::now();
        assert_eq!(session.count(directory).await, files / BATCH * BATCH);
        println!("{files} entries of one directory listed in {:?}", listed.elapsed());
        node.stop().await;
    });
    let peak = peak_memory();
    println!("peak memory with {files} files: {} MiB", peak >> 20);
    assert!(peak < MEMORY_MAX.0 + files * MEMORY_MAX.1, "{} MiB", peak >> 20);
}
