//! What the check finds in a damaged state, and what repairs do about it.

use super::tables::full;
use metad::fs::check::{FirstFindings, check_circles, check_in_windows};
use metad::fs::hidden::HiddenContent;
use metad::fs::inode::Inode;
use metad::fs::keys;
use metad::fs::remains::Remains;
use metad::fs::repair::{Repairing, repairs};
use metad::fs::view::{Kv, KvExt, MemoryKv, View};
use metad::fs::{Command, CommandReply, Stamped, apply, blockref, numbered};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::attr::{Creator, FileKind, InodeAttr, Timestamp};
use wire::codec::encode;
use wire::ids::{BlockHash, Ino, SessionId, SnapshotNumber};
use wire::message::check::{CheckId, Finding, FindingKind, Repair, Seen};

/// Rounds of checks and repairs: one round repairs what the previous one uncovered.
const ROUNDS: u64 = 6;

fn findings(kv: &MemoryKv, window: usize) -> Vec<Finding> {
    let mut all = FirstFindings { findings: Vec::new(), most: usize::MAX };
    check_in_windows(kv, &mut all, window);
    all.findings
}

fn run(kv: &mut MemoryKv, command: Command) -> CommandReply {
    let now = Timestamp { secs: 5_000, nanos: 0 };
    let mut view = View::new(kv);
    let reply = apply(&mut view, &Stamped { now, command });
    let changes = view.into_changes();
    kv.absorb(changes);
    reply
}

fn repair(kv: &mut MemoryKv, check: u64, seq: u64, base: u64, repairs: Vec<Repair>) -> CommandReply {
    run(kv, Command::Repair(Repairing { check: CheckId(check), base, seq, repairs }))
}

/// Checks and repairs until nothing is left to repair. Returns what a check still finds.
fn mend(kv: &mut MemoryKv) -> Vec<Finding> {
    for round in 0..ROUNDS {
        let found = findings(kv, 2);
        let repairs_of: Vec<Repair> = found.iter().filter_map(|finding| finding.repair.clone()).collect();
        if repairs_of.is_empty() {
            break;
        }
        let base = repairs(kv).count;
        assert!(matches!(repair(kv, round + 1, 1, base, repairs_of), CommandReply::Repaired(_)));
        run(kv, Command::Reap);
    }
    findings(kv, 1000)
}

/// Returns what an entry leads to.
fn find(kv: &MemoryKv, parent: Ino, name: &[u8]) -> Option<(Ino, FileKind)> {
    numbered::load(kv, &keys::dentry(parent, name))
}

/// Returns the stored value of an entry.
fn entry(ino: Ino, kind: FileKind) -> Vec<u8> {
    numbered::encode(SnapshotNumber(0), &(ino, kind))
}

/// Returns a directory of the full state, and a file in it with content.
fn dir_and_file(kv: &MemoryKv) -> (Ino, Ino) {
    let target = |parent, name: &str| find(kv, parent, name.as_bytes()).unwrap().0;
    let dir = target(Ino::ROOT, "d");
    (dir, target(dir, "f"))
}

fn change_inode(kv: &mut MemoryKv, ino: Ino, change: impl FnOnce(&mut Inode)) {
    let mut inode: Inode = kv.load(&keys::inode(ino)).unwrap();
    change(&mut inode);
    kv.0.insert(keys::inode(ino), encode(&inode));
}

/// Returns the block that a file's first extent reads from, and its count of references.
fn block_of(kv: &MemoryKv) -> (BlockHash, blockref::BlockRef) {
    let (key, value) = kv
        .pairs(keys::blocks(), usize::MAX)
        .into_iter()
        .find(|(_, value)| wire::codec::decode::<blockref::BlockRef>(value).unwrap().count > 0)
        .unwrap();
    (keys::block_hash(&key).unwrap(), wire::codec::decode(&value).unwrap())
}

