//! Strangers at the door, and newcomers who look for the right one.

use super::credentials::{NEWCOMERS_ALPN, provider};
use super::enroll::{EnrollError, enroll};
use super::socket::{ALPN, transport};
use super::strangers::STRANGERS_PER_ADDRESS_MAX;
use super::stream::read_exactly;
use super::{Endpoint, Incoming, ServerHandle, Service};
use crate::attr::Timestamp;
use crate::cert::Term;
use crate::frame::{REPLY_HEADER, RequestHeader};
use crate::ids::TokenId;
use crate::issuer::{IssuerKey, NewKey, SigningRequest};
use crate::leaf::SERVER_NAME;
use crate::limits::ENROLL_BYTES_MAX;
use crate::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use crate::message::meta::MetaRequest;
use crate::tls::{ClusterCa, PeerIdentity, Role, Subject};
use crate::token::{JoinToken, Secret, hash_of};
use crate::{Error, codec};
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, NamedGroup, SignatureScheme};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Far above what anything here takes, but the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A metad that gives everyone a certificate who knows a secret.
struct Issuing {
    issuer: IssuerKey,
    asked: AtomicUsize,
    handled: AtomicUsize,
    subject: Mutex<Subject>,
    /// Requests of newcomers at once: now, and at most.
    together: Mutex<(usize, usize)>,
    /// Wrong secrets are answered while this is not locked.
    gate: tokio::sync::RwLock<()>,
    /// Who leads, unless it is this one.
    leader: Mutex<Option<SocketAddr>>,
    /// Why everybody is refused, if so.
    refuses: Mutex<Option<EnrollRefusal>>,
}

impl Service for Issuing {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, request: Incoming) {
        self.handled.fetch_add(1, Ordering::Relaxed);
        request.respond(&(), &[]).await;
    }

    async fn enroll(self: Arc<Self>, _addr: SocketAddr, request: EnrollRequest) -> EnrollReply {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(leader) = *self.leader.lock() {
            return EnrollReply::NotLeader { leader: Some(leader) };
        }
        let now = Timestamp::now();
        if let Some(why) = self.refuses.lock().clone() {
            return EnrollReply::Refused { why, now };
        }
        if request.secret.hash() != secret().hash() {
            let _inside = Inside::enter(&self);
            let _open = self.gate.read().await;
            return EnrollReply::Refused { why: EnrollRefusal::Unknown, now };
        }
        let signing = SigningRequest::decode(&request.request).unwrap();
        let certificate = self.issuer.sign(&signing, &self.subject.lock(), &Term::lasting()).unwrap();
        let issuer = self.issuer.cert().to_vec();
        EnrollReply::Issued { cluster: "t".to_owned(), certificate, issuer, metads: Vec::new(), steps: Vec::new() }
    }
}

/// A request under way.
struct Inside<'a>(&'a Issuing);

impl<'a> Inside<'a> {
    fn enter(service: &'a Issuing) -> Self {
        let mut together = service.together.lock();
        *together = (together.0 + 1, together.1.max(together.0 + 1));
        Self(service)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.together.lock().0 -= 1;
    }
}

fn secret() -> Secret {
    Secret([7; 32])
}

struct Door {
    ca: ClusterCa,
    service: Arc<Issuing>,
    endpoint: Endpoint,
    _serving: ServerHandle,
}

impl Door {
    /// Opens a door whose keeper has a certificate of this role.
    fn open(keeper: Role) -> Self {
        Self::open_of(ClusterCa::create("t").unwrap(), keeper)
    }

    /// Opens another door of the same cluster.
    fn open_beside(&self) -> Self {
        let ca = format!("{}{}", self.ca.cert_pem(), self.ca.key_pem());
        Self::open_of(ClusterCa::from_pem(Path::new("ca"), &ca).unwrap(), Role::Metad)
    }

