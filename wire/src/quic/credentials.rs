//! What this node shows of itself in handshakes. It can be replaced while the socket serves: connections that begin later
//! show what is newer.

use crate::Error;
use crate::cert::AuthorityId;
use crate::tls::Identity;
use crate::token::hash_of;
use crate::trust::roots_of;
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Notified when there may be another CA.
    hinted: Notify,
    /// Whether the identity is on disk, where it was to be written.
    is_written: AtomicBool,
}

#[derive(Debug)]
struct Shown {
    identity: Arc<Identity>,
    current: Below,
    /// While another CA takes the place of an older one, for those who trust the older one alone.
    former: Option<Below>,
    /// Grows with each replacement.
    generation: u64,
}

/// What is shown to those who trust a CA.
#[derive(Debug)]
struct Below {
    authority: Option<AuthorityId>,
    /// How peers name the CA.
    name: DistinguishedName,
    /// How newcomers name it, who know its hash alone.
    pin: DistinguishedName,
    to_peers: Arc<CertifiedKey>,
    /// Newcomers get the CA's certificate as well.
    to_newcomers: Arc<CertifiedKey>,
}

impl Below {
    fn of(chain: Vec<CertificateDer<'static>>, ca: &[u8], identity: &Identity) -> Result<Self, Error> {
        let certified = |chain| CertifiedKey::from_der(chain, identity.key(), &provider()).map(Arc::new);
        let mut with_ca = chain.clone();
        with_ca.push(ca.to_vec().into());
        let name = roots_of(&[ca.to_vec()])?.subjects().pop().ok_or_else(|| tls_error("its CA has no name"))?;
        Ok(Self {
            authority: AuthorityId::of_ca(ca),
            name,
            pin: pinned(&hash_of(ca)),
            to_peers: certified(chain).map_err(tls_error)?,
            to_newcomers: certified(with_ca).map_err(tls_error)?,
        })
    }

    fn is_named(&self, names: &[&[u8]]) -> bool {
        names.iter().any(|name| *name == self.name.as_ref() || *name == self.pin.as_ref())
    }
}

/// Returns how a newcomer names the CA that its token pins, in the place where peers name those that they trust.
pub(super) fn pinned(hash: &[u8; 32]) -> DistinguishedName {
    DistinguishedName::in_sequence(hash)
}

impl Shown {
    fn of(identity: &Identity, generation: u64) -> Result<Self, Error> {
        let former = identity.former().map(|(chain, ca)| Below::of(chain, &ca, identity)).transpose()?;
        let current = Below::of(identity.chain(), identity.ca(), identity)?;
        Ok(Self { identity: Arc::new(identity.clone()), current, former, generation })
    }

    /// Returns what is shown to somebody who trusts these CAs, as far as that is known.
    fn below_one_of(&self, names: &[&[u8]]) -> &Below {
        let former = self.former.as_ref().filter(|former| !self.current.is_named(names) && former.is_named(names));
        former.unwrap_or(&self.current)
    }
}

impl Credentials {
    pub(super) fn of(identity: &Identity) -> Result<Self, Error> {
        Ok(Self {
            current: RwLock::new(Shown::of(identity, 0)?),
            ended: Notify::new(),
            hinted: Notify::new(),
            is_written: AtomicBool::new(true),
        })
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        self.current.read().identity.clone()
    }

    /// Notified when a peer says that our certificate has ended: our own clock may be behind.
    pub(super) fn ended(&self) -> &Notify {
        &self.ended
    }

    /// Notified when there may be another CA.
    pub(super) fn hinted(&self) -> &Notify {
        &self.hinted
    }

    /// Notes whether the identity is on disk. Returns what was noted before.
    pub(super) fn note_written(&self, is_written: bool) -> bool {
        self.is_written.swap(is_written, Ordering::Relaxed)
    }

    pub(super) fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Relaxed)
    }

    /// Returns whether this node has a certificate of a newer CA than this one, and still one of this.
    pub(super) fn is_former(&self, authority: &AuthorityId) -> bool {
        self.current.read().former.as_ref().is_some_and(|former| former.authority.as_ref() == Some(authority))
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
        if identity.subject() != known.subject() || identity.cluster_id() != known.cluster_id() {
            return Err(tls_error("another node's identity was taken for a renewed one"));
        }
        *current = Shown::of(identity, current.generation + 1)?;
        Ok(())
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_newcomer = hello.alpn().is_some_and(|mut offered| offered.all(|one| one == NEWCOMERS_ALPN));
        let names: Vec<&[u8]> = hello.certificate_authorities().into_iter().flatten().map(AsRef::as_ref).collect();
        let shown = self.current.read();
        let below = shown.below_one_of(&names);
        Some(if is_newcomer { below.to_newcomers.clone() } else { below.to_peers.clone() })
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().below_one_of(root_hint_subjects).to_peers.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
