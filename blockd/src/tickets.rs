//! The keys of block tickets, as metad has told them, and metad's time.

use parking_lot::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use wire::attr::Timestamp;
use wire::cert::KeyId;
use wire::ids::BlockHash;
use wire::ticket::{Receipt, Ticket, TicketKeys};

/// How long to wait for a key that this daemon does not know. metad answers sooner, unless it is away or the sender has made the
/// key up.
const KEY_WAIT: Duration = Duration::from_secs(1);

/// What metad has told last.
#[derive(Default)]
struct Known {
    keys: TicketKeys,
    /// metad's time, and when that was.
    time: Option<(Timestamp, Instant)>,
}

/// Checks tickets and gives receipts.
#[derive(Default)]
pub struct Tickets {
    known: Mutex<Known>,
    wanted: Notify,
    learned: Notify,
}

impl Tickets {
    /// Takes the keys and the time from metad's answer to a heartbeat.
    pub fn learn(&self, keys: TicketKeys, now: Timestamp) {
        *self.known.lock() = Known { keys, time: Some((now, Instant::now())) };
        self.learned.notify_waiters();
    }

    /// Waits until a key was met that is not known. Cancel-safe.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Returns whether a ticket is good for this holder, for parts of this block. Waits a moment for a key that is new.
    pub async fn admits(&self, ticket: &Ticket, holder: &KeyId, hash: &BlockHash) -> bool {
        self.meet(ticket.key).await;
        let known = self.known.lock();
        let now = known.time.map(|(at, when)| Timestamp { secs: at.secs + when.elapsed().as_secs() as i64, ..at });
        now.is_some_and(|now| known.keys.admits(ticket, holder, hash, now))
    }

    async fn meet(&self, key: u64) {
        let mut learned = std::pin::pin!(self.learned.notified());
        // Enabled before looking: what is learned in between must not be missed.
        learned.as_mut().enable();
        let is_newer = self.known.lock().keys.newest().is_none_or(|newest| key > newest.number);
        if is_newer {
            self.wanted.notify_one();
            let _ = tokio::time::timeout(KEY_WAIT, learned).await;
        }
    }

    /// Returns a receipt for a block that this holder has sent as a whole, if a key is known.
    #[must_use]
    pub fn receipt(&self, holder: &KeyId, hash: &BlockHash) -> Option<Receipt> {
        self.known.lock().keys.newest().map(|key| key.receipt(holder, hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use wire::limits::TICKET_LIFE_SECS;
    use wire::ticket::TicketKey;

    const HOLDER: KeyId = KeyId([1; 32]);
    const HASH: BlockHash = BlockHash([2; 32]);

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_judged_by_the_time_of_metad_and_a_new_key_is_asked_for() {
        let tickets = Arc::new(Tickets::default());
        let mut keys = TicketKeys::default();
        assert!(keys.add(TicketKey::make(1, at(0))));
        let signing = keys.newest().unwrap().clone();
        let ticket = signing.ticket(&HOLDER, &HASH, (0, 9), at(5_000));
        assert!(!tickets.admits(&ticket, &HOLDER, &HASH).await, "nothing is known yet");
        assert_eq!(tickets.receipt(&HOLDER, &HASH), None);
        let (learning, told) = (tickets.clone(), keys.clone());
        let learn = async move {
            learning.wanted().await;
            learning.learn(told, at(5_000));
        };
        let (is_good, ()) = tokio::join!(tickets.admits(&ticket, &HOLDER, &HASH), learn);
        assert!(is_good, "the key is learned from metad");
        tickets.learn(keys.clone(), at(5_001 + TICKET_LIFE_SECS));
        assert!(!tickets.admits(&ticket, &HOLDER, &HASH).await, "it has ended, whatever this machine's clock says");
        assert!(keys.confirms(&tickets.receipt(&HOLDER, &HASH).unwrap(), &HOLDER));
    }
}
