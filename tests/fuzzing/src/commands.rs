//! A log of commands, read from bytes of which each decides something: whatever the bytes are, most of what they say can
//! be done.
//!
//! The commands are applied one by one while they are read, because they name what earlier ones were answered with:
//! sessions, numbers of inodes, versions of files.

use crate::apply::apply_together;
use metad::fs::read::read;
use metad::fs::session::{Confined, Opening};
use metad::fs::view::MemoryKv;
use metad::fs::{Command, CommandReply, Stamped};
use wire::attr::{AttrChange, FileKind, Timestamp};
use wire::caller::Caller;
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BatchSeq, BlockHash, Ino, JournalId, SessionId, Version};
use wire::limits::{CHUNK_BYTES, FILE_BYTES_MAX};
use wire::message::check::CheckId;
use wire::op::{
    Batch, ConflictPolicy, Expect, JournalPosition, JournaledFile, Lock, LockFamily, NewInode, Op, OpReply,
    RangeAction, Read, ReadReply, RenameMode, XattrMode,
};
use wire::tls::Squash;

/// Entries of a log after which no more are read.
const ENTRIES_MAX: usize = 64;
/// Inode numbers that a session leases when it is opened.
const LEASED: u64 = 32;
/// Kinds of operations that may be deferred.
const PLAIN_KINDS: usize = 18;
/// Blocks of which files have parts, and the length of each.
const BLOCKS: usize = 4;
const BLOCK_LEN: u32 = 65_536;
/// Names; the last ones are refused.
const NAMES: [&[u8]; 8] = [b"a", b"b", b"c", b"d", &[b'x'; 255], &[b'x'; 256], b"..", b""];
/// Places in files, where something begins or ends.
const OFFSETS: [u64; 9] =
    [0, 1, 100, 4096, CHUNK_BYTES - 50, CHUNK_BYTES, 3 * CHUNK_BYTES, FILE_BYTES_MAX - 4096, u64::MAX - 1];
/// Lengths. None is that of hundreds of chunks: an input may have hundreds of operations.
const LENGTHS: [u64; 8] = [4096, 1, 100, 8192, CHUNK_BYTES + 1, 64 * CHUNK_BYTES, 0, u64::MAX];
const RANGE_ACTIONS: [RangeAction; 7] = [
    RangeAction::Allocate { keep_size: false },
    RangeAction::Allocate { keep_size: true },
    RangeAction::Punch,
    RangeAction::Zero { keep_size: false },
    RangeAction::Zero { keep_size: true },
    RangeAction::Collapse,
    RangeAction::Insert,
];

/// Bytes, as choices. Once they are used up, each choice is the first one.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    fn are_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Returns a number below this one, which must not be 0, and below 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn one_of<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    fn name(&mut self) -> Vec<u8> {
        self.one_of(&NAMES).to_vec()
    }
}

/// A session, as its client knows it.
struct Client {
    id: SessionId,
    /// Number of its last batch.
    seq: u64,
    /// The next number for an inode.
    next: Ino,
}

/// A log, with what its commands were answered and the state to which they have led.
pub(crate) struct Log {
    pub(crate) entries: Vec<Stamped>,
    pub(crate) replies: Vec<CommandReply>,
    pub(crate) state: MemoryKv,
    /// The leader's clock, in seconds.
    now: i64,
    clients: Vec<Client>,
    /// Inodes that there may be, the newest last.
    known: Vec<Ino>,
    /// Whether a batch has done something since the first sessions were opened.
    pub(crate) has_effect: bool,
}

impl Log {
    /// Reads the commands after the first few, which make a cluster and two sessions.
    pub(crate) fn of(choices: &mut Choices) -> Self {
        let mut log = Self {
            entries: Vec::new(),
            replies: Vec::new(),
            state: MemoryKv::default(),
            now: 1_000,
            clients: Vec::new(),
            known: vec![Ino::ROOT],
            has_effect: false,
        };
        log.propose(Command::Init { cluster: "fuzzing".to_owned(), replicas: 1, min_sync: 1 });
        for client in ["one", "two"] {
            log.enter(opening(client));
        }
        log.has_effect = false;
        while !choices.are_over() && log.entries.len() < ENTRIES_MAX {
            log.step(choices);
        }
        log
    }

