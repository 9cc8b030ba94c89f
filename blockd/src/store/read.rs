//! Reading blocks, verified: whole ones against their name, parts section by section (I9).
//!
//! A part costs its sections and the trailer, however long the block is. When either does not match, the caller reads
//! the record whole: only the payload decides whether the block is damaged, because a trailer can be made anew and a
//! block cannot. A damaged block is quarantined.

use super::disk::SegmentFile;
use super::record::GROUP_ALIGN;
use super::{Error, Location, Shared, segment, segment_name};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use wire::ids::BlockHash;
use wire::sections::{SECTION_BYTES, Sections, covering};

/// Outcome of reading a part.
pub(super) enum Part {
    /// The block is not here.
    Absent,
    /// These bytes of a block of this length, verified.
    Verified { block_len: u32, bytes: Bytes },
    /// The bytes do not match: the record must be read whole.
    Doubtful,
}

/// A whole record, its payload verified.
pub(super) struct Record {
    pub location: Location,
    pub block: Bytes,
    /// Computed from the payload.
    pub sections: Sections,
    /// Whether the stored trailer matches.
    pub trailer_fits: bool,
}

/// The bytes of `offset..offset + len` that a block of this length has.
pub(super) fn clamp(offset: u32, len: u32, block_len: usize) -> Range<usize> {
    let start = (offset as usize).min(block_len);
    start..start.saturating_add(len as usize).min(block_len)
}

pub(super) fn block(shared: &Shared, hash: &BlockHash) -> Result<Option<Bytes>, Error> {
    let Some((location, file)) = locate(shared, hash) else { return Ok(None) };
    let matches = |block: &Bytes| (BlockHash::of(block) == *hash).then_some(());
    payload(shared, &location, &*file, hash, matches).map(|(block, ())| Some(block))
}

pub(super) fn record(shared: &Shared, hash: &BlockHash) -> Result<Option<Record>, Error> {
    let Some((location, file)) = locate(shared, hash) else { return Ok(None) };
    record_in(shared, hash, location, &*file).map(Some)
}

/// The record at a place, whatever is known of it: a copy that could not be read once may be good. It is read a second
/// time if the first one fails, because it may be the last copy, and the caller is about to give up its place.
pub(super) fn record_at(shared: &Shared, hash: &BlockHash, location: Location) -> Result<Record, Error> {
    let file = shared.index.read().segments.get(&location.segment).map(|(file, _)| file.clone());
    let Some(file) = file else { return Err(Error::Corrupt { hash: *hash }) };
    record_in(shared, hash, location, &*file).or_else(|_| record_in(shared, hash, location, &*file))
}

fn record_in(shared: &Shared, hash: &BlockHash, location: Location, file: &dyn SegmentFile) -> Result<Record, Error> {
    let (block, sections) = payload(shared, &location, file, hash, |block| {
        let (name, sections) = Sections::of(block);
        (name == *hash).then_some(sections)
    })?;
    // It is not read together with the payload: a sector that cannot be read must cost no more than its own content.
    let trailer = segment::read_behind_header(file, &shared.pool, location.offset, trailer_of(&location));
    let trailer_fits = trailer.is_ok_and(|trailer| trailer == sections.as_bytes());
    Ok(Record { location, block, sections, trailer_fits })
}

/// A part of what a read brought. A short one is copied: its reader's budget counts its length, and it would keep the
/// whole buffer, which begins and ends up to a group farther out.
pub(super) fn cut(read: &Bytes, part: Range<usize>) -> Bytes {
    if part.len() * 2 < read.len() + 2 * GROUP_ALIGN { Bytes::copy_from_slice(&read[part]) } else { read.slice(part) }
}

/// How many bytes reading a part takes: its sections and the trailer, or the whole block without it.
pub(super) fn cost(offset: u32, len: u32, block_len: u32) -> u64 {
    let wanted = clamp(offset, len, block_len as usize);
    if wanted.is_empty() {
        return 0;
    }
    let cover = covering(&wanted, block_len as usize).len();
    let trailer = if cover == block_len as usize { 0 } else { Sections::stored_len(block_len) };
    (cover + trailer) as u64
}

