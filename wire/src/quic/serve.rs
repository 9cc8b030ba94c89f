//! The answering side: connections are authorised once, each request is a task.

use super::admission::{Door, HANDSHAKE_LIMIT, Handshake, Verdict};
use super::budget::{Budget, Held};
use super::events::EventSender;
use super::peer::peer_certificate;
use super::socket::{Socket, is_newcomer, set_full_windows};
use super::standing::{ENDED, end_of};
use super::strangers::{Strangers, welcome};
use super::stream::{broken, payload_len, read_exactly, read_tail, take_end, write_frame};
use super::windows;
use crate::attr::Timestamp;
use crate::buffers::Pool;
use crate::frame::{REQUEST_HEADER, ReplyHeader, ReplyKind, RequestHeader};
use crate::ids::ClusterId;
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::message::enroll::{EnrollReply, EnrollRequest};
use crate::tls::{PeerIdentity, Subject};
use crate::{Error, codec, trace};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

/// A peer that opens a stream and does not send a request's head in this time is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A stopping server waits this long for an answer to be acknowledged.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Requests that are to end without waiting get this long to be polled once more.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// A request that finds the connection's budget used up is refused after this long.
const BUDGET_TIMEOUT: Duration = Duration::from_secs(1);
/// After a refused certificate, its handshake keeps its place for this long.
const REFUSED_PLACE: Duration = Duration::from_millis(250);

/// What answers requests.
///
/// A request's future is dropped only when the server is stopped and its limit is over, or when it has become a stream
/// of events and the connection ends; work that must not be cut short then belongs to an owner of its own.
pub trait Service: Send + Sync + 'static {
    /// Checks whether this peer may ask anything at all. The reason of a refusal is sent to it.
    ///
    /// # Errors
    /// The reason of the refusal.
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), Error>;

    /// Answers one request, by one of [`Incoming`]'s methods. A request that is dropped unanswered looks like a lost
    /// connection to the caller.
    fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, request: Incoming) -> impl Future<Output = ()> + Send;

    /// Notes that a peer was refused because its certificate is revoked, or its CA not trusted any more.
    fn refused(&self, _addr: SocketAddr, _subject: &Subject, _reason: &str) {}

    /// Returns whether this request is served to a peer whose certificate has ended. Only an endpoint that admits newcomers lets
    /// such a peer in.
    fn serves_ended(&self, _request: &Incoming) -> bool {
        false
    }

    /// Answers a newcomer, who has no certificate, and can ask for nothing else. Called only on an endpoint that admits
    /// newcomers.
    fn enroll(self: Arc<Self>, _addr: SocketAddr, _request: EnrollRequest) -> impl Future<Output = EnrollReply> + Send {
        std::future::ready(EnrollReply::Busy)
    }
}

/// Ends serving when stopped or dropped. Dropping it ends requests under way, too.
pub struct ServerHandle {
    stops: Stops,
    connections: TaskTracker,
}

/// The two steps of stopping.
#[derive(Clone)]
struct Stops {
    /// No new requests; those under way run to their ends.
    drain: CancellationToken,
    /// Those under way end, too.
    kill: CancellationToken,
}

impl ServerHandle {
    /// Takes no further requests, and waits up to `limit` for those under way and for their answers to arrive. Requests
    /// that still run then are dropped where they wait.
    pub async fn stop(self, limit: Duration) {
        self.stops.drain.cancel();
        self.connections.close();
        let _ = timeout(limit, self.connections.wait()).await;
        self.stops.kill.cancel();
        let _ = timeout(KILL_TIMEOUT, self.connections.wait()).await;
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stops.drain.cancel();
        self.stops.kill.cancel();
    }
}

pub(super) fn serve<S: Service>(socket: Arc<Socket>, service: Arc<S>, runtime: &Handle) -> ServerHandle {
    let stops = Stops { drain: CancellationToken::new(), kill: CancellationToken::new() };
    let connections = TaskTracker::new();
    // TLS has verified that the peer's CA is ours.
    let cluster = socket.credentials().identity().cluster_id();
    let accepting = {
        let (stops, connections) = (stops.clone(), connections.clone());
        async move {
            let (door, strangers) = (Arc::<Door>::default(), Arc::<Strangers>::default());
            while let Some(Some(incoming)) = stops.drain.run_until_cancelled(socket.accept()).await {
                let (addr, is_verified) = (incoming.remote_address(), incoming.remote_address_validated());
                let handshake = match door.decide(addr.ip(), is_verified) {
                    Verdict::Begin(handshake) => handshake,
                    Verdict::Verify => {
                        // Fails for verified addresses alone.
                        let _ = incoming.retry();
                        continue;
                    }
                    Verdict::Ignore => {
                        incoming.ignore();
                        continue;
                    }
                };
                let Ok(connecting) = incoming.accept_with(socket.server_config(addr)) else { continue };
                // A token per connection keeps its requests from contending for the server's.
                let stops = Stops { drain: stops.drain.clone(), kill: stops.kill.child_token() };
                connections.spawn(connection(
                    (connecting, handshake, strangers.clone()),
                    cluster,
                    socket.clone(),
                    service.clone(),
                    stops,
                ));
            }
        }
    };
    runtime.spawn(connections.track_future(accepting));
    ServerHandle { stops, connections }
}

