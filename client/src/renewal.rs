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

    /// Renews a certificate that has ended, because nothing else is served with it. Returns at once if it is valid.
    ///
    /// # Errors
    /// Why it is not renewed, at once if it never will be, and after `limit` if no metad could decide.
    pub async fn renew_if_ended(self: &Arc<Self>, limit: Duration) -> Result<(), Error> {
        let (started, mut backoff) = (Instant::now(), Backoff::default());
        while self.endpoint.identity().certificate().has_ended(Timestamp::now()) {
            match self.renew().await {
                Ok(renewed) => adopt(&self.endpoint, self, renewed).await?,
                Err(RenewError::Unanswered(error)) if started.elapsed() >= limit => return Err(error),
                Err(RenewError::Refused { peer, why }) if !why.may_change() || started.elapsed() >= limit => {
                    return Err(Error::Refused { peer: peer.to_string(), reason: why.to_string() });
                }
                Err(error) => {
                    tracing::debug!(%error, "the certificate has ended, and is not renewed yet");
                    tokio::time::sleep(backoff.delay()).await;
                }
            }
        }
        Ok(())
    }
}

impl Renewing for OwnIdentity {
    async fn renew(&self) -> Result<Identity, RenewError> {
        renew(&self.endpoint, &self.metads).await
    }

    fn keep(&self, identity: &Identity) -> Result<(), Error> {
        self.file.as_ref().map_or(Ok(()), |file| Bundle::renew(file, identity))
    }
}
