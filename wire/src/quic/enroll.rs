//! How a newcomer gets an identity: it knows the cluster by a token alone.
//!
//! The metad has to show the CA that the token names, and a certificate of the role metad below it, before the newcomer
//! sends anything. So nobody else learns the secret.

use super::credentials::{NEWCOMERS_ALPN, pinned, provider, tls_error};
use super::peer::peer_certificate;
use super::socket::transport;
use super::strangers::CLOSE_TRY_LATER;
use super::stream::{broken, read_exactly, write_frame};
use crate::Error;
use crate::attr::Timestamp;
use crate::bundle::Bundle;
use crate::chain::ServerVerifier;
use crate::codec;
use crate::frame::{REPLY_HEADER, ReplyHeader, RequestHeader};
use crate::issuer::NewKey;
use crate::leaf::SERVER_NAME;
use crate::limits::{ENROLL_REPLY_BYTES_MAX, METADS_MAX, NEWCOMER_HOST_BYTES_MAX};
use crate::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use crate::retry::Backoff;
use crate::tls::Role;
use crate::token::JoinToken;
use crate::trace;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, TransportErrorCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::collections::VecDeque;
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
const SKEW_MAX_S: u64 = 60;

/// Why a newcomer has no identity.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// Somebody else answers at the address.
    #[error(
        "what answers at {peer} is no metad of the cluster that the token names, or has another CA by now, and was told \
         nothing: make a token on the right cluster, or check what has this address"
    )]
    WrongCluster {
        /// The address.
        peer: SocketAddr,
    },
    /// This machine's clock is outside of the time for which the cluster's certificates are valid.
    #[error("this machine's clock is wrong: it shows a time at which the cluster's certificates are not valid; set it")]
    Clock,
    /// What answers at the address, a metad without issuer for example, speaks with nobody who has no certificate.
    #[error(
        "{peer}{} admits nobody without a certificate: its metad has no issuer (make one with `surf cluster issuer`, and \
         name it as `issuer` in its configuration), or is of an older release",
        if *.leads { ", which leads," } else { "" }
    )]
    NoNewcomers {
        /// The address.
        peer: SocketAddr,
        /// Another metad says that it leads.
        leads: bool,
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
    /// No metad was reached in time.
    #[error("no metad of the token was reached; the last one: {0}. Check that the metads run, and the network")]
    Unreached(String),
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
    let is_over = || started.elapsed() >= limit;
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut earlier = Round::default();
    loop {
        let mut round = match newcomer.ask_all(is_over).await {
            Ok(bundle) => return Ok(bundle),
            Err(round) => round,
        };
        // Addresses may be old, and metads disagree: while one of them may still issue a certificate, none is believed.
        let is_final = round.is_final();
        round.remember(earlier);
        if is_over() || is_final {
            return Err(round.most_telling());
        }
        earlier = round;
        tokio::time::sleep(backoff.delay()).await;
    }
}

impl EnrollError {
    /// Reports whether asking the same address again is of no use.
    fn is_final(&self) -> bool {
        !matches!(self, Self::NotInTime(_) | Self::Unreached(_))
    }

    /// Returns how much it says about why there is no certificate; less is more.
    fn rank(&self) -> usize {
        match self {
            Self::Refused { .. } => 0,
            Self::Unusable { .. } => 1,
            Self::Clock => 2,
            Self::NoNewcomers { leads: true, .. } => 3,
            Self::NotInTime(_) => 4,
            Self::NoNewcomers { leads: false, .. } => 5,
            Self::WrongCluster { .. } => 6,
            Self::Local(_) => 7,
            Self::Unreached(_) => 8,
        }
    }
}

/// Why nobody has issued a certificate.
#[derive(Default)]
struct Round(Vec<Failure>);

struct Failure {
    addr: SocketAddr,
    error: EnrollError,
    /// The leader, as the metad at this address says.
    leader: Option<SocketAddr>,
}

impl Round {
    /// Reports whether asking again is of no use: a metad that does not lead is settled by what the leader said.
    fn is_final(&self) -> bool {
        let is_settled = |addr: SocketAddr| self.0.iter().any(|other| other.addr == addr && other.error.is_final());
        self.0.iter().all(|failure| failure.error.is_final() || failure.leader.is_some_and(is_settled))
    }

