//! Good messages.

mod blocks;
mod certs;

pub use blocks::block;

use crate::Samples;
use serde::Serialize;
use std::net::SocketAddr;
use wire::FsError;
use wire::attr::{AttrChange, Creator, FileKind, InodeAttr, TimeChange, Timestamp};
use wire::backup::{Head, Writer};
use wire::caller::Caller;
use wire::cert::KeyId;
use wire::codec::{self, encode};
use wire::extent::{Extent, ExtentWrite, Source};
use wire::frame::{ReplyHeader, ReplyKind, RequestHeader};
use wire::ids::{
    BatchSeq, BlockHash, BlockdId, ClusterId, Ino, JournalId, LayoutEpoch, MetadId, Point, RulesVersion, SessionId,
    TokenId, Version,
};
use wire::layout::{Layout, LayoutMember, OlderLayout};
use wire::message::admin::{
    AdminReply, AdminRequest, BackupPiece, BlockdHealth, BlockdState, ClusterStatus, DeletionStop, Pin,
};
use wire::message::block::RepairReport;
use wire::message::check::{
    BlockUse, CheckId, CheckReply, CheckRequest, CheckedBlock, DigestState, Finding, FindingKind, Repair, Seen,
    StateDigest,
};
use wire::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use wire::message::event::MetaEvent;
use wire::message::meta::{BlockdHeartbeat, LeaseState, LogPlace, MetaReply, MetaRequest, RaftKind, Redirect};
use wire::op::{
    Batch, BatchReply, ConflictCopy, ConflictPolicy, DirEntry, Expect, ExtentPage, JournalPosition, JournaledFile,
    ListedDir, Lock, LockFamily, NewInode, Op, OpFailed, OpReply, RangeAction, Read, ReadReply, RenameMode, StatFs,
    With, XattrMode,
};
use wire::revoked::{Revocations, Revoked};
use wire::ticket::{TicketKey, TicketKeys};
use wire::tls::{ClientGrant, Role, Squash, Subject};
use wire::token::{JoinToken, NewToken, Secret, TokenInfo, TokenState};

const ROOT: Ino = Ino(1);
/// The first numbers that a cluster gives out.
const DIR: Ino = Ino(1024);
const FILE: Ino = Ino(1025);
const AT: Timestamp = Timestamp { secs: 1_700_000_000, nanos: 5 };
const HOLDER: KeyId = KeyId([6; 32]);
const HASH: BlockHash = BlockHash([0xAB; 32]);
const EPOCH: LayoutEpoch = LayoutEpoch(4);
const SESSION: SessionId = SessionId(3);

fn coded<T: Serialize>(name: &'static str, value: T) -> (&'static str, Vec<u8>) {
    (name, encode(&value))
}

