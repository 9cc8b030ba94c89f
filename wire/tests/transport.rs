//! Real endpoints on loopback.
#![allow(missing_docs)]

use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use wire::Error;
use wire::quic::{Endpoint, Incoming, ServerHandle, Service};
use wire::tls::{ClusterCa, Identity, PeerIdentity, Role, Subject};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(serde::Serialize, serde::Deserialize)]
enum Ask {
    Echo(u32),
    Silence,
    Count(u32),
    Produce(u32),
}

/// Echoes, serving clients only.
struct Echo;

impl Service for Echo {
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), Error> {
        match peer.subject.role {
            Role::Client => Ok(()),
            role => Err(Error::Malformed(format!("clients only, not {role}"))),
        }
    }

    async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, mut request: Incoming) {
        match request.decode::<Ask>() {
            Ok(Ask::Echo(number)) => match request.read_payload().await {
                Ok(payload) => request.respond(&number, &[payload]).await,
                Err(error) => request.refuse(&error.to_string()).await,
            },
            Ok(Ask::Silence) => std::future::pending().await,
            Ok(Ask::Produce(len)) => {
                let payload = Bytes::from(vec![7; len as usize]);
                request.respond(&len, &[payload]).await;
            }
            Ok(Ask::Count(to)) => {
                let mut events = request.into_events();
                for number in 0..to {
                    events.send(&number).await.unwrap();
                }
            }
            Err(error) => request.refuse(&error.to_string()).await,
        }
    }
}

fn identity(ca: &ClusterCa, role: Role) -> Identity {
    ca.issue(&Subject::new(role, "test")).unwrap()
}

fn server(ca: &ClusterCa) -> (Endpoint, ServerHandle) {
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, Role::Metad)).unwrap();
    let handle = endpoint.serve(Arc::new(Echo), &Handle::current());
    (endpoint, handle)
}

fn caller(ca: &ClusterCa, role: Role) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, role)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_payloads_come_back_as_they_were_sent() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let peer = caller(&ca, Role::Client);
    let peer = peer.peer(server.local_addr(), Role::Metad);
    for len in [0, 1, 5000, 4 << 20] {
        let payload = Bytes::from((0..len).map(|i| i as u8).collect::<Vec<u8>>());
        let (number, back): (u32, Bytes) =
            peer.request(&Ask::Echo(len as u32), &[payload.clone()], LIMIT).await.unwrap();
        assert_eq!((number as usize, back), (len, payload));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_a_connection() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let asks = (0..256).map(|number| {
        let peer = peer.clone();
        tokio::spawn(async move { peer.request::<_, u32>(&Ask::Echo(number), &[], LIMIT).await.unwrap().0 })
    });
    let mut sum = 0;
    for ask in asks.collect::<Vec<_>>() {
        sum += ask.await.unwrap();
    }
    assert_eq!(sum, (0..256).sum());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_the_wrong_role_is_refused_on_both_sides() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let asked = client.peer(server.local_addr(), Role::Blockd).request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await;
    assert!(matches!(asked, Err(Error::WrongRole { .. })), "{:?}", asked.err());
    let blockd = caller(&ca, Role::Blockd);
    let asked = blockd.peer(server.local_addr(), Role::Metad).request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await;
    assert!(matches!(asked, Err(Error::Refused { .. })), "{:?}", asked.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_cluster_is_refused() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ClusterCa::create("t").unwrap(), Role::Client);
    let asked = client.peer(server.local_addr(), Role::Metad).request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await;
    assert!(matches!(asked, Err(Error::WrongCluster { .. })), "{:?}", asked.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_request_ends_at_its_deadline() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let asked = peer.request::<_, u32>(&Ask::Silence, &[], Duration::from_millis(100)).await;
    assert!(matches!(asked, Err(Error::Unanswered { .. })));
    assert_eq!(peer.request::<_, u32>(&Ask::Echo(3), &[], LIMIT).await.unwrap().0, 3, "others are served on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_head_is_refused_and_the_connection_lives_on() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let asked = peer.request::<_, u32>(&(99_u32, "nonsense"), &[], LIMIT).await;
    assert!(matches!(asked, Err(Error::Refused { .. })));
    assert_eq!(peer.request::<_, u32>(&Ask::Echo(3), &[], LIMIT).await.unwrap().0, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_in_order_until_the_sender_ends() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let mut events = client.peer(server.local_addr(), Role::Metad).open_events(&Ask::Count(50)).await.unwrap();
    for expected in 0..50_u32 {
        assert_eq!(events.next::<u32>().await.unwrap(), expected);
    }
    assert!(events.next::<u32>().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_is_reached_again() {
    let ca = ClusterCa::create("t").unwrap();
    let (first, serving) = server(&ca);
    let addr = first.local_addr();
    let client = caller(&ca, Role::Client);
    let peer = client.peer(addr, Role::Metad);
    peer.request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await.unwrap();
    serving.stop(LIMIT).await;
    first.close().await;
    drop(first);
    let again = loop {
        match Endpoint::bind(addr, &identity(&ca, Role::Metad)) {
            Ok(endpoint) => break endpoint,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let _serving = again.serve(Arc::new(Echo), &Handle::current());
    let started = Instant::now();
    while peer.request::<_, u32>(&Ask::Echo(2), &[], LIMIT).await.is_err() {
        assert!(started.elapsed() < LIMIT, "not reached again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_refused_with_what_to_do() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let error = Endpoint::bind(server.local_addr(), &identity(&ca, Role::Metad)).err().unwrap().to_string();
    assert!(error.contains("another program uses it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: cargo test --release -p wire -- --ignored --nocapture"]
async fn throughput_and_round_trip_over_loopback() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    for len in [1_u32 << 20, 4 << 20] {
        let started = Instant::now();
        let total = 1_u64 << 30;
        let lanes: Vec<_> = (0..4)
            .map(|_| {
                let peer = peer.clone();
                tokio::spawn(async move {
                    for _ in 0..total / 4 / u64::from(len) {
                        peer.request::<_, u32>(&Ask::Produce(len), &[], LIMIT).await.unwrap();
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await.unwrap();
        }
        println!("{len} B replies: {:.0} MB/s", total as f64 / 1e6 / started.elapsed().as_secs_f64());
    }
    let mut times = Vec::new();
    for _ in 0..5000 {
        let started = Instant::now();
        peer.request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("round trip p50 {:?} p99 {:?}", times[2500], times[4950]);
}
