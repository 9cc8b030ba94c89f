//! Tests of the state machine against a plain model, and of the invariants that it holds.

mod bounds;
mod confined;
mod formats;
mod fsck;
mod recovery;

use super::session::{Confined, Opening};
use super::view::MemoryKv;
use super::{Command, CommandReply, Refused, Stamped, View, apply, check, read, settings};
use proptest::prelude::*;
use std::collections::BTreeMap;
use wire::FsError;
use wire::attr::{AttrChange, FileKind, Timestamp};
use wire::extent::{ExtentWrite, Source};
use wire::ids::{BatchSeq, Ino, JournalId, SessionId, Version};
use wire::limits::{INLINE_BYTES_MAX, LISTED_CONTENTS_BYTES_MAX, READDIR_PAGE_MAX};
use wire::op::{
    Batch, BatchReply, ConflictPolicy, Expect, JournalPosition, JournaledFile, NewInode, Op, OpReply, RangeAction,
    Read, ReadReply, RenameMode, With,
};

/// A state with the sessions that work on it.
struct World {
    kv: MemoryKv,
    clock: i64,
    seqs: BTreeMap<SessionId, u64>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { kv: MemoryKv::default(), clock: 1_000, seqs: BTreeMap::new() };
        world.apply(Command::Init { cluster: "test".to_owned(), replicas: 1, min_sync: 1 });
        world
    }

    fn apply(&mut self, command: Command) -> CommandReply {
        self.clock += 1;
        let mut view = View::new(&self.kv);
        let reply = apply(&mut view, &Stamped { now: Timestamp { secs: self.clock, nanos: 0 }, command });
        let changes = view.into_changes();
        self.kv.absorb(changes);
        reply
    }

    fn session(&mut self) -> SessionId {
        self.session_of("c", None)
    }

    fn session_of(&mut self, client: &str, confined: Option<Confined>) -> SessionId {
        let opening = Opening {
            host: "h".to_owned(),
            purpose: "test".to_owned(),
            client: client.to_owned(),
            caches: false,
            resumes: None,
            token: None,
            confined,
        };
        let CommandReply::Session(id) = self.apply(Command::OpenSession(opening)) else { panic!("no session") };
        self.seqs.insert(id, 0);
        self.run(id, vec![Op::LeaseInos { count: 4096 }]).unwrap();
        id
    }

    fn submit(&mut self, id: SessionId, batch: &Batch) -> Result<BatchReply, Refused> {
        match self.apply(Command::Batches(vec![(id, batch.clone())])) {
            CommandReply::Batches(mut replies) => replies.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, id: SessionId, ops: Vec<Op>) -> BatchReply {
        let seq = self.seqs.get_mut(&id).unwrap();
        *seq += 1;
        let batch = Batch { seq: BatchSeq(*seq), acked: BatchSeq(*seq - 1), caller: None, ops };
        self.submit(id, &batch).unwrap()
    }

    fn one(&mut self, id: SessionId, op: Op) -> Result<OpReply, FsError> {
        self.run(id, vec![op]).map(|mut replies| replies.remove(0)).map_err(|failed| failed.error)
    }

    fn attr(&self, ino: Ino) -> wire::attr::InodeAttr {
        match read::read(&self.kv, SessionId(1), &Read::GetAttr { ino }) {
            Ok(ReadReply::Attr(attr)) => attr,
            other => panic!("{other:?}"),
        }
    }

    fn lookup(&self, parent: Ino, name: &str) -> Result<Ino, FsError> {
        match read::read(&self.kv, SessionId(1), &Read::Lookup { parent, name: name.into() })? {
            ReadReply::Attr(attr) => Ok(attr.ino),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the file's bytes. All of its content must be inline.
    fn bytes(&self, ino: Ino) -> Vec<u8> {
        let question = Read::Extents { ino, off: 0, len: u64::MAX };
        let Ok(ReadReply::Extents(page)) = read::read(&self.kv, SessionId(1), &question) else { panic!("no extents") };
        let mut bytes = vec![0; page.size as usize];
        for extent in page.extents {
            if let Source::Inline(content) = &extent.source {
                let start = extent.file_off as usize;
                let end = (start + content.len()).min(bytes.len());
                if start < end {
                    bytes[start..end].copy_from_slice(&content[..end - start]);
                }
            }
        }
        bytes
    }
}

fn create(parent: Ino, name: &str, ino: u64, node: NewInode) -> Op {
    Op::Create { parent, name: name.into(), ino: Ino(ino), node, mode: 0o644, umask: 0o022, uid: 1, gid: 1 }
}

fn write(ino: Ino, base: Version, at: u64, bytes: &[u8], policy: ConflictPolicy) -> Op {
    let source = Source::Inline(bytes.to_vec());
    Op::Commit {
        ino,
        base,
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: at, len: bytes.len() as u64, source }],
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy,
    }
}

