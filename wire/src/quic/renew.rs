//! How a node has its certificate renewed: it shows the one that it has, and a metad with an issuer signs another one for
//! the same key. The handshake has shown that the node has the key, so the request says nothing, and nobody can ask in
//! another's name.

use super::endpoint::Endpoint;
use crate::Error;
use crate::attr::Timestamp;
use crate::message::cert::{RenewRefusal, RenewReply};
use crate::message::meta::{MetaReply, MetaRequest};
use crate::retry::Backoff;
use crate::tls::{Identity, Role};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error as ThisError;

/// How long one metad may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// A certificate is renewed once so much of its life is left, so that metads may be away for as long.
const RENEW_AT: f64 = 0.5;
/// Nodes that have enrolled together renew at different times: up to so much of a life earlier.
const SPREAD: f64 = 0.1;
/// Longest pause between looks at the clock: it may be set, and machines sleep.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// First pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

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
    /// None has answered.
    #[error(transparent)]
    Unanswered(#[from] Error),
}

/// Asks these metads in turn for a renewal of the endpoint's certificate. Returns the identity with the new one; the endpoint
/// does not show it yet.
///
/// # Errors
/// Why the last metad has not renewed it, or the one that knew more.
pub async fn renew(endpoint: &Endpoint, metads: &[SocketAddr]) -> Result<Identity, RenewError> {
    let mut told = RenewError::Unanswered(Error::Closed);
    for addr in metads {
        let metad = endpoint.peer(*addr, Role::Metad);
        let failed = match metad.request::<_, MetaReply>(&MetaRequest::Renew, &[], ASK_TIMEOUT).await {
            Ok((MetaReply::Renewal(RenewReply::Renewed { certificate, issuer }), _)) => {
                return Ok(endpoint.identity().renewed(&certificate, &issuer)?);
            }
            Ok((MetaReply::Renewal(RenewReply::Refused(why)), _)) => RenewError::Refused { peer: *addr, why },
            Ok((other, _)) => Error::Malformed(format!("{addr} answered {} to a renewal", other.kind_name())).into(),
            Err(error) => error.into(),
        };
        if rank(&failed) >= rank(&told) {
            told = failed;
        }
    }
    Err(told)
}

/// How much an error says.
fn rank(error: &RenewError) -> u8 {
    match error {
        RenewError::Refused { why: RenewRefusal::NoIssuer(_), .. } => 2,
        RenewError::Refused { why: RenewRefusal::Later, .. } => 3,
        RenewError::Refused { .. } => 5,
        RenewError::Unanswered(Error::Revoked { .. }) => 4,
        RenewError::Unanswered(Error::Closed) => 0,
        RenewError::Unanswered(_) => 1,
    }
}

/// How a node renews its certificate, and keeps it.
pub trait Renewing: Send + Sync + 'static {
    /// Gets a newer certificate.
    fn renew(&self) -> impl Future<Output = Result<Identity, RenewError>> + Send;

    /// Writes the renewed identity to a file, before it is used. Runs where it may block.
    ///
    /// # Errors
    /// When it cannot be written. It is used all the same, until the node ends.
    fn keep(&self, identity: &Identity) -> Result<(), Error>;
}

/// Returns whether it is time to renew.
#[must_use]
pub fn is_due(identity: &Identity, now: Timestamp) -> bool {
    let certificate = identity.certificate();
    let early = SPREAD * f64::from(certificate.key.0[0]) / 256.0;
    !certificate.is_lasting() && identity.life_left(now) < RENEW_AT + early
}

/// Takes a renewed identity into use: writes it first, so that the node still has it after a crash.
///
/// # Errors
/// [`Error::Identity`] when it is somebody else's.
pub async fn adopt<R: Renewing>(endpoint: &Endpoint, node: &Arc<R>, identity: Identity) -> Result<(), Error> {
    let (keeper, kept) = (node.clone(), identity.clone());
    match tokio::task::spawn_blocking(move || keeper.keep(&kept)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the renewed certificate is lost when this program ends; make it writable")
        }
        Err(error) => tracing::warn!(%error, "the renewed certificate was not written"),
    }
    endpoint.set_identity(&identity)?;
    tracing::info!(
        name = identity.subject().name,
        ends = identity.certificate().ends.secs,
        "the certificate is renewed"
    );
    Ok(())
}

/// Renews the endpoint's certificate whenever it is time, until cancelled. Returns only if the certificate lasts.
pub async fn keep_renewed<R: Renewing>(endpoint: Endpoint, node: Arc<R>) {
    loop {
        let identity = endpoint.identity();
        let certificate = identity.certificate();
        if certificate.is_lasting() {
            return;
        }
        let life = u64::try_from(certificate.ends.nanos_since(certificate.issued)).unwrap_or(0);
        let life = Duration::from_nanos(life);
        let mut backoff = Backoff::new(FIRST_PAUSE, (life / 50).clamp(FIRST_PAUSE, LOOK_EVERY));
        while !is_due(&identity, Timestamp::now()) {
            tokio::time::sleep((life / 50).clamp(FIRST_PAUSE, LOOK_EVERY)).await;
        }
        let mut warned = false;
        loop {
            let renewed = match node.renew().await {
                Ok(renewed) => adopt(&endpoint, &node, renewed).await.map_err(RenewError::from),
                Err(error) => Err(error),
            };
            match renewed {
                Ok(()) => break,
                Err(error) if !warned => {
                    warned = true;
                    let left = identity.life_left(Timestamp::now());
                    tracing::warn!(%error, life_left = format_args!("{left:.2}"), "the certificate cannot be renewed yet");
                }
                Err(error) => tracing::debug!(%error, "the certificate cannot be renewed yet"),
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }
}
