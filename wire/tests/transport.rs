//! Real endpoints on loopback.
#![allow(missing_docs)]

use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use wire::Error;
use wire::quic::{Endpoint, Incoming, Peer, ServerHandle, Service};
use wire::tls::{ClusterCa, Identity, PeerIdentity, Role, Subject};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(serde::Serialize, serde::Deserialize)]
enum Ask {
    Echo(u32),
    Silence,
    Count(u32),
    Produce(u32),
    Take,
    Slow { millis: u64, len: u32 },
    Watch,
    Wait,
    WatcherLeft,
    RequestId,
}

/// Echoes, serving clients only.
struct Echo {
    block: Bytes,
    watcher_left: tokio::sync::Notify,
}

impl Echo {
    fn new() -> Arc<Self> {
        Arc::new(Self { block: Bytes::from(vec![7; 4 << 20]), watcher_left: tokio::sync::Notify::new() })
    }
}

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
                request.respond(&len, &[self.block.slice(..len as usize)]).await;
            }
            Ok(Ask::Take) => match request.read_payload().await {
                Ok(_) => request.respond(&0_u32, &[]).await,
                Err(error) => request.refuse(&error.to_string()).await,
            },
            Ok(Ask::Slow { millis, len }) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                request.respond(&len, &[self.block.slice(..len as usize)]).await;
            }
            Ok(Ask::Watch) => {
                let mut events = request.into_events();
                events.send(&0_u32).await.unwrap();
                events.closed().await;
                self.watcher_left.notify_one();
            }
            Ok(Ask::Wait) => {
                let mut events = request.into_events();
                events.send(&0_u32).await.unwrap();
                std::future::pending().await
            }
            Ok(Ask::WatcherLeft) => {
                self.watcher_left.notified().await;
                request.respond(&0_u32, &[]).await;
            }
            Ok(Ask::RequestId) => {
                let id = request.request_id();
                request.respond(&id, &[]).await;
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
    let handle = endpoint.serve(Echo::new(), &Handle::current());
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
            peer.request(&Ask::Echo(len as u32), std::slice::from_ref(&payload), LIMIT).await.unwrap();
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
    assert_eq!(sum, (0..256).sum::<u32>());
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
    let _serving = again.serve(Echo::new(), &Handle::current());
    let started = Instant::now();
    while peer.request::<_, u32>(&Ask::Echo(2), &[], LIMIT).await.is_err() {
        assert!(started.elapsed() < LIMIT, "not reached again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_refused_with_advice() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let error = Endpoint::bind(server.local_addr(), &identity(&ca, Role::Metad)).err().unwrap().to_string();
    assert!(error.contains("another program uses it"), "{error}");
}

/// As after `kill -9`: the kernel closes the files of a process a moment after it has left the list of processes.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_becomes_free_within_a_moment_is_taken() {
    let ca = ClusterCa::create("t").unwrap();
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    let endpoint = Endpoint::bind(addr, &identity(&ca, Role::Metad)).unwrap();
    assert_eq!(endpoint.local_addr(), addr);
    closing.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_costs_many_callers_one_handshake_and_nothing_was_sent() {
    let ca = ClusterCa::create("t").unwrap();
    // Bound, so that nobody else answers there, and never read.
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = caller(&ca, Role::Client);
    let peer = client.peer(dead.local_addr().unwrap(), Role::Metad);
    let started = Instant::now();
    let asks: Vec<_> = (0..32)
        .map(|number| {
            let peer = peer.clone();
            tokio::spawn(async move { peer.request::<_, u32>(&Ask::Echo(number), &[], LIMIT).await })
        })
        .collect();
    for ask in asks {
        let asked = ask.await.unwrap();
        assert!(matches!(asked, Err(Error::NotSent { .. })), "{:?}", asked.err());
    }
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_before_anything_was_sent_is_reported_as_not_sent() {
    let ca = ClusterCa::create("t").unwrap();
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = caller(&ca, Role::Client);
    let peer = client.peer(dead.local_addr().unwrap(), Role::Metad);
    let asked = peer.request::<_, u32>(&Ask::Echo(1), &[], Duration::from_millis(50)).await;
    assert!(matches!(asked, Err(Error::NotSent { .. })), "{:?}", asked.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_request_ends_at_its_deadline_too() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let request = peer.open_request(&Ask::Silence, 0, Duration::from_millis(100)).await.unwrap();
    assert!(matches!(request.finish::<u32>().await, Err(Error::Unanswered { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_answers_what_it_has_begun() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let mut asks = Vec::new();
    for _ in 0..4 {
        let ask = Ask::Slow { millis: 300, len: 4 << 20 };
        let request = peer.open_request(&ask, 0, LIMIT).await.unwrap();
        asks.push(tokio::spawn(request.finish::<u32>()));
    }
    // Streams of one connection are accepted in order: when this one is answered, those before it have begun.
    peer.request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await.unwrap();
    serving.stop(LIMIT).await;
    for ask in asks {
        assert_eq!(ask.await.unwrap().unwrap().1.len(), 4 << 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_at_its_limit_even_if_a_request_still_waits() {
    let ca = ClusterCa::create("t").unwrap();
    let service = Echo::new();
    let server = caller(&ca, Role::Metad);
    let serving = server.serve(service.clone(), &Handle::current());
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let silent = peer.open_request(&Ask::Silence, 0, LIMIT).await.unwrap();
    let ask = tokio::spawn(silent.finish::<u32>());
    peer.request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await.unwrap();
    serving.stop(Duration::from_millis(100)).await;
    assert!(matches!(ask.await.unwrap(), Err(Error::Unanswered { .. })));
    assert_eq!(Arc::strong_count(&service), 1, "nothing holds the service any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_of_events_learns_that_the_receiver_left() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let mut events = peer.open_events(&Ask::Watch).await.unwrap();
    assert_eq!(events.next::<u32>().await.unwrap(), 0);
    drop(events);
    peer.request::<_, u32>(&Ask::WatcherLeft, &[], LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_does_not_wait_for_streams_of_events() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let mut events = client.peer(server.local_addr(), Role::Metad).open_events(&Ask::Wait).await.unwrap();
    assert_eq!(events.next::<u32>().await.unwrap(), 0);
    let started = Instant::now();
    serving.stop(LIMIT).await;
    assert!(started.elapsed() < LIMIT / 2, "{:?}", started.elapsed());
    assert!(events.next::<u32>().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_caller_ends_its_stream_of_events_but_not_the_server() {
    let ca = ClusterCa::create("t").unwrap();
    let service = Echo::new();
    let server = caller(&ca, Role::Metad);
    let serving = server.serve(service.clone(), &Handle::current());
    let client = caller(&ca, Role::Client);
    let mut events = client.peer(server.local_addr(), Role::Metad).open_events(&Ask::Wait).await.unwrap();
    assert_eq!(events.next::<u32>().await.unwrap(), 0);
    client.close().await;
    let started = Instant::now();
    // The test and the accepting task hold it, no handler any more.
    while Arc::strong_count(&service) > 2 {
        assert!(started.elapsed() < LIMIT, "the handler of a lost caller lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_often_gives_up_waiting_misses_no_event() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let mut events = client.peer(server.local_addr(), Role::Metad).open_events(&Ask::Count(20_000)).await.unwrap();
    let mut expected = 0_u32;
    while expected < 20_000 {
        if let Ok(event) = tokio::time::timeout(Duration::from_micros(20), events.next::<u32>()).await {
            assert_eq!(event.unwrap(), expected);
            expected += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_known_by_its_callers_id() {
    let ca = ClusterCa::create("t").unwrap();
    let (server, _serving) = server(&ca);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(server.local_addr(), Role::Metad);
    let asked = wire::trace::within(77, peer.request::<_, u64>(&Ask::RequestId, &[], LIMIT));
    assert_eq!(asked.await.unwrap().0, 77);
}

/// Kills the process when the test ends, however it ends.
struct Child(std::process::Child);

impl Child {
    /// Starts this program as a server at `port` (0: any), and returns it with its port.
    fn serve(identity: &std::path::Path, port: u16) -> (Self, u16) {
        use std::io::BufRead;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "serves_in_a_process_of_its_own", "--nocapture"])
            .env("SURF_TEST_SERVER", format!("{port} {}", identity.display()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let child = Self(child);
        let port = lines.map_while(Result::ok).find_map(|line| line.split("port ").nth(1)?.trim().parse().ok());
        (child, port.expect("the server tells its port"))
    }

    /// As `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the server of another test"]
async fn serves_in_a_process_of_its_own() {
    let Ok(arguments) = std::env::var("SURF_TEST_SERVER") else { return };
    let (port, identity) = arguments.split_once(' ').unwrap();
    let identity = Identity::load(std::path::Path::new(identity)).unwrap();
    let endpoint = Endpoint::bind(format!("127.0.0.1:{port}").parse().unwrap(), &identity).unwrap();
    let _serving = endpoint.serve(Echo::new(), &Handle::current());
    println!("port {}", endpoint.local_addr().port());
    // Its parent kills it; the limit is for when the parent could not.
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_and_started_again_is_reached_before_the_idle_timeout() {
    let ca = ClusterCa::create("t").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.pem");
    identity(&ca, Role::Metad).save(&file).unwrap();
    let (first, port) = Child::serve(&file, 0);
    let client = caller(&ca, Role::Client);
    let peer = client.peer(format!("127.0.0.1:{port}").parse().unwrap(), Role::Metad);
    peer.request::<_, u32>(&Ask::Echo(1), &[], LIMIT).await.unwrap();
    first.kill();
    let (_second, _) = Child::serve(&file, port);
    let started = Instant::now();
    while peer.request::<_, u32>(&Ask::Echo(2), &[], LIMIT).await.is_err() {
        assert!(started.elapsed() < LIMIT, "not reached again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: cargo test --release -p wire -- --ignored --nocapture"]
async fn throughput_and_round_trip_over_loopback() {
    let ca = ClusterCa::create("t").unwrap();
    for (serve_there, call_there) in [(false, false), (true, false), (true, true)] {
        let server = caller(&ca, Role::Metad);
        let runtime = if serve_there { server.handle() } else { Handle::current() };
        let _serving = server.serve(Echo::new(), &runtime);
        let client = caller(&ca, Role::Client);
        let peer = client.peer(server.local_addr(), Role::Metad);
        println!("on the network thread: serving {serve_there}, calling {call_there}");
        let runtime = if call_there { client.handle() } else { Handle::current() };
        runtime.spawn(async move { measure(&peer).await }).await.unwrap();
    }
}

async fn measure(peer: &Peer) {
    let block = Bytes::from(vec![7; 4 << 20]);
    for (len, upload) in [(1_u32 << 20, false), (1 << 20, true), (4 << 20, false)] {
        let started = Instant::now();
        let total = 1_u64 << 30;
        let lanes: Vec<_> = (0..4)
            .map(|_| {
                let (peer, block) = (peer.clone(), block.slice(..len as usize));
                tokio::spawn(async move {
                    for _ in 0..total / 4 / u64::from(len) {
                        if upload {
                            peer.request::<_, u32>(&Ask::Take, std::slice::from_ref(&block), LIMIT).await.unwrap();
                        } else {
                            peer.request::<_, u32>(&Ask::Produce(len), &[], LIMIT).await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for lane in lanes {
            lane.await.unwrap();
        }
        let rate = total as f64 / 1e6 / started.elapsed().as_secs_f64();
        println!("{len} B {}: {rate:.0} MB/s", if upload { "up" } else { "down" });
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
