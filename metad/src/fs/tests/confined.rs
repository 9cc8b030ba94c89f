//! Confined clients: what they see, what they may change, and with whose rights.

mod closed;

use super::{World, create};
use crate::fs::borders::Borders;
use crate::fs::session::{self, Confined, find};
use crate::fs::subtree::{DEPTH_MAX, Scope};
use crate::fs::view::{Kv, KvExt, MemoryKv, View};
use crate::fs::{Command, CommandReply, Stamped, apply};
use crate::fs::{backlinks, borders, check, inode::Inode, judge, keys, keys::Key, lock, orphan};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use wire::FsError;
use wire::attr::{AttrChange, FileKind, TimeChange, Timestamp};
use wire::caller::Caller;
use wire::ids::{BatchSeq, Ino, SessionId, Version};
use wire::op::{
    Batch, ConflictCopy, ConflictPolicy, Expect, Lock, LockFamily, NewInode, Op, OpFailed, OpReply, RangeAction, Read,
    ReadReply, RenameMode, With, XattrMode,
};
use wire::tls::Squash;

const HOME: Ino = Ino(2000);
const BELOW: Ino = Ino(2001);
const INSIDE: Ino = Ino(2002);
const ELSEWHERE: Ino = Ino(2003);
const OUTSIDE: Ino = Ino(2004);
/// The first number that the second session has leased.
const FRESH: u64 = Ino::FIRST_FREE.0 + 4096;

fn made(parent: Ino, name: &str, ino: Ino, node: NewInode, (mode, owner): (u32, u32)) -> Op {
    Op::Create { parent, name: name.into(), ino, node, mode, umask: 0, uid: owner, gid: owner }
}

fn home(squash: Squash) -> Confined {
    Confined { subtree: Some("/home".to_owned()), root: HOME, squash }
}

/// `/home/below/inside` and `/elsewhere/outside`, with a free session and a confined one.
fn world(squash: Squash) -> (World, SessionId, SessionId) {
    let mut world = World::new();
    let free = world.session();
    for (parent, name, ino, node, mode) in [
        (Ino::ROOT, "home", HOME, NewInode::Directory, 0o777),
        (HOME, "below", BELOW, NewInode::Directory, 0o777),
        (BELOW, "inside", INSIDE, NewInode::Regular, 0o666),
        (Ino::ROOT, "elsewhere", ELSEWHERE, NewInode::Directory, 0o777),
        (ELSEWHERE, "outside", OUTSIDE, NewInode::Regular, 0o666),
    ] {
        world.one(free, made(parent, name, ino, node, (mode, 0))).unwrap();
    }
    let confined = world.session_of("confined", Some(home(squash)));
    (world, free, confined)
}

fn ask(world: &World, id: SessionId, caller: Option<&Caller>, question: &Read) -> Result<ReadReply, FsError> {
    let session = find(&world.kv, id).unwrap();
    judge::answer(&world.kv, (id, &session.opening), caller, question).reply
}

fn sees(world: &World, id: SessionId, ino: Ino) -> bool {
    match ask(world, id, None, &Read::GetAttr { ino }) {
        Ok(_) => true,
        Err(FsError::NotFound) => false,
        Err(error) => panic!("{error}"),
    }
}

fn as_user(world: &mut World, id: SessionId, uid: u32, op: Op) -> Result<OpReply, FsError> {
    let seq = world.seqs.get_mut(&id).unwrap();
    *seq += 1;
    let caller = Some(Caller { uid, gid: uid, groups: Vec::new() });
    let batch = Batch { seq: BatchSeq(*seq), acked: BatchSeq(*seq - 1), caller, ops: vec![op] };
    world.submit(id, &batch).unwrap().map(|mut replies| replies.remove(0)).map_err(|failed| failed.error)
}

fn rename((parent, name): (Ino, &str), (new_parent, new_name): (Ino, &str), mode: RenameMode) -> Op {
    Op::Rename { parent, name: name.into(), new_parent, new_name: new_name.into(), mode, released: None, seen: None }
}

fn lock() -> Lock {
    Lock { family: LockFamily::Flock, owner: 1, pid: 1, start: 0, end: u64::MAX, exclusive: true }
}

/// One operation of each kind about a directory with an entry `name`, and a file.
fn each_op(dir: Ino, name: &str, file: Ino) -> Vec<Op> {
    let (to, n) = ((HOME, "new"), name.as_bytes().to_vec());
    let late = |op: Op| Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(op) };
    let expect = vec![Expect { parent: dir, name: n.clone(), ino: None, version: None }];
    let commit = Op::Commit {
        ino: file,
        base: Version(1),
        own: Vec::new(),
        writes: Vec::new(),
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    };
    let set = |ino| Op::SetXattr {
        ino,
        name: b"user.x".to_vec(),
        value: b"v".to_vec(),
        mode: XattrMode::Set,
        clear_sgid: false,
    };
    vec![
        create(dir, "new", FRESH, NewInode::Regular),
        Op::Link { ino: file, parent: HOME, name: b"link".to_vec() },
        Op::Link { ino: INSIDE, parent: dir, name: b"link".to_vec() },
        Op::Unlink { parent: dir, name: n.clone(), released: None },
        Op::Rmdir { parent: dir, name: n.clone(), seen: None },
        rename((dir, name), to, RenameMode::Replace),
        rename((BELOW, "inside"), (dir, "new"), RenameMode::Replace),
        rename((BELOW, "inside"), (dir, name), RenameMode::Exchange),
        Op::SetAttr { ino: file, change: AttrChange { mode: Some(0), ..AttrChange::default() } },
        commit.clone(),
        Op::Range { ino: file, off: 0, len: 1, action: RangeAction::Punch },
        Op::CloneRange { src: file, src_off: 0, dst: INSIDE, dst_off: 0, len: 1 },
        Op::CloneRange { src: INSIDE, src_off: 0, dst: file, dst_off: 0, len: 1 },
        set(file),
        Op::RemoveXattr { ino: file, name: b"user.x".to_vec() },
        Op::SetLock { ino: file, lock: lock() },
        Op::Accessed { ino: file, at: Timestamp::default() },
        late(commit),
        Op::Deferred { at: Timestamp::default(), expect, op: Box::new(set(INSIDE)) },
    ]
}

