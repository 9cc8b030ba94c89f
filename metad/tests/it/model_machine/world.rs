//! A state machine on a map in memory, with a clock that the test moves.

use metad::fs::session::Opening;
use metad::fs::view::{Kv, MemoryKv, View};
use metad::fs::{Command, CommandReply, Refused, Stamped, apply, check, read};
use proptest::prelude::*;
use std::collections::BTreeMap;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BatchSeq, BlockHash, Ino, SessionId, Version};
use wire::op::{Batch, BatchReply, ConflictPolicy, NewInode, Op, OpReply, Read, ReadReply, With};

/// Length of the blocks of which tests write parts.
pub const BLOCK: u32 = 64;

pub struct World {
    pub kv: MemoryKv,
    /// Everything that was applied, in order.
    pub log: Vec<Stamped>,
    clock: i64,
    seqs: BTreeMap<SessionId, u64>,
    numbers: BTreeMap<SessionId, u64>,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            kv: MemoryKv::default(),
            log: Vec::new(),
            clock: 1_000,
            seqs: BTreeMap::new(),
            numbers: BTreeMap::new(),
        };
        world.apply(Command::Init { cluster: "test".to_owned(), replicas: 1, min_sync: 1 });
        world
    }

    pub fn apply(&mut self, command: Command) -> CommandReply {
        let stamped = Stamped { now: self.stamp(), command };
        let mut view = View::new(&self.kv);
        let reply = apply(&mut view, &stamped);
        let changes = view.into_changes();
        self.kv.absorb(changes);
        self.log.push(stamped);
        reply
    }

    /// Opens a session and leases numbers for it.
    pub fn session(&mut self) -> SessionId {
        let id = self.open("c", None);
        let replies = self.run(id, vec![Op::LeaseInos { count: 4096 }]).unwrap();
        let [OpReply::Inos { start, .. }] = replies[..] else { panic!("{replies:?}") };
        self.numbers.insert(id, start.0);
        id
    }

    /// Opens a session in place of another one, for a client of this name.
    pub fn resume(&mut self, old: SessionId, client: &str) -> SessionId {
        self.open(client, Some(old))
    }

    fn open(&mut self, client: &str, resumes: Option<SessionId>) -> SessionId {
        self.open_by(client, resumes, None)
    }

    /// Opens a session, or asks again for one by the same token.
    pub fn open_by(&mut self, client: &str, resumes: Option<SessionId>, token: Option<u64>) -> SessionId {
        let (host, purpose) = ("h".to_owned(), "test".to_owned());
        let opening =
            Opening { host, purpose, client: client.to_owned(), caches: false, resumes, token, confined: None };
        let CommandReply::Session(id) = self.apply(Command::OpenSession(opening)) else { panic!("no session") };
        self.seqs.entry(id).or_insert(0);
        id
    }

    /// Returns a number that the session may use.
    pub fn number(&mut self, id: SessionId) -> Ino {
        let next = self.numbers.get_mut(&id).unwrap();
        *next += 1;
        Ino(*next - 1)
    }

    pub fn submit(&mut self, id: SessionId, batch: &Batch) -> Result<BatchReply, Refused> {
        match self.apply(Command::Batches(vec![(id, batch.clone())])) {
            CommandReply::Batches(mut replies) => replies.remove(0),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the leader's next time.
    pub fn stamp(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp { secs: self.clock, nanos: 0 }
    }

    /// Returns the session's next batch; it has not acknowledged the last few.
    pub fn batch(&mut self, id: SessionId, ops: Vec<Op>) -> Batch {
        let seq = self.seqs.get_mut(&id).unwrap();
        *seq += 1;
        Batch { seq: BatchSeq(*seq), acked: BatchSeq(seq.saturating_sub(4)), caller: None, ops }
    }

    pub fn run(&mut self, id: SessionId, ops: Vec<Op>) -> BatchReply {
        let batch = self.batch(id, ops);
        self.submit(id, &batch).unwrap()
    }

    pub fn one(&mut self, id: SessionId, op: Op) -> Result<OpReply, FsError> {
        self.run(id, vec![op]).map(|mut replies| replies.remove(0)).map_err(|failed| failed.error)
    }

    pub fn create(&mut self, id: SessionId, parent: Ino, name: &str, node: NewInode) -> Ino {
        let ino = self.number(id);
        self.one(id, create(parent, name, ino, node)).unwrap();
        ino
    }

    pub fn attr(&self, ino: Ino) -> Option<InodeAttr> {
        match read::read(&self.kv, SessionId(1), &Read::GetAttr { ino }) {
            Ok(ReadReply::Attr(attr)) => Some(attr),
            Err(FsError::NotFound) => None,
            other => panic!("{other:?}"),
        }
    }

    /// Returns the version of a file; any version if the file is gone.
    pub fn version(&self, ino: Ino) -> Version {
        self.attr(ino).map_or(Version(1), |attr| attr.version)
    }

    pub fn bytes(&self, ino: Ino) -> Vec<u8> {
        bytes(&self.kv, ino)
    }

    /// Returns names and inodes of a directory, read in pages.
    pub fn entries(&self, ino: Ino) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let mut after = 0;
        loop {
            let question = Read::ReadDir { ino, after, limit: 2, with: With::Attributes };
            let page = read::read(&self.kv, SessionId(1), &question);
            let Ok(ReadReply::Page { entries, end, .. }) = page else { panic!("{page:?}") };
            for entry in entries {
                assert!(entry.cookie > 2 && entry.cookie < 1 << 63);
                assert_eq!(entry.attr.map(|attr| attr.ino), Some(entry.ino));
                let before = found.insert(String::from_utf8(entry.name).unwrap(), entry.ino.0);
                assert_eq!(before, None, "an entry is listed twice");
                after = entry.cookie;
            }
            if end {
                return found;
            }
        }
    }

    pub fn assert_sound(&self) {
        assert_eq!(check::check(&self.kv), Vec::<String>::new());
    }
}

