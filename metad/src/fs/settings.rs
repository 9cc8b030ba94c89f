//! The settings of the cluster: its name, its root directory, its block layout, its counters.

use super::CommandReply;
use super::inode::Inode;
use super::keys;
use super::rules;
use super::view::{Kv, KvExt, View};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use wire::attr::{FileKind, InodeAttr, Timestamp};
use wire::ids::{Ino, LayoutEpoch, MetadId, Version};
use wire::layout::Layout;
use wire::limits::DOWN_AFTER_MS;

const CLUSTER: &str = "cluster";
const LAYOUT: &str = "layout";
const INODES: &str = "inodes";
/// Numbers of all metads that were members at some time.
const METADS: &str = "metads";
/// Counter of leased inode numbers.
pub(super) const NEXT_INO: &str = "next ino";

/// `Command::Init`.
pub(super) fn init(view: &mut View, now: Timestamp, cluster: &str, replicas: u8, min_sync: u8) -> CommandReply {
    if view.get(&keys::setting(CLUSTER)).is_some() {
        return CommandReply::Stale;
    }
    view.store(keys::setting(CLUSTER), &cluster.to_owned());
    rules::set_first(view);
    let epoch = LayoutEpoch(1);
    let down_after_ms = DOWN_AFTER_MS;
    let layout = Layout { epoch, placement: epoch, replicas, min_sync, down_after_ms, ..Layout::default() };
    view.store(keys::setting(LAYOUT), &layout);
    let attr = InodeAttr {
        ino: Ino::ROOT,
        kind: FileKind::Directory,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        version: Version(1),
        has_xattrs: false,
    };
    Inode::new(attr, Ino::ROOT, Vec::new()).save(view);
    inodes_changed(view, 1);
    CommandReply::Done
}

/// `Command::SetLayout`.
pub(super) fn set_layout(view: &mut View, new: &Layout) -> CommandReply {
    if cluster(view).is_none() {
        return CommandReply::Stale;
    }
    // I11: epochs follow each other without a gap, so a proposal made on an older layout changes nothing.
    if new.epoch != layout(view).epoch.next() {
        return CommandReply::Stale;
    }
    view.store(keys::setting(LAYOUT), new);
    CommandReply::Done
}

/// Replaces the layout, whatever its epoch, while nobody serves the state.
pub(super) fn replace_layout(view: &mut View, layout: &Layout) {
    view.store(keys::setting(LAYOUT), layout);
}

/// Returns the cluster's name, once it was founded.
pub fn cluster(kv: &dyn Kv) -> Option<String> {
    kv.load(&keys::setting(CLUSTER))
}

/// Returns the block layout.
pub fn layout(kv: &dyn Kv) -> Layout {
    kv.load(&keys::setting(LAYOUT)).unwrap_or_default()
}

/// Records which metads are members. The numbers of those that leave stay: a metad may still have files, and votes,
/// under its number.
pub(crate) fn note_metads(view: &mut View, members: impl Iterator<Item = MetadId>) {
    let before = metads_ever(view);
    let mut all = before.clone();
    all.extend(members);
    if all != before {
        view.store(keys::setting(METADS), &all);
    }
}

/// Returns the numbers of all metads that are or were members.
pub(crate) fn metads_ever(kv: &dyn Kv) -> BTreeSet<MetadId> {
    kv.load(&keys::setting(METADS)).unwrap_or_default()
}

/// Returns whether the settings that every node reads at its start can be decoded.
#[must_use]
pub fn are_readable(kv: &dyn Kv) -> bool {
    fn is_readable<T: DeserializeOwned>(kv: &dyn Kv, name: &str) -> bool {
        kv.get(&keys::setting(name)).is_none_or(|value| wire::codec::decode::<T>(&value).is_ok())
    }
    is_readable::<String>(kv, CLUSTER)
        && is_readable::<Layout>(kv, LAYOUT)
        && is_readable::<u64>(kv, INODES)
        && is_readable::<u64>(kv, NEXT_INO)
        && is_readable::<BTreeSet<MetadId>>(kv, METADS)
}

/// Returns the number of inodes.
pub fn inode_count(kv: &dyn Kv) -> u64 {
    kv.load(&keys::setting(INODES)).unwrap_or(0)
}

/// Returns the inode number that is leased next.
pub(super) fn next_ino(kv: &dyn Kv) -> Ino {
    Ino(kv.load(&keys::setting(NEXT_INO)).unwrap_or(Ino::FIRST_FREE.0))
}

/// Counts inodes made and removed.
pub(super) fn inodes_changed(view: &mut View, by: i64) {
    let count = inode_count(view).checked_add_signed(by).expect("more inodes removed than made");
    view.store(keys::setting(INODES), &count);
}

/// Sets the number of inodes, if it is still as it was seen.
pub(super) fn recount_inodes(view: &mut View, seen: u64, found: u64) -> bool {
    if inode_count(view) != seen || seen == found {
        return false;
    }
    view.store(keys::setting(INODES), &found);
    true
}

/// Makes sure that no inode number below this one is given out any more.
pub(super) fn raise_next_ino(view: &mut View, least: Ino) -> bool {
    if next_ino(view) >= least {
        return false;
    }
    view.store(keys::setting(NEXT_INO), &least.0);
    true
}

/// Takes a number for an inode that no session makes.
pub(super) fn take_ino(view: &mut View) -> Ino {
    Ino(take_numbers(view, NEXT_INO, Ino::FIRST_FREE.0, 1))
}

/// Takes `count` numbers from a counter that starts at `first`, and returns the first of them.
pub(super) fn take_numbers(view: &mut View, counter: &str, first: u64, count: u64) -> u64 {
    let key = keys::setting(counter);
    let next = view.load(&key).unwrap_or(first);
    view.store(key, &(next + count));
    next
}
