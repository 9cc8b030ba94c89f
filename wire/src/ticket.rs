//! Block tickets: metad's word that a confined client may read a part of a block, and receipts: a block daemon's word that it
//! has received a whole block from such a client. The name of a block is no permission.
//!
//! Both are signed with a key that metads and block daemons share ([`TicketKey`]), so that each checks them without asking. They
//! are good for the holder of one key, the one in the client's certificate: nobody can use those of somebody else. A client of
//! which nothing confines the sight needs none.

use crate::attr::Timestamp;
use crate::cert::KeyId;
use crate::chance;
use crate::ids::BlockHash;
use crate::limits::TICKET_LIFE_SECS;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// Keys that are good at a time: the newest signs.
pub const TICKET_KEYS_MAX: usize = 3;
/// A key signs for this long, in seconds. What it has signed is good for as long as it is among the last ones.
pub const TICKET_KEY_SECS: i64 = 24 * 3600;

/// The clocks of metads may be so far apart, in seconds.
const CLOCKS_APART_SECS: i64 = 60;

/// A key that signs tickets and receipts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    /// Its number: later keys have greater ones.
    pub number: u64,
    /// When it was made, by the leader's clock.
    pub made: Timestamp,
    secret: [u8; 32],
}

/// The secret is shown to nobody.
impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("number", &self.number).field("made", &self.made).finish_non_exhaustive()
    }
}

/// A signature: a keyed BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signature([u8; 32]);

/// Lets the holder read a part of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// Number of the key that has signed it.
    pub key: u64,
    /// When it ends, in seconds of the metads' time.
    pub until: i64,
    /// First byte, of those that are stored.
    pub offset: u32,
    /// Number of bytes; `u32::MAX` for the whole block.
    pub len: u32,
    signature: Signature,
}

/// Says that the holder has sent a whole block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// Number of the key that has signed it.
    pub key: u64,
    /// The block.
    pub hash: BlockHash,
    signature: Signature,
}

impl Ticket {
    /// Returns whether it is for all of a block.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        (self.offset, self.len) == (0, u32::MAX)
    }

    /// Returns the bytes that it is for.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.len)
    }
}

impl TicketKey {
    /// Makes a key.
    #[must_use]
    pub fn make(number: u64, made: Timestamp) -> Self {
        let mut secret = [0; 32];
        secret.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&chance::number().to_le_bytes()));
        Self { number, made, secret }
    }

    fn sign(&self, what: &str, holder: &KeyId, hash: &BlockHash, rest: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        // All of fixed length, but for the last.
        hasher.update(what.as_bytes()).update(&holder.0).update(&hash.0).update(rest);
        hasher.finalize()
    }

    fn sign_part(&self, holder: &KeyId, hash: &BlockHash, (offset, len): (u32, u32), until: i64) -> blake3::Hash {
        let rest = [&offset.to_le_bytes()[..], &len.to_le_bytes(), &until.to_le_bytes()].concat();
        self.sign("ticket!", holder, hash, &rest)
    }

    /// Returns a ticket for a part of a block.
    #[must_use]
    pub fn ticket(&self, holder: &KeyId, hash: &BlockHash, (offset, len): (u32, u32), now: Timestamp) -> Ticket {
        let until = now.secs.saturating_add(TICKET_LIFE_SECS);
        let signature = Signature(*self.sign_part(holder, hash, (offset, len), until).as_bytes());
        Ticket { key: self.number, until, offset, len, signature }
    }

    /// Returns a receipt for a block.
    #[must_use]
    pub fn receipt(&self, holder: &KeyId, hash: &BlockHash) -> Receipt {
        let signature = Signature(*self.sign("receipt", holder, hash, &[]).as_bytes());
        Receipt { key: self.number, hash: *hash, signature }
    }
}

/// The keys that are good, newest last.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TicketKeys(Vec<TicketKey>);

impl TicketKeys {
    /// Returns the key that signs.
    #[must_use]
    pub fn newest(&self) -> Option<&TicketKey> {
        self.0.last()
    }

    /// Returns the number of the key that comes next. The first one has that of its time, so that block daemons do not take it
    /// for one that they know: there may have been others, before a recovery for example.
    #[must_use]
    pub fn next_number(&self, now: Timestamp) -> u64 {
        let first = u64::try_from(now.secs).unwrap_or_default();
        self.newest().map_or(first, |key| key.number.saturating_add(1))
    }