/// One question of each kind about a directory with an entry `name`, and a file.
fn each_read(dir: Ino, name: &str, file: Ino) -> Vec<Read> {
    vec![
        Read::Lookup { parent: dir, name: name.into() },
        Read::Lookup { parent: dir, name: b"..".to_vec() },
        Read::Lookup { parent: dir, name: b".".to_vec() },
        Read::Lookup { parent: dir, name: b"absent".to_vec() },
        Read::GetAttr { ino: file },
        Read::Open { ino: file },
        Read::ReadLink { ino: file },
        Read::ReadDir { ino: dir, after: 0, limit: 9, with: With::Names },
        Read::ReadTree { ino: dir, with: With::Contents, behind: Vec::new(), limit: 9 },
        Read::Extents { ino: file, off: 0, len: 9 },
        Read::GetXattr { ino: file, name: b"user.x".to_vec() },
        Read::ListXattr { ino: file },
        Read::GetLock { ino: file, lock: lock() },
    ]
}

#[test]
fn each_operation_and_each_question_about_what_lies_outside_finds_nothing_and_changes_nothing() {
    let (mut world, _, confined) = world(Squash::None);
    for (dir, name, file) in [
        (ELSEWHERE, "outside", OUTSIDE),
        (Ino::ROOT, "elsewhere", OUTSIDE),
        (Ino::ROOT, "home", Ino::ROOT),
        // Nothing says whether it is there.
        (Ino(777), "outside", Ino(778)),
    ] {
        for op in each_op(dir, name, file) {
            let mut before = world.kv.clone();
            assert_eq!(world.one(confined, op.clone()), Err(FsError::NotFound), "{op:?}");
            // But for the stored replies, and the session's record of them.
            let mut after = world.kv.clone();
            for kv in [&mut before, &mut after] {
                kv.0.retain(|key, _| !matches!(key[0], b'Y' | b'S'));
            }
            assert_eq!(after, before, "{op:?}");
        }
        for question in each_read(dir, name, file) {
            assert_eq!(ask(&world, confined, None, &question), Err(FsError::NotFound), "{question:?}");
        }
    }
    let behind = vec![ELSEWHERE, BELOW, Ino::ROOT];
    let walk = Read::ReadTree { ino: HOME, with: With::Attributes, behind, limit: 99 };
    match ask(&world, confined, None, &walk) {
        Ok(ReadReply::Page { parent, entries, .. }) => assert_eq!((parent, entries.len()), (HOME, 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn within_its_subtree_a_confined_client_works_as_any_other() {
    let (mut world, _, confined) = world(Squash::None);
    for question in each_read(BELOW, "inside", INSIDE) {
        let answered = ask(&world, confined, None, &question);
        assert!(
            answered.is_ok() || matches!(question, Read::ReadLink { .. } | Read::GetXattr { .. } | Read::Lookup { .. }),
            "{question:?}: {answered:?}"
        );
    }
    world.one(confined, create(BELOW, "made", FRESH, NewInode::Directory)).unwrap();
    world.one(confined, rename((BELOW, "inside"), (Ino(FRESH), "moved"), RenameMode::Replace)).unwrap();
    world.one(confined, Op::Link { ino: INSIDE, parent: HOME, name: b"link".to_vec() }).unwrap();
    world.one(confined, Op::Unlink { parent: HOME, name: b"link".to_vec(), released: Some(OUTSIDE) }).unwrap();
    assert_eq!(world.attr(INSIDE).nlink, 1);
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn the_root_of_a_subtree_is_its_own_parent() {
    let (world, _, confined) = world(Squash::None);
    let up = Read::Lookup { parent: HOME, name: b"..".to_vec() };
    assert!(matches!(ask(&world, confined, None, &up), Ok(ReadReply::Attr(attr)) if attr.ino == HOME));
    let list = Read::ReadDir { ino: HOME, after: 0, limit: 9, with: With::Names };
    assert!(matches!(ask(&world, confined, None, &list), Ok(ReadReply::Page { parent: HOME, .. })));
}

#[test]
fn what_is_moved_out_of_a_subtree_is_gone_at_once_and_what_is_moved_in_is_there() {
    let (mut world, free, confined) = world(Squash::None);
    assert!(sees(&world, confined, INSIDE) && !sees(&world, confined, OUTSIDE));
    world.one(free, rename((HOME, "below"), (ELSEWHERE, "below"), RenameMode::Replace)).unwrap();
    assert!(!sees(&world, confined, BELOW) && !sees(&world, confined, INSIDE));
    assert_eq!(world.one(confined, create(BELOW, "x", FRESH, NewInode::Regular)), Err(FsError::NotFound));
    world.one(free, rename((Ino::ROOT, "elsewhere"), (HOME, "elsewhere"), RenameMode::Replace)).unwrap();
    assert!(sees(&world, confined, INSIDE) && sees(&world, confined, OUTSIDE));
    // The session stays with its directory.
    world.one(free, rename((Ino::ROOT, "home"), (Ino::ROOT, "moved"), RenameMode::Replace)).unwrap();
    assert!(sees(&world, confined, INSIDE) && !sees(&world, confined, Ino::ROOT));
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn renames_that_may_move_directories_out_of_a_subtree_are_known() {
    let (world, ..) = world(Squash::None);
    let out = rename((HOME, "below"), (ELSEWHERE, "b"), RenameMode::Replace);
    let crossed = |op: &Op, root| {
        borders::crossed(&world.kv, std::slice::from_ref(op), &BTreeSet::from([root])) == Ok(BTreeSet::from([root]))
    };
    assert!(crossed(&out, HOME) && !crossed(&out, BELOW) && !crossed(&out, Ino::ROOT));
    assert!(!crossed(&rename((ELSEWHERE, "outside"), (HOME, "o"), RenameMode::Replace), HOME), "it comes in");
    let replaced = rename((BELOW, "inside"), (ELSEWHERE, "outside"), RenameMode::Replace);
    assert!(!crossed(&replaced, HOME), "both are files");
    assert!(crossed(&rename((Ino::ROOT, "elsewhere"), (HOME, "below"), RenameMode::Exchange), HOME));
    assert!(!crossed(&rename((HOME, "below"), (HOME, "b"), RenameMode::Replace), HOME));
}

#[test]
fn locks_on_what_was_moved_out_stand_in_nobodys_way_and_can_be_given_up() {
    let (mut world, free, confined) = world(Squash::None);
    let set = |ino| Op::SetLock { ino, lock: lock() };
    let unlock = |ino| Op::Unlock { ino, family: LockFamily::Flock, owner: 1, start: 0, end: u64::MAX };
    let (here, there) = ((HOME, "below"), (ELSEWHERE, "below"));
    let is_free = |world: &World| {
        ask(world, free, None, &Read::GetLock { ino: INSIDE, lock: lock() }) == Ok(ReadReply::Lock(None))
    };
    world.one(confined, set(INSIDE)).unwrap();
    assert_eq!(world.one(free, set(INSIDE)), Err(FsError::WouldBlock));
    assert!(!is_free(&world));
    world.one(free, rename(here, there, RenameMode::Replace)).unwrap();
    assert!(is_free(&world));
    world.one(free, set(INSIDE)).unwrap();
    world.one(free, rename(there, here, RenameMode::Replace)).unwrap();
    assert_eq!(world.one(confined, set(INSIDE)), Err(FsError::WouldBlock), "it has lost its own");
    assert!(!lock::holds(&world.kv, confined, INSIDE));
    world.one(free, unlock(INSIDE)).unwrap();
    world.one(confined, set(INSIDE)).unwrap();
    world.one(free, rename(here, there, RenameMode::Replace)).unwrap();
    world.one(confined, unlock(INSIDE)).unwrap();
    assert!(!lock::holds(&world.kv, confined, INSIDE));
    // What it never had it does not give up, and it learns nothing.
    for ino in [OUTSIDE, Ino(777)] {
        assert_eq!(world.one(confined, unlock(ino)), Ok(OpReply::Done));
    }
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn a_file_with_several_links_is_seen_while_one_of_them_lies_within() {
    let (mut world, free, confined) = world(Squash::None);
    let link = |ino, parent, name: &str| Op::Link { ino, parent, name: name.into() };
    let unlink = |parent, name: &str| Op::Unlink { parent, name: name.into(), released: None };
    for name in ["a", "b", "c"] {
        world.one(free, link(INSIDE, ELSEWHERE, name)).unwrap();
        world.one(free, link(OUTSIDE, ELSEWHERE, &format!("o{name}"))).unwrap();
    }
    assert!(sees(&world, confined, INSIDE) && !sees(&world, confined, OUTSIDE));
    world.one(free, link(OUTSIDE, BELOW, "in")).unwrap();
    assert!(sees(&world, confined, OUTSIDE));
    world.one(free, rename((BELOW, "in"), (ELSEWHERE, "out"), RenameMode::Replace)).unwrap();
    assert!(!sees(&world, confined, OUTSIDE));
    world.one(free, unlink(BELOW, "inside")).unwrap();
    assert!(!sees(&world, confined, INSIDE), "all that are left lie elsewhere");
    // Exchanged, both names lead to the file as before.
    world.one(free, rename((ELSEWHERE, "a"), (ELSEWHERE, "b"), RenameMode::Exchange)).unwrap();
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
    // Down to a single one, in an order that differs from that of their making.
    for name in ["c", "a"] {
        world.one(free, unlink(ELSEWHERE, name)).unwrap();
        assert_eq!(check::check(&world.kv), Vec::<String>::new());
    }
    let inode: Inode = world.kv.load(&keys::inode(INSIDE)).unwrap();
    assert_eq!((inode.parent, inode.name.as_slice()), (ELSEWHERE, b"b".as_slice()));
    assert!(!world.kv.any(backlinks::all_of(INSIDE)));
    world.one(free, rename((ELSEWHERE, "b"), (BELOW, "back"), RenameMode::Replace)).unwrap();
    assert!(sees(&world, confined, INSIDE));
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn confined_sessions_are_asked_about_removed_files_of_their_own_subtree_alone() {
    let (mut world, free, confined) = world(Squash::None);
    for (parent, name) in [(ELSEWHERE, "outside"), (BELOW, "inside")] {
        world.one(free, Op::Unlink { parent, name: name.into(), released: None }).unwrap();
    }
    assert_eq!(orphan::of_session(&world.kv, confined, Ino(0), 9), [INSIDE]);
    assert_eq!(orphan::of_session(&world.kv, free, Ino(0), 9).len(), 2);
    assert!(sees(&world, confined, INSIDE), "it may be open");
}

#[test]
fn an_open_file_stays_with_those_who_may_have_it_open_though_its_directory_is_removed() {
    let (mut world, free, confined) = world(Squash::None);
    world.one(free, Op::Unlink { parent: BELOW, name: b"inside".to_vec(), released: None }).unwrap();
    world.one(free, Op::Rmdir { parent: HOME, name: b"below".to_vec(), seen: None }).unwrap();
    assert!(sees(&world, confined, INSIDE));
    let session = find(&world.kv, confined).unwrap();
    let answered = judge::answer(&world.kv, (confined, &session.opening), None, &Read::GetAttr { ino: INSIDE });
    assert_eq!(answered.above, Some(Vec::new()));
    let late = world.session_of("late", Some(home(Squash::None)));
    assert!(!sees(&world, late, INSIDE), "it never had it open");
    world.one(confined, super::write(INSIDE, Version(1), 0, b"x", ConflictPolicy::Fail)).unwrap();
    world.one(confined, Op::ReleaseOrphans { inos: vec![INSIDE] }).unwrap();
    assert!(!sees(&world, confined, INSIDE));
}

#[test]
fn a_client_of_the_whole_tree_whose_ids_are_replaced_is_asked_about_each_removed_file() {
    let (mut world, free, _) = world(Squash::None);
    let whole = Confined { subtree: None, root: Ino::ROOT, squash: Squash::All { uid: 0, gid: 0 } };
    let squashed = world.session_of("squashed", Some(whole));
    let deep = chain(&mut world, free, ELSEWHERE, DEPTH_MAX + 9).pop().unwrap();
    let file = Ino(2020);
    world.one(free, made(deep, "f", file, NewInode::Regular, (0o644, 0))).unwrap();
    world.one(free, Op::Unlink { parent: deep, name: b"f".to_vec(), released: None }).unwrap();
    assert_eq!(orphan::of_session(&world.kv, squashed, Ino(0), 9), [file]);
    assert!(sees(&world, squashed, file));
}

#[test]
fn a_conflict_copy_of_a_confined_client_is_put_where_it_sees_it() {
    let (mut world, free, confined) = world(Squash::None);
    world.one(free, Op::Link { ino: INSIDE, parent: ELSEWHERE, name: b"link".to_vec() }).unwrap();
    world.one(free, super::write(INSIDE, Version(1), 0, b"first", ConflictPolicy::Fail)).unwrap();
    let policy = ConflictPolicy::Copy { ino: Ino(FRESH), suffix: b".conflict".to_vec() };
    match world.one(confined, super::write(INSIDE, Version(1), 0, b"later", policy)) {
        Ok(OpReply::Committed { conflict: Some(copy), .. }) => {
            assert_eq!((copy.parent, copy.name.as_slice()), (BELOW, b"inside.conflict".as_slice()));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

/// Commits what conflicts with the file's first content, for a user. Returns the copy.
fn conflicting(world: &mut World, id: SessionId, uid: u32, (file, copy): (Ino, u64)) -> Result<ConflictCopy, FsError> {
    let policy = ConflictPolicy::Copy { ino: Ino(copy), suffix: b".c".to_vec() };
    match as_user(world, id, uid, super::write(file, Version(1), 0, b"later", policy))? {
        OpReply::Committed { conflict: Some(copy), .. } => Ok(copy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_conflict_copy_is_of_whoever_made_it_and_stands_where_that_user_may_put_it() {
    let (mut world, free, confined) = world(Squash::None);
    let set = |name: &str| Op::SetXattr {
        ino: INSIDE,
        name: name.into(),
        value: b"v".to_vec(),
        mode: XattrMode::Set,
        clear_sgid: false,
    };
    for name in ["user.x", "security.capability", "trusted.t"] {
        world.one(free, set(name)).unwrap();
    }
    world.one(free, super::write(INSIDE, Version(1), 0, b"first", ConflictPolicy::Fail)).unwrap();
    let mode = |ino, mode| Op::SetAttr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } };
    let beside = conflicting(&mut world, confined, 7, (INSIDE, FRESH)).unwrap();
    assert_eq!((beside.parent, world.attr(beside.ino).uid, world.attr(beside.ino).gid), (BELOW, 7, 7));
    let names = ask(&world, confined, None, &Read::ListXattr { ino: beside.ino });
    assert_eq!(names, Ok(ReadReply::Names(vec![b"user.x".to_vec()])));
    // Not where nobody else may make anything.
    world.one(free, mode(BELOW, 0o755)).unwrap();
    let elsewhere = conflicting(&mut world, confined, 7, (INSIDE, FRESH + 1)).unwrap();
    assert_eq!(elsewhere.parent, HOME);
    world.one(free, mode(HOME, 0o755)).unwrap();
    assert_eq!(conflicting(&mut world, confined, 7, (INSIDE, FRESH + 2)), Err(FsError::Stale));
    world.one(free, mode(HOME, 0o777)).unwrap();
    // Who only writes a file does not get its content by a copy.
    world.one(free, mode(INSIDE, 0o622)).unwrap();
    assert_eq!(conflicting(&mut world, confined, 7, (INSIDE, FRESH + 3)), Err(FsError::Stale));
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn journals_of_others_are_out_of_reach() {
    let (mut world, free, confined) = world(Squash::None);
    let journaled = |number| Op::Journaled {
        journal: wire::ids::JournalId(number),
        position: Some(wire::op::JournalPosition { acknowledged: 1, left: 0, files: Vec::new() }),
    };
    world.one(free, journaled(1)).unwrap();
    assert_eq!(world.one(confined, journaled(1)), Err(FsError::NotPermitted));
    world.one(confined, journaled(2)).unwrap();
    let asked = |number| ask(&world, confined, None, &Read::Journaled { journal: wire::ids::JournalId(number) });
    assert_eq!(asked(1), Err(FsError::NotPermitted));
    assert!(matches!(asked(2), Ok(ReadReply::Journaled(Some(_)))));
    // The name alone does not make it the same client.
    let other = home(Squash::All { uid: 1, gid: 1 });
    for (client, bounds) in [("c", home(Squash::None)), ("confined", other)] {
        let same_name = world.session_of(client, Some(bounds));
        for number in [1, 2] {
            assert_eq!(world.one(same_name, journaled(number)), Err(FsError::NotPermitted));
        }
    }
    let again = world.session_of("confined", Some(home(Squash::None)));
    world.one(again, journaled(2)).unwrap();
}

#[test]
fn a_confined_client_does_not_choose_the_times_of_files() {
    let (mut world, _, confined) = world(Squash::None);
    let file = made(HOME, "f", Ino(FRESH), NewInode::Regular, (0o644, 5));
    let late = Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(file) };
    as_user(&mut world, confined, 5, late).unwrap();
    assert!(world.attr(Ino(FRESH)).ctime.secs >= 1_000);
}

#[test]
fn users_make_links_to_what_they_own_or_may_use_anyway() {
    let (mut world, _, confined) = world(Squash::None);
    as_user(&mut world, confined, 5, made(HOME, "f", Ino(FRESH), NewInode::Regular, (0o644, 5))).unwrap();
    let link = |name: &str, ino| Op::Link { ino, parent: HOME, name: name.into() };
    assert_eq!(as_user(&mut world, confined, 6, link("a", Ino(FRESH))), Err(FsError::NotPermitted));
    as_user(&mut world, confined, 5, link("a", Ino(FRESH))).unwrap();
    as_user(&mut world, confined, 6, link("b", INSIDE)).unwrap();
}

#[test]
fn operations_are_refused_before_they_disturb_anybody_if_they_name_what_lies_outside() {
    let (world, _, confined) = world(Squash::None);
    let scope = Scope { root: HOME, session: confined };
    for mut op in each_op(ELSEWHERE, "outside", OUTSIDE) {
        assert!(Borders::new(&world.kv, scope, 2).check(&mut op).is_err(), "{op:?}");
    }
    for mut op in each_op(BELOW, "inside", INSIDE) {
        assert_eq!(Borders::new(&world.kv, scope, 2).check(&mut op), Ok(()), "{op:?}");
    }
    // Whether such an inode is there remains unknown.
    let mut made = create(HOME, "x", OUTSIDE.0, NewInode::Regular);
    assert_eq!(Borders::new(&world.kv, scope, 2).check(&mut made), Err(FsError::Invalid));
    let mut removed = Op::Unlink { parent: BELOW, name: b"inside".to_vec(), released: Some(OUTSIDE) };
    assert_eq!(Borders::new(&world.kv, scope, 2).check(&mut removed), Ok(()));
    assert!(matches!(removed, Op::Unlink { released: None, .. }));
}

#[test]
fn the_order_of_errors_does_not_tell_which_numbers_are_in_use_outside() {
    let (world, _, confined) = world(Squash::None);
    let scope = Scope { root: HOME, session: confined };
    let absent = Ino(777);
    let outcome = |ops: Vec<Op>| {
        let mut borders = Borders::new(&world.kv, scope, 2);
        ops.into_iter().enumerate().find_map(|(index, mut op)| borders.check(&mut op).err().map(|error| (index, error)))
    };
    let failing = create(HOME, "below", FRESH, NewInode::Regular);
    for (live, free) in each_op(ELSEWHERE, "outside", OUTSIDE).into_iter().zip(each_op(absent, "outside", absent)) {
        let told = outcome(vec![failing.clone(), live.clone()]);
        assert_eq!(told, Some((1, FsError::NotFound)), "{live:?}");
        assert_eq!(told, outcome(vec![failing.clone(), free]), "{live:?}");
    }
    for ino in [OUTSIDE, INSIDE, absent] {
        assert_eq!(outcome(vec![create(HOME, "below", ino.0, NewInode::Regular)]), Some((0, FsError::Invalid)));
    }
    // What the batch itself makes is named by what follows.
    let dir = create(HOME, "dir", FRESH, NewInode::Directory);
    let file = create(Ino(FRESH), "file", FRESH + 1, NewInode::Regular);
    let chmod = Op::SetAttr { ino: Ino(FRESH + 1), change: AttrChange::default() };
    assert_eq!(outcome(vec![dir, file, chmod.clone()]), None);
    assert_eq!(outcome(vec![chmod]), Some((0, FsError::NotFound)));
}

#[test]
fn a_path_leads_to_a_directory_and_never_through_a_symlink() {
    let (mut world, free, _) = world(Squash::None);
    world.one(free, create(Ino::ROOT, "l", 2010, NewInode::Symlink(b"home".to_vec()))).unwrap();
    let resolve = |path| borders::resolve(&world.kv, path);
    assert_eq!(resolve("/home/below/"), Ok(BELOW));
    assert_eq!(resolve("/"), Ok(Ino::ROOT));
    assert_eq!(resolve("/l"), Err(FsError::NotADirectory));
    assert_eq!(resolve("/l/below"), Err(FsError::NotADirectory));
    assert_eq!(resolve("/home/absent"), Err(FsError::NotFound));
    assert_eq!(resolve("home"), Err(FsError::Invalid));
}

/// Makes a chain of directories `d` below one, and returns all of them.
fn chain(world: &mut World, free: SessionId, top: Ino, levels: usize) -> Vec<Ino> {
    let mut dirs = vec![top];
    let Ok(OpReply::Inos { start, .. }) = world.one(free, Op::LeaseInos { count: levels as u64 }) else { panic!() };
    for level in 0..levels {
        let ino = Ino(start.0 + level as u64);
        world.one(free, made(dirs[level], "d", ino, NewInode::Directory, (0o777, 0))).unwrap();
        dirs.push(ino);
    }
    dirs
}

#[test]
fn a_session_is_confined_to_where_its_path_leads_when_it_is_opened() {
    let (mut world, free, first) = world(Squash::None);
    let root = |world: &World, id| find(&world.kv, id).unwrap().opening.root();
    world.one(free, rename((Ino::ROOT, "home"), (Ino::ROOT, "elsewhere"), RenameMode::Exchange)).unwrap();
    // Whatever the leader had found.
    let second = world.session_of("confined", Some(home(Squash::None)));
    assert_eq!((root(&world, first), root(&world, second)), (HOME, ELSEWHERE));
    let mut opening = find(&world.kv, second).unwrap().opening;
    opening.confined = Some(Confined { subtree: Some("/absent".to_owned()), ..home(Squash::None) });
    opening.resumes = Some(second);
    assert_eq!(world.apply(Command::OpenSession(opening)), CommandReply::Failed(FsError::NotFound));
    assert!(find(&world.kv, second).is_some(), "nothing is changed then");
}

#[test]
fn what_lies_too_deep_counts_as_outside_and_nothing_is_put_there() {
    let (mut world, free, confined) = world(Squash::None);
    let dirs = chain(&mut world, free, BELOW, DEPTH_MAX + 2);
    // The way from there is as long as a way may be; `dirs[0]` is one step below the root.
    let (deepest, hidden) = (dirs[DEPTH_MAX], dirs[DEPTH_MAX + 1]);
    assert!(sees(&world, confined, deepest) && !sees(&world, confined, hidden));
    let too_deep = Err(FsError::NameTooLong);
    for op in [
        create(deepest, "x", FRESH, NewInode::Regular),
        Op::Link { ino: INSIDE, parent: deepest, name: b"x".to_vec() },
        rename((BELOW, "inside"), (deepest, "x"), RenameMode::Replace),
    ] {
        assert_eq!(world.one(confined, op.clone()), too_deep, "{op:?}");
    }
    let above = dirs[DEPTH_MAX - 1];
    world.one(confined, rename((BELOW, "inside"), (above, "x"), RenameMode::Replace)).unwrap();
    assert!(sees(&world, confined, INSIDE));
    // It may be removed by whoever may.
    let secret = Ino(2020);
    world.one(free, made(deepest, "f", secret, NewInode::Regular, (0o644, 5))).unwrap();
    let sticky = AttrChange { mode: Some(0o1777), ..AttrChange::default() };
    world.one(free, Op::SetAttr { ino: deepest, change: sticky }).unwrap();
    let unlink = Op::Unlink { parent: deepest, name: b"f".to_vec(), released: None };
    assert_eq!(as_user(&mut world, confined, 6, unlink.clone()), Err(FsError::NotPermitted));
    as_user(&mut world, confined, 5, unlink).unwrap();
}

#[test]
fn a_link_from_somewhere_deep_hides_a_file_from_nobody() {
    let (mut world, free, confined) = world(Squash::None);
    let dirs = chain(&mut world, free, ELSEWHERE, DEPTH_MAX + 100);
    for parent in dirs.into_iter().rev().take(9) {
        world.one(free, Op::Link { ino: INSIDE, parent, name: b"deep".to_vec() }).unwrap();
        assert!(sees(&world, confined, INSIDE));
    }
}

/// A state that counts how often it is asked.
struct Counted<'a>(&'a MemoryKv, AtomicUsize);

impl Kv for Counted<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.get(key)
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.scan(range, visit);
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        self.0.last(range)
    }
}

#[test]
fn the_work_that_a_batch_makes_before_it_is_proposed_is_bounded_however_deep_it_goes() {
    let (mut world, free, confined) = world(Squash::None);
    let dirs = chain(&mut world, free, BELOW, DEPTH_MAX);
    let outside = chain(&mut world, free, ELSEWHERE, DEPTH_MAX + 300);
    let Ok(OpReply::Inos { start, .. }) = world.one(free, Op::LeaseInos { count: 300 }) else { panic!() };
    let files: Vec<Ino> = (start.0..start.0 + 250).map(Ino).collect();
    for (number, (ino, parent)) in files.iter().zip(outside.into_iter().rev()).enumerate() {
        world.one(free, made(BELOW, &format!("f{number}"), *ino, NewInode::Regular, (0o666, 0))).unwrap();
        world.one(free, Op::Link { ino: *ino, parent, name: b"f".to_vec() }).unwrap();
    }
    let scope = Scope { root: HOME, session: confined };
    let counted = Counted(&world.kv, AtomicUsize::new(0));
    let check = |ops: Vec<Op>| {
        counted.1.store(0, Ordering::Relaxed);
        let mut borders = Borders::new(&counted, scope, ops.len());
        let outcome = ops.into_iter().try_for_each(|mut op| borders.check(&mut op));
        (outcome, counted.1.load(Ordering::Relaxed), borders.above().len())
    };
    let (deep, next) = (dirs[DEPTH_MAX - 1], dirs[DEPTH_MAX - 2]);
    let (outcome, work, above) = check(vec![rename((deep, "a"), (next, "b"), RenameMode::Replace); 4_096]);
    assert_eq!((outcome, above), (Ok(()), DEPTH_MAX));
    assert!(work < 2 * DEPTH_MAX, "{work}");
    // Other links that lie too deep are looked for each time anew, until it is enough.
    let (outcome, work, _) =
        check(files.iter().map(|ino| Op::Accessed { ino: *ino, at: Timestamp::default() }).collect());
    assert_eq!(outcome, Err(FsError::ArgumentTooLarge));
    assert!(work < 30_000, "{work}");
    // Nor is there more when it is applied.
    let ops = files.iter().map(|ino| Op::Accessed { ino: *ino, at: Timestamp::default() }).collect();
    counted.1.store(0, Ordering::Relaxed);
    let batch = Batch { seq: BatchSeq(9), acked: BatchSeq(1), caller: None, ops };
    let stamped = Stamped { now: Timestamp::default(), command: Command::Batches(vec![(confined, batch)]) };
    match apply(&mut View::new(&counted), &stamped) {
        CommandReply::Batches(outcomes) => assert!(
            matches!(&outcomes[..], [Ok(Err(OpFailed { error: FsError::ArgumentTooLarge, .. }))]),
            "{outcomes:?}"
        ),
        other => panic!("{other:?}"),
    }
    let work = counted.1.load(Ordering::Relaxed);
    assert!(work < 30_000, "{work}");
}

#[test]
fn who_sees_an_inode_is_found_by_one_walk_however_many_sessions_there_are() {
    let (mut world, free, confined) = world(Squash::None);
    let dirs = chain(&mut world, free, BELOW, 300);
    let link = Op::Link { ino: OUTSIDE, parent: dirs[150], name: b"in".to_vec() };
    world.one(free, link).unwrap();
    let mut sessions: Vec<(SessionId, Ino)> = (0..1_000).map(|id| (SessionId(id), dirs[id as usize % 300])).collect();
    sessions.push((confined, HOME));
    let counted = Counted(&world.kv, AtomicUsize::new(0));
    let seen = borders::seen_by(&counted, &sessions, &[INSIDE, OUTSIDE, ELSEWHERE, dirs[200], Ino(777)]);
    let work = counted.1.load(Ordering::Relaxed);
    assert!(work < 1_000, "{work}");
    assert_eq!(seen[&confined], [INSIDE, OUTSIDE, dirs[200]]);
    assert_eq!(seen[&SessionId(150)], [OUTSIDE, dirs[200]]);
    assert_eq!(seen[&SessionId(151)], [dirs[200]]);
    assert_eq!(seen[&SessionId(0)], [INSIDE, OUTSIDE, dirs[200]]);
    // It is bounded, and so are the renames of a batch.
    counted.1.store(0, Ordering::Relaxed);
    let renames: Vec<Op> = dirs.iter().map(|dir| rename((*dir, "a"), (ELSEWHERE, "a"), RenameMode::Replace)).collect();
    let roots = BTreeSet::from([HOME, ELSEWHERE]);
    assert_eq!(borders::crossed(&counted, &renames, &roots), Err(FsError::ArgumentTooLarge));
    assert_eq!(borders::crossed(&world.kv, &renames[..100], &roots), Ok(BTreeSet::from([HOME])));
    let work = counted.1.load(Ordering::Relaxed);
    assert!(work < 35_000, "{work}");
}

#[test]
fn what_walks_upwards_is_not_applied_where_nothing_may_block() {
    let (free, confined) = (SessionId(1), SessionId(2));
    let batches = |session, caller, op| {
        Command::Batches(vec![(session, Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller, ops: vec![op] })])
    };
    let chmod = Op::SetAttr { ino: INSIDE, change: AttrChange::default() };
    let unlink = Op::Unlink { parent: BELOW, name: b"inside".to_vec(), released: None };
    let out = rename((BELOW, "inside"), (ELSEWHERE, "x"), RenameMode::Replace);
    let lock = Op::SetLock { ino: INSIDE, lock: lock() };
    let (none, some) = (BTreeSet::new(), BTreeSet::from([confined]));
    for op in [&chmod, &unlink, &out, &lock] {
        assert!(batches(free, None, op.clone()).is_light(&none), "{op:?}");
        assert!(!batches(confined, None, op.clone()).is_light(&some), "{op:?}");
    }
    assert!(batches(free, None, chmod.clone()).is_light(&some));
    assert!(!batches(free, Some(Caller::default()), chmod).is_light(&none));
    for op in [unlink, out, lock] {
        assert!(!batches(free, None, op.clone()).is_light(&some), "others may see what it removes: {op:?}");
    }
    let (world, _, confined) = world(Squash::None);
    assert_eq!(session::confined(&world.kv), BTreeSet::from([confined]));
    let opening = find(&world.kv, confined).unwrap().opening;
    assert!(!Command::OpenSession(opening).is_light(&none), "its path may be long");
}

#[test]
fn users_have_the_rights_that_modes_give_them() {
    let (mut world, free, confined) = world(Squash::None);
    let (alice, bob) = (1_000, 1_001);
    let dir = Ino(FRESH);
    as_user(&mut world, confined, alice, made(HOME, "a", dir, NewInode::Directory, (0o750, alice))).unwrap();
    let file = Ino(FRESH + 1);
    as_user(&mut world, confined, alice, made(dir, "f", file, NewInode::Regular, (0o640, alice))).unwrap();
    let is_denied = |reply: Result<OpReply, FsError>| {
        assert!(matches!(reply, Err(FsError::AccessDenied | FsError::NotPermitted)), "{reply:?}");
    };
    let change = |change| Op::SetAttr { ino: file, change };
    let mode = |mode| AttrChange { mode: Some(mode), ..AttrChange::default() };
    for op in [
        made(dir, "x", Ino(FRESH + 9), NewInode::Regular, (0o644, bob)),
        Op::Unlink { parent: dir, name: b"f".to_vec(), released: None },
        rename((dir, "f"), (HOME, "f"), RenameMode::Replace),
        change(mode(0o777)),
        change(AttrChange { uid: Some(bob), ..AttrChange::default() }),
        change(AttrChange { size: Some(0), ..AttrChange::default() }),
        change(AttrChange { mtime: Some(TimeChange::Now), ..AttrChange::default() }),
        Op::Range { ino: file, off: 0, len: 1, action: RangeAction::Punch },
        super::write(file, Version(1), 0, b"x", ConflictPolicy::Fail),
        Op::SetXattr {
            ino: file,
            name: b"user.x".to_vec(),
            value: Vec::new(),
            mode: XattrMode::Set,
            clear_sgid: false,
        },
    ] {
        is_denied(as_user(&mut world, confined, bob, op));
    }
    let of = |uid| Caller { uid, gid: uid, groups: Vec::new() };
    let (a, b) = (of(alice), of(bob));
    for question in [
        Read::Open { ino: file },
        Read::Extents { ino: file, off: 0, len: 1 },
        Read::Lookup { parent: dir, name: b"f".to_vec() },
        Read::ReadDir { ino: dir, after: 0, limit: 9, with: With::Names },
    ] {
        assert_eq!(ask(&world, confined, Some(&b), &question), Err(FsError::AccessDenied), "{question:?}");
        assert!(ask(&world, confined, Some(&a), &question).is_ok(), "{question:?}");
        let in_group = Caller { groups: vec![alice], ..b.clone() };
        assert!(ask(&world, confined, Some(&in_group), &question).is_ok(), "{question:?}");
    }
    // Nobody gives files away, and devices and trusted attributes are root's.
    is_denied(as_user(&mut world, confined, alice, change(AttrChange { uid: Some(bob), ..AttrChange::default() })));
    let device = NewInode::Special { kind: FileKind::CharDevice, rdev: 1 };
    is_denied(as_user(&mut world, confined, alice, made(HOME, "dev", Ino(FRESH + 9), device, (0o666, alice))));
    // Content that somebody else writes clears setuid.
    as_user(&mut world, confined, alice, change(mode(0o4777))).unwrap();
    as_user(&mut world, confined, bob, super::write(file, Version(1), 0, b"x", ConflictPolicy::Fail)).unwrap();
    assert_eq!(world.attr(file).mode, 0o777);
    as_user(&mut world, confined, alice, change(mode(0o4777))).unwrap();
    let punch = Op::Range { ino: file, off: 0, len: 1, action: RangeAction::Punch };
    as_user(&mut world, confined, bob, punch).unwrap();
    assert_eq!(world.attr(file).mode, 0o777);
    // For those who are not confined, their kernel checks, as before.
    as_user(&mut world, free, bob, change(mode(0o600))).unwrap();
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn in_a_sticky_directory_everybody_removes_only_what_is_their_own() {
    let (mut world, _, confined) = world(Squash::None);
    let (tmp, file) = (Ino(FRESH), Ino(FRESH + 1));
    world.one(confined, made(HOME, "tmp", tmp, NewInode::Directory, (0o1777, 0))).unwrap();
    as_user(&mut world, confined, 5, made(tmp, "f", file, NewInode::Regular, (0o666, 5))).unwrap();
    let unlink = Op::Unlink { parent: tmp, name: b"f".to_vec(), released: None };
    assert_eq!(as_user(&mut world, confined, 6, unlink.clone()), Err(FsError::NotPermitted));
    let over = rename((HOME, "g"), (tmp, "f"), RenameMode::Replace);
    as_user(&mut world, confined, 6, made(HOME, "g", Ino(FRESH + 2), NewInode::Regular, (0o666, 6))).unwrap();
    assert_eq!(as_user(&mut world, confined, 6, over), Err(FsError::NotPermitted));
    as_user(&mut world, confined, 5, unlink).unwrap();
}

#[test]
fn root_of_a_squashed_client_is_nobody_for_what_it_makes_and_what_it_may_do() {
    let nobody = 65_534;
    let (mut world, free, confined) = world(Squash::Root { uid: nobody, gid: nobody });
    let secret = Ino(2020);
    world.one(free, made(HOME, "secret", secret, NewInode::Regular, (0o600, 0))).unwrap();
    as_user(&mut world, confined, 0, made(HOME, "f", Ino(FRESH), NewInode::Regular, (0o644, 0))).unwrap();
    assert_eq!((world.attr(Ino(FRESH)).uid, world.attr(Ino(FRESH)).gid), (nobody, nobody));
    as_user(&mut world, confined, 7, made(HOME, "g", Ino(FRESH + 1), NewInode::Regular, (0o644, 0))).unwrap();
    assert_eq!(world.attr(Ino(FRESH + 1)).uid, 7, "whatever the operation says");
    let root = Caller::default();
    for caller in [Some(&root), None] {
        let opened = ask(&world, confined, caller, &Read::Open { ino: secret });
        assert_eq!(opened, Err(FsError::AccessDenied), "{caller:?}");
    }
    let give = Op::SetAttr { ino: Ino(FRESH), change: AttrChange { uid: Some(0), ..AttrChange::default() } };
    assert_eq!(as_user(&mut world, confined, 0, give.clone()), Err(FsError::NotPermitted));
    assert_eq!(world.one(confined, give), Err(FsError::NotPermitted));
    // What was written is stored without a word about who did it.
    let write = super::write(Ino(FRESH + 1), Version(1), 0, b"x", ConflictPolicy::Fail);
    world.one(confined, write).unwrap();
    let write = super::write(secret, Version(1), 0, b"x", ConflictPolicy::Fail);
    assert_eq!(world.one(confined, write), Err(FsError::AccessDenied));
    world.one(confined, made(HOME, "h", Ino(FRESH + 2), NewInode::Regular, (0o644, 0))).unwrap();
    assert_eq!(world.attr(Ino(FRESH + 2)).uid, nobody);
}

#[test]
fn all_users_of_a_squashed_client_are_one() {
    let (mut world, free, confined) = world(Squash::All { uid: 5, gid: 6 });
    for (number, uid) in [0, 5, 9].into_iter().enumerate() {
        let ino = Ino(FRESH + number as u64);
        let name = format!("f{number}");
        as_user(&mut world, confined, uid, made(HOME, &name, ino, NewInode::Regular, (0o600, uid))).unwrap();
        assert_eq!((world.attr(ino).uid, world.attr(ino).gid), (5, 6));
        assert!(ask(&world, confined, None, &Read::Open { ino }).is_ok());
    }
    world.one(free, made(HOME, "secret", Ino(2020), NewInode::Regular, (0o600, 7))).unwrap();
    let as_owner = Caller { uid: 7, gid: 7, groups: Vec::new() };
    assert_eq!(ask(&world, confined, Some(&as_owner), &Read::Open { ino: Ino(2020) }), Err(FsError::AccessDenied));
}

#[test]
fn the_index_of_living_sessions_has_the_root_of_a_confined_one() {
    let (world, free, confined) = world(Squash::None);
    let value = |client, id| world.kv.get(&keys::living(client, id)).unwrap();
    assert_eq!(value("c", free), Vec::<u8>::new());
    assert_eq!(value("confined", confined), HOME.0.to_be_bytes());
}
