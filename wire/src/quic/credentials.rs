//! What this node shows of itself in handshakes. It can be replaced while the socket serves: connections that begin later
//! show what is newer.

use crate::Error;
use crate::tls::Identity;
use parking_lot::RwLock;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use tokio::sync::Notify;

/// What newcomers speak, who have no certificate yet.
pub(super) const NEWCOMERS_ALPN: &[u8] = b"surf-enroll/1";

/// The cryptography of all handshakes.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn tls_error(error: impl fmt::Display) -> Error {
    Error::Identity { file: "own identity".to_owned(), reason: error.to_string() }
}

/// The identity of this node, ready to be shown.
#[derive(Debug)]
pub(super) struct Credentials {
    current: RwLock<Shown>,
    /// Notified when a peer says that our certificate has ended.
    ended: Notify,
}

#[derive(Debug)]
struct Shown {
    identity: Arc<Identity>,
    to_peers: Arc<CertifiedKey>,
    /// Newcomers get the CA's certificate as well, which they know only by its hash.
    to_newcomers: Arc<CertifiedKey>,
    /// Grows with each replacement.
    generation: u64,
}

impl Shown {
    fn of(identity: &Identity, generation: u64) -> Result<Self, Error> {
        let certified = |chain| CertifiedKey::from_der(chain, identity.key(), &provider()).map(Arc::new);
        let mut with_ca = identity.chain();
        with_ca.push(identity.ca().to_vec().into());
        Ok(Self {
            to_peers: certified(identity.chain()).map_err(tls_error)?,
            to_newcomers: certified(with_ca).map_err(tls_error)?,
            identity: Arc::new(identity.clone()),
            generation,
        })
    }
}

impl Credentials {
    pub(super) fn of(identity: &Identity) -> Result<Self, Error> {
        Ok(Self { current: RwLock::new(Shown::of(identity, 0)?), ended: Notify::new() })
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        self.current.read().identity.clone()
    }

    /// Notified when a peer says that our certificate has ended: our own clock may be behind.
    pub(super) fn ended(&self) -> &Notify {
        &self.ended
    }

    /// Returns how often the identity was replaced.
    pub(super) fn generation(&self) -> u64 {
        self.current.read().generation
    }

    /// Shows a renewed identity from now on.
    ///
    /// # Errors
    /// [`Error::Identity`] when it is somebody else's.
    pub(super) fn replace(&self, identity: &Identity) -> Result<(), Error> {
        let mut current = self.current.write();
        let known = &current.identity;
        if identity.subject() != known.subject() || identity.ca() != known.ca() {
            return Err(tls_error("another node's identity was taken for a renewed one"));
        }
        *current = Shown::of(identity, current.generation + 1)?;
        Ok(())
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_newcomer = hello.alpn().is_some_and(|mut offered| offered.all(|one| one == NEWCOMERS_ALPN));
        let current = self.current.read();
        Some(if is_newcomer { current.to_newcomers.clone() } else { current.to_peers.clone() })
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().to_peers.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
