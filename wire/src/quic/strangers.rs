//! Newcomers without a certificate: each has one short connection for one small request. All together are few, and so are
//! those of one address and of one network. Each of these has a number of attempts that grows back slowly, so that nobody
//! can try out secrets, keep a metad busy, or hold the places of others.

use super::admission::Handshake;
use super::stream::{broken, read_exactly, write_frame};
use crate::frame::{REQUEST_HEADER, ReplyHeader, ReplyKind, RequestHeader};
use crate::limits::ENROLL_BYTES_MAX;
use crate::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use crate::{Error, codec};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Newcomers that are served at once.
const STRANGERS_MAX: usize = 64;
/// Those of one address: several machines may be behind it.
pub(super) const STRANGERS_PER_ADDRESS_MAX: usize = 16;
/// What one address may do: a room of machines may be set up behind it together.
const OF_ADDRESS: Bounds = Bounds { places: STRANGERS_PER_ADDRESS_MAX, attempts: 120.0, per_second: 2.0 };
/// What the addresses of one network may do together: who has one of them may have many.
const OF_NETWORK: Bounds = Bounds { places: 32, attempts: 480.0, per_second: 8.0 };
/// A wrong secret costs as many attempts, and so does a place that was held without a request.
const WRONG_SECRET_COST: f64 = 20.0;
/// Any other refusal costs as many attempts.
const REFUSAL_COST: f64 = 5.0;
/// Addresses, and networks, of which attempts are counted; those that have regained all are forgotten.
const COUNTED_MAX: usize = 4_096;
/// How long a newcomer may take to send its request: it has nothing to wait for.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// How long a newcomer may take to fetch the answer.
const DELIVERY_LIMIT: Duration = Duration::from_secs(3);
/// How long a request may take to be answered.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Code with which a connection is closed that may be tried again later.
pub(super) const CLOSE_TRY_LATER: u32 = 2;

/// What one party may do.
struct Bounds {
    /// Places at once.
    places: usize,
    /// Attempts in a row.
    attempts: f64,
    /// Attempts that it regains.
    per_second: f64,
}

/// The newcomers that are served, and the attempts of addresses and networks.
#[derive(Default)]
pub(super) struct Strangers {
    counts: Mutex<Counts>,
}

struct Counts {
    all: usize,
    addresses: Tallies,
    networks: Tallies,
}

impl Default for Counts {
    fn default() -> Self {
        Self { all: 0, addresses: Tallies::new(OF_ADDRESS), networks: Tallies::new(OF_NETWORK) }
    }
}

/// What each of a kind of parties has done.
struct Tallies {
    bounds: Bounds,
    by: HashMap<IpAddr, Tally>,
}

struct Tally {
    places: usize,
    /// Attempts that were left at this time; negative, up to as many as it may have, after costs that came later.
    left: f64,
    at: Instant,
}

impl Tally {
    fn left_at(&self, bounds: &Bounds, now: Instant) -> f64 {
        let regained = now.saturating_duration_since(self.at).as_secs_f64() * bounds.per_second;
        (self.left + regained).min(bounds.attempts)
    }
}

impl Tallies {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, by: HashMap::new() }
    }

    /// Returns whether a party may come once more. Returns false, too, when too many parties are counted.
    fn admits(&mut self, party: IpAddr, now: Instant) -> bool {
        let bounds = &self.bounds;
        if let Some(tally) = self.by.get(&party) {
            return tally.places < bounds.places && tally.left_at(bounds, now) >= 1.0;
        }
        if self.by.len() >= COUNTED_MAX {
            self.by.retain(|_, tally| tally.places > 0 || tally.left_at(bounds, now) < bounds.attempts);
        }
        self.by.len() < COUNTED_MAX
    }

    fn enter(&mut self, party: IpAddr, now: Instant) {
        let all = Tally { places: 0, left: self.bounds.attempts, at: now };
        self.by.entry(party).or_insert(all).places += 1;
        self.spend(party, 1.0, now);
    }

    fn spend(&mut self, party: IpAddr, cost: f64, now: Instant) {
        if let Some(tally) = self.by.get_mut(&party) {
            tally.left = (tally.left_at(&self.bounds, now) - cost).max(-self.bounds.attempts);
            tally.at = now;
        }
    }

    fn leave(&mut self, party: IpAddr) {
        if let Some(tally) = self.by.get_mut(&party) {
            tally.places -= 1;
        }
    }
}

