//! Hint files: a closed segment's records without their payloads, so that a start need not read the segments.
//!
//! | part | content |
//! |---|---|
//! | magic | `SHINT003`, which follows the record's version |
//! | number | of the segment (u64) |
//! | records | per record: offset (u64), then bytes 5 to 7 and 16 to 59 of its header |
//! | checksum | BLAKE3 of everything before, 32 bytes |
//!
//! A hint that does not match, or names a record that this version does not know or that lies outside the segment, is
//! ignored, and the segment is read instead.

use super::record::{FIELD_BYTES, HEADER_BYTES, Header, RECORD_ALIGN};
use super::segment::Found;
use super::segment_name::SegmentId;

const MAGIC: &[u8; 8] = b"SHINT003";
const ENTRY_BYTES: usize = 8 + FIELD_BYTES;
/// Bytes around the records.
const FRAME_BYTES: u64 = 16 + 32;

/// Bytes of the longest hint of a segment of this length: one that consists of headers.
pub(super) fn len_max(segment_len: u64) -> u64 {
    FRAME_BYTES + segment_len / HEADER_BYTES as u64 * ENTRY_BYTES as u64
}

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

/// Reads the hint of a segment of this length.
pub(super) fn decode(id: SegmentId, segment_len: u64, bytes: &[u8]) -> Option<Vec<Found>> {
    let (body, sum) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(body).as_bytes() != sum {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?.strip_prefix(&id.0.to_le_bytes())?;
    let entries = rest.chunks_exact(ENTRY_BYTES);
    if !entries.remainder().is_empty() {
        return None;
    }
    let mut behind = 0;
    entries
        .map(|entry| {
            let (offset, fields) = entry.split_first_chunk::<8>()?;
            let (offset, header) = (u64::from_le_bytes(*offset), Header::of_fields(fields.first_chunk()?)?);
            let is_place = offset >= behind && offset.is_multiple_of(RECORD_ALIGN as u64);
            behind = offset.checked_add(header.stored_len()).filter(|end| is_place && *end <= segment_len)?;
            Some(Found { offset, header })
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
        let decode = |bytes: &[u8]| decode(SegmentId(9), 8192, bytes);
        let found = decode(&bytes).unwrap();
        assert_eq!((found.len(), found[0].offset, found[0].header), (1, 4096, header));
        let end = bytes.len() - 32;
        bytes[end - 1] = 1;
        let sum = *blake3::hash(&bytes[..end]).as_bytes();
        bytes[end..].copy_from_slice(&sum);
        assert!(decode(&bytes).is_none());
    }

    #[test]
    fn a_hint_that_names_a_record_outside_its_segment_is_ignored() {
        let header = Header { kind: Kind::Put, hash: BlockHash([0xAB; 32]), len: 64 };
        let decoded = |offsets: &[u64]| {
            let records: Vec<_> = offsets.iter().map(|offset| Found { offset: *offset, header }).collect();
            decode(SegmentId(9), 4096, &encode(SegmentId(9), &records)).map(|found| found.len())
        };
        assert_eq!(decoded(&[0, 128, 3968]), Some(3));
        for wrong in [&[3969][..], &[3976], &[u64::MAX - 7], &[128, 0], &[0, 64]] {
            assert_eq!(decoded(wrong), None, "{wrong:?}");
        }
    }
}
