//! The bytes of a record.
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 4 | magic `SBLK` |
//! | 4 | 1 | version, 2 |
//! | 5 | 1 | kind: 1 put, 2 tombstone |
//! | 6 | 2 | zero |
//! | 8 | 8 | number of the segment, so that stale bytes of a reused place are not taken for a record |
//! | 16 | 32 | name of the block |
//! | 48 | 4 | length of the payload |
//! | 52 | 8 | zero |
//! | 60 | 4 | CRC-32 of bytes 0 to 59 |
//! | 64 | length | payload, whose checksum is the block's name |
//! | | 32 per section | trailer, if the payload is longer than 64 KiB: the chaining values of its sections |
//! | | 0 to 7 | zero, up to a multiple of 8 |
//!
//! `wire::sections` explains sections. The trailer follows the payload without a gap.
//!
//! Numbers are little endian. Records that are written together follow each other; each such group begins at a multiple
//! of [`GROUP_ALIGN`], as O_DIRECT wants it, and is padded with zeros up to the next.

use super::segment_name::SegmentId;
use wire::ids::BlockHash;
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::Sections;

/// Groups begin at multiples of this.
pub(super) const GROUP_ALIGN: usize = 4096;
/// Records begin at multiples of this.
pub(super) const RECORD_ALIGN: usize = 8;
/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 4] = b"SBLK";
const VERSION: u8 = 2;

/// Kind of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The block is here.
    Put,
    /// The block was dropped.
    Tombstone,
}

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub kind: Kind,
    pub hash: BlockHash,
    pub len: u32,
}

/// Bytes that a record with this payload takes.
pub(super) fn stored_len(len: u32) -> u64 {
    (HEADER_BYTES as u64 + u64::from(len) + Sections::stored_len(len) as u64).next_multiple_of(RECORD_ALIGN as u64)
}

impl Header {
    pub(super) fn stored_len(&self) -> u64 {
        stored_len(self.len)
    }

    pub(super) fn encode(&self, segment: SegmentId) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = VERSION;
        bytes[5] = match self.kind {
            Kind::Put => 1,
            Kind::Tombstone => 2,
        };
        bytes[8..16].copy_from_slice(&segment.0.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.hash.0);
        bytes[48..52].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` when the bytes are not a header of this segment.
    pub(super) fn decode(bytes: &[u8], segment: SegmentId) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let crc = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        let fits = bytes[..4] == *MAGIC && bytes[4] == VERSION && bytes[8..16] == segment.0.to_le_bytes();
        if !fits || crc32fast::hash(&bytes[..60]) != crc {
            return None;
        }
        let kind = match bytes[5] {
            1 => Kind::Put,
            2 => Kind::Tombstone,
            _ => return None,
        };
        let mut hash = BlockHash([0; 32]);
        hash.0.copy_from_slice(&bytes[16..48]);
        let len = u32::from_le_bytes([bytes[48], bytes[49], bytes[50], bytes[51]]);
        (len as usize <= BLOCK_BYTES_MAX).then_some(Self { kind, hash, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_header_is_noticed(len in 0..BLOCK_BYTES_MAX as u32, bit in 0..HEADER_BYTES * 8) {
            let header = Header { kind: Kind::Put, hash: BlockHash([9; 32]), len };
            let mut bytes = header.encode(SegmentId(3));
            prop_assert_eq!(Header::decode(&bytes, SegmentId(3)), Some(header));
            prop_assert_eq!(Header::decode(&bytes, SegmentId(4)), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&bytes, SegmentId(3)), None);
        }

        #[test]
        fn a_record_of_another_version_is_none(version: u8) {
            let mut bytes = Header { kind: Kind::Put, hash: BlockHash([9; 32]), len: 1 }.encode(SegmentId(3));
            bytes[4] = version;
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
            prop_assert_eq!(Header::decode(&bytes, SegmentId(3)).is_some(), version == VERSION);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Header::decode(&bytes, SegmentId(0));
        }
    }
}
