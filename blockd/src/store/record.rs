//! The bytes of a record.
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 4 | magic `SBLK` |
//! | 4 | 1 | version, 3 |
//! | 5 | 1 | kind: 1 put, 2 tombstone |
//! | 6 | 2 | policy under which the block is stored, 0 |
//! | 8 | 8 | number of the segment, so that stale bytes of a reused place are not taken for a record |
//! | 16 | 32 | name of the block |
//! | 48 | 4 | length of the payload |
//! | 52 | 1 | bytes of a section as a power of two, 16 |
//! | 53 | 7 | zero: room for the number of a shard, the numbers of shards, and the length of their block |
//! | 60 | 4 | CRC-32 of bytes 0 to 59 |
//! | 64 | length | payload, whose checksum is the block's name |
//! | | 32 per section | trailer, if the payload is longer than 64 KiB: the chaining values of its sections |
//! | | 0 to 7 | zero, up to a multiple of 8 |
//!
//! `wire::sections` explains sections. The trailer follows the payload without a gap.
//!
//! Magic, version, number of the segment and checksum are where they are in every version. So a record of another version
//! is not taken for damage, and neither is one of this version with a value that is not described here: a newer release has
//! written it. It is refused, never dropped.
//!
//! Numbers are little endian. Records that are written together follow each other; each such group begins at a multiple
//! of [`GROUP_ALIGN`], as O_DIRECT wants it, and is padded with [`PADDING`] up to the next. Zeros would not do: a disk
//! that has lost a sector reads as zeros, and the records in it would be taken for padding. Before the first release,
//! this version was padded with zeros: they count as damage, so that without a hint blocks prove themselves and removals
//! do not count. A reader of that time takes this padding for damage, too, and reads every record.

use super::segment_name::SegmentId;
use wire::ids::{BlockHash, PolicyId};
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::{SECTION_LOG2, Sections};

/// Groups begin at multiples of this.
pub(super) const GROUP_ALIGN: usize = 4096;
/// Records begin at multiples of this.
pub(super) const RECORD_ALIGN: usize = 8;
/// What fills a group up, again and again.
pub(super) const PADDING: [u8; RECORD_ALIGN] = *b"PADDING.";
/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 4] = b"SBLK";
const VERSION: u8 = 3;
/// Bytes of the fields that a hint repeats: kind, policy, name, length, section, zeros.
pub(super) const FIELD_BYTES: usize = 3 + 44;

/// Kind of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The block is here.
    Put,
    /// The block was dropped.
    Tombstone,
}

/// A record that another version of Surf has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OtherVersion {
    Earlier,
    Newer,
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
        let fields = self.fields();
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = VERSION;
        bytes[5..8].copy_from_slice(&fields[..3]);
        bytes[8..16].copy_from_slice(&segment.0.to_le_bytes());
        bytes[16..60].copy_from_slice(&fields[3..]);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` when the bytes are not a header of this segment.
    pub(super) fn decode(bytes: &[u8], segment: SegmentId) -> Result<Option<Self>, OtherVersion> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let crc = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        let fits = bytes[..4] == *MAGIC && bytes[8..16] == segment.0.to_le_bytes();
        if !fits || crc32fast::hash(&bytes[..60]) != crc {
            return Ok(None);
        }
        if bytes[4] < VERSION {
            return Err(OtherVersion::Earlier);
        }
        let mut fields = [0; FIELD_BYTES];
        fields[..3].copy_from_slice(&bytes[5..8]);
        fields[3..].copy_from_slice(&bytes[16..60]);
        let known = if bytes[4] == VERSION { Self::of_fields(&fields) } else { None };
        known.map(Some).ok_or(OtherVersion::Newer)
    }

    /// The fields that a hint repeats.
    pub(super) fn fields(&self) -> [u8; FIELD_BYTES] {
        let mut fields = [0; FIELD_BYTES];
        fields[0] = match self.kind {
            Kind::Put => 1,
            Kind::Tombstone => 2,
        };
        fields[1..3].copy_from_slice(&PolicyId::DEFAULT.0.to_le_bytes());
        fields[3..35].copy_from_slice(&self.hash.0);
        fields[35..39].copy_from_slice(&self.len.to_le_bytes());
        fields[39] = SECTION_LOG2;
        fields
    }

    /// The header with these fields; `None` when one of them is not as this version writes it.
    pub(super) fn of_fields(fields: &[u8; FIELD_BYTES]) -> Option<Self> {
        let kind = match fields[0] {
            1 => Kind::Put,
            2 => Kind::Tombstone,
            _ => return None,
        };
        let mut hash = BlockHash([0; 32]);
        hash.0.copy_from_slice(&fields[3..35]);
        let header = Self { kind, hash, len: u32::from_le_bytes([fields[35], fields[36], fields[37], fields[38]]) };
        (header.len as usize <= BLOCK_BYTES_MAX && header.fields() == *fields).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header with another byte and the checksum that fits.
    fn changed(header: Header, at: usize, value: u8) -> [u8; HEADER_BYTES] {
        let mut bytes = header.encode(SegmentId(3));
        bytes[at] = value;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_is_stored_in_these_bytes() {
        let header = Header { kind: Kind::Put, hash: BlockHash([0xAB; 32]), len: 0x0003_0201 };
        let bytes = header.encode(SegmentId(0x0A0B));
        assert_eq!(bytes[..16], *b"SBLK\x03\x01\0\0\x0B\x0A\0\0\0\0\0\0");
        assert_eq!(bytes[16..48], [0xAB; 32]);
        assert_eq!(bytes[48..60], [1, 2, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[60..], crc32fast::hash(&bytes[..60]).to_le_bytes());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_header_is_noticed(len in 0..BLOCK_BYTES_MAX as u32, bit in 0..HEADER_BYTES * 8) {
            let header = Header { kind: Kind::Put, hash: BlockHash([9; 32]), len };
            let mut bytes = header.encode(SegmentId(3));
            prop_assert_eq!(Header::decode(&bytes, SegmentId(3)), Ok(Some(header)));
            prop_assert_eq!(Header::decode(&bytes, SegmentId(4)), Ok(None));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&bytes, SegmentId(3)), Ok(None));
        }

        #[test]
        fn a_record_of_another_version_is_told_from_damage(version: u8) {
            let header = Header { kind: Kind::Put, hash: BlockHash([9; 32]), len: 1 };
            let expected = match version {
                0..VERSION => Err(OtherVersion::Earlier),
                VERSION => Ok(Some(header)),
                _ => Err(OtherVersion::Newer),
            };
            prop_assert_eq!(Header::decode(&changed(header, 4, version), SegmentId(3)), expected);
        }

        #[test]
        fn a_field_with_a_value_of_a_newer_release_is_told_from_damage(
            at in prop_oneof![5_usize..8, 51_usize..60],
            value: u8,
        ) {
            let header = Header { kind: Kind::Put, hash: BlockHash([9; 32]), len: 1 };
            let same = header.encode(SegmentId(3))[at] == value;
            let expected = match (at, value) {
                _ if same => Ok(Some(header)),
                (5, 2) => Ok(Some(Header { kind: Kind::Tombstone, ..header })),
                _ => Err(OtherVersion::Newer),
            };
            prop_assert_eq!(Header::decode(&changed(header, at, value), SegmentId(3)), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Header::decode(&bytes, SegmentId(0));
        }
    }
}
