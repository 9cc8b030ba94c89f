//! The calling side: a peer, its connection, and requests with deadlines.

use super::endpoint::Inner;
use super::stream::{payload_len, read_exactly, write_frame, write_payload};
use crate::frame::{REPLY_HEADER, REQUEST_HEADER, ReplyHeader, RequestHeader};
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::tls::{Role, subject_of};
use crate::{Error, codec};
use bytes::Bytes;
use quinn::{ConnectionError, TransportErrorCode};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A handshake that takes longer than this has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// TLS alerts by which a peer's certificate is refused: bad_certificate, unknown_ca, decrypt_error (RFC 8446 §6).
const CERTIFICATE_ALERTS: [u8; 3] = [42, 48, 51];
/// TLS alert no_application_protocol (RFC 7301 §3.2): no common version.
const NO_COMMON_VERSION: u8 = 120;

/// Another node, at an address, in a role. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Weak<Inner>,
    addr: SocketAddr,
    role: Role,
    connection: Mutex<Option<quinn::Connection>>,
}

impl Peer {
    pub(super) fn new(endpoint: Weak<Inner>, addr: SocketAddr, role: Role) -> Self {
        Self { shared: Arc::new(Shared { endpoint, addr, role, connection: Mutex::new(None) }) }
    }

    /// Its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Asks, and waits for the answer: its decoded head and its payload.
    ///
    /// Dropping the future abandons the request; the peer may carry it out all the same.
    ///
    /// # Errors
    /// [`Error::NotSent`] when the peer was not reached, [`Error::Unanswered`] when it is unknown whether the request was
    /// carried out, [`Error::Refused`] when it was refused, or why no connection can ever be made.
    pub async fn request<Q, R>(&self, head: &Q, payload: &[Bytes], deadline: Duration) -> Result<(R, Bytes), Error>
    where
        Q: Serialize + Sync + ?Sized,
        R: DeserializeOwned,
    {
        let len = payload_len(payload);
        let work = async {
            let mut request = self.open_request(head, len, deadline).await?;
            for part in payload {
                request.write(part.clone()).await?;
            }
            request.finish().await
        };
        timeout(deadline, work).await.unwrap_or_else(|_| Err(self.unanswered("deadline expired")))
    }

    /// Begins a request whose payload of `payload_len` bytes is written piece by piece.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn open_request<Q: Serialize + Sync + ?Sized>(
        &self,
        head: &Q,
        payload_len: u32,
        deadline: Duration,
    ) -> Result<OutgoingRequest, Error> {
        let head = codec::encode(head);
        if payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(Error::Malformed(format!("a payload of {payload_len} bytes is too large")));
        }
        let header = RequestHeader {
            deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
            request_id: rand::random(),
            head_len: head.len() as u32,
            payload_len,
        };
        let connection = self.connection().await?;
        let (mut send, recv) = connection.open_bi().await.map_err(|error| self.not_sent(error))?;
        let encoded: [u8; REQUEST_HEADER] = header.encode();
        write_frame(&mut send, &encoded, &head, &[]).await.map_err(|error| self.unanswered(error))?;
        Ok(OutgoingRequest { peer: self.clone(), send, recv })
    }

    /// Opens a stream of events.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn open_events<Q: Serialize + Sync + ?Sized>(&self, head: &Q) -> Result<EventReceiver, Error> {
        let mut request = self.open_request(head, 0, Duration::from_secs(5)).await?;
        let _ = request.send.finish();
        Ok(EventReceiver { request })
    }

    /// The connection, made now if there is none that lives. Callers wait for one handshake together.
    async fn connection(&self) -> Result<quinn::Connection, Error> {
        let mut slot = self.shared.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        *slot = None;
        let endpoint = self.shared.endpoint.upgrade().ok_or(Error::Closed)?;
        let connecting = endpoint.connect(self.shared.addr).map_err(|error| self.not_sent(error))?;
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(self.connect_failed(&error)),
            Err(_) => return Err(self.not_sent("no answer to the handshake")),
        };
        self.check_role(&connection)?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    fn check_role(&self, connection: &quinn::Connection) -> Result<(), Error> {
        let actual = peer_subject(connection).map(|subject| subject.role);
        if actual == Some(self.shared.role) {
            return Ok(());
        }
        connection.close(0_u32.into(), b"wrong role");
        Err(Error::WrongRole {
            peer: self.shared.addr.to_string(),
            expected: self.shared.role.to_string(),
            actual: actual.map_or_else(|| "none".to_owned(), |role| role.to_string()),
        })
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
                Error::ProtocolVersion { peer, ours: "1".to_owned(), theirs: "others".to_owned() }
            }
            Some(code) if CERTIFICATE_ALERTS.iter().any(|alert| code == TransportErrorCode::crypto(*alert)) => {
                Error::WrongCluster { peer }
            }
            _ => self.not_sent(error),
        }
    }

    fn not_sent(&self, reason: impl std::fmt::Display) -> Error {
        Error::NotSent { peer: self.shared.addr.to_string(), reason: reason.to_string() }
    }

    fn unanswered(&self, reason: impl std::fmt::Display) -> Error {
        Error::Unanswered { peer: self.shared.addr.to_string(), reason: reason.to_string() }
    }
}

