//! Malicious peers: each harms only itself. During the attack and afterwards, an honest client is answered within its
//! normal times, and no metad ends.

use super::cluster::{Cluster, LIMIT, endpoint};
use kit::lies::nested;
use serde::Serialize;
use std::time::{Duration, Instant};
use wire::attr::Timestamp;
use wire::codec;
use wire::ids::{BatchSeq, BlockdId, Ino, JournalId, LayoutEpoch, SessionId, Version};
use wire::limits::JOURNALED_FILES_MAX;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::check::{CheckReply, CheckRequest, Repair};
use wire::message::event::MetaEvent;
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest};
use wire::op::{Batch, JournalPosition, JournaledFile, Lock, LockFamily, Op, OpFailed};
use wire::quic::{Endpoint, Peer};
use wire::tls::{ClusterCa, Role, Squash, Subject};
use wire::{Error, FsError};

/// The longest that an honest client waits for one change: far above its normal times on a busy machine, and far below
/// what any of these attacks has cost.
const NORMAL: Duration = Duration::from_secs(4);

/// Returns a message without the byte for the version, which is put before it when it is sent.
fn encoded<T: Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message)[1..].to_vec()
}

pub(super) fn client(ca: &ClusterCa, name: &str, read_only: bool) -> Endpoint {
    let mut subject = Subject::new(Role::Client, name);
    subject.grant.read_only = read_only;
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &ca.issue(&subject).unwrap()).unwrap()
}

async fn open(cluster: &Cluster, endpoint: &Endpoint, caches: bool) -> MetaReply {
    let (host, purpose) = ("h".to_owned(), "t".to_owned());
    cluster.ask_as(endpoint, &MetaRequest::OpenSession { host, purpose, caches, resumes: None, token: None }).await
}

