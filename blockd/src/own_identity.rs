//! This daemon's own certificate: kept in the data directory once it was renewed, and renewed before it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use wire::Error;
use wire::quic::Endpoint;
use wire::quic::renew::{RenewError, Renewing, renew};
use wire::tls::Identity;

/// File with the renewed identity, in the data directory.
const FILE: &str = "identity.pem";

/// Returns the identity of the configuration, or its renewal in this data directory if that ends later.
///
/// # Errors
/// [`Error::Identity`] when the renewal cannot be read.
pub fn latest(configured: Identity, data_dir: &Path) -> Result<Identity, Error> {
    let path = data_dir.join(FILE);
    if path.exists() { Ok(configured.or_later(Identity::load(&path)?)) } else { Ok(configured) }
}

/// Renews the certificate of this daemon.
pub struct OwnIdentity {
    endpoint: Endpoint,
    metads: Vec<SocketAddr>,
    file: PathBuf,
}

impl OwnIdentity {
    /// Asks these metads, and keeps what they issue in this data directory.
    #[must_use]
    pub fn new(endpoint: Endpoint, metads: Vec<SocketAddr>, data_dir: &Path) -> Self {
        Self { endpoint, metads, file: data_dir.join(FILE) }
    }
}

impl Renewing for OwnIdentity {
    async fn renew(&self) -> Result<Identity, RenewError> {
        renew(&self.endpoint, &self.metads).await
    }

    fn keep(&self, identity: &Identity) -> Result<(), Error> {
        identity.save(&self.file)
    }
}
