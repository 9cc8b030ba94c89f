//! How a node has its certificate renewed: it shows the one that it has, and a metad with an issuer signs another one for
//! the same key. The handshake has shown that the node has the key, so the request says nothing, and nobody can ask in
//! another's name.

use super::endpoint::Endpoint;
use super::peer::Peer;
use super::trial::{is_refusal, try_identity};
use crate::Error;
use crate::attr::Timestamp;
use crate::leader::{LOOK_LIMIT, WHO_LEADS};
use crate::limits::METADS_MAX;
use crate::message::cert::{RenewRefusal, RenewReply};
use crate::message::meta::{MetaReply, MetaRequest};
use crate::retry::Backoff;
use crate::tls::{Identity, Role};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error as ThisError;
use tokio::time::Instant;

/// How long one metad may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// A certificate is renewed once so much of its life is left, so that metads may be away for as long.
const RENEW_AT: f64 = 0.5;
/// Nodes that have enrolled together renew at different times: up to so much of a life earlier.
const SPREAD: f64 = 0.1;
/// An identity that could not be written is written again after this long.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest pause between looks at the clock: it may be set, and machines sleep. Whether there is another CA is asked as often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// First pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause when the certificate would not end later than the one that is there.
const EARLY_PAUSE_MAX: Duration = Duration::from_secs(600);

/// Why a certificate is not renewed.
#[derive(Clone, Debug, ThisError)]
#[non_exhaustive]
pub enum RenewError {
    /// A metad has refused.
    #[error("{peer} does not renew the certificate: {why}")]
    Refused {
        /// The metad.
        peer: SocketAddr,
        /// Its reason.
        why: RenewRefusal,
    },
    /// What has come ends no later than what is there.
    #[error("the renewed certificate ends no later than the one that it is to replace: check the clocks")]
    NotLater,
    /// No metad has let the new certificate in: one refused it, or none was reached. The old one stays in use.
    #[error("the renewed certificate is not used, because no metad has let it in: {0}")]
    NotAccepted(Error),
    /// None has answered.
    #[error(transparent)]
    Unanswered(#[from] Error),
}

impl RenewError {
    /// Returns it as the error of whatever needs the certificate.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Unanswered(error) | Self::NotAccepted(error) => error,
            Self::Refused { peer, why } => Error::Refused { peer: peer.to_string(), reason: why.to_string() },
            Self::NotLater => Error::Refused { peer: "the cluster".to_owned(), reason: self.to_string() },
        }
    }

    /// Returns whether a metad has said that it is too early.
    #[must_use]
    pub fn is_too_early(&self) -> bool {
        matches!(self, Self::Refused { why: RenewRefusal::TooEarly, .. })
    }
}

/// The addresses at which to ask, in the order of asking: those that are given, those at which this endpoint has asked
/// something, and those that metads name meanwhile.
struct Ways(Vec<SocketAddr>);

impl Ways {
    fn of(endpoint: &Endpoint, given: &[SocketAddr]) -> Self {
        let mut ways = Self(Vec::new());
        given.iter().copied().chain(endpoint.addresses(Role::Metad)).for_each(|addr| ways.add(addr));
        ways
    }

    fn add(&mut self, addr: SocketAddr) {
        if self.0.len() < METADS_MAX && !self.0.contains(&addr) {
            self.0.push(addr);
        }
    }

    /// Asks a metad for the addresses of the others. Adds none if it does not answer, or answers something else.
    async fn ask(&mut self, metad: &Peer) {
        if let Ok((MetaReply::NotLeader(said), _)) = metad.request::<_, MetaReply>(&WHO_LEADS, &[], LOOK_LIMIT).await {
            said.nodes.into_iter().for_each(|(_, addr)| self.add(addr));
        }
    }
}

