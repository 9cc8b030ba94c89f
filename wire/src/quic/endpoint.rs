//! The endpoint: one socket for calling and answering.
//!
//! By default a thread of its own drives the socket. A daemon whose messages are small and whose answers wait for each
//! other saves the change of threads: [`Endpoint::bind_within`] drives the socket on the runtime that does the rest.

use super::peer::Peer;
use super::serve::{ServerHandle, Service, serve};
use super::socket::{ALPN, Socket};
use crate::Error;
use crate::revoked::{Refusals, Revocations};
use crate::tls::{Identity, Role};
use crate::trust::{SignedTrust, Trust};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Most peers that an endpoint remembers. With more, those not in use are forgotten, and their connections end.
const PEERS_MAX: usize = 1024;

/// One UDP socket, one identity.
#[derive(Clone)]
pub struct Endpoint {
    socket: Arc<Socket>,
    peers: Arc<Mutex<HashMap<(SocketAddr, Role), Peer>>>,
}

impl Endpoint {
    fn of(socket: Socket) -> Self {
        Self { socket: Arc::new(socket), peers: Arc::default() }
    }

    /// Binds a socket and starts the network thread. Port 0 picks a free one.
    ///
    /// # Errors
    /// [`Error::Bind`] when the address cannot be used, [`Error::Identity`] when TLS refuses the identity.
    pub fn bind(addr: SocketAddr, identity: &Identity) -> Result<Self, Error> {
        Self::bind_speaking(addr, identity, ALPN)
    }

    /// Like [`Endpoint::bind`], without a thread of its own: `runtime` drives the socket, and must outlive the
    /// endpoint.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub fn bind_within(addr: SocketAddr, identity: &Identity, runtime: Handle) -> Result<Self, Error> {
        Socket::bind_on(addr, identity, ALPN, runtime, None, false).map(Self::of)
    }

    /// Like [`Endpoint::bind_within`], and those who have no certificate yet may ask for one, and for nothing else
    /// ([`Service::enroll`]).
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub fn bind_for_newcomers(addr: SocketAddr, identity: &Identity, runtime: Handle) -> Result<Self, Error> {
        Socket::bind_on(addr, identity, ALPN, runtime, None, true).map(Self::of)
    }

    pub(super) fn bind_speaking(addr: SocketAddr, identity: &Identity, versions: &[&[u8]]) -> Result<Self, Error> {
        Socket::bind_speaking(addr, identity, versions).map(Self::of)
    }

    /// The address it is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// The identity of this node, as it is now.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.socket.credentials().identity()
    }

    /// Shows a renewed identity in all handshakes from now on. Calls go over new connections; those under way end on the old
    /// ones.
    ///
    /// # Errors
    /// [`Error::Identity`] when it is somebody else's.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), Error> {
        self.socket.replace_identity(identity)
    }

    /// Trusts other CAs from now on, in handshakes and on the connections that stand, if they are of a newer version.
    /// Returns this node's identity as it is now, which is to be kept, or `None` if nothing has changed.
    ///
    /// # Errors
    /// [`Error::Identity`] when the CAs cannot be used.
    pub fn trust(&self, trust: &Trust) -> Result<Option<Identity>, Error> {
        let changed = self.socket.trust(trust)?;
        if changed.is_some() {
            self.close_refused();
        }
        Ok(changed)
    }

    /// As [`Endpoint::trust`], after these steps, those of them that operators of CAs that are trusted have signed. What is
    /// signed by none but operators who are revoked, as far as this node knows, is not followed.
    ///
    /// # Errors
    /// As [`Endpoint::trust`].
    pub fn trust_signed(&self, steps: &[SignedTrust]) -> Result<Option<Identity>, Error> {
        let mut changed = None;
        for step in steps {
            match step.verified_unless(&self.identity().authorities(), self.refusals()) {
                Ok(trust) => changed = self.trust(&trust)?.or(changed),
                Err(error) => tracing::debug!(%error, "a change of the CAs is not followed"),
            }
        }
        Ok(changed)
    }

    /// Notes whether the identity of this node is on disk. Whoever renews it writes it again if it is not. Returns what was noted
    /// before.
    pub fn note_written(&self, is_written: bool) -> bool {
        self.socket.credentials().note_written(is_written)
    }

    /// Returns whether the identity of this node is on disk, as far as was noted.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.socket.credentials().is_written()
    }

    /// Says that there may be another CA: whoever renews the certificate asks for it.
    pub fn hint_trust(&self) {
        self.socket.credentials().hinted().notify_one();
    }

    /// Waits until there may be another CA. Cancel-safe.
    pub async fn trust_hinted(&self) {
        self.socket.credentials().hinted().notified().await;
    }

    /// Refuses what is revoked from now on, in handshakes and on the connections that stand. An older list than the one
    /// that is known changes nothing. Returns whether it was newer.
    pub fn revoke(&self, revocations: &Revocations) -> bool {
        let refusals = self.socket.refusals();
        let is_newer = refusals.learn(revocations);
        if is_newer {
            self.close_refused();
        }
        is_newer
    }

    /// Like [`Endpoint::revoke`], with a list that takes the place of any other, whatever its version. Returns whether it
    /// is another one.
    pub fn adopt_revocations(&self, revocations: &Revocations) -> bool {
        let is_other = self.socket.refusals().adopt(revocations);
        self.close_refused();
        is_other
    }

    fn close_refused(&self) {
        self.socket.standing().close_refused(self.socket.refusals());
        let peers: Vec<Peer> = self.peers.lock().values().cloned().collect();
        peers.iter().for_each(Peer::close_if_refused);
    }

    /// Waits until a peer has said, since the last call, that the certificate of this node has ended. Cancel-safe.
    pub async fn certificate_ended(&self) {
        self.socket.credentials().ended().notified().await;
    }

    /// What this node refuses.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        self.socket.refusals()
    }

    /// The runtime that drives the socket: for work so short that a change of threads would cost more.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.socket.handle().clone()
    }

    /// The peer at `addr`, which must have `role`. The first request connects. All callers share one connection, which
    /// is made anew when it is lost.
    #[must_use]
    pub fn peer(&self, addr: SocketAddr, role: Role) -> Peer {
        let mut peers = self.peers.lock();
        if peers.len() >= PEERS_MAX && !peers.contains_key(&(addr, role)) {
            // A peer that is no longer remembered still works for those that hold it.
            peers.retain(|_, peer| peer.is_in_use());
        }
        peers.entry((addr, role)).or_insert_with(|| Peer::new(&self.socket, addr, role)).clone()
    }

    /// The addresses of this role that were asked for so far, in the order of addresses.
    #[must_use]
    pub fn addresses(&self, role: Role) -> Vec<SocketAddr> {
        let mut found: Vec<SocketAddr> =
            self.peers.lock().keys().filter(|(_, of)| *of == role).map(|(addr, _)| *addr).collect();
        found.sort_unstable();
        found
    }

    /// Answers requests with `service` until the handle is stopped or dropped. Requests run as tasks on `runtime`.
    pub fn serve<S: Service>(&self, service: Arc<S>, runtime: &Handle) -> ServerHandle {
        serve(self.socket.clone(), service, runtime)
    }

    /// Closes every connection at once; peers see it immediately rather than after the idle timeout.
    pub async fn close(&self) {
        self.socket.close().await;
    }
}
