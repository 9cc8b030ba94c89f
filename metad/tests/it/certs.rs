//! Certificates that are revoked, renewed, and remembered.

use super::audit::heartbeat;
use super::cluster::{Cluster, LIMIT, config, endpoint, free_addr};
use super::tokens::{all, made, new};
use metad::Node;
use metad::config::Config;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::Error;
use wire::attr::Timestamp;
use wire::cert::{KeyId, Term};
use wire::ids::{BlockHash, LayoutEpoch, MetadId, SessionId};
use wire::issuer::{IssuerKey, NewKey, SigningRequest};
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::message::cert::{AuditEvent, AuditRecord, CertList, CertTarget, RenewRefusal, RenewReply, RevokedInfo};
use wire::message::enroll::EnrollRefusal;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::quic::enroll::{EnrollError, enroll};
use wire::quic::renew::{RenewError, renew};
use wire::revoked::Revoked;
use wire::tls::{Identity, Role, Subject};
use wire::token::{JoinToken, NewToken, Secret};

/// Within this time a revocation takes effect.
const PROMPT: Duration = Duration::from_secs(1);

fn target(text: &str) -> CertTarget {
    CertTarget { text: text.to_owned(), role: None, issuer: false }
}

fn revoke(target: CertTarget) -> AdminRequest {
    AdminRequest::RevokeCert { target, force: false, reason: "lost".to_owned() }
}

async fn reported(cluster: &Cluster, request: AdminRequest) -> Vec<String> {
    match cluster.admin(request).await {
        AdminReply::Report(lines) => lines,
        other => panic!("{other:?}"),
    }
}

async fn failed(cluster: &Cluster, request: AdminRequest) -> String {
    match cluster.admin(request).await {
        AdminReply::Failed(reason) => reason,
        other => panic!("{other:?}"),
    }
}

async fn certs(cluster: &Cluster) -> CertList {
    match cluster.admin(AdminRequest::Certs).await {
        AdminReply::Certs(certs) => *certs,
        other => panic!("{other:?}"),
    }
}

async fn status(cluster: &Cluster) -> ClusterStatus {
    match cluster.admin(AdminRequest::Status).await {
        AdminReply::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

async fn audit(cluster: &Cluster) -> Vec<AuditRecord> {
    match cluster.admin(AdminRequest::Audit { since: Timestamp::default() }).await {
        AdminReply::Audit(audit) => audit.records,
        other => panic!("{other:?}"),
    }
}

fn bind(identity: &Identity) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity).unwrap()
}

/// Has somebody come by token.
async fn newcomer(cluster: &Cluster, role: Role, name: Option<&str>) -> (Identity, JoinToken, NewKey) {
    let secret = Secret::random();
    let asked = NewToken { role, name: name.map(str::to_owned), ..new(&secret) };
    let token = made(cluster, asked, secret, all(cluster)).await;
    let key = NewKey::generate().unwrap();
    let bundle = enroll(&token, &key, "laptop", LIMIT).await.unwrap();
    (bundle.identity, token, key)
}

async fn live_for(cluster: &Cluster, ms: u64) {
    cluster.session().await;
    let set = cluster.admin(AdminRequest::SetCertLife { ms }).await;
    assert!(matches!(set, AdminReply::Done), "{set:?}");
}

async fn session_of(cluster: &Cluster, client: &Endpoint) -> SessionId {
    let (host, purpose) = ("h".to_owned(), "t".to_owned());
    let opening = MetaRequest::OpenSession { host, purpose, caches: true, resumes: None, token: Some(5) };
    match cluster.ask_as(client, &opening).await {
        MetaReply::Session { session, .. } => session,
        other => panic!("{other:?}"),
    }
}

async fn ask(endpoint: &Endpoint, addr: SocketAddr, request: &MetaRequest) -> Result<MetaReply, Error> {
    Ok(endpoint.peer(addr, Role::Metad).request(request, &[], LIMIT).await?.0)
}

