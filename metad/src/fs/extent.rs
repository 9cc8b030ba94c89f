//! Extents: cutting, inserting, joining, and the operations on ranges.

use super::Context;
use super::blockref;
use super::hidden;
use super::inode::Inode;
use super::keys;
use super::view::{Kv, KvExt, STEPS, View, decode_stored};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::FsError;
use wire::extent::{Extent, ExtentWrite, Source};
use wire::ids::{Ino, SnapshotNumber, Version};
use wire::limits::{CHUNK_BYTES, FILE_BYTES_MAX, HEAD_BYTES_MAX, INLINE_BYTES_MAX};
use wire::op::{OpReply, RangeAction};

/// Collapse and insert work in units of this, as ext4's do with its block size.
const SHIFT_UNIT: u64 = 4096;
/// Extents that one operation moves or shares, and that one write replaces: as many as a terabyte in full blocks has.
const MOVED_EXTENTS_MAX: usize = 262_144;
/// Extents that a write replaces even if its batch has done as much as it may: what it writes has a bound of its own.
const REPLACED_EXTENTS_FREE: usize = 64;
/// Extents that are cut off at once: of a file of 64 GiB in full blocks. A cut of more hides them, and they are removed
/// in steps.
const CUT_AT_ONCE: usize = 16_384;
/// Bytes that one operation allocates, with one extent per chunk.
const ALLOCATED_BYTES_MAX: u64 = 1 << 40;
/// Extents on one page of an answer.
const PAGE_EXTENTS: usize = 4096;
/// Inline content on one page, so that it fits in a message (`HEAD_BYTES_MAX`) however small the extents are.
const PAGE_INLINE_BYTES: usize = 1 << 20;
const _: () = assert!(PAGE_INLINE_BYTES + INLINE_BYTES_MAX + PAGE_EXTENTS * 128 < HEAD_BYTES_MAX);

/// The stored value; the offset is in the key.
#[derive(Serialize, Deserialize)]
struct StoredExtent {
    /// Newest snapshot number when it was written.
    written: SnapshotNumber,
    len: u64,
    source: Source,
    version: Version,
}

pub(super) fn from_pair(key: &[u8], value: &[u8]) -> Extent {
    let StoredExtent { len, source, version, .. } = decode_stored(key, value);
    Extent { file_off: keys::extent_parts(key).1, len, source, version }
}

/// Returns a stored value with another version.
pub(super) fn with_version(
    value: &[u8],
    next: impl FnOnce(Version) -> Result<Version, wire::Error>,
) -> Result<Vec<u8>, wire::Error> {
    let mut stored: StoredExtent = wire::codec::decode(value)?;
    stored.version = next(stored.version)?;
    Ok(wire::codec::encode(&stored))
}

/// Returns an extent as it is stored; `None` when it cannot be decoded, or reads from a block of an unknown form.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Extent> {
    let StoredExtent { len, source, version, .. } = wire::codec::decode(value).ok()?;
    if let Source::Block { form, .. } = &source {
        form.check().ok()?;
    }
    Some(Extent { file_off: keys::extent_parts(key).1, len, source, version })
}

/// Returns the extents that overlap `range`, in order, without the hidden ones.
pub(super) fn overlapping(kv: &dyn Kv, ino: Ino, range: &Range<u64>) -> Vec<Extent> {
    let mut found = Vec::new();
    visit_overlapping(kv, ino, range, &mut |extent| {
        found.push(extent);
        true
    });
    found
}

/// Returns whether one of the extents that overlap `range` is as asked for.
pub(super) fn any_overlapping(kv: &dyn Kv, ino: Ino, range: &Range<u64>, is_so: impl Fn(&Extent) -> bool) -> bool {
    let mut found = false;
    visit_overlapping(kv, ino, range, &mut |extent| {
        found = is_so(&extent);
        !found
    });
    found
}

/// Calls `visit` with the extents that overlap `range`, in order and without the hidden ones, until it returns false.
fn visit_overlapping(kv: &dyn Kv, ino: Ino, range: &Range<u64>, visit: &mut dyn FnMut(Extent) -> bool) {
    let hidden = hidden::of(kv, ino);
    visit_stored(kv, ino, range, &mut |extent| {
        hidden::covers(&hidden, extent.file_off, extent.version) || visit(extent)
    });
}

