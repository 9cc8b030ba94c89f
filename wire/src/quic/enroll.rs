//! How a newcomer gets an identity: it knows the cluster by a token alone.
//!
//! The metad has to show the CA that the token names, and a certificate of the role metad below it, before the newcomer
//! sends anything. So nobody else learns the secret.

use super::peer::peer_subject;
use super::socket::{NEWCOMERS_ALPN, provider, tls_error, transport};
use super::strangers::LATER;
use super::stream::{broken, read_exactly, write_frame};
use crate::Error;
use crate::attr::Timestamp;
use crate::bundle::Bundle;
use crate::chain::ServerVerifier;
use crate::codec;
use crate::frame::{REPLY_HEADER, ReplyHeader, RequestHeader};
use crate::issuer::NewKey;
use crate::limits::{ENROLL_REPLY_BYTES_MAX, NEWCOMER_HOST_BYTES_MAX};
use crate::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use crate::retry::Backoff;
use crate::tls::{Identity, Role, SERVER_NAME};
use crate::token::JoinToken;
use crate::trace;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, TransportErrorCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, timeout};

/// A handshake that takes longer than this has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A request that takes longer than this is sent again: it counts once.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// First and longest pause between rounds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// TLS alert certificate_expired (RFC 8446 §6): not valid now.
const NOT_VALID_NOW: u8 = 45;
/// TLS alert no_application_protocol (RFC 7301 §3.2).
const NO_NEWCOMERS: u8 = 120;
/// Clocks that differ by more than this are named in errors.
const SKEW_MAX_S: i64 = 60;

/// Why a newcomer has no identity.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// Somebody else answers at the address.
    #[error(
        "what answers at {peer} is no metad of the cluster that the token names, and was told nothing: make a token on \
         the right cluster, or check what has this address"
    )]
    WrongCluster {
        /// The address.
        peer: SocketAddr,
    },
    /// This machine's clock is outside of the time for which the cluster's certificates are valid.
    #[error("this machine's clock is wrong: it shows a time at which the cluster's certificates are not valid; set it")]
    Clock,
    /// The metads that answer have no issuer.
    #[error(
        "{peer} admits nobody without a certificate: its metad has no issuer (`surf cluster issuer` makes one), or is of \
         an older release"
    )]
    NoNewcomers {
        /// The address.
        peer: SocketAddr,
    },
    /// The cluster has refused.
    #[error("{why}{skew}")]
    Refused {
        /// The reason.
        why: EnrollRefusal,
        /// What is to be said about the clocks, if they differ.
        skew: String,
    },
    /// No metad has decided in time.
    #[error("no metad of the token has issued a certificate in time; the last one: {0}. Check that the metads run")]
    NotInTime(String),
    /// What came is of no use.
    #[error("{peer} has sent a certificate that cannot be used: {reason}")]
    Unusable {
        /// The address.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
    /// This side cannot ask.
    #[error(transparent)]
    Local(#[from] Error),
}

/// Gets an identity for `key`. The same key with the same token gets the same name again, and counts once, so this can be
/// repeated after any failure.
///
/// # Errors
/// [`EnrollError`].
pub async fn enroll(token: &JoinToken, key: &NewKey, host: &str, limit: Duration) -> Result<Bundle, EnrollError> {
    let newcomer = Newcomer::new(token, key, host)?;
    let started = Instant::now();
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut addrs = token.metads.clone();
    let mut last = EnrollError::NotInTime("none was asked".to_owned());
    loop {
        let mut leader = None;
        for addr in &addrs {
            match newcomer.ask(*addr).await {
                Ok(Outcome::Issued(bundle)) => return Ok(bundle),
                Ok(Outcome::NotLeader(found)) => {
                    leader = leader.or(found);
                    last = EnrollError::NotInTime(format!("{addr} does not lead"));
                }
                Ok(Outcome::Later) => last = EnrollError::NotInTime(format!("{addr} has too much to do")),
                Err(error @ (EnrollError::Refused { .. } | EnrollError::Clock | EnrollError::Unusable { .. })) => {
                    return Err(error);
                }
                // Another address may be right.
                Err(error) => last = error,
            }
        }
        if started.elapsed() >= limit || last.is_final() {
            return Err(last);
        }
        match leader.filter(|leader| addrs.first() != Some(leader)) {
            // Asked first, and at once; what the token says stays behind it.
            Some(leader) => {
                addrs.retain(|addr| *addr != leader);
                addrs.insert(0, leader);
                addrs.truncate(token.metads.len() + 1);
            }
            None => tokio::time::sleep(backoff.delay()).await,
        }
    }
}

impl EnrollError {
    /// Reports whether trying again is of no use.
    fn is_final(&self) -> bool {
        matches!(self, Self::WrongCluster { .. } | Self::NoNewcomers { .. } | Self::Local(_))
    }
}

enum Outcome {
    Issued(Bundle),
    NotLeader(Option<SocketAddr>),
    Later,
}

struct Newcomer<'a> {
    token: &'a JoinToken,
    key: &'a NewKey,
    request: Vec<u8>,
}

