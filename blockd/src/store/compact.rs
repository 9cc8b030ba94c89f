//! Taking back the space of dropped blocks.
//!
//! The live part of a segment is written again at the end and synced, and only then is the segment removed: a crash at
//! any point leaves every block at least once. A tombstone is written again as long as an older segment may hold its
//! block.
//!
//! Blocks are read and written in portions, which share groups of the writer: a group is padded, so small blocks that went
//! out one by one would take a multiple of their space, and of the reserve of a full disk.
//!
//! What is live stands in the index, so a damaged header does not matter. A copy that a read found damaged is read again,
//! and moved if it is good: it may be the last one. One whose payload is something else is reported, and stays in the
//! index as damaged. One that cannot be read is reported too, and its segment stays: a later attempt may read it.
//! Tombstones come from the hint, or from the segment if there is no hint. If some cannot be read, the segment stays
//! until no older one is left: then nothing needs them.

use super::read::{self, Record};
use super::record::{self, GROUP_ALIGN, Kind};
use super::recover::read_hint;
use super::segment;
use super::segment_name::{self, SegmentId};
use super::work::{Party, Reply, Work};
use super::writer::Writer;
use super::{Error, Location, Shared, Usage};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use wire::ids::BlockHash;

/// A segment is compacted when less than this share of it is still needed, in percent.
const NEEDED_PERCENT_MAX: u64 = 50;
/// Bytes of blocks that are read before they are written again. A single larger one is a portion, too.
const PORTION_BYTES: u64 = 4 << 20;
/// Blocks, or tombstones, of a portion.
const PORTION_RECORDS: usize = 1024;
/// Time until a segment with copies that could not be read is tried again. Each of them may cost the disk seconds.
const UNREAD_PAUSE: Duration = Duration::from_secs(600);

/// What a step has done.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Compacted {
    /// Bytes that were copied.
    pub copied: u64,
}