const A: u64 = 1024;

/// Guards I1.
#[test]
fn a_batch_sent_twice_is_applied_once_and_answers_the_same() {
    let mut world = World::new();
    let id = world.session();
    let batch = Batch {
        seq: BatchSeq(2),
        acked: BatchSeq(1),
        caller: None,
        ops: vec![create(Ino::ROOT, "a", A, NewInode::Regular)],
    };
    let first = world.submit(id, &batch).unwrap();
    assert!(first.is_ok());
    let state = world.kv.clone();
    assert_eq!(world.submit(id, &batch).unwrap(), first);
    assert_eq!(world.kv, state, "nothing changes the second time");
}

/// Guards I1.
#[test]
fn independent_batches_of_a_session_may_overtake_each_other() {
    let mut world = World::new();
    let id = world.session();
    let batch = |seq, name: &str, ino| Batch {
        seq: BatchSeq(seq),
        acked: BatchSeq(1),
        caller: None,
        ops: vec![create(Ino::ROOT, name, ino, NewInode::Regular)],
    };
    assert!(world.submit(id, &batch(3, "b", A + 1)).unwrap().is_ok());
    assert!(world.submit(id, &batch(2, "a", A)).unwrap().is_ok());
    assert_eq!(world.submit(id, &batch(1, "c", A + 2)), Err(Refused::OutOfWindow), "1 was acknowledged");
    assert_eq!(world.submit(id, &batch(5000, "c", A + 2)), Err(Refused::OutOfWindow));
}

/// Guards I3.
#[test]
fn a_batch_whose_last_operation_fails_leaves_nothing_behind() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    let failed = world
        .run(
            id,
            vec![create(Ino::ROOT, "b", A + 1, NewInode::Regular), create(Ino::ROOT, "a", A + 2, NewInode::Regular)],
        )
        .unwrap_err();
    assert_eq!((failed.index, failed.error), (1, FsError::Exists));
    assert_eq!(world.lookup(Ino::ROOT, "b"), Err(FsError::NotFound));
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

/// Guards I4.
#[test]
fn an_inode_number_is_only_taken_from_the_sessions_own_range() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    assert_eq!(world.one(second, create(Ino::ROOT, "a", A, NewInode::Regular)), Err(FsError::Invalid));
    world.one(first, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    assert_eq!(world.one(first, create(Ino::ROOT, "b", A, NewInode::Regular)), Err(FsError::Invalid));
}

