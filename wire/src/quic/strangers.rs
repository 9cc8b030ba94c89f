//! Newcomers without a certificate: each has one short connection for one small request. All together are few, and each
//! address has a number of attempts that grows back slowly, so that nobody can try out secrets, or keep a metad busy.

use super::admission::{Handshake, count_down};
use super::stream::{broken, read_exactly, write_frame};
use crate::frame::{REQUEST_HEADER, ReplyHeader, ReplyKind, RequestHeader};
use crate::limits::ENROLL_BYTES_MAX;
use crate::message::enroll::{EnrollRefusal, EnrollReply, EnrollRequest};
use crate::{Error, codec};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Newcomers that are served at once.
const STRANGERS_MAX: usize = 64;
/// Those of one address: several machines may be behind it.
pub(super) const STRANGERS_PER_ADDRESS_MAX: usize = 16;
/// Attempts that an address may make at once: a room of machines that are set up together.
const ATTEMPTS_MAX: f64 = 120.0;
/// Attempts that an address regains in a second.
const ATTEMPTS_PER_SECOND: f64 = 2.0;
/// A wrong secret costs as much as so many attempts.
const WRONG_SECRET_COST: f64 = 20.0;
/// Addresses of which attempts are counted; those that have regained all are forgotten.
const ADDRESSES_MAX: usize = 4_096;
/// How long a newcomer may take to send its request, and to fetch the answer.
const TRANSFER_LIMIT: Duration = Duration::from_secs(3);
/// How long a request may take to be answered.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Code with which a connection is closed that may be tried again later.
pub(super) const LATER: u32 = 2;

/// The newcomers that are served, and the attempts of addresses.
#[derive(Default)]
pub(super) struct Strangers {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    attempts: HashMap<IpAddr, Attempts>,
}

/// What an address has left.
struct Attempts {
    left: f64,
    at: Instant,
}

impl Attempts {
    fn left_at(&self, now: Instant) -> f64 {
        let regained = now.saturating_duration_since(self.at).as_secs_f64() * ATTEMPTS_PER_SECOND;
        (self.left + regained).min(ATTEMPTS_MAX)
    }
}

/// A newcomer that is served; it counts until this is dropped.
#[must_use]
pub(super) struct Place {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// Counts an attempt. Returns `None` when the address, or all together, have made too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Place> {
        let mut counts = self.counts.lock();
        let of_address = counts.by_address.get(&address).copied().unwrap_or_default();
        if counts.all >= STRANGERS_MAX || of_address >= STRANGERS_PER_ADDRESS_MAX || !counts.spend(address, 1.0, now) {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(address, of_address + 1);
        Some(Place { strangers: self.clone(), address })
    }
}

impl Counts {
    /// Takes attempts from an address. Returns false when it has not one left, or too many addresses are counted.
    fn spend(&mut self, address: IpAddr, cost: f64, now: Instant) -> bool {
        if self.attempts.len() >= ADDRESSES_MAX && !self.attempts.contains_key(&address) {
            self.attempts.retain(|_, attempts| attempts.left_at(now) < ATTEMPTS_MAX);
            if self.attempts.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let attempts = self.attempts.entry(address).or_insert(Attempts { left: ATTEMPTS_MAX, at: now });
        let left = attempts.left_at(now);
        if left < 1.0 {
            return false;
        }
        *attempts = Attempts { left: (left - cost).max(0.0), at: now };
        true
    }
}

impl Place {
    /// Counts a wrong secret.
    fn failed(&self, now: Instant) {
        self.strangers.counts.lock().spend(self.address, WRONG_SECRET_COST, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts.lock();
        counts.all -= 1;
        count_down(&mut counts.by_address, &self.address);
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
        connection.close(LATER.into(), b"too many newcomers at once");
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
    let (mut send, request) = timeout(TRANSFER_LIMIT, reading).await.map_err(broken)??;
    let reply = timeout(ANSWER_LIMIT, answer(request)).await.unwrap_or(EnrollReply::Busy);
    if matches!(reply, EnrollReply::Refused { why: EnrollRefusal::Unknown, .. }) {
        place.failed(Instant::now());
    }
    let head = codec::encode(&reply);
    let header = ReplyHeader { kind: ReplyKind::Answer, head_len: head.len() as u32, payload_len: 0 }.encode();
    let writing = async {
        write_frame(&mut send, &header, &head, &[]).await.map_err(broken)?;
        send.finish().map_err(broken)?;
        // Closing the connection drops what is still on its way.
        send.stopped().await.map_err(broken)
    };
    timeout(TRANSFER_LIMIT, writing).await.map_err(broken)??;
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

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn newcomers_at_once_are_few_and_those_of_one_address_fewer() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let enter = |number| std::iter::from_fn(move || Some(number)).map_while(|n| strangers.enter(address(n), now));
        let one: Vec<Place> = enter.clone()(1).collect();
        assert_eq!(one.len(), STRANGERS_PER_ADDRESS_MAX);
        let others: Vec<Place> = (2..100).flat_map(&enter).collect();
        assert_eq!(one.len() + others.len(), STRANGERS_MAX);
        let strangers = one[0].strangers.clone();
        drop((one, others));
        assert!(strangers.enter(address(200), now).is_some());
        assert!(strangers.counts.lock().by_address.is_empty(), "what has ended leaves nothing behind");
    }

    #[test]
    fn an_address_regains_its_attempts_slowly_and_wrong_secrets_cost_many() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let attempts = |from: Instant| std::iter::from_fn(|| strangers.enter(address(1), from)).count();
        // A place that is left at once limits nothing here.
        assert_eq!(attempts(now), ATTEMPTS_MAX as usize);
        assert!(strangers.enter(address(2), now).is_some(), "others are not concerned");
        let later = now + Duration::from_secs(10);
        assert_eq!(attempts(later), 10 * ATTEMPTS_PER_SECOND as usize);
        let much_later = later + Duration::from_secs(3_600);
        strangers.enter(address(1), much_later).unwrap().failed(much_later);
        assert_eq!(attempts(much_later), (ATTEMPTS_MAX - 1.0 - WRONG_SECRET_COST) as usize);
    }

    #[test]
    fn addresses_without_end_take_bounded_memory() {
        let (strangers, now) = (Arc::<Strangers>::default(), Instant::now());
        let entered = (0..2 * ADDRESSES_MAX as u32).filter(|number| strangers.enter(address(*number), now).is_some());
        assert_eq!(entered.count(), ADDRESSES_MAX);
        let later = now + Duration::from_secs(1);
        assert!(strangers.enter(address(u32::MAX), later).is_some(), "those that have all again are forgotten");
        assert_eq!(strangers.counts.lock().attempts.len(), 1);
    }
}
