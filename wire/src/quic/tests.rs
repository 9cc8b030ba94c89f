//! Requests that a well-behaved caller never sends.

use super::admission::VERIFY_FROM;
use super::socket::{ALPN, VERSIONS};
use super::stream::read_exactly;
use super::{Endpoint, Incoming, Peer, ServerHandle, Service};
use crate::Error;
use crate::frame::{REPLY_HEADER, ReplyHeader, ReplyKind, RequestHeader};
use crate::limits::{
    CLIENT_BYTES_MAX, DEADLINE_MAX_MS, DEADLINE_TRUSTED_MAX_MS, HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, REFUSAL_BYTES_MAX,
};
use crate::tls::{ClusterCa, PeerIdentity, Role, Subject};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(5);

struct Polite;

impl Service for Polite {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, mut request: Incoming) {
        match request.read_payload().await {
            Ok(_) => request.respond(&(), &[]).await,
            Err(error) => request.refuse(&error.to_string()).await,
        }
    }
}

/// A server, and a client that speaks `versions`.
fn pair(versions: &[&[u8]]) -> (Endpoint, ServerHandle, Endpoint) {
    let ca = ClusterCa::create("t").unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let metad = Endpoint::bind(any, &ca.issue(&Subject::new(Role::Metad, "m")).unwrap()).unwrap();
    let serving = metad.serve(Arc::new(Polite), &Handle::current());
    let identity = ca.issue(&Subject::new(Role::Client, "c")).unwrap();
    let client = Endpoint::bind_speaking(any, &identity, versions).unwrap();
    (metad, serving, client)
}

/// Sends raw bytes as a request and returns the reply's header and head.
async fn send_raw(peer: &Peer, bytes: &[u8]) -> (ReplyHeader, Bytes) {
    let (mut send, mut recv) = peer.connected().await.unwrap().connection.open_bi().await.unwrap();
    // The server may have refused, and stopped reading, before all is written.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let bytes = read_exactly(&mut recv, REPLY_HEADER).await.unwrap();
    let mut fixed = [0; REPLY_HEADER];
    fixed.copy_from_slice(&bytes);
    let header = ReplyHeader::decode(&fixed).unwrap();
    let head = read_exactly(&mut recv, header.head_len as usize).await.unwrap();
    (header, head)
}

#[tokio::test]
async fn peers_without_a_common_version_report_that() {
    let (metad, _serving, client) = pair(&[b"surf/1"]);
    let peer = client.peer(metad.local_addr(), Role::Metad);
    let asked = peer.request::<_, ()>(&(), &[], LIMIT).await;
    assert!(matches!(asked, Err(Error::ProtocolVersion { .. })), "{:?}", asked.err());
}

#[test]
fn the_versions_that_people_are_told_are_those_that_are_spoken() {
    let spoken: Vec<_> = ALPN.iter().map(|name| String::from_utf8_lossy(&name[b"surf/".len()..])).collect();
    assert_eq!(spoken.join(", "), VERSIONS);
}

/// Otherwise the first packets wait for probes, and a connection that is closed at once is closed without a word.
#[tokio::test]
async fn a_new_connection_has_room_for_ten_datagrams_of_its_path() {
    let (metad, _serving, client) = pair(ALPN);
    let connection = client.peer(metad.local_addr(), Role::Metad).connected().await.unwrap().connection;
    let path = connection.stats().path;
    assert!(path.cwnd >= 10 * u64::from(path.current_mtu), "{} of {}", path.cwnd, path.current_mtu);
}

#[tokio::test]
async fn an_oversized_or_malformed_header_is_refused_and_the_connection_lives_on() {
    let (metad, _serving, client) = pair(ALPN);
    let peer = client.peer(metad.local_addr(), Role::Metad);
    let first = peer.connected().await.unwrap().connection.stable_id();
    let huge_head = RequestHeader { deadline_ms: 1000, request_id: 1, head_len: u32::MAX, payload_len: 0 };
    let huge_payload = RequestHeader { head_len: 0, payload_len: u32::MAX, ..huge_head };
    for bytes in [huge_head.encode(), huge_payload.encode(), [0xff; 24]] {
        let (reply, reason) = send_raw(&peer, &bytes).await;
        assert!(reply.kind == ReplyKind::Refused && !reason.is_empty());
    }
    peer.request::<_, ()>(&(), &[], LIMIT).await.unwrap();
    assert_eq!(peer.connected().await.unwrap().connection.stable_id(), first);
}