async fn connection<S: Service>(
    (connecting, handshake, strangers): (quinn::Connecting, Handshake, Arc<Strangers>),
    cluster: ClusterId,
    socket: Arc<Socket>,
    service: Arc<S>,
    stops: Stops,
) {
    let addr = connecting.remote_address();
    let connection = match stops.drain.run_until_cancelled(timeout(HANDSHAKE_LIMIT, connecting)).await {
        Some(Ok(Ok(connection))) => connection,
        Some(Ok(Err(error))) => {
            tracing::debug!(%addr, %error, "handshake failed");
            return;
        }
        Some(Err(_)) => {
            tracing::debug!(%addr, "handshake did not end in time");
            return;
        }
        None => return,
    };
    if is_newcomer(&connection) {
        let answer = |request| service.enroll(addr, request);
        stops.drain.run_until_cancelled(welcome(connection, handshake, &strangers, answer)).await;
        return;
    }
    let Some((subject, certificate)) = peer_certificate(&connection) else {
        connection.close(1_u32.into(), b"no certificate that names a role");
        return;
    };
    let shown = (&subject, &certificate);
    let _stands = match socket.standing().enter(socket.refusals(), shown, &connection) {
        Ok(stands) => stands,
        Err(closing) => {
            // Noted before the peer can know of it.
            service.refused(addr, &subject, closing.reason());
            closing.close(&connection);
            // The handshake keeps its place for a while, which slows down a peer that tries again and again.
            stops.drain.run_until_cancelled(tokio::time::sleep(REFUSED_PLACE)).await;
            return;
        }
    };
    set_full_windows(&connection);
    let Some(mut admitted) = handshake.succeed(&subject) else {
        tracing::debug!(%addr, name = subject.name, "too many connections of one certificate");
        connection.close(1_u32.into(), b"too many connections of this certificate");
        return;
    };
    let has_ended = certificate.has_ended(Timestamp::now());
    let peer = Arc::new(PeerIdentity { subject, certificate, cluster, addr });
    let refusal = match service.authorize(&peer) {
        Err(error) => Some(Refusal::Always(error.to_string())),
        Ok(()) => has_ended.then_some(Refusal::ButForRenewal),
    };
    let buffers = socket.buffers();
    drop(socket);
    let mut end = pin!(end_of(&peer.certificate));
    let budget = Budget::of(peer.subject.role, admitted.room.clone());
    connection.set_send_window(*admitted.window.borrow_and_update());
    let unanswered = TaskTracker::new();
    let handlers = TaskTracker::new();
    loop {
        let next = tokio::select! {
            next = stops.drain.run_until_cancelled(connection.accept_bi()) => next,
            () = &mut end => {
                connection.close(ENDED.into(), b"the certificate has ended");
                break;
            }
            bytes = windows::changed(&mut admitted.window) => {
                connection.set_send_window(bytes);
                continue;
            }
        };
        let Some(Ok((send, recv))) = next else { break };
        let tracked = Tracked::of(&unanswered);
        let (buffers, drain) = (buffers.clone(), stops.drain.clone());
        let answer = Answer { send, tracked: tracked.clone(), buffers, drain, budget: budget.clone() };
        let answering = serve_request(service.clone(), peer.clone(), refusal.clone(), answer, recv);
        let kill = stops.kill.clone();
        handlers.spawn(async move {
            kill.run_until_cancelled(answering).await;
            tracked.end();
        });
    }
    // This holds even for a lost connection: what its requests have begun runs to its end.
    unanswered.close();
    unanswered.wait().await;
    connection.close(0_u32.into(), b"stopping");
    // Only senders of events are left.
    stops.kill.cancel();
    handlers.close();
    handlers.wait().await;
}

