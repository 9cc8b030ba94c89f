//! Sending owners what they missed ([`super::handoff`]), in rounds of bounded time.
//!
//! Each owner has a share of a round, so a slow one keeps no other from what it missed. The next round goes on where this
//! one has ended. What this daemon missed itself, because it had no room, it fetches.

use super::fetch::{Fetched, fetch};
use super::give_back::UNCOMMITTED_AGE;
use super::healer::{Failed, Healer, PAGE_NAMES};
use super::probe::probe;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::layout::ring::Ring;
use wire::limits::BLOCK_BYTES_MAX;

/// For how long blocks are begun to be sent in one round.
const ROUND_TIME: Duration = Duration::from_secs(3);
/// Least share of an owner in a round.
const OWNER_TIME_MIN: Duration = Duration::from_millis(300);
/// An owner that does not answer within this time gets what it missed in another round.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an owner may take to store a block, and metad to say what is referred to.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the blocks of one owner are left to another round.
enum Stopped {
    /// The owner does not take them.
    Owner(Failed),
    /// It is not the owner's fault.
    Here(Failed),
}

impl Healer {
    /// Runs one round. Given up at any moment, it leaves what was not sent to the next one.
    pub(super) async fn hand_off(&mut self, layout: &Layout) {
        let (handoff, ring) = (self.handoff.clone(), Ring::new(layout));
        let (round, until) = (handoff.begin_round(), Instant::now() + ROUND_TIME);
        let share = (ROUND_TIME / round.len().max(1) as u32).max(OWNER_TIME_MIN);
        for (owner, hashes) in round {
            let begun = Instant::now();
            if begun >= until {
                break;
            }
            handoff.begin_owner(&owner);
            let (owed, owed_no_more): (Vec<_>, Vec<_>) =
                hashes.into_iter().partition(|hash| owns(layout, &ring, &owner, hash));
            // The present owners of these have compared, or will.
            owed_no_more.iter().for_each(|hash| handoff.remove(&owner, hash));
            let until = until.min(begun + share);
            let outcome = if owed.is_empty() {
                Ok(())
            } else if owner == self.id {
                self.fetch_missed(layout, &ring, owed, until).await
            } else {
                self.hand_off_to(layout, owner, owed, until).await
            };
            match outcome {
                Ok(()) => {}
                Err(Stopped::Owner(reason)) => {
                    tracing::debug!(%owner, reason, "an owner does not take what it missed yet");
                    handoff.refused(&owner);
                }
                Err(Stopped::Here(reason)) => {
                    tracing::debug!(reason, "what owners missed is not sent yet");
                    break;
                }
            }
        }
        handoff.end_round();
    }

    /// Notes what is here and not in a page of another owner's list of the blocks from the first name to the last, or in
    /// none if it has no block there. A note of an earlier put is lost with the process that has made it, so the first
    /// comparison of a process is for others, too.
    pub(super) fn note_absent(
        &self,
        layout: &Layout,
        owner: BlockdId,
        (from, last): (BlockHash, BlockHash),
        page: &[(BlockHash, u32)],
    ) {
        if !self.handoff.is_first_comparison() {
            return;
        }
        let ring = Ring::new(layout);
        let last = if page.len() < PAGE_NAMES as usize { last } else { page[page.len() - 1].0.min(last) };
        let present: HashSet<&BlockHash> = page.iter().map(|(hash, _)| hash).collect();
        let here = self.store.list_within(from, last, PAGE_NAMES as usize);
        let absent = here
            .iter()
            .map(|(hash, _)| hash)
            .filter(|hash| !present.contains(hash) && owns(layout, &ring, &owner, hash));
        absent.for_each(|hash| self.handoff.add(owner, *hash));
    }

