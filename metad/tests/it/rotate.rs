//! A new CA takes the place of the old one.

use super::cluster::{Cluster, LIMIT, config, free_addr, opening};
use super::tokens::{all, new};
use metad::Node;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use wire::Error;
use wire::attr::Timestamp;
use wire::cert::AuthorityId;
use wire::ids::{LayoutEpoch, MetadId};
use wire::issuer::{IssuerKey, NewKey};
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::cert::{AuditEvent, AuditRecord, MetadIssuer, RenewRefusal, RotationStatus, UnmovedKind};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::quic::enroll::{EnrollError, enroll};
use wire::quic::renew::{RenewError, Renewing, keep_renewed, renew};
use wire::tls::{ClusterCa, Identity, Role, Subject};
use wire::token::{JoinToken, NewToken, Secret, hash_of};
use wire::trust::{SignedTrust, Trust};

const ROLES: [Role; 3] = [Role::Client, Role::Blockd, Role::Metad];

fn bind(identity: &Identity) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity).unwrap()
}

/// A cluster whose metads keep their identities through restarts, and the CA that is to come.
struct Changing {
    cluster: Cluster,
    initial: BTreeMap<MetadId, SocketAddr>,
    identities: BTreeMap<u64, Identity>,
    issuers: BTreeMap<u64, Arc<IssuerKey>>,
    new: ClusterCa,
    /// Operators of both.
    operators: [Identity; 2],
}

impl Changing {
    async fn start(count: u64) -> Self {
        let old = ClusterCa::create("test").unwrap();
        let new = ClusterCa::succeeding("test", old.cluster_id().unwrap()).unwrap();
        let operator = |ca: &ClusterCa| ca.issue(&Subject::new(Role::Admin, "a")).unwrap();
        let authorities = vec![old.cert().unwrap(), new.cert().unwrap()];
        let both = Trust { version: 1, authorities, ..Trust::original(new.cluster_id().unwrap()) };
        let operators = [operator(&old), operator(&new).trusting(&both).unwrap()];
        let initial: BTreeMap<_, _> = (1..=count).map(|id| (MetadId(id), free_addr())).collect();
        let metad = |id| old.issue(&Subject::new(Role::Metad, &format!("metad-{id}"))).unwrap();
        let identities = (1..=count).map(|id| (id, metad(id))).collect();
        let issuers = (1..=count).map(|id| (id, issuer(&old))).collect();
        let cluster = Cluster::of(old, tempfile::tempdir().unwrap(), initial.clone());
        let mut changing = Self { cluster, initial, identities, issuers, new, operators };
        for id in 1..=count {
            changing.start_node(id).await;
        }
        changing.cluster.session().await;
        changing
    }

