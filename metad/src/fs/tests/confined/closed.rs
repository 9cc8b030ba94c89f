//! What a confined client gets nothing of though it lies in its subtree, and what it does not learn from refusals.

use super::*;
use crate::fs::cert::Asker;
use crate::fs::operator::Change;
use crate::fs::subtree::LINKS_LOOKED_AT;
use wire::cert::KeyId;

/// The user whose directory it is, and another one.
const OWNER: u32 = 5;
const OTHER: u32 = 6;
const PRIVATE: Ino = Ino(FRESH);
const FILE: Ino = Ino(FRESH + 1);

fn caller(uid: u32) -> Option<Caller> {
    Some(Caller { uid, gid: uid, groups: Vec::new() })
}

/// A directory that its owner alone may search, with a file that everybody may read and write.
fn private() -> (World, SessionId, SessionId) {
    let (mut world, free, confined) = world(Squash::None);
    let dir = made(HOME, "private", PRIVATE, NewInode::Directory, (0o700, OWNER));
    as_user(&mut world, confined, OWNER, dir).unwrap();
    let file = made(PRIVATE, "f", FILE, NewInode::Regular, (0o666, OWNER));
    as_user(&mut world, confined, OWNER, file).unwrap();
    (world, free, confined)
}

fn batch_as(world: &mut World, id: SessionId, uid: u32, ops: Vec<Op>) -> Result<Vec<OpReply>, OpFailed> {
    let seq = world.seqs.get_mut(&id).unwrap();
    *seq += 1;
    let batch = Batch { seq: BatchSeq(*seq), acked: BatchSeq(*seq - 1), caller: caller(uid), ops };
    world.submit(id, &batch).unwrap()
}

fn chmod(ino: Ino, mode: u32) -> Op {
    Op::SetAttr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } }
}

#[test]
fn what_lies_in_a_directory_that_a_user_may_not_search_is_closed_to_that_user_by_its_number_too() {
    let (mut world, free, confined) = private();
    for question in [
        Read::GetAttr { ino: FILE },
        Read::Open { ino: FILE },
        Read::Extents { ino: FILE, off: 0, len: 9 },
        Read::GetXattr { ino: FILE, name: b"user.x".to_vec() },
        Read::ListXattr { ino: FILE },
    ] {
        let ask = |uid| ask(&world, confined, caller(uid).as_ref(), &question);
        assert_eq!(ask(OTHER), Err(FsError::AccessDenied), "{question:?}");
        assert!(matches!(ask(OWNER), Ok(_) | Err(FsError::NoAttribute)), "{question:?}");
    }
    let clone = Op::CloneRange { src: FILE, src_off: 0, dst: INSIDE, dst_off: 0, len: 1 };
    let link = Op::Link { ino: FILE, parent: HOME, name: b"link".to_vec() };
    for op in [clone, link.clone(), chmod(FILE, 0)] {
        assert_eq!(as_user(&mut world, confined, OTHER, op.clone()), Err(FsError::AccessDenied), "{op:?}");
    }
    // Who had it open before may store what was written.
    let write = super::super::write(FILE, Version(1), 0, b"x", ConflictPolicy::Fail);
    as_user(&mut world, confined, OTHER, write).unwrap();
    // Another way to it is as good.
    world.one(free, link).unwrap();
    assert!(ask(&world, confined, caller(OTHER).as_ref(), &Read::Open { ino: FILE }).is_ok());
}

