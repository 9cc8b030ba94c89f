//! Reading and writing of frames' parts, shared by both sides.

use crate::Error;
use bytes::{Bytes, BytesMut};

/// Payload is handed to quinn in pieces of this size, so that one large block does not crowd out small requests.
const PIECE_BYTES: usize = 1 << 20;

pub(super) fn broken(error: impl std::fmt::Display) -> Error {
    Error::Malformed(format!("stream ended: {error}"))
}

/// Reads exactly `len` bytes. Not cancel-safe: what was read is lost with the future.
pub(super) async fn read_exactly(stream: &mut quinn::RecvStream, len: usize) -> Result<Bytes, Error> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    let first = stream.read_chunk(len, true).await.map_err(broken)?;
    let Some(first) = first else { return Err(broken("too early")) };
    if first.bytes.len() == len {
        // Small bodies arrive in one packet: no copy at all.
        return Ok(first.bytes);
    }
    let mut all = BytesMut::with_capacity(len);
    all.extend_from_slice(&first.bytes);
    while all.len() < len {
        match stream.read_chunk(len - all.len(), true).await.map_err(broken)? {
            Some(chunk) => all.extend_from_slice(&chunk.bytes),
            None => return Err(broken("too early")),
        }
    }
    Ok(all.freeze())
}

/// Writes a frame's header and head, then its payload.
pub(super) async fn write_frame(
    stream: &mut quinn::SendStream,
    header: &[u8],
    head: &[u8],
    payload: &[Bytes],
) -> Result<(), quinn::WriteError> {
    let mut first = BytesMut::with_capacity(header.len() + head.len());
    first.extend_from_slice(header);
    first.extend_from_slice(head);
    stream.write_chunk(first.freeze()).await?;
    for part in payload {
        write_payload(stream, part.clone()).await?;
    }
    Ok(())
}

/// Writes payload bytes, in pieces.
pub(super) async fn write_payload(stream: &mut quinn::SendStream, mut part: Bytes) -> Result<(), quinn::WriteError> {
    while !part.is_empty() {
        let piece = part.split_to(part.len().min(PIECE_BYTES));
        stream.write_chunk(piece).await?;
    }
    Ok(())
}

pub(super) fn payload_len(payload: &[Bytes]) -> u32 {
    let len: usize = payload.iter().map(Bytes::len).sum();
    u32::try_from(len).unwrap_or(u32::MAX)
}
