//! Certificates that are renewed, that end, or are revoked while their holders are connected.

use super::{Endpoint, Incoming, ServerHandle, Service};
use crate::Error;
use crate::attr::Timestamp;
use crate::cert::Term;
use crate::issuer::{IssuerKey, NewKey, SigningRequest};
use crate::revoked::{Revocations, Revoked};
use crate::tls::{ClusterCa, Identity, PeerIdentity, Role, Subject};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

const LIMIT: Duration = Duration::from_secs(20);

/// Answers with the second at which the caller's certificate ends, once it may.
struct Says {
    may: Semaphore,
    asked: AtomicUsize,
    refused: AtomicUsize,
}

impl Service for Says {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    fn refused(&self, _addr: SocketAddr, subject: &Subject) {
        assert_eq!(subject.name, "c");
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    async fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, request: Incoming) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let _ = self.may.acquire().await;
        request.respond(&peer.certificate.ends.secs, &[]).await;
    }
}

struct Pair {
    ca: ClusterCa,
    issuer: IssuerKey,
    key: NewKey,
    service: Arc<Says>,
    server: Endpoint,
    _serving: ServerHandle,
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl Pair {
    fn new() -> Self {
        let ca = ClusterCa::create("t").unwrap();
        let issuer = IssuerKey::create(&ca, "m", &[Role::Client]).unwrap();
        let server = Endpoint::bind(any(), &ca.issue(&Subject::new(Role::Metad, "m")).unwrap()).unwrap();
        let service =
            Arc::new(Says { may: Semaphore::new(0), asked: AtomicUsize::default(), refused: AtomicUsize::default() });
        let serving = server.serve(service.clone(), &Handle::current());
        Self { ca, issuer, key: NewKey::generate().unwrap(), service, server, _serving: serving }
    }

    /// The client's identity, which ends so many seconds from now.
    fn client(&self, ends_in: i64) -> Identity {
        let ends = Timestamp { secs: Timestamp::now().secs + ends_in, nanos: 0 };
        let request = SigningRequest::decode(&self.key.request().unwrap()).unwrap();
        let term = Term { issued: Timestamp::now(), ends: Some(ends) };
        let cert = self.issuer.sign(&request, &Subject::new(Role::Client, "c"), &term).unwrap();
        self.key.identity(self.server.identity().ca(), &cert, self.issuer.cert()).unwrap()
    }

    async fn ask(&self, client: &Endpoint) -> Result<i64, Error> {
        Ok(client.peer(self.server.local_addr(), Role::Metad).request(&(), &[], LIMIT).await?.0)
    }

    async fn until_asked(&self, count: usize) {
        let started = Instant::now();
        while self.service.asked.load(Ordering::Relaxed) < count {
            assert!(started.elapsed() < LIMIT, "nobody asks");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_identity_is_shown_without_a_restart_and_requests_under_way_are_answered() {
    let pair = Pair::new();
    let (first, second) = (pair.client(1_000), pair.client(2_000));
    let client = Endpoint::bind(any(), &first).unwrap();
    let slow = async { pair.ask(&client).await.unwrap() };
    let renews = async {
        pair.until_asked(1).await;
        client.set_identity(&second).unwrap();
        pair.service.may.add_permits(2);
        pair.ask(&client).await.unwrap()
    };
    let (before, after) = tokio::join!(slow, renews);
    assert_eq!((before, after), (first.certificate().ends.secs, second.certificate().ends.secs));
    let foreign = ClusterCa::create("t").unwrap().issue(&Subject::new(Role::Client, "c")).unwrap();
    assert!(client.set_identity(&foreign).is_err());
    let other = pair.ca.issue(&Subject::new(Role::Client, "d")).unwrap();
    assert!(client.set_identity(&other).is_err(), "somebody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_requests_under_way_and_whoever_comes_again_and_again_is_refused_as_often() {
    let pair = Pair::new();
    let client = Endpoint::bind(any(), &pair.client(1_000)).unwrap();
    let key = pair.client(1).certificate().key;
    let slow = async { pair.ask(&client).await };
    let revokes = async {
        pair.until_asked(1).await;
        assert!(pair.server.revoke(&Revocations { version: 1, list: vec![Revoked::Key(key)] }));
        assert!(!pair.server.revoke(&Revocations { version: 1, list: Vec::new() }), "it is not newer");
    };
    let (ended, ()) = tokio::join!(slow, revokes);
    assert!(matches!(ended, Err(Error::Revoked { .. })), "{ended:?}");
    for count in 1..=5 {
        let again = Endpoint::bind(any(), &pair.client(1_000)).unwrap();
        let refused = pair.ask(&again).await;
        assert!(matches!(refused, Err(Error::Revoked { .. })), "{refused:?}");
        assert_eq!(pair.service.refused.load(Ordering::Relaxed), count);
    }
    assert_eq!(pair.service.asked.load(Ordering::Relaxed), 1, "none of them was heard");
    // A later list without it.
    pair.server.revoke(&Revocations { version: 2, list: Vec::new() });
    pair.service.may.add_permits(1);
    let again = Endpoint::bind(any(), &pair.client(1_000)).unwrap();
    assert!(pair.ask(&again).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_revoked_is_left_and_not_called_again() {
    let pair = Pair::new();
    pair.service.may.add_permits(10);
    let client = Endpoint::bind(any(), &pair.client(1_000)).unwrap();
    assert!(pair.ask(&client).await.is_ok());
    let until = Timestamp::now();
    let list = vec![Revoked::Name { role: Role::Metad, name: "m".to_owned(), until }];
    client.revoke(&Revocations { version: 1, list });
    for _ in 0..2 {
        let refused = pair.ask(&client).await.unwrap_err();
        assert!(matches!(refused, Error::NotSent { .. }), "{refused}");
    }
    assert_eq!(pair.service.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_admits_nobody_without_a_certificate_refuses_one_that_has_ended() {
    let pair = Pair::new();
    let client = Endpoint::bind(any(), &pair.client(-1)).unwrap();
    let refused = pair.ask(&client).await;
    assert!(matches!(refused, Err(Error::Ended { .. })), "{refused:?}");
    assert_eq!(pair.service.asked.load(Ordering::Relaxed), 0);
}