#[test]
fn what_was_removed_from_a_closed_directory_stays_closed_though_its_readers_are_asked_about_it() {
    let (mut world, _, confined) = private();
    let new = made(HOME, "new", Ino(FRESH + 2), NewInode::Regular, (0o644, OWNER));
    let over = rename((HOME, "new"), (PRIVATE, "f"), RenameMode::Replace);
    batch_as(&mut world, confined, OWNER, vec![new, over]).unwrap();
    assert_eq!(orphan::of_session(&world.kv, confined, Ino(0), 9), [FILE]);
    for question in [Read::Open { ino: FILE }, Read::Extents { ino: FILE, off: 0, len: 9 }] {
        let ask = |world: &World, uid| ask(world, confined, caller(uid).as_ref(), &question);
        assert_eq!(ask(&world, OTHER), Err(FsError::AccessDenied));
        assert!(ask(&world, OWNER).is_ok());
    }
    let clone = Op::CloneRange { src: FILE, src_off: 0, dst: INSIDE, dst_off: 0, len: 1 };
    assert_eq!(as_user(&mut world, confined, OTHER, clone), Err(FsError::AccessDenied));
    // Whoever comes to where it stood reads on.
    as_user(&mut world, confined, OWNER, chmod(PRIVATE, 0o711)).unwrap();
    assert!(ask(&world, confined, caller(OTHER).as_ref(), &Read::Open { ino: FILE }).is_ok());
}

#[test]
fn a_conflict_gives_nobody_a_copy_of_what_lies_in_a_closed_directory() {
    let (mut world, _, confined) = private();
    let write = |base, policy| super::super::write(FILE, Version(base), 0, b"x", policy);
    as_user(&mut world, confined, OWNER, write(1, ConflictPolicy::Fail)).unwrap();
    let policy = ConflictPolicy::Copy { ino: Ino(FRESH + 2), suffix: b".copy".to_vec() };
    assert_eq!(as_user(&mut world, confined, OTHER, write(1, policy.clone())), Err(FsError::Stale));
    assert!(matches!(
        as_user(&mut world, confined, OWNER, write(1, policy)),
        Ok(OpReply::Committed { conflict: Some(_), .. })
    ));
}

#[test]
fn access_lists_on_the_way_count_as_work() {
    let (mut world, free, confined) = world(Squash::None);
    let dirs = chain(&mut world, free, BELOW, 100);
    let list = |count: u32| {
        let mut list = 2_u32.to_le_bytes().to_vec();
        let users = (0..count).map(|id| (2_u16, 7_u16, id));
        for (tag, perm, id) in [(1, 7, 0), (4, 7, 0), (0x20, 7, 0), (0x10, 7, 0)].into_iter().chain(users) {
            list.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
            list.extend(u32::to_le_bytes(id));
        }
        list
    };
    let set = |ino, count| {
        let (name, mode) = (crate::fs::acl::ACCESS.to_vec(), XattrMode::Set);
        Op::SetXattr { ino, name, value: list(count), mode, clear_sgid: false }
    };
    assert_eq!(world.one(free, set(BELOW, 509)), Err(FsError::NoSpace));
    for dir in &dirs {
        world.one(free, set(*dir, 508)).unwrap();
    }
    // Each change of the uppermost directory makes the next operation walk anew.
    let nothing = Op::SetAttr { ino: BELOW, change: AttrChange::default() };
    let touch = Op::Accessed { ino: dirs[100], at: Timestamp::default() };
    let ops: Vec<Op> = (0..400).flat_map(|_| [nothing.clone(), touch.clone()]).collect();
    let counted = Counted(&world.kv, AtomicUsize::new(0));
    let batch = Batch { seq: BatchSeq(9), acked: BatchSeq(1), caller: caller(300), ops };
    let command = Command::Batches(vec![(confined, batch)]);
    let reply = apply(&mut View::new(&counted), &Stamped { now: Timestamp::default(), command });
    let CommandReply::Batches(outcomes) = reply else { panic!("{reply:?}") };
    assert!(matches!(outcomes[..], [Ok(Err(OpFailed { error: FsError::ArgumentTooLarge, .. }))]), "{outcomes:?}");
    let work = counted.1.load(Ordering::Relaxed);
    assert!(work < 2_000, "{work}");
}

