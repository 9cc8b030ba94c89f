//! Who gets in: before a peer has shown its certificate, it costs little, whatever address it claims, and one certificate
//! has a bounded number of connections.
//!
//! While few handshakes are under way, whoever asks gets one. Beyond that, an address must first show that it receives
//! what is sent to it (QUIC Retry, RFC 9000 §8.1.2), which costs no memory here. Beyond the limits, packets are dropped
//! without an answer: an honest peer sends its first packet again (RFC 9002 §6.2), and gets in when there is room.

use super::budget::Room;
use super::windows::{CONNECTION_WINDOW_BYTES, window_of};
use crate::tls::{Role, Subject};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Handshakes under way from which on addresses are verified.
pub(super) const VERIFY_FROM: usize = 32;
/// Handshakes under way at once.
const HANDSHAKES_MAX: usize = 512;
/// Those of one address: many mounts may be behind it.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 128;
/// Further places, for addresses that have shown a certificate before: strangers do not keep them out.
const HANDSHAKES_OF_KNOWN_MAX: usize = 256;
/// Addresses of which it is remembered that they have shown a certificate.
const KNOWN_MAX: usize = 4_096;
/// Connections of one certificate: its sessions, of which a metad allows half as many, may reconnect before their old
/// connections are known to be dead.
const CONNECTIONS_PER_CERTIFICATE_MAX: usize = 2_048;
/// How long a handshake may take.
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// What to do with a stranger's first packet.
pub(super) enum Verdict {
    /// Begin the handshake; it counts until this is dropped.
    Begin(Handshake),
    /// Have the address show that it receives packets.
    Verify,
    /// Drop the packet.
    Ignore,
}

/// The handshakes under way, and the connections that stand.
#[derive(Default)]
pub(super) struct Door {
    counts: Mutex<Counts>,
    certificates: Mutex<Certificates>,
    /// Addresses that have shown a certificate, the last one last.
    known: Mutex<VecDeque<IpAddr>>,
}

/// A connection that stands; it counts until this is dropped.
pub(super) struct Admitted {
    door: Arc<Door>,
    certificate: (String, Role),
    /// What all connections of the certificate may have the server hold.
    pub(super) room: Room,
    /// How many bytes of answers this connection may have on their way.
    pub(super) window: watch::Receiver<u64>,
}

/// A certificate that connections show.
struct Certificate {
    connections: usize,
    room: Room,
    /// The window of each of its connections.
    window: watch::Sender<u64>,
}

impl Certificate {
    fn of(role: Role) -> Self {
        let window = watch::Sender::new(u64::from(CONNECTION_WINDOW_BYTES));
        Self { connections: 0, room: Room::of_certificate(role), window }
    }
}

/// Certificates that connections show, by name and role.
type Certificates = HashMap<(String, Role), Certificate>;

