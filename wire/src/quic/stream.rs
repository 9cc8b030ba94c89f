//! Reading and writing of frames' parts, shared by both sides.

use crate::Error;
use crate::buffers::{Buffer, Pool};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use std::sync::Arc;

/// Payload is passed to quinn in pieces of this size, so that one large block does not crowd out small requests.
const PIECE_BYTES: usize = 1 << 20;
/// Smaller payloads are left to the allocator, which reuses such memory by itself.
pub(super) const REUSED_BYTES_MIN: usize = 64 << 10;
/// Capacities of reused buffers are multiples of this, so that payloads of similar lengths share them.
const CAPACITY_STEP: usize = 1 << 20;
/// Packets' contents taken at once: each taking locks the connection, for which the network thread competes.
const CHUNKS_AT_ONCE: usize = 32;

pub(super) fn broken(error: impl std::fmt::Display) -> Error {
    Error::Malformed(format!("stream ended: {error}"))
}

/// Reads exactly `len` bytes. Not cancel-safe: what was read is lost with the future.
pub(super) async fn read_exactly(stream: &mut quinn::RecvStream, len: usize) -> Result<Bytes, Error> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    let first = next(stream, len).await?;
    if first.len() == len {
        // Small bodies arrive in one packet: no copy at all.
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(len);
    all.extend_from_slice(&first);
    while all.len() < len {
        all.extend_from_slice(&next(stream, len - all.len()).await?);
    }
    Ok(all.freeze())
}

async fn next(stream: &mut quinn::RecvStream, max: usize) -> Result<Bytes, Error> {
    let chunk = stream.read_chunk(max, true).await.map_err(broken)?;
    Ok(chunk.ok_or_else(|| broken("too early"))?.bytes)
}

/// Reads the last `len` bytes of a stream into one buffer. It takes whole packets at once, so nothing may follow. Not
/// cancel-safe.
pub(super) async fn read_tail(stream: &mut quinn::RecvStream, len: usize, buffers: &Arc<Pool>) -> Result<Bytes, Error> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    let mut chunks = [const { Bytes::new() }; CHUNKS_AT_ONCE];
    let mut count = next_chunks(stream, &mut chunks).await?;
    if chunks[0].len() == len {
        return Ok(std::mem::take(&mut chunks[0]));
    }
    // Only now, when bytes have arrived: an announcement alone reserves nothing.
    let mut all = buffer_for(len, buffers);
    loop {
        for chunk in &chunks[..count] {
            if all.len() + chunk.len() > len {
                return Err(Error::Malformed(format!("more payload than the {len} bytes announced")));
            }
            all.extend_from_slice(chunk);
        }
        if all.len() == len {
            return Ok(all.freeze());
        }
        count = next_chunks(stream, &mut chunks).await?;
    }
}

/// An empty buffer for a payload of `len` bytes.
fn buffer_for(len: usize, buffers: &Arc<Pool>) -> Buffer {
    if len < REUSED_BYTES_MIN {
        return buffers.enclose(Vec::with_capacity(len));
    }
    buffers.take(len, || Vec::with_capacity(len.next_multiple_of(CAPACITY_STEP)))
}

/// Consumes a stream's end, which has mostly come with the last bytes. Without this, dropping the stream would ask the
/// peer to stop sending, by a packet that the peer must confirm.
pub(super) fn take_end(stream: &mut quinn::RecvStream) {
    let _ = stream.read_chunk(1, true).now_or_never();
}

async fn next_chunks(stream: &mut quinn::RecvStream, chunks: &mut [Bytes]) -> Result<usize, Error> {
    stream.read_chunks(chunks).await.map_err(broken)?.ok_or_else(|| broken("too early"))
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

/// Length of a payload. A length that no frame can announce becomes the largest one, which is above every limit.
pub(super) fn payload_len(payload: &[Bytes]) -> u32 {
    let len: usize = payload.iter().map(Bytes::len).sum();
    u32::try_from(len).unwrap_or(u32::MAX)
}