    /// Adds what addresses said before that were not asked again: time was over.
    fn remember(&mut self, earlier: Self) {
        let asked: Vec<SocketAddr> = self.0.iter().map(|failure| failure.addr).collect();
        self.0.extend(earlier.0.into_iter().filter(|failure| !asked.contains(&failure.addr)));
    }

    /// Returns the error that says most, and among such ones the first.
    fn most_telling(mut self) -> EnrollError {
        let leaders: Vec<SocketAddr> = self.0.iter().filter_map(|failure| failure.leader).collect();
        for failure in &mut self.0 {
            if let EnrollError::NoNewcomers { leads, .. } = &mut failure.error {
                *leads = leaders.contains(&failure.addr);
            }
        }
        let errors = self.0.into_iter().map(|failure| failure.error);
        errors.min_by_key(EnrollError::rank).unwrap_or_else(|| EnrollError::Unreached("none was asked".to_owned()))
    }
}

/// The CA's certificate (DER), once it was seen.
type SeenCa = Arc<OnceLock<Vec<u8>>>;

enum Outcome {
    Issued(Box<Bundle>),
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

    /// Asks each metad of the token once, and the leader that one of them names right after it, until time is over.
    async fn ask_all(&self, is_over: impl Fn() -> bool) -> Result<Bundle, Round> {
        let mut waiting: VecDeque<SocketAddr> = self.token.metads.iter().copied().collect();
        let mut round = Round::default();
        while let Some(addr) = waiting.pop_front() {
            if round.0.iter().any(|failure| failure.addr == addr) {
                continue;
            }
            let (error, leader) = match self.ask(addr).await {
                Ok(Outcome::Issued(bundle)) => return Ok(*bundle),
                Ok(Outcome::NotLeader(leader)) => (EnrollError::NotInTime(format!("{addr} does not lead")), leader),
                Ok(Outcome::Later) => (EnrollError::NotInTime(format!("{addr} has too much to do")), None),
                Err(error) => (error, None),
            };
            round.0.push(Failure { addr, error, leader });
            // Metads that name others without end are not followed.
            if let Some(leader) = leader.filter(|_| round.0.len() < METADS_MAX) {
                waiting.push_front(leader);
            }
            if is_over() {
                break;
            }
        }
        Err(round)
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
        let unreached = |reason: String| EnrollError::Unreached(format!("{peer}: {reason}"));
        let undecided = |reason: String| EnrollError::NotInTime(format!("{peer}: {reason}"));
        let (config, pinned) = self.config(peer)?;
        let connecting =
            endpoint.connect_with(config, peer, SERVER_NAME).map_err(|error| unreached(error.to_string()))?;
        let connection = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(failed(peer, &error)),
            Err(_) => return Err(unreached("no answer to the handshake".to_owned())),
        };
        // Other daemons of the cluster could pass the secret on.
        if peer_certificate(&connection).map(|(subject, _)| subject.role) != Some(Role::Metad) {
            return Err(EnrollError::WrongCluster { peer });
        }
        let reply = match timeout(ASK_TIMEOUT, self.exchange(&connection)).await {
            Ok(Ok(reply)) => reply,
            _ if is_later(&connection) => return Ok(Outcome::Later),
            Ok(Err(error)) => return Err(undecided(error.to_string())),
            Err(_) => return Err(undecided("no answer in time".to_owned())),
        };
        match reply {
            EnrollReply::Issued { cluster, certificate, issuer, metads, steps } => {
                let unusable = |reason: String| EnrollError::Unusable { peer, reason };
                let ca = pinned.get().map(Vec::as_slice).unwrap_or_default();
                let made = self.key.identity_after(ca, &steps, &certificate, &issuer);
                let identity = made.map_err(|error| unusable(error.to_string()))?;
                let role = identity.subject().role;
                if role != self.token.role {
                    return Err(unusable(format!("it has the role {role}, and the token says {}", self.token.role)));
                }
                Ok(Outcome::Issued(Box::new(Bundle { cluster, metads, identity })))
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
    fn config(&self, peer: SocketAddr) -> Result<(quinn::ClientConfig, SeenCa), Error> {
        let found = SeenCa::default();
        let names = vec![pinned(&self.token.ca)];
        let verifier = PinnedCa { token: self.token.clone(), names, found: found.clone() };
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
    matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close)) if close.error_code == CLOSE_TRY_LATER.into())
}