/// One kind of damage: its name, what it does, what is found, and whether it can be repaired.
type Damage = (&'static str, fn(&mut MemoryKv), FindingKind, bool);

const DAMAGE: &[Damage] = &[
    (
        "a link too many is counted",
        |kv| {
            let (_, file) = dir_and_file(kv);
            change_inode(kv, file, |inode| inode.attr.nlink += 1);
        },
        FindingKind::LinkCount,
        true,
    ),
    (
        "a directory counts an entry too few",
        |kv| {
            let (dir, _) = dir_and_file(kv);
            change_inode(kv, dir, |inode| inode.attr.size -= 1);
        },
        FindingKind::DirectoryCount,
        true,
    ),
    (
        "a directory counts its subdirectories wrongly",
        |kv| change_inode(kv, Ino::ROOT, |inode| inode.attr.nlink = 9),
        FindingKind::DirectoryCount,
        true,
    ),
    (
        "an entry leads nowhere",
        |kv| {
            kv.0.insert(keys::dentry(Ino::ROOT, b"ghost"), entry(Ino(900_000), FileKind::Regular));
        },
        FindingKind::DanglingEntry,
        true,
    ),
    (
        "an entry stands in no directory",
        |kv| {
            let (_, file) = dir_and_file(kv);
            kv.0.insert(keys::dentry(Ino(900_000), b"lost"), entry(file, FileKind::Regular));
        },
        FindingKind::EntryWithoutDirectory,
        true,
    ),
    (
        "an entry says another kind",
        |kv| {
            let (dir, file) = dir_and_file(kv);
            kv.0.insert(keys::dentry(dir, b"f"), entry(file, FileKind::Fifo));
        },
        FindingKind::WrongKind,
        true,
    ),
    (
        "an entry is not where its name is looked for",
        |kv| {
            let (dir, _) = dir_and_file(kv);
            let value = kv.0.remove(&keys::dentry(dir, b"f")).unwrap();
            kv.0.insert(keys::dentry_at(dir, 77, b"f"), value);
        },
        FindingKind::MisplacedEntry,
        true,
    ),
    (
        "a directory has two entries",
        |kv| {
            let (dir, _) = dir_and_file(kv);
            kv.0.insert(keys::dentry(dir, b"again"), entry(dir, FileKind::Directory));
        },
        FindingKind::WrongParent,
        true,
    ),
    (
        "a directory names another parent",
        |kv| {
            let (dir, _) = dir_and_file(kv);
            change_inode(kv, dir, |inode| inode.name = b"elsewhere".to_vec());
        },
        FindingKind::WrongParent,
        true,
    ),
    (
        "a directory lies below itself",
        |kv| {
            let (dir, _) = dir_and_file(kv);
            kv.0.remove(&keys::dentry(Ino::ROOT, b"d"));
            kv.0.insert(keys::dentry(dir, b"self"), entry(dir, FileKind::Directory));
            change_inode(kv, dir, |inode| (inode.parent, inode.name) = (dir, b"self".to_vec()));
        },
        FindingKind::Circle,
        true,
    ),
    (
        "a file has lost its entry",
        |kv| {
            let (dir, _) = dir_and_file(kv);
            kv.0.remove(&keys::dentry(dir, b"f"));
        },
        FindingKind::Nameless,
        true,
    ),
    (
        "content is counted wrongly",
        |kv| {
            let (_, file) = dir_and_file(kv);
            change_inode(kv, file, |inode| inode.attr.allocated += 7);
        },
        FindingKind::AllocatedCount,
        true,
    ),
    (
        "content of an inode that is not there",
        |kv| {
            let (_, file) = dir_and_file(kv);
            let (key, value) = kv.pairs(keys::extents_from(file, 0), 1).remove(0);
            let stray = keys::extent(Ino(900_000), keys::extent_parts(&key).1);
            kv.0.insert(stray, value);
            let (hash, mut block) = block_of(kv);
            block.count += 1;
            kv.0.insert(keys::block(&hash), encode(&block));
        },
        FindingKind::Leftover,
        true,
    ),
    (
        "content of an inode that is there is about to be taken apart",
        |kv| {
            let (_, file) = dir_and_file(kv);
            kv.0.insert(keys::reaping(file), Vec::new());
        },
        FindingKind::Leftover,
        true,
    ),
    (
        "something was cut off an inode that is not there",
        |kv| {
            kv.0.insert(keys::hidden(Ino(900_000)), encode(&HiddenContent::default()));
        },
        FindingKind::Leftover,
        true,
    ),
    (
        "a session that lives is about to be taken apart",
        |kv| {
            let (key, _) = kv.pairs(keys::sessions(), 1).remove(0);
            kv.0.insert(keys::remains(SessionId(keys::first(&key))), encode(&Remains::default()));
        },
        FindingKind::WrongIndex,
        true,
    ),
    (
        "a block counts too many references",
        |kv| {
            let (hash, mut block) = block_of(kv);
            block.count += 3;
            kv.0.insert(keys::block(&hash), encode(&block));
        },
        FindingKind::ReferenceCount,
        true,
    ),
    (
        "a block is not known",
        |kv| {
            let (hash, _) = block_of(kv);
            kv.0.remove(&keys::block(&hash));
        },
        FindingKind::ReferenceCount,
        true,
    ),
    (
        "an unlinked inode waits for a session that is not there",
        |kv| {
            let (key, _) = kv.pairs(keys::all_orphans(), 1).remove(0);
            kv.0.insert(key, encode(&BTreeSet::from([SessionId(7)])));
        },
        FindingKind::StaleOrphan,
        true,
    ),
    (
        "a file with a name waits to be let go",
        |kv| {
            let (_, file) = dir_and_file(kv);
            kv.0.insert(keys::orphan(file), encode(&BTreeSet::from([SessionId(7)])));
        },
        FindingKind::StaleOrphan,
        true,
    ),
    (
        "a block waits for its deletion twice",
        |kv| {
            let (hash, _) = block_of(kv);
            kv.0.insert(keys::unreferenced(1, &hash), Vec::new());
        },
        FindingKind::WrongIndex,
        true,
    ),
    (
        "inodes are counted wrongly",
        |kv| {
            kv.0.insert(keys::setting("inodes"), encode(&1_000_u64));
        },
        FindingKind::WrongCounter,
        true,
    ),
    (
        "a number is about to be given out again",
        |kv| {
            kv.0.insert(keys::setting("next ino"), encode(&1_025_u64));
        },
        FindingKind::WrongCounter,
        true,
    ),
    (
        "a symlink has lost its target",
        |kv| {
            let (key, _) = kv.pairs(keys::below(vec![b'L']), 1).remove(0);
            kv.0.remove(&key);
        },
        FindingKind::WrongAttributes,
        false,
    ),
    (
        "extents overlap",
        |kv| {
            let (_, file) = dir_and_file(kv);
            let (key, value) = kv.pairs(keys::extents_from(file, 0), 1).remove(0);
            kv.0.insert(keys::extent(file, keys::extent_parts(&key).1 + 1), value);
        },
        FindingKind::BadExtent,
        false,
    ),
];

#[test]
fn each_kind_of_damage_is_found_and_mended_where_that_is_safe() {
    for (name, damage, kind, can_be_mended) in DAMAGE {
        let mut kv = full();
        assert_eq!(findings(&kv, 2), []);
        damage(&mut kv);
        for window in [1, 2, 1000] {
            let kinds: Vec<FindingKind> = findings(&kv, window).iter().map(|finding| finding.kind).collect();
            assert!(kinds.contains(kind), "{name}: {kinds:?}");
        }
        let left = mend(&mut kv);
        assert_eq!(left.is_empty(), *can_be_mended, "{name}: {left:#?}");
        let (_, file) = match find(&kv, Ino::ROOT, b"d") {
            Some(_) if !matches!(kind, FindingKind::Nameless) => dir_and_file(&kv),
            _ => continue,
        };
        assert_eq!(
            kv.pairs(keys::extents_from(file, 0), 9).len(),
            1 + usize::from(*kind == FindingKind::BadExtent),
            "{name}"
        );
    }
}

#[test]
fn an_inode_that_has_lost_its_name_is_found_again_with_its_content() {
    let mut kv = full();
    let (dir, file) = dir_and_file(&kv);
    kv.0.remove(&keys::dentry(Ino::ROOT, b"d"));
    assert_eq!(mend(&mut kv), []);
    let find = |parent, name: &[u8]| find(&kv, parent, name).map(|(ino, _)| ino);
    let lost = find(Ino::ROOT, b"lost+found").unwrap();
    let inode: Inode = kv.load(&keys::inode(lost)).unwrap();
    assert_eq!((inode.attr.mode, inode.attr.uid), (0o700, 0));
    assert_eq!(find(lost, format!("#{dir}").as_bytes()), Some(dir));
    assert_eq!(find(dir, b"f"), Some(file));
}

#[test]
fn any_missing_row_is_repaired_unless_it_is_reported_as_lost() {
    let whole = full();
    for key in whole.0.keys() {
        let mut kv = whole.clone();
        kv.0.remove(key);
        let is_lost = |ino: Ino| {
            let leads_there = |value: &[u8]| numbered::decode::<(Ino, FileKind)>(value).is_ok_and(|to| to.0 == ino);
            let entries = whole.pairs(keys::all_dentries(), usize::MAX);
            entries.iter().any(|(_, value)| leads_there(value)) && whole.any(keys::extents_from(ino, 0))
        };
        let has_content = key[0] == b'I' && is_lost(Ino(keys::first(key)));
        let lost = *key == keys::inode(Ino::ROOT) || key[0] == b'L' || has_content;
        if *key == keys::setting("cluster") || *key == keys::setting("layout") {
            continue;
        }
        let left = mend(&mut kv);
        assert_eq!(left.is_empty(), !lost, "{:?} is missing: {left:#?}", keys_shown(key));
        if has_content {
            for table in [b'D', b'E'] {
                let rows = |kv: &MemoryKv| kv.pairs(keys::below(vec![table]), usize::MAX);
                assert_eq!(rows(&kv), rows(&whole), "neither its name nor its content is removed");
            }
        }
    }
}

fn keys_shown(key: &[u8]) -> String {
    metad::fs::check::places::printable(key)
}

#[test]
fn a_value_that_cannot_be_decoded_is_reported_and_nothing_is_removed_for_it() {
    let whole = full();
    for (key, value) in &whole.0 {
        // Their values are raw, or empty; without its settings and sessions a metad does not even start.
        if matches!(key[0], b'U' | b'C' | b'S') || value.is_empty() {
            continue;
        }
        let mut kv = whole.clone();
        kv.0.insert(key.clone(), vec![0xff; 5]);
        if key[0] != b'Y' {
            assert!(findings(&kv, 2).iter().any(|found| found.kind == FindingKind::Undecodable), "{}", keys_shown(key));
        }
        mend(&mut kv);
        assert_eq!(kv.get(key), Some(vec![0xff; 5]));
        let references = |kv: &MemoryKv| -> Vec<u64> {
            let pairs = kv.pairs(keys::blocks(), usize::MAX).into_iter().filter(|(block, _)| block != key);
            pairs.map(|(_, value)| wire::codec::decode::<blockref::BlockRef>(&value).unwrap().count).collect()
        };
        let before: Vec<u64> = references(&whole);
        assert!(references(&kv).iter().zip(&before).all(|(now, before)| now >= before), "{}", keys_shown(key));
        for table in [b'I', b'E', b'X', b'L'] {
            let count = |kv: &MemoryKv| kv.pairs(keys::below(vec![table]), usize::MAX).len();
            let more = count(&kv).saturating_sub(usize::from(table == b'I'));
            assert!(count(&kv) >= count(&whole) || more >= count(&whole), "{}: {}", keys_shown(key), char::from(table));
        }
    }
}

#[test]
fn repairs_of_two_checks_do_not_mix_and_none_is_made_twice() {
    let mut kv = full();
    let (hash, block) = block_of(&kv);
    let len = block.len;
    let set = |seen, found| vec![Repair::References { hash, seen: Some(seen), found, len }];
    let count = |kv: &MemoryKv| kv.load::<blockref::BlockRef>(&keys::block(&hash)).unwrap().count;
    assert_eq!(repair(&mut kv, 1, 1, 0, set(block.count, 9)), CommandReply::Repaired(vec![true]));
    assert_eq!(repair(&mut kv, 1, 1, 0, set(9, 5)), CommandReply::Stale, "it was carried out");
    assert_eq!(repair(&mut kv, 2, 1, 0, set(9, 5)), CommandReply::Stale, "its state knows nothing of the other check");
    assert_eq!(repair(&mut kv, 1, 2, 0, set(5, 4)), CommandReply::Repaired(vec![false]), "it is counted otherwise");
    assert_eq!(count(&kv), 9);
    assert_eq!(repair(&mut kv, 3, 1, 1, set(9, block.count)), CommandReply::Repaired(vec![true]));
    assert_eq!(repair(&mut kv, 1, 3, 0, set(block.count, 5)), CommandReply::Stale, "another one has mended since");
    assert_eq!(count(&kv), block.count);
}

/// Guards the state against whoever sends repairs: the leader proposes only what it has found, and this is checked
/// again at every metad.
#[test]
fn repairs_that_the_state_does_not_justify_are_not_made() {
    let whole = full();
    let (dir, file) = dir_and_file(&whole);
    let seen = |kv: &MemoryKv, ino| {
        let attr = kv.load::<Inode>(&keys::inode(ino)).unwrap().attr;
        Seen { nlink: attr.nlink, ctime: attr.ctime }
    };
    let entry = |kv: &MemoryKv, name: &[u8]| {
        let (key, _) =
            kv.pairs(keys::dentries(dir, 0), usize::MAX).into_iter().find(|(k, _)| k.ends_with(name)).unwrap();
        keys::dentry_parts(&key).1
    };
    let (cookie, name) = (entry(&whole, b"f"), b"f".to_vec());
    let (hash, unknown) = (block_of(&whole).0, BlockHash([99; 32]));
    let root = Repair::Attach { ino: Ino::ROOT, seen: seen(&whole, Ino::ROOT) };
    let known = |found| Repair::References { hash: unknown, seen: None, found, len: u32::MAX };
    for repair_of in [
        Repair::Entry { parent: dir, cookie, name: name.clone(), ino: file },
        Repair::Rewrite { parent: dir, cookie, name: name.clone(), ino: file },
        Repair::Parent { ino: dir, parent: Ino::ROOT, name: b"d".to_vec() },
        Repair::Attach { ino: file, seen: seen(&whole, file) },
        root,
        Repair::Links { ino: file, seen: seen(&whole, file), found: 0 },
        Repair::Links { ino: file, seen: seen(&whole, file), found: seen(&whole, file).nlink },
        Repair::Links { ino: dir, seen: seen(&whole, dir), found: 9 },
        Repair::Directory(dir),
        Repair::Allocated(file),
        Repair::Attributes(file),
        Repair::Content(file),
        Repair::Content(Ino(900_000)),
        Repair::References { hash, seen: Some(77), found: 0, len: 20 },
        known(0),
        known(3),
        Repair::Orphan { ino: file, seen: Some(seen(&whole, file)), named: false },
        Repair::Locks(file),
        Repair::Index(keys::unreferenced(5, &hash)),
        Repair::NextIno(Ino(1 << 60)),
    ] {
        let mut kv = whole.clone();
        assert_eq!(
            repair(&mut kv, 1, 1, 0, vec![repair_of.clone()]),
            CommandReply::Repaired(vec![false]),
            "{repair_of:?}"
        );
        kv.0.remove(&keys::setting("repairs"));
        assert!(kv.0 == whole.0, "{repair_of:?} has changed something");
    }
}

#[test]
fn no_repair_removes_what_a_name_leads_to_in_a_damaged_state_either() {
    let whole = full();
    let (dir, file) = dir_and_file(&whole);
    // A file with a name that counts no links, and is said to wait for nobody.
    let mut kv = whole.clone();
    change_inode(&mut kv, file, |inode| inode.attr.nlink = 0);
    kv.0.insert(keys::orphan(file), encode(&BTreeSet::<SessionId>::new()));
    let seen = kv.load::<Inode>(&keys::inode(file)).map(|inode| Seen { nlink: 0, ctime: inode.attr.ctime });
    let release = Repair::Orphan { ino: file, seen, named: false };
    assert_eq!(repair(&mut kv, 1, 1, 0, vec![release]), CommandReply::Repaired(vec![false]));
    assert!(kv.get(&keys::inode(file)).is_some());

    // The record of a file is lost, and its name and content are there.
    let mut kv = whole.clone();
    kv.0.remove(&keys::inode(file));
    let (key, _) = kv.pairs(keys::dentries(dir, 0), usize::MAX).into_iter().find(|(k, _)| k.ends_with(b"f")).unwrap();
    let cookie = keys::dentry_parts(&key).1;
    let removal = Repair::Entry { parent: dir, cookie, name: b"f".to_vec(), ino: file };
    assert_eq!(repair(&mut kv, 1, 1, 0, vec![removal]), CommandReply::Repaired(vec![false]));
    assert!(kv.get(&key).is_some());
}

/// Counts how often a value is looked up.
struct Counting(MemoryKv, AtomicU64);

impl Kv for Counting {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.get(key)
    }

    fn scan(&self, range: std::ops::Range<Vec<u8>>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.0.scan(range, visit);
    }

    fn last(&self, range: std::ops::Range<Vec<u8>>) -> Option<(Vec<u8>, Vec<u8>)> {
        self.0.last(range)
    }
}

