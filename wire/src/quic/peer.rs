//! The calling side: a peer, its connection, and requests with deadlines.
//!
//! What a caller may do after a failure depends on how far the request came. A failure is [`Error::NotSent`] until the
//! first byte was passed to the connection, and [`Error::Unanswered`] afterwards.

use super::socket::{Socket, VERSIONS};
use super::standing::{DISTRUSTED, ENDED, REVOKED};
use super::stream::{payload_len, read_exactly, read_tail, take_end, write_frame, write_payload};
use crate::attr::Timestamp;
use crate::buffers::Pool;
use crate::cert::{AuthorityId, Certificate};
use crate::frame::{REPLY_HEADER, ReplyHeader, ReplyKind, RequestHeader};
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::retry::Backoff;
use crate::subject::subject_of;
use crate::tls::{Role, Subject};
use crate::{Error, codec, trace};
use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, TransportErrorCode};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

/// A handshake that takes longer than this has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between handshakes with a peer that does not answer.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// An event stream that cannot be opened in this time has failed.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(5);
/// Events are taken from the connection in portions of this size.
const EVENT_BUFFER_BYTES: usize = 64 << 10;
/// TLS alerts by which a peer's certificate is refused: bad_certificate, unknown_ca, decrypt_error (RFC 8446 §6).
const CERTIFICATE_ALERTS: [u8; 3] = [42, 48, 51];
/// TLS alert no_application_protocol (RFC 7301 §3.2): no common version.
const NO_COMMON_VERSION: u8 = 120;
/// TLS alerts certificate_revoked and certificate_expired (RFC 8446 §6).
const CERTIFICATE_REVOKED: u8 = 44;
const CERTIFICATE_EXPIRED: u8 = 45;

/// Another node, at an address, in a role. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    shared: Arc<Shared>,
}

struct Shared {
    socket: Weak<Socket>,
    buffers: Arc<Pool>,
    addr: SocketAddr,
    role: Role,
    /// Held during a handshake, so that callers wait for one together.
    link: Mutex<Link>,
}

struct Link {
    live: Option<Live>,
    /// What the peer has shown last, whether or not that connection still stands.
    shown: Option<(Subject, Certificate)>,
    /// The last failed handshake, and until when callers get its error without a new one.
    failed: Option<(Error, Instant)>,
    backoff: Backoff,
}

/// A connection that stands.
struct Live {
    connection: quinn::Connection,
    /// How often our identity had been replaced when it was made.
    generation: u64,
    /// Whom it leads to.
    subject: Subject,
    certificate: Certificate,
    /// Version of the list of what is revoked in which this certificate was looked up last.
    looked_up: u64,
}

impl Live {
    /// Whether requests may begin on it: the peer would close it in time, if we have a newer certificate, and we leave it if
    /// the peer's has ended.
    fn is_of_use(&mut self, socket: &Socket) -> bool {
        let version = socket.refusals().version();
        if version != self.looked_up && !self.leave_if_revoked(socket) {
            self.looked_up = version;
        }
        self.connection.close_reason().is_none()
            && self.generation == socket.credentials().generation()
            && !self.certificate.has_ended(Timestamp::now())
    }

    /// Closes it if the peer's certificate is revoked.
    fn leave_if_revoked(&self, socket: &Socket) -> bool {
        let is_refused = socket.refusals().refuse(&self.subject, &self.certificate);
        if is_refused {
            self.connection.close(0_u32.into(), b"the certificate of this server was revoked");
        }
        is_refused
    }
}