#[tokio::test]
async fn a_refusal_is_not_kept_at_any_length() {
    let (metad, _serving, client) = pair(ALPN);
    let peer = client.peer(metad.local_addr(), Role::Metad);
    match peer.check(ReplyKind::Refused, &vec![b'x'; HEAD_BYTES_MAX]) {
        Err(Error::Refused { reason, .. }) => assert_eq!(reason.len(), REFUSAL_BYTES_MAX),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_payload_of_another_length_than_announced_is_refused() {
    let (metad, _serving, client) = pair(ALPN);
    let peer = client.peer(metad.local_addr(), Role::Metad);
    let header = RequestHeader { deadline_ms: 5000, request_id: 1, head_len: 0, payload_len: 100 };
    for sent in [99, 101, 100_000] {
        let mut bytes = header.encode().to_vec();
        bytes.resize(bytes.len() + sent, 7);
        let (reply, _) = send_raw(&peer, &bytes).await;
        assert_eq!(reply.kind, ReplyKind::Refused, "{sent} bytes were taken for 100");
    }
}

#[tokio::test]
async fn what_exceeds_a_limit_is_not_sent_at_all() {
    let (metad, _serving, client) = pair(ALPN);
    let peer = client.peer(metad.local_addr(), Role::Metad);
    let head = vec![0_u8; HEAD_BYTES_MAX + 1];
    assert!(matches!(peer.request::<_, ()>(&head, &[], LIMIT).await, Err(Error::Malformed(_))));
    assert!(matches!(peer.open_request(&(), u32::MAX, LIMIT).await, Err(Error::Malformed(_))));
    let mut request = peer.open_request(&(), 3, LIMIT).await.unwrap();
    request.write(Bytes::from_static(b"ab")).await.unwrap();
    assert!(matches!(request.write(Bytes::from_static(b"cd")).await, Err(Error::Malformed(_))));
}

/// Answers with what is left of the deadline, in milliseconds.
struct Watch;

impl Service for Watch {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, request: Incoming) {
        let left = request.deadline().saturating_duration_since(std::time::Instant::now());
        request.respond(&(left.as_millis() as u64), &[]).await;
    }
}

#[tokio::test]
async fn no_caller_gets_a_deadline_of_weeks() {
    let ca = ClusterCa::create("t").unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let endpoint = |role| Endpoint::bind(any, &ca.issue(&Subject::new(role, "x")).unwrap()).unwrap();
    let metad = endpoint(Role::Metad);
    let _serving = metad.serve(Arc::new(Watch), &Handle::current());
    for (role, most) in [(Role::Client, DEADLINE_MAX_MS), (Role::Admin, DEADLINE_TRUSTED_MAX_MS)] {
        let caller = endpoint(role);
        let peer = caller.peer(metad.local_addr(), Role::Metad);
        let (left, _) = peer.request::<_, u64>(&(), &[], Duration::from_secs(40 * 86_400)).await.unwrap();
        assert!(left <= most && left > most - 5_000, "{role}: {left} ms");
        let (left, _) = peer.request::<_, u64>(&(), &[], LIMIT).await.unwrap();
        assert!(left <= LIMIT.as_millis() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_announces_more_than_its_budget_is_refused_and_another_is_served() {
    let (metad, _serving, client) = pair(ALPN);
    let peer = client.peer(metad.local_addr(), Role::Metad);
    let payload_len = PAYLOAD_BYTES_MAX as u32;
    let announced = RequestHeader { deadline_ms: 60_000, request_id: 1, head_len: 0, payload_len };
    let fit = CLIENT_BYTES_MAX / PAYLOAD_BYTES_MAX;
    let connection = peer.connected().await.unwrap().connection;
    let mut open = Vec::new();
    for _ in 0..fit {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&announced.encode()).await.unwrap();
        open.push((send, recv));
    }
    // The server may come to these later than to the next one, which is refused for its missing payload then.
    let started = std::time::Instant::now();
    while !String::from_utf8_lossy(&send_raw(&peer, &announced.encode()).await.1).contains("under way") {
        assert!(started.elapsed() < LIMIT * 4, "nobody counts");
    }
    let outcome = peer.request::<_, ()>(&(), &[Bytes::from(vec![0; PAYLOAD_BYTES_MAX])], LIMIT).await;
    assert!(matches!(outcome, Err(Error::Busy { .. })), "it may be asked again: {outcome:?}");
    let other = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &client.identity());
    let other = other.unwrap();
    other.peer(metad.local_addr(), Role::Metad).request::<_, ()>(&(), &[], LIMIT).await.unwrap();
    // What is given up gives its room back.
    drop(open);
    let started = std::time::Instant::now();
    while send_raw(&peer, &announced.encode()).await.1.starts_with(b"too many") {
        assert!(started.elapsed() < LIMIT * 4);
    }
}

/// Answers requests without a payload with a megabyte, once it is told to.
struct Large {
    asked: Semaphore,
    may_answer: Semaphore,
    /// Answers that wait for nothing any more but to be acknowledged.
    answered: Semaphore,
}

impl Service for Large {
    fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, mut request: Incoming) {
        if request.read_payload().await.is_ok_and(|payload| !payload.is_empty()) {
            return request.respond(&(), &[]).await;
        }
        self.asked.add_permits(1);
        self.may_answer.acquire().await.unwrap().forget();
        request.respond(&(), &[Bytes::from(vec![7; 1 << 20])]).await;
        self.answered.add_permits(1);
    }
}

#[test]
fn of_answers_that_a_client_does_not_acknowledge_a_server_keeps_what_fits_in_its_share() {
    const CONNECTIONS: usize = 64;
    const ASKED: u32 = 32;
    let (serving, calling) = (Runtime::new().unwrap(), Builder::new_current_thread().enable_all().build().unwrap());
    let (ca, any) = (ClusterCa::create("t").unwrap(), "127.0.0.1:0".parse().unwrap());
    let metad = Endpoint::bind(any, &ca.issue(&Subject::new(Role::Metad, "m")).unwrap()).unwrap();
    let [asked, may_answer, answered] = std::array::from_fn(|_| Semaphore::new(0));
    let answers = Arc::new(Large { asked, may_answer, answered });
    let _serving = metad.serve(answers.clone(), serving.handle());
    let identity = ca.issue(&Subject::new(Role::Client, "c")).unwrap();
    let bind = |_| Endpoint::bind_within(any, &identity, calling.handle().clone()).unwrap();
    let clients: Vec<Endpoint> = (0..CONNECTIONS).map(bind).collect();
    let open = calling.block_on(async {
        for client in &clients {
            let payload = [Bytes::from_static(b"x")];
            client.peer(metad.local_addr(), Role::Metad).request::<_, ()>(&(), &payload, LIMIT).await.unwrap();
        }
        let connection = clients[0].peer(metad.local_addr(), Role::Metad).connected().await.unwrap().connection;
        let header = RequestHeader { deadline_ms: 60_000, request_id: 1, head_len: 0, payload_len: 0 }.encode();
        let mut open = Vec::new();
        for _ in 0..ASKED {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&header).await.unwrap();
            send.finish().unwrap();
            open.push((send, recv));
        }
        timeout(LIMIT, answers.asked.acquire_many(ASKED)).await.unwrap().unwrap().forget();
        open
    });
    // From now on nobody runs what would acknowledge packets.
    answers.may_answer.add_permits(ASKED as usize);
    let limit = Duration::from_secs(1);
    let all = serving.block_on(async { timeout(limit, answers.answered.acquire_many(ASKED)).await.is_ok() });
    assert!(!all, "all {ASKED} answers of a megabyte are kept for one of {CONNECTIONS} connections");
    let kept = answers.answered.available_permits();
    assert!((1..=8).contains(&kept), "{kept}");
    drop(open);
}