/// Guards I6.
#[test]
fn writes_to_different_ranges_are_merged_and_of_writes_to_one_range_both_are_stored() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    world.one(first, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    let base = world.attr(Ino(A)).version;
    world.one(first, write(Ino(A), base, 0, b"first", ConflictPolicy::Fail)).unwrap();
    world.one(second, write(Ino(A), base, 10, b"second", ConflictPolicy::Fail)).unwrap();
    assert_eq!(world.bytes(Ino(A)), b"first\0\0\0\0\0second");

    assert_eq!(world.one(second, write(Ino(A), base, 3, b"XX", ConflictPolicy::Fail)), Err(FsError::Stale));
    let copy = ConflictPolicy::Copy { ino: Ino(A + 4096), suffix: b".conflict-h-1".to_vec() };
    let reply = world.one(second, write(Ino(A), base, 3, b"XX", copy)).unwrap();
    let OpReply::Committed { conflict: Some(conflict), .. } = reply else { panic!("{reply:?}") };
    assert_eq!(conflict.name, b"a.conflict-h-1");
    assert_eq!(world.lookup(Ino::ROOT, "a.conflict-h-1"), Ok(conflict.ino));
    assert_eq!(world.bytes(conflict.ino), b"firXX\0\0\0\0\0second");
    assert_eq!(world.bytes(Ino(A)), b"first\0\0\0\0\0second", "the first to commit keeps the name");
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

/// Guards I6.
#[test]
fn a_copy_whose_suffix_fills_its_name_is_numbered_and_a_longer_suffix_is_refused() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    world.one(first, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    let base = world.attr(Ino(A)).version;
    world.one(first, write(Ino(A), base, 0, b"first", ConflictPolicy::Fail)).unwrap();
    let longest = 255 - ".4294967295".len();
    let mut copy = |ino, bytes| {
        let policy = ConflictPolicy::Copy { ino: Ino(ino), suffix: vec![b's'; bytes] };
        world.one(second, write(Ino(A), base, 0, b"XX", policy))
    };
    for number in 0..3 {
        let reply = copy(A + 4096 + number, longest).unwrap();
        let OpReply::Committed { conflict: Some(conflict), .. } = reply else { panic!("{reply:?}") };
        assert_eq!(conflict.name.ends_with(format!(".{number}").as_bytes()), number > 0);
    }
    assert_eq!(copy(A + 5000, longest + 1), Err(FsError::NameTooLong));
    assert_eq!(copy(A + 5000, 1000), Err(FsError::NameTooLong));
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

/// Guards I6.
#[test]
fn a_write_over_bytes_that_were_cut_meanwhile_is_a_conflict() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    world.one(id, write(Ino(A), Version(1), 0, b"0123456789", ConflictPolicy::Fail)).unwrap();
    let base = world.attr(Ino(A)).version;
    let change = AttrChange { size: Some(4), ..AttrChange::default() };
    world.one(id, Op::SetAttr { ino: Ino(A), change }).unwrap();
    assert_eq!(world.one(id, write(Ino(A), base, 6, b"X", ConflictPolicy::Fail)), Err(FsError::Stale));
    world.one(id, write(Ino(A), base, 1, b"X", ConflictPolicy::Fail)).unwrap();
    assert_eq!(world.bytes(Ino(A)), b"0X23");
}

#[test]
fn an_open_file_survives_its_last_name_until_every_session_has_released_it() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    world.one(first, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    let unlink = Op::Unlink { parent: Ino::ROOT, name: b"a".to_vec(), released: Some(Ino(A)) };
    let reply = world.one(first, unlink).unwrap();
    assert!(matches!(reply, OpReply::Removed { orphaned: false, .. }), "the asker vouched: {reply:?}");
    assert_eq!(world.attr(Ino(A)).nlink, 0, "the second session may hold it");
    assert_eq!(super::orphan::of_session(&world.kv, second, Ino(0), 10), [Ino(A)]);
    world.apply(Command::CloseSessions(vec![second]));
    assert!(read::read(&world.kv, first, &Read::GetAttr { ino: Ino(A) }).is_err());
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn a_batch_of_operations_that_each_change_a_terabyte_is_refused_before_it_fills_the_memory() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    let zeros = RangeAction::Zero { keep_size: false };
    let op = Op::Range { ino: Ino(A), off: 0, len: 1 << 40, action: zeros };
    let refused = world.run(id, vec![op; 100]).unwrap_err();
    assert!((16..64).contains(&refused.index), "{refused:?}");
    assert_eq!(refused.error, FsError::ArgumentTooLarge);
    assert_eq!((world.attr(Ino(A)).size, world.attr(Ino(A)).allocated), (0, 0));
}

#[test]
fn a_directory_never_moves_into_its_own_subtree() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "a", A, NewInode::Directory)).unwrap();
    world.one(id, create(Ino(A), "b", A + 1, NewInode::Directory)).unwrap();
    let rename = |mode| Op::Rename {
        parent: Ino::ROOT,
        name: b"a".to_vec(),
        new_parent: Ino(A + 1),
        new_name: b"c".to_vec(),
        mode,
        released: None,
        seen: None,
    };
    assert_eq!(world.one(id, rename(RenameMode::Replace)), Err(FsError::Invalid));
    assert_eq!(world.one(id, rename(RenameMode::NoReplace)), Err(FsError::Invalid));
}

