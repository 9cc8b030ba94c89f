//! This node's own certificate: kept in the data directory once it was renewed, and renewed before it ends.
//!
//! A metad with an issuer signs for itself, so that a cluster that was off for longer than its certificates live starts
//! again; others ask it.

use crate::Shared;
use crate::config::IDENTITY_FILE;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::Error;
use wire::message::cert::{RenewRefusal, RenewReply};
use wire::quic::renew::{RenewError, Renewing, renew};
use wire::tls::{Identity, PeerIdentity};

/// Returns the identity of the configuration, or its renewal in this data directory if that ends later. A renewal that is
/// damaged is left alone, and replaced by the next one.
#[must_use]
pub fn latest(configured: Identity, data_dir: &Path) -> Identity {
    let path = data_dir.join(IDENTITY_FILE);
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

/// Renews the certificate of this node.
pub struct OwnIdentity {
    shared: Arc<Shared>,
    file: PathBuf,
}

impl OwnIdentity {
    /// Renews that of this node, which keeps it in its data directory.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        let file = shared.config.data_dir.join(IDENTITY_FILE);
        Self { shared, file }
    }

    fn others(&self) -> Vec<SocketAddr> {
        let (_, nodes) = self.shared.consensus.settled_members();
        let known = nodes.into_iter().chain(self.shared.config.initial.iter().map(|(id, addr)| (*id, *addr)));
        let mut others: Vec<SocketAddr> =
            known.filter(|(id, _)| *id != self.shared.config.id).map(|(_, addr)| addr).collect();
        others.dedup();
        others
    }
}

impl Renewing for OwnIdentity {
    fn metads(&self) -> Vec<SocketAddr> {
        self.others()
    }

    async fn renew(&self) -> Result<Identity, RenewError> {
        let (shared, own) = (&self.shared, self.shared.endpoint.identity());
        let me = PeerIdentity {
            subject: own.subject().clone(),
            certificate: own.certificate().clone(),
            cluster: own.cluster_id(),
            addr: shared.endpoint.local_addr(),
        };
        let why = match shared.renew(&me).await {
            Ok(RenewReply::Renewed { certificate, issuer }) => return Ok(own.renewed(&certificate, &issuer)?),
            Ok(RenewReply::Refused(why)) | Err(why) => why,
        };
        let refused = RenewError::Refused { peer: me.addr, why };
        if matches!(why, RenewRefusal::TooEarly | RenewRefusal::Lasting) {
            return Err(refused);
        }
        // Others may have what this one lacks: an issuer, or the state in which this node is remembered.
        match renew(&shared.endpoint, &self.others()).await {
            Err(RenewError::Unanswered(_)) if !matches!(why, RenewRefusal::NoIssuer(_)) => Err(refused),
            renewed => renewed,
        }
    }

    fn keep(&self, identity: &Identity) -> Result<(), Error> {
        identity.save(&self.file)
    }
}