impl Peer {
    pub(super) fn new(socket: &Arc<Socket>, addr: SocketAddr, role: Role) -> Self {
        let link = Mutex::new(Link { live: None, shown: None, failed: None, backoff: reconnect_backoff() });
        let (socket, buffers) = (Arc::downgrade(socket), socket.buffers());
        Self { shared: Arc::new(Shared { socket, buffers, addr, role, link }) }
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Reports whether anybody but the endpoint holds it.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

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
            let connection = self.connection().await?;
            let opened = connection.open_bi().await;
            let (send, recv) = opened.map_err(|error| self.judged(&error).unwrap_or_else(|| self.not_sent(error)))?;
            Ok((connection, send, recv))
        };
        let opened = timeout_at(expires_at, opening).await;
        let (connection, send, recv) = opened.unwrap_or_else(|_| Err(self.not_sent("deadline expired")))?;
        let payload_left = payload_len as usize;
        let mut request = OutgoingRequest { peer: self.clone(), connection, send, recv, payload_left, expires_at };
        let header = header.encode();
        let writing = write_frame(&mut request.send, &header, &head, &[]);
        let written = timeout_at(expires_at, writing).await;
        request.peer.written(written).map_err(|error| request.peer.explained(&request.connection, error))?;
        Ok(request)
    }

    /// Opens a stream of events.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn open_events<Q: Serialize + Sync + ?Sized>(&self, head: &Q) -> Result<EventReceiver, Error> {
        let mut request = self.open_request(head, 0, EVENTS_TIMEOUT).await?;
        let _ = request.send.finish();
        let OutgoingRequest { peer, connection, recv, .. } = request;
        Ok(EventReceiver { peer, connection, recv, buffered: BytesMut::new() })
    }

    /// Returns the connection, made now if none lives. Callers wait for one handshake together. During the backoff
    /// after a failed one, all get its error at once: a dead peer costs nobody a queue of timeouts.
    pub(super) async fn connection(&self) -> Result<quinn::Connection, Error> {
        let mut link = self.shared.link.lock().await;
        let socket = self.shared.socket.upgrade().ok_or(Error::Closed)?;
        if let Some(live) = &mut link.live
            && live.is_of_use(&socket)
        {
            return Ok(live.connection.clone());
        }
        // Requests under way keep it open.
        link.live = None;
        if let Some((error, until)) = &link.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let generation = socket.credentials().generation();
        match self.handshake(&socket).await {
            Ok((connection, subject, certificate)) => {
                link.shown = Some((subject.clone(), certificate.clone()));
                link.live =
                    Some(Live { connection: connection.clone(), generation, subject, certificate, looked_up: 0 });
                link.failed = None;
                link.backoff = reconnect_backoff();
                Ok(connection)
            }
            Err(error) => {
                let until = Instant::now() + link.backoff.delay();
                link.failed = Some((error.clone(), until));
                Err(error)
            }
        }
    }

    /// Closes the connection if the peer's certificate is revoked. Whoever has the lock at this moment looks as well.
    pub(super) fn leave_if_revoked(&self) {
        if let (Some(socket), Ok(link)) = (self.shared.socket.upgrade(), self.shared.link.try_lock())
            && let Some(live) = &link.live
        {
            live.leave_if_revoked(&socket);
        }
    }

    /// Returns whom the peer's certificate is for, and what else it says: of a connection that is made if there is none,
    /// or, if that is not possible in this time, of the last one.
    pub async fn met(&self, limit: Duration) -> Option<(Subject, Certificate)> {
        let deadline = Instant::now() + limit;
        // Whatever becomes of it, what was shown is noted.
        let _ = timeout_at(deadline, self.connection()).await;
        let link = timeout_at(deadline + limit, self.shared.link.lock()).await.ok()?;
        link.shown.clone()
    }

    /// As [`Peer::met`], over a new connection unless the present one has shown a certificate of this CA: the peer may have
    /// one by now.
    pub async fn met_below(&self, authority: AuthorityId, limit: Duration) -> Option<(Subject, Certificate)> {
        let deadline = Instant::now() + limit;
        if let Ok(mut link) = timeout_at(deadline, self.shared.link.lock()).await {
            // Requests under way keep it open.
            link.live = link.live.take().filter(|live| live.certificate.authority == authority);
        }
        self.met(limit).await
    }

    async fn handshake(&self, socket: &Socket) -> Result<(quinn::Connection, Subject, Certificate), Error> {
        let connecting = socket.connect(self.shared.addr).map_err(|error| self.not_sent(error))?;
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(self.connect_failed(&error)),
            Err(_) => return Err(self.not_sent("no answer to the handshake")),
        };
        let (subject, certificate) = self.check_role(&connection)?;
        // It may have been revoked since the handshake began.
        if socket.refusals().refuse(&subject, &certificate) {
            connection.close(0_u32.into(), b"the certificate of this server was revoked");
            return Err(self.not_sent("its certificate was revoked"));
        }
        Ok((connection, subject, certificate))
    }

    fn check_role(&self, connection: &quinn::Connection) -> Result<(Subject, Certificate), Error> {
        let shown = peer_certificate(connection);
        let actual = shown.as_ref().map(|(subject, _)| subject.role);
        match shown {
            Some(shown) if actual == Some(self.shared.role) => Ok(shown),
            _ => {
                connection.close(0_u32.into(), b"wrong role");
                Err(Error::WrongRole {
                    peer: self.shared.addr.to_string(),
                    expected: self.shared.role.to_string(),
                    actual: actual.map_or_else(|| "none".to_owned(), |role| role.to_string()),
                })
            }
        }
    }

    /// Returns what a connection has ended for, if it is about our certificate.
    fn judged(&self, reason: &ConnectionError) -> Option<Error> {
        let revoked = || Some(Error::Revoked { peer: self.shared.addr.to_string() });
        let is = |code: TransportErrorCode, alert| code == TransportErrorCode::crypto(alert);
        match reason {
            ConnectionError::ApplicationClosed(close) if close.error_code == REVOKED.into() => revoked(),
            ConnectionError::ApplicationClosed(close) if close.error_code == ENDED.into() => Some(self.ended()),
            ConnectionError::ApplicationClosed(close) if close.error_code == DISTRUSTED.into() => {
                Some(Error::WrongCluster { peer: self.shared.addr.to_string() })
            }
            ConnectionError::ConnectionClosed(close) if is(close.error_code, CERTIFICATE_REVOKED) => revoked(),
            ConnectionError::ConnectionClosed(close) if is(close.error_code, CERTIFICATE_EXPIRED) => Some(self.ended()),
            // The peer judges our certificate when the handshake has ended here (RFC 8446 §4.4.2).
            ConnectionError::ConnectionClosed(close)
                if CERTIFICATE_ALERTS.iter().any(|alert| is(close.error_code, *alert)) =>
            {
                Some(Error::WrongCluster { peer: self.shared.addr.to_string() })
            }
            _ => None,
        }
    }

    /// Our certificate has ended, as the peer says: whoever renews it hears of that.
    fn ended(&self) -> Error {
        if let Some(socket) = self.shared.socket.upgrade() {
            socket.credentials().ended().notify_one();
        }
        Error::Ended { peer: self.shared.addr.to_string() }
    }

    /// Returns the error of a request on a connection: why that has ended, if it says more.
    fn explained(&self, connection: &quinn::Connection, error: Error) -> Error {
        connection.close_reason().and_then(|reason| self.judged(&reason)).unwrap_or(error)
    }

    fn connect_failed(&self, error: &ConnectionError) -> Error {
        let peer = self.shared.addr.to_string();
        let code = match error {
            ConnectionError::TransportError(error) => Some(error.code),
            ConnectionError::ConnectionClosed(close) => Some(close.error_code),
            _ => None,
        };
        match code {
            Some(code) if code == TransportErrorCode::crypto(NO_COMMON_VERSION) => {
                // TLS does not say which versions the other side would have spoken.
                Error::ProtocolVersion { peer, ours: VERSIONS.to_owned(), theirs: "others".to_owned() }
            }
            Some(code) if CERTIFICATE_ALERTS.iter().any(|alert| code == TransportErrorCode::crypto(*alert)) => {
                Error::WrongCluster { peer }
            }
            _ => self.judged(error).unwrap_or_else(|| self.not_sent(error)),
        }
    }

    /// Judges the outcome of a write, once bytes may be on their way.
    fn written(
        &self,
        outcome: Result<Result<(), quinn::WriteError>, tokio::time::error::Elapsed>,
    ) -> Result<(), Error> {
        match outcome {
            // The peer stopped reading because it has answered already, perhaps with a refusal: read that.
            Ok(Ok(()) | Err(quinn::WriteError::Stopped(_))) => Ok(()),
            Ok(Err(error)) => Err(self.unanswered(error)),
            Err(_) => Err(self.unanswered("deadline expired")),
        }
    }

    fn not_sent(&self, reason: impl std::fmt::Display) -> Error {
        Error::NotSent { peer: self.shared.addr.to_string(), reason: reason.to_string() }
    }

    fn unanswered(&self, reason: impl std::fmt::Display) -> Error {
        Error::Unanswered { peer: self.shared.addr.to_string(), reason: reason.to_string() }
    }

    /// Succeeds if this is the head of an answer. Otherwise the error says why the request was refused.
    pub(super) fn check(&self, kind: ReplyKind, head: &[u8]) -> Result<(), Error> {
        let peer = || self.shared.addr.to_string();
        let reason = || String::from_utf8_lossy(&head[..head.len().min(REFUSAL_BYTES_MAX)]).into_owned();
        match kind {
            ReplyKind::Answer => Ok(()),
            ReplyKind::Refused => Err(Error::Refused { peer: peer(), reason: reason() }),
            ReplyKind::Busy => Err(Error::Busy { peer: peer(), reason: reason() }),
            ReplyKind::Ended => Err(self.ended()),
        }
    }
}

