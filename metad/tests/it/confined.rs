//! Confined clients that lie: whatever they name in whichever message, they get nothing across the border of their subtree,
//! and disturb nobody there.

use super::cluster::{Cluster, LIMIT, Session, opening};
use super::hostile::{leading, opened};
use std::collections::BTreeSet;
use std::time::Duration;
use wire::attr::{AttrChange, Timestamp};
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BatchSeq, BlockHash, Ino, JournalId, LayoutEpoch, SessionId, Version};
use wire::message::event::MetaEvent;
use wire::message::meta::{LeaseState, MetaReply, MetaRequest};
use wire::op::{
    Batch, BatchReply, ConflictPolicy, Expect, Lock, LockFamily, NewInode, Op, OpFailed, OpReply, RangeAction, Read,
    ReadReply, RenameMode, With, XattrMode,
};
use wire::quic::{Endpoint, EventReceiver};
use wire::tls::{Role, Squash, Subject};
use wire::{Error, FsError};

/// No further event comes after this time, on a busy machine either.
const QUIET: Duration = Duration::from_secs(2);

fn endpoint(cluster: &Cluster, name: &str, (subtree, squash): (Option<&str>, Squash)) -> Endpoint {
    let mut subject = Subject::new(Role::Client, name);
    (subject.grant.subtree, subject.grant.squash) = (subtree.map(str::to_owned), squash);
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &cluster.ca.issue(&subject).unwrap()).unwrap()
}

/// A client with a session that caches.
struct Client<'a> {
    cluster: &'a Cluster,
    endpoint: Endpoint,
    id: SessionId,
    seq: u64,
    events: EventReceiver,
}

impl<'a> Client<'a> {
    async fn new(cluster: &'a Cluster, name: &str, grant: (Option<&str>, Squash)) -> Self {
        let endpoint = endpoint(cluster, name, grant);
        let id = opened(cluster, &endpoint, true).await;
        let peer = leading(cluster, &endpoint).await;
        let mut events = peer.open_events(&MetaRequest::Events { session: id, dirty: false }).await.unwrap();
        assert!(matches!(events.next().await.unwrap(), MetaEvent::Attached { .. }));
        let client = Self { cluster, endpoint, id, seq: 0, events };
        assert!(matches!(client.keep_alive().await, MetaReply::Alive { leases: LeaseState::Extended { .. }, .. }));
        client
    }

    async fn ask(&self, request: &MetaRequest) -> MetaReply {
        self.cluster.ask_as(&self.endpoint, request).await
    }

    async fn keep_alive(&self) -> MetaReply {
        self.ask(&MetaRequest::KeepAlive { session: self.id, epoch: LayoutEpoch(0) }).await
    }

    async fn read(&self, read: Read) -> (Result<ReadReply, FsError>, bool, Vec<Ino>) {
        let request = MetaRequest::Read { session: self.id, read, delegate: true, sends: true, caller: None };
        match self.ask(&request).await {
            MetaReply::Read { answer, leased, delegated, .. } => (answer, leased, delegated),
            other => panic!("{other:?}"),
        }
    }

    async fn run(&mut self, op: Op) -> BatchReply {
        self.seq += 1;
        self.submit(self.seq, vec![op]).await
    }

    async fn submit(&self, seq: u64, ops: Vec<Op>) -> BatchReply {
        let batch = Batch { seq: BatchSeq(seq), acked: BatchSeq(seq - 1), caller: None, ops };
        match self.ask(&MetaRequest::Submit { session: self.id, batch, receipts: Vec::new() }).await {
            MetaReply::Batch { reply, delegated, .. } => {
                assert_eq!(delegated, []);
                reply
            }
            other => panic!("{other:?}"),
        }
    }

    async fn next_event(&mut self) -> Option<MetaEvent> {
        tokio::time::timeout(QUIET, self.events.next()).await.ok().map(Result::unwrap)
    }

    async fn acknowledge(&self, seq: u64) {
        self.ask(&MetaRequest::Acknowledge { session: self.id, seqs: vec![seq] }).await;
    }
}

