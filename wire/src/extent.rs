//! Extents: which bytes of a file come from where.

use crate::ids::{BlockHash, Version};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Where the bytes of an extent come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Source {
    /// `len` bytes of a block, from `offset`.
    Block {
        /// The block.
        hash: BlockHash,
        /// Length of the whole block.
        block_len: u32,
        /// First byte within the block.
        offset: u32,
    },
    /// The bytes themselves, stored in metadata; at most `INLINE_BYTES_MAX`.
    Inline(Vec<u8>),
    /// Allocated and reads as zeros (`fallocate`); a hole proper has no extent at all.
    Zero,
}

/// A run of a file's bytes from one source. Never crosses a chunk border.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// First byte within the file.
    pub file_off: u64,
    /// Number of bytes, at least 1.
    pub len: u64,
    /// Where they come from.
    pub source: Source,
    /// Content version of the inode that wrote these bytes. Later commits are checked against it (I6).
    pub version: Version,
}

impl Extent {
    /// The file bytes that the extent covers.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.file_off..self.file_off + self.len
    }

    /// The part of the extent within `range`, which must overlap it.
    #[must_use]
    pub fn slice(&self, range: &Range<u64>) -> Extent {
        let start = self.file_off.max(range.start);
        let end = (self.file_off + self.len).min(range.end);
        assert!(start < end, "slice of an extent outside of it");
        let skip = start - self.file_off;
        let source = match &self.source {
            Source::Block { hash, block_len, offset } => {
                Source::Block { hash: *hash, block_len: *block_len, offset: offset + skip as u32 }
            }
            Source::Inline(bytes) => Source::Inline(bytes[skip as usize..(end - self.file_off) as usize].to_vec()),
            Source::Zero => Source::Zero,
        };
        Extent { file_off: start, len: end - start, source, version: self.version }
    }
}

/// One write within a commit: bytes `file_off..file_off + len` now come from `source`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExtentWrite {
    /// First byte within the file.
    pub file_off: u64,
    /// Number of bytes.
    pub len: u64,
    /// Where they come from.
    pub source: Source,
}
