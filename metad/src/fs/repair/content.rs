//! Repairs of counts of content, and of what is left of inodes that do not exist.

use super::{WORK_MAX, load, load_inode};
use crate::fs::blockref::BlockRef;
use crate::fs::hidden::HiddenContent;
use crate::fs::view::{Kv, KvExt, View};
use crate::fs::{Context, extent, keys};
use std::collections::BTreeMap;
use wire::attr::FileKind;
use wire::extent::Source;
use wire::ids::{BlockHash, Ino, Version};
use wire::limits::{BLOCK_BYTES_MAX, FILE_BYTES_MAX};

/// Attributes of a missing inode that are removed at once.
const ATTRIBUTES_AT_ONCE: usize = 4096;

/// `Repair::Allocated`.
pub(super) fn count(view: &mut View, context: &Context, ino: Ino) -> bool {
    let Some(mut inode) = load_inode(view, ino) else { return false };
    // What was cut off counts until all of it is removed.
    let mut bytes = load::<HiddenContent>(view, &keys::hidden(ino)).map_or(0, |hidden| hidden.freed);
    let mut extents = 0;
    view.scan(keys::extents_from(ino, 0), &mut |key, value| {
        bytes = bytes.saturating_add(extent::decode(key, value).map_or(0, |extent| extent.len));
        extents += 1;
        extents <= WORK_MAX
    });
    if extents > WORK_MAX || inode.attr.allocated == bytes {
        return false;
    }
    inode.attr.allocated = bytes;
    inode.changed(context.now);
    inode.save(view);
    true
}

/// `Repair::Attributes`.
pub(super) fn attributes(view: &mut View, context: &Context, ino: Ino) -> bool {
    let has_target = view.get(&keys::symlink(ino)).is_some();
    if view.get(&keys::inode(ino)).is_none() {
        let left = view.pairs(keys::xattrs(ino), ATTRIBUTES_AT_ONCE);
        let some = has_target || !left.is_empty();
        left.into_iter().for_each(|(key, _)| view.delete(key));
        view.delete(keys::symlink(ino));
        return some;
    }
    let Some(mut inode) = load_inode(view, ino) else { return false };
    let has_xattrs = view.any(keys::xattrs(ino));
    let is_wrong_target = has_target && inode.attr.kind != FileKind::Symlink;
    if is_wrong_target {
        view.delete(keys::symlink(ino));
    }
    if inode.attr.has_xattrs == has_xattrs {
        return is_wrong_target;
    }
    inode.attr.has_xattrs = has_xattrs;
    inode.changed(context.now);
    inode.save(view);
    true
}

/// `Repair::Content` of an inode that exists: its content is not to be removed.
pub(super) fn unmark(view: &mut View, ino: Ino) -> bool {
    let key = keys::reaping(ino);
    let is_wrong = view.get(&key).is_some() && view.get(&keys::inode(ino)).is_some();
    if is_wrong {
        view.delete(key);
    }
    is_wrong
}

/// Content of an inode that does not exist.
pub(super) struct Stray {
    /// End of the last extent.
    pub size: u64,
    /// Bytes of all extents.
    pub allocated: u64,
    /// The newest of their versions.
    pub version: Version,
}

/// Returns the content of an inode that does not exist. `None` when there is none, when it is to be removed anyway, and
/// when it would make no sound file.
pub(super) fn stray(view: &View, ino: Ino) -> Option<Stray> {
    let is_stray = view.get(&keys::inode(ino)).is_none() && view.get(&keys::reaping(ino)).is_none();
    if !is_stray || !is_counted(view, ino) {
        return None;
    }
    let mut stray = Stray { size: 0, allocated: 0, version: Version::default() };
    let mut is_sound = true;
    view.scan(keys::extents_from(ino, 0), &mut |key, value| {
        let extent = extent::decode(key, value);
        is_sound = extent.is_some_and(|extent| {
            let end = extent.file_off.saturating_add(extent.len);
            let fits = extent.file_off >= stray.size && end <= FILE_BYTES_MAX && extent.len > 0;
            (stray.size, stray.version) = (end, stray.version.max(extent.version));
            stray.allocated += extent.len;
            fits
        });
        is_sound
    });
    (is_sound && stray.size > 0).then_some(stray)
}

/// Returns whether all references of an inode's extents are counted: then the extents may be removed.
pub(super) fn is_counted(view: &View, ino: Ino) -> bool {
    let mut references: BTreeMap<BlockHash, u64> = BTreeMap::new();
    let mut extents = 0;
    let mut all = true;
    view.scan(keys::extents_from(ino, 0), &mut |key, value| {
        extents += 1;
        match extent::decode(key, value).map(|extent| extent.source) {
            Some(Source::Block { hash, .. }) => *references.entry(hash).or_default() += 1,
            Some(_) => {}
            None => all = false,
        }
        all && extents <= WORK_MAX
    });
    let counted = |hash: &BlockHash| load::<BlockRef>(view, &keys::block(hash)).map_or(0, |block| block.count);
    all && extents <= WORK_MAX && references.iter().all(|(hash, found)| counted(hash) >= *found)
}

/// `Repair::References`.
pub(super) fn references(
    view: &mut View,
    context: &Context,
    hash: &BlockHash,
    seen: Option<u64>,
    (found, len): (u64, u32),
) -> bool {
    let key = keys::block(hash);
    let before = load::<BlockRef>(view, &key);
    if before.is_none() && view.get(&key).is_some() {
        return false;
    }
    if before.map(|block| block.count) != seen || seen == Some(found) {
        return false;
    }
    // A block that is not known is made known because something refers to it.
    if before.is_none() && (found == 0 || len == 0 || len as usize > BLOCK_BYTES_MAX) {
        return false;
    }
    let mut block = before.unwrap_or(BlockRef { count: 0, len, zero_since_ms: 0 });
    if block.count == 0 && block.zero_since_ms != 0 {
        view.delete(keys::unreferenced(block.zero_since_ms, hash));
    }
    (block.count, block.zero_since_ms) = (found, 0);
    if found == 0 {
        // I10: its grace period begins now.
        block.zero_since_ms = context.entry.as_millis().max(1);
        view.put(keys::unreferenced(block.zero_since_ms, hash), Vec::new());
    }
    view.store(key, &block);
    true
}
