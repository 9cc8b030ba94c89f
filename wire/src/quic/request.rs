//! Requests with deadlines, and streams of events, over the connection of a [`Peer`].
//!
//! What a caller may do after a failure depends on how far the request came. A failure is [`Error::NotSent`] until the
//! first byte was passed to the connection, and [`Error::Unanswered`] afterwards.

use super::peer::{Connected, Peer};
use super::stream::{payload_len, read_exactly, read_tail, take_end, write_frame, write_payload};
use crate::frame::{REPLY_HEADER, ReplyHeader, RequestHeader};
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::{Error, codec, trace};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// An event stream that cannot be opened in this time has failed.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(5);
/// Events are taken from the connection in portions of this size.
const EVENT_BUFFER_BYTES: usize = 64 << 10;

impl Peer {
    /// Asks, and waits for the answer: its decoded head and its payload.
    ///
    /// Dropping the future abandons the request; the peer may carry it out all the same.
    ///
    /// # Errors
    /// [`Error::NotSent`] when the peer was not reached, [`Error::Unanswered`] when it is unknown whether the request was
    /// carried out, [`Error::Refused`] when it was refused, [`Error::Malformed`] when the request is too large to send or
    /// the answer does not decode, or why no connection can ever be made.
    pub async fn request<Q, R>(&self, head: &Q, payload: &[Bytes], deadline: Duration) -> Result<(R, Bytes), Error>
    where
        Q: Serialize + Sync + ?Sized,
        R: DeserializeOwned,
    {
        let mut request = self.open_request(head, payload_len(payload), deadline).await?;
        for part in payload {
            request.write(part.clone()).await?;
        }
        request.finish().await
    }

    /// Begins a request whose payload of `payload_len` bytes is written piece by piece. The deadline holds for all of
    /// it, the answer included.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn open_request<Q: Serialize + Sync + ?Sized>(
        &self,
        head: &Q,
        payload_len: u32,
        deadline: Duration,
    ) -> Result<OutgoingRequest, Error> {
        let expires_at = Instant::now() + deadline;
        let head = codec::encode(head);
        if head.len() > HEAD_BYTES_MAX || payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(Error::Malformed(format!("a request of {} + {payload_len} bytes is too large", head.len())));
        }
        let header = RequestHeader {
            deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
            request_id: trace::current_id().unwrap_or_else(trace::fresh_id),
            head_len: head.len() as u32,
            payload_len,
        };
        let opening = async {
            let via = self.connected().await?;
            let opened = via.connection.open_bi().await;
            let (send, recv) = opened.map_err(|error| self.error_of_request(&via, self.not_sent(error)))?;
            Ok((via, send, recv))
        };
        let opened = timeout_at(expires_at, opening).await;
        let (via, mut send, recv) = opened.unwrap_or_else(|_| Err(self.not_sent("deadline expired")))?;
        let header = header.encode();
        let writing = write_frame(&mut send, &header, &head, &[]);
        self.check_write(&via, timeout_at(expires_at, writing).await)?;
        Ok(OutgoingRequest { peer: self.clone(), via, send, recv, payload_left: payload_len as usize, expires_at })
    }

    /// Opens a stream of events.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn open_events<Q: Serialize + Sync + ?Sized>(&self, head: &Q) -> Result<EventReceiver, Error> {
        let OutgoingRequest { peer, via, mut send, recv, .. } = self.open_request(head, 0, EVENTS_TIMEOUT).await?;
        let _ = send.finish();
        Ok(EventReceiver { peer, via, recv, buffered: BytesMut::new() })
    }
}

/// A request whose payload is being written.
pub struct OutgoingRequest {
    peer: Peer,
    via: Connected,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    /// Bytes that were announced and not yet written.
    payload_left: usize,
    expires_at: Instant,
}

