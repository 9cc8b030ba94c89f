//! Locks, inherited permissions, and the check of the whole state.

use super::world::{World, create};
use metad::fs::view::MemoryKv;
use metad::fs::{Command, check, read};
use std::collections::BTreeSet;
use wire::FsError;
use wire::attr::AttrChange;
use wire::ids::{Ino, SessionId, Version};
use wire::op::{ConflictPolicy, Lock, LockFamily, NewInode, Op, OpReply, Read, ReadReply, XattrMode};

fn lock(owner: u64, start: u64, end: u64, exclusive: bool) -> Lock {
    Lock { family: LockFamily::Posix, owner, pid: owner as u32, start, end, exclusive }
}

fn in_the_way(world: &World, id: SessionId, ino: Ino, wanted: Lock) -> Option<(u64, u64, bool)> {
    match read::read(&world.kv, id, &Read::GetLock { ino, lock: wanted }) {
        Ok(ReadReply::Lock(found)) => found.map(|lock| (lock.start, lock.end, lock.exclusive)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn byte_range_locks_join_split_and_change_as_fcntl_says() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    let ino = world.create(first, Ino::ROOT, "f", NewInode::Regular);
    let all = || lock(1, 0, u64::MAX, true);
    for start in [20, 0, 10] {
        world.one(first, Op::SetLock { ino, lock: lock(1, start, start + 10, true) }).unwrap();
    }
    assert_eq!(in_the_way(&world, second, ino, all()), Some((0, 30, true)), "neighbours are one lock");
    assert_eq!(in_the_way(&world, first, ino, all()), None, "nobody is in his own way");
    assert_eq!(world.one(second, Op::SetLock { ino, lock: lock(1, 29, 31, false) }), Err(FsError::WouldBlock));

    let unlock = Op::Unlock { ino, family: LockFamily::Posix, owner: 1, start: 10, end: 20 };
    world.one(first, unlock).unwrap();
    assert_eq!(in_the_way(&world, second, ino, all()), Some((0, 10, true)), "the middle was given up");
    world.one(second, Op::SetLock { ino, lock: lock(1, 10, 20, true) }).unwrap();
    world.one(first, Op::SetLock { ino, lock: lock(1, 20, 30, false) }).unwrap();
    world.one(second, Op::SetLock { ino, lock: lock(1, 20, 40, false) }).unwrap();
    let upgrade = Op::SetLock { ino, lock: lock(1, 20, 30, true) };
    assert_eq!(world.one(first, upgrade), Err(FsError::WouldBlock), "another reads there");
    world.assert_sound();
    world.apply(Command::CloseSessions(vec![first, second]));
    let third = world.session();
    assert_eq!(in_the_way(&world, third, ino, all()), None, "locks end with their session");
    world.assert_sound();
}

#[test]
fn unlocking_a_range_that_ends_before_it_begins_is_refused_and_changes_nothing() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "a", NewInode::Regular);
    world.one(id, Op::SetLock { ino, lock: lock(1, 0, 100, true) }).unwrap();
    let before = world.kv.0.len();
    for (start, end) in [(60, 40), (50, 50)] {
        let unlock = Op::Unlock { ino, family: LockFamily::Posix, owner: 1, start, end };
        assert_eq!(world.one(id, unlock), Err(FsError::Invalid));
    }
    assert_eq!(in_the_way(&world, SessionId(99), ino, lock(2, 0, 100, true)), Some((0, 100, true)));
    assert!(world.kv.0.len() <= before + 2, "two replies are stored");
    world.assert_sound();
}

#[test]
fn flock_and_byte_range_locks_do_not_see_each_other() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    let ino = world.create(first, Ino::ROOT, "f", NewInode::Regular);
    let whole = |family| Lock { family, ..lock(1, 0, u64::MAX, true) };
    world.one(first, Op::SetLock { ino, lock: whole(LockFamily::Flock) }).unwrap();
    world.one(second, Op::SetLock { ino, lock: whole(LockFamily::Posix) }).unwrap();
    assert_eq!(world.one(second, Op::SetLock { ino, lock: whole(LockFamily::Flock) }), Err(FsError::WouldBlock));
}

