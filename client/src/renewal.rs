//! The certificate of a mount: renewed before it ends, and written to the bundle that it came from.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::Error;
use wire::attr::Timestamp;
use wire::bundle::Bundle;
use wire::quic::Endpoint;
use wire::quic::renew::{RenewError, Renewing, adopt, renew};
use wire::retry::Backoff;
use wire::tls::Identity;

/// Renews the certificate of a client.
pub struct OwnIdentity {
    endpoint: Endpoint,
    metads: Vec<SocketAddr>,
    /// The bundle's file; without one, the renewed identity is used until this process ends.
    file: Option<PathBuf>,
}

impl OwnIdentity {
    /// Asks these metads.
    #[must_use]
    pub fn new(endpoint: Endpoint, metads: Vec<SocketAddr>, file: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { endpoint, metads, file })
    }

    /// Renews a certificate that has ended, because nothing else is served with it. Returns at once if it is valid. If it has
    /// ended by this machine's clock alone, it is used as it is.
    ///
    /// # Errors
    /// Why it is not renewed, at once if it never will be, and after `limit` if no metad could decide.
    pub async fn renew_if_ended(self: &Arc<Self>, limit: Duration) -> Result<(), Error> {
        let has_ended = || self.endpoint.identity().certificate().has_ended(Timestamp::now());
        let (started, mut backoff) = (Instant::now(), Backoff::default());
        while has_ended() {
            let renewed = match self.renew().await {
                Ok(renewed) => adopt(&self.endpoint, self, renewed).await,
                Err(error) => Err(error),
            };
            let is_final = match &renewed {
                Ok(()) => break,
                Err(error) if error.is_too_early() => break,
                Err(RenewError::Refused { why, .. }) => !why.may_change(),
                Err(RenewError::Unanswered(error)) => matches!(error, Error::Revoked { .. }),
                Err(_) => false,
            };
            match renewed {
                Err(error) if is_final || started.elapsed() >= limit => return Err(error.into_error()),
                renewed => tracing::debug!(?renewed, "the certificate has ended, and is not renewed yet"),
            }
            tokio::time::sleep(backoff.delay()).await;
        }
        if has_ended() {
            tracing::warn!("a valid certificate has ended by the clock of this machine: check the clock");
        }
        Ok(())
    }
}

impl Renewing for OwnIdentity {
    fn metads(&self) -> Vec<SocketAddr> {
        self.metads.clone()
    }

    async fn renew(&self) -> Result<Identity, RenewError> {
        renew(&self.endpoint, &self.metads).await
    }

    fn keep(&self, identity: &Identity) -> Result<(), Error> {
        self.file.as_ref().map_or(Ok(()), |file| Bundle::renew(file, identity))
    }
}
