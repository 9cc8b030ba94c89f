//! A segment: a file of records, read here, written by `writer`.

use super::buffer::{self, Pool};
use super::disk::SegmentFile;
use super::record::{GROUP_ALIGN, HEADER_BYTES, Header, Kind, OtherVersion, PADDING, RECORD_ALIGN};
use super::segment_name::SegmentId;
use crate::sys::Aligned;
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;
use wire::buffers::Buffer;
use wire::ids::BlockHash;

/// Bytes read at a time when scanning.
const SCAN_BYTES: usize = 4 << 20;
/// Bytes that may be read for what looks like a block and is none, as a multiple of the segment's length. Without a
/// bound, content could be made in which the largest block seems to begin at each group: each 4 KiB would cost 4 MiB.
const DISPROVED_LENS_MAX: u64 = 2;
/// So many groups may be unreadable; at the next one, the rest of a segment is left out: a disk may try each for seconds.
const UNREADABLE_MAX: usize = 16;

/// Reads a record's payload.
pub(super) fn read_payload(file: &dyn SegmentFile, pool: &Arc<Pool>, offset: u64, len: u32) -> io::Result<Bytes> {
    read_behind_header(file, pool, offset, 0..len as usize)
}

/// Reads a part of what follows a record's header: the payload, then the trailer.
pub(super) fn read_behind_header(
    file: &dyn SegmentFile,
    pool: &Arc<Pool>,
    offset: u64,
    range: Range<usize>,
) -> io::Result<Bytes> {
    let start = offset + (HEADER_BYTES + range.start) as u64;
    let aligned = start - start % GROUP_ALIGN as u64;
    let skip = (start - aligned) as usize;
    let wanted = skip + range.len();
    let room = wanted.next_multiple_of(GROUP_ALIGN);
    let mut buffer = buffer::take(pool, room);
    let count = file.read_at(&mut buffer[..room], aligned)?;
    if count < wanted {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment ends within the record"));
    }
    Ok(buffer.freeze().slice(skip..wanted))
}

/// A record found by scanning.
pub(super) struct Found {
    pub offset: u64,
    pub header: Header,
}

/// What a scan found.
#[derive(Default)]
pub(super) struct Scan {
    pub records: Vec<Found>,
    /// Behind the last record, at the start of a group.
    pub end: u64,
    /// Number of places between records with something else than a record.
    pub damaged: usize,
    /// Number of tombstones behind damage, which do not count.
    pub doubted: usize,
    /// The scan has ended at a record that another version has written: the segment must stay as it is.
    pub other: Option<OtherVersion>,
    /// Why a part was left out, if one was: the segment must stay as it is, whole.
    pub unjudged: Option<Unjudged>,
}

/// Why it is not known of a part of a segment whether it holds records.
#[derive(Debug, Error)]
pub(super) enum Unjudged {
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("too much behind a damaged place looks like records and is something else")]
    TooMuch,
}