/// Returns first packets of so many connections, none of which goes on.
async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let stranger = ClusterCa::create("other").unwrap().issue(&Subject::new(Role::Client, "s")).unwrap();
    let mut packets = Vec::new();
    for _ in 0..count {
        // One for each: the others send theirs again.
        let sink = UdpSocket::bind(any).await.unwrap();
        let endpoint = Endpoint::bind(any, &stranger).unwrap();
        let peer = endpoint.peer(sink.local_addr().unwrap(), Role::Metad);
        let mut packet = vec![0; 65_536];
        let len = tokio::select! {
            _ = peer.request::<_, ()>(&(), &[], LIMIT) => panic!("nobody answers"),
            received = sink.recv(&mut packet) => received.unwrap(),
        };
        packet.truncate(len);
        packets.push(packet);
    }
    packets
}

#[tokio::test(flavor = "multi_thread")]
async fn while_strangers_only_begin_handshakes_addresses_are_verified_and_peers_get_in() {
    let (metad, _serving, client) = pair(ALPN);
    let packets = first_packets(VERIFY_FROM + 8).await;
    let mut kinds = Vec::new();
    let mut strangers = Vec::new();
    for (number, packet) in packets.iter().enumerate() {
        // All of 127.0.0.0/8 is this machine: each packet claims another address.
        let stranger = UdpSocket::bind(SocketAddr::from(([127, 1, 0, number as u8 + 1], 0))).await.unwrap();
        stranger.send_to(packet, metad.local_addr()).await.unwrap();
        let mut answer = [0; 65_536];
        timeout(LIMIT, stranger.recv(&mut answer)).await.unwrap().unwrap();
        // RFC 9000 §17.2: the type of a packet with a long header. 3 is Retry.
        kinds.push((answer[0] >> 4) & 3);
        strangers.push(stranger);
    }
    assert!(kinds[..VERIFY_FROM].iter().all(|kind| *kind != 3), "{kinds:?}");
    assert!(kinds[VERIFY_FROM..].iter().all(|kind| *kind == 3), "{kinds:?}");
    client.peer(metad.local_addr(), Role::Metad).request::<_, ()>(&(), &[], LIMIT).await.unwrap();
}
