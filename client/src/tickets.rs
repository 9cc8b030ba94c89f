//! Block tickets and receipts of a client that is confined: metad gives the former with its answers, block daemons give the
//! latter for what they have stored.

use crate::ordered::{Ordered, Rank};
use crate::recent::lru;
use lru::LruCache;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use wire::extent::Source;
use wire::ids::BlockHash;
use wire::limits::TICKET_LIFE_SECS;
use wire::op::Op;
use wire::ticket::{Receipt, Ticket};

/// Tickets that are remembered, and likewise receipts: a page of extents has 4,096, which may all be of one block.
const TICKETS_MAX: usize = 1 << 17;
/// Tickets that begin before what is looked for, and are looked at: parts hardly overlap.
const LOOKED_AT_MAX: usize = 64;
/// A ticket is used for this long: some time before it ends, so that a request that waits does not come too late.
const USED_FOR: Duration = Duration::from_secs(TICKET_LIFE_SECS as u64 / 2);

/// The tickets of one block, by their parts, with the time at which they came.
type OfBlock = BTreeMap<(u32, u32), (Ticket, Instant)>;

/// The tickets of all blocks.
struct OfBlocks {
    blocks: LruCache<BlockHash, OfBlock>,
    count: usize,
}

impl OfBlocks {
    fn add(&mut self, hash: BlockHash, ticket: Ticket, now: Instant) {
        let of_block = self.blocks.get_or_insert_mut(hash, BTreeMap::new);
        let is_new = of_block.insert((ticket.offset, ticket.len), (ticket, now)).is_none();
        self.count += usize::from(is_new);
        while self.count > TICKETS_MAX && self.blocks.len() > 1 {
            self.count -= self.blocks.pop_lru().map_or(0, |(_, of_block)| of_block.len());
        }
    }

    fn find(&mut self, hash: &BlockHash, offset: u32, len: u32) -> Option<Ticket> {
        let end = u64::from(offset) + u64::from(len);
        let of_block = self.blocks.get(hash)?;
        let whole = of_block.get(&(0, u32::MAX));
        let before = of_block.range(..=(offset, u32::MAX)).rev().take(LOOKED_AT_MAX).map(|(_, known)| known);
        let mut covering = whole.into_iter().chain(before).filter(|(ticket, _)| end <= ticket.range().end);
        covering.find(|(_, since)| since.elapsed() < USED_FOR).map(|(ticket, _)| *ticket)
    }

    fn forget(&mut self, hash: &BlockHash, ticket: &Ticket) {
        if let Some(of_block) = self.blocks.get_mut(hash)
            && of_block.get(&(ticket.offset, ticket.len)).is_some_and(|(known, _)| known == ticket)
        {
            of_block.remove(&(ticket.offset, ticket.len));
            self.count -= 1;
        }
    }
}

/// The tickets and receipts that this client has.
pub struct Tickets {
    are_needed: AtomicBool,
    tickets: Ordered<OfBlocks>,
    receipts: Ordered<LruCache<BlockHash, Receipt>>,
}

impl Tickets {
    /// Begins without any.
    #[must_use]
    pub fn new(are_needed: bool) -> Self {
        Self {
            are_needed: AtomicBool::new(are_needed),
            tickets: Ordered::new(Rank::Leaf, OfBlocks { blocks: lru(TICKETS_MAX), count: 0 }),
            receipts: Ordered::new(Rank::Leaf, lru(TICKETS_MAX)),
        }
    }

    /// Returns whether block daemons want to see tickets of this client.
    #[must_use]
    pub fn are_needed(&self) -> bool {
        self.are_needed.load(Ordering::Relaxed)
    }

    /// Takes what came with an answer of metad.
    pub fn note(&self, new: Vec<(BlockHash, Ticket)>) {
        if new.is_empty() {
            return;
        }
        self.are_needed.store(true, Ordering::Relaxed);
        let (mut tickets, now) = (self.tickets.lock(), Instant::now());
        for (hash, ticket) in new {
            tickets.add(hash, ticket, now);
        }
    }