/// Calls `visit` with the extents that overlap `range`, in order, until it returns false.
///
/// No extent crosses a chunk's border, so one that begins before the range can only begin within the same chunk.
fn visit_stored(kv: &dyn Kv, ino: Ino, range: &Range<u64>, visit: &mut dyn FnMut(Extent) -> bool) {
    let from = range.start - range.start % CHUNK_BYTES;
    // The one extent that reaches into the range from before it is the last that starts before its first byte.
    if let Some((key, value)) = kv.last(keys::extent(ino, from)..keys::extent(ino, range.start)) {
        let extent = from_pair(&key, &value);
        if extent.range().end > range.start && !visit(extent) {
            return;
        }
    }
    kv.scan(keys::extent(ino, range.start)..keys::extent(ino, range.end), &mut |key, value| {
        visit(from_pair(key, value))
    });
}

fn insert(view: &mut View, ino: Ino, extent: Extent) {
    let Extent { file_off, len, source, version } = extent;
    assert!(len > 0 && file_off / CHUNK_BYTES == (file_off + len - 1) / CHUNK_BYTES, "extents stay in one chunk");
    let written = view.newest_snapshot();
    view.store(keys::extent(ino, file_off), &StoredExtent { written, len, source, version });
}

/// Removes what `range` covers, to be replaced or moved, and shortens extents that reach over its ends.
///
/// # Errors
/// When that is more than one operation may do. What it has changed must be undone.
fn cut_range(view: &mut View, context: &Context, inode: &mut Inode, range: Range<u64>) -> Result<(), FsError> {
    let found = few_stored(view, inode.attr.ino, &range)?;
    cut(view, context, inode, &range, found);
    Ok(())
}

/// Returns the extents that overlap `range`, in order, if they are not too many for one operation.
fn few_stored(view: &View, ino: Ino, range: &Range<u64>) -> Result<Vec<Extent>, FsError> {
    let mut found = Vec::new();
    let most = if view.rules() >= STEPS { MOVED_EXTENTS_MAX } else { usize::MAX };
    visit_stored(view, ino, range, &mut |extent| {
        found.push(extent);
        found.len() <= most
    });
    match found.len() {
        count if count > most => Err(FsError::TooLarge),
        count if count > REPLACED_EXTENTS_FREE && most < usize::MAX && view.is_exhausted() => {
            Err(FsError::ArgumentTooLarge)
        }
        _ => Ok(found),
    }
}

/// Returns the extents of a whole file, without the hidden ones, if another file may share them in one operation.
///
/// # Errors
/// When the batch has done as much as it may.
pub(super) fn all_if_few(view: &View, ino: Ino) -> Result<Option<Vec<Extent>>, FsError> {
    let mut found = match few_stored(view, ino, &(0..u64::MAX)) {
        Ok(found) => found,
        Err(FsError::TooLarge) => return Ok(None),
        Err(error) => return Err(error),
    };
    let hidden = hidden::of(view, ino);
    found.retain(|extent| !hidden::covers(&hidden, extent.file_off, extent.version));
    Ok(Some(found))
}

/// Removes what `range` covers, however much that is: from a certain number of extents on they are hidden. The inode has
/// the version already that the cut makes.
///
/// # Errors
/// `Busy` when too many such cuts of the file are under way. What this has changed must be undone.
pub(super) fn clear_range(
    view: &mut View,
    context: &Context,
    inode: &mut Inode,
    range: &Range<u64>,
) -> Result<(), FsError> {
    let (ino, mut found) = (inode.attr.ino, Vec::new());
    let most = if view.rules() >= STEPS { CUT_AT_ONCE } else { usize::MAX };
    visit_stored(view, ino, range, &mut |extent| {
        found.push(extent);
        found.len() <= most
    });
    if found.len() <= most {
        cut(view, context, inode, range, found);
        return Ok(());
    }
    // What reaches over the ends is shortened, so that each extent is hidden as a whole, or not at all.
    found.retain(|extent| extent.file_off < range.start);
    let chunk = range.end - range.end % CHUNK_BYTES;
    let last = view.last(keys::extent(ino, chunk)..keys::extent(ino, range.end));
    let last = last.map(|(key, value)| from_pair(&key, &value));
    found.extend(last.filter(|extent| extent.range().end > range.end));
    cut(view, context, inode, range, found);
    hidden::hide(view, ino, range, inode.attr.version)
}