/// Returns why a handshake has failed. What was found here is known; what the other side says, anybody may say.
fn failed(peer: SocketAddr, error: &ConnectionError) -> EnrollError {
    match error {
        ConnectionError::TransportError(found) if found.code == TransportErrorCode::crypto(NOT_VALID_NOW) => {
            EnrollError::Clock
        }
        // Any other TLS alert of our own (RFC 9001 §4.8): the certificates are not the ones.
        ConnectionError::TransportError(found) if (0x100..0x200).contains(&u64::from(found.code)) => {
            EnrollError::WrongCluster { peer }
        }
        ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::crypto(NO_NEWCOMERS) => {
            EnrollError::NoNewcomers { peer, leads: false }
        }
        _ => EnrollError::Unreached(format!("{peer}: {error}")),
    }
}

/// What is to be said about the clocks after a refusal: a token ends by the cluster's.
fn skew(now: Timestamp) -> String {
    let ahead = now.secs.saturating_sub(Timestamp::now().secs);
    if ahead.unsigned_abs() <= SKEW_MAX_S {
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
    /// A metad may have certificates of several CAs.
    names: Vec<DistinguishedName>,
    found: SeenCa,
}

impl ServerCertVerifier for PinnedCa {
    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.names)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::ConnectionClose;

    #[test]
    fn only_what_was_verified_here_says_that_this_clock_is_wrong() {
        let peer = "10.0.0.1:7101".parse().unwrap();
        let said = |alert| {
            let error_code = TransportErrorCode::crypto(alert);
            failed(
                peer,
                &ConnectionError::ConnectionClosed(ConnectionClose {
                    error_code,
                    frame_type: None,
                    reason: Default::default(),
                }),
            )
        };
        let found = |alert| failed(peer, &ConnectionError::TransportError(TransportErrorCode::crypto(alert).into()));
        assert!(matches!(found(NOT_VALID_NOW), EnrollError::Clock));
        assert!(matches!(said(NOT_VALID_NOW), EnrollError::Unreached(_)));
        assert!(matches!(said(NO_NEWCOMERS), EnrollError::NoNewcomers { .. }));
        // bad_certificate, unknown_ca.
        for alert in [42, 48] {
            assert!(matches!(found(alert), EnrollError::WrongCluster { .. }));
            assert!(matches!(said(alert), EnrollError::Unreached(_)));
        }
    }

    #[test]
    fn of_errors_that_disagree_the_one_that_says_most_is_reported() {
        let addr = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let failure = |port, error, leader: Option<u16>| Failure { addr: addr(port), error, leader: leader.map(addr) };
        let refused = || EnrollError::Refused { why: EnrollRefusal::UsedUp, skew: String::new() };
        let unreached = || EnrollError::Unreached(String::new());
        let follower = || EnrollError::NotInTime(String::new());
        for errors in [[refused(), unreached()], [unreached(), refused()]] {
            let [one, two] = errors;
            let round = Round(vec![failure(1, one, None), failure(2, two, None)]);
            assert!(!round.is_final(), "one of them may come back");
            assert!(matches!(round.most_telling(), EnrollError::Refused { .. }));
        }
        let round = Round(vec![failure(1, follower(), Some(2)), failure(2, refused(), None)]);
        assert!(round.is_final(), "the leader has spoken");
        let closed = EnrollError::NoNewcomers { peer: addr(2), leads: false };
        let round = Round(vec![failure(1, follower(), Some(2)), failure(2, closed, None)]);
        assert!(round.is_final());
        let told = round.most_telling().to_string();
        assert!(told.starts_with("127.0.0.1:2, which leads, admits nobody"), "{told}");
        assert!(Round(vec![failure(1, follower(), None)]).most_telling().to_string().contains("in time"));
    }
}