    fn propose(&mut self, command: Command) -> CommandReply {
        self.entries.push(Stamped { now: Timestamp { secs: self.now, nanos: 0 }, command });
        let reply = apply_together(&mut self.state, &self.entries[self.entries.len() - 1..]).remove(0);
        if let CommandReply::Batches(outcomes) = &reply {
            self.has_effect |= outcomes.iter().any(|outcome| matches!(outcome, Ok(Ok(replies)) if !replies.is_empty()));
        }
        self.replies.push(reply.clone());
        reply
    }

    fn step(&mut self, choices: &mut Choices) {
        // Long enough for blocks to be deleted, and for accesses to be recorded again.
        self.now += choices.one_of(&[0, 1, 700, 90_000]);
        let command = match choices.below(16) {
            0..=7 => {
                let batches = (0..=choices.below(3)).map(|_| self.batch(choices));
                // A leader proposes no others.
                let proposed = batches.filter(|(_, batch)| metad::server::fuzzing::may_be_proposed(batch));
                Command::Batches(proposed.collect())
            }
            8 => {
                self.enter_some(choices);
                return;
            }
            9 => Command::CloseSessions(vec![self.session(choices)]),
            10 | 11 => Command::Reap,
            12 => Command::BlocksDropped((0..BLOCKS).map(block).collect()),
            13 => Command::PinBlocks { name: "pin".to_owned(), keep_ms: choices.one_of(&[1_000, 1 << 30]) },
            14 if choices.below(2) == 0 => Command::ReleasePin { name: "pin".to_owned() },
            14 => Command::Mark(CheckId(1)),
            _ => Command::SettleCuts(self.known.clone()),
        };
        self.propose(command);
    }