/// Returns the network that is likely to belong to one party: what providers give to one site (RFC 6177), and the smallest
/// network of IPv4 that is routed by itself.
fn site_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}

/// A newcomer that is served; it counts until this is dropped.
#[must_use]
pub(super) struct Place {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// Counts an attempt. Returns `None` when the address, its network, or all together have made too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Place> {
        let mut counts = self.counts.lock();
        let Counts { all, addresses, networks } = &mut *counts;
        let network = site_of(address);
        // The network first: one that has made too many fills no more memory with its addresses.
        if *all >= STRANGERS_MAX || !networks.admits(network, now) || !addresses.admits(address, now) {
            return None;
        }
        *all += 1;
        networks.enter(network, now);
        addresses.enter(address, now);
        Some(Place { strangers: self.clone(), address })
    }
}

impl Place {
    /// Takes attempts away from the newcomer's address and network.
    fn charge(&self, cost: f64, now: Instant) {
        let mut counts = self.strangers.counts.lock();
        counts.addresses.spend(self.address, cost, now);
        counts.networks.spend(site_of(self.address), cost, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts.lock();
        counts.all -= 1;
        counts.addresses.leave(self.address);
        counts.networks.leave(site_of(self.address));
    }
}

/// Serves a newcomer: reads one request, has it answered, and closes the connection.
pub(super) async fn welcome<F: Future<Output = EnrollReply>>(
    connection: quinn::Connection,
    handshake: Handshake,
    strangers: &Arc<Strangers>,
    answer: impl FnOnce(EnrollRequest) -> F,
) {
    let addr = connection.remote_address();
    let place = strangers.enter(handshake.network(), Instant::now());
    // From here on, it takes no place of those who begin handshakes.
    drop(handshake);
    let Some(place) = place else {
        tracing::debug!(%addr, "too many newcomers, or too many attempts of this address");
        connection.close(CLOSE_TRY_LATER.into(), b"too many newcomers at once");
        return;
    };
    match exchange(&connection, &place, answer).await {
        Ok(()) => connection.close(0_u32.into(), b"answered"),
        Err(error) => {
            tracing::debug!(%addr, %error, "a newcomer was refused");
            connection.close(1_u32.into(), b"refused");
        }
    }
}

async fn exchange<F: Future<Output = EnrollReply>>(
    connection: &quinn::Connection,
    place: &Place,
    answer: impl FnOnce(EnrollRequest) -> F,
) -> Result<(), Error> {
    let reading = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(broken)?;
        Ok::<_, Error>((send, read(&mut recv).await?))
    };
    let read = timeout(REQUEST_LIMIT, reading).await.map_err(broken).flatten();
    // A peer that has asked for nothing has still used a place that another one might have had.
    let (mut send, request) = read.inspect_err(|_| place.charge(WRONG_SECRET_COST, Instant::now()))?;
    let reply = timeout(ANSWER_LIMIT, answer(request)).await.unwrap_or(EnrollReply::Busy);
    match reply {
        EnrollReply::Refused { why: EnrollRefusal::Unknown, .. } => place.charge(WRONG_SECRET_COST, Instant::now()),
        EnrollReply::Refused { .. } | EnrollReply::NotLeader { .. } | EnrollReply::Busy => {
            place.charge(REFUSAL_COST, Instant::now());
        }
        EnrollReply::Issued { .. } => {}
    }
    let head = codec::encode(&reply);
    let header = ReplyHeader { kind: ReplyKind::Answer, head_len: head.len() as u32, payload_len: 0 }.encode();
    let writing = async {
        write_frame(&mut send, &header, &head, &[]).await.map_err(broken)?;
        send.finish().map_err(broken)?;
        // Closing the connection drops what is still on its way.
        send.stopped().await.map_err(broken)
    };
    let written = timeout(DELIVERY_LIMIT, writing).await.map_err(broken).flatten();
    // So has who does not fetch the answer.
    written.inspect_err(|_| place.charge(WRONG_SECRET_COST, Instant::now()))?;
    Ok(())
}