/// Directories below each other, the deepest one with the least number, so that each way up is a long one.
fn chain(numbers: &[u64], in_a_circle: bool) -> Counting {
    let mut kv = MemoryKv::default();
    let add = |kv: &mut MemoryKv, ino: Ino, parent: Ino| {
        let creator = Creator { mode: 0o755, uid: 0, gid: 0 };
        let attr = InodeAttr::new(ino, FileKind::Directory, creator, Timestamp::default());
        kv.0.insert(keys::inode(ino), encode(&Inode::new(attr, parent, b"d".to_vec())));
    };
    add(&mut kv, Ino::ROOT, Ino::ROOT);
    let above = numbers.iter().skip(1).map(|number| Ino(*number));
    let top = if in_a_circle { Ino(numbers[numbers.len() / 2]) } else { Ino::ROOT };
    for (number, parent) in numbers.iter().zip(above.chain([top])) {
        add(&mut kv, Ino(*number), parent);
    }
    Counting(kv, AtomicU64::new(0))
}

#[test]
fn the_search_for_circles_is_near_linear_however_deep_directories_are() {
    const DEPTH: u64 = 40_000;
    let following: Vec<u64> = (1_000..1_000 + DEPTH).collect();
    // Numbers that a client chooses: their products with a constant that is known to all begin with a one, so a check
    // that went by such products would remember none of them.
    let begins_with_one = |number: &u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63 == 1;
    let chosen: Vec<u64> = (1_000..).filter(begins_with_one).take(following.len()).collect();
    let cases = [(false, 1 << 19, &following), (false, 2_000, &following), (true, 2_000, &following)];
    for (in_a_circle, window, numbers) in cases.into_iter().chain([(false, 2_000, &chosen)]) {
        let kv = chain(numbers, in_a_circle);
        let mut all = FirstFindings { findings: Vec::new(), most: usize::MAX };
        check_circles(&kv, &mut all, window);
        let looked = kv.1.load(Ordering::Relaxed);
        assert!(looked < DEPTH * 100, "{looked} look-ups for {DEPTH} directories with windows of {window}");
        let circles: Vec<FindingKind> = all.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!(circles, vec![FindingKind::Circle; usize::from(in_a_circle)]);
    }
}
