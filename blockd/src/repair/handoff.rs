//! Handing off copies that owners missed (hinted handoff; DeCandia et al., Dynamo, 2007, §4.6).
//!
//! A put goes past an owner that is dead, paused or full for the moment. Comparing would copy the block too. But
//! while the layout does not change, the next comparison may be minutes away. So each daemon of a
//! chain notes which owners behind it have not synced the block, and sends it to them once they take it. One that had
//! no room itself notes that, too, and fetches the block later. So does one that finds a block by comparing to which
//! nothing refers yet: a client that has stored it may be about to commit it.
//!
//! Owner: [`Handoff`]. The server notes, and the healing task sends ([`super::deliver`]). What is noted is lost with
//! the process, and dropped beyond a bound: comparing finds what such owners lack. The first comparison of a
//! process looks both ways, and notes again what others lack.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::ids::{BlockHash, BlockdId};

/// Blocks that are noted at most.
const NOTED_MAX: usize = 65_536;
/// Blocks that are noted for one owner at most: one that is away for long leaves room for others.
const NOTED_FOR_ONE_MAX: usize = NOTED_MAX / 4;
/// Between two rounds in which what is noted is sent.
const ROUND_PAUSE: Duration = Duration::from_secs(2);
/// An owner that took nothing in a round is left alone for this long.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// A block that is not referred to yet is left alone for this long.
const POSTPONED_PAUSE: Duration = Duration::from_secs(15);
/// Blocks about which an owner is asked in one round.
const ASKED_MAX: usize = 1024;

/// Blocks that owners have not synced, by owner.
#[derive(Default)]
pub struct Handoff {
    noted: Mutex<Noted>,
    added: Notify,
    /// This process has compared all that it owns.
    compared: AtomicBool,
}

#[derive(Default)]
struct Noted {
    by_owner: BTreeMap<BlockdId, Missed>,
    count: usize,
    /// When the next round is due; `None` while nothing is noted.
    due: Option<Instant>,
    /// The owner that came last.
    last_owner: Option<BlockdId>,
}

#[derive(Default)]
struct Missed {
    ready: BTreeSet<BlockHash>,
    /// Blocks that are not looked at before the time.
    postponed: BTreeMap<BlockHash, Instant>,
    /// The block that came last.
    last: Option<BlockHash>,
    /// The owner is not asked before.
    not_before: Option<Instant>,
}

impl Missed {
    fn len(&self) -> usize {
        self.ready.len() + self.postponed.len()
    }

    /// The next blocks, in turn.
    fn next(&mut self, now: Instant) -> Vec<BlockHash> {
        let due: Vec<BlockHash> = self.postponed.iter().filter(|(_, at)| **at <= now).map(|(hash, _)| *hash).collect();
        for hash in due {
            self.postponed.remove(&hash);
            self.ready.insert(hash);
        }
        match self.last {
            None => self.ready.iter().take(ASKED_MAX).copied().collect(),
            Some(last) => {
                let behind = self.ready.range((Excluded(last), Unbounded));
                behind.chain(self.ready.range((Unbounded, Included(last)))).take(ASKED_MAX).copied().collect()
            }
        }
    }
}

impl Noted {
    /// Takes a note of a block that can wait back, if there is any for this owner, or for another one.
    fn make_room(&mut self, owner: &BlockdId, for_one: bool) {
        let with_postponed = |missed: &Missed| !missed.postponed.is_empty();
        let victim = if for_one {
            self.by_owner.get_mut(owner).filter(|missed| with_postponed(missed))
        } else {
            self.by_owner.values_mut().find(|missed| with_postponed(missed))
        };
        if victim.is_some_and(|missed| missed.postponed.pop_first().is_some()) {
            self.count -= 1;
        }
    }
}