/// Reads the one request that a newcomer may send.
async fn read(recv: &mut quinn::RecvStream) -> Result<EnrollRequest, Error> {
    let bytes = read_exactly(recv, REQUEST_HEADER).await?;
    let mut fixed = [0_u8; REQUEST_HEADER];
    fixed.copy_from_slice(&bytes);
    let header = RequestHeader::decode(&fixed)?;
    if header.payload_len != 0 || header.head_len as usize > ENROLL_BYTES_MAX {
        return Err(Error::Malformed(format!("{} + {} bytes of a newcomer", header.head_len, header.payload_len)));
    }
    codec::decode(&read_exactly(recv, header.head_len as usize).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address of a network of its own.
    fn address(number: u32) -> IpAddr {
        IpAddr::V4((number << 8 | 1).into())
    }

    #[test]
    fn newcomers_at_once_are_few_and_those_of_one_address_or_network_fewer() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let enter = |address: IpAddr| {
            let strangers = strangers.clone();
            std::iter::from_fn(move || strangers.enter(address, now)).collect::<Vec<Place>>()
        };
        let one = enter(address(1));
        assert_eq!(one.len(), STRANGERS_PER_ADDRESS_MAX);
        let neighbours: Vec<Place> = (2..100_u8).flat_map(|last| enter([0, 0, 1, last].into())).collect();
        assert_eq!(one.len() + neighbours.len(), OF_NETWORK.places);
        let others: Vec<Place> = (2..100).flat_map(|number| enter(address(number))).collect();
        assert_eq!(one.len() + neighbours.len() + others.len(), STRANGERS_MAX);
        drop((one, neighbours, others));
        assert!(strangers.enter(address(200), now).is_some());
        let counts = strangers.counts.lock();
        assert!(counts.all == 0 && counts.addresses.by.values().all(|tally| tally.places == 0));
    }

    #[test]
    fn a_site_of_ipv6_is_bounded_whichever_of_its_networks_it_comes_from() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let of_site = |number: u16| Ipv6Addr::new(0x2001, 0xdb8, 1, number, 0, 0, 0, 0).into();
        let entered: Vec<Place> = (0..100).filter_map(|number| strangers.enter(of_site(number), now)).collect();
        assert_eq!(entered.len(), OF_NETWORK.places);
        assert!(strangers.enter(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).into(), now).is_some());
    }

    #[test]
    fn an_address_regains_its_attempts_slowly_and_wrong_secrets_cost_many() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let attempts = |from: Instant| std::iter::from_fn(|| strangers.enter(address(1), from)).count();
        // A place that is left at once limits nothing here.
        assert_eq!(attempts(now), OF_ADDRESS.attempts as usize);
        assert!(strangers.enter(address(2), now).is_some(), "others are not concerned");
        let later = now + Duration::from_secs(10);
        assert_eq!(attempts(later), 10 * OF_ADDRESS.per_second as usize);
        let much_later = later + Duration::from_secs(3_600);
        strangers.enter(address(1), much_later).unwrap().charge(WRONG_SECRET_COST, much_later);
        assert_eq!(attempts(much_later), (OF_ADDRESS.attempts - 1.0 - WRONG_SECRET_COST) as usize);
    }

    /// They take every place that they get, and hold it as long as they can without a request.
    #[test]
    fn eleven_addresses_that_hold_places_and_ask_for_nothing_keep_nobody_out_for_long() {
        let (strangers, begin) = (Arc::<Strangers>::default(), Instant::now());
        let mut held: Vec<(Instant, Place)> = Vec::new();
        let mut welcome = 0;
        for step in 0..1_200 {
            let now = begin + Duration::from_millis(50) * step;
            let (over, still): (Vec<_>, Vec<_>) = held.into_iter().partition(|(until, _)| *until <= now);
            over.into_iter().for_each(|(_, place)| place.charge(WRONG_SECRET_COST, now));
            held = still;
            for number in 1..=11 {
                held.extend(strangers.enter(address(number), now).map(|place| (now + REQUEST_LIMIT, place)));
            }
            // Somebody honest tries once a second.
            let comes = step % 20 == 10;
            welcome += usize::from(comes && strangers.enter(address(99), now).is_some());
        }
        assert!(welcome >= 50, "{welcome} of 60 attempts");
    }

    #[test]
    fn addresses_without_end_take_bounded_memory() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let entered = (0..2 * COUNTED_MAX as u32).filter(|number| strangers.enter(address(*number), now).is_some());
        assert_eq!(entered.count(), COUNTED_MAX);
        let later = now + Duration::from_secs(1);
        assert!(strangers.enter(address(1 << 20), later).is_some(), "those that have all again are forgotten");
        assert_eq!(strangers.counts.lock().addresses.by.len(), 1);
    }
}