pub(super) fn part(shared: &Shared, hash: &BlockHash, offset: u32, len: u32) -> Result<Part, Error> {
    let Some((location, file)) = locate(shared, hash) else { return Ok(Part::Absent) };
    let wanted = clamp(offset, len, location.len as usize);
    if wanted.is_empty() {
        return Ok(Part::Verified { block_len: location.len, bytes: Bytes::new() });
    }
    let cover = covering(&wanted, location.len as usize);
    if cover.len() == location.len as usize {
        let Some(block) = block(shared, hash)? else { return Ok(Part::Absent) };
        return Ok(Part::Verified { block_len: location.len, bytes: cut(&block, wanted) });
    }
    let (trailer, content) = match trailer_and_sections(shared, &location, &*file, &cover) {
        Ok(read) => read,
        Err(error) => {
            tracing::warn!(%hash, segment = %location.segment, %error, "a part of a block cannot be read");
            return Ok(Part::Doubtful);
        }
    };
    // I9: the trailer must match the block's name, and the bytes must match the trailer.
    match Sections::decode(&trailer, hash) {
        Some(sections) if sections.fit(cover.start, &content) => {
            let within = wanted.start - cover.start..wanted.end - cover.start;
            Ok(Part::Verified { block_len: location.len, bytes: cut(&content, within) })
        }
        _ => Ok(Part::Doubtful),
    }
}

fn trailer_of(location: &Location) -> Range<usize> {
    let start = location.len as usize;
    start..start + Sections::stored_len(location.len)
}

/// Trailer and sections, in one read if not much lies between them.
fn trailer_and_sections(
    shared: &Shared,
    location: &Location,
    file: &dyn SegmentFile,
    cover: &Range<usize>,
) -> io::Result<(Bytes, Bytes)> {
    let read = |range| segment::read_behind_header(file, &shared.pool, location.offset, range);
    let trailer = trailer_of(location);
    if trailer.start - cover.end <= SECTION_BYTES {
        let both = read(cover.start..trailer.end)?;
        return Ok((both.slice(trailer.start - cover.start..), both.slice(..cover.len())));
    }
    Ok((read(trailer)?, read(cover.clone())?))
}

fn locate(shared: &Shared, hash: &BlockHash) -> Option<(Location, Arc<dyn SegmentFile>)> {
    let index = shared.index.read();
    let location = index.blocks.get(hash).filter(|location| !location.bad).copied()?;
    let (file, _) = index.segments.get(&location.segment)?;
    Some((location, file.clone()))
}

/// Reads the payload and verifies it by `verify`, which returns `None` for a damaged one.
fn payload<T>(
    shared: &Shared,
    location: &Location,
    file: &dyn SegmentFile,
    hash: &BlockHash,
    verify: impl FnOnce(&Bytes) -> Option<T>,
) -> Result<(Bytes, T), Error> {
    let read = segment::read_payload(file, &shared.pool, location.offset, location.len);
    // I9: never served unverified.
    let bad = match read {
        Ok(block) => match verify(&block) {
            Some(verified) => return Ok((block, verified)),
            None => Error::Corrupt { hash: *hash },
        },
        Err(error) => Error::io(&segment_name::path(&shared.dir, location.segment), error),
    };
    tracing::error!(%hash, segment = %location.segment, offset = location.offset, "a block is damaged on disk");
    shared.index.write().mark_bad(hash, location);
    Err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::limits::BLOCK_BYTES_MAX;

    #[test]
    fn a_part_costs_its_sections_and_the_trailer_and_an_empty_one_nothing() {
        let (len, section) = (BLOCK_BYTES_MAX as u32, SECTION_BYTES as u32);
        let trailer = Sections::stored_len(len) as u64;
        for (offset, wanted, sections) in
            [(0, 1, 1), (section - 1, 2, 2), (section, section, 1), (len - 1, u32::MAX, 1)]
        {
            assert_eq!(cost(offset, wanted, len), sections * u64::from(section) + trailer, "{wanted} from {offset}");
        }
        assert_eq!(cost(0, u32::MAX, len), u64::from(len));
        assert_eq!(cost(1, 1, 100), 100);
        for (offset, wanted) in [(0, 0), (7, 0), (len, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(cost(offset, wanted, len), 0);
        }
    }
}