impl Handoff {
    /// Notes that an owner has not synced a block.
    pub fn add(&self, owner: BlockdId, hash: BlockHash) {
        let mut noted = self.noted.lock();
        let missed = noted.by_owner.entry(owner).or_default();
        if missed.postponed.contains_key(&hash) || missed.ready.contains(&hash) {
            return;
        }
        if missed.len() >= NOTED_FOR_ONE_MAX {
            noted.make_room(&owner, true);
        } else if noted.count >= NOTED_MAX {
            noted.make_room(&owner, false);
        }
        let has_room = noted.count < NOTED_MAX;
        let missed = noted.by_owner.entry(owner).or_default();
        if has_room && missed.len() < NOTED_FOR_ONE_MAX {
            missed.ready.insert(hash);
            noted.count += 1;
            if noted.due.is_none() {
                noted.due = Some(Instant::now() + ROUND_PAUSE);
                self.added.notify_one();
            }
        }
    }

    /// Notes that this process has compared all that it owns: it has found again what the one before had noted.
    pub(super) fn end_first_comparison(&self) {
        self.compared.store(true, Ordering::Relaxed);
    }

    /// Returns whether what others lack has to be found by comparing.
    pub(super) fn is_first_comparison(&self) -> bool {
        !self.compared.load(Ordering::Relaxed)
    }

    /// Waits until a round is due. That is a moment after the first note: owners that were away take a while, and much
    /// may be sent together. Cancel-safe: a wait that begins anew ends at the same time.
    pub(super) async fn wait_due(&self) {
        loop {
            let due = self.noted.lock().due;
            match due {
                Some(at) => return tokio::time::sleep_until(at).await,
                None => self.added.notified().await,
            }
        }
    }

    /// Returns the next blocks for each owner: first those for the owner behind the one that came last.
    pub(super) fn begin_round(&self) -> Vec<(BlockdId, Vec<BlockHash>)> {
        let mut noted = self.noted.lock();
        let now = Instant::now();
        noted.by_owner.retain(|_, missed| missed.len() > 0);
        let last = noted.last_owner;
        let due = noted.by_owner.iter_mut().filter(|(_, missed)| missed.not_before.is_none_or(|at| at <= now));
        let mut round: Vec<_> =
            due.map(|(owner, missed)| (*owner, missed.next(now))).filter(|(_, hashes)| !hashes.is_empty()).collect();
        let first = round.partition_point(|(owner, _)| Some(*owner) <= last);
        let first = if first == round.len() { 0 } else { first };
        round.rotate_left(first);
        round
    }

    /// Notes that it is an owner's turn.
    pub(super) fn begin_owner(&self, owner: &BlockdId) {
        self.noted.lock().last_owner = Some(*owner);
    }

    /// Notes that a block is sent to an owner: the next round goes on behind it, whatever comes of it.
    pub(super) fn begin_block(&self, owner: &BlockdId, hash: &BlockHash) {
        if let Some(missed) = self.noted.lock().by_owner.get_mut(owner) {
            missed.last = Some(*hash);
        }
    }

    /// Ends a round, and begins the wait for the next one.
    pub(super) fn end_round(&self) {
        let mut noted = self.noted.lock();
        noted.due = (noted.count > 0).then(|| Instant::now() + ROUND_PAUSE);
    }

    /// Leaves an owner alone for a while.
    pub(super) fn refused(&self, owner: &BlockdId) {
        if let Some(missed) = self.noted.lock().by_owner.get_mut(owner) {
            missed.not_before = Some(Instant::now() + REFUSED_PAUSE);
        }
    }

    /// Leaves a block alone for a while. Others come first if there is no more room.
    pub(super) fn postpone(&self, owner: &BlockdId, hash: &BlockHash) {
        if let Some(missed) = self.noted.lock().by_owner.get_mut(owner)
            && missed.ready.remove(hash)
        {
            missed.postponed.insert(*hash, Instant::now() + POSTPONED_PAUSE);
        }
    }

    /// Reports whether an owner is to get a block.
    pub(crate) fn is_noted(&self, owner: &BlockdId, hash: &BlockHash) -> bool {
        let noted = self.noted.lock();
        noted
            .by_owner
            .get(owner)
            .is_some_and(|missed| missed.ready.contains(hash) || missed.postponed.contains_key(hash))
    }