    /// Opens a session, and leases numbers for it.
    fn enter(&mut self, opening: Opening) {
        let CommandReply::Session(id) = self.propose(Command::OpenSession(opening)) else { return };
        if self.clients.iter().any(|client| client.id == id) {
            return;
        }
        let ops = vec![Op::LeaseInos { count: LEASED }];
        let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops };
        let CommandReply::Batches(outcomes) = self.propose(Command::Batches(vec![(id, batch)])) else {
            panic!("batches are answered")
        };
        let leased = match &outcomes[..] {
            [Ok(Ok(replies))] => replies.first(),
            _ => None,
        };
        let Some(OpReply::Inos { start, .. }) = leased else { panic!("no numbers: {outcomes:?}") };
        self.clients.push(Client { id, seq: 1, next: *start });
    }

    fn enter_some(&mut self, choices: &mut Choices) {
        let confined =
            |path: Option<&str>, squash| Confined { subtree: path.map(str::to_owned), root: Ino::ROOT, squash };
        let nobody = Squash::Root { uid: 65_534, gid: 65_534 };
        let opening = Opening {
            resumes: (choices.below(3) == 2).then(|| self.session(choices)),
            token: choices.one_of(&[None, Some(1), Some(2)]),
            confined: match choices.below(6) {
                0..=2 => None,
                3 => Some(confined(Some("/b"), Squash::None)),
                4 => Some(confined(Some("/b/c"), nobody)),
                _ => Some(confined(None, Squash::All { uid: 5, gid: 5 })),
            },
            ..opening(choices.one_of(&["one", "two", "three"]))
        };
        self.enter(opening);
    }

    /// Returns a session that there was at some time, or, rarely, one that there never was.
    fn session(&self, choices: &mut Choices) -> SessionId {
        let at = choices.below(self.clients.len() + 1);
        self.clients.get(at).map_or(SessionId(7), |client| client.id)
    }

    /// Returns the next batch of a client, which may be sent a second time with other content, or come too early.
    fn batch(&mut self, choices: &mut Choices) -> (SessionId, Batch) {
        let at = choices.below(self.clients.len());
        let caller = choices.one_of(&[None, None, Some(1000), Some(0)]);
        let caller = caller.map(|uid| Caller { uid, gid: uid, groups: Vec::new() });
        let client = &mut self.clients[at];
        let seq = match choices.below(8) {
            6 => client.seq,
            7 => client.seq + 3,
            _ => client.seq + 1,
        };
        client.seq = seq;
        let (id, acked) = (client.id, seq.saturating_sub(choices.one_of(&[1, 1, 4, 0])));
        let ops = (0..=choices.below(4)).map(|_| self.op(at, choices)).collect();
        (id, Batch { seq: BatchSeq(seq), acked: BatchSeq(acked), caller, ops })
    }

    fn op(&mut self, at: usize, choices: &mut Choices) -> Op {
        let kind = choices.below(PLAIN_KINDS + 3);
        match kind.checked_sub(PLAIN_KINDS) {
            None => self.plain_op(kind, at, choices),
            Some(0) => {
                let expected = Expect {
                    parent: self.inode(choices),
                    name: choices.name(),
                    ino: choices.one_of(&[true, false]).then(|| self.inode(choices)),
                    version: None,
                };
                let kind = choices.below(PLAIN_KINDS);
                let at_secs = self.now - choices.one_of(&[0, 5, 10_000]);
                let op = Box::new(self.plain_op(kind, at, choices));
                Op::Deferred { at: Timestamp { secs: at_secs, nanos: 0 }, expect: vec![expected], op }
            }
            Some(1) => Op::JournaledContent { journal: JournalId(1), file: self.journaled(choices) },
            Some(_) => {
                let position = JournalPosition {
                    acknowledged: u64::from(choices.byte()),
                    left: u64::from(choices.byte()),
                    files: vec![self.journaled(choices)],
                };
                Op::Journaled { journal: JournalId(1), position: choices.one_of(&[true, false]).then_some(position) }
            }
        }
    }

    fn plain_op(&mut self, kind: usize, at: usize, choices: &mut Choices) -> Op {
        match kind {
            0 | 1 => self.create(at, choices),
            2 => Op::Link { ino: self.file(choices), parent: self.inode(choices), name: choices.name() },
            3 => Op::Unlink { parent: self.inode(choices), name: choices.name(), released: self.released(choices) },
            4 => Op::Rmdir { parent: self.inode(choices), name: choices.name(), seen: self.released(choices) },
            5 => Op::Rename {
                parent: self.inode(choices),
                name: choices.name(),
                new_parent: self.inode(choices),
                new_name: choices.name(),
                mode: choices.one_of(&[RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]),
                released: self.released(choices),
                seen: self.released(choices),
            },
            6 => Op::SetAttr { ino: self.file(choices), change: change(choices) },
            7 | 8 => self.commit(at, choices),
            9 => Op::Range {
                ino: self.file(choices),
                off: choices.one_of(&OFFSETS),
                len: choices.one_of(&LENGTHS),
                action: choices.one_of(&RANGE_ACTIONS),
            },
            10 => Op::CloneRange {
                src: self.file(choices),
                src_off: choices.one_of(&OFFSETS),
                dst: self.file(choices),
                dst_off: choices.one_of(&OFFSETS),
                len: choices.one_of(&LENGTHS),
            },
            11 => Op::SetXattr {
                ino: self.file(choices),
                name: attribute(choices),
                value: vec![7; choices.one_of(&[0, 9, 3_000])],
                mode: choices.one_of(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace]),
                clear_sgid: choices.one_of(&[false, true]),
            },
            12 => Op::RemoveXattr { ino: self.file(choices), name: attribute(choices) },
            13 => Op::ReleaseOrphans { inos: self.known.clone() },
            14 => Op::LeaseInos { count: choices.one_of(&[1, 64, 4_096, 0]) },
            15 => Op::SetLock { ino: self.file(choices), lock: lock(choices) },
            16 => {
                let Lock { family, owner, start, end, .. } = lock(choices);
                Op::Unlock { ino: self.file(choices), family, owner, start, end }
            }
            _ => Op::Accessed { ino: self.file(choices), at: Timestamp { secs: self.now, nanos: 0 } },
        }
    }

    fn create(&mut self, at: usize, choices: &mut Choices) -> Op {
        let node = match choices.below(8) {
            0..=3 => NewInode::Regular,
            4..=6 => NewInode::Directory,
            _ if choices.below(2) == 0 => NewInode::Symlink(b"../a".to_vec()),
            _ => NewInode::Special { kind: choices.one_of(&[FileKind::Fifo, FileKind::CharDevice]), rdev: 5 },
        };
        Op::Create {
            parent: self.inode(choices),
            name: choices.name(),
            ino: self.number(at, choices),
            node,
            mode: choices.one_of(&[0o755, 0o2777, 0o1777, 0o4711, 0]),
            umask: choices.one_of(&[0o022, 0]),
            uid: choices.one_of(&[1000, 0]),
            gid: choices.one_of(&[1000, 0]),
        }
    }

    fn commit(&mut self, at: usize, choices: &mut Choices) -> Op {
        let ino = self.file(choices);
        let newest = self.version(ino);
        Op::Commit {
            ino,
            base: Version(newest.0.saturating_sub(choices.one_of(&[0, 0, 1, 2]))),
            own: choices.one_of(&[None, Some(newest)]).into_iter().collect(),
            writes: writes(choices),
            append_from: choices.one_of(&[None, None, Some(0), Some(100)]),
            mtime: choices.one_of(&[None, Some(Timestamp { secs: 77, nanos: 0 })]),
            clear_privileges: choices.one_of(&[false, true]),
            policy: match choices.below(3) {
                0 => ConflictPolicy::LastWriter,
                1 => ConflictPolicy::Fail,
                _ => ConflictPolicy::Copy { ino: self.number(at, choices), suffix: b".x".to_vec() },
            },
        }
    }

    fn journaled(&self, choices: &mut Choices) -> JournaledFile {
        let ino = self.file(choices);
        JournaledFile { ino, base: self.version(ino), committed: choices.one_of(&[false, true]) }
    }

    /// Returns a number for a new inode: the client's next one, or, rarely, one that it may not use.
    fn number(&mut self, at: usize, choices: &mut Choices) -> Ino {
        if choices.below(32) == 31 {
            return self.inode(choices);
        }
        let next = &mut self.clients[at].next;
        let ino = *next;
        *next = ino.next();
        self.known.push(ino);
        ino
    }

    /// Returns an inode that there may be; the oldest ones, which may be directories, come first.
    fn inode(&self, choices: &mut Choices) -> Ino {
        choices.one_of(&self.known)
    }

    /// As [`Log::inode`], the newest ones first.
    fn file(&self, choices: &mut Choices) -> Ino {
        let back = choices.below(self.known.len().min(256));
        self.known[self.known.len() - 1 - back]
    }

    fn released(&self, choices: &mut Choices) -> Option<Ino> {
        choices.one_of(&[false, true]).then(|| self.inode(choices))
    }

    /// Returns the version of a file; any version if there is no such file.
    fn version(&self, ino: Ino) -> Version {
        match read(&self.state, SessionId(1), &Read::GetAttr { ino }) {
            Ok(ReadReply::Attr(attr)) => attr.version,
            _ => Version(1),
        }
    }
}