impl<'a> Newcomer<'a> {
    fn new(token: &'a JoinToken, key: &'a NewKey, host: &str) -> Result<Self, EnrollError> {
        let host = host.chars().filter(char::is_ascii).take(NEWCOMER_HOST_BYTES_MAX).collect();
        let request = EnrollRequest { token: token.id, secret: token.secret, request: key.request()?, host };
        Ok(Self { token, key, request: codec::encode(&request) })
    }

    async fn ask(&self, peer: SocketAddr) -> Result<Outcome, EnrollError> {
        let local = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let bound = quinn::Endpoint::client(SocketAddr::new(local, 0));
        let endpoint = bound.map_err(|error| Error::Bind { addr: local.to_string(), reason: error.to_string() })?;
        let outcome = self.ask_from(&endpoint, peer).await;
        // Dropped with the endpoint otherwise: the metad need not wait for more.
        endpoint.close(0_u32.into(), b"done");
        let _ = timeout(CONNECT_TIMEOUT, endpoint.wait_idle()).await;
        outcome
    }

    async fn ask_from(&self, endpoint: &quinn::Endpoint, peer: SocketAddr) -> Result<Outcome, EnrollError> {
        let unreached = |reason: String| EnrollError::NotInTime(format!("{peer}: {reason}"));
        let (config, pinned) = self.config(peer)?;
        let connecting =
            endpoint.connect_with(config, peer, SERVER_NAME).map_err(|error| unreached(error.to_string()))?;
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(failed(peer, &error)),
            Err(_) => return Err(unreached("no answer to the handshake".to_owned())),
        };
        // Other daemons of the cluster could pass the secret on.
        if peer_subject(&connection).map(|subject| subject.role) != Some(Role::Metad) {
            return Err(EnrollError::WrongCluster { peer });
        }
        let reply = match timeout(ASK_TIMEOUT, self.exchange(&connection)).await {
            Ok(Ok(reply)) => reply,
            _ if is_later(&connection) => return Ok(Outcome::Later),
            Ok(Err(error)) => return Err(unreached(error.to_string())),
            Err(_) => return Err(unreached("no answer in time".to_owned())),
        };
        match reply {
            EnrollReply::Issued { cluster, certificate, issuer, metads } => {
                let unusable = |reason: String| EnrollError::Unusable { peer, reason };
                let ca = pinned.get().map(Vec::as_slice).unwrap_or_default();
                let identity = Identity::of_issued(ca, &certificate, &issuer, &self.key.to_pem());
                let identity = identity.map_err(|error| unusable(error.to_string()))?;
                let role = identity.subject().role;
                if role != self.token.role {
                    return Err(unusable(format!("it has the role {role}, and the token says {}", self.token.role)));
                }
                Ok(Outcome::Issued(Bundle { cluster, metads, identity }))
            }
            EnrollReply::NotLeader { leader } => Ok(Outcome::NotLeader(leader)),
            EnrollReply::Refused { why, now } => Err(EnrollError::Refused { why, skew: skew(now) }),
            EnrollReply::Busy => Ok(Outcome::Later),
        }
    }

    async fn exchange(&self, connection: &quinn::Connection) -> Result<EnrollReply, Error> {
        let (mut send, mut recv) = connection.open_bi().await.map_err(broken)?;
        let header = RequestHeader {
            deadline_ms: u32::try_from(ASK_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
            request_id: trace::fresh_id(),
            head_len: self.request.len() as u32,
            payload_len: 0,
        };
        write_frame(&mut send, &header.encode(), &self.request, &[]).await.map_err(broken)?;
        let _ = send.finish();
        let bytes = read_exactly(&mut recv, REPLY_HEADER).await?;
        let mut fixed = [0_u8; REPLY_HEADER];
        fixed.copy_from_slice(&bytes);
        let len = ReplyHeader::decode(&fixed)?.head_len as usize;
        if len > ENROLL_REPLY_BYTES_MAX {
            return Err(Error::Malformed(format!("an answer of {len} bytes is too large")));
        }
        codec::decode(&read_exactly(&mut recv, len).await?)
    }

    /// Returns how to connect, and where the CA's certificate will be.
    fn config(&self, peer: SocketAddr) -> Result<(quinn::ClientConfig, Arc<OnceLock<Vec<u8>>>), Error> {
        let found = Arc::<OnceLock<Vec<u8>>>::default();
        let verifier = PinnedCa { token: self.token.clone(), found: found.clone() };
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        tls.alpn_protocols = vec![NEWCOMERS_ALPN.to_vec()];
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(tls_error)?));
        config.transport_config(Arc::new(transport(peer.ip().to_canonical().is_loopback())));
        Ok((config, found))
    }
}