/// A kernel that has looked it up takes it for removed afterwards, and would go on doing so if another one was removed.
#[test]
fn only_the_directory_that_was_seen_at_a_name_is_removed_or_replaced() {
    let mut world = World::new();
    let id = world.session();
    for (name, ino) in [("seen", A), ("other", A + 1), ("moved", A + 2)] {
        world.one(id, create(Ino::ROOT, name, ino, NewInode::Directory)).unwrap();
    }
    let rename = |seen: Option<u64>, from: &[u8], to: &[u8]| Op::Rename {
        parent: Ino::ROOT,
        name: from.to_vec(),
        new_parent: Ino::ROOT,
        new_name: to.to_vec(),
        mode: RenameMode::Replace,
        released: None,
        seen: seen.map(Ino),
    };
    let rmdir = |seen, name: &[u8]| Op::Rmdir { parent: Ino::ROOT, name: name.to_vec(), seen: Some(Ino(seen)) };
    // Somebody else moves it away, and puts another one in its place.
    world.one(id, rename(None, b"seen", b"elsewhere")).unwrap();
    assert_eq!(world.one(id, rename(Some(A), b"moved", b"seen")), Err(FsError::Stale), "nothing is there");
    assert_eq!(world.one(id, rmdir(A, b"seen")), Err(FsError::Stale));
    world.one(id, rename(None, b"other", b"seen")).unwrap();
    assert_eq!(world.one(id, rename(Some(A), b"moved", b"seen")), Err(FsError::Stale), "another one is there");
    assert_eq!(world.one(id, rmdir(A, b"seen")), Err(FsError::Stale));
    world.one(id, rename(Some(A + 1), b"moved", b"seen")).unwrap();
    world.one(id, rmdir(A + 2, b"seen")).unwrap();
    world.one(id, rmdir(A, b"elsewhere")).unwrap();
}

/// The answer differs from that of a move: whoever caches names must not conclude that the first one is gone.
#[test]
fn two_names_of_one_inode_stay_when_one_is_renamed_to_the_other() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "a", A, NewInode::Regular)).unwrap();
    world.one(id, Op::Link { ino: Ino(A), parent: Ino::ROOT, name: b"b".to_vec() }).unwrap();
    for new_name in [b"b", b"a"] {
        let (parent, name, new_name) = (Ino::ROOT, b"a".to_vec(), new_name.to_vec());
        let op = Op::Rename {
            parent,
            name,
            new_parent: parent,
            new_name,
            mode: RenameMode::Replace,
            released: None,
            seen: None,
        };
        assert_eq!(world.one(id, op), Ok(OpReply::Done));
    }
    assert_eq!(world.attr(Ino(A)).nlink, 2);
}

/// A layout's epoch counts on without a gap. Guards I11.
#[test]
fn a_layout_made_on_an_older_one_changes_nothing() {
    let mut world = World::new();
    let mut layout = settings::layout(&world.kv);
    assert_eq!(world.apply(Command::SetLayout(layout.clone())), CommandReply::Stale);
    layout.epoch = layout.epoch.next();
    assert_eq!(world.apply(Command::SetLayout(layout.clone())), CommandReply::Done);
    assert_eq!(world.apply(Command::SetLayout(layout)), CommandReply::Stale);
}

/// What the model stores of an inode.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File(Vec<u8>),
    Dir(BTreeMap<String, u64>),
}

