//! Rebuilding the index at start.
//!
//! Segments are read in the order of their numbers: a put adds a block, a tombstone takes it out. The last segment may
//! end in a group that a crash cut short, and that was never acknowledged: it is cut off, and the segment closed. New
//! records go to a new segment, so that nothing is ever written over a torn group.
//!
//! Nothing is cut off that was not read. A segment of which a part could not be judged stays as it is, without a hint,
//! so that the next start looks at it again.

use super::buffer::Pool;
use super::disk::{Disk, SegmentFile};
use super::record::{GROUP_ALIGN, Kind};
use super::segment::{self, Found, Unjudged};
use super::segment_name::{self, SegmentId};
use super::{Error, Index, Location, Usage, hint};
use std::path::Path;
use std::sync::Arc;

/// The index, and the number of the first segment to be written.
pub(super) fn recover(dir: &Path, disk: &dyn Disk, pool: &Arc<Pool>) -> Result<(Index, SegmentId), Error> {
    let files = disk.list(dir).map_err(|error| Error::io(dir, error))?;
    let mut ids: Vec<SegmentId> = files.iter().filter_map(|path| segment_name::id_of(path)).collect();
    ids.sort_unstable();
    let mut index = Index::default();
    for id in &ids {
        recover_segment(dir, disk, pool, *id, &mut index)?;
    }
    let next = ids.last().map_or(SegmentId(1), |last| SegmentId(last.0 + 1));
    Ok((index, next))
}

fn recover_segment(
    dir: &Path,
    disk: &dyn Disk,
    pool: &Arc<Pool>,
    id: SegmentId,
    index: &mut Index,
) -> Result<(), Error> {
    let path = segment_name::path(dir, id);
    let failed = |error| Error::io(&path, error);
    let hint_path = segment_name::hint_path(dir, id);
    let file = disk.open(&path).map_err(failed)?;
    let segment_len = file.size().map_err(failed)?;
    let (mut records, mut unread, mut usage) =
        (Vec::new(), Vec::new(), Usage { written: segment_len, ..Usage::default() });
    match read_hint(disk, &hint_path, id, segment_len) {
        Some(hinted) => records = hinted,
        None => {
            let mut scan = segment::scan(&*file, pool, id).map_err(failed)?;
            if let Some(version) = scan.other {
                return Err(Error::other_version(&path, version));
            }
            unread = drop_torn(&*file, pool, &mut scan);
            report(id, &scan);
            if scan.unjudged.is_some() {
                usage.unjudged = true;
            } else if scan.records.is_empty() {
                disk.remove(&path).map_err(failed)?;
                return Ok(());
            } else {
                file.truncate(scan.end).map_err(failed)?;
                usage.written = scan.end;
                let hint = hint::encode(id, &scan.records);
                disk.replace(&hint_path, &hint).map_err(|error| Error::io(&hint_path, error))?;
                disk.sync_dir(dir).map_err(|error| Error::io(dir, error))?;
            }
            records.append(&mut scan.records);
        }
    }
    for found in records.iter().chain(&unread) {
        usage.add(&found.header);
    }
    index.segments.insert(id, (file, usage));
    let location = |found: &Found| Location { segment: id, offset: found.offset, len: found.header.len, bad: false };
    for found in records {
        match found.header.kind {
            Kind::Put => index.set(found.header.hash, location(&found)),
            Kind::Tombstone => {
                index.remove(&found.header.hash);
            }
        }
    }
    // An older copy of the block is better than one that may have been cut short.
    for found in unread {
        if !index.blocks.contains_key(&found.header.hash) {
            index.set(found.header.hash, location(&found));
        }
    }
    Ok(())
}

/// Logs what is wrong with a segment.
fn report(id: SegmentId, scan: &segment::Scan) {
    if scan.damaged > 0 || scan.doubted > 0 {
        tracing::error!(
            segment = %id,
            places = scan.damaged,
            removals = scan.doubted,
            "records of a segment are damaged; their blocks will be repaired from other daemons, and what was removed \
             there is reported and removed again"
        );
    }
    if let Some(reason) = &scan.unjudged {
        tracing::error!(
            segment = %id,
            %reason,
            "a part of a segment is left out; its file stays as it is, and keeps its space, until a start can read it"
        );
    }
}

/// Reads a hint; `None` when there is none that matches. One that is too long is not read into memory.
pub(super) fn read_hint(disk: &dyn Disk, path: &Path, id: SegmentId, segment_len: u64) -> Option<Vec<Found>> {
    let len = disk.open(path).and_then(|file| file.size()).ok()?;
    if len > hint::len_max(segment_len) {
        return None;
    }
    hint::decode(id, segment_len, &disk.read(path).ok()?)
}

/// Takes records off the end whose payloads did not arrive whole. Only the last group can be like that: an earlier one
/// was synced before it was written. A missing trailer is no reason to do so: it is made anew when a read needs it.
/// Returns those of which this is not known, because they cannot be read.
fn drop_torn(file: &dyn SegmentFile, pool: &Arc<Pool>, scan: &mut segment::Scan) -> Vec<Found> {
    let mut unread = Vec::new();
    while let Some(last) = scan.records.pop() {
        match segment::is_proven(file, pool, last.offset, &last.header) {
            Ok(true) => {
                scan.records.push(last);
                break;
            }
            Ok(false) => scan.end = last.offset.next_multiple_of(GROUP_ALIGN as u64),
            Err(error) => {
                scan.unjudged.get_or_insert(Unjudged::Unreadable(error));
                unread.push(last);
            }
        }
    }
    unread
}