/// Asks these metads in turn, and those that they and this endpoint know of, for a renewal of the endpoint's certificate.
/// Returns the identity with the new one; the endpoint does not show it yet.
///
/// # Errors
/// Why the last metad has not renewed it, or the one that knew more.
pub async fn renew(endpoint: &Endpoint, metads: &[SocketAddr]) -> Result<Identity, RenewError> {
    let mut reported = RenewError::Unanswered(Error::Closed);
    let (mut ways, mut asked) = (Ways::of(endpoint, metads), 0);
    while let Some(addr) = ways.0.get(asked).copied() {
        asked += 1;
        let metad = endpoint.peer(addr, Role::Metad);
        let failed = match metad.request::<_, MetaReply>(&MetaRequest::Renew, &[], ASK_TIMEOUT).await {
            Ok((MetaReply::Renewal(RenewReply::Renewed { certificate, issuer }), _)) => {
                match endpoint.identity().renewed(&certificate, &issuer) {
                    Ok(renewed) => return Ok(renewed),
                    Err(error) => error.into(),
                }
            }
            Ok((MetaReply::Renewal(RenewReply::Refused(why)), _)) => {
                ways.ask(&metad).await;
                RenewError::Refused { peer: addr, why }
            }
            Ok((other, _)) => Error::Malformed(format!("{addr} answered {} to a renewal", other.kind_name())).into(),
            Err(error) => error.into(),
        };
        if failed.is_too_early() {
            return Err(failed);
        }
        if rank(&failed) >= rank(&reported) {
            reported = failed;
        }
    }
    Err(reported)
}

/// Asks a metad whether other CAs are to be trusted, and trusts them. Returns none if it has not answered, otherwise this
/// node's identity if it has changed.
async fn ask_trust(endpoint: &Endpoint, addr: SocketAddr) -> Option<Option<Identity>> {
    let request = MetaRequest::Trust { version: endpoint.identity().trust().version };
    match endpoint.peer(addr, Role::Metad).request::<_, MetaReply>(&request, &[], ASK_TIMEOUT).await {
        Ok((MetaReply::Trust { steps }, _)) => match endpoint.trust_signed(&steps) {
            // None of them was signed by somebody who has a say: another metad may know better.
            Ok(None) if !steps.is_empty() => None,
            Ok(changed) => Some(changed),
            Err(error) => {
                tracing::warn!(%error, "other CAs are to be trusted, and cannot be");
                None
            }
        },
        Ok((other, _)) => {
            tracing::debug!(%addr, reply = other.kind_name(), "no answer about the CAs");
            None
        }
        Err(error) => {
            tracing::debug!(%addr, %error, "no answer about the CAs");
            None
        }
    }
}

/// Asks these metads, and those that this endpoint knows of, whether other CAs are to be trusted, and trusts them: one after
/// the other until one has answered; or all of them if there are said to be others, for one that is behind does not know.
/// Returns this node's identity if it has changed: it is to be kept.
async fn follow_trust(endpoint: &Endpoint, metads: &[SocketAddr], is_hinted: bool) -> Option<Identity> {
    let ways = Ways::of(endpoint, metads).0;
    if is_hinted {
        let mut answers: FuturesUnordered<_> = ways.into_iter().map(|addr| ask_trust(endpoint, addr)).collect();
        while let Some(answer) = answers.next().await {
            if let Some(Some(changed)) = answer {
                return Some(changed);
            }
        }
        return None;
    }
    for addr in ways {
        if let Some(changed) = ask_trust(endpoint, addr).await {
            return changed;
        }
    }
    None
}

/// How much an error says.
fn rank(error: &RenewError) -> u8 {
    match error {
        RenewError::Refused { why: RenewRefusal::NoIssuer(_), .. } => 2,
        RenewError::Refused { why: RenewRefusal::Later, .. } => 3,
        RenewError::Refused { .. } | RenewError::NotLater | RenewError::NotAccepted(_) => 5,
        RenewError::Unanswered(Error::Revoked { .. }) => 4,
        RenewError::Unanswered(Error::Closed) => 0,
        RenewError::Unanswered(_) => 1,
    }
}

