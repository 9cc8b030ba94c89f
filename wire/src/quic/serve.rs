//! The answering side: connections are authorised once, each request is a task.

use super::endpoint::Endpoint;
use super::peer::peer_subject;
use super::stream::{broken, payload_len, read_exactly, write_frame};
use crate::frame::{REQUEST_HEADER, ReplyHeader, RequestHeader};
use crate::tls::PeerIdentity;
use crate::{Error, codec};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A peer that opens a stream and does not send a request's head in this time is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Whether this peer may ask anything at all; the reason is told to it.
    ///
    /// # Errors
    /// The reason why not.
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), Error>;

    /// Answers one request, by one of [`Incoming`]'s answers. A request that is dropped unanswered looks like a lost
    /// connection to the caller.
    fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, request: Incoming) -> impl Future<Output = ()> + Send;
}

/// Ends serving when stopped or dropped.
pub struct ServerHandle {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ServerHandle {
    /// Takes no further requests, and waits up to `limit` for those under way.
    pub async fn stop(self, limit: Duration) {
        self.stop.cancel();
        self.tasks.close();
        let _ = timeout(limit, self.tasks.wait()).await;
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) fn serve<S: Service>(endpoint: Endpoint, service: Arc<S>, runtime: &Handle) -> ServerHandle {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let accepting = {
        let (stop, tasks, runtime) = (stop.clone(), tasks.clone(), runtime.clone());
        async move {
            while let Some(Some(incoming)) = stop.run_until_cancelled(endpoint.accept()).await {
                let config = endpoint.server_config(incoming.remote_address());
                let Ok(connecting) = incoming.accept_with(config) else { continue };
                let work = connection(connecting, service.clone(), stop.clone(), tasks.clone());
                // Connections end with the server; only requests are waited for.
                runtime.spawn(work);
            }
        }
    };
    runtime.spawn(accepting);
    ServerHandle { stop, tasks }
}

async fn connection<S: Service>(
    connecting: quinn::Connecting,
    service: Arc<S>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let addr = connecting.remote_address();
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%addr, %error, "handshake failed");
            return;
        }
    };
    let Some(subject) = peer_subject(&connection) else {
        connection.close(1_u32.into(), b"certificate names no role");
        return;
    };
    let peer = Arc::new(PeerIdentity { subject, addr });
    let refusal = service.authorize(&peer).err().map(|error| error.to_string());
    while let Some(Ok((send, recv))) = stop.run_until_cancelled(connection.accept_bi()).await {
        let (service, peer, refusal) = (service.clone(), peer.clone(), refusal.clone());
        tasks.spawn(async move {
            match timeout(HEAD_TIMEOUT, Incoming::read(send, recv)).await {
                Ok(Ok(request)) => match refusal {
                    Some(reason) => request.refuse(&reason).await,
                    None => service.handle(peer, request).await,
                },
                Ok(Err(error)) => tracing::debug!(addr = %peer.addr, %error, "request refused"),
                Err(_) => tracing::debug!(addr = %peer.addr, "request's head did not arrive in time"),
            }
        });
    }
    connection.close(0_u32.into(), b"stopping");
}

/// A request to be answered.
pub struct Incoming {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    header: RequestHeader,
    head: Bytes,
    payload_left: usize,
    deadline: Instant,
}

impl Incoming {
    async fn read(mut send: quinn::SendStream, mut recv: quinn::RecvStream) -> Result<Self, Error> {
        let bytes = read_exactly(&mut recv, REQUEST_HEADER).await?;
        let mut fixed = [0_u8; REQUEST_HEADER];
        fixed.copy_from_slice(&bytes);
        let header = match RequestHeader::decode(&fixed) {
            Ok(header) => header,
            Err(error) => {
                let reason = error.to_string();
                let reply = ReplyHeader { refused: true, head_len: reason.len() as u32, payload_len: 0 };
                write_frame(&mut send, &reply.encode(), reason.as_bytes(), &[]).await.map_err(broken)?;
                let _ = send.finish();
                return Err(error);
            }
        };
        let head = read_exactly(&mut recv, header.head_len as usize).await?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(header.deadline_ms));
        Ok(Self { send, recv, header, head, payload_left: header.payload_len as usize, deadline })
    }

    /// The id that follows the request through every log.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        self.header.request_id
    }

    /// The caller gives up at this time.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Bytes of payload that the caller announced.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.header.payload_len as usize
    }

    /// The request itself.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        codec::decode(&self.head)
    }

    /// The next piece of the payload as it arrives, `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the stream ends too early.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.payload_left == 0 {
            return Ok(None);
        }
        let chunk = self.recv.read_chunk(self.payload_left, true).await.map_err(broken)?;
        let Some(chunk) = chunk else { return Err(broken("too early")) };
        self.payload_left -= chunk.bytes.len();
        Ok(Some(chunk.bytes))
    }

    /// All of the payload. Not cancel-safe.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the stream ends too early.
    pub async fn read_payload(&mut self) -> Result<Bytes, Error> {
        let len = std::mem::take(&mut self.payload_left);
        read_exactly(&mut self.recv, len).await
    }

    /// Answers. A caller that is gone does not matter here: it asks again if it must know.
    pub async fn respond<R: Serialize + Sync + ?Sized>(mut self, head: &R, payload: &[Bytes]) {
        let head = codec::encode(head);
        let reply = ReplyHeader { refused: false, head_len: head.len() as u32, payload_len: payload_len(payload) };
        let _ = write_frame(&mut self.send, &reply.encode(), &head, payload).await;
        let _ = self.send.finish();
    }

    /// Refuses the request as a whole, with a reason for people.
    pub async fn refuse(mut self, reason: &str) {
        let reply = ReplyHeader { refused: true, head_len: reason.len() as u32, payload_len: 0 };
        let _ = write_frame(&mut self.send, &reply.encode(), reason.as_bytes(), &[]).await;
        let _ = self.send.finish();
    }

    /// Keeps the stream open for events.
    #[must_use]
    pub fn into_events(self) -> EventSender {
        EventSender { send: self.send }
    }
}

/// Sends events to a peer, in order.
pub struct EventSender {
    send: quinn::SendStream,
}

impl EventSender {
    /// Sends one event; returns once it is buffered, not when it has arrived.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the stream has ended.
    pub async fn send<E: Serialize + Sync + ?Sized>(&mut self, event: &E) -> Result<(), Error> {
        let head = codec::encode(event);
        let header = ReplyHeader { refused: false, head_len: head.len() as u32, payload_len: 0 };
        write_frame(&mut self.send, &header.encode(), &head, &[]).await.map_err(broken)
    }
}