#[derive(Clone, Debug)]
enum Step {
    Create { dir: usize, name: u8, directory: bool },
    Link { node: usize, dir: usize, name: u8 },
    Unlink { dir: usize, name: u8 },
    Rmdir { dir: usize, name: u8 },
    Rename { dir: usize, name: u8, to: usize, new: u8 },
    Write { node: usize, at: u8, len: u8, byte: u8 },
    Truncate { node: usize, size: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let (dir, name, node) = (0_usize..5, 0_u8..5, 0_usize..8);
    prop_oneof![
        3 => (dir.clone(), name.clone(), any::<bool>())
            .prop_map(|(dir, name, directory)| Step::Create { dir, name, directory }),
        1 => (node.clone(), dir.clone(), name.clone()).prop_map(|(node, dir, name)| Step::Link { node, dir, name }),
        1 => (dir.clone(), name.clone()).prop_map(|(dir, name)| Step::Unlink { dir, name }),
        1 => (dir.clone(), name.clone()).prop_map(|(dir, name)| Step::Rmdir { dir, name }),
        2 => (dir.clone(), name.clone(), dir, name)
            .prop_map(|(dir, name, to, new)| Step::Rename { dir, name, to, new }),
        3 => (node.clone(), 0_u8..60, 1_u8..40, any::<u8>())
            .prop_map(|(node, at, len, byte)| Step::Write { node, at, len, byte }),
        1 => (node, 0_u8..80).prop_map(|(node, size)| Step::Truncate { node, size }),
    ]
}

/// A filesystem in memory, as simple as possible.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<u64, Node>,
}

impl Model {
    fn dirs(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| matches!(node, Node::Dir(_))).map(|(ino, _)| *ino).collect()
    }

    fn files(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(_))).map(|(ino, _)| *ino).collect()
    }

    fn dir(&mut self, ino: u64) -> &mut BTreeMap<String, u64> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Dir(entries)) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn drop_if_unnamed(&mut self, ino: u64) {
        let named =
            self.nodes.values().any(|node| matches!(node, Node::Dir(names) if names.values().any(|n| *n == ino)));
        if !named {
            self.nodes.remove(&ino);
        }
    }

    fn within(&self, dir: u64, ancestor: u64) -> bool {
        dir == ancestor
            || matches!(&self.nodes[&ancestor], Node::Dir(names)
                if names.values().any(|ino| matches!(self.nodes[ino], Node::Dir(_)) && self.within(dir, *ino)))
    }

    /// Moves an entry as `rename(2)` does; returns false when it is refused.
    fn rename(&mut self, dir: u64, name: &str, to: u64, new: &str) -> bool {
        let Some(source) = self.dir(dir).get(name).copied() else { return false };
        let source_is_dir = matches!(self.nodes[&source], Node::Dir(_));
        if source_is_dir && self.within(to, source) {
            return false;
        }
        let target = self.dir(to).get(new).copied();
        if target == Some(source) {
            return true;
        }
        if let Some(target) = target {
            match (&self.nodes[&target], source_is_dir) {
                (Node::Dir(entries), true) if entries.is_empty() => {}
                (Node::File(_), false) => {}
                _ => return false,
            }
        }
        self.dir(dir).remove(name);
        self.dir(to).insert(new.to_owned(), source);
        if let Some(target) = target {
            self.drop_if_unnamed(target);
        }
        true
    }
}

