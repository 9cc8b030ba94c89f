//! The bytes of stored values, and the room in them for what is planned.

use super::{World, create};
use crate::fs::inode::Inode;
use crate::fs::keys::{self, Key};
use crate::fs::view::{Kv, KvExt};
use crate::fs::{check, numbered, rules};
use wire::FsError;
use wire::attr::{AttrChange, FileKind, Timestamp};
use wire::codec::{decode, encode};
use wire::extent::{BlockCodec, BlockForm, ExtentWrite, Source};
use wire::ids::{BlockHash, Ino, KeyGeneration, PolicyId, SessionId, SnapshotNumber, Version};
use wire::op::{ConflictPolicy, NewInode, Op, XattrMode};

const HASH: BlockHash = BlockHash([0xAB; 32]);
const FILE: Ino = Ino(2000);
const LINK: Ino = Ino(2001);

fn commit(form: BlockForm) -> Op {
    Op::Commit {
        ino: FILE,
        base: Version(1),
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 0, len: 50, source: Source::Block { hash: HASH, form, offset: 7 } }],
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    }
}

/// A file with a block and an attribute, and a symlink.
fn filled() -> (World, SessionId) {
    let mut world = World::new();
    let id = world.session();
    let set = Op::SetXattr {
        ino: FILE,
        name: b"user.x".to_vec(),
        value: b"value".to_vec(),
        mode: XattrMode::Set,
        clear_sgid: false,
    };
    world.one(id, create(Ino::ROOT, "f", FILE.0, NewInode::Regular)).unwrap();
    world.one(id, create(Ino::ROOT, "l", LINK.0, NewInode::Symlink(b"to".to_vec()))).unwrap();
    world.one(id, set).unwrap();
    world.one(id, commit(BlockForm::plain(100))).unwrap();
    (world, id)
}

fn number_of(world: &World, key: &[u8]) -> u64 {
    numbered::written(&world.kv.get(key).expect("the value is there")).unwrap().0
}

#[test]
fn these_are_the_bytes_of_stored_values() {
    let (world, _) = filled();
    let value = |key: &[u8]| world.kv.get(key).unwrap();
    let version = encode(&())[0];
    // Number of the snapshot, inode (2000), kind.
    assert_eq!(value(&keys::dentry(Ino::ROOT, b"f")), [version, 0, 0xD0, 0x0F, FileKind::Regular as u8]);
    assert_eq!(value(&keys::symlink(LINK)), [version, 0, b't', b'o']);
    assert_eq!(value(&keys::xattr(FILE, b"user.x")), [&[version, 0], b"value".as_slice()].concat());
    // Number, length, kind of source; policy, codec, section, key, stored and plain length; offset; version.
    let extent = [[version, 0, 50, 0].as_slice(), &HASH.0, &[0, 0, 16, 0, 100, 100, 7, 2]].concat();
    assert_eq!(value(&keys::extent(FILE, 0)), extent);
    assert_eq!(value(&[b"B\0\0".as_slice(), &HASH.0].concat()), [version, 1, 100, 0], "count, stored length, time");
    assert_eq!(value(b"Crules"), [version, 2]);
    assert_eq!(value(&keys::inode(FILE))[..4], [version, 0, 0xD0, 0x0F], "number, inode");
}

#[test]
fn values_carry_the_newest_snapshot_number_at_their_writing() {
    let (mut world, id) = filled();
    let (file, link) = (keys::inode(FILE), keys::inode(LINK));
    let content = keys::extent(FILE, 0);
    world.kv.0.insert(keys::NEWEST_SNAPSHOT.to_vec(), encode(&SnapshotNumber(5)));
    for key in [&file, &link, &content, &keys::xattr(FILE, b"user.x"), &keys::symlink(LINK)] {
        assert_eq!(number_of(&world, key), 0, "nothing has changed since");
    }
    let later = Timestamp { secs: world.clock + 1_000_000, nanos: 0 };
    world.clock += 2_000_000;
    world.one(id, Op::Accessed { ino: FILE, at: later }).unwrap();
    assert_eq!((world.attr(FILE).atime, number_of(&world, &file)), (later, 0), "an access time is no change");
    world
        .one(id, Op::SetAttr { ino: FILE, change: AttrChange { mode: Some(0o600), ..AttrChange::default() } })
        .unwrap();
    assert_eq!((number_of(&world, &file), number_of(&world, &content)), (5, 0));
    world.one(id, Op::SetAttr { ino: FILE, change: AttrChange { size: Some(10), ..AttrChange::default() } }).unwrap();
    assert_eq!(number_of(&world, &content), 5, "it was cut");
    world.one(id, create(Ino::ROOT, "new", 2002, NewInode::Symlink(b"to".to_vec()))).unwrap();
    let made: [Key; 3] = [keys::inode(Ino(2002)), keys::symlink(Ino(2002)), keys::dentry(Ino::ROOT, b"new")];
    assert_eq!(made.map(|key| number_of(&world, &key)), [5; 3]);
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn a_commit_of_a_block_of_an_unknown_form_changes_nothing() {
    let (mut world, id) = filled();
    let plain = BlockForm::plain(100);
    for form in [
        BlockForm { policy: PolicyId(1), ..plain },
        BlockForm { codec: BlockCodec(1), ..plain },
        BlockForm { key: KeyGeneration(1), ..plain },
        BlockForm { plain_len: 200, ..plain },
    ] {
        let before = world.kv.pairs(keys::inode(FILE)..keys::inode(LINK), 9);
        assert_eq!(world.one(id, commit(form)), Err(FsError::NotSupported), "{form:?}");
        assert_eq!(world.kv.pairs(keys::inode(FILE)..keys::inode(LINK), 9), before);
        assert_eq!(world.kv.pairs(keys::blocks(), 9).len(), 1);
    }
}

#[test]
fn an_extent_of_an_unknown_form_is_reported_and_not_repaired() {
    let (mut world, _) = filled();
    let form = BlockForm { policy: PolicyId(1), ..BlockForm::plain(100) };
    let source = Source::Block { hash: HASH, form, offset: 7 };
    let stored = encode(&(SnapshotNumber(0), 50_u64, source, Version(2)));
    world.kv.0.insert(keys::extent(FILE, 0), stored);
    let mut first = check::FirstFindings { findings: Vec::new(), most: 99 };
    check::check_all(&world.kv, &mut first);
    assert!(!first.findings.is_empty());
    let removes_content = |repair: &wire::message::check::Repair| {
        use wire::message::check::Repair::{Content, References};
        matches!(repair, Content(_) | References { .. })
    };
    assert!(first.findings.iter().filter_map(|finding| finding.repair.as_ref()).all(|repair| !removes_content(repair)));
}

#[test]
fn a_cluster_is_founded_under_the_first_rules_and_newer_ones_are_refused() {
    let (mut world, _) = filled();
    assert_eq!(rules::check(rules::of(&world.kv)), Ok(()));
    world.kv.0.insert(keys::RULES.to_vec(), encode(&rules::KNOWN.next()));
    let error = rules::check(rules::of(&world.kv)).unwrap_err().to_string();
    assert!(error.contains("a newer release") && !error.contains('\n'), "{error}");
}

#[test]
fn an_inode_comes_back_as_it_was_stored() {
    let (world, _) = filled();
    let stored = world.kv.get(&keys::inode(FILE)).unwrap();
    let inode: Inode = decode(&stored).unwrap();
    assert_eq!((inode.attr.ino, inode.name.as_slice(), inode.written), (FILE, b"f".as_slice(), SnapshotNumber(0)));
    assert_eq!(encode(&inode), stored);
}
