//! The UDP socket of an endpoint: TLS and transport settings, and the thread that drives it.
//!
//! A `current_thread` runtime of its own for packets was measured at twice the throughput of sharing the workers of a
//! multi-threaded one, so quinn's tasks are always spawned there, whichever thread asks for them.

use super::credentials::{Credentials, NEWCOMERS_ALPN, provider, tls_error};
use super::driver::Driver;
use super::standing::Standing;
use super::stream::REUSED_BYTES_MIN;
use super::windows::CONNECTION_WINDOW_BYTES;
use crate::Error;
use crate::buffers::Pool;
use crate::chain::{ClientVerifier, ServerVerifier};
use crate::leaf::SERVER_NAME;
use crate::revoked::Refusals;
use crate::tls::Identity;
use crate::trust::Trust;
use parking_lot::RwLock;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::server::NoServerSessionStorage;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The protocol versions this program speaks, best first, as ALPN names them.
pub(super) const ALPN: &[&[u8]] = &[b"surf/15"];
/// The protocol versions for people.
pub(super) const VERSIONS: &str = "15";
/// Socket buffers: the default of 208 KiB drops packets at loopback speed.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// Most memory of payloads that an endpoint pools for reuse.
const POOLED_BYTES_MAX: usize = 16 << 20;
/// What one stream may have in flight: several blocks.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// Requests that one connection may have open at once.
const STREAMS_MAX: u32 = 4096;
/// What a connection may have in flight, and how many requests open, before its peer has shown a certificate, where those
/// without one are admitted at all.
const STRANGER_WINDOW_BYTES: u32 = 16 << 10;
const STRANGER_STREAMS_MAX: u32 = 4;
/// A peer that is silent for this long is gone; keep-alives come every second.
const IDLE_TIMEOUT_MS: u32 = 5_000;
/// Length of connection ids: as quinn's own.
const CONNECTION_ID_BYTES: usize = 8;
/// Datagram size over loopback. quinn passes up to ten to the kernel at once, which must stay below 64 KiB: 6,500
/// works, 6,560 crawls.
const LOOPBACK_MTU: u16 = 6_500;

/// Turns of tasks between two looks for those that other threads have woken. While packets come without end, the endpoint
/// alone takes turns, and long ones.
const TURNS_BETWEEN_OTHERS: u32 = 4;

/// One bound socket.
pub(super) struct Socket {
    quinn: quinn::Endpoint,
    local: SocketAddr,
    credentials: Arc<Credentials>,
    refusals: Arc<Refusals>,
    standing: Arc<Standing>,
    /// How handshakes begin, by the CAs that are trusted.
    configs: RwLock<Arc<Configs>>,
    versions: Vec<Vec<u8>>,
    admits_newcomers: bool,
    buffers: Arc<Pool>,
    handle: Handle,
    /// Dropping it ends the network thread, if there is one.
    _stop: Option<oneshot::Sender<()>>,
}

struct Configs {
    client: ClientConfigs,
    server: ServerConfigs,
}

struct ClientConfigs {
    loopback: quinn::ClientConfig,
    remote: quinn::ClientConfig,
}

struct ServerConfigs {
    loopback: Arc<quinn::ServerConfig>,
    remote: Arc<quinn::ServerConfig>,
}