/// Removes what `range` covers of these extents.
pub(super) fn cut(view: &mut View, context: &Context, inode: &mut Inode, range: &Range<u64>, found: Vec<Extent>) {
    let ino = inode.attr.ino;
    for extent in found {
        let whole = extent.range();
        let left = (whole.start < range.start).then(|| extent.slice(&(whole.start..range.start)));
        let right = (whole.end > range.end).then(|| extent.slice(&(range.end..whole.end)));
        let rest_len: u64 = [&left, &right].into_iter().flatten().map(|part| part.len).sum();
        inode.attr.allocated -= extent.len - rest_len;
        view.delete(keys::extent(ino, extent.file_off));
        if let Source::Block { hash, form, .. } = &extent.source {
            match (&left, &right) {
                (Some(_), Some(_)) => blockref::add(view, hash, form),
                (None, None) => blockref::remove(view, context, hash, form.policy),
                _ => {}
            }
        }
        for part in [left, right].into_iter().flatten() {
            insert(view, ino, part);
        }
    }
}

/// Puts a write in place of what was there, with the inode's current version, cut at chunk borders.
fn place(view: &mut View, context: &Context, inode: &mut Inode, write: &ExtentWrite) -> Result<(), FsError> {
    let whole =
        Extent { file_off: write.file_off, len: write.len, source: write.source.clone(), version: inode.attr.version };
    cut_range(view, context, inode, whole.range())?;
    let mut start = whole.file_off;
    while start < whole.range().end {
        let end = (start - start % CHUNK_BYTES + CHUNK_BYTES).min(whole.range().end);
        let part = whole.slice(&(start..end));
        inode.attr.allocated += part.len;
        if let Source::Block { hash, form, .. } = &part.source {
            blockref::add(view, hash, form);
        }
        insert(view, inode.attr.ino, part);
        start = end;
    }
    Ok(())
}

/// Puts writes, ordered by offset, in place of what was there.
///
/// # Errors
/// When that is more than one operation may do. What it has changed must be undone.
pub(super) fn place_all(
    view: &mut View,
    context: &Context,
    inode: &mut Inode,
    writes: &[ExtentWrite],
) -> Result<(), FsError> {
    let mut writes = writes.iter();
    let Some(mut run) = writes.next().cloned() else { return Ok(()) };
    for write in writes {
        if continues(&run, write) {
            run.len += write.len;
        } else {
            place(view, context, inode, &run)?;
            run = write.clone();
        }
    }
    place(view, context, inode, &run)
}

/// Returns whether `next` continues `before`, in the file and in the block: then one extent can stand for both.
fn continues(before: &ExtentWrite, next: &ExtentWrite) -> bool {
    before.file_off + before.len == next.file_off
        && match (&before.source, &next.source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Block { hash, form, offset }, Source::Block { hash: h, form: f, offset: o }) => {
                (hash, form) == (h, f) && u64::from(*offset) + before.len == u64::from(*o)
            }
            _ => false,
        }
}

/// Returns how many extents a chunk holds, counted up to `limit`.
pub(super) fn count_in_chunk(view: &View, ino: Ino, offset: u64, limit: usize) -> u32 {
    let start = offset - offset % CHUNK_BYTES;
    let range = keys::extent(ino, start)..keys::extent(ino, start + CHUNK_BYTES);
    let mut count = 0_usize;
    let hidden = hidden::of(view, ino);
    view.scan(range, &mut |key, value| {
        let is_hidden = || {
            let extent = from_pair(key, value);
            hidden::covers(&hidden, extent.file_off, extent.version)
        };
        count += usize::from(hidden.ranges.is_empty() || !is_hidden());
        count < limit
    });
    count as u32
}

/// Removes up to `limit` extents of an inode that is gone, and returns how many. Fewer than `limit` were the last.
pub(super) fn reap(view: &mut View, context: &Context, ino: Ino, limit: usize) -> usize {
    let pairs = view.pairs(keys::extents_from(ino, 0), limit);
    for (key, value) in &pairs {
        if let Source::Block { hash, form, .. } = from_pair(key, value).source {
            blockref::remove(view, context, &hash, form.policy);
        }
        view.delete(key.clone());
    }
    pairs.len()
}