fn opening(client: &str) -> Opening {
    Opening {
        host: "host".to_owned(),
        purpose: "/mnt".to_owned(),
        client: client.to_owned(),
        caches: true,
        resumes: None,
        token: None,
        confined: None,
    }
}

fn block(number: usize) -> BlockHash {
    BlockHash([number as u8; 32])
}

fn attribute(choices: &mut Choices) -> Vec<u8> {
    let names: [&[u8]; 4] = [b"user.a", b"user.b", b"system.posix_acl_access", b"system.posix_acl_default"];
    choices.one_of(&names).to_vec()
}

fn change(choices: &mut Choices) -> AttrChange {
    AttrChange {
        size: choices.one_of(&[None, Some(0), Some(50), Some(CHUNK_BYTES + 10), Some(FILE_BYTES_MAX)]),
        mode: choices.one_of(&[None, Some(0o600), Some(0o6755)]),
        uid: choices.one_of(&[None, Some(0), Some(1000)]),
        clear_privileges: choices.one_of(&[false, true]),
        ..AttrChange::default()
    }
}

fn lock(choices: &mut Choices) -> Lock {
    let (start, len) = (choices.one_of(&OFFSETS), choices.one_of(&LENGTHS));
    Lock {
        family: choices.one_of(&[LockFamily::Posix, LockFamily::Flock]),
        owner: choices.one_of(&[1, 2]),
        pid: 9,
        start,
        end: start.saturating_add(len),
        exclusive: choices.one_of(&[false, true]),
    }
}

/// Returns one to three writes, in order.
fn writes(choices: &mut Choices) -> Vec<ExtentWrite> {
    let (mut from, count) = (choices.one_of(&OFFSETS), 1 + choices.below(3));
    let write = |_: usize| {
        let (len, source) = match choices.below(4) {
            0 => {
                let bytes = vec![choices.byte(); choices.one_of(&[5, 1, 4_096, 4_097])];
                (bytes.len() as u64, Source::Inline(bytes))
            }
            1 | 2 => {
                let (hash, offset) = (block(choices.below(BLOCKS)), choices.one_of(&[0, 1, 60_000]));
                (choices.one_of(&[100, 1, 4_096, 65_536]), Source::block(hash, BLOCK_LEN, offset))
            }
            _ => (choices.one_of(&LENGTHS), Source::Zero),
        };
        let file_off = from;
        from = from.saturating_add(len).saturating_add(choices.one_of(&[0, 1, 4_096]));
        ExtentWrite { file_off, len, source }
    };
    (0..count).map(write).collect()
}