/// A request's part in what a stopping server waits for. It lasts as long as the request is worked on. A stream of
/// events gives it back, as it has no end to wait for.
#[derive(Clone)]
struct Tracked(Arc<Mutex<Option<TaskTrackerToken>>>);

impl Tracked {
    fn of(tracker: &TaskTracker) -> Self {
        Self(Arc::new(Mutex::new(Some(tracker.token()))))
    }

    fn end(&self) {
        self.0.lock().take();
    }
}

/// Why a peer's requests are refused.
#[derive(Clone)]
enum Refusal {
    /// It may ask nothing at all.
    Always(String),
    /// Its certificate has ended, and may be renewed.
    ButForRenewal,
}

async fn serve_request<S: Service>(
    service: Arc<S>,
    peer: Arc<PeerIdentity>,
    refusal: Option<Refusal>,
    answer: Answer,
    recv: quinn::RecvStream,
) {
    let addr = peer.addr;
    match timeout(HEAD_TIMEOUT, Incoming::read(answer, recv)).await {
        Ok(Ok(request)) => match refusal {
            Some(Refusal::Always(reason)) => request.refuse(&reason).await,
            Some(Refusal::ButForRenewal) if !service.serves_ended(&request) => request.refuse_ended().await,
            _ => {
                let id = request.request_id();
                let span = tracing::debug_span!("request", id = format_args!("{id:016x}"), peer = peer.subject.name);
                trace::within(id, service.handle(peer, request).instrument(span)).await;
            }
        },
        Ok(Err(error)) => tracing::debug!(%addr, %error, "request refused"),
        Err(_) => tracing::debug!(%addr, "request's head did not arrive in time"),
    }
}

/// Where an answer is written.
struct Answer {
    send: quinn::SendStream,
    tracked: Tracked,
    /// For the request's payload.
    buffers: Arc<Pool>,
    /// The server is stopping, and the connection with it.
    drain: CancellationToken,
    budget: Budget,
}

impl Answer {
    /// Writes one answer and ends the stream. A failure is ignored: a caller that is gone asks again if it must know.
    async fn write(mut self, kind: ReplyKind, head: &[u8], payload: &[Bytes]) {
        let reply = ReplyHeader { kind, head_len: head.len() as u32, payload_len: payload_len(payload) };
        let written = write_frame(&mut self.send, &reply.encode(), head, payload).await;
        let _ = self.send.finish();
        if written.is_ok() && self.drain.is_cancelled() {
            // The connection is closed right after the last request, and closing drops what is still on its way.
            let _ = timeout(DELIVERY_TIMEOUT, self.send.stopped()).await;
        }
    }

    /// Writes a reason for people, cut to what a line of a log holds.
    async fn refuse(self, kind: ReplyKind, reason: &str) {
        // May cut a character in two: the reader replaces what is no UTF-8.
        let end = reason.len().min(REFUSAL_BYTES_MAX);
        self.write(kind, &reason.as_bytes()[..end], &[]).await;
    }
}

/// A request to be answered.
pub struct Incoming {
    answer: Answer,
    recv: quinn::RecvStream,
    header: RequestHeader,
    head: Bytes,
    payload_left: usize,
    deadline: Instant,
    /// Its part of the connection's budget, given back when it is answered unless it was taken before.
    held: Option<Held>,
    held_for_answer: Option<Held>,
}

impl Incoming {
    async fn read(answer: Answer, mut recv: quinn::RecvStream) -> Result<Self, Error> {
        let bytes = read_exactly(&mut recv, REQUEST_HEADER).await?;
        let mut fixed = [0_u8; REQUEST_HEADER];
        fixed.copy_from_slice(&bytes);
        let header = match RequestHeader::decode(&fixed) {
            Ok(header) => header,
            Err(error) => {
                answer.refuse(ReplyKind::Refused, &error.to_string()).await;
                return Err(error);
            }
        };
        let granted = Duration::from_millis(u64::from(header.deadline_ms)).min(answer.budget.deadline_max);
        let deadline = Instant::now() + granted;
        // What the sender has on its way beyond its budget is refused, not waited for: it would fill the window of the
        // connection, and so stop the requests that this one waits for.
        let bytes = header.head_len as usize + header.payload_len as usize;
        let held = match timeout(BUDGET_TIMEOUT, answer.budget.hold(bytes)).await {
            Ok(held) => held?,
            Err(_) => {
                answer.refuse(ReplyKind::Busy, "too many bytes of requests are under way").await;
                return Err(broken("budget"));
            }
        };
        let head = read_exactly(&mut recv, header.head_len as usize).await?;
        if header.payload_len == 0 {
            take_end(&mut recv);
        }
        let payload_left = header.payload_len as usize;
        Ok(Self { answer, recv, header, head, payload_left, deadline, held: Some(held), held_for_answer: None })
    }

