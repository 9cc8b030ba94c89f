//! This daemon's own certificate: kept in the data directory once it was renewed, and renewed before it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use wire::Error;
use wire::quic::Endpoint;
use wire::quic::renew::{RenewError, Renewing, renew};
use wire::tls::Identity;

/// File with the renewed identity, in the data directory.
const FILE: &str = "identity.pem";

/// Returns the identity of the configuration, or its renewal in this data directory if that ends later. A renewal that is
/// damaged is left alone, and replaced by the next one.
#[must_use]
pub fn latest(configured: Identity, data_dir: &Path) -> Identity {
    let path = data_dir.join(FILE);
    if !path.exists() {
        return configured;
    }
    match Identity::load(&path) {
        Ok(renewed) => configured.or_later(renewed),
        Err(error) => {
            tracing::warn!(%error, "the renewed identity cannot be used, so the configured one is");
            configured
        }
    }
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
    fn metads(&self) -> Vec<SocketAddr> {
        self.metads.clone()
    }

    async fn renew(&self) -> Result<Identity, RenewError> {
        renew(&self.endpoint, &self.metads).await
    }

    fn keep(&self, identity: &Identity) -> Result<(), Error> {
        identity.save(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::tls::{ClusterCa, Role, Subject};

    #[test]
    fn a_renewed_identity_that_is_damaged_does_not_stop_a_daemon_whose_configured_one_is_good() {
        let (ca, dir) = (ClusterCa::create("t").unwrap(), tempfile::tempdir().unwrap());
        let configured = ca.issue(&Subject::new(Role::Blockd, "b")).unwrap();
        let file = dir.path().join(FILE);
        std::fs::write(&file, &configured.to_pem()[..300]).unwrap();
        let found = latest(configured.clone(), dir.path());
        assert_eq!(found.certificate(), configured.certificate());
        assert!(file.exists(), "it stays for whoever looks into it");
    }
}