#[test]
fn that_a_batch_has_named_enough_does_not_tell_what_is_there() {
    let (mut world, free, confined) = world(Squash::None);
    let bottoms: Vec<Ino> = (0..36)
        .map(|number| {
            let top = world.one(free, Op::LeaseInos { count: 1 });
            let Ok(OpReply::Inos { start, .. }) = top else { panic!("{top:?}") };
            let name = format!("top{number}");
            world.one(free, made(HOME, &name, start, NewInode::Directory, (0o777, 0))).unwrap();
            chain(&mut world, free, start, DEPTH_MAX - 1).pop().unwrap()
        })
        .collect();
    let touch = |ino| Op::Accessed { ino, at: Timestamp::default() };
    let scope = Scope { root: HOME, session: confined };
    let outcome = |last| {
        let ops: Vec<Op> = bottoms.iter().copied().chain([last]).map(touch).collect();
        let mut borders = Borders::new(&world.kv, scope, ops.len());
        ops.into_iter().enumerate().find_map(|(index, mut op)| borders.check(&mut op).err().map(|error| (index, error)))
    };
    let told = outcome(OUTSIDE);
    assert!(matches!(told, Some((_, FsError::ArgumentTooLarge))), "{told:?}");
    assert_eq!(told, outcome(Ino(777)));
}

#[test]
fn locks_deep_in_a_subtree_hold_however_a_file_is_linked() {
    let (mut world, free, confined) = world(Squash::None);
    let dirs = chain(&mut world, free, BELOW, DEPTH_MAX - 1);
    let deepest = dirs[DEPTH_MAX - 1];
    let file = Ino(2020);
    world.one(free, made(deepest, "f", file, NewInode::Regular, (0o666, 0))).unwrap();
    world.one(confined, Op::SetLock { ino: file, lock: lock() }).unwrap();
    assert_eq!(world.one(free, Op::SetLock { ino: file, lock: lock() }), Err(FsError::WouldBlock));
    // The last link is on record, and the walk from there ends before it comes to the root.
    let further = chain(&mut world, free, deepest, 9).pop().unwrap();
    world.one(free, Op::Link { ino: INSIDE, parent: further, name: b"deep".to_vec() }).unwrap();
    world.one(confined, Op::SetLock { ino: INSIDE, lock: lock() }).unwrap();
    assert_eq!(world.one(free, Op::SetLock { ino: INSIDE, lock: lock() }), Err(FsError::WouldBlock));
}

#[test]
fn the_ways_of_a_squashed_client_of_the_whole_tree_are_known_to_the_leader() {
    let (mut world, _, _) = world(Squash::None);
    let whole = Confined { subtree: None, root: Ino::ROOT, squash: Squash::All { uid: OTHER, gid: OTHER } };
    let squashed = world.session_of("squashed", Some(whole));
    let mut borders = Borders::new(&world.kv, Scope { root: Ino::ROOT, session: squashed }, 1);
    borders.check(&mut Op::Unlink { parent: BELOW, name: b"inside".to_vec(), released: None }).unwrap();
    assert_eq!(borders.above(), [Ino::ROOT, HOME]);
}

#[test]
fn a_user_does_not_learn_from_expectations_which_names_a_closed_directory_has() {
    let (mut world, _, confined) = private();
    for name in ["f", "absent"] {
        let expect = vec![Expect { parent: PRIVATE, name: name.into(), ino: None, version: None }];
        let op = Box::new(chmod(INSIDE, 0));
        let late = Op::Deferred { at: Timestamp::default(), expect, op };
        assert_eq!(as_user(&mut world, confined, OTHER, late), Err(FsError::AccessDenied));
    }
}

#[test]
fn what_an_operation_changes_counts_for_those_behind_it_in_the_batch() {
    let (mut world, _, confined) = private();
    let touch = || chmod(FILE, 0o644);
    let failed = batch_as(&mut world, confined, OWNER, vec![touch(), chmod(PRIVATE, 0), touch()]);
    assert_eq!(failed, Err(OpFailed { index: 2, error: FsError::AccessDenied }));
    batch_as(&mut world, confined, OWNER, vec![touch(), chmod(PRIVATE, 0), chmod(PRIVATE, 0o700), touch()]).unwrap();
    // A directory that comes into a closed one is closed with it.
    let open = made(HOME, "open", Ino(FRESH + 2), NewInode::Directory, (0o777, OWNER));
    let file = made(Ino(FRESH + 2), "g", Ino(FRESH + 3), NewInode::Regular, (0o666, OWNER));
    batch_as(&mut world, confined, OWNER, vec![open, file]).unwrap();
    let touch = chmod(Ino(FRESH + 3), 0o644);
    let moved = rename((HOME, "open"), (PRIVATE, "open"), RenameMode::Replace);
    let ops = vec![touch.clone(), moved, chmod(PRIVATE, 0), touch];
    let failed = batch_as(&mut world, confined, OWNER, ops);
    assert_eq!(failed, Err(OpFailed { index: 3, error: FsError::AccessDenied }));
}