#[test]
fn in_a_setgid_directory_the_group_is_inherited_and_by_directories_the_bit() {
    let mut world = World::new();
    let id = world.session();
    let dir = world.create(id, Ino::ROOT, "d", NewInode::Directory);
    let change = AttrChange { mode: Some(0o2775), gid: Some(77), ..AttrChange::default() };
    world.one(id, Op::SetAttr { ino: dir, change }).unwrap();
    let file = world.create(id, dir, "f", NewInode::Regular);
    let below = world.create(id, dir, "b", NewInode::Directory);
    let (file, below) = (world.attr(file).unwrap(), world.attr(below).unwrap());
    assert_eq!((file.gid, file.mode), (77, 0o644));
    assert_eq!((below.gid, below.mode), (77, 0o2644));
}

#[test]
fn a_default_list_takes_the_place_of_the_umask() {
    let mut world = World::new();
    let id = world.session();
    let dir = world.create(id, Ino::ROOT, "d", NewInode::Directory);
    // acl(5), kernel form: user::rwx, user:5:rwx, group::r-x, mask::rw-, other::---
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, who) in
        [(1_u16, 7_u16, u32::MAX), (2, 7, 5), (4, 5, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        list.extend(who.to_le_bytes());
    }
    let (name, mode) = (b"system.posix_acl_default".to_vec(), XattrMode::Set);
    let set = Op::SetXattr { ino: dir, name: name.clone(), value: list.clone(), mode, clear_sgid: false };
    world.one(id, set).unwrap();
    let ino = world.number(id);
    let make = Op::Create {
        parent: dir,
        name: b"f".to_vec(),
        ino,
        node: NewInode::Regular,
        mode: 0o666,
        umask: 0o077,
        uid: 1,
        gid: 1,
    };
    let Ok(OpReply::Attr(attr)) = world.one(id, make) else { panic!("not made") };
    assert_eq!(attr.mode, 0o660, "the mask shows as the group's bits, and the umask plays no part");
    let below = world.create(id, dir, "b", NewInode::Directory);
    let inherited = read::read(&world.kv, id, &Read::GetXattr { ino: below, name });
    assert_eq!(inherited, Ok(ReadReply::Bytes(list)));
    world.assert_sound();
}

/// Returns a state with something in every table that the check compares.
pub(super) fn full() -> MemoryKv {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    let dir = world.create(first, Ino::ROOT, "d", NewInode::Directory);
    world.create(first, dir, "l", NewInode::Symlink(b"f".to_vec()));
    let policy = ConflictPolicy::Fail;
    for name in ["f", "g"] {
        let ino = world.create(first, dir, name, NewInode::Regular);
        let source = super::world::source(name.as_bytes()[0], 20, false);
        world.one(first, super::world::commit(ino, Version(1), 0, 20, source, policy.clone())).unwrap();
        world.one(second, Op::SetLock { ino, lock: lock(1, 0, 5, true) }).unwrap();
        let (name, value, mode) = (b"user.a".to_vec(), b"v".to_vec(), XattrMode::Create);
        world.one(first, Op::SetXattr { ino, name, value, mode, clear_sgid: false }).unwrap();
    }
    world.one(first, Op::Unlink { parent: dir, name: b"g".to_vec(), released: None }).unwrap();
    let ino = world.create(first, dir, "h", NewInode::Regular);
    let source = super::world::source(9, 20, false);
    world.one(first, super::world::commit(ino, Version(1), 0, 20, source, policy)).unwrap();
    let change = AttrChange { size: Some(0), ..AttrChange::default() };
    world.one(first, Op::SetAttr { ino, change }).unwrap();
    assert_eq!(world.one(second, create(dir, "x", Ino(1), NewInode::Regular)), Err(FsError::Invalid));
    world.assert_sound();
    world.kv
}

#[test]
fn the_check_finds_any_missing_row() {
    let whole = full();
    let tables: BTreeSet<char> = whole.0.keys().map(|key| char::from(key[0])).collect();
    assert_eq!(tables, "ABCDEIJKLOQSUXYZ".chars().collect());
    for key in whole.0.keys() {
        // Stored replies and used numbers say nothing about other tables, and settings stand for themselves.
        if matches!(key[0], b'U' | b'Y') || (key[0] == b'C' && key[1..] != *b"inodes") {
            continue;
        }
        let mut damaged = whole.clone();
        damaged.0.remove(key);
        assert_ne!(check::check(&damaged), Vec::<String>::new(), "{:?} is missing", char::from(key[0]));
    }
}