/// A session that caches, so that no other one believes that it is alone.
async fn company(cluster: &Cluster) -> (Endpoint, EventReceiver) {
    let endpoint = endpoint(cluster, "company", (None, Squash::None));
    let session = opened(cluster, &endpoint, true).await;
    let peer = leading(cluster, &endpoint).await;
    let mut events = peer.open_events(&MetaRequest::Events { session, dirty: false }).await.unwrap();
    assert!(matches!(events.next().await.unwrap(), MetaEvent::Attached { .. }));
    (endpoint, events)
}

/// Directories and files: what the client is confined to, and what lies elsewhere.
struct Tree {
    home: Ino,
    below: Ino,
    inside: Ino,
    elsewhere: Ino,
    outside: Ino,
}

pub(super) async fn made(session: &mut Session<'_>, parent: Ino, name: &str, node: NewInode) -> Ino {
    let replies = session.run(vec![Op::LeaseInos { count: 1 }]).await.unwrap();
    let OpReply::Inos { start: ino, .. } = replies[0] else { panic!("{replies:?}") };
    let name = name.into();
    let op = Op::Create { parent, name, ino, node, mode: 0o777, umask: 0, uid: 0, gid: 0 };
    session.run(vec![op]).await.unwrap();
    ino
}

async fn tree(session: &mut Session<'_>) -> Tree {
    let home = made(session, Ino::ROOT, "home", NewInode::Directory).await;
    let below = made(session, home, "below", NewInode::Directory).await;
    let inside = made(session, below, "inside", NewInode::Regular).await;
    let elsewhere = made(session, Ino::ROOT, "elsewhere", NewInode::Directory).await;
    let outside = made(session, elsewhere, "outside", NewInode::Regular).await;
    Tree { home, below, inside, elsewhere, outside }
}

/// The place of an operation among its kinds: a new one has to be added to the lies below.
fn kind_of(op: &Op) -> usize {
    match op {
        Op::Create { .. } => 0,
        Op::Link { .. } => 1,
        Op::Unlink { .. } => 2,
        Op::Rmdir { .. } => 3,
        Op::Rename { .. } => 4,
        Op::SetAttr { .. } => 5,
        Op::Commit { .. } => 6,
        Op::Range { .. } => 7,
        Op::CloneRange { .. } => 8,
        Op::SetXattr { .. } => 9,
        Op::RemoveXattr { .. } => 10,
        Op::ReleaseOrphans { .. } => 11,
        Op::LeaseInos { .. } => 12,
        Op::SetLock { .. } => 13,
        Op::Unlock { .. } => 14,
        Op::Accessed { .. } => 15,
        Op::Deferred { .. } => 16,
        Op::Journaled { .. } => 17,
        Op::JournaledContent { .. } => KINDS - 1,
    }
}
const KINDS: usize = 19;

/// The place of a question among its kinds, likewise.
fn kind_of_read(read: &Read) -> usize {
    match read {
        Read::Lookup { .. } => 0,
        Read::GetAttr { .. } => 1,
        Read::Open { .. } => 2,
        Read::ReadLink { .. } => 3,
        Read::ReadDir { .. } => 4,
        Read::Extents { .. } => 5,
        Read::GetXattr { .. } => 6,
        Read::ListXattr { .. } => 7,
        Read::GetLock { .. } => 8,
        Read::StatFs => 9,
        Read::Journaled { .. } => 10,
        Read::ReadTree { .. } => READ_KINDS - 1,
    }
}
const READ_KINDS: usize = 12;

fn lock() -> Lock {
    Lock { family: LockFamily::Flock, owner: 1, pid: 1, start: 0, end: u64::MAX, exclusive: true }
}

fn rename((parent, name): (Ino, &str), (new_parent, new_name): (Ino, &str), mode: RenameMode) -> Op {
    Op::Rename { parent, name: name.into(), new_parent, new_name: new_name.into(), mode, released: None, seen: None }
}

