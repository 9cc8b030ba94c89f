//! Handing off copies that owners missed (hinted handoff; DeCandia et al., Dynamo, 2007, §4.6).
//!
//! A put goes past an owner that is dead, paused or full for the moment. Comparing would copy the block too. But while the
//! layout does not change, the next comparison may be minutes away. So the daemon that answers the client notes which owners
//! have not synced the block, and sends it to them once they take it.
//!
//! Owner: [`Handoff`]. The server notes, and the healing task sends ([`super::heal`]). What is noted is lost with the process,
//! and dropped beyond a bound: comparing finds what such owners lack.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::Notify;
use wire::ids::{BlockHash, BlockdId};

/// Blocks that are noted at most.
const NOTED_MAX: usize = 65_536;
/// Between two attempts to send what is noted.
const PAUSE: Duration = Duration::from_secs(2);
/// Blocks about which an owner is asked at once.
const ASKED_MAX: usize = 1024;

/// Blocks that owners have not synced, by owner.
#[derive(Default)]
pub struct Handoff {
    noted: Mutex<Noted>,
    added: Notify,
}

#[derive(Default)]
struct Noted {
    by_owner: BTreeMap<BlockdId, BTreeSet<BlockHash>>,
    count: usize,
}

impl Handoff {
    /// Notes that an owner has not synced a block.
    pub fn add(&self, owner: BlockdId, hash: BlockHash) {
        let mut noted = self.noted.lock();
        if noted.count < NOTED_MAX && noted.by_owner.entry(owner).or_default().insert(hash) {
            noted.count += 1;
            self.added.notify_one();
        }
    }

    /// Waits until there is something to send, and then a moment: owners that were away take a while, and much may be
    /// sent together. Cancel-safe.
    pub(super) async fn wait_due(&self) {
        while self.noted.lock().count == 0 {
            self.added.notified().await;
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Returns the next blocks to send to each owner.
    pub(super) fn next_for_each_owner(&self) -> Vec<(BlockdId, Vec<BlockHash>)> {
        let noted = self.noted.lock();
        let some = |(owner, hashes): (&BlockdId, &BTreeSet<BlockHash>)| {
            (*owner, hashes.iter().take(ASKED_MAX).copied().collect())
        };
        noted.by_owner.iter().map(some).collect()
    }

    /// Forgets what an owner has now, or does not own any more.
    pub(super) fn remove(&self, owner: &BlockdId, hash: &BlockHash) {
        let mut noted = self.noted.lock();
        let Some(hashes) = noted.by_owner.get_mut(owner) else { return };
        let is_there = hashes.remove(hash);
        if hashes.is_empty() {
            noted.by_owner.remove(owner);
        }
        noted.count -= usize::from(is_there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_noted_is_due_until_it_is_removed_and_never_more_than_the_bound() {
        let handoff = Handoff::default();
        let (owner, hash) = (BlockdId([1; 16]), |number: u32| {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.to_be_bytes());
            BlockHash(hash)
        });
        assert!(tokio::time::timeout(Duration::from_secs(60), handoff.wait_due()).await.is_err());
        handoff.add(owner, hash(1));
        handoff.add(owner, hash(1));
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(60), handoff.wait_due()).await.expect("one is noted");
        }
        assert_eq!(handoff.next_for_each_owner(), [(owner, vec![hash(1)])]);
        handoff.remove(&owner, &hash(1));
        handoff.remove(&owner, &hash(1));
        assert!(handoff.next_for_each_owner().is_empty());
        assert!(tokio::time::timeout(Duration::from_secs(60), handoff.wait_due()).await.is_err());
        (0..NOTED_MAX as u32 + 10).for_each(|number| handoff.add(owner, hash(number)));
        assert_eq!(handoff.noted.lock().by_owner[&owner].len(), NOTED_MAX);
    }
}