/// `Op::Range`.
pub(super) fn range_op(
    view: &mut View,
    context: &Context,
    ino: Ino,
    range: Range<u64>,
    action: RangeAction,
) -> Result<OpReply, FsError> {
    let mut inode = Inode::load_file(view, ino)?;
    if range.is_empty() {
        return Err(FsError::Invalid);
    }
    let allocates = matches!(action, RangeAction::Allocate { .. } | RangeAction::Zero { .. });
    if range.end > FILE_BYTES_MAX || (allocates && range.end - range.start > ALLOCATED_BYTES_MAX) {
        return Err(FsError::TooLarge);
    }
    inode.attr.version = inode.attr.version.next();
    match action {
        RangeAction::Allocate { keep_size } => {
            fill_holes(view, context, &mut inode, &range)?;
            grow(&mut inode, range.end, keep_size);
        }
        RangeAction::Zero { keep_size } => {
            let zeros = ExtentWrite { file_off: range.start, len: range.end - range.start, source: Source::Zero };
            place(view, context, &mut inode, &zeros)?;
            grow(&mut inode, range.end, keep_size);
        }
        RangeAction::Punch => {
            clear_range(view, context, &mut inode, &range)?;
            inode.mark_cut(range.start, range.end);
        }
        RangeAction::Collapse => collapse(view, context, &mut inode, &range)?,
        RangeAction::Insert => insert_hole(view, context, &mut inode, &range)?,
    }
    inode.modified(context.now);
    inode.save(view);
    Ok(OpReply::Attr(inode.attr))
}

fn grow(inode: &mut Inode, end: u64, keep_size: bool) {
    if !keep_size {
        inode.attr.size = inode.attr.size.max(end);
    }
}

fn fill_holes(view: &mut View, context: &Context, inode: &mut Inode, range: &Range<u64>) -> Result<(), FsError> {
    let mut at = range.start;
    let mut holes = Vec::new();
    let hidden = hidden::of(view, inode.attr.ino);
    let mut found = few_stored(view, inode.attr.ino, range)?;
    found.retain(|extent| !hidden::covers(&hidden, extent.file_off, extent.version));
    for extent in found {
        if extent.file_off > at {
            holes.push(at..extent.file_off);
        }
        at = at.max(extent.range().end);
    }
    if at < range.end {
        holes.push(at..range.end);
    }
    for hole in holes {
        let zeros = ExtentWrite { file_off: hole.start, len: hole.end - hole.start, source: Source::Zero };
        place(view, context, inode, &zeros)?;
    }
    Ok(())
}

fn check_shift(view: &View, inode: &Inode, range: &Range<u64>) -> Result<(), FsError> {
    let aligned = range.start.is_multiple_of(SHIFT_UNIT) && range.end.is_multiple_of(SHIFT_UNIT);
    if !aligned || range.start >= inode.attr.size {
        return Err(FsError::Invalid);
    }
    check_count(view, inode.attr.ino, &(range.start..u64::MAX))
}

/// Checks that one operation may move or share the extents of a range.
fn check_count(view: &View, ino: Ino, range: &Range<u64>) -> Result<(), FsError> {
    let mut count = 0;
    visit_stored(view, ino, range, &mut |_| {
        count += 1;
        count <= MOVED_EXTENTS_MAX
    });
    if count > MOVED_EXTENTS_MAX { Err(FsError::TooLarge) } else { Ok(()) }
}

/// Collapses a range. `fallocate(2)` refuses to collapse up to or beyond the end: that is truncation.
fn collapse(view: &mut View, context: &Context, inode: &mut Inode, range: &Range<u64>) -> Result<(), FsError> {
    check_shift(view, inode, range)?;
    if range.end >= inode.attr.size {
        return Err(FsError::Invalid);
    }
    let moved = take_from(view, context, inode, range.start)?;
    let len = range.end - range.start;
    let mut writes = Vec::with_capacity(moved.len());
    for mut write in moved {
        // `take_from` cut at the range's start; what lies within the range is dropped.
        let rest = write.file_off.max(range.end)..write.file_off + write.len;
        if rest.is_empty() {
            continue;
        }
        write = slice_write(&write, &rest);
        write.file_off -= len;
        writes.push(write);
    }
    place_all(view, context, inode, &writes)?;
    inode.attr.size -= len;
    inode.mark_cut(range.start, u64::MAX);
    Ok(())
}