fn addr(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

fn attr() -> InodeAttr {
    InodeAttr::new(FILE, FileKind::Regular, Creator { mode: 0o644, uid: 1000, gid: 1000 }, AT)
}

fn lock() -> Lock {
    Lock { family: LockFamily::Posix, owner: 7, pid: 8, start: 0, end: 100, exclusive: true }
}

fn report() -> RepairReport {
    RepairReport { done: EPOCH, lacking_blocks: 3, scrubbed: Some(AT), sync_us: Some(900), ..RepairReport::default() }
}

/// Returns a layout of three daemons, one of them draining, that is not final.
#[must_use]
pub fn layout() -> Layout {
    let member = |id: u8| LayoutMember {
        points: vec![Point(u128::from(id) << 120), Point(u128::from(id) << 60)],
        draining: id == 3,
        successor: (id == 3).then(|| "blockd-4".to_owned()),
        ..LayoutMember::new(BlockdId([id; 16]), format!("blockd-{id}"), addr(u16::from(id)), format!("zone-{id}"))
    };
    let older = OlderLayout {
        placement: LayoutEpoch(2),
        replicas: 2,
        owners: vec![BlockdId([1; 16]), BlockdId([3; 16])],
        points: vec![(BlockdId([1; 16]), vec![Point(7)])],
    };
    Layout {
        epoch: EPOCH,
        placement: LayoutEpoch(3),
        replicas: 2,
        min_sync: 2,
        down_after_ms: 600_000,
        members: vec![member(1), member(2), member(3)],
        older: vec![older],
    }
}

fn create(parent: Ino, name: &str, ino: u64, node: NewInode) -> Op {
    let name = name.as_bytes().to_vec();
    Op::Create { parent, name, ino: Ino(ino), node, mode: 0o755, umask: 0o022, uid: 1000, gid: 1000 }
}

fn commit(writes: Vec<ExtentWrite>, base: u64) -> Op {
    Op::Commit {
        ino: FILE,
        base: Version(base),
        own: Vec::new(),
        writes,
        append_from: None,
        mtime: Some(AT),
        clear_privileges: true,
        policy: ConflictPolicy::Copy { ino: Ino(1100), suffix: b".conflict-host".to_vec() },
    }
}

fn contents() -> Vec<ExtentWrite> {
    vec![
        ExtentWrite { file_off: 0, len: 4, source: Source::Inline(b"text".to_vec()) },
        ExtentWrite { file_off: 4096, len: 8192, source: Source::block(HASH, 10_000, 5) },
        ExtentWrite { file_off: 65_536, len: 4096, source: Source::Zero },
    ]
}

/// Returns batches of a session: the first two make a small filesystem, each other one changes it.
#[must_use]
pub fn batches() -> Vec<(&'static str, Batch)> {
    let name = |name: &str| name.as_bytes().to_vec();
    let range = |off, len, action| Op::Range { ino: FILE, off, len, action };
    let deferred = |expect, op| Op::Deferred { at: AT, expect, op: Box::new(op) };
    let there = Expect { parent: ROOT, name: name("file"), ino: Some(FILE), version: None };
    let xattr = |mode| Op::SetXattr { ino: FILE, name: name("user.a"), value: vec![1; 9], mode, clear_sgid: false };
    let rename = |mode| Op::Rename {
        parent: ROOT,
        name: name("file"),
        new_parent: DIR,
        new_name: name("link"),
        mode,
        released: None,
        seen: None,
    };
    let ops: Vec<(&str, Vec<Op>)> = vec![
        ("lease", vec![Op::LeaseInos { count: 4096 }]),
        (
            "make",
            vec![
                create(ROOT, "dir", 1024, NewInode::Directory),
                create(ROOT, "file", 1025, NewInode::Regular),
                commit(contents(), 0),
                xattr(XattrMode::Create),
                Op::Link { ino: FILE, parent: DIR, name: name("link") },
                create(DIR, "symlink", 1026, NewInode::Symlink(b"../file".to_vec())),
                create(ROOT, "open", 1027, NewInode::Regular),
                Op::Unlink { parent: ROOT, name: name("open"), released: None },
            ],
        ),
        ("commit", vec![commit(contents(), 1)]),
        (
            "ranges",
            vec![
                range(0, 8192, RangeAction::Allocate { keep_size: false }),
                range(4096, 4096, RangeAction::Punch),
                range(100, 9000, RangeAction::Zero { keep_size: true }),
                range(4096, 4096, RangeAction::Collapse),
                range(4096, 8192, RangeAction::Insert),
                Op::CloneRange { src: FILE, src_off: 0, dst: FILE, dst_off: 1 << 26, len: 8192 },
            ],
        ),
        ("rename", vec![create(DIR, "other", 1030, NewInode::Regular), rename(RenameMode::Replace)]),
        (
            "attributes",
            vec![
                Op::SetAttr {
                    ino: FILE,
                    change: AttrChange {
                        mode: Some(0o600),
                        size: Some(5000),
                        atime: Some(TimeChange::Now),
                        mtime: Some(TimeChange::To(AT)),
                        ..AttrChange::default()
                    },
                },
                xattr(XattrMode::Set),
                Op::RemoveXattr { ino: FILE, name: name("user.a") },
                Op::Accessed { ino: FILE, at: AT },
            ],
        ),
        (
            "locks",
            vec![
                Op::SetLock { ino: FILE, lock: lock() },
                Op::SetLock { ino: FILE, lock: Lock { start: 50, end: u64::MAX, exclusive: false, ..lock() } },
                Op::Unlock { ino: FILE, family: LockFamily::Posix, owner: 7, start: 10, end: 20 },
            ],
        ),
        (
            "removed",
            vec![
                Op::Unlink { parent: DIR, name: name("symlink"), released: Some(Ino(1026)) },
                Op::Unlink { parent: DIR, name: name("link"), released: None },
                Op::Rmdir { parent: ROOT, name: name("dir"), seen: None },
                Op::ReleaseOrphans { inos: vec![Ino(1027), Ino(99)] },
            ],
        ),
        (
            "deferred",
            vec![
                deferred(vec![there], Op::Unlink { parent: ROOT, name: name("file"), released: None }),
                Op::Journaled {
                    journal: JournalId(5),
                    position: Some(JournalPosition {
                        acknowledged: 7,
                        left: 1,
                        files: vec![JournaledFile { ino: FILE, base: Version(1), committed: false }],
                    }),
                },
                Op::JournaledContent {
                    journal: JournalId(5),
                    file: JournaledFile { ino: FILE, base: Version(1), committed: false },
                },
            ],
        ),
    ];
    let (seq, acked, caller) = (BatchSeq(1), BatchSeq(0), None);
    ops.into_iter().map(|(name, ops)| (name, Batch { seq, acked, caller: caller.clone(), ops })).collect()
}

/// Headers.
#[must_use]
pub fn frame() -> Samples {
    let request = RequestHeader { deadline_ms: 5000, request_id: 1 << 40, head_len: 100, payload_len: 4096 };
    let reply = |kind| ReplyHeader { kind, head_len: 10, payload_len: 0 }.encode().to_vec();
    vec![("request", request.encode().to_vec()), ("answer", reply(ReplyKind::Answer)), ("busy", reply(ReplyKind::Busy))]
}

/// Returns the heartbeat of a block daemon.
#[must_use]
pub fn heartbeat() -> BlockdHeartbeat {
    BlockdHeartbeat {
        id: BlockdId([1; 16]),
        name: "blockd-1".to_owned(),
        addr: addr(7201),
        zone: "zone".to_owned(),
        weight: 3,
        capacity_bytes: 1 << 40,
        free_bytes: 1 << 39,
        block_count: 9,
        epoch: EPOCH,
        every_ms: 1000,
        repair: report(),
        failed: false,
        revoked: wire::revoked::ListMark::default(),
    }
}

/// Messages of metad.
#[must_use]
pub fn meta() -> Samples {
    let (host, purpose) = ("host".to_owned(), "/mnt".to_owned());
    let open = MetaRequest::OpenSession { host, purpose, caches: true, resumes: Some(SESSION), token: Some(1) };
    let batch = batches().remove(1).1;
    let node = (MetadId(1), addr(7101));
    let redirect = Redirect { leader: Some(node), nodes: vec![node], term: 3, since: LogPlace { term: 2, index: 7 } };
    let caller = Caller { uid: 5, gid: 6, groups: vec![7, 300] };
    let (root, squash) = (Ino(1025), Squash::All { uid: 5, gid: 6 });
    let session = MetaReply::Session { session: SESSION, ttl_ms: 30_000, now: AT, layout: layout(), root, squash };
    let read = MetaReply::Read {
        answer: Ok(ReadReply::Opened { attr: attr(), page: page() }),
        leased: true,
        delegated: vec![FILE],
        tickets: vec![(HASH, ticket_key().ticket(&HOLDER, &HASH, (5, 9), AT))],
    };
    let receipts = vec![ticket_key().receipt(&HOLDER, &HASH)];
    let submit = MetaRequest::Submit { session: SESSION, batch: Batch { caller: Some(caller), ..batch }, receipts };
    let mut tickets = TicketKeys::default();
    tickets.add(ticket_key());
    let (some_layout, revoked) = (Some(layout()), Some(certs::revocations()));
    let blockd_alive = MetaReply::BlockdAlive { layout: some_layout, revoked, tickets, now: AT };
    let alive = MetaReply::Alive {
        now: AT,
        orphans: vec![FILE],
        layout: Some(layout()),
        leases: LeaseState::Extended { alone: true },
    };
    let request = vec![0x30, 0x03, 0x02, 0x01, 0x00];
    let enroll = EnrollRequest { token: TokenId(9), secret: Secret([5; 32]), request, host: "laptop".to_owned() };
    let issued = EnrollReply::Issued {
        cluster: "fuzzing".to_owned(),
        certificate: vec![0x30; 40],
        issuer: vec![0x30; 30],
        metads: vec![addr(7101)],
        steps: vec![certs::step()],
    };
    let others = vec![
        coded("enroll", enroll),
        coded("issued", issued),
        coded("refused", EnrollReply::Refused { why: EnrollRefusal::Expired { at: AT }, now: AT }),
        coded("clock-behind", EnrollReply::Refused { why: EnrollRefusal::ClockBehind { made: AT }, now: AT }),
        coded("open-session", open),
        coded("submit", submit),
        coded("acknowledge", MetaRequest::Acknowledge { session: SESSION, seqs: vec![1, 300] }),
        coded("heartbeat", MetaRequest::BlockdHeartbeat(heartbeat())),
        coded("block-report", MetaRequest::BlockReport { id: BlockdId([1; 16]), epoch: EPOCH, blocks: vec![HASH] }),
        coded("raft", MetaRequest::Raft { kind: RaftKind::Append, to: MetadId(2) }),
        coded("session", session),
        coded("not-leader", MetaReply::NotLeader(redirect)),
        coded("alive", alive),
        coded("read", read),
        coded("blockd-alive", blockd_alive),
    ];
    [others, certs::meta()].concat()
}

/// A key of tickets that is always the same.
pub(crate) fn ticket_key() -> TicketKey {
    codec::decode(&codec::encode(&(1_u64, AT, [7_u8; 32]))).expect("it has these fields")
}

fn page() -> ExtentPage {
    let extent = |write: ExtentWrite| Extent {
        file_off: write.file_off,
        len: write.len,
        source: write.source,
        version: Version(2),
    };
    ExtentPage {
        version: Version(2),
        size: 70_000,
        extents: contents().into_iter().map(extent).collect(),
        more_from: Some(70_000),
    }
}

/// Lists of what is revoked.
#[must_use]
pub fn revoked() -> Samples {
    let name = Revoked::Name { role: Role::Client, name: "host-1".to_owned(), until: AT };
    let list = vec![name, Revoked::Key(HOLDER), Revoked::Issuer(KeyId([8; 32]))];
    vec![coded("none", Revocations::default()), coded("some", Revocations { version: 3, list })]
}

/// Messages of operators.
#[must_use]
pub fn admin() -> Samples {
    let pin = Pin { name: "backup".to_owned(), made: AT, until: AT };
    let state = BlockdState {
        health: BlockdHealth::Draining,
        heard_ms: Some(100),
        free_bytes: 1,
        capacity_bytes: 2,
        repair: report(),
    };
    let status = ClusterStatus {
        cluster: "fuzzing".to_owned(),
        leader: MetadId(1),
        term: 3,
        applied: 100,
        metads: vec![(MetadId(1), addr(7101), true, 100)],
        metads_heard_ms: vec![Some(7)],
        metads_ever: vec![MetadId(1), MetadId(2)],
        layout: layout(),
        blockds: vec![state; 3],
        sessions: vec![(SESSION, "host".to_owned(), "/mnt".to_owned())],
        statfs: StatFs { total_bytes: 3, free_bytes: 2, inodes: 1 },
        deletion_stopped: Some(DeletionStop { reason: "restored".to_owned(), since: AT }),
        pins: vec![pin],
    };
    let (name, successor) = ("blockd-1".to_owned(), "blockd-2".to_owned());
    let (id, role, secret, uses) = (TokenId(9), Role::Client, Secret([5; 32]), 2);
    let grant = ClientGrant { read_only: true, ..ClientGrant::default() };
    let new = NewToken { id, hash: secret.hash(), role, name: None, grant: grant.clone(), uses, valid_ms: 3_600_000 };
    let used_by = vec!["laptop-01".to_owned()];
    let listed =
        TokenInfo { id, role, name: None, grant, uses, used_by, made: AT, until: AT, state: TokenState::Valid };
    let cluster = "fuzzing".to_owned();
    let token = JoinToken { cluster, metads: vec![addr(7101); 3], ca: [6; 32], role, id, secret };
    let others = vec![
        coded("add-metad", AdminRequest::AddMetad { id: MetadId(2), addr: addr(7102) }),
        coded("replace", AdminRequest::ReplaceBlockd { name: name.clone(), successor }),
        coded("weigh", AdminRequest::WeighBlockd { name: name.clone(), weight: 4 }),
        coded("pin", AdminRequest::PinBlocks { name, keep_ms: 86_400_000 }),
        coded("check", AdminRequest::Check(CheckRequest::Begin)),
        coded("status", AdminReply::Status(Box::new(status))),
        coded("problems", AdminReply::Problems(vec!["one".to_owned()])),
        coded("piece", BackupPiece::Bytes(bytes::Bytes::from_static(b"SURFBAK2"))),
        coded("end", BackupPiece::End { bytes: 8 }),
        coded("create-token", AdminRequest::CreateToken(new)),
        coded("tokens", AdminReply::Tokens(vec![listed])),
        ("token", token.to_text().into_bytes()),
    ];
    [others, certs::admin()].concat()
}

/// Messages of `surf fsck`.
#[must_use]
pub fn check() -> Samples {
    let (check, seen) = (CheckId(7), Seen { nlink: 1, ctime: AT });
    let repairs = vec![
        Repair::Links { ino: FILE, seen, found: 2 },
        Repair::Entry { parent: ROOT, cookie: 9, name: b"file".to_vec(), ino: FILE },
        Repair::References { hash: HASH, seen: Some(1), found: 2, len: 4096 },
        Repair::Index(vec![b'J', 1]),
    ];
    let finding = Finding {
        kind: FindingKind::LinkCount,
        place: "/file".to_owned(),
        what: "1 instead of 2".to_owned(),
        repair: repairs.first().cloned(),
    };
    let checked = CheckedBlock { hash: HASH, len: 4096, referenced: true, overdue: false };
    let used = BlockUse { hash: HASH, ino: FILE, path: "/file".to_owned(), range: 5..9 };
    let digest = StateDigest { applied: 1, pairs: 2, hash: [3; 32] };
    vec![
        coded("uses-of", CheckRequest::Uses { check, hashes: vec![HASH], after: Some((FILE, 5)) }),
        coded("referenced", CheckRequest::Referenced(vec![HASH])),
        coded("repair", CheckRequest::Repair { check, seq: 1, repairs }),
        coded("findings", CheckReply::Findings { findings: vec![finding], looked: 9, ended: true }),
        coded("blocks", CheckReply::Blocks { blocks: vec![checked], last: true }),
        coded("uses", CheckReply::Uses { uses: vec![used], after: None }),
        coded("digest", CheckReply::Digest(DigestState::Done(digest))),
    ]
}

/// Events.
#[must_use]
pub fn event() -> Samples {
    vec![
        coded("orphaned", MetaEvent::Orphaned(vec![FILE, DIR])),
        coded("layout", MetaEvent::LayoutChanged(EPOCH)),
        coded("trust-changed", MetaEvent::TrustChanged),
        coded("attached", MetaEvent::Attached { seq: Some(1) }),
        coded("recall", MetaEvent::Recall { seq: 2, inos: vec![FILE; 5] }),
        coded("share", MetaEvent::Share { seq: u64::MAX, inos: Vec::new() }),
    ]
}

/// Operations and their replies.
#[must_use]
pub fn op() -> Samples {
    let mut samples: Samples = batches().into_iter().map(|(name, batch)| coded(name, batch)).collect();
    let copy = ConflictCopy { ino: Ino(1100), parent: ROOT, name: b"file.conflict-host".to_vec() };
    let committed = OpReply::Committed { attr: attr(), appended_at: Some(9), conflict: Some(copy), chunk_extents: 3 };
    let done: BatchReply = Ok(vec![OpReply::Done, committed, OpReply::Inos { start: DIR, count: 4096 }]);
    let failed: BatchReply = Err(OpFailed { index: 3, error: FsError::NotEmpty });
    let entry = DirEntry {
        name: b"file".to_vec(),
        ino: FILE,
        kind: FileKind::Regular,
        cookie: 9,
        attr: Some(attr()),
        content: Some(page()),
    };
    let tree = ReadReply::Tree(vec![ListedDir { ino: ROOT, parent: ROOT, entries: vec![entry], end: true }]);
    let squash = Squash::Root { uid: 65_534, gid: 65_534 };
    let grant = ClientGrant { read_only: true, subtree: Some("/home".to_owned()), squash };
    samples.extend([
        coded("done", done),
        coded("failed", failed),
        coded("read-tree", Read::ReadTree { ino: ROOT, with: With::Contents, behind: vec![DIR], limit: 4096 }),
        coded("get-lock", Read::GetLock { ino: FILE, lock: lock() }),
        coded("tree", tree),
        coded("extents", ReadReply::Extents(page())),
        coded("subject", Subject { role: Role::Client, name: "client-1".to_owned(), grant }),
    ]);
    samples
}

/// Backup files.
#[must_use]
pub fn backup() -> Samples {
    let head = Head {
        cluster: "fuzzing".to_owned(),
        cluster_id: ClusterId([7; 16]),
        term: 3,
        index: 42,
        at: AT,
        rules: RulesVersion(1),
    };
    let made = |count: u8| {
        let mut writer = Writer::begin(Vec::new(), &head).expect("memory takes all");
        for number in 0..count {
            writer.record(&[b'I', number], &vec![number; usize::from(number)]).expect("memory takes all");
        }
        writer.finish().expect("memory takes all")
    };
    vec![("empty", made(0)), ("records", made(30))]
}