    fn open_of(ca: ClusterCa, keeper: Role) -> Self {
        let issuer = IssuerKey::create(&ca, "i", &[Role::Client, Role::Metad, Role::Blockd]).unwrap();
        let service = Arc::new(Issuing {
            issuer,
            asked: AtomicUsize::new(0),
            handled: AtomicUsize::new(0),
            subject: Mutex::new(Subject::new(Role::Client, "laptop")),
            together: Mutex::new((0, 0)),
            gate: tokio::sync::RwLock::new(()),
            leader: Mutex::new(None),
            refuses: Mutex::new(None),
        });
        let identity = ca.issue(&Subject::new(keeper, "keeper")).unwrap();
        let endpoint =
            Endpoint::bind_for_newcomers("127.0.0.1:0".parse().unwrap(), &identity, Handle::current()).unwrap();
        let serving = endpoint.serve(service.clone(), &Handle::current());
        Self { ca, service, endpoint, _serving: serving }
    }

    fn token(&self) -> JoinToken {
        JoinToken {
            cluster: "t".to_owned(),
            metads: vec![self.endpoint.local_addr()],
            ca: hash_of(self.endpoint.identity().ca()),
            role: Role::Client,
            id: TokenId(1),
            secret: secret(),
        }
    }

    /// Checks that somebody with a certificate is served.
    async fn assert_serves(&self) {
        let identity = self.ca.issue(&Subject::new(Role::Client, "c")).unwrap();
        let client = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        let peer = client.peer(self.endpoint.local_addr(), self.endpoint.identity().subject().role);
        // More at once than a stranger may have under way.
        let large = vec![0_u8; 10_000];
        let ask = || peer.request::<_, ()>(&large, &[], LIMIT);
        futures::future::try_join_all((0..10).map(|_| ask())).await.unwrap();
    }
}

/// Checks that a metad answers a client.
async fn assert_answers(client: &Endpoint, metad: &Endpoint) {
    let peer = client.peer(metad.local_addr(), Role::Metad);
    peer.request::<_, ()>(&(), &[], LIMIT).await.unwrap();
}

/// Believes every server: strangers do as they like.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Connects without a certificate.
fn stranger(endpoint: &quinn::Endpoint, to: SocketAddr, alpn: &[u8]) -> quinn::Connecting {
    connect(endpoint, to, credulous(alpn))
}

fn credulous(alpn: &[u8]) -> rustls::ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls
}

fn connect(endpoint: &quinn::Endpoint, to: SocketAddr, tls: rustls::ClientConfig) -> quinn::Connecting {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport(true)));
    endpoint.connect_with(config, to, SERVER_NAME).unwrap()
}

fn endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Sends bytes on a stream, and returns whether there was an answer.
async fn is_answered(connection: &quinn::Connection, bytes: &[u8]) -> bool {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(bytes).await.ok()?;
        send.finish().ok()?;
        read_exactly(&mut recv, REPLY_HEADER).await.ok()
    };
    timeout(LIMIT, exchange).await.expect("the connection ends").is_some()
}