/// How a node renews its certificate, and keeps it.
pub trait Renewing: Send + Sync + 'static {
    /// The metads that its configuration names.
    fn metads(&self) -> Vec<SocketAddr>;

    /// Gets a newer certificate.
    fn renew(&self) -> impl Future<Output = Result<Identity, RenewError>> + Send;

    /// Writes the renewed identity to a file, before it is used. Runs where it may block.
    ///
    /// # Errors
    /// When it cannot be written. It is used all the same, and written again later.
    fn keep(&self, identity: &Identity) -> Result<(), Error>;
}

/// Returns whether it is time to renew, or to get a certificate of another CA.
#[must_use]
pub fn is_due(identity: &Identity, now: Timestamp) -> bool {
    let certificate = identity.certificate();
    let early = SPREAD * f64::from(certificate.key.0[0]) / 256.0;
    identity.is_to_move() || (!certificate.is_lasting() && identity.life_left(now) < RENEW_AT + early)
}

/// Takes a renewed identity into use if it supersedes the present one and a metad lets it in. If no metad is reached, a metad, or
/// a node whose certificate has ended, takes it all the same. Writes it first, so that the node still has it after a crash.
///
/// # Errors
/// [`RenewError::NotLater`] and [`RenewError::NotAccepted`], with nothing changed.
pub async fn adopt<R: Renewing>(endpoint: &Endpoint, node: &Arc<R>, identity: Identity) -> Result<(), RenewError> {
    let own = endpoint.identity();
    if !identity.supersedes(&own) {
        return Err(RenewError::NotLater);
    }
    if let Err(error) = try_identity(endpoint, &identity, &Ways::of(endpoint, &node.metads()).0).await {
        // Among metads there may be none that could let it in before this one has it, and what has ended is of no use.
        let nothing_is_lost = own.certificate().has_ended(Timestamp::now()) || own.subject().role == Role::Metad;
        if is_refusal(&error) || !nothing_is_lost {
            return Err(RenewError::NotAccepted(error));
        }
    }
    keep(endpoint, node, &identity).await;
    endpoint.set_identity(&identity)?;
    let adopted = endpoint.identity();
    if adopted.trust() != identity.trust() {
        // Other CAs were trusted meanwhile.
        keep(endpoint, node, &adopted).await;
    }
    tracing::info!(
        name = identity.subject().name,
        ends = identity.certificate().ends.secs,
        "the certificate is renewed"
    );
    Ok(())
}

/// Writes an identity. If that fails, it is tried again until it succeeds.
async fn keep<R: Renewing>(endpoint: &Endpoint, node: &Arc<R>, identity: &Identity) {
    let (keeper, kept) = (node.clone(), identity.clone());
    let written = tokio::task::spawn_blocking(move || keeper.keep(&kept)).await;
    let was_written = endpoint.note_written(matches!(written, Ok(Ok(()))));
    match written {
        Ok(Ok(())) if !was_written => tracing::info!("the identity of this node is on disk now"),
        Ok(Ok(())) => {}
        Ok(Err(error)) if was_written => {
            tracing::warn!(%error, "the identity of this node is lost when this program ends; make it writable, or make room")
        }
        Ok(Err(error)) => tracing::debug!(%error, "the identity of this node is not written yet"),
        Err(error) => tracing::warn!(%error, "the identity of this node was not written"),
    }
}

/// How a pause ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// It has passed.
    Passed,
    /// A peer says that our certificate has ended.
    CertificateEnded,
    /// Other CAs are trusted.
    TrustChanged,
}

/// Follows changes of the CA during the pauses between renewals.
struct Follower<'a, R> {
    endpoint: &'a Endpoint,
    node: &'a Arc<R>,
    /// When it was asked last.
    asked: Instant,
}