/// Returns a file's bytes, read page by page.
pub fn bytes(kv: &dyn Kv, ino: Ino) -> Vec<u8> {
    let (mut bytes, mut off) = (Vec::new(), 0);
    loop {
        let question = Read::Extents { ino, off, len: u64::MAX };
        let page = read::read(kv, SessionId(1), &question);
        let Ok(ReadReply::Extents(page)) = page else { panic!("{page:?}") };
        bytes.resize(page.size as usize, 0);
        for extent in &page.extents {
            for at in extent.file_off..extent.range().end.min(page.size) {
                bytes[at as usize] = byte_of(&extent.source, (at - extent.file_off) as usize);
            }
        }
        match page.more_from {
            Some(more) => off = more,
            None => return bytes,
        }
    }
}

/// Blocks of the tests are one byte over and over.
fn byte_of(source: &Source, at: usize) -> u8 {
    match source {
        Source::Zero => 0,
        Source::Inline(bytes) => bytes[at],
        Source::Block { hash, offset, .. } => {
            assert!(*offset as usize + at < BLOCK as usize);
            (0..=u8::MAX).find(|byte| block(*byte) == *hash).expect("a block of the tests")
        }
    }
}

pub fn block(byte: u8) -> BlockHash {
    let mut hash = [0xB1; 32];
    hash[0] = byte;
    BlockHash(hash)
}

/// Returns a part of a block, or the bytes themselves.
pub fn source(byte: u8, len: u64, inline: bool) -> Source {
    if inline {
        Source::Inline(vec![byte; len as usize])
    } else {
        Source::block(block(byte), BLOCK, (BLOCK - len as u32) / 2)
    }
}

pub fn create(parent: Ino, name: &str, ino: Ino, node: NewInode) -> Op {
    Op::Create { parent, name: name.into(), ino, node, mode: 0o644, umask: 0o022, uid: 1, gid: 1 }
}

pub fn commit(ino: Ino, base: Version, at: u64, len: u64, source: Source, policy: ConflictPolicy) -> Op {
    let writes = vec![ExtentWrite { file_off: at, len, source }];
    Op::Commit { ino, base, own: Vec::new(), writes, append_from: None, mtime: None, clear_privileges: false, policy }
}

pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