pub(super) async fn opened(cluster: &Cluster, endpoint: &Endpoint, caches: bool) -> SessionId {
    match open(cluster, endpoint, caches).await {
        MetaReply::Session { session, .. } => session,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn leading(cluster: &Cluster, endpoint: &Endpoint) -> Peer {
    let leader = cluster.leader().await;
    endpoint.peer(cluster.nodes[&leader].local_addr(), Role::Metad)
}

fn submit(session: SessionId, seq: u64, ops: Vec<Op>) -> MetaRequest {
    MetaRequest::Submit {
        session,
        batch: Batch { seq: BatchSeq(seq), acked: BatchSeq(0), caller: None, ops },
        receipts: Vec::new(),
    }
}

/// Checks that an honest client makes a file in its normal time.
async fn assert_serves(session: &mut super::cluster::Session<'_>, name: &str) {
    let started = Instant::now();
    session.create(name).await;
    assert!(started.elapsed() < NORMAL, "{name}: {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_nested_without_end_are_refused_and_end_no_metad() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    let deferred = |op| Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(op) };
    let inner = Op::LeaseInos { count: 1 };
    let (once, twice) = (encoded(&deferred(inner.clone())), encoded(&deferred(deferred(inner.clone()))));
    let message = nested(&encoded(&submit(honest.id, 1, vec![deferred(inner)])), &once, &twice, 200_000);
    for role in [Role::Client, Role::Blockd, Role::Admin, Role::Metad] {
        let liar = endpoint(&cluster.ca, role);
        let peer = leading(&cluster, &liar).await;
        let asked = peer.request::<_, MetaReply>(&message, &[], LIMIT).await;
        assert!(matches!(asked, Err(Error::Refused { .. })), "{role}: {asked:?}");
    }
    assert_serves(&mut honest, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_beyond_their_bounds_are_refused_before_they_enter_the_log() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    let liar = client(&cluster.ca, "liar", false);
    let session = opened(&cluster, &liar, false).await;
    let peer = leading(&cluster, &liar).await;
    let file = JournaledFile { ino: Ino(1), base: Version(1), committed: true };
    let files = vec![file; JOURNALED_FILES_MAX + 1];
    let position = Some(JournalPosition { acknowledged: 0, left: 0, files });
    for ops in [
        vec![Op::LeaseInos { count: 1 }; 2_000_000],
        vec![Op::ReleaseOrphans { inos: vec![Ino(1); 500_000] }],
        vec![Op::Journaled { journal: JournalId(1), position }],
    ] {
        let before = match cluster.admin(AdminRequest::Status).await {
            AdminReply::Status(status) => status.applied,
            other => panic!("{other:?}"),
        };
        let asked = peer.request::<_, MetaReply>(&submit(session, 1, ops), &[], LIMIT).await;
        assert!(matches!(asked, Err(Error::Refused { .. })), "{asked:?}");
        let AdminReply::Status(status) = cluster.admin(AdminRequest::Status).await else { panic!("no status") };
        assert!(status.applied <= before + 1, "it is in the log: {before} to {}", status.applied);
    }
    assert_serves(&mut honest, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_only_read_keeps_nobody_waiting() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    let reader = client(&cluster.ca, "reader", true);
    let session = opened(&cluster, &reader, true).await;
    let peer = leading(&cluster, &reader).await;
    let mut streams = Vec::new();
    for round in 0..20 {
        let request = MetaRequest::Events { session, dirty: true };
        streams.push(peer.open_events(&request).await.unwrap());
        let alive = MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) };
        peer.request::<_, MetaReply>(&alive, &[], LIMIT).await.unwrap();
        assert_serves(&mut honest, &format!("file-{round}")).await;
    }
    let exclusive = Op::SetLock {
        ino: Ino::ROOT,
        lock: Lock { family: LockFamily::Flock, owner: 1, pid: 1, start: 0, end: u64::MAX, exclusive: true },
    };
    for (seq, op) in [exclusive, Op::LeaseInos { count: 1 }].into_iter().enumerate() {
        let reply = peer.request::<_, MetaReply>(&submit(session, 1 + seq as u64, vec![op]), &[], LIMIT).await;
        let refused = Err(OpFailed { index: 0, error: FsError::ReadOnly });
        assert!(matches!(&reply, Ok((MetaReply::Batch { reply, .. }, _)) if *reply == refused), "{reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_only_read_is_given_leases_and_neither_delegations_nor_time_to_send_anything() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    for (name, read_only) in [("reader", true), ("writer", false)] {
        honest.create(name).await;
        let ino = cluster.lookup(honest.id, name).await.unwrap();
        let endpoint = client(&cluster.ca, name, read_only);
        let session = opened(&cluster, &endpoint, true).await;
        let peer = leading(&cluster, &endpoint).await;
        let mut events = peer.open_events(&MetaRequest::Events { session, dirty: true }).await.unwrap();
        let attached: MetaEvent = events.next().await.unwrap();
        let MetaEvent::Attached { seq } = attached else { panic!("{attached:?}") };
        assert_eq!(seq.is_none(), read_only, "{name} may have something to send");
        let ask = async |request: MetaRequest| peer.request::<_, MetaReply>(&request, &[], LIMIT).await.unwrap().0;
        ask(MetaRequest::Acknowledge { session, seqs: seq.into_iter().collect() }).await;
        ask(MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) }).await;
        let read = wire::op::Read::GetAttr { ino };
        let read = ask(MetaRequest::Read { session, read, delegate: true, sends: true, caller: None }).await;
        let MetaReply::Read { leased, mut delegated, .. } = read else { panic!("{read:?}") };
        delegated.dedup();
        assert_eq!((leased, delegated), (true, if read_only { Vec::new() } else { vec![ino] }), "{name}");
        ask(MetaRequest::CloseSession { session }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_an_unknown_session_disturbs_nobody() {
    let cluster = Cluster::start(1).await;
    let holder = client(&cluster.ca, "holder", false);
    let session = opened(&cluster, &holder, true).await;
    let peer = leading(&cluster, &holder).await;
    let mut events = peer.open_events(&MetaRequest::Events { session, dirty: false }).await.unwrap();
    let _attached: MetaEvent = events.next().await.unwrap();
    peer.request::<_, MetaReply>(&MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) }, &[], LIMIT).await.unwrap();
    let read = wire::op::Read::GetAttr { ino: Ino::ROOT };
    let read = MetaRequest::Read { session, read, delegate: false, sends: false, caller: None };
    let read = peer.request::<_, MetaReply>(&read, &[], LIMIT).await.unwrap().0;
    assert!(matches!(read, MetaReply::Read { leased: true, .. }), "{read:?}");
    let stranger = client(&cluster.ca, "stranger", false);
    let change = submit(SessionId(1 << 40), 1, vec![Op::Rmdir { parent: Ino::ROOT, name: b"d".to_vec(), seen: None }]);
    let reply = cluster.ask_as(&stranger, &change).await;
    assert!(matches!(reply, MetaReply::Failed(FsError::SessionExpired)), "{reply:?}");
    // A recall would have been sent before the answer.
    let event = tokio::time::timeout(Duration::from_millis(300), events.next::<MetaEvent>()).await;
    assert!(event.is_err(), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_without_end_are_refused_and_end_without_holding_up_anybody() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    let greedy = client(&cluster.ca, "greedy", false);
    let mut refused = false;
    for _ in 0..1_100 {
        match open(&cluster, &greedy, false).await {
            MetaReply::Session { .. } => {}
            MetaReply::Failed(FsError::Busy) => {
                refused = true;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused, "there is no bound");
    assert_serves(&mut honest, "beside them").await;
    let other = client(&cluster.ca, "other", false);
    opened(&cluster, &other, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_daemon_cannot_take_the_place_of_another() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    let daemon = |name: &str| {
        let identity = cluster.ca.issue(&Subject::new(Role::Blockd, name)).unwrap();
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap()
    };
    let says = |name: &str, id: u8, port: u16| {
        MetaRequest::BlockdHeartbeat(BlockdHeartbeat {
            id: BlockdId([id; 16]),
            name: name.to_owned(),
            addr: ([127, 0, 0, 1], port).into(),
            zone: name.to_owned(),
            weight: 1,
            capacity_bytes: 1 << 30,
            free_bytes: 1 << 30,
            block_count: 0,
            epoch: LayoutEpoch(0),
            every_ms: 1000,
            repair: wire::message::block::RepairReport::default(),
            failed: false,
            revoked: wire::revoked::ListMark::default(),
        })
    };
    let (good, bad) = (daemon("good"), daemon("bad"));
    let joined = cluster.ask_as(&good, &says("good", 1, 7001)).await;
    assert!(matches!(&joined, MetaReply::BlockdAlive { layout: Some(layout), .. } if layout.members.len() == 1));
    let peer = leading(&cluster, &bad).await;
    for lie in [says("bad", 1, 7002), says("bad", 2, 7001), says("good", 2, 7003), says("bad", 2, 7002)] {
        let _ = peer.request::<_, MetaReply>(&lie, &[], LIMIT).await.unwrap();
        let MetaReply::Layout(layout) = cluster.ask(MetaRequest::GetLayout).await else { panic!("no layout") };
        let good = layout.members.iter().find(|member| member.name == "good").unwrap();
        assert_eq!((good.id, good.addr.port()), (BlockdId([1; 16]), 7001));
        assert_eq!(layout.members.iter().filter(|member| member.addr.port() == 7001).count(), 1);
    }
    assert_serves(&mut honest, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_with_a_restriction_that_nobody_enforces_is_refused() {
    let cluster = Cluster::start(1).await;
    for (subtree, squash) in [(Some("/home".to_owned()), Squash::None), (None, Squash::All { uid: 1, gid: 1 })] {
        // Clients alone are confined.
        let mut subject = Subject::new(Role::Blockd, "confined");
        (subject.grant.subtree, subject.grant.squash) = (subtree, squash);
        let any = "127.0.0.1:0".parse().unwrap();
        let confined = Endpoint::bind(any, &cluster.ca.issue(&subject).unwrap()).unwrap();
        let asked =
            leading(&cluster, &confined).await.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await;
        let refused = asked.unwrap_err().to_string();
        assert!(refused.contains("confined") && refused.contains("does not enforce"), "{refused}");
    }
    let free = client(&cluster.ca, "free", false);
    opened(&cluster, &free, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_ask_for_no_repair_that_the_check_has_not_found() {
    let cluster = Cluster::start(1).await;
    let mut session = cluster.session().await;
    session.create("kept").await;
    let check = |request| cluster.admin(AdminRequest::Check(request));
    let AdminReply::Check(CheckReply::Begun { check: id, .. }) = check(CheckRequest::Begin).await else {
        panic!("no check")
    };
    // Each of these would be made if it were proposed: the state cannot say nearby that they are wrong.
    let count = Repair::InodeCount { seen: 2, found: 1_000 };
    let known = Repair::References { hash: wire::ids::BlockHash([7; 32]), seen: None, found: 3, len: 20 };
    for (seq, lie) in [count, known].into_iter().enumerate() {
        let request = CheckRequest::Repair { check: id, seq: 1 + seq as u64, repairs: vec![lie] };
        let answer = check(request).await;
        assert!(matches!(&answer, AdminReply::Failed(reason) if reason.contains("not found")), "{answer:?}");
    }
    check(CheckRequest::End(id)).await;
    assert_serves(&mut session, "after").await;
    assert_eq!(cluster.findings().await, Vec::new());
}