    /// Returns whether another key is due.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        // One that was made by a clock that was ahead would sign for too long.
        let is_old =
            |key: &TicketKey| !(-CLOCKS_APART_SECS..TICKET_KEY_SECS).contains(&now.secs.saturating_sub(key.made.secs));
        self.newest().is_none_or(is_old)
    }

    /// Adds a key, if it is the next one. The oldest is forgotten when there are too many. Returns whether it was added.
    pub fn add(&mut self, key: TicketKey) -> bool {
        if self.newest().is_some_and(|newest| newest.number.checked_add(1) != Some(key.number)) {
            return false;
        }
        self.0.push(key);
        let surplus = self.0.len().saturating_sub(TICKET_KEYS_MAX);
        self.0.drain(..surplus);
        true
    }

    fn find(&self, number: u64) -> Option<&TicketKey> {
        self.0.iter().find(|key| key.number == number)
    }

    /// Returns whether a key of this number is known.
    #[must_use]
    pub fn knows(&self, number: u64) -> bool {
        self.find(number).is_some()
    }

    /// Returns whether a ticket is good for this holder, for parts of this block.
    #[must_use]
    pub fn admits(&self, ticket: &Ticket, holder: &KeyId, hash: &BlockHash, now: Timestamp) -> bool {
        let part = (ticket.offset, ticket.len);
        // Hashes are compared in constant time.
        let is_signed = |key: &TicketKey| key.sign_part(holder, hash, part, ticket.until) == ticket.signature.0;
        // Nor is it good for longer if the clock of the metad that has signed it was ahead.
        let is_current =
            (now.secs..=now.secs.saturating_add(TICKET_LIFE_SECS + CLOCKS_APART_SECS)).contains(&ticket.until);
        is_current && self.find(ticket.key).is_some_and(is_signed)
    }

    /// Returns whether a receipt is one for this holder.
    #[must_use]
    pub fn confirms(&self, receipt: &Receipt, holder: &KeyId) -> bool {
        let is_signed = |key: &TicketKey| key.sign("receipt", holder, &receipt.hash, &[]) == receipt.signature.0;
        self.find(receipt.key).is_some_and(is_signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDER: KeyId = KeyId([1; 32]);
    const HASH: BlockHash = BlockHash([2; 32]);

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    fn keys(count: u64) -> TicketKeys {
        let mut keys = TicketKeys::default();
        (1..=count).for_each(|number| assert!(keys.add(TicketKey::make(number, at(0)))));
        keys
    }

    #[test]
    fn a_ticket_is_good_for_its_holder_its_block_its_part_and_its_time() {
        let keys = keys(1);
        let ticket = keys.newest().unwrap().ticket(&HOLDER, &HASH, (4096, 100), at(1_000));
        let admits = |ticket: &Ticket, now| keys.admits(ticket, &HOLDER, &HASH, at(now));
        assert!(admits(&ticket, 1_000) && admits(&ticket, 1_000 + TICKET_LIFE_SECS));
        assert!(!admits(&ticket, 1_001 + TICKET_LIFE_SECS));
        assert!(admits(&ticket, 1_000 - CLOCKS_APART_SECS) && !admits(&ticket, 999 - CLOCKS_APART_SECS));
        assert!(!keys.admits(&ticket, &KeyId([3; 32]), &HASH, at(1_000)));
        assert!(!keys.admits(&ticket, &HOLDER, &BlockHash([3; 32]), at(1_000)));
        for forged in [
            Ticket { offset: 0, ..ticket },
            Ticket { len: 101, ..ticket },
            Ticket { until: ticket.until + 1, ..ticket },
            Ticket { key: 2, ..ticket },
        ] {
            assert!(!admits(&forged, 1_000), "{forged:?}");
        }
    }

    #[test]
    fn a_receipt_is_good_for_its_holder_and_its_block_and_is_no_ticket() {
        let keys = keys(1);
        let receipt = keys.newest().unwrap().receipt(&HOLDER, &HASH);
        assert!(keys.confirms(&receipt, &HOLDER));
        assert!(!keys.confirms(&receipt, &KeyId([3; 32])));
        assert!(!keys.confirms(&Receipt { hash: BlockHash([3; 32]), ..receipt }, &HOLDER));
        let ticket = Ticket { key: 1, until: 0, offset: 0, len: 0, signature: receipt.signature };
        assert!(!keys.admits(&ticket, &HOLDER, &HASH, at(0)));
    }

    #[test]
    fn the_last_keys_are_good_and_follow_each_other() {
        let mut keys = keys(TICKET_KEYS_MAX as u64);
        let first = keys.find(1).unwrap().receipt(&HOLDER, &HASH);
        assert!(keys.confirms(&first, &HOLDER) && keys.knows(1));
        for number in [0, 1, 3, 5] {
            assert!(!keys.add(TicketKey::make(number, at(0))));
        }
        assert!(keys.add(TicketKey::make(4, at(50))));
        assert!(!keys.confirms(&first, &HOLDER) && !keys.knows(1) && keys.knows(4));
        assert!(!keys.is_due(at(49 + TICKET_KEY_SECS)) && keys.is_due(at(50 + TICKET_KEY_SECS)));
        assert!(keys.is_due(at(49 - CLOCKS_APART_SECS)) && !keys.is_due(at(50 - CLOCKS_APART_SECS)));
        assert_eq!((keys.next_number(at(9)), TicketKeys::default().next_number(at(9))), (5, 9));
        assert!(!format!("{keys:?}").contains("secret"));
    }
}