    async fn start_node(&mut self, id: u64) {
        let started = Instant::now();
        let node = loop {
            let addr = self.initial[&MetadId(id)];
            let mut config = config(&self.cluster.ca, self.cluster.dir.path(), id, addr, &self.initial);
            config.identity = self.identities[&id].clone();
            config.issuer = Some(self.issuers[&id].clone());
            config.issuer_file = Some(self.issuer_file(id));
            match Node::start(config).await {
                Ok(node) => break node,
                // The socket or the files of the node that was just stopped are still held.
                Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.cluster.nodes.insert(id, node);
    }

    async fn restart(&mut self, id: u64) {
        self.cluster.stop_node(id).await;
        self.start_node(id).await;
    }

    /// Stops the leader, and starts it again once another one leads.
    async fn lose_leader(&mut self) {
        let lost = self.cluster.leader().await;
        self.cluster.stop_node(lost).await;
        self.cluster.leader().await;
        self.start_node(lost).await;
    }

    fn issuer_file(&self, id: u64) -> PathBuf {
        self.cluster.dir.path().join(format!("issuer-{id}.pem"))
    }

    fn ids(&self) -> Vec<u64> {
        self.initial.keys().map(|id| id.0).collect()
    }

    /// Gives each metad an issuer of the new CA, and starts it again.
    async fn give_issuers(&mut self) {
        for id in self.ids() {
            self.issuers.insert(id, issuer(&self.new));
            self.restart(id).await;
        }
    }

    /// Gives each metad an issuer of the new CA while it runs, as operators do.
    async fn put_issuers(&mut self) {
        for id in self.ids() {
            let issuer = issuer(&self.new);
            issuer.save(&self.issuer_file(id)).unwrap();
            self.issuers.insert(id, issuer);
        }
        let newest = self.new_id();
        let started = Instant::now();
        loop {
            let issuers = self.status(1).await.issuers;
            if issuers.len() == self.initial.len() && issuers.iter().all(|(_, it)| *it == MetadIssuer::Of(newest)) {
                return;
            }
            assert!(started.elapsed() < LIMIT, "{issuers:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn new_id(&self) -> AuthorityId {
        AuthorityId::of_ca(&self.new.cert().unwrap()).unwrap()
    }

    fn trust(&self, version: u64, of: &[&ClusterCa]) -> Trust {
        let authorities = of.iter().map(|ca| ca.cert().unwrap()).collect();
        Trust { version, authorities, ..Trust::original(self.new.cluster_id().unwrap()) }
    }

    fn begun(&self) -> SignedTrust {
        let trust = self.trust(1, &[&self.cluster.ca, &self.new]);
        self.operators[0].sign_trust(&trust, Some(&self.operators[1])).unwrap()
    }

    fn finished(&self) -> SignedTrust {
        self.operators[1].sign_trust(&self.trust(2, &[&self.new]), None).unwrap()
    }

    fn aborted(&self) -> SignedTrust {
        self.operators[0].sign_trust(&self.trust(2, &[&self.cluster.ca]), None).unwrap()
    }

    /// Asks as the operator of the old or the new CA.
    async fn admin(&self, of: usize, request: AdminRequest) -> AdminReply {
        let endpoint = bind(&self.operators[of]);
        match self.cluster.ask_as(&endpoint, &MetaRequest::Admin(request)).await {
            MetaReply::Admin(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn done(&self, of: usize, step: SignedTrust, force: bool) -> Vec<String> {
        match self.admin(of, AdminRequest::SetTrust { step, force }).await {
            AdminReply::Report(lines) => lines,
            other => panic!("{other:?}"),
        }
    }

    async fn failed(&self, of: usize, step: SignedTrust, force: bool) -> String {
        match self.admin(of, AdminRequest::SetTrust { step, force }).await {
            AdminReply::Failed(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn status(&self, of: usize) -> RotationStatus {
        match self.admin(of, AdminRequest::Rotation).await {
            AdminReply::Rotation(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Checks that the audit says who has done this.
    async fn assert_recorded(&self, of: usize, events: &[AuditEvent]) {
        let AdminReply::Audit(audit) = self.admin(of, AdminRequest::Audit { since: Timestamp::default() }).await else {
            panic!("no audit")
        };
        for event in events {
            let is_it = |record: &AuditRecord| {
                record.event == *event
                    && record.who.starts_with("CA ")
                    && record.detail == "by a"
                    && record.addr.is_some()
            };
            assert!(audit.records.iter().any(is_it), "{event}: {:?}", audit.records);
        }
    }

    async fn until_moved(&self, what: UnmovedKind) {
        let started = Instant::now();
        loop {
            let status = self.status(1).await;
            if status.unmoved.iter().all(|one| one.what != what) {
                return;
            }
            assert!(started.elapsed() < LIMIT * 2, "{status:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn token(&self, of: usize, ca: &ClusterCa) -> JoinToken {
        let secret = Secret::random();
        let asked = new(&secret);
        let id = asked.id;
        let made = self.admin(of, AdminRequest::CreateToken(NewToken { valid_ms: 600_000, ..asked })).await;
        assert!(matches!(made, AdminReply::Done), "{made:?}");
        let ca = hash_of(&ca.cert().unwrap());
        JoinToken { cluster: "test".to_owned(), metads: all(&self.cluster), ca, role: Role::Client, id, secret }
    }
}

fn issuer(ca: &ClusterCa) -> Arc<IssuerKey> {
    Arc::new(IssuerKey::create(ca, "metad", &ROLES).unwrap())
}

/// A client that renews its certificate, and works all the time.
struct Worker {
    endpoint: Endpoint,
    metads: Vec<SocketAddr>,
    file: PathBuf,
    stops: AtomicBool,
    answers: AtomicUsize,
}

impl Renewing for Worker {
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

impl Worker {
    fn start(changing: &Changing, name: &str) -> (Arc<Self>, [JoinHandle<()>; 2]) {
        let identity = changing.cluster.ca.issue(&Subject::new(Role::Client, name)).unwrap();
        let (endpoint, metads) = (bind(&identity), all(&changing.cluster));
        let file = changing.cluster.dir.path().join(name);
        let (stops, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
        let worker = Arc::new(Self { endpoint: endpoint.clone(), metads, file, stops, answers });
        let (working, renewing) = (worker.clone(), worker.clone());
        let works = tokio::spawn(async move { working.work().await });
        (worker, [works, tokio::spawn(keep_renewed(endpoint, renewing))])
    }

    /// Asks the leader, and fails if nobody answers for as long as an election takes, or if its session ends.
    async fn ask(&self, request: &MetaRequest) -> MetaReply {
        let started = Instant::now();
        loop {
            for addr in &self.metads {
                let peer = self.endpoint.peer(*addr, Role::Metad);
                match peer.request::<_, MetaReply>(request, &[], Duration::from_secs(2)).await {
                    Ok((MetaReply::NotLeader { .. }, _)) => {}
                    Ok((reply, _)) => return reply,
                    Err(Error::NotSent { .. } | Error::Unanswered { .. } | Error::Busy { .. }) => {}
                    Err(error) => {
                        let own = self.endpoint.identity();
                        let below = own.certificate().authority;
                        panic!("a client at work, below {below} and with {:?}, was refused: {error}", own.trust().ids())
                    }
                }
            }
            assert!(started.elapsed() < LIMIT, "nobody answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn work(&self) {
        let MetaReply::Session { session, .. } = self.ask(&opening(false, None, Some(7))).await else {
            panic!("no session")
        };
        while !self.stops.load(Ordering::Relaxed) {
            match self.ask(&MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) }).await {
                MetaReply::Alive { .. } => self.answers.fetch_add(1, Ordering::Relaxed),
                other => panic!("{other:?}"),
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(&self, [works, renews]: [JoinHandle<()>; 2]) {
        self.stops.store(true, Ordering::Relaxed);
        works.await.unwrap();
        renews.abort();
        assert!(self.answers.load(Ordering::Relaxed) > 50);
    }
}

/// Waits until the identity of a client is as it should be.
async fn until_is(worker: &Worker, what: &str, holds: impl Fn(&Identity) -> bool) {
    let started = Instant::now();
    while !holds(&worker.endpoint.identity()) {
        assert!(started.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn who_leads(endpoint: &Endpoint, addr: SocketAddr) -> Result<(), Error> {
    let peer = endpoint.peer(addr, Role::Metad);
    peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.map(|_| ())
}

/// Waits until a metad says that this is of another CA. It serves nothing after `served_until`; a request that was under way is
/// unanswered.
async fn until_distrusted(endpoint: &Endpoint, addr: SocketAddr, served_until: Instant) {
    let started = Instant::now();
    loop {
        let asked = Instant::now();
        match who_leads(endpoint, addr).await {
            Err(Error::WrongCluster { .. }) => return,
            Ok(()) => assert!(asked < served_until, "it is served"),
            Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_ca_takes_the_place_of_the_old_one_while_a_client_works_and_leaders_are_lost_at_each_step() {
    let mut changing = Changing::start(3).await;
    let (worker, tasks) = Worker::start(&changing, "worker");
    // One that does not move, and a token of before.
    let stays = changing.cluster.ca.issue(&Subject::new(Role::Client, "stays")).unwrap();
    let stays = bind(&stays);
    let old_token = changing.token(0, &changing.cluster.ca).await;

    let foreign = ClusterCa::succeeding("x", changing.new.cluster_id().unwrap()).unwrap();
    let trust = changing.trust(1, &[&changing.cluster.ca, &foreign]);
    let alone = changing.operators[0].sign_trust(&trust, None).unwrap();
    assert!(changing.failed(0, alone, true).await.contains("an operator of each CA"));
    let begun = changing.done(0, changing.begun(), false).await;
    assert!(begun[0].contains("is trusted beside"), "{begun:?}");
    changing.lose_leader().await;
    assert!(changing.done(0, changing.begun(), false).await[0].contains("already"));
    let refused = changing.failed(1, changing.finished(), true).await;
    assert!(refused.contains("issuer of the older CA: metad-1, metad-2, metad-3"), "{refused}");
    // One that does not lead holds the finish up as well.
    let (leader, newest) = (changing.cluster.leader().await, changing.new_id());
    issuer(&changing.new).save(&changing.issuer_file(leader)).unwrap();
    let started = Instant::now();
    let refused = loop {
        let refused = changing.failed(1, changing.finished(), true).await;
        if !refused.contains(&format!("metad-{leader}")) {
            break refused;
        }
        assert!(started.elapsed() < LIMIT, "{refused}");
    };
    assert!(refused.contains("issuer of the older CA"), "{refused}");

    changing.put_issuers().await;
    changing.until_moved(UnmovedKind::Metad).await;
    changing.lose_leader().await;
    changing.until_moved(UnmovedKind::Metad).await;
    until_is(&worker, "the client has not moved", |own| own.certificate().authority == newest).await;
    assert_eq!(Identity::load(&worker.file).unwrap().certificate().authority, newest);
    // Whoever has the older CA alone is let in, newcomers too.
    who_leads(&stays, all(&changing.cluster)[0]).await.unwrap();
    let enrolled = enroll(&old_token, &NewKey::generate().unwrap(), "laptop", LIMIT).await.unwrap().identity;
    assert_eq!((enrolled.certificate().authority, enrolled.trust().version), (newest, 1));
    // One with a session holds the finish up, unless it is forced.
    changing.cluster.ask_as(&stays, &opening(false, None, Some(8))).await;
    let refused = changing.failed(1, changing.finished(), false).await;
    assert!(refused.contains("client stays") && refused.contains("--force"), "{refused}");
    let refused = changing.failed(0, changing.finished(), true).await;
    assert!(refused.contains("you would be locked out"), "{refused}");

    let finished = changing.done(1, changing.finished(), true).await;
    assert!(finished[0].contains("has taken the place"), "{finished:?}");
    let begun = Instant::now();
    for addr in all(&changing.cluster) {
        until_distrusted(&stays, addr, begun + Duration::from_secs(1)).await;
    }
    changing.lose_leader().await;
    assert!(changing.done(1, changing.finished(), false).await[0].contains("already"));
    until_distrusted(&bind(&changing.operators[0]), all(&changing.cluster)[0], Instant::now()).await;
    let unknown = enroll(&old_token, &NewKey::generate().unwrap(), "laptop", Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(unknown, EnrollError::WrongCluster { .. }), "{unknown}");
    assert!(unknown.to_string().contains("another CA by now"), "{unknown}");
    let token = changing.token(1, &changing.new).await;
    let enrolled = enroll(&token, &NewKey::generate().unwrap(), "laptop", LIMIT).await.unwrap().identity;
    who_leads(&bind(&enrolled), all(&changing.cluster)[0]).await.unwrap();
    // All of them start again with what they have on disk.
    for id in 1..=3 {
        changing.restart(id).await;
    }
    let status = changing.status(1).await;
    assert_eq!((status.trust.version, status.trust.authorities.len()), (2, 1));
    changing.assert_recorded(1, &[AuditEvent::CaAdded, AuditEvent::CaReplaced]).await;
    worker.end(tasks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_of_the_ca_that_is_aborted_leaves_everybody_with_the_old_one() {
    let mut changing = Changing::start(3).await;
    let (worker, tasks) = Worker::start(&changing, "worker");
    changing.done(0, changing.begun(), false).await;
    let old: Vec<_> = changing.issuers.values().cloned().collect();
    changing.give_issuers().await;
    changing.until_moved(UnmovedKind::Metad).await;
    let newest = changing.trust(1, &[&changing.new]).newest().unwrap();
    until_is(&worker, "the client has not moved", |own| own.certificate().authority == newest).await;
    let refused = changing.failed(1, changing.aborted(), false).await;
    assert!(refused.contains("of the older CA"), "{refused}");
    changing.lose_leader().await;
    changing.done(0, changing.aborted(), false).await;
    changing.lose_leader().await;
    let first = changing.trust(1, &[&changing.cluster.ca]).newest().unwrap();
    until_is(&worker, "the client has not heard of it", |own| own.trust().version == 2).await;
    assert_eq!(worker.endpoint.identity().certificate().authority, first);
    changing.assert_recorded(0, &[AuditEvent::CaAdded, AuditEvent::CaAborted]).await;
    for (id, issuer) in (1..).zip(old) {
        changing.issuers.insert(id, issuer);
        changing.restart(id).await;
    }
    until_distrusted(&bind(&changing.operators[1]), all(&changing.cluster)[0], Instant::now()).await;
    // It can begin anew.
    let trust = changing.trust(3, &[&changing.cluster.ca, &changing.new]);
    let again = changing.operators[0].sign_trust(&trust, Some(&changing.operators[1])).unwrap();
    changing.done(0, again, false).await;
    worker.end(tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_that_a_thief_of_the_old_ca_has_made_get_no_certificate_of_the_new_one() {
    let mut changing = Changing::start(1).await;
    let token = changing.token(0, &changing.cluster.ca).await;
    let enrolled = enroll(&token, &NewKey::generate().unwrap(), "laptop", LIMIT).await.unwrap().identity;
    let forged = changing.cluster.ca.issue(&Subject::new(Role::Client, "forged")).unwrap();
    let trust = Trust { remembered_only: true, ..changing.trust(1, &[&changing.cluster.ca, &changing.new]) };
    let step = changing.operators[0].sign_trust(&trust, Some(&changing.operators[1])).unwrap();
    changing.done(0, step.clone(), false).await;
    changing.give_issuers().await;
    // As an operator does by hand: the metad's identity was made with the CA as well.
    changing.identities.insert(1, changing.new.issue(&Subject::new(Role::Metad, "metad-1")).unwrap());
    changing.restart(1).await;
    changing.until_moved(UnmovedKind::Metad).await;
    let addr = all(&changing.cluster)[0];
    let moved = async |identity: &Identity| {
        let endpoint = bind(&identity.trusting(&trust).unwrap());
        renew(&endpoint, &[addr]).await
    };
    let refused = moved(&forged).await;
    assert!(matches!(refused, Err(RenewError::Refused { why: RenewRefusal::Unknown, .. })), "{refused:?}");
    let newest = trust.newest().unwrap();
    assert_eq!(moved(&enrolled).await.unwrap().certificate().authority, newest);
}