/// Finds all records by their headers. Payloads are verified when they are read; those of the last group, which a crash
/// may have cut short, are verified by `recover` after the scan.
///
/// Behind damage, a place may lie within a payload, and clients choose payloads: they can have records stored in them.
/// So from there to the segment's end, a block counts only if its payload matches its name, and a tombstone, which
/// nothing proves, does not count at all. The block that it removed comes back until the next block report, which is better
/// than a lost copy. Proofs that fail have a bound, and so have groups that cannot be read, which are damage, too: beyond
/// it the scan ends, the rest does not count, and `Scan::unjudged` says that the file must stay whole.
pub(super) fn scan(file: &dyn SegmentFile, pool: &Arc<Pool>, id: SegmentId) -> io::Result<Scan> {
    let len = file.size()?;
    let mut window = Window { file, buffer: buffer::take(pool, SCAN_BYTES), start: 0, filled: 0, unsure_until: 0 };
    let mut scan = Scan::default();
    let mut proofs = Proofs { file, pool, left: DISPROVED_LENS_MAX * len, unjudged: None };
    let (mut at, mut skipped, mut doubtful, mut unreadable) = (0, false, false, 0);
    while at + HEADER_BYTES as u64 <= len && !matches!(proofs.unjudged, Some(Unjudged::TooMuch)) {
        let bytes = match window.at(at) {
            Ok(bytes) => bytes,
            Err(error) => {
                proofs.unjudged.get_or_insert(Unjudged::Unreadable(error));
                unreadable += 1;
                if unreadable > UNREADABLE_MAX {
                    break;
                }
                (skipped, doubtful) = (true, true);
                at = (at + 1).next_multiple_of(GROUP_ALIGN as u64);
                continue;
            }
        };
        let decoded = match Header::decode(bytes, id) {
            Ok(decoded) => decoded,
            // This may be a payload in which a client has imitated another version: it must not keep the daemon from
            // starting.
            Err(_) if doubtful => None,
            Err(other) => {
                scan.other = Some(other);
                break;
            }
        };
        let counts = |header: &Header| at + header.stored_len() <= len && (!doubtful || proofs.holds(at, header));
        match decoded.filter(counts) {
            Some(header) if doubtful && header.kind == Kind::Tombstone => {
                scan.doubted += 1;
                at += header.stored_len();
            }
            Some(header) => {
                scan.damaged += usize::from(std::mem::take(&mut skipped) && !scan.records.is_empty());
                scan.records.push(Found { offset: at, header });
                at += header.stored_len();
                scan.end = at.next_multiple_of(GROUP_ALIGN as u64);
            }
            None => {
                // The rest of a group is padding. A whole group without a record is damage, if records follow it.
                let next = (at + 1).next_multiple_of(GROUP_ALIGN as u64);
                let is_damage = at.is_multiple_of(GROUP_ALIGN as u64) || !window.is_padding(at, next.min(len))?;
                (skipped, doubtful) = (skipped || is_damage, doubtful || is_damage);
                at = next;
            }
        }
    }
    scan.end = scan.end.min(len);
    scan.unjudged = proofs.unjudged;
    Ok(scan)
}

/// Reports whether a record's payload matches its name. A tombstone has none.
///
/// # Errors
/// When the payload cannot be read: it may match or not.
pub(super) fn is_proven(file: &dyn SegmentFile, pool: &Arc<Pool>, offset: u64, header: &Header) -> io::Result<bool> {
    Ok(header.kind == Kind::Tombstone || BlockHash::of(&read_payload(file, pool, offset, header.len)?) == header.hash)
}

/// Proofs of what looks like records behind damage.
struct Proofs<'a> {
    file: &'a dyn SegmentFile,
    pool: &'a Arc<Pool>,
    /// Bytes that may still be read in vain.
    left: u64,
    unjudged: Option<Unjudged>,
}

impl Proofs<'_> {
    fn holds(&mut self, at: u64, header: &Header) -> bool {
        match is_proven(self.file, self.pool, at, header) {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => {
                self.unjudged.get_or_insert(Unjudged::Unreadable(error));
            }
        }
        match self.left.checked_sub(header.len.into()) {
            Some(left) => self.left = left,
            None => self.unjudged = Some(Unjudged::TooMuch),
        }
        false
    }
}

/// A part of the file in memory.
struct Window<'a> {
    file: &'a dyn SegmentFile,
    buffer: Buffer<Aligned>,
    start: u64,
    filled: usize,
    /// A large read that reached up to here has failed: before this place, groups are read one by one.
    unsure_until: u64,
}

impl Window<'_> {
    /// The bytes from `at` on, at least a header's unless the file ends.
    ///
    /// # Errors
    /// When the group at `at` cannot be read.
    fn at(&mut self, at: u64) -> io::Result<&[u8]> {
        let within = at >= self.start && at + HEADER_BYTES as u64 <= self.start + self.filled as u64;
        if !within {
            self.start = at - at % GROUP_ALIGN as u64;
            self.filled = 0;
            if self.start >= self.unsure_until {
                match self.file.read_at(&mut self.buffer[..SCAN_BYTES], self.start) {
                    Ok(count) => self.filled = count,
                    Err(_) => self.unsure_until = self.start + SCAN_BYTES as u64,
                }
            }
            if self.start < self.unsure_until {
                self.filled = self.file.read_at(&mut self.buffer[..GROUP_ALIGN], self.start)?;
            }
        }
        let from = ((at - self.start) as usize).min(self.filled);
        Ok(&self.buffer[from..self.filled])
    }

    /// Whether these bytes, which begin where a record could, are padding.
    fn is_padding(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let bytes = self.at(from)?;
        let bytes = &bytes[..bytes.len().min((to - from) as usize)];
        Ok(bytes.chunks(RECORD_ALIGN).all(|chunk| PADDING.starts_with(chunk)))
    }
}