    /// Returns a ticket for bytes of a block, if there is one that lasts.
    #[must_use]
    pub fn find(&self, hash: &BlockHash, offset: u32, len: u32) -> Option<Ticket> {
        self.tickets.lock().find(hash, offset, len)
    }

    /// Forgets a ticket that a block daemon has refused.
    pub fn forget(&self, hash: &BlockHash, ticket: &Ticket) {
        self.tickets.lock().forget(hash, ticket);
    }

    /// Takes the receipt for a block.
    pub fn note_receipt(&self, receipt: Receipt) {
        self.are_needed.store(true, Ordering::Relaxed);
        self.receipts.lock().put(receipt.hash, receipt);
    }

    /// Returns whether a block has to be sent before it is committed, though daemons may have it: there is no receipt.
    #[must_use]
    pub fn lack_receipt(&self, hash: &BlockHash) -> bool {
        self.are_needed() && !self.receipts.lock().contains(hash)
    }

    /// Forgets the receipts for the blocks that operations name: metad has refused some.
    pub fn forget_receipts(&self, ops: &[Op]) {
        for receipt in self.receipts_for(ops) {
            self.receipts.lock().pop(&receipt.hash);
        }
    }

    /// Returns the receipts for the blocks that operations name.
    #[must_use]
    pub fn receipts_for(&self, ops: &[Op]) -> Vec<Receipt> {
        if !self.are_needed() {
            return Vec::new();
        }
        let commits = ops.iter().filter_map(|op| match op.plain() {
            Op::Commit { writes, .. } => Some(writes),
            _ => None,
        });
        let named: BTreeSet<&BlockHash> = commits
            .flatten()
            .filter_map(|write| match &write.source {
                Source::Block { hash, .. } => Some(hash),
                Source::Inline(_) | Source::Zero => None,
            })
            .collect();
        let mut receipts = self.receipts.lock();
        named.into_iter().filter_map(|hash| receipts.get(hash).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::Timestamp;
    use wire::cert::KeyId;
    use wire::ticket::TicketKey;

    const HASH: BlockHash = BlockHash([2; 32]);

    fn key() -> TicketKey {
        TicketKey::make(1, Timestamp::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_used_for_what_it_covers_and_not_until_its_end() {
        let (tickets, key) = (Tickets::new(false), key());
        assert!(!tickets.are_needed());
        let ticket = |part| key.ticket(&KeyId::default(), &HASH, part, Timestamp::default());
        tickets.note(vec![(HASH, ticket((10, 10))), (HASH, ticket((100, 5)))]);
        assert!(tickets.are_needed());
        let find = |offset, len| tickets.find(&HASH, offset, len).map(|ticket| ticket.offset);
        assert_eq!((find(10, 10), find(12, 3), find(102, 3)), (Some(10), Some(10), Some(100)));
        assert_eq!((find(9, 2), find(15, 6), find(15, 90), find(u32::MAX, u32::MAX)), (None, None, None, None));
        assert_eq!(tickets.find(&BlockHash([3; 32]), 10, 1), None);
        tokio::time::advance(USED_FOR).await;
        assert_eq!(find(10, 10), None);
        tickets.note(vec![(HASH, ticket((10, 10)))]);
        assert_eq!(find(10, 10), Some(10));
        // As many as a listing has may be of one block.
        tickets.note((0..5_000).map(|n| (HASH, ticket((1_000 + n * 10, 1)))).collect());
        assert_eq!((find(1_000, 1), find(50_990, 1), find(1_005, 1)), (Some(1_000), Some(50_990), None));
        tickets.note(vec![(HASH, ticket((0, u32::MAX)))]);
        assert_eq!((find(1_005, 1), find(0, u32::MAX)), (Some(0), Some(0)));
        tickets.forget(&HASH, &tickets.find(&HASH, 0, u32::MAX).unwrap());
        assert_eq!(find(1_005, 1), None);
        let other = |n: u32| BlockHash([n.to_le_bytes(); 8].concat().try_into().unwrap());
        tickets.note((0..2 * TICKETS_MAX as u32).map(|n| (other(n), ticket((0, 1)))).collect());
        assert!(tickets.tickets.lock().count <= TICKETS_MAX);
        assert_eq!(find(1_000, 1), None, "it was not used for the longest time");
    }
}
