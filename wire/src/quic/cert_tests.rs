//! Certificates that are renewed, that end, or are revoked while their holders are connected.

use super::renew::{RenewError, Renewing, adopt, is_due, keep_renewed, renew};
use super::{Endpoint, Incoming, ServerHandle, Service};
use crate::Error;
use crate::attr::Timestamp;
use crate::cert::{KeyId, Term};
use crate::ids::MetadId;
use crate::issuer::{IssuerKey, NewKey, SigningRequest};
use crate::message::cert::{RenewRefusal, RenewReply};
use crate::message::meta::{MetaReply, MetaRequest, MetaRequestKind, Redirect};
use crate::revoked::{Revocations, Revoked};
use crate::tls::{ClusterCa, Identity, PeerIdentity, Role, Subject};
use parking_lot::Mutex;
use std::collections::BTreeSet;
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

    fn refused(&self, _addr: SocketAddr, subject: &Subject, _reason: &str) {
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

/// Its certificate does not say that it may (RFC 5280 §4.2.1.12).
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_poses_as_a_server_is_left_in_the_handshake() {
    let pair = Pair::new();
    pair.service.may.add_permits(10);
    let poses = Endpoint::bind(any(), &pair.client(1_000)).unwrap();
    let _serving = poses.serve(pair.service.clone(), &Handle::current());
    let caller = Endpoint::bind(any(), &pair.client(1_000)).unwrap();
    for role in [Role::Metad, Role::Blockd, Role::Client] {
        let refused = caller.peer(poses.local_addr(), role).request::<_, i64>(&(), &[], LIMIT).await;
        assert!(matches!(refused, Err(Error::NotSent { .. })), "{refused:?}");
    }
    assert_eq!(pair.service.asked.load(Ordering::Relaxed), 0);
    assert!(pair.ask(&caller).await.is_ok());
}

/// A metad that renews with what it is given, names others, and may refuse some.
struct Renews {
    with: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    nodes: Vec<SocketAddr>,
    /// Whether it serves those alone whose certificates this issuer has not signed.
    distrusts: Option<KeyId>,
    renewals: AtomicUsize,
}

impl Service for Renews {
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), Error> {
        if self.distrusts.is_some() && self.distrusts == peer.certificate.issuer {
            return Err(Error::Malformed("this is a test".to_owned()));
        }
        Ok(())
    }

    fn serves_ended(&self, request: &Incoming) -> bool {
        matches!(request.kind(), Ok(MetaRequestKind::Renew))
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, request: Incoming) {
        let reply = match request.decode::<MetaRequest>().unwrap() {
            MetaRequest::Renew => {
                self.renewals.fetch_add(1, Ordering::Relaxed);
                match self.with.lock().clone() {
                    Some((certificate, issuer)) => MetaReply::Renewal(RenewReply::Renewed { certificate, issuer }),
                    None => MetaReply::Renewal(RenewReply::Refused(RenewRefusal::NoIssuer(MetadId(1)))),
                }
            }
            _ => {
                let nodes = self.nodes.iter().map(|addr| (MetadId(1), *addr)).collect();
                MetaReply::NotLeader(Redirect { nodes, ..Redirect::default() })
            }
        };
        request.respond(&reply, &[]).await;
    }
}

/// Keeps nothing, and asks these metads.
struct Renewer {
    endpoint: Endpoint,
    metads: Vec<SocketAddr>,
    kept: AtomicUsize,
    /// How often the disk is full.
    full: AtomicUsize,
}

impl Renewing for Renewer {
    fn metads(&self) -> Vec<SocketAddr> {
        self.metads.clone()
    }

    async fn renew(&self) -> Result<Identity, RenewError> {
        renew(&self.endpoint, &self.metads).await
    }

    fn keep(&self, _identity: &Identity) -> Result<(), Error> {
        if self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |times| times.checked_sub(1)).is_ok() {
            return Err(Error::Identity { file: "x".to_owned(), reason: "no space left".to_owned() });
        }
        self.kept.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Metads {
    ca: ClusterCa,
    good: IssuerKey,
    bad: IssuerKey,
    key: NewKey,
}

impl Metads {
    fn new() -> Self {
        let ca = ClusterCa::create("t").unwrap();
        let issuer = || IssuerKey::create(&ca, "m", &[Role::Client]).unwrap();
        Self { good: issuer(), bad: issuer(), ca, key: NewKey::generate().unwrap() }
    }

    fn signed(&self, issuer: &IssuerKey, ends_in: i64) -> (Vec<u8>, Vec<u8>) {
        let ends = Timestamp { secs: Timestamp::now().secs + ends_in, nanos: 0 };
        let request = SigningRequest::decode(&self.key.request().unwrap()).unwrap();
        let term = Term { issued: Timestamp::now().shifted(-1_000_000_000_000), ends: Some(ends) };
        (issuer.sign(&request, &Subject::new(Role::Client, "c"), &term).unwrap(), issuer.cert().to_vec())
    }