/// Operations that name what lies elsewhere, with what they are answered.
fn lies(tree: &Tree, fresh: Ino) -> Vec<(Op, FsError)> {
    let Tree { home, below, inside, elsewhere, outside } = *tree;
    let commit = Op::Commit {
        ino: outside,
        base: Version(1),
        own: Vec::new(),
        writes: Vec::new(),
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::LastWriter,
    };
    let late = |expect, op: Op| Op::Deferred { at: Timestamp::default(), expect, op: Box::new(op) };
    let expect = Expect { parent: elsewhere, name: b"outside".to_vec(), ino: Some(outside), version: None };
    let create = |parent, ino| Op::Create {
        parent,
        name: b"new".to_vec(),
        ino,
        node: NewInode::Regular,
        mode: 0o666,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let chmod = |ino| Op::SetAttr { ino, change: AttrChange { mode: Some(0), ..AttrChange::default() } };
    let xattr = Op::SetXattr {
        ino: outside,
        name: b"user.x".to_vec(),
        value: Vec::new(),
        mode: XattrMode::Set,
        clear_sgid: false,
    };
    let n = || b"outside".to_vec();
    let mut lies: Vec<(Op, FsError)> = vec![
        create(elsewhere, fresh),
        create(Ino::ROOT, fresh),
        Op::Link { ino: outside, parent: home, name: b"link".to_vec() },
        Op::Link { ino: inside, parent: elsewhere, name: b"link".to_vec() },
        Op::Unlink { parent: elsewhere, name: n(), released: None },
        Op::Rmdir { parent: Ino::ROOT, name: b"home".to_vec(), seen: None },
        rename((elsewhere, "outside"), (home, "mine"), RenameMode::Replace),
        rename((below, "inside"), (elsewhere, "outside"), RenameMode::Replace),
        rename((below, "inside"), (elsewhere, "outside"), RenameMode::Exchange),
        rename((Ino::ROOT, "home"), (Ino::ROOT, "mine"), RenameMode::Replace),
        chmod(outside),
        chmod(Ino::ROOT),
        commit.clone(),
        Op::Range { ino: outside, off: 0, len: 1, action: RangeAction::Punch },
        Op::CloneRange { src: outside, src_off: 0, dst: inside, dst_off: 0, len: 1 },
        Op::CloneRange { src: inside, src_off: 0, dst: outside, dst_off: 0, len: 1 },
        xattr,
        Op::RemoveXattr { ino: outside, name: b"user.x".to_vec() },
        Op::SetLock { ino: outside, lock: lock() },
        Op::Accessed { ino: outside, at: Timestamp::default() },
        late(Vec::new(), commit),
        late(vec![expect], chmod(inside)),
    ]
    .into_iter()
    .map(|op| (op, FsError::NotFound))
    .collect();
    lies.push((create(home, outside), FsError::Invalid));
    lies.push((Op::Journaled { journal: JournalId(7), position: None }, FsError::NotPermitted));
    let file = wire::op::JournaledFile { ino: inside, base: Version(1), committed: false };
    lies.push((Op::JournaledContent { journal: JournalId(7), file }, FsError::NotPermitted));
    lies
}

/// Questions about what lies elsewhere, with what they are answered.
fn questions(tree: &Tree) -> Vec<(Read, FsError)> {
    let Tree { elsewhere, outside, .. } = *tree;
    let mut questions: Vec<(Read, FsError)> = vec![
        Read::Lookup { parent: elsewhere, name: b"outside".to_vec() },
        Read::Lookup { parent: Ino::ROOT, name: b"home".to_vec() },
        Read::GetAttr { ino: outside },
        Read::GetAttr { ino: Ino::ROOT },
        Read::Open { ino: outside },
        Read::ReadLink { ino: outside },
        Read::ReadDir { ino: elsewhere, after: 0, limit: 9, with: With::Contents },
        Read::ReadTree { ino: elsewhere, with: With::Contents, behind: Vec::new(), limit: 9 },
        Read::Extents { ino: outside, off: 0, len: 9 },
        Read::GetXattr { ino: outside, name: b"user.x".to_vec() },
        Read::ListXattr { ino: outside },
        Read::GetLock { ino: outside, lock: lock() },
    ]
    .into_iter()
    .map(|read| (read, FsError::NotFound))
    .collect();
    questions.push((Read::Journaled { journal: JournalId(7) }, FsError::NotPermitted));
    questions
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_client_that_names_what_lies_elsewhere_finds_nothing_and_disturbs_nobody() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let _company = company(&cluster).await;
    owner.run(vec![Op::Journaled { journal: JournalId(7), position: Some(Default::default()) }]).await.unwrap();
    // Its session is opened first: for that, others are asked for what they did along its path.
    let mut liar = Client::new(&cluster, "liar", (Some("/home"), Squash::None)).await;
    let mut honest = Client::new(&cluster, "honest", (None, Squash::None)).await;
    for ino in [Ino::ROOT, tree.elsewhere, tree.outside] {
        let (_, leased, delegated) = honest.read(Read::Open { ino }).await;
        assert!(leased && delegated.contains(&ino));
    }
    let replies = liar.run(Op::LeaseInos { count: 1 }).await.unwrap();
    let OpReply::Inos { start: fresh, .. } = replies[0] else { panic!("{replies:?}") };
    let (lies, questions) = (lies(&tree, fresh), questions(&tree));
    // What names no inode, or none but by an answer that is the same for all, is no lie.
    let unlock = Op::Unlock { ino: tree.outside, family: LockFamily::Flock, owner: 1, start: 0, end: u64::MAX };
    let harmless = [Op::ReleaseOrphans { inos: vec![tree.outside] }, Op::LeaseInos { count: 1 }, unlock];
    let kinds: BTreeSet<usize> = lies.iter().map(|(op, _)| op).chain(&harmless).map(kind_of).collect();
    assert_eq!(kinds.len(), KINDS);
    let read_kinds: BTreeSet<usize> =
        questions.iter().map(|(read, _)| read).chain([&Read::StatFs]).map(kind_of_read).collect();
    assert_eq!(read_kinds.len(), READ_KINDS);
    for (op, error) in lies {
        assert_eq!(liar.run(op.clone()).await, Err(OpFailed { index: 0, error }), "{op:?}");
    }
    for op in harmless {
        liar.run(op).await.unwrap();
    }
    for (read, error) in questions {
        let (answer, leased, delegated) = liar.read(read.clone()).await;
        assert_eq!((answer, leased, delegated), (Err(error), false, Vec::new()), "{read:?}");
    }
    assert!(liar.read(Read::StatFs).await.0.is_ok());
    let disturbed = honest.next_event().await;
    assert!(disturbed.is_none(), "{disturbed:?}");
    assert_eq!(cluster.findings().await, Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_client_hears_of_nothing_that_lies_elsewhere() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let _company = company(&cluster).await;
    let mut confined = Client::new(&cluster, "confined", (Some("/home"), Squash::None)).await;
    assert!(confined.read(Read::GetAttr { ino: tree.home }).await.1);
    assert!(confined.read(Read::GetAttr { ino: tree.below }).await.1);
    owner.run(vec![Op::SetLock { ino: tree.outside, lock: lock() }]).await.unwrap();
    let unlock = Op::Unlock { ino: tree.outside, family: LockFamily::Flock, owner: 1, start: 0, end: u64::MAX };
    owner.run(vec![unlock]).await.unwrap();
    owner.run(vec![Op::Unlink { parent: tree.elsewhere, name: b"outside".to_vec(), released: None }]).await.unwrap();
    let event = confined.next_event().await;
    assert!(event.is_none(), "{event:?}");
    assert!(matches!(confined.keep_alive().await, MetaReply::Alive { orphans, .. } if orphans.is_empty()));
    // Of a change on both sides of the border, it hears the part that it can see.
    let moved = rename((tree.below, "inside"), (tree.elsewhere, "inside"), RenameMode::Replace);
    let (outcome, ()) = tokio::join!(owner.run(vec![moved]), async {
        match confined.next_event().await {
            Some(MetaEvent::Recall { seq, inos }) => {
                let known = [tree.below, tree.inside];
                assert!(inos.iter().all(|ino| known.contains(ino)), "{inos:?}");
                confined.acknowledge(seq).await;
            }
            other => panic!("{other:?}"),
        }
    });
    outcome.unwrap();
    assert_eq!(confined.read(Read::GetAttr { ino: tree.inside }).await.0, Err(FsError::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_moved_out_takes_along_all_leases_before_the_move_is_answered() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let _company = company(&cluster).await;
    let mut confined = Client::new(&cluster, "confined", (Some("/home"), Squash::None)).await;
    // Only this file, and nothing that the move touches.
    let (answer, leased, delegated) = confined.read(Read::Open { ino: tree.inside }).await;
    assert!(answer.is_ok() && leased && delegated.is_empty());
    let out = rename((tree.home, "below"), (tree.elsewhere, "below"), RenameMode::Replace);
    let (outcome, ()) = tokio::join!(owner.run(vec![out]), async {
        let mut emptied = false;
        while let Some(event) = confined.next_event().await {
            match event {
                MetaEvent::RecallAll { seq } => {
                    // Until the move is made the file is there, and not to be cached.
                    let (answer, leased, _) = confined.read(Read::Open { ino: tree.inside }).await;
                    assert!(answer.is_ok() && !leased);
                    emptied = true;
                    confined.acknowledge(seq).await;
                }
                MetaEvent::Recall { seq, .. } => confined.acknowledge(seq).await,
                other => panic!("{other:?}"),
            }
        }
        assert!(emptied);
    });
    outcome.unwrap();
    for ino in [tree.below, tree.inside] {
        assert_eq!(confined.read(Read::GetAttr { ino }).await.0, Err(FsError::NotFound));
    }
    // Afterwards it caches again what it sees.
    assert!(matches!(confined.keep_alive().await, MetaReply::Alive { leases: LeaseState::Extended { .. }, .. }));
    assert!(confined.read(Read::GetAttr { ino: tree.home }).await.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_delegation_has_made_or_moved_counts_before_a_confined_client_is_answered() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let _company = company(&cluster).await;
    let mut holder = Client::new(&cluster, "holder", (None, Squash::None)).await;
    let (_, _, delegated) = holder.read(Read::GetAttr { ino: tree.home }).await;
    assert!(delegated.contains(&tree.home));
    let confined = Client::new(&cluster, "confined", (Some("/home"), Squash::None)).await;
    // It is two levels below what the other one may have changed.
    let (answer, ()) = tokio::join!(confined.read(Read::GetAttr { ino: tree.inside }), async {
        let mut shared = false;
        while let Some(event) = holder.next_event().await {
            if let MetaEvent::Share { seq, inos } = event {
                assert_eq!(inos, [tree.home]);
                shared = true;
                holder.acknowledge(seq).await;
            }
        }
        assert!(shared);
    });
    assert!(answer.0.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_confined_to_where_its_path_leads_once_others_have_sent_what_they_did() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let _company = company(&cluster).await;
    let mut holder = Client::new(&cluster, "holder", (None, Squash::None)).await;
    let (_, _, delegated) = holder.read(Read::GetAttr { ino: Ino::ROOT }).await;
    assert!(delegated.contains(&Ino::ROOT));
    let confined = endpoint(&cluster, "confined", (Some("/home"), Squash::None));
    let request = opening(false, None, None);
    let (opened, ()) = tokio::join!(cluster.ask_as(&confined, &request), async {
        let Some(MetaEvent::Share { seq, inos }) = holder.next_event().await else { panic!("nobody asked") };
        assert_eq!(inos, [Ino::ROOT]);
        let exchange = rename((Ino::ROOT, "home"), (Ino::ROOT, "elsewhere"), RenameMode::Exchange);
        let late = Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(exchange) };
        let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops: vec![late] };
        let sent = holder.ask(&MetaRequest::Submit { session: holder.id, batch, receipts: Vec::new() }).await;
        assert!(matches!(sent, MetaReply::Batch { reply: Ok(_), .. }), "{sent:?}");
        holder.acknowledge(seq).await;
    });
    assert!(matches!(opened, MetaReply::Session { root, .. } if root == tree.elsewhere), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_of_one_certificate_with_its_bounds_and_needs_a_subtree_that_is_there() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let request = || opening(false, None, None);
    let absent = endpoint(&cluster, "absent", (Some("/absent"), Squash::None));
    assert!(matches!(cluster.ask_as(&absent, &request()).await, MetaReply::Failed(FsError::NotFound)));
    let confined = endpoint(&cluster, "one", (Some("/home"), Squash::All { uid: 5, gid: 6 }));
    match cluster.ask_as(&confined, &request()).await {
        MetaReply::Session { root, squash, .. } => {
            assert_eq!((root, squash), (tree.home, Squash::All { uid: 5, gid: 6 }));
        }
        other => panic!("{other:?}"),
    }
    // The same name with other bounds is another client: neither takes the sessions of the other.
    let free = endpoint(&cluster, "one", (None, Squash::None));
    let of_free = opened(&cluster, &free, false).await;
    let read = |session, ino| {
        let read = Read::GetAttr { ino };
        MetaRequest::Read { session, read, delegate: false, sends: false, caller: None }
    };
    let stolen = cluster.ask_as(&confined, &read(of_free, tree.outside)).await;
    assert!(matches!(stolen, MetaReply::Failed(FsError::SessionExpired)), "{stolen:?}");
    let resuming = opening(false, Some(of_free), None);
    cluster.ask_as(&confined, &resuming).await;
    let kept = cluster.ask_as(&free, &read(of_free, tree.outside)).await;
    assert!(matches!(kept, MetaReply::Read { answer: Ok(_), .. }), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_come_with_the_number_of_an_answered_batch_are_not_looked_at() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let _company = company(&cluster).await;
    let mut liar = Client::new(&cluster, "liar", (Some("/home"), Squash::None)).await;
    let mut honest = Client::new(&cluster, "honest", (None, Squash::None)).await;
    owner.run(vec![Op::SetLock { ino: tree.inside, lock: lock() }]).await.unwrap();
    let (_, leased, delegated) = honest.read(Read::Open { ino: tree.outside }).await;
    assert!(leased && delegated.contains(&tree.outside));
    let first = liar.run(Op::LeaseInos { count: 1 }).await;
    let mine = Lock { owner: 2, exclusive: false, family: LockFamily::Posix, ..lock() };
    let unlock = Op::Unlock { ino: tree.inside, family: LockFamily::Posix, owner: 2, start: 0, end: u64::MAX };
    let many = [
        lies(&tree, Ino(777)).into_iter().map(|(op, _)| op).collect::<Vec<_>>(),
        vec![Op::SetLock { ino: tree.outside, lock: mine }, unlock],
    ];
    for ops in many.clone() {
        assert_eq!(liar.submit(liar.seq, ops).await, first);
    }
    // Nor are those of a session that has ended.
    assert!(matches!(liar.ask(&MetaRequest::CloseSession { session: liar.id }).await, MetaReply::Done));
    for ops in many {
        assert_eq!(liar.submit(liar.seq, ops).await, first);
    }
    let disturbed = honest.next_event().await;
    assert!(disturbed.is_none(), "{disturbed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_session_that_has_ended_is_told_so_by_whatever_it_sends() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let mut confined = Client::new(&cluster, "confined", (Some("/home"), Squash::None)).await;
    let replies = confined.run(Op::LeaseInos { count: 1 }).await.unwrap();
    let OpReply::Inos { start: ino, .. } = replies[0] else { panic!("{replies:?}") };
    assert!(matches!(confined.ask(&MetaRequest::CloseSession { session: confined.id }).await, MetaReply::Done));
    let create = Op::Create {
        parent: tree.home,
        name: b"new".to_vec(),
        ino,
        node: NewInode::Regular,
        mode: 0o666,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let batch = Batch { seq: BatchSeq(2), acked: BatchSeq(0), caller: None, ops: vec![create] };
    let reply = confined.ask(&MetaRequest::Submit { session: confined.id, batch, receipts: Vec::new() }).await;
    assert!(matches!(reply, MetaReply::Failed(FsError::SessionExpired)), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_is_asked_for_again_disturbs_nobody_again() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    tree(&mut owner).await;
    let _company = company(&cluster).await;
    let confined = endpoint(&cluster, "confined", (Some("/home"), Squash::None));
    let request = opening(true, None, Some(77));
    let MetaReply::Session { session: first, .. } = cluster.ask_as(&confined, &request).await else { panic!() };
    let mut holder = Client::new(&cluster, "holder", (None, Squash::None)).await;
    let (_, _, delegated) = holder.read(Read::GetAttr { ino: Ino::ROOT }).await;
    assert!(delegated.contains(&Ino::ROOT));
    let MetaReply::Session { session: second, .. } = cluster.ask_as(&confined, &request).await else { panic!() };
    assert_eq!(second, first);
    let disturbed = holder.next_event().await;
    assert!(disturbed.is_none(), "{disturbed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_client_commits_no_block_that_it_has_not_sent_and_gets_tickets_for_what_it_sees() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    let tree = tree(&mut owner).await;
    let mut liar = Client::new(&cluster, "liar", (Some("/home"), Squash::None)).await;
    let honest = Client::new(&cluster, "honest", (None, Squash::None)).await;
    let commit = |base, number: u8| Op::Commit {
        ino: tree.inside,
        base: Version(base),
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 0, len: 50, source: Source::block(BlockHash([number; 32]), 99, 9) }],
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    };
    owner.run(vec![commit(1, 1)]).await.unwrap();
    for number in [1, 2] {
        let refused = OpFailed { index: 0, error: FsError::NotPermitted };
        assert_eq!(liar.run(commit(2, number)).await, Err(refused));
    }
    let tickets = async |client: &Client<'_>, read: Read| {
        let request = MetaRequest::Read { session: client.id, read, delegate: false, sends: false, caller: None };
        match client.ask(&request).await {
            MetaReply::Read { answer: Ok(_), tickets, .. } => tickets,
            other => panic!("{other:?}"),
        }
    };
    let listing = Read::ReadDir { ino: tree.below, after: 0, limit: 9, with: With::Contents };
    for read in [Read::Open { ino: tree.inside }, Read::Extents { ino: tree.inside, off: 0, len: 9 }, listing] {
        let got = tickets(&liar, read.clone()).await;
        let [(hash, ticket)] = &got[..] else { panic!("{got:?}") };
        assert_eq!((*hash, ticket.offset, ticket.len), (BlockHash([1; 32]), 9, 50));
        assert_eq!(tickets(&honest, read).await, [], "it needs none");
    }
}

/// What a client may send to metad besides operations and questions.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_message_shows_a_confined_client_anything_of_others() {
    let cluster = Cluster::start(1).await;
    let mut owner = cluster.session().await;
    tree(&mut owner).await;
    let liar = endpoint(&cluster, "liar", (Some("/home"), Squash::None));
    let session = owner.id;
    let peer = leading(&cluster, &liar).await;
    let alive = MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
    let reply = cluster.ask_as(&liar, &alive).await;
    assert!(matches!(reply, MetaReply::Failed(FsError::SessionExpired)), "{reply:?}");
    for request in [MetaRequest::CloseSession { session }, MetaRequest::Acknowledge { session, seqs: vec![1] }] {
        assert!(matches!(cluster.ask_as(&liar, &request).await, MetaReply::Done));
    }
    let events = peer.open_events(&MetaRequest::Events { session, dirty: true }).await;
    let first = match events {
        Ok(mut events) => events.next::<MetaEvent>().await,
        Err(error) => Err(error),
    };
    assert!(matches!(first, Err(Error::Refused { .. })), "{first:?}");
    for request in [MetaRequest::Backup, MetaRequest::Admin(wire::message::admin::AdminRequest::Status)] {
        let asked = peer.request::<_, MetaReply>(&request, &[], LIMIT).await;
        assert!(matches!(asked, Err(Error::Refused { .. })), "{asked:?}");
    }
    owner.create("after").await;
}
