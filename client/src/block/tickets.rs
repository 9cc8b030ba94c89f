//! Block tickets and receipts of a client that is confined: metad gives the former with its answers, block daemons give the
//! latter for what they have stored.

use crate::ordered::{Ordered, Rank};
use lru::LruCache;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use wire::extent::Source;
use wire::ids::BlockHash;
use wire::limits::TICKET_LIFE_SECS;
use wire::op::Op;
use wire::ticket::{Receipt, Ticket};

/// Blocks of which tickets are remembered, and likewise receipts.
const BLOCKS_MAX: usize = 1 << 16;
/// Tickets of one block that are remembered: the newest.
const TICKETS_OF_BLOCK_MAX: usize = 64;
/// A ticket is used for this long: some time before it ends, so that a request that waits does not come too late.
const USED_FOR: Duration = Duration::from_secs(TICKET_LIFE_SECS as u64 / 2);

/// The tickets and receipts that this client has.
pub struct Tickets {
    are_needed: AtomicBool,
    tickets: Ordered<LruCache<BlockHash, Vec<(Ticket, Instant)>>>,
    receipts: Ordered<LruCache<BlockHash, Receipt>>,
}

impl Tickets {
    /// Begins without any.
    #[must_use]
    pub fn new(are_needed: bool) -> Self {
        let most = NonZeroUsize::new(BLOCKS_MAX).expect("not zero");
        Self {
            are_needed: AtomicBool::new(are_needed),
            tickets: Ordered::new(Rank::Leaf, LruCache::new(most)),
            receipts: Ordered::new(Rank::Leaf, LruCache::new(most)),
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
            let of_block = tickets.get_or_insert_mut(hash, Vec::new);
            of_block.retain(|(old, since)| old.range() != ticket.range() && since.elapsed() < USED_FOR);
            if of_block.len() >= TICKETS_OF_BLOCK_MAX {
                of_block.remove(0);
            }
            of_block.push((ticket, now));
        }
    }

    /// Returns a ticket for bytes of a block, if there is one that lasts.
    #[must_use]
    pub fn find(&self, hash: &BlockHash, offset: u32, len: u32) -> Option<Ticket> {
        let mut tickets = self.tickets.lock();
        let end = u64::from(offset) + u64::from(len);
        let covers = |ticket: &Ticket| ticket.range().start <= u64::from(offset) && end <= ticket.range().end;
        let of_block = tickets.get(hash)?.iter();
        let mut good = of_block.filter(|(ticket, since)| covers(ticket) && since.elapsed() < USED_FOR);
        good.next_back().map(|(ticket, _)| *ticket)
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
        (0..1_000).for_each(|n| tickets.note(vec![(HASH, ticket((n * 10, 1)))]));
        assert_eq!(tickets.tickets.lock().get(&HASH).unwrap().len(), TICKETS_OF_BLOCK_MAX);
        assert_eq!(find(9_990, 1), Some(9_990));
    }
}
