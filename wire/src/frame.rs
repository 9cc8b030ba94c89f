//! Frames on a stream: fixed header, encoded head, raw payload.
//!
//! ```text
//! request  magic "SF" | flags u16 | deadline ms u32 | request id u64 | head len u32 | payload len u32 | head | payload
//! reply    magic "SF" | status u16 | head len u32 | payload len u32 | head (or text of an error) | payload
//! ```
//!
//! All numbers are little endian. Lengths are checked before anything is allocated for them.

use crate::Error;
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};

const MAGIC: [u8; 2] = *b"SF";
/// Bytes of a request's fixed header.
pub const REQUEST_HEADER: usize = 24;
/// Bytes of a reply's fixed header.
pub const REPLY_HEADER: usize = 12;

/// Fixed header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// The caller gives up after this many milliseconds.
    pub deadline_ms: u32,
    /// Identifies the request in every daemon's log.
    pub request_id: u64,
    /// Bytes of the encoded head.
    pub head_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
}

/// What the head of a reply is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ReplyKind {
    /// The answer.
    Answer = 0,
    /// The reason, in UTF-8, why the request was refused as a whole: it would be refused again.
    Refused = 1,
    /// The reason, in UTF-8, why the request was refused for now: nothing was carried out, and it may be sent again
    /// later.
    Busy = 2,
    /// Nothing was carried out, because the caller's certificate has ended by the clock here: the same request may be
    /// sent again with a renewed one. The head is the reason, in UTF-8.
    Ended = 3,
}

/// Fixed header of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHeader {
    /// What the head is.
    pub kind: ReplyKind,
    /// Bytes of the encoded head.
    pub head_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
}

fn check(head_len: u32, payload_len: u32) -> Result<(), Error> {
    if head_len as usize > HEAD_BYTES_MAX || payload_len as usize > PAYLOAD_BYTES_MAX {
        return Err(Error::Malformed(format!("a frame of {head_len} + {payload_len} bytes is too large")));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl RequestHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0_u8; REQUEST_HEADER];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.deadline_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.head_len.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the bytes are not a header, or announce more than may be sent.
    pub fn decode(bytes: &[u8; REQUEST_HEADER]) -> Result<Self, Error> {
        if bytes[..2] != MAGIC {
            return Err(Error::Malformed("not a request".to_owned()));
        }
        let header = Self {
            deadline_ms: u32_at(bytes, 4),
            request_id: u64::from(u32_at(bytes, 8)) | u64::from(u32_at(bytes, 12)) << 32,
            head_len: u32_at(bytes, 16),
            payload_len: u32_at(bytes, 20),
        };
        check(header.head_len, header.payload_len)?;
        Ok(header)
    }
}

impl ReplyHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_HEADER] {
        let mut bytes = [0_u8; REPLY_HEADER];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.head_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the bytes are not a header, or announce more than may be sent.
    pub fn decode(bytes: &[u8; REPLY_HEADER]) -> Result<Self, Error> {
        let kinds = [ReplyKind::Answer, ReplyKind::Refused, ReplyKind::Busy, ReplyKind::Ended];
        let kind = kinds.into_iter().find(|kind| *kind as u8 == bytes[2]);
        let Some(kind) = kind.filter(|_| bytes[..2] == MAGIC) else {
            return Err(Error::Malformed("not a reply".to_owned()));
        };
        let header = Self { kind, head_len: u32_at(bytes, 4), payload_len: u32_at(bytes, 8) };
        check(header.head_len, header.payload_len)?;
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_read_back_what_they_wrote(deadline_ms: u32, request_id: u64, head in 0..HEAD_BYTES_MAX as u32) {
            let header = RequestHeader { deadline_ms, request_id, head_len: head, payload_len: 4096 };
            prop_assert_eq!(RequestHeader::decode(&header.encode()).unwrap(), header);
        }

        #[test]
        fn arbitrary_headers_never_announce_more_than_may_be_sent(bytes: [u8; REQUEST_HEADER]) {
            let mut bytes = bytes;
            bytes[..2].copy_from_slice(&MAGIC);
            if let Ok(header) = RequestHeader::decode(&bytes) {
                prop_assert!(header.payload_len as usize <= PAYLOAD_BYTES_MAX);
            }
        }
    }
}