    fn client(&self, ends_in: i64) -> Endpoint {
        let (cert, issuer) = self.signed(&self.good, ends_in);
        let ca = self.ca.issue(&Subject::new(Role::Client, "any")).unwrap().ca().to_vec();
        Endpoint::bind(any(), &self.key.identity(&ca, &cert, &issuer).unwrap()).unwrap()
    }

    fn serve(
        &self,
        with: Option<(Vec<u8>, Vec<u8>)>,
        nodes: Vec<SocketAddr>,
        distrusts: Option<KeyId>,
    ) -> (SocketAddr, Arc<Renews>, (Endpoint, ServerHandle)) {
        let identity = self.ca.issue(&Subject::new(Role::Metad, "m")).unwrap();
        let endpoint = Endpoint::bind_for_newcomers(any(), &identity, Handle::current()).unwrap();
        let service = Arc::new(Renews { with: Mutex::new(with), nodes, distrusts, renewals: AtomicUsize::default() });
        let serving = endpoint.serve(service.clone(), &Handle::current());
        (endpoint.local_addr(), service, (endpoint, serving))
    }

    fn renewer(&self, ends_in: i64, metads: Vec<SocketAddr>) -> Arc<Renewer> {
        Arc::new(Renewer {
            endpoint: self.client(ends_in),
            metads,
            kept: AtomicUsize::default(),
            full: AtomicUsize::default(),
        })
    }
}

#[test]
fn certificates_are_due_when_half_of_their_life_is_left_or_a_little_earlier_and_not_all_at_once() {
    let metads = Metads::new();
    let ca = metads.ca.cert().unwrap();
    let issued = Timestamp { secs: Timestamp::now().secs, nanos: 0 };
    let term = Term { issued, ends: Some(Timestamp { secs: issued.secs + 1_000, nanos: 0 }) };
    let mut first_due = BTreeSet::new();
    for _ in 0..16 {
        let key = NewKey::generate().unwrap();
        let request = SigningRequest::decode(&key.request().unwrap()).unwrap();
        let cert = metads.good.sign(&request, &Subject::new(Role::Client, "c"), &term).unwrap();
        let identity = key.identity(&ca, &cert, metads.good.cert()).unwrap();
        let (issued, ends) = (identity.certificate().issued, identity.certificate().ends);
        // In thousandths of its life.
        let is_due_at = |part: i128| is_due(&identity, issued.shifted(ends.nanos_since(issued) * part / 1_000));
        let first = (0..1_000).find(|part| is_due_at(*part)).unwrap();
        assert!((400..=501).contains(&first), "{first}");
        assert!((first..1_100).step_by(50).all(is_due_at), "it stays due");
        first_due.insert(first);
    }
    assert!(first_due.len() > 1, "all come at the same time");
}

async fn renewed(renewer: &Arc<Renewer>) -> Result<(), RenewError> {
    adopt(&renewer.endpoint, renewer, renewer.renew().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_identity_that_nobody_accepts_does_not_take_the_place_of_a_good_one() {
    let metads = Metads::new();
    let bad = metads.signed(&metads.bad, 2_000);
    // The first one signs with an issuer that was revoked.
    let (first, service, _first) = metads.serve(Some(bad.clone()), Vec::new(), Some(metads.bad.key()));
    let renewer = metads.renewer(1_000, vec![first]);
    let before = renewer.endpoint.identity().certificate().clone();
    let refused = renewed(&renewer).await;
    assert!(matches!(refused, Err(RenewError::NotAccepted(Error::Refused { .. }))), "{refused:?}");
    assert_eq!(renewer.kept.load(Ordering::Relaxed), 0, "what is on disk stays, too");
    assert_eq!(*renewer.endpoint.identity().certificate(), before);
    // Nor does one that cannot be tried out, nor one that ends no later.
    let good = metads.signed(&metads.good, 2_000);
    let alone = Arc::new(Renewer {
        endpoint: metads.client(1_000),
        metads: Vec::new(),
        kept: AtomicUsize::default(),
        full: AtomicUsize::default(),
    });
    let untried = alone.endpoint.identity().renewed(&good.0, &good.1).unwrap();
    assert!(matches!(adopt(&alone.endpoint, &alone, untried).await, Err(RenewError::NotAccepted(_))));
    *service.with.lock() = Some(metads.signed(&metads.good, 900));
    assert!(matches!(renewed(&renewer).await, Err(RenewError::NotLater)));
    *service.with.lock() = Some(good);
    renewed(&renewer).await.unwrap();
    assert_eq!(renewer.kept.load(Ordering::Relaxed), 1);
    assert!(renewer.endpoint.identity().certificate().ends > before.ends);
    let asked: (MetaReply, _) =
        renewer.endpoint.peer(first, Role::Metad).request(&MetaRequest::WhoLeads, &[], LIMIT).await.unwrap();
    assert_eq!(asked.0.kind_name(), "NotLeader");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_a_full_disk_did_not_take_is_written_once_there_is_room() {
    let metads = Metads::new();
    let (addr, service, _serving) = metads.serve(Some(metads.signed(&metads.good, 2_000)), Vec::new(), None);
    let renewer = metads.renewer(10, vec![addr]);
    renewer.full.store(2, Ordering::Relaxed);
    let keeping = tokio::spawn(keep_renewed(renewer.endpoint.clone(), renewer.clone()));
    let started = Instant::now();
    while renewer.kept.load(Ordering::Relaxed) == 0 {
        assert!(started.elapsed() < LIMIT, "it is not written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((renewer.full.load(Ordering::Relaxed), service.renewals.load(Ordering::Relaxed)), (0, 1));
    keeping.abort();
}

/// Nobody but a metad that was taken over accepts what an issuer signs that was revoked.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_identity_that_one_metad_accepts_and_others_refuse_does_not_take_the_place_of_a_good_one() {
    let metads = Metads::new();
    let bad = Some(metads.signed(&metads.bad, 2_000));
    let (liar, _, _liar) = metads.serve(bad, Vec::new(), None);
    let honest = [(); 2].map(|()| metads.serve(None, Vec::new(), Some(metads.bad.key())));
    let all = [liar, honest[0].0, honest[1].0];
    let renewer = metads.renewer(1_000, all.to_vec());
    let before = renewer.endpoint.identity().certificate().clone();
    let refused = renewed(&renewer).await;
    assert!(matches!(refused, Err(RenewError::NotAccepted(Error::Refused { .. }))), "{refused:?}");
    assert_eq!(*renewer.endpoint.identity().certificate(), before);
    assert_eq!(renewer.kept.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_at_metads_that_the_node_has_learned_of_when_it_was_told_of_none_that_is_left() {
    let metads = Metads::new();
    let (signs, _, _signs) = metads.serve(Some(metads.signed(&metads.good, 2_000)), Vec::new(), None);
    let (names, _, _names) = metads.serve(None, vec![signs], None);
    let gone = "127.0.0.1:1".parse().unwrap();
    // The node has talked to one that it has heard of, which cannot sign, and names another one.
    let renewer = metads.renewer(1_000, vec![gone]);
    let refused = renewed(&renewer).await;
    assert!(matches!(refused, Err(RenewError::Unanswered(_))), "{refused:?}");
    let heard_of = renewer.endpoint.peer(names, Role::Metad);
    heard_of.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.unwrap();
    renewed(&renewer).await.unwrap();
    assert!(renewer.endpoint.identity().certificate().ends > Timestamp::now().shifted(1_500_000_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_ended_by_one_clock_alone_is_asked_about_now_and_then() {
    let metads = Metads::new();
    // What it signs has ended by the node's clock, and is accepted nowhere.
    let (addr, service, _serving) = metads.serve(Some(metads.signed(&metads.good, -5)), Vec::new(), None);
    let renewer = metads.renewer(-10, vec![addr]);
    let keeping = tokio::spawn(keep_renewed(renewer.endpoint.clone(), renewer.clone()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tried = service.renewals.load(Ordering::Relaxed);
    assert!((1..20).contains(&tried), "{tried} times");
    assert_eq!(renewer.kept.load(Ordering::Relaxed), 0);
    *service.with.lock() = Some(metads.signed(&metads.good, 2_000));
    let started = Instant::now();
    while renewer.kept.load(Ordering::Relaxed) == 0 {
        assert!(started.elapsed() < LIMIT, "not renewed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hears_of_the_end_of_its_certificate_from_its_peers_whatever_its_own_clock_says() {
    let pair = Pair::new();
    let client = Endpoint::bind(any(), &pair.client(2)).unwrap();
    let ended = pair.ask(&client).await;
    assert!(matches!(ended, Err(Error::Ended { .. })), "{ended:?}");
    tokio::time::timeout(LIMIT, client.certificate_ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_came_with_an_ended_certificate_may_be_sent_again_though_it_was_renewed_meanwhile() {
    let metads = Metads::new();
    let (addr, _, _serving) = metads.serve(None, Vec::new(), None);
    let client = metads.client(-10);
    let peer = client.peer(addr, Role::Metad);
    let request = peer.open_request(&MetaRequest::WhoLeads, 0, LIMIT).await.unwrap();
    let (cert, issuer) = metads.signed(&metads.good, 1_000);
    client.set_identity(&client.identity().renewed(&cert, &issuer).unwrap()).unwrap();
    let refused = request.finish::<MetaReply>().await;
    assert!(matches!(refused, Err(Error::Ended { .. })), "{refused:?}");
    assert!(peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.is_ok());
}
