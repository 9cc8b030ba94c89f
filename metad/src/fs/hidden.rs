//! Content that was cut off a file in one entry of the log, and is removed in steps.
//!
//! A cut of very many extents records its range and the version that it makes. From then on nobody reads extents of that
//! range that are older: they are *hidden*. What is written there later is newer, and seen. An extent lies within such a
//! range or outside of it, because those that reach over its ends are shortened by the cut.
//!
//! The inode counts the bytes of hidden extents as allocated until all of them are removed. Then they are deducted at
//! once, so that attributes that others have cached change once.

use super::keys;
use super::view::{Kv, KvExt, View, decode_stored};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wire::FsError;
use wire::codec;
use wire::ids::{Ino, Version};

/// Ranges of one file at a time. One more is refused until some are removed.
const RANGES_MAX: usize = 64;

/// A range in which older extents are hidden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiddenRange {
    /// First byte. It moves on with each step.
    pub(super) from: u64,
    /// One past the last byte.
    pub(super) to: u64,
    /// Extents of earlier versions are hidden.
    pub(super) version: Version,
}

/// The stored record of a file with hidden content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiddenContent {
    /// Where it is, oldest first; none when all of it is removed.
    pub(super) ranges: Vec<HiddenRange>,
    /// Bytes of what is removed, which the inode still counts as allocated.
    pub(super) freed: u64,
}

/// Returns what is hidden of a file.
pub(super) fn of(kv: &dyn Kv, ino: Ino) -> HiddenContent {
    kv.load(&keys::hidden(ino)).unwrap_or_default()
}

/// Returns whether an extent that begins at this offset is hidden.
pub(super) fn covers(hidden: &HiddenContent, file_off: u64, version: Version) -> bool {
    hidden.ranges.iter().any(|range| (range.from..range.to).contains(&file_off) && version < range.version)
}

/// Hides all extents within a range that are older than a version.
///
/// # Errors
/// `Busy` while there are too many such ranges.
pub(super) fn hide(view: &mut View, ino: Ino, range: &Range<u64>, version: Version) -> Result<(), FsError> {
    let mut hidden = of(view, ino);
    // What was hidden within the range is older still.
    hidden.ranges.retain(|older| older.from < range.start || range.end < older.to);
    if hidden.ranges.len() >= RANGES_MAX {
        return Err(FsError::Busy);
    }
    hidden.ranges.push(HiddenRange { from: range.start, to: range.end, version });
    view.store(keys::hidden(ino), &hidden);
    Ok(())
}

/// Returns the first files of which something is to be removed, at most `limit`.
pub fn unfinished(kv: &dyn Kv, limit: usize) -> Vec<Ino> {
    files(kv, limit, &|hidden| !hidden.ranges.is_empty())
}

/// Returns the first files that still count what is removed as allocated, at most `limit`.
pub fn finished(kv: &dyn Kv, limit: usize) -> Vec<Ino> {
    files(kv, limit, &|hidden| hidden.ranges.is_empty())
}

fn files(kv: &dyn Kv, limit: usize, is_so: &dyn Fn(&HiddenContent) -> bool) -> Vec<Ino> {
    let mut found = Vec::new();
    kv.scan(keys::all_hidden(), &mut |key, value| {
        if is_so(&decode_stored(key, value)) {
            found.push(Ino(keys::first(key)));
        }
        found.len() < limit
    });
    found
}

/// Returns the record of a file of which nothing is hidden.
pub(super) fn nothing() -> Vec<u8> {
    codec::encode(&HiddenContent::default())
}