/// Asks a metad that answers: one that does not yet, or whose connection ends on a busy machine, is asked again.
async fn answer(endpoint: &Endpoint, addr: SocketAddr, request: &MetaRequest) -> MetaReply {
    let started = Instant::now();
    loop {
        match ask(endpoint, addr, request).await {
            Ok(reply) => return reply,
            Err(Error::Unanswered { .. }) if started.elapsed() < LIMIT => {}
            Err(error) => panic!("{addr}: {error}"),
        }
    }
}

/// Waits until each metad refuses this endpoint, old connections and new ones, and returns how long that took.
async fn until_refused(cluster: &Cluster, endpoint: &Endpoint) -> Duration {
    let started = Instant::now();
    for addr in all(cluster) {
        loop {
            match ask(endpoint, addr, &MetaRequest::WhoLeads).await {
                Err(Error::Revoked { .. }) => break,
                other => assert!(started.elapsed() < LIMIT, "{addr}: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_client_is_refused_by_every_metad_at_once_and_its_session_ends_for_the_good_of_others() {
    let cluster = Cluster::start(3).await;
    let mut honest = cluster.session().await;
    let (identity, ..) = newcomer(&cluster, Role::Client, None).await;
    let name = identity.subject().name.clone();
    let client = bind(&identity);
    let session = session_of(&cluster, &client).await;
    let keep_alive = MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
    assert!(matches!(cluster.ask_as(&client, &keep_alive).await, MetaReply::Alive { .. }));
    let leader = cluster.nodes[&cluster.leader().await].local_addr();
    let mut events =
        client.peer(leader, Role::Metad).open_events(&MetaRequest::Events { session, dirty: false }).await.unwrap();
    let _attached: wire::message::event::MetaEvent = events.next().await.unwrap();

    let lines = reported(&cluster, revoke(target(&name))).await;
    assert!(lines[0].contains(&name) && lines[0].contains("are refused"), "{lines:?}");
    assert!(until_refused(&cluster, &client).await < PROMPT);
    // The stream that stood ends as well, and says why.
    let ended = loop {
        match events.next::<wire::message::event::MetaEvent>().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, Error::Revoked { .. }), "{ended}");
    // Whoever comes again with a new connection is refused at once.
    let again = bind(&identity);
    for addr in all(&cluster) {
        let refused = ask(&again, addr, &MetaRequest::WhoLeads).await.unwrap_err();
        assert!(refused.to_string().contains("was revoked"), "{refused}");
    }
    let started = Instant::now();
    while status(&cluster).await.sessions.iter().any(|(id, ..)| *id == session) {
        assert!(started.elapsed() < Duration::from_secs(10), "its session lives on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    honest.create("goes-on").await;
    let listed = certs(&cluster).await;
    assert!(listed.issued.iter().find(|info| info.subject.name == name).unwrap().revoked.is_some());
    assert_eq!(listed.revoked.len(), 2, "by its name and by its key: {:?}", listed.revoked);

    let records = audit(&cluster).await;
    let of = |event| records.iter().filter(move |record| record.event == event);
    assert!(of(AuditEvent::Enrolled).any(|record| record.who.contains(&name) && record.addr.is_some()));
    assert!(of(AuditEvent::Revoked).any(|record| record.who.contains(&name) && record.detail == "by test: lost"));
    assert!(of(AuditEvent::Evicted).any(|record| record.who.contains(&name)));
    // Each metad knows whom it has refused.
    let admin = endpoint(&cluster.ca, Role::Admin);
    for addr in all(&cluster) {
        let request = MetaRequest::Admin(AdminRequest::Refusals { since: Timestamp::default() });
        let MetaReply::Admin(AdminReply::Audit(audit)) = answer(&admin, addr, &request).await else {
            panic!("no refusals")
        };
        let is_it = |record: &AuditRecord| record.event == AuditEvent::Refused && record.who.contains(&name);
        assert!(audit.records.iter().any(is_it), "{:?}", audit.records);
    }
    assert_eq!(cluster.findings().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn block_daemons_get_other_keys_of_tickets_when_one_of_them_is_revoked() {
    let cluster = Cluster::start(1).await;
    cluster.session().await;
    let blockd = bind(&cluster.ca.issue(&Subject::new(Role::Blockd, "b1")).unwrap());
    let keys = async || {
        let started = Instant::now();
        loop {
            match cluster.ask_as(&blockd, &heartbeat()).await {
                MetaReply::BlockdAlive { tickets, .. } if tickets.newest().is_some() => return tickets,
                MetaReply::BlockdAlive { .. } => assert!(started.elapsed() < LIMIT, "no key is made"),
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (holder, hash) = (KeyId([1; 32]), BlockHash([2; 32]));
    let known = keys().await;
    let receipt = known.newest().unwrap().receipt(&holder, &hash);
    assert!(keys().await.confirms(&receipt, &holder));
    reported(&cluster, revoke(CertTarget { role: Some(Role::Client), ..target("c1") })).await;
    assert!(keys().await.confirms(&receipt, &holder), "a client knows none");
    reported(&cluster, revoke(CertTarget { role: Some(Role::Blockd), ..target("b2") })).await;
    assert!(!keys().await.confirms(&receipt, &holder), "b2 may know that key");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_comes_back_by_an_operator_or_a_new_token_and_not_by_the_old_one() {
    let cluster = Cluster::start(1).await;
    cluster.session().await;
    let (identity, token, key) = newcomer(&cluster, Role::Client, Some("laptop")).await;
    let client = bind(&identity);
    let addr = all(&cluster)[0];
    assert!(ask(&client, addr, &MetaRequest::WhoLeads).await.is_ok());
    reported(&cluster, revoke(target("laptop"))).await;
    until_refused(&cluster, &client).await;
    // It still knows the token, and its key.
    match enroll(&token, &key, "laptop", LIMIT).await.unwrap_err() {
        EnrollError::Refused { why: EnrollRefusal::Gone | EnrollRefusal::Revoked, .. } => {}
        other => panic!("{other}"),
    }
    // The name goes to another machine.
    let (other, ..) = newcomer(&cluster, Role::Client, Some("laptop")).await;
    assert!(ask(&bind(&other), addr, &MetaRequest::WhoLeads).await.is_ok());
    until_refused(&cluster, &bind(&identity)).await;
    // It was a mistake: the key alone is meant, and then the name.
    let digits = identity.certificate().key.to_string();
    assert!(failed(&cluster, AdminRequest::AllowCert { target: target("nobody") }).await.contains("is not revoked"));
    reported(&cluster, AdminRequest::AllowCert { target: target(&digits) }).await;
    reported(&cluster, AdminRequest::AllowCert { target: target("laptop") }).await;
    let started = Instant::now();
    while ask(&bind(&identity), addr, &MetaRequest::WhoLeads).await.is_err() {
        assert!(started.elapsed() < LIMIT, "it is still refused");
    }
    // One key alone.
    reported(&cluster, revoke(target(&digits[..8]))).await;
    until_refused(&cluster, &bind(&identity)).await;
    assert!(ask(&bind(&other), addr, &MetaRequest::WhoLeads).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_survives_snapshots_and_restarts_and_holds_before_there_is_a_leader() {
    let mut cluster = Cluster::start(1).await;
    cluster.session().await;
    let (identity, ..) = newcomer(&cluster, Role::Client, None).await;
    reported(&cluster, revoke(target(&identity.subject().name))).await;
    assert!(matches!(cluster.admin(AdminRequest::Snapshot).await, AdminReply::Done));
    cluster.stop_node(1).await;
    std::fs::remove_dir_all(cluster.dir.path().join("metad-1/state")).unwrap();
    cluster.start_node(1).await;
    let first = ask(&bind(&identity), all(&cluster)[0], &MetaRequest::WhoLeads).await;
    assert!(matches!(first, Err(Error::Revoked { .. })), "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_locks_out_neither_itself_nor_a_metad_without_saying_so() {
    let cluster = Cluster::start(3).await;
    cluster.session().await;
    let of_role = |name: &str, role| CertTarget { role: Some(role), ..target(name) };
    assert!(failed(&cluster, revoke(of_role("test", Role::Admin))).await.contains("lock you out"));
    for member in ["metad-1", "metad-2", "metad-3"] {
        assert!(failed(&cluster, revoke(of_role(member, Role::Metad))).await.contains("--force"), "{member}");
    }
    assert!(failed(&cluster, revoke(target("never-seen"))).await.contains("--role"));
    assert!(certs(&cluster).await.revoked.is_empty());
    // Of two operators who revoke each other, the first one stays.
    let other = bind(&cluster.ca.issue(&Subject::new(Role::Admin, "other")).unwrap());
    reported(&cluster, revoke(of_role("other", Role::Admin))).await;
    until_refused(&cluster, &other).await;
    let back = MetaRequest::Admin(revoke(of_role("test", Role::Admin)));
    for addr in all(&cluster) {
        assert!(matches!(ask(&other, addr, &back).await, Err(Error::Revoked { .. })));
    }
    assert!(matches!(cluster.admin(AdminRequest::Status).await, AdminReply::Status(_)));
    // One that says so is believed.
    let itself = AdminRequest::RevokeCert { target: of_role("test", Role::Admin), force: true, reason: String::new() };
    let admin = endpoint(&cluster.ca, Role::Admin);
    let leader = cluster.nodes[&cluster.leader().await].local_addr();
    let _answered = ask(&admin, leader, &MetaRequest::Admin(itself)).await;
    until_refused(&cluster, &admin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_has_asked_for_is_not_done_once_it_is_revoked() {
    let cluster = Cluster::start(3).await;
    cluster.session().await;
    let other = bind(&cluster.ca.issue(&Subject::new(Role::Admin, "other")).unwrap());
    // A member that never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let add = AdminRequest::AddLearner { id: MetadId(4), addr: silent.local_addr().unwrap() };
    assert!(matches!(cluster.admin(add).await, AdminReply::Done));
    assert_eq!(status(&cluster).await.metads.len(), 4);
    let addr = cluster.nodes[&cluster.leader().await].local_addr();
    assert!(ask(&other, addr, &MetaRequest::Admin(AdminRequest::Status)).await.is_ok());
    // The leader waits for a second for it to show its certificate.
    let asking = tokio::spawn(async move {
        ask(&other, addr, &MetaRequest::Admin(AdminRequest::RemoveMetad { id: MetadId(4) })).await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "the leader has not waited, so this shows nothing");
    reported(&cluster, revoke(CertTarget { role: Some(Role::Admin), ..target("other") })).await;
    let answered = asking.await.unwrap();
    assert!(!matches!(answered, Ok(MetaReply::Admin(AdminReply::Done | AdminReply::Report(_)))), "{answered:?}");
    // It goes on though the connection is closed.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(status(&cluster).await.metads.len(), 4);
    assert!(!audit(&cluster).await.iter().any(|record| record.event == AuditEvent::MetadRemoved));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_was_removed_is_refused_by_the_others_whatever_certificate_of_its_name_it_shows() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.session_with_files(3).await;
    let leader = cluster.leader().await;
    let gone = (1..=3).find(|id| *id != leader).unwrap();
    let removed = cluster.admin(AdminRequest::RemoveMetad { id: MetadId(gone) }).await;
    assert!(matches!(removed, AdminReply::Done), "{removed:?}");
    // A number that somebody has mistaken is that of one that is needed later.
    let mistaken = cluster.admin(AdminRequest::RemoveMetad { id: MetadId(9) }).await;
    assert!(matches!(&mistaken, AdminReply::Failed(reason) if reason.contains("never was")), "{mistaken:?}");
    let is_nine = |info: &RevokedInfo| matches!(&info.revoked, Revoked::Name { name, .. } if name == "metad-9");
    assert!(!certs(&cluster).await.revoked.iter().any(is_nine));
    // The removed one still runs, and has no say.
    let left: Vec<SocketAddr> =
        cluster.nodes.iter().filter(|(id, _)| **id != gone).map(|(_, node)| node.local_addr()).collect();
    let later = cluster.ca.issue(&Subject::new(Role::Metad, &format!("metad-{gone}"))).unwrap();
    let started = Instant::now();
    for addr in left {
        while !matches!(ask(&bind(&later), addr, &MetaRequest::WhoLeads).await, Err(Error::Revoked { .. })) {
            assert!(started.elapsed() < PROMPT, "metad-{gone} has a say at {addr}");
        }
    }
    cluster.stop_node(gone).await;
    assert!(cluster.lookup(id, "file-0").await.is_some());
    let records = audit(&cluster).await;
    assert!(records.iter().any(|record| record.event == AuditEvent::MetadRemoved));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_was_stolen_signs_for_nobody_any_more() {
    let cluster = Cluster::start(1).await;
    cluster.session().await;
    let (identity, ..) = newcomer(&cluster, Role::Client, None).await;
    let by_issuer = CertTarget { issuer: true, ..target("metad-1") };
    let lines = reported(&cluster, revoke(by_issuer)).await;
    assert!(lines[0].contains("1 of role client"), "{lines:?}");
    until_refused(&cluster, &bind(&identity)).await;
    // Nor does its metad, for newcomers and for those who come again.
    let secret = Secret::random();
    let refused = cluster.admin(AdminRequest::CreateToken(new(&secret))).await;
    assert!(matches!(&refused, AdminReply::Failed(reason) if reason.contains("no issuer")), "{refused:?}");
    let day = Timestamp { secs: Timestamp::now().secs + 86_400, nanos: 0 };
    let term = Term { issued: Timestamp::now(), ends: Some(day) };
    let by_hand = bind(&cluster.ca.issue_for(&Subject::new(Role::Client, "by-hand"), &term).unwrap());
    let refused = renew(&by_hand, &all(&cluster)).await.unwrap_err();
    assert!(matches!(refused, RenewError::Refused { why: RenewRefusal::NoIssuer(_), .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_a_revoked_issuer_would_have_renewed_is_renewed_by_another_metad() {
    let cluster = Cluster::start(3).await;
    live_for(&cluster, 600_000).await;
    let hour = Timestamp { secs: Timestamp::now().secs + 100, nanos: 0 };
    let term = Term { issued: Timestamp::now(), ends: Some(hour) };
    let client = bind(&cluster.ca.issue_for(&Subject::new(Role::Client, "by-hand"), &term).unwrap());
    let leader = cluster.leader().await;
    // The metad that leads signs for a newcomer, so that its issuer is known.
    newcomer(&cluster, Role::Client, None).await;
    let by_issuer = CertTarget { issuer: true, ..target(&format!("metad-{leader}")) };
    reported(&cluster, revoke(by_issuer)).await;
    let revoked = certs(&cluster).await.revoked;
    let [RevokedInfo { revoked: Revoked::Issuer(revoked), .. }] = revoked.as_slice() else { panic!("{revoked:?}") };
    // It is asked first, and knows none of the others yet.
    let first = cluster.nodes[&leader].local_addr();
    let started = Instant::now();
    let renewed = loop {
        match renew(&client, &[first]).await {
            Ok(renewed) => break renewed,
            Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_ne!(renewed.certificate().issuer, Some(*revoked));
    assert!(renewed.certificate().ends > hour);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_a_stolen_issuer_has_made_is_not_renewed_by_the_other_metads() {
    let cluster = Cluster::start(3).await;
    live_for(&cluster, 600_000).await;
    let thief = IssuerKey::create(&cluster.ca, "metad-1", &[Role::Client, Role::Metad]).unwrap();
    for role in [Role::Client, Role::Metad] {
        let key = NewKey::generate().unwrap();
        let ends = Timestamp { secs: Timestamp::now().secs + 600, nanos: 0 };
        let term = Term { issued: Timestamp::now(), ends: Some(ends) };
        let request = SigningRequest::decode(&key.request().unwrap()).unwrap();
        let cert = thief.sign(&request, &Subject::new(role, "forged"), &term).unwrap();
        let ca = cluster.ca.issue(&Subject::new(Role::Client, "any")).unwrap().ca().to_vec();
        let forged = bind(&key.identity(&ca, &cert, thief.cert()).unwrap());
        for addr in all(&cluster) {
            let started = Instant::now();
            let why = loop {
                match answer(&forged, addr, &MetaRequest::Renew).await {
                    MetaReply::Renewal(RenewReply::Refused(RenewRefusal::Later)) if started.elapsed() < LIMIT => {}
                    MetaReply::Renewal(RenewReply::Refused(why)) => break why,
                    reply => panic!("renewed at {addr}: {reply:?}"),
                }
            };
            assert_eq!(why, RenewRefusal::Unknown, "{role}");
        }
    }
    assert!(certs(&cluster).await.issued.is_empty(), "it is not remembered either");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_shows_is_not_revoked_by_key_or_issuer_without_saying_so() {
    let (ca, dir) = (wire::tls::ClusterCa::create("test").unwrap(), tempfile::tempdir().unwrap());
    let initial: BTreeMap<_, _> = (1..=3).map(|id| (MetadId(id), free_addr())).collect();
    let mut configs: Vec<Config> =
        (1..=3).map(|id| config(&ca, dir.path(), id, initial[&MetadId(id)], &initial)).collect();
    // The identity of the last one came by token, and its name is not the usual one.
    let issuer = configs[0].issuer.clone().unwrap();
    let key = NewKey::generate().unwrap();
    let request = SigningRequest::decode(&key.request().unwrap()).unwrap();
    let subject = Subject::new(Role::Metad, "third");
    let cert = issuer.sign(&request, &subject, &Term::lasting()).unwrap();
    configs[2].identity = key.identity(configs[0].identity.ca(), &cert, issuer.cert()).unwrap();
    let of_third = configs[2].identity.certificate().key;
    let mut cluster = Cluster::of(ca, dir, initial);
    for (id, config) in (1..).zip(configs) {
        cluster.nodes.insert(id, Node::start(config).await.unwrap());
    }
    cluster.session().await;
    let by_issuer = CertTarget { issuer: true, ..target(&issuer.key().to_hex()) };
    let by_name = CertTarget { role: Some(Role::Metad), ..target("third") };
    for target in [by_issuer, target(&of_third.to_hex()), by_name] {
        let refused = failed(&cluster, revoke(target)).await;
        assert!(refused.contains("metad-3, which is a member, would be refused"), "{refused}");
    }
    assert!(certs(&cluster).await.revoked.is_empty());
    // Removed, it is refused by the name and the key that it has shown.
    let removed = cluster.admin(AdminRequest::RemoveMetad { id: MetadId(3) }).await;
    assert!(matches!(removed, AdminReply::Done), "{removed:?}");
    let revoked: Vec<Revoked> = certs(&cluster).await.revoked.into_iter().map(|info| info.revoked).collect();
    assert!(revoked.contains(&Revoked::Key(of_third)), "{revoked:?}");
    let is_third = |one: &Revoked| matches!(one, Revoked::Name { role: Role::Metad, name, .. } if name == "third");
    assert!(revoked.iter().any(is_third), "{revoked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlasts_the_certificates_and_taken_off_then_it_lets_nobody_in() {
    let cluster = Cluster::start(1).await;
    live_for(&cluster, 2_000).await;
    let (identity, token, key) = newcomer(&cluster, Role::Client, Some("laptop")).await;
    reported(&cluster, revoke(target("laptop"))).await;
    until_ended(&identity).await;
    let client = bind(&identity);
    let asked = ask(&client, all(&cluster)[0], &MetaRequest::Renew).await;
    assert!(matches!(asked, Err(Error::Revoked { .. })), "{asked:?}");
    assert_eq!(certs(&cluster).await.revoked.len(), 2);
    reported(&cluster, AdminRequest::AllowCert { target: target("laptop") }).await;
    assert!(certs(&cluster).await.issued.is_empty(), "it is forgotten");
    let started = Instant::now();
    // The list that this metad refuses by follows what is applied.
    let refused = loop {
        match ask(&client, all(&cluster)[0], &MetaRequest::Renew).await {
            Err(Error::Revoked { .. }) if started.elapsed() < LIMIT => {}
            asked => break asked.unwrap(),
        }
    };
    assert!(matches!(refused, MetaReply::Renewal(RenewReply::Refused(RenewRefusal::Unknown))), "{refused:?}");
    assert!(matches!(ask(&client, all(&cluster)[0], &MetaRequest::WhoLeads).await, Err(Error::Ended { .. })));
    assert!(enroll(&token, &key, "laptop", LIMIT).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_ca_pem_is_revoked_with_the_key_that_its_session_has_shown() {
    let cluster = Cluster::start(1).await;
    cluster.session().await;
    // Made by an operator whose clock is ahead.
    let term = Term { issued: Timestamp::now().shifted(3_600_000_000_000), ends: None };
    let identity = cluster.ca.issue_for(&Subject::new(Role::Client, "desktop"), &term).unwrap();
    let client = bind(&identity);
    session_of(&cluster, &client).await;
    reported(&cluster, revoke(target("desktop"))).await;
    assert!(until_refused(&cluster, &client).await < PROMPT);
    let revoked = certs(&cluster).await.revoked;
    assert!(revoked.iter().any(|info| info.revoked == Revoked::Key(identity.certificate().key)), "{revoked:?}");
}

/// Waits until a certificate has ended.
async fn until_ended(identity: &Identity) {
    while !identity.certificate().has_ended(Timestamp::now()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_its_own_key_and_subject_and_one_that_has_ended_is_good_for_nothing_else() {
    let cluster = Cluster::start(3).await;
    live_for(&cluster, 3_000).await;
    let (identity, ..) = newcomer(&cluster, Role::Client, None).await;
    let client = bind(&identity);
    let session = session_of(&cluster, &client).await;
    let leader = cluster.leader().await;
    // Followers renew, too.
    let followers: Vec<SocketAddr> =
        cluster.nodes.iter().filter(|(id, _)| **id != leader).map(|(_, node)| node.local_addr()).collect();
    until_ended(&identity).await;
    let keep_alive = MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
    for request in [&MetaRequest::WhoLeads, &keep_alive, &MetaRequest::GetLayout] {
        for addr in all(&cluster) {
            let refused = ask(&bind(&identity), addr, request).await;
            assert!(matches!(refused, Err(Error::Ended { .. })), "{request:?}: {refused:?}");
        }
    }
    let renewed = renew(&client, &followers).await.unwrap();
    assert_eq!((renewed.subject(), renewed.certificate().key), (identity.subject(), identity.certificate().key));
    assert!(renewed.certificate().ends > identity.certificate().ends);
    client.set_identity(&renewed).unwrap();
    assert!(
        matches!(cluster.ask_as(&client, &keep_alive).await, MetaReply::Alive { .. }),
        "the session is still its own"
    );
    let records = audit(&cluster).await;
    assert!(records.iter().any(|record| record.event == AuditEvent::Renewed && record.who.contains("laptop")));
    // Others' identities, and those of somebody unknown, are not renewed.
    let term = Term { issued: Timestamp::now(), ends: Some(Timestamp { secs: Timestamp::now().secs - 10, nanos: 0 }) };
    let unknown = cluster.ca.issue_for(&Subject::new(Role::Client, &identity.subject().name), &term).unwrap();
    let refused = renew(&bind(&unknown), &all(&cluster)).await.unwrap_err().to_string();
    assert!(refused.contains("does not remember"), "{refused}");
    let lasting = endpoint(&cluster.ca, Role::Client);
    assert!(renew(&lasting, &all(&cluster)).await.unwrap_err().to_string().contains("made to last"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_renewals_adds_nothing_to_the_log() {
    let cluster = Cluster::start(1).await;
    live_for(&cluster, 600_000).await;
    let (identity, ..) = newcomer(&cluster, Role::Client, None).await;
    let client = bind(&identity);
    let flood = async || {
        for _ in 0..50 {
            let answered = renew(&client, &all(&cluster)).await;
            assert!(matches!(answered, Err(RenewError::Refused { why: RenewRefusal::TooEarly, .. })), "{answered:?}");
        }
    };
    flood().await;
    let before = status(&cluster).await.applied;
    flood().await;
    assert_eq!(status(&cluster).await.applied, before);
    assert_eq!(certs(&cluster).await.issued.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate() {
    let cluster = Cluster::start(1).await;
    live_for(&cluster, 2_000).await;
    let (identity, ..) = newcomer(&cluster, Role::Client, None).await;
    let client = bind(&identity);
    let session = session_of(&cluster, &client).await;
    let request = MetaRequest::Events { session, dirty: false };
    let mut events = client.peer(all(&cluster)[0], Role::Metad).open_events(&request).await.unwrap();
    let ended = loop {
        match events.next::<wire::message::event::MetaEvent>().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, Error::Ended { .. }), "{ended}");
    assert!(identity.certificate().has_ended(Timestamp::now()));
}

/// Metads whose own certificates live for a moment; the last one has no issuer, and is renewed by the others.
struct ShortLived {
    configs: Vec<Config>,
}

impl ShortLived {
    fn new(cluster_dir: &std::path::Path, ca: &wire::tls::ClusterCa, life: Duration) -> Self {
        let initial: BTreeMap<_, _> = (1..=3).map(|id| (MetadId(id), free_addr())).collect();
        let make = |id: u64| {
            let mut config = config(ca, cluster_dir, id, initial[&MetadId(id)], &initial);
            let ends = Timestamp::now().shifted(life.as_nanos() as i128);
            let term = Term { issued: Timestamp::now(), ends: Some(Timestamp { nanos: 0, ..ends }) };
            config.identity = ca.issue_for(&Subject::new(Role::Metad, &format!("metad-{id}")), &term).unwrap();
            if id == 3 {
                config.issuer = None;
            }
            config
        };
        Self { configs: (1..=3).map(make).collect() }
    }

    async fn start(&self) -> Vec<Node> {
        let started = Instant::now();
        let mut nodes = Vec::new();
        for config in &self.configs {
            nodes.push(loop {
                match Node::start(config.clone()).await {
                    Ok(node) => break node,
                    Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            });
        }
        nodes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metads_renew_their_own_certificates_and_start_again_after_three_lives_without_any() {
    const LIFE: Duration = Duration::from_secs(6);
    let (ca, dir) = (wire::tls::ClusterCa::create("test").unwrap(), tempfile::tempdir().unwrap());
    // Nobody remembers the first certificates yet: there has to be a leader before they end.
    let metads = ShortLived::new(dir.path(), &ca, LIFE * 3);
    let admin = endpoint(&ca, Role::Admin);
    let ask_leader = async |nodes: &[Node], request: AdminRequest| {
        let started = Instant::now();
        loop {
            for node in nodes {
                let request = MetaRequest::Admin(request.clone());
                if let Ok(MetaReply::Admin(reply)) = ask(&admin, node.local_addr(), &request).await {
                    return reply;
                }
            }
            assert!(started.elapsed() < LIMIT, "nobody leads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ends = async |nodes: &[Node]| match ask_leader(nodes, AdminRequest::Certs).await {
        AdminReply::Certs(certs) => {
            let ends = certs.issued.iter().map(|info| (info.subject.name.clone(), info.term.ends.unwrap()));
            ends.collect::<BTreeMap<_, _>>()
        }
        other => panic!("{other:?}"),
    };
    let mut nodes = metads.start().await;
    let set = ask_leader(&nodes, AdminRequest::SetCertLife { ms: LIFE.as_millis() as u64 }).await;
    assert!(matches!(set, AdminReply::Done), "{set:?}");
    // Through several lives.
    let (started, begun) = (Instant::now(), Timestamp::now());
    let third = begun.shifted(3 * LIFE.as_nanos() as i128);
    loop {
        let known = ends(&nodes).await;
        if known.len() == 3 && known.values().all(|ends| *ends > third) {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{known:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for node in nodes.drain(..) {
        node.stop().await;
    }
    // What is on disk has ended, three times over.
    tokio::time::sleep(LIFE * 3).await;
    nodes = metads.start().await;
    let again = Timestamp::now();
    let started = Instant::now();
    loop {
        let known = ends(&nodes).await;
        if known.values().all(|ends| *ends > again) {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{known:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for node in nodes {
        node.stop().await;
    }
}