impl Socket {
    /// Binds it, and starts the network thread.
    pub(super) fn bind_speaking(addr: SocketAddr, identity: &Identity, versions: &[&[u8]]) -> Result<Self, Error> {
        let failed = |error: io::Error| bind_error(addr, &error);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .global_queue_interval(TURNS_BETWEEN_OTHERS)
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("surf-net".to_owned())
            .spawn(move || {
                // Ends when the sender is dropped with the last clone of the endpoint.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Self::bind_on(addr, identity, versions, handle, Some(stop), false)
    }

    /// Binds it; `handle` drives it. `admits_newcomers`: whether it serves those without a certificate, too.
    pub(super) fn bind_on(
        addr: SocketAddr,
        identity: &Identity,
        versions: &[&[u8]],
        handle: Handle,
        stop: Option<oneshot::Sender<()>>,
        admits_newcomers: bool,
    ) -> Result<Self, Error> {
        let failed = |error: io::Error| bind_error(addr, &error);
        let socket = socket(addr).map_err(failed)?;
        let local = socket.local_addr().map_err(failed)?;
        let (credentials, refusals) = (Arc::new(Credentials::of(identity)?), Arc::<Refusals>::default());
        let versions: Vec<Vec<u8>> = versions.iter().map(|version| version.to_vec()).collect();
        let configs = configs(identity, (&credentials, &refusals), &versions, admits_newcomers)?;
        trust_only(&refusals, identity);
        let config = endpoint_config(identity).map_err(failed)?;
        let driver = Arc::new(Driver::new(handle.clone()));
        let first = Some((*configs.server.remote).clone());
        let quinn = {
            let _inside = handle.enter();
            quinn::Endpoint::new(config, first, socket, driver).map_err(failed)?
        };
        let buffers = Pool::new(REUSED_BYTES_MIN, POOLED_BYTES_MAX);
        let (standing, configs) = (Arc::default(), RwLock::new(Arc::new(configs)));
        Ok(Self {
            quinn,
            local,
            credentials,
            refusals,
            standing,
            configs,
            versions,
            admits_newcomers,
            buffers,
            handle,
            _stop: stop,
        })
    }

    /// Shows another identity of this node from now on. What is newer of the CAs that are trusted stays.
    ///
    /// # Errors
    /// [`Error::Identity`] when it is somebody else's.
    pub(super) fn replace_identity(&self, identity: &Identity) -> Result<(), Error> {
        let mut configs = self.configs.write();
        let own = self.credentials.identity();
        let is_behind = identity.trust().version < own.trust().version;
        let identity = if is_behind { identity.trusting(own.trust())? } else { identity.clone() };
        self.show(&mut configs, &identity)
    }

    /// Trusts other CAs from now on, if they are of a newer version. Returns the identity if it has changed.
    ///
    /// # Errors
    /// [`Error::Identity`] when the CAs cannot be used.
    pub(super) fn trust(&self, trust: &Trust) -> Result<Option<Identity>, Error> {
        let mut configs = self.configs.write();
        let own = self.credentials.identity();
        if trust.version <= own.trust().version || trust.cluster != own.cluster_id() {
            return Ok(None);
        }
        let identity = own.trusting(trust)?;
        self.show(&mut configs, &identity)?;
        Ok(Some(identity))
    }

    fn show(&self, configs: &mut Arc<Configs>, identity: &Identity) -> Result<(), Error> {
        if identity.authorities() != self.credentials.identity().authorities() {
            let shared = (&self.credentials, &self.refusals);
            *configs = Arc::new(self::configs(identity, shared, &self.versions, self.admits_newcomers)?);
        }
        self.credentials.replace(identity)?;
        trust_only(&self.refusals, identity);
        Ok(())
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(super) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    pub(super) fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn buffers(&self) -> Arc<Pool> {
        self.buffers.clone()
    }

    pub(super) fn connect(&self, addr: SocketAddr) -> Result<quinn::Connecting, quinn::ConnectError> {
        let configs = self.configs.read().clone();
        let client = &configs.client;
        let config = if addr.ip().to_canonical().is_loopback() { &client.loopback } else { &client.remote };
        self.quinn.connect_with(config.clone(), addr, SERVER_NAME)
    }

    pub(super) async fn accept(&self) -> Option<quinn::Incoming> {
        self.quinn.accept().await
    }

    pub(super) fn server_config(&self, remote: SocketAddr) -> Arc<quinn::ServerConfig> {
        let configs = self.configs.read().clone();
        let configs = &configs.server;
        if remote.ip().to_canonical().is_loopback() { configs.loopback.clone() } else { configs.remote.clone() }
    }

    pub(super) async fn close(&self) {
        self.quinn.close(VarInt::from_u32(0), b"closed");
        // Bounded: a peer that is gone does not confirm.
        let _ = tokio::time::timeout(Duration::from_millis(500), self.quinn.wait_idle()).await;
    }
}

fn bind_error(addr: SocketAddr, error: &io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses it: stop that one, or choose another port",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address: check `listen`",
        io::ErrorKind::PermissionDenied => "ports below 1024 need root",
        _ => "check `listen`",
    };
    Error::Bind { addr: addr.to_string(), reason: format!("{error}: {hint}") }
}

/// A socket with large buffers, beyond the system's limit if the process is root. Waits up to a
/// second for a port that a killed daemon still holds.
fn socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::DGRAM, None)?;
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    crate::sys::force_buffers(&socket, SOCKET_BUFFER_BYTES);
    let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    crate::sys::after_a_kill(|| socket.bind(&addr.into()), is_taken)?;
    Ok(socket.into())
}

/// Settings of the socket.
///
/// Reset tokens derive from the identity's key, not from chance: a daemon that was killed and started again answers
/// packets of its forgotten connections with a reset (RFC 9000 §10.3) that the peer believes, so the peer reconnects at
/// once rather than after the idle timeout.
fn endpoint_config(identity: &Identity) -> io::Result<quinn::EndpointConfig> {
    let secret = identity.derive_key("surf 2026 QUIC stateless reset");
    let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey(secret)));
    config.cid_generator(|| Box::new(RandomIds));
    config.max_udp_payload_size(LOOPBACK_MTU).map_err(io::Error::other)?;
    Ok(config)
}