    /// The id of the request in every log. Requests that are sent while it is worked on carry it, too.
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

    /// The kind of the request, with which its head begins: what the sender may not ask is refused before more is
    /// decoded.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it does not begin with a `K`.
    pub fn kind<K: DeserializeOwned>(&self) -> Result<K, Error> {
        codec::decode_start(&self.head)
    }

    /// Takes the request's part of the budgets, for a handler that keeps the content beyond its answer: it is given back
    /// when the result is dropped. `None` when it was taken before.
    #[must_use]
    pub fn take_held(&mut self) -> Option<Held> {
        self.held.take()
    }

    /// The request itself.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        codec::decode(&self.head)
    }

    /// Waits for room in the connection's budget for an answer of up to `bytes`, before that is made: a caller that
    /// does not fetch its answers gets no more of them. Waits until the request's deadline.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there was none in time.
    pub async fn reserve_answer(&mut self, bytes: usize) -> Result<(), Error> {
        let holding = self.answer.budget.hold_answer(bytes.min(HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX));
        self.held_for_answer = Some(timeout_at(self.deadline.into(), holding).await.map_err(broken)??);
        Ok(())
    }

    /// The next piece of the payload as it arrives, `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the stream ends too early, or the caller's deadline expires.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.payload_left == 0 {
            return Ok(None);
        }
        let reading = self.recv.read_chunk(self.payload_left, true);
        let chunk = timeout_at(self.deadline.into(), reading).await.map_err(broken)?.map_err(broken)?;
        let Some(chunk) = chunk else { return Err(broken("too early")) };
        self.payload_left -= chunk.bytes.len();
        if self.payload_left == 0 {
            take_end(&mut self.recv);
        }
        Ok(Some(chunk.bytes))
    }

    /// What is left of the payload. Not cancel-safe.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the stream ends too early, or the caller's deadline expires.
    pub async fn read_payload(&mut self) -> Result<Bytes, Error> {
        let len = std::mem::take(&mut self.payload_left);
        let reading = read_tail(&mut self.recv, len, &self.answer.buffers);
        let payload = timeout_at(self.deadline.into(), reading).await.map_err(broken)??;
        take_end(&mut self.recv);
        Ok(payload)
    }

    /// Answers. A failure is ignored: a caller that is gone, or does not take the answer by its deadline, asks again if
    /// it must know. An answer larger than a frame may be becomes a refusal.
    pub async fn respond<R: Serialize + Sync + ?Sized>(self, head: &R, payload: &[Bytes]) {
        let head = codec::encode(head);
        let payload_len = payload_len(payload);
        if head.len() > HEAD_BYTES_MAX || payload_len as usize > PAYLOAD_BYTES_MAX {
            let reason = format!("the answer of {} + {payload_len} bytes is too large", head.len());
            tracing::error!(request_id = self.header.request_id, reason, "an answer was not sent");
            return self.refuse(&reason).await;
        }
        // Polled once even when the deadline is over, which is enough for what fits into the connection's buffer.
        let _ = timeout_at(self.deadline.into(), self.answer.write(ReplyKind::Answer, &head, payload)).await;
    }

    /// Refuses the request as a whole, with a reason for people.
    pub async fn refuse(self, reason: &str) {
        let _ = timeout_at(self.deadline.into(), self.answer.refuse(ReplyKind::Refused, reason)).await;
    }

    /// Refuses the request for now: nothing was done of it, and the caller may ask the same again later. Works also
    /// after the deadline, for which the caller may have waited in vain.
    pub async fn refuse_busy(self, reason: &str) {
        let _ = timeout(BUDGET_TIMEOUT, self.answer.refuse(ReplyKind::Busy, reason)).await;
    }

    /// Refuses a request that needs a certificate that has not ended: nothing was done of it.
    async fn refuse_ended(self) {
        let reason = "the certificate has ended, and is good for its renewal alone";
        let _ = timeout(BUDGET_TIMEOUT, self.answer.refuse(ReplyKind::Ended, reason)).await;
    }

    /// Keeps the stream open for events. The request's deadline does not hold for them, and a stopping server does not
    /// wait for them: their handler is dropped where it waits when the connection ends.
    #[must_use]
    pub fn into_events(self) -> EventSender {
        self.answer.tracked.end();
        EventSender::over(self.answer.send)
    }
}
