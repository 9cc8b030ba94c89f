//! Reads segments and hints from bytes that nobody has checked, for `tests/fuzzing`.

use super::buffer::{self, Pool};
use super::disk::Disk;
use super::record::{HEADER_BYTES, Header, Kind, OtherVersion, RECORD_ALIGN};
use super::segment::{self, Found};
use super::segment_name::{self, SegmentId};
use super::{Error, hint, recover};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::ids::BlockHash;
use wire::sections::Sections;

/// The segment of all inputs.
const SEGMENT: SegmentId = SegmentId(1);

/// Returns where the segment and its hint lie.
#[must_use]
pub fn paths(dir: &Path) -> (PathBuf, PathBuf) {
    (segment_name::path(dir, SEGMENT), segment_name::hint_path(dir, SEGMENT))
}

/// A block that a store has found: its name, the offset of its record, its length, and whether its content is good.
pub type Recovered = (BlockHash, u64, u32, bool);

/// Rebuilds indexes, as a store does that is opened.
pub struct Recovery(Arc<Pool>);

impl Default for Recovery {
    fn default() -> Self {
        Self(buffer::pool())
    }
}

impl Recovery {
    /// Returns the blocks of a store, in the order of their names.
    ///
    /// # Errors
    /// As [`Store::open_on`](super::Store::open_on).
    ///
    /// # Panics
    /// When the index points outside its segments.
    pub fn run(&self, dir: &Path, disk: &dyn Disk) -> Result<Vec<Recovered>, Error> {
        let (index, next) = recover::recover(dir, disk, &self.0)?;
        let found = index.blocks.iter().map(|(hash, at)| {
            assert!(at.segment < next, "the next segment is a new one");
            let (file, usage) = &index.segments[&at.segment];
            assert!(usage.live <= usage.written, "{usage:?}");
            let read = segment::read_payload(&**file, &self.0, at.offset, at.len);
            (*hash, at.offset, at.len, read.is_ok_and(|block| BlockHash::of(&block) == *hash))
        });
        Ok(found.collect())
    }
}

/// Reads a record's header. Returns its bytes if it was written as this version writes it; `None` for one that is to be
/// refused or passed over.
#[must_use]
pub fn header(bytes: &[u8]) -> Option<[u8; HEADER_BYTES]> {
    match Header::decode(bytes, SEGMENT) {
        Ok(header) => header.map(|header| header.encode(SEGMENT)),
        Err(OtherVersion::Earlier | OtherVersion::Newer) => None,
    }
}

/// Reads a hint of a segment of this length. Returns the bytes of a hint with the same records.
#[must_use]
pub fn hint(bytes: &[u8], segment_len: u64) -> Option<Vec<u8>> {
    hint::decode(SEGMENT, segment_len, bytes).map(|records| hint::encode(SEGMENT, &records))
}

/// Returns a segment of these blocks, in one group, and its hint. An empty block stands for a tombstone of
/// the block before it.
#[must_use]
pub fn samples(blocks: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
    let (mut bytes, mut records, mut last) = (Vec::new(), Vec::new(), BlockHash([0; 32]));
    for block in blocks {
        let (kind, hash) = if block.is_empty() { (Kind::Tombstone, last) } else { (Kind::Put, BlockHash::of(block)) };
        let header = Header { kind, hash, len: block.len() as u32 };
        records.push(Found { offset: bytes.len() as u64, header });
        bytes.extend_from_slice(&header.encode(SEGMENT));
        bytes.extend_from_slice(block);
        bytes.extend_from_slice(Sections::of(block).1.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGN), 0);
        last = hash;
    }
    (bytes, hint::encode(SEGMENT, &records))
}