pub(super) fn peer_subject(connection: &quinn::Connection) -> Option<crate::tls::Subject> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    subject_of(chain.first()?)
}

/// A request whose payload is being written.
pub struct OutgoingRequest {
    peer: Peer,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl OutgoingRequest {
    /// Writes the next bytes of the payload. Not cancel-safe.
    ///
    /// # Errors
    /// [`Error::Unanswered`] when the connection is lost.
    pub async fn write(&mut self, part: Bytes) -> Result<(), Error> {
        match write_payload(&mut self.send, part).await {
            // The peer stopped reading because it has answered already, perhaps with a refusal: read that.
            Ok(()) | Err(quinn::WriteError::Stopped(_)) => Ok(()),
            Err(error) => Err(self.peer.unanswered(error)),
        }
    }

    /// Ends the payload and waits for the answer, without a limit of its own. Not cancel-safe.
    ///
    /// # Errors
    /// As [`Peer::request`].
    pub async fn finish<R: DeserializeOwned>(mut self) -> Result<(R, Bytes), Error> {
        // Fails only when the peer stopped reading: then its answer is on the way.
        let _ = self.send.finish();
        self.read_reply().await
    }

    async fn read_reply<R: DeserializeOwned>(&mut self) -> Result<(R, Bytes), Error> {
        let lost = |error: Error| self.peer.unanswered(error);
        let bytes = read_exactly(&mut self.recv, REPLY_HEADER).await.map_err(lost)?;
        let mut fixed = [0_u8; REPLY_HEADER];
        fixed.copy_from_slice(&bytes);
        let header = ReplyHeader::decode(&fixed)?;
        let head = read_exactly(&mut self.recv, header.head_len as usize).await.map_err(lost)?;
        if header.refused {
            let reason = String::from_utf8_lossy(&head).into_owned();
            return Err(Error::Refused { peer: self.peer.shared.addr.to_string(), reason });
        }
        let payload = read_exactly(&mut self.recv, header.payload_len as usize).await.map_err(lost)?;
        Ok((codec::decode(&head)?, payload))
    }
}

/// Events that a peer sends unasked.
pub struct EventReceiver {
    request: OutgoingRequest,
}

impl EventReceiver {
    /// The next event. Not cancel-safe: a receiver whose wait was dropped must be dropped too.
    ///
    /// # Errors
    /// [`Error::Unanswered`] when the stream has ended: events may have been missed.
    pub async fn next<R: DeserializeOwned>(&mut self) -> Result<R, Error> {
        Ok(self.request.read_reply().await?.0)
    }
}
