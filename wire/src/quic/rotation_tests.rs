//! A new CA takes the place of an older one, as nodes see it.

use super::renew::{RenewError, Renewing, keep_renewed, renew};
use super::{Endpoint, Incoming, ServerHandle, Service};
use crate::Error;
use crate::attr::Timestamp;
use crate::cert::{AuthorityId, Term};
use crate::issuer::IssuerKey;
use crate::message::cert::RenewReply;
use crate::message::meta::{MetaReply, MetaRequest, Redirect};
use crate::revoked::{Revocations, Revoked};
use crate::tls::{ClusterCa, Identity, PeerIdentity, Role, Subject};
use crate::trust::{SignedTrust, Trust};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

const LIMIT: Duration = Duration::from_secs(30);
const PROMPT: Duration = Duration::from_secs(1);

/// Two CAs of one cluster, and an operator of each.
struct Cas {
    old: ClusterCa,
    new: ClusterCa,
    issuer: IssuerKey,
    operators: [Identity; 2],
}

impl Cas {
    fn new() -> Self {
        let old = ClusterCa::create("t").unwrap();
        let new = ClusterCa::succeeding("t", old.cluster_id().unwrap()).unwrap();
        let issuer = IssuerKey::create(&new, "m", &[Role::Client, Role::Metad]).unwrap();
        let operator = |ca: &ClusterCa| ca.issue(&Subject::new(Role::Admin, "a")).unwrap();
        Self { operators: [operator(&old), operator(&new)], old, new, issuer }
    }

    fn trust(&self, version: u64, of: &[&ClusterCa]) -> Trust {
        let authorities = of.iter().map(|ca| ca.cert().unwrap()).collect();
        Trust { version, authorities, ..Trust::original(self.old.cluster_id().unwrap()) }
    }

    fn begun(&self) -> SignedTrust {
        self.operators[0].sign_trust(&self.trust(1, &[&self.old, &self.new]), Some(&self.operators[1])).unwrap()
    }

    fn finished(&self) -> SignedTrust {
        self.operators[1].sign_trust(&self.trust(2, &[&self.new]), None).unwrap()
    }

    /// Has the new issuer sign for an identity.
    fn signed(&self, identity: &Identity) -> (Vec<u8>, Vec<u8>) {
        let issuer = &self.issuer;
        let term =
            Term { issued: Timestamp::now(), ends: Some(Timestamp { secs: Timestamp::now().secs + 1_000, nanos: 0 }) };
        let cert = issuer.renew(identity.certificate(), identity.subject(), &term).unwrap();
        (cert, issuer.cert().to_vec())
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn metad(ca: &ClusterCa) -> Identity {
    ca.issue(&Subject::new(Role::Metad, "m")).unwrap()
}

fn client(ca: &ClusterCa) -> Identity {
    ca.issue(&Subject::new(Role::Client, "c")).unwrap()
}

/// A metad that signs with the new issuer, and hands these steps on.
struct Hands {
    cas: Arc<Cas>,
    steps: Mutex<Vec<SignedTrust>>,
    /// How often somebody has asked for them.
    asked: AtomicUsize,
    /// The CA of the certificate with which somebody has asked last.
    shown: Mutex<Option<AuthorityId>>,
}

impl Service for Hands {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, request: Incoming) {
        *self.shown.lock() = Some(peer.certificate.authority);
        let reply = match request.decode::<MetaRequest>() {
            Ok(MetaRequest::Trust { .. }) => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                MetaReply::Trust { steps: self.steps.lock().clone() }
            }
            Ok(MetaRequest::Renew) => {
                let term = Term {
                    issued: Timestamp::now(),
                    ends: Some(Timestamp { secs: Timestamp::now().secs + 1_000, nanos: 0 }),
                };
                let certificate = self.cas.issuer.renew(&peer.certificate, &peer.subject, &term).unwrap();
                let issuer = self.cas.issuer.cert().to_vec();
                MetaReply::Renewal(RenewReply::Renewed { certificate, issuer })
            }
            _ => MetaReply::NotLeader(Redirect::default()),
        };
        request.respond(&reply, &[]).await;
    }
}

fn serve(cas: &Arc<Cas>, identity: &Identity) -> (Endpoint, Arc<Hands>, ServerHandle) {
    let endpoint = Endpoint::bind_for_newcomers(any(), identity, Handle::current()).unwrap();
    let service = Arc::new(Hands {
        cas: cas.clone(),
        steps: Mutex::default(),
        asked: AtomicUsize::new(0),
        shown: Mutex::default(),
    });
    let serving = endpoint.serve(service.clone(), &Handle::current());
    (endpoint, service, serving)
}

