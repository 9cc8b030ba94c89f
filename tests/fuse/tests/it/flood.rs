//! A flood of first packets, from addresses that need not be those of whoever sends them.

use fuse::{Stop, sync_file};
use kit::{Setup, Surf};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use wire::quic::Endpoint;
use wire::tls::{ClusterCa, Role, Subject};

/// How long the flood lasts.
const FLOOD: Duration = Duration::from_secs(10);
/// First packets, each of a connection of its own: many more than the handshakes that a server begins for addresses that
/// are not verified.
const PACKETS: usize = 256;
/// Addresses from which they come: all of 127.0.0.0/8 is this machine.
const SOURCES: u8 = 16;
/// Packets that each metad gets at once, and the pause after them: 2,000 in a second, or 20 Mbit.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// The longest time that a synced file may take.
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// Within this time the first packet of a connection is sent.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns first packets of so many connections of another cluster's client, none of which goes on.
pub(super) async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let stranger = ClusterCa::create("other").unwrap().issue(&Subject::new(Role::Client, "stranger")).unwrap();
    let endpoint = Endpoint::bind(any, &stranger).unwrap();
    let mut packets = Vec::new();
    for _ in 0..count {
        // One for each connection: the others send their packets again.
        let sink = tokio::net::UdpSocket::bind(any).await.unwrap();
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

/// Sends these packets to all metads, again and again. Returns how many were sent, and how many metads have answered by
/// asking for a sign that the address receives anything.
pub(super) fn flood(packets: &[Vec<u8>], metads: &[SocketAddr], stopped: &AtomicBool) -> (usize, usize) {
    let bind = |number| {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 7, number], 0))).expect("a loopback address");
        socket.set_nonblocking(true).expect("a socket need not block");
        socket
    };
    let sources: Vec<UdpSocket> = (1..=SOURCES).map(bind).collect();
    let (mut sent, mut verified, mut answer) = (0, 0, [0; 65_536]);
    let mut next = packets.iter().zip(sources.iter().cycle()).cycle();
    while !stopped.load(Ordering::Relaxed) {
        for (packet, source) in next.by_ref().take(BURST) {
            // A full socket drops some.
            sent += metads.iter().filter(|metad| source.send_to(packet, **metad).is_ok()).count();
        }
        for source in &sources {
            while let Ok(len) = source.recv(&mut answer) {
                // RFC 9000 §17.2: a packet with a long header whose type is 3 is Retry.
                verified += usize::from(len > 0 && answer[0] & 0x80 != 0 && (answer[0] >> 4) & 3 == 3);
            }
        }
        thread::sleep(PAUSE);
    }
    (sent, verified)
}

#[test]
fn a_flood_of_first_packets_from_many_addresses_costs_no_election_and_keeps_nobody_waiting() {
    let surf = Surf::start_alone(Setup::Cluster);
    let daemons = surf.daemons();
    let metads: Vec<SocketAddr> = daemons
        .iter()
        .filter(|daemon| daemon.name.starts_with("metad"))
        .map(|daemon| daemon.address.parse().expect("a daemon has an address"))
        .collect();
    let packets = Runtime::new().unwrap().block_on(first_packets(PACKETS));
    let before = surf.term();
    let (mut synced, mut longest) = (0, Duration::ZERO);
    let (sent, verified) = thread::scope(|scope| {
        let (packets, metads, stop) = (&packets, &metads, Stop::default());
        let stopped = stop.flag();
        let flooding = scope.spawn(move || flood(packets, metads, &stopped));
        let begun = Instant::now();
        // Its connections are new, and its address has to be verified, too.
        let other = surf.mount_again(&[]);
        while begun.elapsed() < FLOOD {
            longest = longest.max(sync_file(&surf.path().join(format!("beside-{synced}")), &[7; 4096]));
            synced += 1;
        }
        let last = other.path().join(format!("beside-{}", synced - 1));
        assert_eq!(fs::read(last).expect("the other mount sees it"), [7; 4096]);
        drop(stop);
        flooding.join().expect("the flood ends")
    });
    println!(
        "{synced} files were synced beside {sent} packets, {verified} answers to them, the longest in {longest:?}"
    );
    assert!(sent > 10 * PACKETS && verified > 0, "{sent} packets, {verified} answers: that was no flood");
    assert!(longest < SYNC_LIMIT, "{longest:?}");
    assert_eq!(surf.term(), before, "there was an election");
}
