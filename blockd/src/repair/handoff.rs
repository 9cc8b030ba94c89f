//! Handing off copies that owners missed (hinted handoff; DeCandia et al., Dynamo, 2007, §4.6).
//!
//! A put goes past an owner that is dead, paused or full for the moment. Comparing would copy the block too. But
//! while the layout does not change, the next comparison may be minutes away. So each daemon of a
//! chain notes which owners behind it have not synced the block, and sends it to them once they take it.
//!
//! Owner: [`Handoff`]. The server notes, and the healing task sends ([`super::heal`]). What is noted is lost with
//! the process, and dropped beyond a bound: comparing finds what such owners lack.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::ids::{BlockHash, BlockdId};

/// Blocks that are noted at most.
const NOTED_MAX: usize = 65_536;
/// Blocks that are noted for one owner at most: one that is away for long leaves room for others.
const NOTED_FOR_ONE_MAX: usize = NOTED_MAX / 4;
/// Between two attempts to send what is noted.
const PAUSE: Duration = Duration::from_secs(2);
/// An owner that took nothing at an attempt is left alone for this long.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// Blocks about which an owner is asked at once.
const ASKED_MAX: usize = 4096;

/// Blocks that owners have not synced, by owner.
#[derive(Default)]
pub struct Handoff {
    noted: Mutex<Noted>,
    added: Notify,
}

#[derive(Default)]
struct Noted {
    by_owner: BTreeMap<BlockdId, Missed>,
    count: usize,
    /// When the next attempt is due; `None` while nothing is noted.
    due: Option<Instant>,
}

#[derive(Default)]
struct Missed {
    hashes: BTreeSet<BlockHash>,
    /// It is not asked before.
    not_before: Option<Instant>,
}

impl Handoff {
    /// Notes that an owner has not synced a block.
    pub fn add(&self, owner: BlockdId, hash: BlockHash) {
        let mut noted = self.noted.lock();
        let has_room = noted.count < NOTED_MAX;
        let missed = noted.by_owner.entry(owner).or_default();
        if has_room && missed.hashes.len() < NOTED_FOR_ONE_MAX && missed.hashes.insert(hash) {
            noted.count += 1;
            if noted.due.is_none() {
                noted.due = Some(Instant::now() + PAUSE);
                self.added.notify_one();
            }
        }
    }

    /// Waits until an attempt to send what is noted is due. That is a moment after the first note: owners that were
    /// away take a while, and much may be sent together. Cancel-safe: a wait that begins anew ends at the same time.
    pub(super) async fn wait_due(&self) {
        loop {
            let due = self.noted.lock().due;
            match due {
                Some(at) => return tokio::time::sleep_until(at).await,
                None => self.added.notified().await,
            }
        }
    }

    /// Returns the next blocks for each owner, and begins the wait for the next attempt.
    pub(super) fn take_due(&self) -> Vec<(BlockdId, Vec<BlockHash>)> {
        let mut noted = self.noted.lock();
        let now = Instant::now();
        noted.by_owner.retain(|_, missed| !missed.hashes.is_empty());
        noted.due = (noted.count > 0).then_some(now + PAUSE);
        let is_due = |missed: &Missed| missed.not_before.is_none_or(|at| at <= now);
        let some =
            |(owner, missed): (&BlockdId, &Missed)| (*owner, missed.hashes.iter().take(ASKED_MAX).copied().collect());
        noted.by_owner.iter().filter(|(_, missed)| is_due(missed)).map(some).collect()
    }

    /// Leaves an owner alone for a while.
    pub(super) fn refused(&self, owner: &BlockdId) {
        if let Some(missed) = self.noted.lock().by_owner.get_mut(owner) {
            missed.not_before = Some(Instant::now() + REFUSED_PAUSE);
        }
    }

    /// Forgets what an owner has now, or is not to get any more.
    pub(super) fn remove(&self, owner: &BlockdId, hash: &BlockHash) {
        let mut noted = self.noted.lock();
        let was_there = noted.by_owner.get_mut(owner).is_some_and(|missed| missed.hashes.remove(hash));
        noted.count -= usize::from(was_there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: BlockdId = BlockdId([1; 16]);

    fn hash(number: u32) -> BlockHash {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        BlockHash(hash)
    }

    async fn is_due(handoff: &Handoff, within: Duration) -> bool {
        tokio::time::timeout(within, handoff.wait_due()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_is_due_until_it_is_removed_however_often_the_wait_begins_anew() {
        let handoff = Handoff::default();
        assert!(!is_due(&handoff, 10 * PAUSE).await);
        handoff.add(OWNER, hash(1));
        handoff.add(OWNER, hash(1));
        assert!(!is_due(&handoff, PAUSE * 3 / 5).await && is_due(&handoff, PAUSE * 3 / 5).await);
        assert_eq!(handoff.take_due(), [(OWNER, vec![hash(1)])]);
        assert!(is_due(&handoff, PAUSE * 2).await, "again, because it is still noted");
        handoff.remove(&OWNER, &hash(1));
        handoff.remove(&OWNER, &hash(1));
        assert!(handoff.take_due().is_empty());
        assert!(!is_due(&handoff, 10 * PAUSE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_takes_nothing_is_left_alone_and_leaves_room_for_others() {
        let handoff = Handoff::default();
        (0..NOTED_MAX as u32).for_each(|number| handoff.add(OWNER, hash(number)));
        let other = BlockdId([2; 16]);
        handoff.add(other, hash(7));
        let due: Vec<(BlockdId, usize)> = handoff.take_due().iter().map(|(owner, all)| (*owner, all.len())).collect();
        assert_eq!(due, [(OWNER, ASKED_MAX), (other, 1)]);
        handoff.refused(&OWNER);
        assert_eq!(handoff.take_due(), [(other, vec![hash(7)])]);
        tokio::time::advance(REFUSED_PAUSE).await;
        assert_eq!(handoff.take_due().len(), 2);
    }
}
