//! Taking back the space of dropped blocks.
//!
//! The live part of a segment is written again at the end and synced, and only then is the segment removed: a crash at
//! any point leaves every block at least once. A tombstone is written again as long as an older segment may hold its
//! block.

use super::read::{self, Record};
use super::record::Kind;
use super::segment::{self, Found};
use super::segment_name::{self, SegmentId};
use super::writer::{Work, Writer};
use super::{Error, Location, Shared, Usage};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// A segment is compacted when less than this share of it is still needed, in percent.
const NEEDED_PERCENT_MAX: u64 = 50;

pub(super) async fn step(shared: &Arc<Shared>, writer: &Writer) -> Result<Option<u64>, Error> {
    let Some(id) = candidate(shared) else { return Ok(None) };
    let scanned = shared.clone();
    let records = spawn_blocking(move || records(&scanned, id)).await.map_err(|_| Error::Failed)??;
    let oldest = shared.index.read().segments.keys().next() == Some(&id);
    let mut copied = 0;
    for Found { offset, header } in records {
        let (reply, done) = oneshot::channel();
        let work = match header.kind {
            Kind::Put => {
                let from = Location { segment: id, offset, len: header.len, bad: false };
                if shared.index.read().blocks.get(&header.hash) != Some(&from) {
                    continue;
                }
                let (reading, hash) = (shared.clone(), header.hash);
                let read = spawn_blocking(move || read::record(&reading, &hash));
                match read.await.map_err(|_| Error::Failed)? {
                    Ok(Some(Record { block, sections, .. })) => {
                        Work::Move { hash: header.hash, from, block, sections, reply }
                    }
                    // Dropped in the meantime, or damaged and to be repaired from elsewhere: nothing to copy.
                    Ok(None) | Err(Error::Corrupt { .. } | Error::Io { .. }) => continue,
                    Err(error) => return Err(error),
                }
            }
            Kind::Tombstone if oldest => continue,
            Kind::Tombstone => Work::MoveTombstone { hash: header.hash, reply },
        };
        copied += header.stored_len();
        writer.send(work).await?;
        done.await.map_err(|_| Error::Failed)??;
    }
    let removing = shared.clone();
    spawn_blocking(move || remove(&removing, id)).await.map_err(|_| Error::Failed)??;
    tracing::debug!(segment = %id, copied, "compacted");
    Ok(Some(copied))
}

/// The closed segment of which the smallest share is still needed, if that is small enough. Each compacted segment
/// then takes less than half of its place again, so compaction comes to an end.
fn candidate(shared: &Shared) -> Option<SegmentId> {
    let index = shared.index.read();
    let newest = *index.segments.keys().next_back()?;
    let oldest = *index.segments.keys().next()?;
    let needed = |id: &SegmentId, usage: &Usage| usage.live + if *id == oldest { 0 } else { usage.tombstones };
    index
        .segments
        .iter()
        .map(|(id, (_, usage))| (*id, needed(id, usage), usage.written))
        .filter(|(id, needed, written)| *id != newest && needed * 100 < written * NEEDED_PERCENT_MAX)
        .min_by_key(|(_, needed, written)| needed * 1000 / written.max(&1))
        .map(|(id, _, _)| id)
}

fn records(shared: &Arc<Shared>, id: SegmentId) -> Result<Vec<Found>, Error> {
    let path = segment_name::path(&shared.dir, id);
    let file = shared.index.read().segments.get(&id).map(|(file, _)| file.clone());
    let Some(file) = file else { return Ok(Vec::new()) };
    let scan = segment::scan(&*file, &shared.pool, id).map_err(|error| Error::io(&path, error))?;
    match scan.other {
        Some(version) => Err(Error::other_version(&path, version)),
        None => Ok(scan.records),
    }
}

fn remove(shared: &Shared, id: SegmentId) -> Result<(), Error> {
    {
        let mut index = shared.index.write();
        // The bytes of a damaged block of this segment that was not repaired in time are gone with the segment.
        index.blocks.retain(|_, location| location.segment != id || !location.bad);
        assert!(index.blocks.values().all(|location| location.segment != id), "segment {id} still holds blocks");
        index.segments.remove(&id);
    }
    let path = segment_name::path(&shared.dir, id);
    shared.disk.remove(&path).map_err(|error| Error::io(&path, error))?;
    let hint = segment_name::hint_path(&shared.dir, id);
    match shared.disk.remove(&hint) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&hint, error)),
        _ => {}
    }
    shared.disk.sync_dir(&shared.dir).map_err(|error| Error::io(&shared.dir, error))
}
