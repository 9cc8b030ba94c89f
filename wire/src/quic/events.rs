//! The sending side of a stream of events.

use super::stream::{broken, write_frame};
use crate::frame::{ReplyHeader, ReplyKind};
use crate::limits::HEAD_BYTES_MAX;
use crate::{Error, codec};
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;

/// A receiver that lets a full window of events lie for this long is gone; its session would expire anyway.
const EVENT_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends events to a peer, in order. Dropping it ends the stream after what was sent.
pub struct EventSender {
    send: quinn::SendStream,
}

impl EventSender {
    pub(super) fn over(send: quinn::SendStream) -> Self {
        Self { send }
    }

    /// Sends one event; returns once it is buffered, not when it has arrived. Not cancel-safe.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the stream has ended, the event is too large, or the receiver has let a full window of
    /// events lie for seconds. After an error the stream is of no further use.
    pub async fn send<E: Serialize + Sync + ?Sized>(&mut self, event: &E) -> Result<(), Error> {
        self.send_within(event, EVENT_SEND_TIMEOUT).await
    }

    /// Like [`EventSender::send`], for a receiver that may take longer.
    ///
    /// # Errors
    /// As [`EventSender::send`].
    pub async fn send_within<E: Serialize + Sync + ?Sized>(&mut self, event: &E, limit: Duration) -> Result<(), Error> {
        let head = codec::encode(event);
        if head.len() > HEAD_BYTES_MAX {
            return Err(Error::Malformed(format!("an event of {} bytes is too large", head.len())));
        }
        let header = ReplyHeader { kind: ReplyKind::Answer, head_len: head.len() as u32, payload_len: 0 }.encode();
        let writing = write_frame(&mut self.send, &header, &head, &[]);
        timeout(limit, writing).await.map_err(broken)?.map_err(broken)
    }

    /// Resolves when the receiver has dropped its end or the connection is lost, for senders that wait for something to
    /// send. Cancel-safe.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.send.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}
