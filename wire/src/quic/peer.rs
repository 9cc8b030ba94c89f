//! The calling side: a peer and its connection.

use super::socket::{Socket, VERSIONS};
use super::standing::{ENDED, REVOKED};
use crate::Error;
use crate::attr::Timestamp;
use crate::buffers::Pool;
use crate::cert::{AuthorityId, Certificate};
use crate::frame::ReplyKind;
use crate::limits::REFUSAL_BYTES_MAX;
use crate::retry::Backoff;
use crate::subject::subject_of;
use crate::text::plain;
use crate::tls::{Role, Subject};
use quinn::{ConnectionError, TransportErrorCode};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

/// A handshake that takes longer than this has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between handshakes with a peer that does not answer.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// A peer that shows a certificate of the older CA may have seen that of ours, too. It is called anew after this long: by then it
/// may know the newer CA, for which our older certificate does not count.
#[cfg(not(test))]
const SHOWN_AGAIN_AFTER: Duration = Duration::from_secs(30);
#[cfg(test)]
const SHOWN_AGAIN_AFTER: Duration = Duration::from_millis(200);
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
    /// The last failed handshake, and until when callers get its error without a new one, if our identity is still the same.
    failed: Option<Failed>,
    backoff: Backoff,
}

/// A handshake that has failed.
struct Failed {
    error: Error,
    /// Until when it is not tried again.
    until: Instant,
    /// The generation of our identity with which it was tried.
    generation: u64,
}

/// A connection, and the generation of our identity with which it was made.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) connection: quinn::Connection,
    generation: u64,
}

/// A connection that stands.
struct Live {
    via: Connected,
    /// Whom it leads to.
    subject: Subject,
    certificate: Certificate,
    since: Instant,
    /// Version of the list of what is revoked in which this certificate was looked up last.
    looked_up: u64,
}

impl Live {
    /// Returns whether new requests may use it. They may not if it is closed, if our identity was replaced since it was made, or
    /// if the peer's certificate has ended or is refused (then this closes it).
    fn is_of_use(&mut self, socket: &Socket) -> bool {
        let version = socket.refusals().version();
        if version != self.looked_up && !self.close_if_refused(socket) {
            self.looked_up = version;
        }
        self.via.connection.close_reason().is_none()
            && self.via.generation == socket.credentials().generation()
            && !self.certificate.has_ended(Timestamp::now())
            && !(socket.credentials().is_former(&self.certificate.authority)
                && self.since.elapsed() > SHOWN_AGAIN_AFTER)
    }