/// Shares the windows out among the connections of clients.
fn share_windows(certificates: &Certificates) {
    let clients = || certificates.iter().filter(|((_, role), _)| *role == Role::Client);
    let count = clients().count();
    for (_, certificate) in clients() {
        let window = window_of(count, certificate.connections);
        certificate.window.send_if_modified(|shared| std::mem::replace(shared, window) != window);
    }
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A handshake under way.
pub(super) struct Handshake {
    door: Arc<Door>,
    address: IpAddr,
    /// What it counts as.
    counted: IpAddr,
}

impl Door {
    /// Decides about a first packet from this address.
    pub fn decide(self: &Arc<Self>, address: IpAddr, is_verified: bool) -> Verdict {
        let exact = address.to_canonical();
        let is_known = is_verified && self.known.lock().contains(&exact);
        // A peer that shares the network of a known address is still a stranger.
        let counted = if is_known { exact } else { network_of(exact) };
        let mut counts = self.counts.lock();
        if !is_verified && counts.all >= VERIFY_FROM {
            return Verdict::Verify;
        }
        let Counts { all, by_address } = &mut *counts;
        let of_address = by_address.get(&counted).copied().unwrap_or(0);
        let room = if is_known { HANDSHAKES_MAX + HANDSHAKES_OF_KNOWN_MAX } else { HANDSHAKES_MAX };
        if *all >= room || of_address >= HANDSHAKES_PER_ADDRESS_MAX {
            return Verdict::Ignore;
        }
        *all += 1;
        by_address.insert(counted, of_address + 1);
        Verdict::Begin(Handshake { door: self.clone(), address: exact, counted })
    }

    fn remember(&self, address: IpAddr) {
        let mut known = self.known.lock();
        if known.contains(&address) {
            return;
        }
        if known.len() >= KNOWN_MAX {
            known.pop_front();
        }
        known.push_back(address);
    }
}

impl Handshake {
    /// The network of this peer's address, whatever others there have shown.
    pub(super) fn network(&self) -> IpAddr {
        network_of(self.address)
    }

    /// Ends the handshake: the peer has shown this certificate. Returns `None` when too many connections show it.
    pub fn succeed(self, subject: &Subject) -> Option<Admitted> {
        self.door.remember(self.address);
        let certificate = (subject.name.clone(), subject.role);
        let mut certificates = self.door.certificates.lock();
        let known = certificates.entry(certificate.clone()).or_insert_with(|| Certificate::of(subject.role));
        if known.connections >= CONNECTIONS_PER_CERTIFICATE_MAX {
            return None;
        }
        known.connections += 1;
        let (room, window) = (known.room.clone(), known.window.subscribe());
        share_windows(&certificates);
        drop(certificates);
        Some(Admitted { door: self.door.clone(), certificate, room, window })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.door.counts.lock();
        counts.all -= 1;
        count_down(&mut counts.by_address, &self.counted);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut certificates = self.door.certificates.lock();
        if let Some(known) = certificates.get_mut(&self.certificate) {
            known.connections -= 1;
            if known.connections == 0 {
                certificates.remove(&self.certificate);
            }
        }
        share_windows(&certificates);
    }
}

/// Counts one less, and forgets what is counted no more.
fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Returns what counts as one address: whoever has one IPv6 address has its whole /64 network (RFC 6177).
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets as many in from an address as get in.
    fn fill(door: &Arc<Door>, address: IpAddr, is_verified: bool) -> Vec<Handshake> {
        std::iter::from_fn(|| match door.decide(address, is_verified) {
            Verdict::Begin(handshake) => Some(handshake),
            Verdict::Verify | Verdict::Ignore => None,
        })
        .collect()
    }

    fn address(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn an_address_that_does_not_show_that_it_receives_packets_takes_few_places() {
        let door = Arc::<Door>::default();
        let unverified = fill(&door, address(1), false);
        assert_eq!(unverified.len(), VERIFY_FROM);
        assert!(matches!(door.decide(address(2), false), Verdict::Verify));
        assert!(matches!(door.decide(address(2), true), Verdict::Begin(_)));
        drop(unverified);
        assert!(matches!(door.decide(address(2), false), Verdict::Begin(_)));
        assert!(door.counts.lock().by_address.is_empty(), "what has ended leaves nothing behind");
    }

    #[test]
    fn one_address_leaves_room_for_others_and_all_together_are_bounded() {
        let door = Arc::<Door>::default();
        let first = fill(&door, address(1), true);
        assert_eq!(first.len(), HANDSHAKES_PER_ADDRESS_MAX);
        let others: Vec<_> = (2..10).flat_map(|number| fill(&door, address(number), true)).collect();
        assert_eq!(first.len() + others.len(), HANDSHAKES_MAX);
        assert!(matches!(door.decide(address(99), true), Verdict::Ignore));
    }

    #[test]
    fn a_whole_network_of_ipv6_counts_as_one_address() {
        let door = Arc::<Door>::default();
        let _first = fill(&door, "2001:db8::1".parse().unwrap(), true);
        assert!(matches!(door.decide("2001:db8::ffff:2".parse().unwrap(), true), Verdict::Ignore));
        assert!(matches!(door.decide("2001:db8:0:1::1".parse().unwrap(), true), Verdict::Begin(_)));
        let _mapped = fill(&door, "::ffff:10.0.0.1".parse().unwrap(), true);
        assert!(matches!(door.decide(address(1), true), Verdict::Ignore));
    }

    #[test]
    fn a_certificate_has_a_bounded_number_of_connections_and_others_are_not_concerned() {
        let door = Arc::<Door>::default();
        let connect = |role, name| match door.decide(address(1), true) {
            Verdict::Begin(handshake) => handshake.succeed(&Subject::new(role, name)),
            Verdict::Verify | Verdict::Ignore => panic!("handshakes that have ended take no places"),
        };
        let mut standing: Vec<_> =
            std::iter::from_fn(|| connect(Role::Client, "one")).take(CONNECTIONS_PER_CERTIFICATE_MAX + 1).collect();
        assert_eq!(standing.len(), CONNECTIONS_PER_CERTIFICATE_MAX);
        assert!(connect(Role::Client, "two").is_some() && connect(Role::Metad, "one").is_some());
        standing.pop();
        assert!(connect(Role::Client, "one").is_some());
        drop(standing);
        assert!(door.certificates.lock().is_empty(), "what has ended leaves nothing behind");
    }

    #[test]
    fn connections_of_one_client_get_smaller_windows_and_those_of_others_and_of_daemons_do_not() {
        let door = Arc::<Door>::default();
        let connect = |role, name| match door.decide(address(1), true) {
            Verdict::Begin(handshake) => handshake.succeed(&Subject::new(role, name)).expect("few connections stand"),
            Verdict::Verify | Verdict::Ignore => panic!("handshakes that have ended take no places"),
        };
        let full = u64::from(CONNECTION_WINDOW_BYTES);
        let (first, other, daemon) =
            (connect(Role::Client, "one"), connect(Role::Client, "two"), connect(Role::Blockd, "one"));
        let more: Vec<_> = (0..100).map(|_| connect(Role::Client, "one")).collect();
        let window = |admitted: &Admitted| *admitted.window.borrow();
        assert_eq!((window(&first), window(&more[99])), (4 << 20, 4 << 20));
        assert_eq!((window(&other), window(&daemon)), (full, full));
        drop(more);
        assert_eq!(window(&first), full);
    }

    #[test]
    fn an_address_that_has_shown_a_certificate_gets_in_however_many_strangers_are_at_the_door() {
        let door = Arc::<Door>::default();
        let peer: IpAddr = "2001:db8::1".parse().unwrap();
        let Verdict::Begin(handshake) = door.decide(peer, true) else { panic!("nobody else is there") };
        let _standing = handshake.succeed(&Subject::new(Role::Metad, "m"));
        let _neighbours = fill(&door, "2001:db8::2".parse().unwrap(), true);
        let _others: Vec<_> = (1..10).flat_map(|number| fill(&door, address(number), true)).collect();
        assert_eq!(door.counts.lock().all, HANDSHAKES_MAX);
        assert!(matches!(door.decide("2001:db8::3".parse().unwrap(), true), Verdict::Ignore));
        let again = fill(&door, peer, true);
        assert_eq!(again.len(), HANDSHAKES_PER_ADDRESS_MAX, "it has places of its own");
        drop(again);
        (0..=KNOWN_MAX as u32).for_each(|number| door.remember(IpAddr::V4(number.into())));
        assert_eq!(door.known.lock().len(), KNOWN_MAX);
    }
}
