//! Hint files: a closed segment's records without their payloads, so that a start need not read the segments.
//!
//! | part | content |
//! |---|---|
//! | magic | `SHINT002`, which follows the record's version |
//! | number | of the segment (u64) |
//! | records | per record: kind (1 put, 2 tombstone), offset (u64), name (32), length (u32) |
//! | checksum | BLAKE3 of everything before, 32 bytes |
//!
//! A hint that does not match is ignored, and the segment is read instead.

use super::record::{Header, Kind};
use super::segment::Found;
use super::segment_name::SegmentId;
use wire::ids::BlockHash;

const MAGIC: &[u8; 8] = b"SHINT002";
const ENTRY_BYTES: usize = 1 + 8 + 32 + 4;

pub(super) fn encode(id: SegmentId, records: &[Found]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + records.len() * ENTRY_BYTES + 32);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&id.0.to_le_bytes());
    for Found { offset, header } in records {
        bytes.push(if header.kind == Kind::Put { 1 } else { 2 });
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&header.hash.0);
        bytes.extend_from_slice(&header.len.to_le_bytes());
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
            let kind = match entry[0] {
                1 => Kind::Put,
                2 => Kind::Tombstone,
                _ => return None,
            };
            let offset = u64::from_le_bytes(entry[1..9].try_into().ok()?);
            let hash = BlockHash(entry[9..41].try_into().ok()?);
            let len = u32::from_le_bytes(entry[41..45].try_into().ok()?);
            Some(Found { offset, header: Header { kind, hash, len } })
        })
        .collect()
}