fn is_later(connection: &quinn::Connection) -> bool {
    matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close)) if close.error_code == LATER.into())
}

fn failed(peer: SocketAddr, error: &ConnectionError) -> EnrollError {
    let code = match error {
        ConnectionError::TransportError(error) => Some(error.code),
        ConnectionError::ConnectionClosed(close) => Some(close.error_code),
        _ => None,
    };
    let is = |alert: u8| code == Some(TransportErrorCode::crypto(alert));
    if is(NOT_VALID_NOW) {
        EnrollError::Clock
    } else if is(NO_NEWCOMERS) {
        EnrollError::NoNewcomers { peer }
    } else if code.is_some_and(|code| (0x100..0x200).contains(&u64::from(code))) {
        // Any other TLS alert (RFC 9001 §4.8), ours above all: the certificates are not the ones.
        EnrollError::WrongCluster { peer }
    } else {
        EnrollError::NotInTime(format!("{peer}: {error}"))
    }
}

/// What is to be said about the clocks after a refusal: a token ends by the cluster's.
fn skew(now: Timestamp) -> String {
    let ahead = now.secs.saturating_sub(Timestamp::now().secs);
    if ahead.abs() <= SKEW_MAX_S {
        String::new()
    } else if ahead > 0 {
        format!(" (the cluster's clock is {ahead} s ahead of this machine's)")
    } else {
        format!(" (the cluster's clock is {} s behind this machine's)", ahead.unsigned_abs())
    }
}

/// Accepts a chain that ends in the CA that a token names by its hash.
#[derive(Debug)]
struct PinnedCa {
    token: JoinToken,
    /// The CA's certificate, once it was seen.
    found: Arc<OnceLock<Vec<u8>>>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The CA comes last.
        let Some((ca, between)) = intermediates.split_last().filter(|(ca, _)| self.token.is_of(ca)) else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = ServerVerifier::new(roots, provider())
            .map_err(|error| rustls::Error::General(format!("the CA of the token: {error}")))?;
        let verified = verifier.verify_server_cert(end_entity, between, server_name, ocsp_response, now)?;
        let _ = self.found.set(ca.to_vec());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has TLS 1.3 alone".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
