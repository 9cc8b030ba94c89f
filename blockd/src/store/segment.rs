//! A segment: a file of records, read here, written by `writer`.

use super::buffer::{self, Pool};
use super::disk::SegmentFile;
use super::record::{GROUP_ALIGN, HEADER_BYTES, Header, OtherVersion};
use super::segment_name::SegmentId;
use crate::sys::Aligned;
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use wire::buffers::Buffer;

/// Bytes read at a time when scanning.
const SCAN_BYTES: usize = 4 << 20;

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
    /// The scan has ended at a record that another version has written: the segment must stay as it is.
    pub other: Option<OtherVersion>,
}

/// Finds all records by their headers. Payloads are verified when they are read, except for those of the last group,
/// which a crash may have cut short.
pub(super) fn scan(file: &dyn SegmentFile, pool: &Arc<Pool>, id: SegmentId) -> io::Result<Scan> {
    let len = file.size()?;
    let mut window = Window { file, buffer: buffer::take(pool, SCAN_BYTES), start: 0, filled: 0 };
    let mut scan = Scan::default();
    let (mut at, mut skipped) = (0, false);
    while at + HEADER_BYTES as u64 <= len {
        let decoded = match Header::decode(window.at(at)?, id) {
            Ok(decoded) => decoded,
            // Behind damage there may be the inside of a payload, which clients choose.
            Err(_) if skipped => None,
            Err(other) => {
                scan.other = Some(other);
                break;
            }
        };
        match decoded.filter(|header| at + header.stored_len() <= len) {
            Some(header) => {
                scan.damaged += usize::from(std::mem::take(&mut skipped) && !scan.records.is_empty());
                scan.records.push(Found { offset: at, header });
                at += header.stored_len();
                scan.end = at.next_multiple_of(GROUP_ALIGN as u64);
            }
            None => {
                // The rest of a group is padding. A whole group without a record is damage, if records follow it.
                let next = (at + 1).next_multiple_of(GROUP_ALIGN as u64);
                skipped |= at.is_multiple_of(GROUP_ALIGN as u64) || !window.is_zero(at, next.min(len))?;
                at = next;
            }
        }
    }
    scan.end = scan.end.min(len);
    Ok(scan)
}

/// A part of the file in memory.
struct Window<'a> {
    file: &'a dyn SegmentFile,
    buffer: Buffer<Aligned>,
    start: u64,
    filled: usize,
}

impl Window<'_> {
    /// The bytes from `at` on, at least a header's unless the file ends.
    fn at(&mut self, at: u64) -> io::Result<&[u8]> {
        let within = at >= self.start && at + HEADER_BYTES as u64 <= self.start + self.filled as u64;
        if !within {
            self.start = at - at % GROUP_ALIGN as u64;
            self.filled = self.file.read_at(&mut self.buffer[..SCAN_BYTES], self.start)?;
        }
        let from = ((at - self.start) as usize).min(self.filled);
        Ok(&self.buffer[from..self.filled])
    }

    fn is_zero(&mut self, from: u64, to: u64) -> io::Result<bool> {
        let bytes = self.at(from)?;
        Ok(bytes.iter().take((to - from) as usize).all(|byte| *byte == 0))
    }
}
