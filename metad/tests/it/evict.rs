//! An operator ends a session that may answer from its caches.

use super::cluster::{Cluster, LIMIT};
use super::hostile::{client, leading, opened};
use std::time::{Duration, Instant};
use wire::FsError;
use wire::ids::{Ino, LayoutEpoch, SessionId};
use wire::limits::LEASE_MS;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::event::MetaEvent;
use wire::message::meta::{LeaseState, MetaReply, MetaRequest};
use wire::op::Read;
use wire::quic::{Endpoint, EventReceiver, Peer};

const LEASE: Duration = Duration::from_millis(LEASE_MS);

/// Opens a session of a client that caches.
async fn session_of(cluster: &Cluster, endpoint: &Endpoint) -> (SessionId, Peer) {
    let _ready = cluster.session().await;
    let session = opened(cluster, endpoint, true).await;
    (session, leading(cluster, endpoint).await)
}

/// Gives a session a lease on the root directory. Returns its events, and a time at which the lease began at the latest.
async fn lease(peer: &Peer, session: SessionId) -> (EventReceiver, Instant) {
    let mut events = peer.open_events(&MetaRequest::Events { session, dirty: false }).await.unwrap();
    let first: MetaEvent = events.next().await.unwrap();
    assert!(matches!(first, MetaEvent::Attached { seq: None }), "{first:?}");
    let since = Instant::now();
    let alive = ask(peer, &MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) }).await;
    assert!(matches!(alive, MetaReply::Alive { leases: LeaseState::Extended { .. }, .. }), "{alive:?}");
    let read = MetaRequest::Read {
        session,
        read: Read::GetAttr { ino: Ino::ROOT },
        delegate: false,
        sends: false,
        caller: None,
    };
    let read = ask(peer, &read).await;
    assert!(matches!(read, MetaReply::Read { leased: true, .. }), "{read:?}");
    (events, since)
}

async fn ask(peer: &Peer, request: &MetaRequest) -> MetaReply {
    peer.request::<_, MetaReply>(request, &[], LIMIT).await.unwrap().0
}

/// Guards I2: a leader that comes after the eviction does not know of the leases.
#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_acknowledged_when_the_session_can_answer_nothing_from_its_caches_any_more() {
    let cluster = Cluster::start(3).await;
    let endpoint = client(&cluster.ca, "silent", false);
    let (session, peer) = session_of(&cluster, &endpoint).await;
    let (_events, since) = lease(&peer, session).await;
    let evicted = cluster.admin(AdminRequest::EvictSession { session }).await;
    assert!(matches!(evicted, AdminReply::Done), "{evicted:?}");
    assert!(since.elapsed() >= LEASE, "its lease still holds, after {:?}", since.elapsed());
    let alive = ask(&peer, &MetaRequest::KeepAlive { session, epoch: LayoutEpoch(0) }).await;
    assert!(matches!(alive, MetaReply::Failed(FsError::SessionExpired)), "{alive:?}");
    // As if its leader had been lost before it could answer.
    let again = cluster.admin(AdminRequest::EvictSession { session }).await;
    assert!(matches!(again, AdminReply::Done), "{again:?}");
    let unknown = cluster.admin(AdminRequest::EvictSession { session: SessionId(7) }).await;
    assert!(matches!(&unknown, AdminReply::Failed(reason) if reason.contains("there is no session 7")), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_waits_no_longer_than_until_the_session_has_dropped_what_it_cached() {
    let cluster = Cluster::start(1).await;
    let endpoint = client(&cluster.ca, "lively", false);
    let (session, peer) = session_of(&cluster, &endpoint).await;
    let (mut events, since) = lease(&peer, session).await;
    let acknowledges = async {
        loop {
            if let MetaEvent::RecallAll { seq } = events.next().await.unwrap() {
                return ask(&peer, &MetaRequest::Acknowledge { session, seqs: vec![seq] }).await;
            }
        }
    };
    let (evicted, _) = tokio::join!(cluster.admin(AdminRequest::EvictSession { session }), acknowledges);
    assert!(matches!(evicted, AdminReply::Done), "{evicted:?}");
    assert!(since.elapsed() < LEASE, "{:?}", since.elapsed());
}
