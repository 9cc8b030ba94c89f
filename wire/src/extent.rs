//! Extents: which bytes of a file come from where.

use crate::FsError;
use crate::ids::{BlockHash, KeyGeneration, PolicyId, Version};
use crate::sections::SECTION_LOG2;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How the stored bytes of a block encode its content. It is no enum: a number of a later version can be decoded, and is
/// refused with an error that says why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockCodec(pub u8);

impl BlockCodec {
    /// The stored bytes are the content.
    pub const PLAIN: BlockCodec = BlockCodec(0);
}

/// What it takes, besides its name, to find a block, to verify a part of it, and to decode it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockForm {
    /// Policy under which it is stored.
    pub policy: PolicyId,
    /// How its content is encoded.
    pub codec: BlockCodec,
    /// Bytes of a section that can be verified by itself, as a power of two.
    pub section_log2: u8,
    /// Generation of the key by which it is encrypted.
    pub key: KeyGeneration,
    /// Number of stored bytes, of which its name is the hash.
    pub stored_len: u32,
    /// Number of bytes of its content, in which offsets count.
    pub plain_len: u32,
}

impl BlockForm {
    /// The form of a block of this length whose content is stored as it is, under the default policy.
    #[must_use]
    pub const fn plain(len: u32) -> Self {
        Self {
            policy: PolicyId::DEFAULT,
            codec: BlockCodec::PLAIN,
            section_log2: SECTION_LOG2,
            key: KeyGeneration(0),
            stored_len: len,
            plain_len: len,
        }
    }

    /// Checks that this version knows the form. Others are refused wherever they come from: bytes of an unknown form
    /// must neither be stored under rules that do not fit them, nor be taken for content.
    ///
    /// # Errors
    /// `NotSupported`.
    pub fn check(&self) -> Result<(), FsError> {
        if *self == Self::plain(self.stored_len) { Ok(()) } else { Err(FsError::NotSupported) }
    }
}

/// Where the bytes of an extent come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Source {
    /// `len` bytes of a block's content, from `offset`.
    Block {
        /// The block.
        hash: BlockHash,
        /// Its form.
        form: BlockForm,
        /// First byte within its content.
        offset: u32,
    },
    /// The bytes themselves, stored in metadata; at most `INLINE_BYTES_MAX`.
    Inline(Vec<u8>),
    /// Allocated and reads as zeros (`fallocate`); a hole proper has no extent at all.
    Zero,
}

// A file may have many extents in memory.
const _: () = assert!(size_of::<BlockForm>() == 16 && size_of::<Source>() <= 56);

impl Source {
    /// Bytes of a block of this length whose content is stored as it is, from `offset`.
    #[must_use]
    pub const fn block(hash: BlockHash, len: u32, offset: u32) -> Self {
        Self::Block { hash, form: BlockForm::plain(len), offset }
    }
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

    /// The number of bytes that the extent itself holds.
    #[must_use]
    pub fn inline_bytes(&self) -> usize {
        if let Source::Inline(bytes) = &self.source { bytes.len() } else { 0 }
    }

    /// The part of the extent within `range`, which must overlap it.
    #[must_use]
    pub fn slice(&self, range: &Range<u64>) -> Extent {
        let start = self.file_off.max(range.start);
        let end = (self.file_off + self.len).min(range.end);
        assert!(start < end, "slice of an extent outside of it");
        let skip = start - self.file_off;
        let source = match &self.source {
            Source::Block { hash, form, offset } => {
                Source::Block { hash: *hash, form: *form, offset: offset + skip as u32 }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn an_extent_of_a_block_is_stored_in_these_bytes() {
        let form = BlockForm {
            policy: PolicyId(3),
            codec: BlockCodec(2),
            section_log2: 12,
            key: KeyGeneration(7),
            stored_len: 9,
            plain_len: 300,
        };
        let source = Source::Block { hash: BlockHash([0xAB; 32]), form, offset: 5 };
        let extent = Extent { file_off: 1, len: 4, source, version: Version(6) };
        let bytes = codec::encode(&extent);
        let ends = [[1, 4, 0].as_slice(), &[0xAB; 32], &[3, 2, 12, 7, 9, 0xAC, 2, 5, 6]].concat();
        assert_eq!(bytes[1..], ends, "file offset, length, kind of source; policy to plain length; offset, version");
        assert_eq!(codec::decode::<Extent>(&bytes).unwrap(), extent);
    }

    #[test]
    fn only_the_plain_form_is_supported() {
        let plain = BlockForm::plain(100);
        assert_eq!(plain.check(), Ok(()));
        for other in [
            BlockForm { policy: PolicyId(1), ..plain },
            BlockForm { codec: BlockCodec(1), ..plain },
            BlockForm { section_log2: 12, ..plain },
            BlockForm { key: KeyGeneration(1), ..plain },
            BlockForm { plain_len: 101, ..plain },
        ] {
            assert_eq!(other.check(), Err(FsError::NotSupported), "{other:?}");
        }
    }
}
