//! Reads cached blocks from files that nobody has checked, for `tests/fuzzing`.

use super::file::{self, Found};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::path::Path;
use wire::ids::BlockHash;
use wire::sections::Sections;

/// Writes the file of a block.
///
/// # Errors
/// As `open(2)` and `write(2)`.
pub fn write(path: &Path, block: &[u8]) -> io::Result<BlockHash> {
    let (hash, sections) = Sections::of(block);
    file::write(path, block, &sections)?;
    Ok(hash)
}

/// Reads a block, or a part of it; `None` when the file does not hold it.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn read(path: &Path, hash: &BlockHash, part: Option<Range<usize>>) -> io::Result<Option<Bytes>> {
    let found = match part {
        Some(part) => file::read_part(path, hash, part)?,
        None => file::read(path, hash)?,
    };
    Ok(match found {
        Found::Good(bytes) => Some(bytes),
        Found::Absent | Found::Damaged => None,
    })
}