    async fn hand_off_to(
        &mut self,
        layout: &Layout,
        owner: BlockdId,
        hashes: Vec<BlockHash>,
        until: Instant,
    ) -> Result<(), Stopped> {
        let handoff = self.handoff.clone();
        let member = layout.member(&owner).ok_or_else(|| Stopped::Owner("it has left the layout".to_owned()))?;
        let present = probe(&self.endpoint, member.addr, layout.epoch, &hashes, PROBE_TIMEOUT).await;
        let present = present.map_err(|reason| Stopped::Owner(reason.to_string()))?;
        present.iter().for_each(|hash| handoff.remove(&owner, hash));
        let absent: Vec<BlockHash> = hashes.into_iter().filter(|hash| !present.contains(hash)).collect();
        for (nth, hash) in self.referenced_missed(&owner, absent).await?.into_iter().enumerate() {
            // However long its answers take, an owner gets one block.
            if nth > 0 && Instant::now() >= until {
                break;
            }
            handoff.begin_block(&owner, &hash);
            if self.store.contains(&hash) {
                if !self.send(layout, hash, &[owner], SEND_TIMEOUT).await {
                    return Err(Stopped::Owner("it did not store a block".to_owned()));
                }
                handoff.remove(&owner, &hash);
            } else if handoff.is_noted(&self.id, &hash) {
                // This daemon is about to fetch it.
                handoff.postpone(&owner, &hash);
            } else {
                handoff.remove(&owner, &hash);
            }
        }
        Ok(())
    }

    /// Fetches what this daemon missed itself, as soon as there is room.
    async fn fetch_missed(
        &mut self,
        layout: &Layout,
        ring: &Ring<'_>,
        hashes: Vec<BlockHash>,
        until: Instant,
    ) -> Result<(), Stopped> {
        let (handoff, me) = (self.handoff.clone(), self.id);
        let (here, absent): (Vec<_>, Vec<_>) = hashes.into_iter().partition(|hash| self.store.contains(hash));
        here.iter().for_each(|hash| handoff.remove(&me, hash));
        // The block may be as long as any. What is fetched without room would be fetched again and again.
        if !absent.is_empty() && !self.store.has_room_for(BLOCK_BYTES_MAX as u32) {
            return Err(Stopped::Owner(crate::store::Error::NoSpace.to_string()));
        }
        for (nth, hash) in self.referenced_missed(&me, absent).await?.into_iter().enumerate() {
            if nth > 0 && Instant::now() >= until {
                break;
            }
            handoff.begin_block(&me, &hash);
            let owners = ring.owners(hash.point()).into_iter().map(|index| &layout.members[index]);
            let mut fetched = None;
            for owner in owners.filter(|owner| owner.id != me) {
                let fetching = fetch(&self.endpoint, owner.addr, hash, layout.epoch);
                fetched = tokio::time::timeout(SEND_TIMEOUT, fetching).await.ok().and_then(Fetched::sent);
                if fetched.is_some() {
                    break;
                }
            }
            let Some(block) = fetched else {
                handoff.postpone(&me, &hash);
                continue;
            };
            let len = block.len() as u64;
            // Without room, the next block is tried after a pause.
            self.store.put(hash, block).await.map_err(|error| Stopped::Owner(error.to_string()))?;
            handoff.remove(&me, &hash);
            self.metrics.healed.add(1);
            self.metrics.healed_bytes.add(len);
            self.progress.copied(len);
            self.throttle.spend(len, &self.activity).await;
        }
        Ok(())
    }

    /// Returns those of the blocks that something refers to. I10: the others are not sent. One that is young may be
    /// committed yet, so it is looked at again later; an old one is forgotten.
    async fn referenced_missed(
        &mut self,
        owner: &BlockdId,
        mut hashes: Vec<BlockHash>,
    ) -> Result<Vec<BlockHash>, Stopped> {
        if hashes.is_empty() {
            return Ok(hashes);
        }
        let asked = tokio::time::timeout(SEND_TIMEOUT, self.unreferenced(&hashes)).await;
        let unreferenced: HashSet<BlockHash> =
            asked.unwrap_or_else(|_| Err("metad does not answer".to_owned())).map_err(Stopped::Here)?;
        hashes.retain(|hash| !unreferenced.contains(hash));
        for hash in unreferenced {
            if self.stamps.is_younger(&hash, UNCOMMITTED_AGE) == Some(false) {
                self.handoff.remove(owner, &hash);
            } else {
                self.handoff.postpone(owner, &hash);
            }
        }
        Ok(hashes)
    }
}

fn owns(layout: &Layout, ring: &Ring<'_>, owner: &BlockdId, hash: &BlockHash) -> bool {
    ring.owners(hash.point()).into_iter().any(|index| layout.members[index].id == *owner)
}