impl<R: Renewing> Follower<'_, R> {
    /// Waits for so long, or until other CAs are trusted, or, if that matters, until a peer says that our certificate has ended.
    async fn pause(&mut self, pause: Duration, heeds_end: bool) -> Woken {
        let until = Instant::now() + pause;
        loop {
            let next = self.asked + LOOK_EVERY;
            let is_hinted = tokio::select! {
                () = self.endpoint.trust_hinted() => true,
                () = self.endpoint.certificate_ended(), if heeds_end => return Woken::CertificateEnded,
                () = tokio::time::sleep(WRITE_AGAIN_AFTER), if !self.endpoint.is_written() => {
                    keep(self.endpoint, self.node, &self.endpoint.identity()).await;
                    continue;
                }
                () = tokio::time::sleep_until(until.min(next)) => {
                    if next > until {
                        return Woken::Passed;
                    }
                    false
                }
            };
            if self.follow(is_hinted).await {
                return Woken::TrustChanged;
            }
        }
    }

    /// Asks whether there are other CAs, and keeps what has changed. Returns whether anything has.
    async fn follow(&mut self, is_hinted: bool) -> bool {
        self.asked = Instant::now();
        let followed = follow_trust(self.endpoint, &self.node.metads(), is_hinted).await;
        let Some(identity) = followed else { return false };
        let trust = identity.trust();
        tracing::info!(version = trust.version, authorities = ?trust.ids(), "other CAs are trusted");
        keep(self.endpoint, self.node, &identity).await;
        true
    }
}

/// Renews the endpoint's certificate whenever it is time, or a peer says that it has ended, and follows changes of the CA,
/// until cancelled.
pub async fn keep_renewed<R: Renewing>(endpoint: Endpoint, node: Arc<R>) {
    let (mut backoff, mut warned) = (None, false);
    let mut follower = Follower { endpoint: &endpoint, node: &node, asked: Instant::now() };
    loop {
        let identity = endpoint.identity();
        let certificate = identity.certificate();
        let life = u64::try_from(certificate.ends.nanos_since(certificate.issued)).unwrap_or(0);
        let look_every = (Duration::from_nanos(life) / 50).clamp(FIRST_PAUSE, LOOK_EVERY);
        // Something was tried already if there is a backoff.
        while backoff.is_none() && !is_due(&endpoint.identity(), Timestamp::now()) {
            if follower.pause(look_every, true).await == Woken::CertificateEnded {
                break;
            }
        }
        let renewed = match node.renew().await {
            Ok(renewed) => adopt(&endpoint, &node, renewed).await,
            Err(error) => Err(error),
        };
        match renewed {
            Ok(()) => {
                (backoff, warned) = (None, false);
                // By a clock that is far ahead, the new one is due at once.
                follower.pause(look_every, false).await;
            }
            Err(error) if error.is_too_early() => {
                backoff = None;
                if follower.pause(look_every, false).await == Woken::Passed {
                    follower.pause(until_later(&identity, look_every), true).await;
                }
            }
            Err(error) => {
                let left = identity.life_left(Timestamp::now());
                if warned {
                    tracing::debug!(%error, "the certificate cannot be renewed yet");
                } else {
                    tracing::warn!(%error, life_left = format_args!("{left:.2}"), "the certificate cannot be renewed yet");
                    warned = true;
                }
                let pause = backoff.get_or_insert_with(|| Backoff::new(FIRST_PAUSE, look_every)).delay();
                if follower.pause(pause, false).await == Woken::TrustChanged {
                    // It may not have to move any more.
                    backoff = None;
                }
            }
        }
    }
}

/// How long to wait when it is too early: a twentieth of the time left, within bounds. A certificate that has ended by this
/// node's clock alone is asked about every `look_every`.
fn until_later(identity: &Identity, look_every: Duration) -> Duration {
    let left = u64::try_from(identity.certificate().ends.nanos_since(Timestamp::now())).unwrap_or(0);
    (Duration::from_nanos(left) / 20).clamp(look_every, EARLY_PAUSE_MAX)
}