#[test]
fn a_squashed_client_of_the_whole_tree_searches_only_what_its_users_may() {
    let (mut world, free, _) = private();
    let whole = Confined { subtree: None, root: Ino::ROOT, squash: Squash::All { uid: OTHER, gid: OTHER } };
    let squashed = world.session_of("squashed", Some(whole));
    assert_eq!(ask(&world, squashed, None, &Read::Open { ino: FILE }), Err(FsError::AccessDenied));
    assert!(ask(&world, squashed, None, &Read::Open { ino: OUTSIDE }).is_ok());
    world.one(free, chmod(PRIVATE, 0o711)).unwrap();
    assert!(ask(&world, squashed, None, &Read::Open { ino: FILE }).is_ok());
}

#[test]
fn links_of_a_confined_client_hide_a_file_from_no_other_subtree() {
    let (mut world, free, confined) = world(Squash::None);
    let there = Confined { subtree: Some("/elsewhere".to_owned()), root: ELSEWHERE, squash: Squash::None };
    let other = world.session_of("other", Some(there));
    // Numbers of directories that come before the one that the other client has.
    let dirs: Vec<Ino> = (0..2 * LINKS_LOOKED_AT as u64).map(|n| Ino(FRESH + n)).collect();
    for (number, dir) in dirs.iter().enumerate() {
        world.one(confined, made(HOME, &format!("d{number}"), *dir, NewInode::Directory, (0o777, 0))).unwrap();
    }
    world.one(free, Op::Link { ino: INSIDE, parent: ELSEWHERE, name: b"link".to_vec() }).unwrap();
    let link = |ino: Ino, parent| Op::Link { ino, parent, name: format!("more {ino}").into() };
    let mut refused = 0;
    for dir in &dirs {
        match world.one(confined, link(INSIDE, *dir)) {
            Ok(_) => {}
            Err(FsError::TooManyLinks) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(sees(&world, other, INSIDE));
    }
    assert!(refused > LINKS_LOOKED_AT / 2, "{refused}");
    // What lies within has as many as it likes.
    world.one(confined, made(HOME, "mine", Ino(FRESH + 999), NewInode::Regular, (0o666, 0))).unwrap();
    for dir in dirs {
        world.one(confined, link(Ino(FRESH + 999), dir)).unwrap();
    }
}

#[test]
fn whoever_may_only_write_a_file_does_not_give_it_a_time_to_come() {
    let (mut world, _, confined) = private();
    as_user(&mut world, confined, OWNER, chmod(PRIVATE, 0o755)).unwrap();
    let far = Timestamp { secs: 9_000_000, nanos: 0 };
    let mut commit = |uid, base| {
        let mut op = super::super::write(FILE, Version(base), 0, b"x", ConflictPolicy::Fail);
        if let Op::Commit { mtime, .. } = &mut op {
            *mtime = Some(far);
        }
        as_user(&mut world, confined, uid, op).unwrap();
        world.attr(FILE).mtime
    };
    assert!(commit(OTHER, 1) < far);
    assert_eq!(commit(OWNER, 2), far);
}

#[test]
fn a_lock_takes_the_rights_that_a_descriptor_would_have() {
    let (mut world, free, confined) = private();
    as_user(&mut world, confined, OWNER, chmod(PRIVATE, 0o755)).unwrap();
    as_user(&mut world, confined, OWNER, chmod(FILE, 0o644)).unwrap();
    let posix = |exclusive| Lock { family: LockFamily::Posix, owner: 9, pid: 4, start: 0, end: 1, exclusive };
    let set = |lock| Op::SetLock { ino: FILE, lock };
    assert_eq!(as_user(&mut world, confined, OTHER, set(posix(true))), Err(FsError::AccessDenied));
    as_user(&mut world, confined, OTHER, set(posix(false))).unwrap();
    as_user(&mut world, confined, OTHER, set(lock())).unwrap();
    let accessed = Op::Accessed { ino: FILE, at: Timestamp { secs: 2_000, nanos: 0 } };
    as_user(&mut world, confined, OTHER, accessed.clone()).unwrap();
    // Of others' locks it learns where they are, and not whose.
    world.one(free, Op::SetLock { ino: OUTSIDE, lock: posix(true) }).unwrap();
    world.one(free, Op::SetLock { ino: INSIDE, lock: posix(true) }).unwrap();
    let question = Read::GetLock { ino: INSIDE, lock: posix(true) };
    let found = ask(&world, confined, caller(OTHER).as_ref(), &question);
    assert_eq!(found, Ok(ReadReply::Lock(Some(Lock { owner: 0, ..posix(true) }))));
    as_user(&mut world, confined, OWNER, chmod(FILE, 0o600)).unwrap();
    let question = Read::GetLock { ino: FILE, lock: posix(true) };
    assert_eq!(ask(&world, confined, caller(OTHER).as_ref(), &question), Err(FsError::AccessDenied));
    assert_eq!(as_user(&mut world, confined, OTHER, accessed), Err(FsError::AccessDenied));
}

#[test]
fn giving_up_what_a_client_never_had_is_the_same_work_whatever_is_there() {
    let (mut world, free, confined) = world(Squash::None);
    for number in 0..200 {
        let held = Lock { owner: number, exclusive: false, ..lock() };
        world.one(free, Op::SetLock { ino: OUTSIDE, lock: held }).unwrap();
    }
    let (gone, fresh) = (Ino(2020), Ino(777));
    world.one(free, made(ELSEWHERE, "gone", gone, NewInode::Regular, (0o644, 0))).unwrap();
    world.one(free, Op::Unlink { parent: ELSEWHERE, name: b"gone".to_vec(), released: None }).unwrap();
    let counted = Counted(&world.kv, AtomicUsize::new(0));
    let work = |op: Op| {
        counted.1.store(0, Ordering::Relaxed);
        let batch = Batch { seq: BatchSeq(9), acked: BatchSeq(1), caller: None, ops: vec![op] };
        let command = Command::Batches(vec![(confined, batch)]);
        let reply = apply(&mut View::new(&counted), &Stamped { now: Timestamp::default(), command });
        assert!(matches!(reply, CommandReply::Batches(outcomes) if matches!(outcomes[..], [Ok(Ok(_))])));
        counted.1.load(Ordering::Relaxed)
    };
    let unlock = |ino| Op::Unlock { ino, family: LockFamily::Flock, owner: 1, start: 0, end: u64::MAX };
    assert_eq!(work(unlock(OUTSIDE)), work(unlock(fresh)));
    let release = |ino| Op::ReleaseOrphans { inos: vec![ino] };
    assert_eq!(work(release(gone)), work(release(fresh)));
}

#[test]
fn entries_that_may_end_sessions_are_known() {
    let (world, free, confined) = world(Squash::None);
    assert!(Command::CloseSessions(vec![confined]).ends_sessions());
    let by_operator = Change::CloseSessions(vec![free]);
    let addr = "127.0.0.1:1".parse().unwrap();
    let asker = Asker { name: "admin".to_owned(), key: KeyId([0; 32]), issued: Timestamp::default(), addr };
    assert!(Command::ByOperator { asker, change: by_operator }.ends_sessions());
    let mut opening = find(&world.kv, confined).unwrap().opening;
    assert!(!Command::OpenSession(opening.clone()).ends_sessions());
    opening.resumes = Some(confined);
    assert!(Command::OpenSession(opening.clone()).ends_sessions());
    (opening.resumes, opening.token) = (None, Some(1));
    assert!(Command::OpenSession(opening).ends_sessions());
    assert!(!Command::Reap.ends_sessions());
}