impl OutgoingRequest {
    /// Writes the next bytes of the payload. Not cancel-safe.
    ///
    /// # Errors
    /// [`Error::Unanswered`] when the connection is lost or the request's deadline expires, [`Error::Malformed`] when
    /// these are more bytes than were announced.
    pub async fn write(&mut self, part: Bytes) -> Result<(), Error> {
        let Some(left) = self.payload_left.checked_sub(part.len()) else {
            return Err(Error::Malformed("more payload than announced".to_owned()));
        };
        self.payload_left = left;
        let written = timeout_at(self.expires_at, write_payload(&mut self.send, part)).await;
        self.peer.check_write(&self.via, written)
    }

    /// Ends the payload and waits for the answer until the request's deadline. Not cancel-safe.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn finish<R: DeserializeOwned>(mut self) -> Result<(R, Bytes), Error> {
        // Fails only when the peer stopped reading: then its answer is on the way.
        let _ = self.send.finish();
        let expires_at = self.expires_at;
        let reply = timeout_at(expires_at, self.read_reply()).await;
        reply.unwrap_or_else(|_| Err(self.peer.unanswered("deadline expired")))
    }

    async fn read_reply<R: DeserializeOwned>(&mut self) -> Result<(R, Bytes), Error> {
        let lost = |error: Error| self.peer.error_of_request(&self.via, self.peer.unanswered(error));
        let bytes = read_exactly(&mut self.recv, REPLY_HEADER).await.map_err(lost)?;
        let header = ReplyHeader::decode(&fixed(&bytes))?;
        let head = read_exactly(&mut self.recv, header.head_len as usize).await.map_err(lost)?;
        self.peer.check(header.kind, &head)?;
        let payload =
            read_tail(&mut self.recv, header.payload_len as usize, self.peer.buffers()).await.map_err(lost)?;
        take_end(&mut self.recv);
        Ok((codec::decode(&head)?, payload))
    }
}

/// Events that a peer pushes. When the receiver is dropped, the peer is asked to stop.
pub struct EventReceiver {
    peer: Peer,
    via: Connected,
    recv: quinn::RecvStream,
    buffered: BytesMut,
}

impl EventReceiver {
    /// Waits for the next event. Cancel-safe: what has arrived of it is kept for the next call.
    ///
    /// # Errors
    /// [`Error::Unanswered`] when the stream has ended: events may have been missed. [`Error::Refused`] when the peer
    /// sends no events, [`Error::Malformed`] when it sends something else. After an error the stream is of no further
    /// use.
    pub async fn next<R: DeserializeOwned>(&mut self) -> Result<R, Error> {
        self.fill(REPLY_HEADER).await?;
        let header = ReplyHeader::decode(&fixed(&self.buffered))?;
        if header.payload_len != 0 {
            return Err(Error::Malformed("an event with a payload".to_owned()));
        }
        let len = REPLY_HEADER + header.head_len as usize;
        self.fill(len).await?;
        let frame = self.buffered.split_to(len);
        let head = &frame[REPLY_HEADER..];
        self.peer.check(header.kind, head)?;
        codec::decode(head)
    }

    async fn fill(&mut self, len: usize) -> Result<(), Error> {
        while self.buffered.len() < len {
            let wanted = (len - self.buffered.len()).max(EVENT_BUFFER_BYTES);
            match self.recv.read_chunk(wanted, true).await {
                Ok(Some(chunk)) => self.buffered.extend_from_slice(&chunk.bytes),
                Ok(None) => return Err(self.peer.unanswered("the event stream has ended")),
                Err(error) => return Err(self.peer.error_of_request(&self.via, self.peer.unanswered(error))),
            }
        }
        Ok(())
    }
}

/// Returns the header at the start of `bytes`, which has at least its length.
fn fixed(bytes: &[u8]) -> [u8; REPLY_HEADER] {
    let mut fixed = [0_u8; REPLY_HEADER];
    fixed.copy_from_slice(&bytes[..REPLY_HEADER]);
    fixed
}