/// Connection ids that any start of this daemon accepts as its own; quinn's default answers only ids of its present
/// start with a reset. That a stranger can provoke resets does no harm: each is smaller than what provoked it, and
/// quinn limits their rate.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Key of reset tokens: keyed BLAKE3, which is a MAC.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        // Compares in constant time.
        if blake3::keyed_hash(&self.0, data) == signature { Ok(()) } else { Err(CryptoError) }
    }
}

pub(super) fn transport(loopback: bool) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .datagram_receive_buffer_size(None);
    if loopback {
        config.initial_mtu(LOOPBACK_MTU).min_mtu(LOOPBACK_MTU).mtu_discovery_config(None);
        // The default assumes 333 ms: the first lost packet on loopback would wait for that.
        config.initial_rtt(Duration::from_millis(5));
        // Ten datagrams (RFC 9002 §7.2). quinn's default is for datagrams of 1,200 bytes: one of these would not fit, so that
        // the first packets, and a close among them, would wait for probes, which a connection that is closed sends none of.
        let mut congestion = CubicConfig::default();
        congestion.initial_window(10 * u64::from(LOOPBACK_MTU));
        config.congestion_controller_factory(Arc::new(congestion));
    } else {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(LOOPBACK_MTU);
        config.mtu_discovery_config(Some(discovery));
    }
    config
}

/// Refuses from now on what is below no CA that is trusted, if another one was ever brought in.
fn trust_only(refusals: &Refusals, identity: &Identity) {
    if identity.trust().version > 0 {
        refusals.trust_only(identity.trust().ids());
    }
}

fn configs(
    identity: &Identity,
    shared: (&Arc<Credentials>, &Arc<Refusals>),
    versions: &[Vec<u8>],
    admits_newcomers: bool,
) -> Result<Configs, Error> {
    let client = client_configs(identity, shared, versions)?;
    let server = server_configs(identity, shared.0, versions, admits_newcomers)?;
    Ok(Configs { client, server })
}

fn client_configs(
    identity: &Identity,
    (credentials, refusals): (&Arc<Credentials>, &Arc<Refusals>),
    versions: &[Vec<u8>],
) -> Result<ClientConfigs, Error> {
    let verifier = ServerVerifier::new(identity.roots()?, provider()).map_err(tls_error)?.refusing(refusals.clone());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credentials.clone());
    tls.alpn_protocols = versions.to_vec();
    let tls = Arc::new(QuicClientConfig::try_from(tls).map_err(tls_error)?);
    let config = |loopback| {
        let mut config = quinn::ClientConfig::new(tls.clone());
        config.transport_config(Arc::new(transport(loopback)));
        config
    };
    Ok(ClientConfigs { loopback: config(true), remote: config(false) })
}

fn server_configs(
    identity: &Identity,
    credentials: &Arc<Credentials>,
    versions: &[Vec<u8>],
    admits_newcomers: bool,
) -> Result<ServerConfigs, Error> {
    let verifier = ClientVerifier::new(identity.roots()?, provider()).map_err(tls_error)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(Arc::new(verifier.admitting_strangers(admits_newcomers)))
        .with_cert_resolver(credentials.clone());
    // Whoever comes again shows its certificate again. Strangers have none, and get nothing to keep.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.alpn_protocols = versions.to_vec();
    if admits_newcomers {
        tls.alpn_protocols.push(NEWCOMERS_ALPN.to_vec());
    }
    let tls = Arc::new(QuicServerConfig::try_from(tls).map_err(tls_error)?);
    let config = |loopback| {
        let mut config = quinn::ServerConfig::with_crypto(tls.clone());
        let mut transport = transport(loopback);
        if admits_newcomers {
            transport.receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES));
            transport.max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS_MAX));
        }
        config.transport_config(Arc::new(transport));
        Arc::new(config)
    };
    Ok(ServerConfigs { loopback: config(true), remote: config(false) })
}

/// Returns whether a connection is a newcomer's. It may ask for nothing but a certificate, even if it has shown one.
pub(super) fn is_newcomer(connection: &quinn::Connection) -> bool {
    let agreed = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    agreed.is_some_and(|agreed| agreed.protocol.as_deref() == Some(NEWCOMERS_ALPN))
}

/// Gives a peer that has shown its certificate the room that it may use.
pub(super) fn set_full_windows(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
}