    /// Forgets what an owner has now, or is not to get any more.
    pub(super) fn remove(&self, owner: &BlockdId, hash: &BlockHash) {
        let mut noted = self.noted.lock();
        let was_there = noted
            .by_owner
            .get_mut(owner)
            .is_some_and(|missed| missed.ready.remove(hash) || missed.postponed.remove(hash).is_some());
        noted.count -= usize::from(was_there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: BlockdId = BlockdId([1; 16]);
    const OTHER: BlockdId = BlockdId([2; 16]);

    fn hash(number: u32) -> BlockHash {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        BlockHash(hash)
    }

    async fn is_due(handoff: &Handoff, within: Duration) -> bool {
        tokio::time::timeout(within, handoff.wait_due()).await.is_ok()
    }

    fn round(handoff: &Handoff) -> Vec<(BlockdId, usize)> {
        handoff.begin_round().iter().map(|(owner, all)| (*owner, all.len())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_is_due_until_it_is_removed_however_often_the_wait_begins_anew() {
        let handoff = Handoff::default();
        assert!(!is_due(&handoff, 10 * ROUND_PAUSE).await);
        handoff.add(OWNER, hash(1));
        handoff.add(OWNER, hash(1));
        assert!(!is_due(&handoff, ROUND_PAUSE * 3 / 5).await && is_due(&handoff, ROUND_PAUSE * 3 / 5).await);
        assert_eq!(handoff.begin_round(), [(OWNER, vec![hash(1)])]);
        tokio::time::advance(3 * ROUND_PAUSE).await;
        handoff.end_round();
        assert!(!is_due(&handoff, ROUND_PAUSE / 2).await, "the pause begins when a round ends");
        assert!(is_due(&handoff, ROUND_PAUSE * 2).await, "again, because it is still noted");
        handoff.remove(&OWNER, &hash(1));
        handoff.remove(&OWNER, &hash(1));
        assert!(handoff.begin_round().is_empty());
        handoff.end_round();
        assert!(!is_due(&handoff, 10 * ROUND_PAUSE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_takes_nothing_is_left_alone_and_leaves_room_for_others() {
        let handoff = Handoff::default();
        (0..NOTED_MAX as u32).for_each(|number| handoff.add(OWNER, hash(number)));
        handoff.add(OTHER, hash(7));
        assert_eq!(round(&handoff), [(OWNER, ASKED_MAX), (OTHER, 1)]);
        handoff.refused(&OWNER);
        assert_eq!(handoff.begin_round(), [(OTHER, vec![hash(7)])]);
        tokio::time::advance(REFUSED_PAUSE).await;
        assert_eq!(round(&handoff).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn each_round_goes_on_behind_the_owner_and_the_block_of_the_last_one() {
        let handoff = Handoff::default();
        (0..3).for_each(|number| handoff.add(OWNER, hash(number)));
        handoff.add(OTHER, hash(7));
        handoff.begin_owner(&OWNER);
        handoff.begin_block(&OWNER, &hash(1));
        assert_eq!(handoff.begin_round(), [(OTHER, vec![hash(7)]), (OWNER, [2, 0, 1].map(hash).to_vec())]);
        handoff.begin_owner(&OTHER);
        assert_eq!(round(&handoff), [(OWNER, 3), (OTHER, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_postponed_block_comes_later_and_makes_room_for_others() {
        let handoff = Handoff::default();
        (0..NOTED_FOR_ONE_MAX as u32).for_each(|number| handoff.add(OWNER, hash(number)));
        handoff.postpone(&OWNER, &hash(0));
        handoff.postpone(&OWNER, &hash(1));
        assert!(handoff.is_noted(&OWNER, &hash(1)));
        assert_eq!(handoff.begin_round()[0].1[0], hash(2));
        handoff.add(OWNER, hash(u32::MAX));
        assert!(handoff.is_noted(&OWNER, &hash(u32::MAX)) && !handoff.is_noted(&OWNER, &hash(0)));
        handoff.add(OWNER, hash(1));
        assert_eq!(handoff.begin_round()[0].1[0], hash(2), "a new put does not bring it forward");
        tokio::time::advance(POSTPONED_PAUSE).await;
        assert_eq!(handoff.begin_round()[0].1[0], hash(1));
        assert_eq!(handoff.noted.lock().count, NOTED_FOR_ONE_MAX);
    }
}
