//! Looking through the whole state for contradictions: for tests, and for operators.

mod indexes;

use super::blockref::BlockRef;
use super::inode::Inode;
use super::view::{Kv, decode_stored};
use super::{dentry, extent, keys, settings};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use wire::attr::FileKind;
use wire::extent::Source;
use wire::ids::{BlockHash, ChunkIndex, Ino};

/// Contradictions found, one line each. Reads everything: meant for stopped or small clusters, and for followers.
#[must_use]
pub fn check(kv: &dyn Kv) -> Vec<String> {
    let mut problems = Vec::new();
    let mut inodes: BTreeMap<Ino, Inode> = BTreeMap::new();
    kv.scan(keys::inodes(), &mut |key, value| {
        inodes.insert(Ino(keys::first(key)), decode_stored(key, value));
        true
    });
    check_entries(kv, &inodes, &mut problems);
    check_reachable(&inodes, &mut problems);
    check_content(kv, &inodes, &mut problems);
    indexes::check(kv, &inodes, &mut problems);
    if settings::inode_count(kv) != inodes.len() as u64 {
        problems.push(format!("{} inodes counted, {} there", settings::inode_count(kv), inodes.len()));
    }
    problems
}

fn check_entries(kv: &dyn Kv, inodes: &BTreeMap<Ino, Inode>, problems: &mut Vec<String>) {
    let mut links: HashMap<Ino, u32> = HashMap::from([(Ino::ROOT, 2)]);
    let mut sizes: HashMap<Ino, u64> = HashMap::new();
    kv.scan(keys::all_dentries(), &mut |key, value| {
        let (parent, _, name) = keys::dentry_parts(key);
        let (ino, kind): dentry::Target = decode_stored(key, value);
        let shown = String::from_utf8_lossy(name);
        match inodes.get(&ino) {
            None => problems.push(format!("entry {shown:?} of directory {parent} leads to inode {ino}, which is gone")),
            Some(inode) if inode.attr.kind != kind => problems.push(format!("entry {shown:?} has another kind")),
            Some(inode) if kind == FileKind::Directory && inode.parent != parent => {
                problems.push(format!("directory {ino} names another parent than {parent}"));
            }
            Some(_) => {}
        }
        *sizes.entry(parent).or_default() += 1;
        *links.entry(ino).or_default() += if kind == FileKind::Directory { 2 } else { 1 };
        if kind == FileKind::Directory {
            *links.entry(parent).or_default() += 1;
        }
        true
    });
    for (ino, inode) in inodes {
        let found = links.get(ino).copied().unwrap_or(0);
        if inode.attr.nlink != found {
            problems.push(format!("inode {ino} has {found} links and counts {}", inode.attr.nlink));
        }
        let entries = sizes.get(ino).copied().unwrap_or(0);
        if inode.attr.kind == FileKind::Directory && inode.attr.size != entries {
            problems.push(format!("directory {ino} has {entries} entries and counts {}", inode.attr.size));
        }
        if inode.attr.nlink == 0 && kv.get(&keys::orphan(*ino)).is_none() {
            problems.push(format!("inode {ino} has no entry and waits for no session"));
        }
    }
}

/// Each directory has exactly one entry (see `check_entries`), so all are within reach of the root unless some lead in
/// a circle.
fn check_reachable(inodes: &BTreeMap<Ino, Inode>, problems: &mut Vec<String>) {
    let mut reached: BTreeSet<Ino> = BTreeSet::from([Ino::ROOT]);
    for (start, inode) in inodes.iter().filter(|(_, inode)| inode.attr.kind == FileKind::Directory) {
        let (mut way, mut at, mut next) = (BTreeSet::new(), *start, inode.parent);
        while !reached.contains(&at) && way.insert(at) {
            at = next;
            next = inodes.get(&at).map_or(at, |inode| inode.parent);
        }
        if reached.contains(&at) {
            reached.extend(way);
        } else {
            problems.push(format!("directory {start} is not within the root's tree"));
        }
    }
}

fn check_content(kv: &dyn Kv, inodes: &BTreeMap<Ino, Inode>, problems: &mut Vec<String>) {
    let mut allocated: HashMap<Ino, u64> = HashMap::new();
    let mut references: BTreeMap<BlockHash, u64> = BTreeMap::new();
    let mut before = (Ino::default(), 0);
    extent::for_each(kv, &mut |ino, extent| {
        if before.0 == ino && extent.file_off < before.1 {
            problems.push(format!("extents of inode {ino} overlap at {}", extent.file_off));
        }
        before = (ino, extent.range().end);
        if extent.len == 0 || ChunkIndex::of(extent.file_off) != ChunkIndex::of(extent.range().end - 1) {
            problems.push(format!("extent of inode {ino} at {} is empty or crosses a chunk's border", extent.file_off));
        }
        *allocated.entry(ino).or_default() += extent.len;
        if let Source::Block { hash, .. } = extent.source {
            *references.entry(hash).or_default() += 1;
        }
        if !inodes.contains_key(&ino) && kv.get(&keys::reaping(ino)).is_none() {
            problems.push(format!("extent of inode {ino}, which is gone"));
        }
    });
    for (ino, inode) in inodes {
        let found = allocated.get(ino).copied().unwrap_or(0);
        if inode.attr.allocated != found {
            problems.push(format!("inode {ino} has {found} bytes and counts {}", inode.attr.allocated));
        }
    }
    kv.scan(keys::blocks(), &mut |key, value| {
        let mut hash = BlockHash([0; 32]);
        hash.0.copy_from_slice(&key[1..]);
        let counted = decode_stored::<BlockRef>(key, value).count;
        let found = references.remove(&hash).unwrap_or(0);
        if counted != found {
            problems.push(format!("block {hash} has {found} references and counts {counted}"));
        }
        true
    });
    problems.extend(references.keys().map(|hash| format!("block {hash} is referred to and not counted")));
}