pub(super) async fn step(
    shared: &Arc<Shared>,
    writer: &Writer,
    damaged: &mut Vec<BlockHash>,
) -> Result<Option<Compacted>, Error> {
    let Some(id) = candidate(shared) else { return Ok(None) };
    let reading = shared.clone();
    let read = spawn_blocking(move || Ok::<_, Error>((tombstones(&reading, id)?, live(&reading, id))));
    let (tombstones, live) = match read.await.map_err(|_| Error::Failed)? {
        Ok(read) => read,
        Err(error @ (Error::Earlier { .. } | Error::Newer { .. })) => return Err(error),
        Err(error) => {
            tracing::warn!(segment = %id, %error, "removals noted in a segment cannot be read: it keeps its space for now");
            change_usage(shared, id, |usage| usage.stays = true);
            return Ok(Some(Compacted::default()));
        }
    };
    let mut compacted = Compacted::default();
    let (mut given_up, mut unread) = (HashSet::new(), 0_usize);
    let mut rest = &live[..];
    while !rest.is_empty() {
        let (portion, behind) = rest.split_at(portion_of(rest));
        rest = behind;
        let records = read_portion(shared, portion).await?;
        let mut moves = Vec::with_capacity(portion.len());
        for ((hash, from), record) in portion.iter().zip(records) {
            match record {
                Ok(Record { block, sections, .. }) => {
                    compacted.copied += record::stored_len(from.len);
                    let (hash, from) = (*hash, *from);
                    moves.push(move |reply: Reply| Work::Move { hash, from, block, sections, reply });
                }
                Err(error @ (Error::Corrupt { .. } | Error::Io { .. })) => {
                    // What was damaged before is reported already.
                    damaged.extend(Some(*hash).filter(|_| !from.bad));
                    if matches!(error, Error::Corrupt { .. }) {
                        given_up.insert(*hash);
                    } else {
                        unread += 1;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        write_all(writer, moves).await?;
    }
    if unread > 0 {
        tracing::warn!(segment = %id, unread, "copies in a segment cannot be read: it keeps its space, and is tried again later");
        change_usage(shared, id, |usage| usage.waits_until = Some(Instant::now() + UNREAD_PAUSE));
        return Ok(Some(compacted));
    }
    for portion in tombstones.chunks(PORTION_RECORDS) {
        compacted.copied += portion.len() as u64 * record::stored_len(0);
        let moves = portion.iter().map(|hash| {
            let hash = *hash;
            move |reply: Reply| Work::MoveTombstone { hash, reply }
        });
        write_all(writer, moves).await?;
    }
    let removing = shared.clone();
    spawn_blocking(move || remove(&removing, id, &live, &given_up)).await.map_err(|_| Error::Failed)??;
    tracing::debug!(segment = %id, ?compacted, "compacted");
    Ok(Some(compacted))
}

fn change_usage(shared: &Shared, id: SegmentId, change: impl FnOnce(&mut Usage)) {
    if let Some((_, usage)) = shared.index.write().segments.get_mut(&id) {
        change(usage);
    }
}

/// How many of these blocks are read, and written, at once.
fn portion_of(blocks: &[(BlockHash, Location)]) -> usize {
    let mut bytes = 0;
    let fits = blocks.iter().take(PORTION_RECORDS).take_while(|(_, from)| {
        bytes += record::stored_len(from.len);
        bytes <= PORTION_BYTES
    });
    fits.count().max(1)
}

async fn read_portion(
    shared: &Arc<Shared>,
    portion: &[(BlockHash, Location)],
) -> Result<Vec<Result<Record, Error>>, Error> {
    let (reading, portion) = (shared.clone(), portion.to_vec());
    let read = move || portion.into_iter().map(|(hash, from)| read::record_at(&reading, &hash, from)).collect();
    spawn_blocking(read).await.map_err(|_| Error::Failed)
}

async fn write_all<W>(writer: &Writer, work: impl IntoIterator<Item = W>) -> Result<(), Error>
where
    W: FnOnce(Reply) -> Work,
{
    writer.write_all(Party::Compaction, work).await?.into_iter().try_for_each(|outcome| outcome.map(|_| ()))
}

/// The closed segment of which the smallest share is still needed, if that is small enough. Each compacted segment
/// then takes less than half of its place again, so compaction comes to an end.
fn candidate(shared: &Shared) -> Option<SegmentId> {
    let index = shared.index.read();
    let newest = *index.segments.keys().next_back()?;
    let oldest = *index.segments.keys().next()?;
    let closed = index.segments.iter().filter(|(id, (_, usage))| **id != newest && usage.may_go(**id == oldest));
    closed
        .map(|(id, (_, usage))| {
            let needed = usage.live + if *id == oldest { 0 } else { usage.tombstones };
            // It is written in groups, which are padded.
            (*id, needed.next_multiple_of(GROUP_ALIGN as u64), usage.written)
        })
        .filter(|(_, needed, written)| needed * 100 < written * NEEDED_PERCENT_MAX)
        .min_by_key(|(_, needed, written)| needed * 1000 / written.max(&1))
        .map(|(id, _, _)| id)
}

/// Blocks that the index finds in a closed segment, damaged ones included, in the order of their records. No more come:
/// others write to later segments.
fn live(shared: &Shared, id: SegmentId) -> Vec<(BlockHash, Location)> {
    let mut live = shared.places(BlockHash([0; 32]), usize::MAX, |at| at.segment == id);
    live.sort_unstable_by_key(|(_, location)| location.offset);
    live
}

/// Tombstones that are still needed.
///
/// # Errors
/// When some cannot be read.
fn tombstones(shared: &Arc<Shared>, id: SegmentId) -> Result<Vec<BlockHash>, Error> {
    let path = segment_name::path(&shared.dir, id);
    let failed = |error| Error::io(&path, error);
    let (file, expected) = {
        let index = shared.index.read();
        let is_oldest = index.segments.keys().next() == Some(&id);
        match index.segments.get(&id) {
            Some((file, usage)) if !is_oldest && usage.tombstones > 0 => (file.clone(), usage.tombstones),
            _ => return Ok(Vec::new()),
        }
    };
    let hint_path = segment_name::hint_path(&shared.dir, id);
    let records = match read_hint(&*shared.disk, &hint_path, id, file.size().map_err(failed)?) {
        Some(records) => records,
        None => {
            let scan = segment::scan(&*file, &shared.pool, id).map_err(failed)?;
            match scan.other {
                Some(version) => return Err(Error::other_version(&path, version)),
                None => scan.records,
            }
        }
    };
    let of_tombstones = records.into_iter().filter(|found| found.header.kind == Kind::Tombstone);
    let hashes: Vec<BlockHash> = of_tombstones.map(|found| found.header.hash).collect();
    if (hashes.len() as u64) * record::stored_len(0) < expected {
        return Err(failed(std::io::ErrorKind::InvalidData.into()));
    }
    Ok(hashes)
}

/// Removes a segment whose blocks have been written elsewhere, but for those of which it holds something else.
fn remove(
    shared: &Shared,
    id: SegmentId,
    live: &[(BlockHash, Location)],
    given_up: &HashSet<BlockHash>,
) -> Result<(), Error> {
    {
        let mut index = shared.index.write();
        let is_left =
            |hash: &BlockHash| !given_up.contains(hash) && index.blocks.get(hash).is_some_and(|at| at.segment == id);
        assert!(!live.iter().any(|(hash, _)| is_left(hash)), "segment {id} still holds blocks");
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