    /// Closes it if the peer's certificate is revoked, or its CA is not trusted any more.
    fn close_if_refused(&self, socket: &Socket) -> bool {
        let is_refused = socket.refusals().refuse(&self.subject, &self.certificate);
        if is_refused {
            self.via.connection.close(0_u32.into(), b"the certificate of this server was revoked, or its CA replaced");
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

    /// Returns the connection, made now if none lives. Callers wait for one handshake together. During the backoff
    /// after a failed one, all get its error at once: a dead peer costs nobody a queue of timeouts.
    pub(super) async fn connected(&self) -> Result<Connected, Error> {
        let mut link = self.shared.link.lock().await;
        let socket = self.shared.socket.upgrade().ok_or(Error::Closed)?;
        if let Some(live) = &mut link.live
            && live.is_of_use(&socket)
        {
            return Ok(live.via.clone());
        }
        // Requests under way keep it open.
        link.live = None;
        if let Some(failed) = &link.failed
            && Instant::now() < failed.until
            && failed.generation == socket.credentials().generation()
        {
            return Err(failed.error.clone());
        }
        let (generation, made) = loop {
            let generation = socket.credentials().generation();
            let made = self.handshake(&socket).await;
            // One that began with another identity, or with other CAs to trust, says nothing about those in use now.
            let is_of_use = socket.credentials().generation() == generation;
            if is_of_use || matches!(made, Err(Error::NotSent { .. })) {
                break (generation, made);
            }
        };
        match made {
            Ok((connection, subject, certificate)) => {
                link.shown = Some((subject.clone(), certificate.clone()));
                let via = Connected { connection, generation };
                link.live = Some(Live { via: via.clone(), subject, certificate, since: Instant::now(), looked_up: 0 });
                link.failed = None;
                link.backoff = reconnect_backoff();
                Ok(via)
            }
            Err(error) => {
                let until = Instant::now() + link.backoff.delay();
                link.failed = Some(Failed { error: error.clone(), until, generation });
                Err(error)
            }
        }
    }

    /// Closes the connection if the peer's certificate is refused. Does nothing while another call has the lock: the next request
    /// checks again.
    pub(super) fn close_if_refused(&self) {
        if let (Some(socket), Ok(link)) = (self.shared.socket.upgrade(), self.shared.link.try_lock())
            && let Some(live) = &link.live
        {
            live.close_if_refused(&socket);
        }
    }

    /// Returns the subject and the certificate of the peer. Connects if there is no connection; if that fails within `limit`,
    /// returns what the peer has shown last.
    pub async fn certificate(&self, limit: Duration) -> Option<(Subject, Certificate)> {
        let deadline = Instant::now() + limit;
        // Whatever becomes of it, what was shown is noted.
        let _ = timeout_at(deadline, self.connected()).await;
        let link = timeout_at(deadline + limit, self.shared.link.lock()).await.ok()?;
        link.shown.clone()
    }

    /// As [`Peer::certificate`], over a new connection unless the present one has shown a certificate of this CA: the peer may have
    /// one by now.
    pub async fn certificate_below(&self, authority: AuthorityId, limit: Duration) -> Option<(Subject, Certificate)> {
        let deadline = Instant::now() + limit;
        if let Ok(mut link) = timeout_at(deadline, self.shared.link.lock()).await {
            // Requests under way keep it open.
            link.live = link.live.take().filter(|live| live.certificate.authority == authority);
        }
        self.certificate(limit).await
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
            connection.close(0_u32.into(), b"the certificate of this server was revoked, or its CA replaced");
            return Err(self.not_sent("its certificate was revoked, or its CA replaced"));
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

    /// Returns what a connection has ended for, if it is about our certificate. A connection that ends with the older CA says nothing:
    /// we may have a certificate of the newer one, which the next handshake shows.
    fn error_about_our_certificate(&self, reason: &ConnectionError) -> Option<Error> {
        let revoked = || Some(Error::Revoked { peer: self.shared.addr.to_string() });
        let is = |code: TransportErrorCode, alert| code == TransportErrorCode::crypto(alert);
        match reason {
            ConnectionError::ApplicationClosed(close) if close.error_code == REVOKED.into() => revoked(),
            ConnectionError::ApplicationClosed(close) if close.error_code == ENDED.into() => Some(self.ended()),
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

    /// The peer says that our certificate has ended: wakes the task that renews it.
    fn ended(&self) -> Error {
        if let Some(socket) = self.shared.socket.upgrade() {
            socket.credentials().ended().notify_one();
        }
        Error::Ended { peer: self.shared.addr.to_string() }
    }

    /// Returns the error of a request that failed on a connection. If the peer closed the connection because of our certificate,
    /// that is the error, unless our identity was replaced since the connection was made.
    pub(super) fn error_of_request(&self, via: &Connected, error: Error) -> Error {
        let Some(closed) = via.connection.close_reason() else { return error };
        let current = self.shared.socket.upgrade().map(|socket| socket.credentials().generation());
        let is_current = current.is_none_or(|current| current == via.generation);
        let judged = is_current.then(|| self.error_about_our_certificate(&closed)).flatten();
        judged.unwrap_or_else(|| with_cause(error, &closed))
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
            _ => self.error_about_our_certificate(error).unwrap_or_else(|| self.not_sent(error)),
        }
    }

    /// Returns the error of a write that failed or did not end in time. Bytes may have been sent.
    pub(super) fn check_write(
        &self,
        via: &Connected,
        outcome: Result<Result<(), quinn::WriteError>, tokio::time::error::Elapsed>,
    ) -> Result<(), Error> {
        match outcome {
            // The peer stopped reading because it has answered already, perhaps with a refusal: read that.
            Ok(Ok(()) | Err(quinn::WriteError::Stopped(_))) => Ok(()),
            Ok(Err(error)) => Err(self.error_of_request(via, self.unanswered(error))),
            Err(_) => Err(self.error_of_request(via, self.unanswered("deadline expired"))),
        }
    }

    /// The buffers of answers.
    pub(super) fn buffers(&self) -> &Arc<Pool> {
        &self.shared.buffers
    }

    pub(super) fn not_sent(&self, reason: impl std::fmt::Display) -> Error {
        Error::NotSent { peer: self.shared.addr.to_string(), reason: plain(&reason.to_string()) }
    }

    pub(super) fn unanswered(&self, reason: impl std::fmt::Display) -> Error {
        Error::Unanswered { peer: self.shared.addr.to_string(), reason: plain(&reason.to_string()) }
    }

    /// Succeeds if this is the head of an answer. Otherwise the error says why the request was refused.
    pub(super) fn check(&self, kind: ReplyKind, head: &[u8]) -> Result<(), Error> {
        let peer = || self.shared.addr.to_string();
        let reason = || plain(&String::from_utf8_lossy(&head[..head.len().min(REFUSAL_BYTES_MAX)]));
        match kind {
            ReplyKind::Answer => Ok(()),
            ReplyKind::Refused => Err(Error::Refused { peer: peer(), reason: reason() }),
            ReplyKind::Busy => Err(Error::Busy { peer: peer(), reason: reason() }),
            ReplyKind::Ended => Err(self.ended()),
        }
    }
}

/// Adds why the connection has ended to the error of a request that was sent.
fn with_cause(error: Error, closed: &ConnectionError) -> Error {
    match error {
        Error::Unanswered { peer, reason } => {
            Error::Unanswered { peer, reason: format!("{reason} ({})", plain(&closed.to_string())) }
        }
        other => other,
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