fn insert_hole(view: &mut View, context: &Context, inode: &mut Inode, range: &Range<u64>) -> Result<(), FsError> {
    check_shift(view, inode, range)?;
    let len = range.end - range.start;
    if inode.attr.size + len > FILE_BYTES_MAX {
        return Err(FsError::TooLarge);
    }
    let mut moved = take_from(view, context, inode, range.start)?;
    for write in &mut moved {
        write.file_off += len;
    }
    place_all(view, context, inode, &moved)?;
    inode.attr.size += len;
    inode.mark_cut(range.start, u64::MAX);
    Ok(())
}

/// Takes everything from `start` on out of the file, and returns it as writes that would put it back.
fn take_from(view: &mut View, context: &Context, inode: &mut Inode, start: u64) -> Result<Vec<ExtentWrite>, FsError> {
    let taken = writes_of(view, inode.attr.ino, &(start..u64::MAX));
    cut_range(view, context, inode, start..u64::MAX)?;
    Ok(taken)
}

fn writes_of(view: &View, ino: Ino, range: &Range<u64>) -> Vec<ExtentWrite> {
    overlapping(view, ino, range)
        .into_iter()
        .map(|extent| extent.slice(range))
        .map(|Extent { file_off, len, source, .. }| ExtentWrite { file_off, len, source })
        .collect()
}

fn slice_write(write: &ExtentWrite, range: &Range<u64>) -> ExtentWrite {
    let whole =
        Extent { file_off: write.file_off, len: write.len, source: write.source.clone(), version: Version::default() };
    let Extent { file_off, len, source, .. } = whole.slice(range);
    ExtentWrite { file_off, len, source }
}

/// `Op::CloneRange`.
pub(super) fn clone_range(
    view: &mut View,
    context: &Context,
    (src, src_off): (Ino, u64),
    (dst, dst_off): (Ino, u64),
    len: u64,
) -> Result<OpReply, FsError> {
    let source = Inode::load_file(view, src)?;
    let mut target = Inode::load_file(view, dst)?;
    let len = len.min(source.attr.size.saturating_sub(src_off));
    let end = dst_off.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(FsError::TooLarge)?;
    if src == dst && src_off < end && dst_off < src_off + len {
        return Err(FsError::Invalid);
    }
    if len > 0 {
        check_count(view, src, &(src_off..src_off + len))?;
        let mut writes = writes_of(view, src, &(src_off..src_off + len));
        target.attr.version = target.attr.version.next();
        cut_range(view, context, &mut target, dst_off..end)?;
        target.mark_cut(dst_off, end);
        for write in &mut writes {
            write.file_off = write.file_off - src_off + dst_off;
        }
        place_all(view, context, &mut target, &writes)?;
        target.attr.size = target.attr.size.max(end);
        target.modified(context.now);
        target.save(view);
    }
    Ok(OpReply::Attr(target.attr))
}

/// Returns a page of a file's extents.
pub(super) fn page(kv: &dyn Kv, inode: &Inode, range: &Range<u64>) -> wire::op::ExtentPage {
    let (mut extents, mut inline_bytes, mut more_from) = (Vec::new(), 0, None);
    let mut take = |extent: Extent| {
        if extents.len() >= PAGE_EXTENTS || inline_bytes >= PAGE_INLINE_BYTES {
            more_from = Some(extent.file_off);
            return false;
        }
        inline_bytes += extent.inline_bytes();
        extents.push(extent);
        true
    };
    // A file of which nothing was ever cut off has nothing that is hidden.
    if inode.cuts.is_empty() {
        visit_stored(kv, inode.attr.ino, range, &mut take);
    } else {
        visit_overlapping(kv, inode.attr.ino, range, &mut take);
    }
    wire::op::ExtentPage { version: inode.attr.version, size: inode.attr.size, extents, more_from }
}