fn reconnect_backoff() -> Backoff {
    Backoff::new(RECONNECT_PAUSES.0, RECONNECT_PAUSES.1)
}

/// Returns whom the peer's certificate is for and what else it says, if it has shown one.
pub(super) fn peer_certificate(connection: &quinn::Connection) -> Option<(Subject, Certificate)> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let leaf = chain.first()?;
    subject_of(leaf).zip(Certificate::read(leaf, chain.get(1).map(|issuer| issuer.as_ref())))
}

/// A request whose payload is being written.
pub struct OutgoingRequest {
    peer: Peer,
    connection: quinn::Connection,
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
        self.peer.written(written).map_err(|error| self.peer.explained(&self.connection, error))
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
        let lost = |error: Error| self.peer.explained(&self.connection, self.peer.unanswered(error));
        let bytes = read_exactly(&mut self.recv, REPLY_HEADER).await.map_err(lost)?;
        let header = ReplyHeader::decode(&fixed(&bytes))?;
        let head = read_exactly(&mut self.recv, header.head_len as usize).await.map_err(lost)?;
        self.peer.check(header.kind, &head)?;
        let payload =
            read_tail(&mut self.recv, header.payload_len as usize, &self.peer.shared.buffers).await.map_err(lost)?;
        take_end(&mut self.recv);
        Ok((codec::decode(&head)?, payload))
    }
}

/// Returns the header at the start of `bytes`, which has at least its length.
fn fixed(bytes: &[u8]) -> [u8; REPLY_HEADER] {
    let mut fixed = [0_u8; REPLY_HEADER];
    fixed.copy_from_slice(&bytes[..REPLY_HEADER]);
    fixed
}

/// Events that a peer pushes. When the receiver is dropped, the peer is asked to stop.
pub struct EventReceiver {
    peer: Peer,
    connection: quinn::Connection,
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
                Err(error) => return Err(self.peer.explained(&self.connection, self.peer.unanswered(error))),
            }
        }
        Ok(())
    }
}
