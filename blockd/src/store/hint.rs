//! Hint files: a closed segment's records without their payloads, so that a start need not read the segments.
//!
//! | part | content |
//! |---|---|
//! | magic | `SHINT003`, which follows the record's version |
//! | number | of the segment (u64) |
//! | records | per record: offset (u64), then bytes 5 to 7 and 16 to 59 of its header |
//! | checksum | BLAKE3 of everything before, 32 bytes |
//!
//! A hint that does not match, or names a record that this version does not know, is ignored, and the segment is read
//! instead.

use super::record::{FIELD_BYTES, Header};
use super::segment::Found;
use super::segment_name::SegmentId;

const MAGIC: &[u8; 8] = b"SHINT003";
const ENTRY_BYTES: usize = 8 + FIELD_BYTES;

pub(super) fn encode(id: SegmentId, records: &[Found]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + records.len() * ENTRY_BYTES + 32);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&id.0.to_le_bytes());
    for Found { offset, header } in records {
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&header.fields());
    }
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

pub(super) fn decode(id: SegmentId, bytes: &[u8]) -> Option<Vec<Found>> {
    let (body, sum) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(body).as_bytes() != sum {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?.strip_prefix(&id.0.to_le_bytes())?;
    let entries = rest.chunks_exact(ENTRY_BYTES);
    if !entries.remainder().is_empty() {
        return None;
    }
    entries
        .map(|entry| {
            let (offset, fields) = entry.split_first_chunk::<8>()?;
            let header = Header::of_fields(fields.first_chunk()?)?;
            Some(Found { offset: u64::from_le_bytes(*offset), header })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::Kind;
    use super::*;
    use wire::ids::BlockHash;

    #[test]
    fn a_hint_is_stored_in_these_bytes_and_ignored_when_it_names_what_is_unknown() {
        let header = Header { kind: Kind::Tombstone, hash: BlockHash([0xAB; 32]), len: 0 };
        let mut bytes = encode(SegmentId(9), &[Found { offset: 4096, header }]);
        let starts = [b"SHINT003\x09\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x02\0\0".as_slice(), &[0xAB; 32]].concat();
        assert_eq!(bytes[..starts.len()], starts);
        assert_eq!(bytes[starts.len()..bytes.len() - 32], [0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        let found = decode(SegmentId(9), &bytes).unwrap();
        assert_eq!((found.len(), found[0].offset, found[0].header), (1, 4096, header));
        let end = bytes.len() - 32;
        bytes[end - 1] = 1;
        let sum = *blake3::hash(&bytes[..end]).as_bytes();
        bytes[end..].copy_from_slice(&sum);
        assert!(decode(SegmentId(9), &bytes).is_none());
    }
}