fn framed(head: &[u8], payload_len: u32) -> Vec<u8> {
    let header = RequestHeader { deadline_ms: 5_000, request_id: 1, head_len: head.len() as u32, payload_len };
    [&header.encode()[..], head].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_alone_is_enough_to_get_an_identity_that_is_accepted() {
    let door = Door::open(Role::Metad);
    let token: JoinToken = door.token().to_text().parse().unwrap();
    let key = NewKey::generate().unwrap();
    let bundle = enroll(&token, &key, "host", LIMIT).await.unwrap();
    assert_eq!(bundle.identity.subject().name, "laptop");
    let client = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &bundle.identity).unwrap();
    assert_answers(&client, &door.endpoint).await;
    door.assert_serves().await;
    // A daemon that an issuer has certified is believed by clients, too.
    *door.service.subject.lock() = Subject::new(Role::Metad, "metad-2");
    let metad = enroll(&JoinToken { role: Role::Metad, ..token }, &key, "host", LIMIT).await.unwrap();
    let second = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &metad.identity).unwrap();
    let _serving = second.serve(door.service.clone(), &Handle::current());
    assert_answers(&client, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_learns_the_secret_who_has_not_shown_the_ca_of_the_token_and_the_role_metad() {
    let (door, other, blockd) = (Door::open(Role::Metad), Door::open(Role::Metad), Door::open(Role::Blockd));
    let key = NewKey::generate().unwrap();
    let elsewhere = JoinToken { metads: vec![other.endpoint.local_addr()], ..door.token() };
    for token in [elsewhere, blockd.token()] {
        let error = enroll(&token, &key, "host", LIMIT).await.unwrap_err();
        assert!(matches!(error, EnrollError::WrongCluster { .. }), "{error}");
    }
    for door in [&other, &blockd] {
        assert_eq!(door.service.asked.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_without_a_door_says_so_and_a_role_that_was_not_asked_for_is_not_taken() {
    let door = Door::open(Role::Metad);
    let key = NewKey::generate().unwrap();
    let identity = door.ca.issue(&Subject::new(Role::Metad, "m")).unwrap();
    let closed = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
    let _serving = closed.serve(door.service.clone(), &Handle::current());
    let token = JoinToken { metads: vec![closed.local_addr()], ..door.token() };
    let error = enroll(&token, &key, "host", LIMIT).await.unwrap_err();
    assert!(matches!(error, EnrollError::NoNewcomers { .. }), "{error}");
    *door.service.subject.lock() = Subject::new(Role::Blockd, "b");
    let error = enroll(&door.token(), &key, "host", LIMIT).await.unwrap_err();
    assert!(matches!(error, EnrollError::Unusable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_admits_nobody_is_named_without_waiting_for_another() {
    let door = Door::open(Role::Metad);
    let closed = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &door.endpoint.identity()).unwrap();
    let _serving = closed.serve(door.service.clone(), &Handle::current());
    *door.service.leader.lock() = Some(closed.local_addr());
    let error = timeout(LIMIT / 2, enroll(&door.token(), &NewKey::generate().unwrap(), "host", LIMIT)).await;
    let error = error.expect("it is not tried again").unwrap_err();
    assert!(matches!(error, EnrollError::NoNewcomers { leads: true, .. }), "{error}");
    assert!(error.to_string().contains("surf cluster issuer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_refuses_does_not_keep_the_newcomer_from_the_next_one_and_its_reason_is_reported() {
    let right = Door::open(Role::Metad);
    let stale = right.open_beside();
    let key = NewKey::generate().unwrap();
    let nobody = stray();
    let asked = |metads: Vec<SocketAddr>| JoinToken { metads, ..right.token() };
    let (right_addr, stale_addr) = (right.endpoint.local_addr(), stale.endpoint.local_addr());
    *stale.service.refuses.lock() = Some(EnrollRefusal::UsedUp);
    enroll(&asked(vec![stale_addr, right_addr]), &key, "host", LIMIT).await.unwrap();
    for metads in [vec![stale_addr, nobody], vec![nobody, stale_addr]] {
        let error = enroll(&asked(metads), &key, "host", Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, EnrollError::Refused { why: EnrollRefusal::UsedUp, .. }), "{error}");
    }
}

/// Returns an address at which nobody answers.
fn stray() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_tickets_for_their_next_connection() {
    let door = Door::open(Role::Metad);
    let store = Arc::<Tickets>::default();
    let mut tls = credulous(NEWCOMERS_ALPN);
    tls.resumption = Resumption::store(store.clone());
    let endpoint = endpoint();
    let connection = connect(&endpoint, door.endpoint.local_addr(), tls).await.unwrap();
    let request = NewKey::generate().unwrap().request().unwrap();
    let request = EnrollRequest { token: TokenId(1), secret: secret(), request, host: String::new() };
    // Tickets come with the end of the handshake, before any answer.
    assert!(is_answered(&connection, &framed(&codec::encode(&request), 0)).await);
    assert_eq!(store.0.load(Ordering::Relaxed), 0);
}

/// Counts the tickets that a server gives.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_asks_for_anything_else_gets_no_answer_and_is_not_heard() {
    let door = Door::open(Role::Metad);
    let (endpoint, addr) = (endpoint(), door.endpoint.local_addr());
    let request = |host: String| {
        let key = NewKey::generate().unwrap();
        EnrollRequest { token: TokenId(1), secret: secret(), request: key.request().unwrap(), host }
    };
    let good = codec::encode(&request("host".to_owned()));
    let huge = codec::encode(&request("x".repeat(ENROLL_BYTES_MAX)));
    let other = codec::encode(&MetaRequest::WhoLeads);
    for bytes in [framed(&other, 0), framed(&good, 5), framed(&huge, 0), vec![0xff; 5_000], Vec::new()] {
        let connection = stranger(&endpoint, addr, NEWCOMERS_ALPN).await.unwrap();
        assert!(!is_answered(&connection, &bytes).await, "{} bytes", bytes.len());
    }
    // As a peer, who has to show a certificate.
    let connection = stranger(&endpoint, addr, ALPN[0]).await.unwrap();
    assert!(!is_answered(&connection, &framed(&other, 0)).await);
    assert_eq!((door.service.asked.load(Ordering::Relaxed), door.service.handled.load(Ordering::Relaxed)), (0, 0));
    // What was asked is good, and asked once in a connection.
    let connection = stranger(&endpoint, addr, NEWCOMERS_ALPN).await.unwrap();
    assert!(is_answered(&connection, &framed(&good, 0)).await);
    assert!(!is_answered(&connection, &framed(&good, 0)).await);
    assert_eq!(door.service.asked.load(Ordering::Relaxed), 1);
    door.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_strangers_at_once_are_bounded_and_keep_out_nobody_with_a_certificate() {
    let door = Door::open(Role::Metad);
    let addr = door.endpoint.local_addr();
    door.assert_serves().await;
    let closed = door.service.gate.write().await;
    let request = NewKey::generate().unwrap().request().unwrap();
    let guess = EnrollRequest { token: TokenId(1), secret: Secret([8; 32]), request, host: String::new() };
    let guess = Arc::new(framed(&codec::encode(&guess), 0));
    // They come from another address than the peers.
    let endpoint = quinn::Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut strangers = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (coming, guess) = (stranger(&endpoint, addr, NEWCOMERS_ALPN), guess.clone());
        strangers.spawn(async move {
            match timeout(Duration::from_secs(2), coming).await {
                Ok(Ok(connection)) => is_answered(&connection, &guess).await,
                _ => false,
            }
        });
    }
    let inside = || door.service.together.lock().0;
    let started = Instant::now();
    while inside() == 0 {
        assert!(started.elapsed() < LIMIT, "nobody gets in");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    door.assert_serves().await;
    drop(closed);
    while strangers.join_next().await.is_some() {}
    door.assert_serves().await;
    let (_, most) = *door.service.together.lock();
    assert!(most <= STRANGERS_PER_ADDRESS_MAX, "{most} of one address were served at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_out_secrets_is_soon_told_to_come_later() {
    let door = Door::open(Role::Metad);
    let key = NewKey::generate().unwrap();
    let wrong = JoinToken { secret: Secret([8; 32]), ..door.token() };
    let mut tried = 0;
    loop {
        match enroll(&wrong, &key, "host", Duration::ZERO).await.unwrap_err() {
            EnrollError::Refused { why: EnrollRefusal::Unknown, .. } => tried += 1,
            EnrollError::NotInTime(_) => break,
            other => panic!("{other}"),
        }
        assert!(tried < 20, "there is no bound");
    }
    assert!(tried >= 3, "{tried}");
    assert_eq!(door.service.asked.load(Ordering::Relaxed), tried);
}
