//! Rebuilding the index at start.
//!
//! Segments are read in the order of their numbers: a put adds a block, a tombstone takes it out. The last segment may
//! end in a group that a crash cut short, and that was never acknowledged: it is cut off, and the segment closed. New
//! records go to a new segment, so that nothing is ever written over a torn group.

use super::buffer::Pool;
use super::disk::Disk;
use super::record::Kind;
use super::segment::{self, Found};
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
    let records = match read_hint(disk, &hint_path, id, segment_len) {
        Some(records) => records,
        None => {
            let mut scan = segment::scan(&*file, pool, id).map_err(failed)?;
            if let Some(version) = scan.other {
                return Err(Error::other_version(&path, version));
            }
            drop_torn(&*file, pool, &mut scan);
            if scan.damaged > 0 || scan.doubted > 0 {
                tracing::error!(
                    segment = %id,
                    places = scan.damaged,
                    removals = scan.doubted,
                    "records of a segment are damaged; their blocks will be repaired from other daemons, and what was \
                     removed there is reported and removed again"
                );
            }
            if scan.records.is_empty() {
                disk.remove(&path).map_err(failed)?;
                return Ok(());
            }
            file.truncate(scan.end).map_err(failed)?;
            disk.replace(&hint_path, &hint::encode(id, &scan.records)).map_err(|error| Error::io(&hint_path, error))?;
            disk.sync_dir(dir).map_err(|error| Error::io(dir, error))?;
            scan.records
        }
    };
    let mut usage = Usage::default();
    for found in &records {
        usage.add(&found.header);
    }
    index.segments.insert(id, (file, usage));
    for Found { offset, header } in records {
        match header.kind {
            Kind::Put => {
                index.set(header.hash, Location { segment: id, offset, len: header.len, bad: false });
            }
            Kind::Tombstone => {
                index.remove(&header.hash);
            }
        }
    }
    Ok(())
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
fn drop_torn(file: &dyn super::disk::SegmentFile, pool: &Arc<Pool>, scan: &mut segment::Scan) {
    while let Some(last) = scan.records.last() {
        if segment::is_proven(file, pool, last.offset, &last.header) {
            return;
        }
        scan.end = last.offset.next_multiple_of(super::record::GROUP_ALIGN as u64);
        scan.records.pop();
    }
}