async fn ask(endpoint: &Endpoint, server: &Endpoint) -> Result<(), Error> {
    let peer = endpoint.peer(server.local_addr(), Role::Metad);
    peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.map(|_| ())
}

#[test]
fn a_new_ca_is_believed_if_an_operator_of_a_trusted_one_has_signed_it_and_nobody_else() {
    let cas = Cas::new();
    let (old, new) = (vec![cas.old.cert().unwrap()], vec![cas.new.cert().unwrap()]);
    let begun = cas.begun();
    assert_eq!(begun.verified(&old).unwrap(), cas.trust(1, &[&cas.old, &cas.new]));
    // A newcomer knows the new one alone.
    assert!(begun.verified(&new).is_ok());
    let foreign = ClusterCa::create("t").unwrap();
    assert!(begun.verified(&[foreign.cert().unwrap()]).is_err());
    // Others of the cluster have no say, nor has an operator below an issuer of roles that are no operator's.
    for role in [Role::Client, Role::Metad, Role::Blockd] {
        let identity = cas.old.issue(&Subject::new(role, "x")).unwrap();
        let signed = identity.sign_trust(&cas.trust(1, &[&cas.old, &cas.new]), None).unwrap();
        assert!(signed.verified(&old).is_err(), "{role}");
    }
    let theirs = foreign.issue(&Subject::new(Role::Admin, "a")).unwrap();
    assert!(theirs.sign_trust(&cas.trust(1, &[&cas.old, &cas.new]), None).unwrap().verified(&old).is_err());
    // What was signed is what is said.
    let finished = crate::codec::encode(&cas.finished());
    let mut forged = crate::codec::encode(&cas.begun());
    let middle = forged.len() / 4;
    forged[middle] ^= 1;
    let forged = crate::codec::decode::<SignedTrust>(&forged);
    assert!(!forged.is_ok_and(|forged| forged.verified(&old).is_ok()));
    assert!(crate::codec::decode::<SignedTrust>(&finished).unwrap().verified(&old).is_err(), "the new one alone");
    // A CA of another cluster, and twice the same.
    for wrong in [cas.trust(1, &[&cas.old, &foreign]), cas.trust(1, &[&cas.old, &cas.old]), cas.trust(1, &[])] {
        assert!(wrong.check().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_list_of_what_is_revoked_follows_no_step_of_a_revoked_operator() {
    let cas = Cas::new();
    let blockd = cas.old.issue(&Subject::new(Role::Blockd, "b")).unwrap();
    let by_key = Revoked::Key(cas.operators[0].certificate().key);
    let by_name =
        Revoked::Name { role: Role::Admin, name: "a".to_owned(), until: Timestamp { secs: i64::MAX, nanos: 0 } };
    for revoked in [by_key, by_name] {
        let endpoint = Endpoint::bind(any(), &blockd).unwrap();
        assert!(endpoint.revoke(&Revocations { version: 1, list: vec![revoked] }));
        assert!(endpoint.trust_signed(&[cas.begun()]).unwrap().is_none());
        assert_eq!(endpoint.identity().trust().version, 0);
        // Another operator has signed it as well.
        let (other, both) = (Subject::new(Role::Admin, "other"), cas.trust(1, &[&cas.old, &cas.new]));
        let step = cas.operators[0].sign_trust(&both, Some(&cas.old.issue(&other).unwrap())).unwrap();
        assert!(endpoint.trust_signed(&[step]).unwrap().is_some());
        assert_eq!(endpoint.identity().trust().version, 1);
    }
}

#[test]
fn an_identity_keeps_its_cluster_and_both_of_its_certificates_through_a_change_of_the_ca() {
    let cas = Cas::new();
    let identity = client(&cas.old);
    let both = identity.trusting(&cas.trust(1, &[&cas.old, &cas.new])).unwrap();
    assert!(both.is_to_move() && !identity.is_to_move());
    let (cert, issuer) = cas.signed(&both);
    assert!(identity.renewed(&cert, &issuer).is_err(), "it does not trust the new CA yet");
    let moved = both.renewed(&cert, &issuer).unwrap();
    assert!(moved.supersedes(&both) && !both.supersedes(&moved), "though it ends earlier");
    assert!(!moved.is_to_move() && moved.former().is_some());
    let read = |identity: &Identity| Identity::from_pem(Path::new("x"), &identity.to_pem()).unwrap();
    let again = read(&moved);
    assert_eq!((again.trust(), again.former()), (moved.trust(), moved.former()));
    assert_eq!(again.cluster_id(), cas.old.cluster_id().unwrap());
    // The configured one stays as it was.
    assert_eq!(identity.clone().or_later(again.clone()).trust().version, 1);
    let finished = again.trusting(&cas.trust(2, &[&cas.new])).unwrap();
    assert!(finished.former().is_none() && finished.certificate() == moved.certificate());
    assert_eq!(moved.clone().or_later(read(&finished)).trust().version, 2);
    let aborted = again.trusting(&cas.trust(2, &[&cas.old])).unwrap();
    assert!(aborted.certificate() == identity.certificate() && !aborted.is_to_move());
    assert_eq!(read(&aborted).authorities(), [cas.old.cert().unwrap()]);
}

#[test]
fn an_identity_that_trusts_cas_of_another_cluster_or_has_a_former_certificate_of_another_node_is_damaged() {
    let (cas, other) = (Cas::new(), Cas::new());
    let both = cas.trust(1, &[&cas.old, &cas.new]);
    let moved = |identity: Identity| {
        let trusting = identity.trusting(&both).unwrap();
        let (cert, issuer) = cas.signed(&trusting);
        trusting.renewed(&cert, &issuer).unwrap().to_pem()
    };
    let mixed = |identity: &str, besides: &str| {
        let section = "-----BEGIN SURF TRUST-----";
        let cut = |text: &str| text.find(section).unwrap();
        let text = format!("{}{}", &identity[..cut(identity)], &besides[cut(besides)..]);
        Identity::from_pem(Path::new("x"), &text).map(|_| ()).map_err(|error| error.to_string())
    };
    let (one, another) = (moved(client(&cas.old)), moved(client(&cas.old)));
    assert_eq!(mixed(&one, &one), Ok(()));
    assert!(mixed(&one, &another).unwrap_err().contains("is damaged"), "it is for another key");
    let foreign = client(&other.old).trusting(&other.trust(1, &[&other.old, &other.new])).unwrap().to_pem();
    assert!(mixed(&one, &foreign).unwrap_err().contains("CAs of another cluster"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_shown_the_certificate_of_the_ca_that_it_trusts_and_the_older_one_ends_with_the_finish() {
    let cas = Arc::new(Cas::new());
    let (server, _, _serving) = serve(&cas, &metad(&cas.old));
    let [knows_old, knows_new] = [&cas.old, &cas.new].map(|ca| Endpoint::bind(any(), &client(ca)).unwrap());
    ask(&knows_old, &server).await.unwrap();
    assert!(matches!(ask(&knows_new, &server).await, Err(Error::WrongCluster { .. })));
    server.trust_signed(&[cas.begun()]).unwrap().unwrap();
    assert!(server.trust_signed(&[cas.begun()]).unwrap().is_none(), "it is known");
    let (cert, issuer) = cas.signed(&server.identity());
    server.set_identity(&server.identity().renewed(&cert, &issuer).unwrap()).unwrap();
    let later = Endpoint::bind(any(), &client(&cas.old)).unwrap();
    for endpoint in [&knows_old, &later] {
        ask(endpoint, &server).await.unwrap();
    }
    // It pauses between handshakes that fail.
    let begun = Instant::now();
    while ask(&knows_new, &server).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "it is not let in");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One that has both shows the old one to a server that has not heard yet.
    let (behind, _, _behind) = serve(&cas, &metad(&cas.old));
    ask(&server, &behind).await.unwrap();

    server.trust_signed(&[cas.finished()]).unwrap().unwrap();
    for endpoint in [&knows_old, &later] {
        let begun = Instant::now();
        let refused = loop {
            match ask(endpoint, &server).await {
                // A request that was under way is unanswered, and the next one is refused.
                Ok(()) | Err(Error::NotSent { .. } | Error::Unanswered { .. }) => {
                    assert!(begun.elapsed() < PROMPT, "the connection stands")
                }
                Err(error) => break error,
            }
        };
        let Error::WrongCluster { .. } = &refused else { panic!("{refused}") };
        assert!(refused.to_string().contains("another CA of this one"), "{refused}");
    }
    ask(&knows_new, &server).await.unwrap();
    // One that would believe the server, and is not believed: the server looks at it when its handshake has ended.
    let trusting = client(&cas.old).trusting(&cas.trust(1, &[&cas.old, &cas.new])).unwrap();
    let refused = ask(&Endpoint::bind(any(), &trusting).unwrap(), &server).await;
    assert!(matches!(refused, Err(Error::WrongCluster { .. })), "{refused:?}");
}

/// A node that has moved to the new CA, as its identity is while both are trusted.
fn moved(cas: &Cas, identity: &Identity) -> Identity {
    let both = identity.trusting(&cas.trust(1, &[&cas.old, &cas.new])).unwrap();
    let (cert, issuer) = cas.signed(&both);
    both.renewed(&cert, &issuer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_began_with_the_old_identity_is_repeated_with_the_new_one() {
    let cas = Arc::new(Cas::new());
    // What is sent there waits until somebody serves: as with a metad that starts again.
    let silent = std::net::UdpSocket::bind(any()).unwrap();
    let addr = silent.local_addr().unwrap();
    let endpoint = Endpoint::bind(any(), &client(&cas.old)).unwrap();
    let peer = endpoint.peer(addr, Role::Metad);
    let asks = tokio::spawn(async move { peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await });
    silent.set_read_timeout(Some(LIMIT)).unwrap();
    silent.recv(&mut [0_u8; 2_048]).unwrap();
    endpoint.trust(&cas.trust(1, &[&cas.old, &cas.new])).unwrap().unwrap();
    endpoint.set_identity(&moved(&cas, &endpoint.identity())).unwrap();
    drop(silent);
    let finished = moved(&cas, &metad(&cas.old)).trusting(&cas.trust(2, &[&cas.new])).unwrap();
    let server = Endpoint::bind_for_newcomers(addr, &finished, Handle::current()).unwrap();
    let service = Hands { cas, steps: Mutex::default(), asked: AtomicUsize::new(0), shown: Mutex::default() };
    let _serving = server.serve(Arc::new(service), &Handle::current());
    asks.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_of_a_handshake_is_not_remembered_for_another_identity() {
    let cas = Arc::new(Cas::new());
    let (server, _, _serving) = serve(&cas, &metad(&cas.new));
    let endpoint = Endpoint::bind(any(), &client(&cas.old)).unwrap();
    // The pause between handshakes grows with each that fails.
    for _ in 0..20 {
        assert!(matches!(ask(&endpoint, &server).await, Err(Error::WrongCluster { .. })));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    endpoint.set_identity(&moved(&cas, &endpoint.identity())).unwrap();
    ask(&endpoint, &server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_moved_is_not_refused_when_its_older_certificate_ends_with_the_older_ca() {
    let cas = Cas::new();
    // This metad has not heard of the new CA when the client comes, and is shown the older certificate.
    let behind = metad(&cas.old);
    let server = Endpoint::bind_for_newcomers(any(), &behind, Handle::current()).unwrap();
    let _serving = server.serve(Arc::new(Silent), &Handle::current());
    let endpoint = Endpoint::bind(any(), &moved(&cas, &client(&cas.old))).unwrap();
    let peer = endpoint.peer(server.local_addr(), Role::Metad);
    let under_way = peer.open_request(&MetaRequest::WhoLeads, 0, LIMIT).await.unwrap();
    server.set_identity(&moved(&cas, &behind)).unwrap();
    server.trust_signed(&[cas.finished()]).unwrap().unwrap();
    let ended = tokio::time::timeout(LIMIT / 2, under_way.finish::<MetaReply>()).await.unwrap();
    assert!(matches!(ended, Err(Error::Unanswered { .. })), "{ended:?}");
}

/// Otherwise the metads would wait for ever for a client that has moved long ago, and end its connections with the older CA.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_knew_the_older_ca_alone_is_soon_shown_the_newer_certificate() {
    let cas = Arc::new(Cas::new());
    let behind = metad(&cas.old);
    let (server, hands, _serving) = serve(&cas, &behind);
    let endpoint = Endpoint::bind(any(), &moved(&cas, &client(&cas.old))).unwrap();
    let newest = endpoint.identity().certificate().authority;
    ask(&endpoint, &server).await.unwrap();
    assert_ne!(*hands.shown.lock(), Some(newest));
    server.set_identity(&moved(&cas, &behind)).unwrap();
    let begun = Instant::now();
    while *hands.shown.lock() != Some(newest) {
        assert!(begun.elapsed() < LIMIT, "it is shown the older one");
        tokio::time::sleep(Duration::from_millis(20)).await;
        ask(&endpoint, &server).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_when_the_older_ca_is_given_up_fails_as_unanswered_not_as_refused() {
    let cas = Cas::new();
    let server = Endpoint::bind(any(), &moved(&cas, &metad(&cas.old))).unwrap();
    let _serving = server.serve(Arc::new(Silent), &Handle::current());
    let endpoint = Endpoint::bind(any(), &client(&cas.old)).unwrap();
    let peer = endpoint.peer(server.local_addr(), Role::Metad);
    let under_way = peer.open_request(&MetaRequest::WhoLeads, 0, LIMIT).await.unwrap();
    endpoint.set_identity(&moved(&cas, &endpoint.identity())).unwrap();
    server.trust_signed(&[cas.finished()]).unwrap().unwrap();
    let ended = tokio::time::timeout(LIMIT / 2, under_way.finish::<MetaReply>()).await.unwrap();
    assert!(matches!(ended, Err(Error::Unanswered { .. })), "{ended:?}");
}

/// A metad that answers nothing.
struct Silent;

impl Service for Silent {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, _request: Incoming) {
        std::future::pending().await
    }
}

/// A node that keeps its identity in memory.
struct Keeper {
    endpoint: Endpoint,
    metads: Vec<SocketAddr>,
    kept: Mutex<Option<Identity>>,
}

impl Renewing for Keeper {
    fn metads(&self) -> Vec<SocketAddr> {
        self.metads.clone()
    }

    async fn renew(&self) -> Result<Identity, RenewError> {
        renew(&self.endpoint, &self.metads).await
    }

    fn keep(&self, identity: &Identity) -> Result<(), Error> {
        *self.kept.lock() = Some(identity.clone());
        Ok(())
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_lasting_certificate_hears_of_the_new_ca_moves_and_lets_go_of_the_old_one() {
    let cas = Arc::new(Cas::new());
    let (server, hands, _serving) = serve(&cas, &metad(&cas.old));
    let endpoint = Endpoint::bind(any(), &client(&cas.old)).unwrap();
    let node = Arc::new(Keeper { endpoint, metads: vec![server.local_addr()], kept: Mutex::default() });
    let keeping = tokio::spawn(keep_renewed(node.endpoint.clone(), node.clone()));
    // A metad that was taken over brings in its own.
    let theirs = ClusterCa::succeeding("t", cas.old.cluster_id().unwrap()).unwrap();
    let liar = metad(&cas.old).sign_trust(&cas.trust(9, &[&cas.old, &theirs]), None).unwrap();
    *hands.steps.lock() = vec![liar];
    // When it asks again, it has judged the first answer.
    for times in 1..=2 {
        node.endpoint.hint_trust();
        until("it asks", || hands.asked.load(Ordering::Relaxed) >= times).await;
    }
    assert_eq!(node.endpoint.identity().trust().version, 0);
    *hands.steps.lock() = vec![cas.begun()];
    server.trust_signed(&[cas.begun()]).unwrap().unwrap();
    node.endpoint.hint_trust();
    let newest = cas.trust(1, &[&cas.new]).newest().unwrap();
    until("it has moved", || node.endpoint.identity().certificate().authority == newest).await;
    let kept = node.kept.lock().clone().unwrap();
    assert_eq!((kept.trust().version, kept.certificate().authority), (1, newest));
    ask(&node.endpoint, &server).await.unwrap();
    *hands.steps.lock() = vec![cas.begun(), cas.finished()];
    node.endpoint.hint_trust();
    until("it trusts the new one alone", || node.endpoint.identity().trust().version == 2).await;
    until("that is kept", || node.kept.lock().as_ref().is_some_and(|kept| kept.trust().version == 2)).await;
    // The server still shows the old one alone.
    assert!(matches!(ask(&node.endpoint, &server).await, Err(Error::WrongCluster { .. })));
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_of_other_cas_asks_until_a_metad_knows_them() {
    let cas = Arc::new(Cas::new());
    let (behind, _, _behind) = serve(&cas, &metad(&cas.old));
    let (knows, hands, _serving) = serve(&cas, &metad(&cas.old));
    *hands.steps.lock() = vec![cas.begun()];
    let endpoint = Endpoint::bind(any(), &client(&cas.old)).unwrap();
    let metads = vec![behind.local_addr(), knows.local_addr()];
    let node = Arc::new(Keeper { endpoint, metads, kept: Mutex::default() });
    let keeping = tokio::spawn(keep_renewed(node.endpoint.clone(), node.clone()));
    node.endpoint.hint_trust();
    until("it trusts both", || node.endpoint.identity().trust().version == 1).await;
    keeping.abort();
}