/// Takes a step on both; they must agree on whether it succeeds.
fn step_both(world: &mut World, model: &mut Model, id: SessionId, next: &mut u64, step: &Step) {
    let pick = |list: Vec<u64>, index: usize| (!list.is_empty()).then(|| list[index % list.len()]);
    let dir = |model: &Model, index| pick(model.dirs(), index).unwrap();
    let name = |name: u8| format!("n{name}");
    match step {
        Step::Create { dir: at, name: n, directory } => {
            let (at, ino) = (dir(model, *at), *next);
            let node = if *directory { NewInode::Directory } else { NewInode::Regular };
            let made = world.one(id, create(Ino(at), &name(*n), ino, node)).is_ok();
            assert_eq!(made, !model.dir(at).contains_key(&name(*n)));
            if made {
                *next += 1;
                model.dir(at).insert(name(*n), ino);
                let node = if *directory { Node::Dir(BTreeMap::new()) } else { Node::File(Vec::new()) };
                model.nodes.insert(ino, node);
            }
        }
        Step::Link { node, dir: at, name: n } => {
            let (Some(ino), at) = (pick(model.files(), *node), dir(model, *at)) else { return };
            let done = world.one(id, Op::Link { ino: Ino(ino), parent: Ino(at), name: name(*n).into() }).is_ok();
            assert_eq!(done, !model.dir(at).contains_key(&name(*n)));
            model.dir(at).entry(name(*n)).or_insert(ino);
        }
        Step::Unlink { dir: at, name: n } => {
            let at = dir(model, *at);
            let ino = model.dir(at).get(&name(*n)).copied();
            let op = Op::Unlink { parent: Ino(at), name: name(*n).into(), released: ino.map(Ino) };
            let is_file = ino.is_some_and(|ino| matches!(model.nodes[&ino], Node::File(_)));
            assert_eq!(world.one(id, op).is_ok(), is_file);
            if is_file {
                model.dir(at).remove(&name(*n));
                model.drop_if_unnamed(ino.unwrap());
            }
        }
        Step::Rmdir { dir: at, name: n } => {
            let at = dir(model, *at);
            let ino = model.dir(at).get(&name(*n)).copied();
            let empty = ino.is_some_and(|ino| matches!(&model.nodes[&ino], Node::Dir(entries) if entries.is_empty()));
            let op = Op::Rmdir { parent: Ino(at), name: name(*n).into(), seen: None };
            assert_eq!(world.one(id, op).is_ok(), empty);
            if empty {
                model.dir(at).remove(&name(*n));
                model.nodes.remove(&ino.unwrap());
            }
        }
        Step::Rename { dir: at, name: n, to, new } => {
            let (at, to) = (dir(model, *at), dir(model, *to));
            let released = model.dir(to).get(&name(*new)).map(|ino| Ino(*ino));
            let op = Op::Rename {
                parent: Ino(at),
                name: name(*n).into(),
                new_parent: Ino(to),
                new_name: name(*new).into(),
                mode: RenameMode::Replace,
                released,
                seen: None,
            };
            assert_eq!(world.one(id, op).is_ok(), model.rename(at, &name(*n), to, &name(*new)), "{step:?}");
        }
        Step::Write { node, at, len, byte } => {
            let Some(ino) = pick(model.files(), *node) else { return };
            let base = world.attr(Ino(ino)).version;
            let content = vec![*byte; usize::from(*len)];
            world.one(id, write(Ino(ino), base, u64::from(*at), &content, ConflictPolicy::Fail)).unwrap();
            let Some(Node::File(bytes)) = model.nodes.get_mut(&ino) else { return };
            let end = usize::from(*at) + content.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[usize::from(*at)..end].copy_from_slice(&content);
        }
        Step::Truncate { node, size } => {
            let Some(ino) = pick(model.files(), *node) else { return };
            let change = AttrChange { size: Some(u64::from(*size)), ..AttrChange::default() };
            world.one(id, Op::SetAttr { ino: Ino(ino), change }).unwrap();
            let Some(Node::File(bytes)) = model.nodes.get_mut(&ino) else { return };
            bytes.resize(usize::from(*size), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_state_machine_behaves_like_a_plain_filesystem(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let id = world.session();
        let mut model = Model::default();
        model.nodes.insert(1, Node::Dir(BTreeMap::new()));
        let mut next = A;
        for step in &steps {
            step_both(&mut world, &mut model, id, &mut next, step);
        }
        prop_assert_eq!(check::check(&world.kv), Vec::<String>::new());
        for (ino, node) in &model.nodes {
            match node {
                Node::File(bytes) => prop_assert_eq!(&world.bytes(Ino(*ino)), bytes),
                Node::Dir(entries) => {
                    prop_assert_eq!(world.attr(Ino(*ino)).kind, FileKind::Directory);
                    for (name, target) in entries {
                        prop_assert_eq!(world.lookup(Ino(*ino), name), Ok(Ino(*target)));
                    }
                    prop_assert_eq!(world.attr(Ino(*ino)).size as usize, entries.len());
                }
            }
        }
        prop_assert_eq!(settings::inode_count(&world.kv) as usize, model.nodes.len());
    }
}

#[test]
fn a_tree_is_read_in_the_order_of_a_walk_each_directory_whole_until_there_are_enough_entries() {
    let mut world = World::new();
    let id = world.session();
    let mut ino = 2000;
    for dir in 0..5 {
        let at = Ino(ino);
        world.one(id, create(Ino::ROOT, &format!("d{dir}"), ino, NewInode::Directory)).unwrap();
        world.one(id, create(at, "below", ino + 1, NewInode::Directory)).unwrap();
        for number in 2..10 {
            world.one(id, create(at, &format!("f{number}"), ino + number, NewInode::Regular)).unwrap();
        }
        ino += 10;
    }
    let tree = |ino, behind: &[Ino], limit| match read::read(
        &world.kv,
        SessionId(1),
        &Read::ReadTree { ino, with: With::Attributes, behind: behind.to_vec(), limit },
    ) {
        Ok(ReadReply::Tree(dirs)) => dirs,
        other => panic!("{other:?}"),
    };
    let whole = tree(Ino::ROOT, &[], 1000);
    assert_eq!(whole.len(), 11);
    assert!(whole.iter().all(|dir| dir.end && dir.entries.iter().all(|entry| entry.attr.is_some())));
    // Each of the five is followed by the directory below it, in the order of the listing.
    let order: Vec<Ino> = whole[0].entries.iter().flat_map(|entry| [entry.ino, Ino(entry.ino.0 + 1)]).collect();
    assert_eq!(whole[1..].iter().map(|dir| dir.ino).collect::<Vec<_>>(), order);
    assert!(whole[2].parent == whole[1].ino && whole[1].parent == Ino::ROOT);
    let some = tree(Ino::ROOT, &[], 25);
    assert_eq!(some, whole[..5], "5 + 9 + 0 + 9 + 0 entries");
    let behind = [whole[3].ino, Ino(2002), Ino(99), whole[5].ino];
    let siblings = tree(whole[1].ino, &behind, 1000);
    assert_eq!(siblings, whole[1..7], "what is no directory, or gone, is passed over");
    let cut = tree(Ino::ROOT, &[], 3);
    assert!(cut.len() == 1 && cut[0].entries.len() == 3 && !cut[0].end, "what was asked for goes on by pages");
    assert_eq!(
        read::read(
            &world.kv,
            SessionId(1),
            &Read::ReadTree { ino: Ino(2002), with: With::Attributes, behind: Vec::new(), limit: 9 }
        ),
        Err(FsError::NotADirectory)
    );
}

#[test]
fn a_listing_says_where_small_files_have_their_content_if_asked_as_long_as_there_is_room() {
    let mut world = World::new();
    let id = world.session();
    let files = LISTED_CONTENTS_BYTES_MAX / INLINE_BYTES_MAX + 10;
    for number in 0..files as u64 {
        let ino = Ino(2000 + number);
        world.one(id, create(Ino::ROOT, &format!("f{number:04}"), ino.0, NewInode::Regular)).unwrap();
        world.one(id, write(ino, Version(1), 0, &[7; INLINE_BYTES_MAX], ConflictPolicy::Fail)).unwrap();
    }
    world.one(id, create(Ino::ROOT, "empty", 2000 + files as u64, NewInode::Regular)).unwrap();
    let list = |with| {
        let question = Read::ReadDir { ino: Ino::ROOT, after: 0, limit: READDIR_PAGE_MAX, with };
        match read::read(&world.kv, SessionId(1), &question) {
            Ok(ReadReply::Page { entries, .. }) => entries,
            other => panic!("{other:?}"),
        }
    };
    for entry in list(With::Names) {
        assert!(entry.attr.is_none() && entry.content.is_none(), "{entry:?}");
    }
    assert!(list(With::Attributes).iter().all(|entry| entry.attr.is_some() && entry.content.is_none()));
    let entries = list(With::Contents);
    assert_eq!(entries.len(), files + 1);
    let said: Vec<_> = entries.iter().filter_map(|entry| Some((entry, entry.content.clone()?))).collect();
    assert!(said.len() > files / 2 && said.len() < files, "{} of {files}", said.len());
    for (entry, content) in said {
        let attr = entry.attr.as_ref().unwrap();
        let open = read::read(&world.kv, SessionId(1), &Read::Open { ino: entry.ino }).unwrap();
        assert_eq!(open, ReadReply::Opened { attr: attr.clone(), page: content });
    }
}

/// Guards I6: others went on while a session was away, and wrote in place.
#[test]
fn a_removal_that_comes_late_leaves_content_that_its_session_never_saw() {
    let mut world = World::new();
    let id = world.session();
    for (name, ino) in [("file", 2000), ("saved", 2001)] {
        world.one(id, create(Ino::ROOT, name, ino, NewInode::Regular)).unwrap();
    }
    world.one(id, write(Ino(2000), Version(1), 0, b"theirs", ConflictPolicy::Fail)).unwrap();
    let expect = |name: &str, ino, version: Option<u64>| Expect {
        parent: Ino::ROOT,
        name: name.as_bytes().to_vec(),
        ino: Some(Ino(ino)),
        version: version.map(Version),
    };
    let late = |expect: Vec<Expect>, op| Op::Deferred { at: Timestamp::default(), expect, op: Box::new(op) };
    let unlink = || Op::Unlink { parent: Ino::ROOT, name: b"file".to_vec(), released: None };
    let replace = Op::Rename {
        parent: Ino::ROOT,
        name: b"saved".to_vec(),
        new_parent: Ino::ROOT,
        new_name: b"file".to_vec(),
        mode: RenameMode::Replace,
        released: None,
        seen: None,
    };
    assert_eq!(world.one(id, late(vec![expect("file", 2000, Some(1))], unlink())), Err(FsError::Stale));
    let both = vec![expect("saved", 2001, None), expect("file", 2000, Some(1))];
    assert_eq!(world.one(id, late(both, replace)), Err(FsError::Stale));
    world.one(id, late(vec![expect("file", 2000, Some(2))], unlink())).unwrap();
}

#[test]
fn the_position_of_a_journal_has_the_versions_that_its_own_commits_made() {
    let mut world = World::new();
    let id = world.session();
    for (name, ino) in [("mine", 2000), ("shared", 2001), ("copied", 2003)] {
        world.one(id, create(Ino::ROOT, name, ino, NewInode::Regular)).unwrap();
    }
    for (ino, at) in [(2001, 100), (2003, 0)] {
        world.one(id, write(Ino(ino), Version(1), at, b"theirs", ConflictPolicy::Fail)).unwrap();
    }
    let journal = JournalId(7);
    let file = |ino, base, committed| JournaledFile { ino: Ino(ino), base: Version(base), committed };
    let position = |files| JournalPosition { acknowledged: 9, left: 0, files };
    let journaled = Op::Journaled {
        journal,
        position: Some(position(vec![
            file(2000, 1, true),
            file(2001, 1, true),
            file(2002, 5, false),
            file(2003, 1, true),
        ])),
    };
    let mine = write(Ino(2000), Version(1), 0, b"mine", ConflictPolicy::Fail);
    let beside = write(Ino(2001), Version(1), 0, b"mine", ConflictPolicy::Fail);
    let copy = ConflictPolicy::Copy { ino: Ino(2100), suffix: b".copy".to_vec() };
    let copied = write(Ino(2003), Version(1), 0, b"mine", copy);
    world.run(id, vec![mine, beside, copied, journaled]).unwrap();
    let read = |world: &World| match read::read(&world.kv, SessionId(1), &Read::Journaled { journal }) {
        Ok(ReadReply::Journaled(position)) => position,
        other => panic!("{other:?}"),
    };
    // Others have changed the second file: the rest is still based on what the session saw.
    let rest = [file(2001, 1, false), file(2002, 5, false), file(2003, 1, false)];
    assert_eq!(read(&world), Some(position([&[file(2000, 2, false)], &rest[..]].concat())));
    // Content sent beside the journal: the rest of the position stays.
    let again = write(Ino(2000), Version(2), 0, b"mine", ConflictPolicy::Fail);
    world.run(id, vec![again, Op::JournaledContent { journal, file: file(2000, 2, true) }]).unwrap();
    assert_eq!(read(&world), Some(position([&rest[..], &[file(2000, 3, false)]].concat())));
    world.one(id, Op::Journaled { journal, position: None }).unwrap();
    assert_eq!(read(&world), None);
}
