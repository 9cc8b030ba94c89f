//! Copies that belong elsewhere: they are given back once the layout is final and every owner has the block.
//!
//! | the block | is |
//! |---|---|
//! | referred to, and every owner says that it has it | dropped |
//! | referred to, and an owner lacks it | sent to that owner, then dropped |
//! | stored or renewed a moment ago, and not referred to yet | sent to every owner, which renews it there, then dropped |
//! | neither | left to the block reports, which drop it after its grace (I10) |
//! | not referred to, and this daemon runs for too short a time to know its age | left until it knows |
//!
//! The second and third lines are for blocks that were committed after their owners had changed: the owners compared
//! while nobody referred to them. Every other order of events leaves a copy too many, never one too few.

use super::duties::Duties;
use super::healer::{ASK_TIMEOUT, Failed, Healer, PAGE_NAMES};
use super::probe::probe;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::layout::ring::Ring;
use wire::limits::UPLOAD_FRESH_MS;
use wire::message::block::{BlockReply, BlockRequest};
use wire::tls::Role;

/// A client commits an upload within [`UPLOAD_FRESH_MS`], or uploads it again. Twice that allows for clocks that
/// differ.
pub(super) const UNCOMMITTED_AGE: Duration = Duration::from_millis(2 * UPLOAD_FRESH_MS);

/// Copies that are decided on together: the answers about them must still be new when the last one is dropped.
const COPIES_AT_ONCE: usize = 32;
/// An older answer of metad, or of an owner, decides nothing.
const ANSWER_LIFETIME: Duration = Duration::from_secs(10);

/// Decision on a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is dropped.
    Drop,
    /// It is sent to these owners, and dropped if each has taken it.
    Send(Vec<BlockdId>),
    /// It stays, and nobody waits for it.
    Leave,
    /// It stays until its age is known.
    Wait,
}

/// Decides on a copy that belongs to `owners`, of which `lacking` do not have it; a block needs `min_sync` copies at
/// least.
#[must_use]
pub fn fate(
    is_referenced: bool,
    is_young: Option<bool>,
    (owners, min_sync): (&[BlockdId], usize),
    lacking: &[BlockdId],
) -> Fate {
    match (is_referenced, is_young) {
        // I9: with this copy gone there would be too few.
        _ if owners.len() < min_sync.max(1) => Fate::Wait,
        (true, _) if lacking.is_empty() => Fate::Drop,
        (true, _) => Fate::Send(lacking.to_vec()),
        (false, Some(true)) => Fate::Send(owners.to_vec()),
        (false, Some(false)) => Fate::Leave,
        (false, None) => Fate::Wait,
    }
}

impl Healer {
    /// Gives back copies that belong elsewhere. Returns true when nothing that matters is left.
    pub(super) async fn give_back(&mut self, layout: &Layout, duties: &Duties) -> bool {
        let (mut empty, ring) = (true, Ring::new(layout));
        for span in &duties.foreign {
            let mut from = Some(span.first_hash());
            while let Some(first) = from {
                let page: Vec<(BlockHash, u32)> = self.store.list_within(first, span.last_hash(), PAGE_NAMES as usize);
                from =
                    if page.len() < PAGE_NAMES as usize { None } else { page.last().and_then(|(hash, _)| hash.next()) };
                if page.is_empty() {
                    break;
                }
                for some in page.chunks(COPIES_AT_ONCE) {
                    match self.give_back_some(layout, &ring, some).await {
                        Ok(all_gone) => empty &= all_gone,
                        Err(reason) => {
                            tracing::debug!(reason, "copies that belong elsewhere stay for now");
                            return false;
                        }
                    }
                }
            }
        }
        empty
    }

    async fn give_back_some(
        &mut self,
        layout: &Layout,
        ring: &Ring<'_>,
        some: &[(BlockHash, u32)],
    ) -> Result<bool, Failed> {
        let asked_at = Instant::now();
        let hashes: Vec<BlockHash> = some.iter().map(|(hash, _)| *hash).collect();
        let unreferenced = self.unreferenced(&hashes).await?;
        let with_owners = |hash: BlockHash| {
            let owners = ring.owners(hash.point()).into_iter().map(|index| layout.members[index].id);
            (hash, owners.collect::<Vec<BlockdId>>())
        };
        let blocks: Vec<_> = hashes.into_iter().map(with_owners).collect();
        let mut by_owner: BTreeMap<BlockdId, Vec<BlockHash>> = BTreeMap::new();
        // Asking an owner renews its copy, which unreferenced blocks are not worth.
        for (hash, owners) in blocks.iter().filter(|(hash, _)| !unreferenced.contains(hash)) {
            owners.iter().for_each(|owner| by_owner.entry(*owner).or_default().push(*hash));
        }
        let mut present: HashSet<(BlockdId, BlockHash)> = HashSet::new();
        for (owner, hashes) in by_owner {
            let member = layout.member(&owner).ok_or("an owner has left the layout")?;
            let here = probe(&self.endpoint, member.addr, layout.epoch, &hashes, ASK_TIMEOUT).await;
            let here = here.map_err(|reason| format!("{}: {reason}", member.name))?;
            present.extend(here.into_iter().map(|hash| (owner, hash)));
        }
        let (mut all_gone, min_sync) = (true, usize::from(layout.min_sync));
        let (mut given, mut to_send) = (Vec::new(), Vec::new());
        for (hash, owners) in blocks {
            let lacking: Vec<BlockdId> =
                owners.iter().filter(|owner| !present.contains(&(**owner, hash))).copied().collect();
            let is_young = self.stamps.is_younger(&hash, UNCOMMITTED_AGE);
            match fate(!unreferenced.contains(&hash), is_young, (&owners, min_sync), &lacking) {
                Fate::Leave => {}
                Fate::Wait => all_gone = false,
                Fate::Drop => given.push(hash),
                Fate::Send(whom) => to_send.push((hash, whom)),
            }
        }
        all_gone &= self.drop_given(layout, &given, asked_at).await;
        for (hash, whom) in to_send {
            if self.layouts.newest().epoch != layout.epoch {
                break;
            }
            let is_there = self.send(layout, hash, &whom, ASK_TIMEOUT).await;
            all_gone &= is_there && self.drop_given(layout, &[hash], asked_at).await;
        }
        // A pass under the new one does not wait for the other pages.
        if self.layouts.newest().epoch != layout.epoch {
            return Err("the layout has changed".to_owned());
        }
        Ok(all_gone)
    }

    /// Sends a block to owners, each of which has this time to store it. Returns true when each has.
    pub(super) async fn send(
        &mut self,
        layout: &Layout,
        hash: BlockHash,
        owners: &[BlockdId],
        limit: Duration,
    ) -> bool {
        let Ok(Some(block)) = self.store.get(hash).await else { return false };
        let mut all_have = true;
        for owner in owners {
            let Some(member) = layout.member(owner) else { return false };
            let request = BlockRequest::Put { hash, epoch: layout.epoch, chain: Vec::new(), needed: 1, origin: None };
            let peer = self.endpoint.peer(member.addr, Role::Blockd);
            match peer.request::<_, BlockReply>(&request, std::slice::from_ref(&block), limit).await {
                Ok((BlockReply::Stored { synced, .. }, _)) if synced.contains(owner) => {}
                other => {
                    let reason = other
                        .map_or_else(|error| error.to_string(), |(reply, _)| format!("answered {}", reply.kind_name()));
                    tracing::debug!(%hash, owner = member.name, reason, "an owner did not take its block");
                    // Other owners may take it.
                    all_have = false;
                    continue;
                }
            }
            self.progress.copied(block.len() as u64);
            self.throttle.spend(block.len() as u64, &self.activity).await;
        }
        all_have
    }

    /// Drops copies that every owner has, unless they were renewed since the owners were asked. Returns true when all are
    /// gone.
    async fn drop_given(&self, layout: &Layout, hashes: &[BlockHash], asked_at: Instant) -> bool {
        // Nothing is deleted on a disk that has failed, but what owners lack of it is sent.
        if hashes.is_empty() || self.store.has_failed() {
            return hashes.is_empty();
        }
        // An owner may have lost a block since it reported it.
        if asked_at.elapsed() > ANSWER_LIFETIME {
            return false;
        }
        let begin = |hash: &BlockHash| Some((*hash, self.stamps.begin_drop(*hash, asked_at.elapsed())?));
        let marked: Vec<_> = hashes.iter().filter_map(begin).collect();
        // They may belong here again. A pass under the new layout begins only when this is over.
        if self.layouts.newest().epoch != layout.epoch {
            return false;
        }
        let outcomes = match self.store.drop_all(&marked).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::warn!(copies = marked.len(), %error, "copies that belong elsewhere could not be dropped");
                return false;
            }
        };
        let mut all_gone = marked.len() == hashes.len();
        for ((hash, mark), outcome) in marked.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    mark.done();
                    self.metrics.given_back.add(1);
                }
                Err(error) => {
                    tracing::warn!(%hash, %error, "a copy that belongs elsewhere could not be dropped");
                    all_gone = false;
                }
            }
        }
        all_gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards I10.
    #[test]
    fn a_copy_goes_only_when_every_owner_has_the_block() {
        let (a, b) = (BlockdId([1; 16]), BlockdId([2; 16]));
        assert_eq!(fate(true, Some(false), (&[a, b], 2), &[]), Fate::Drop);
        assert_eq!(fate(true, None, (&[a, b], 2), &[b]), Fate::Send(vec![b]));
        assert_eq!(
            fate(false, Some(true), (&[a, b], 2), &[]),
            Fate::Send(vec![a, b]),
            "its stamp is renewed there, too"
        );
        assert_eq!(fate(false, Some(false), (&[a, b], 2), &[b]), Fate::Leave, "it is not brought back");
        assert_eq!(fate(false, None, (&[a, b], 2), &[b]), Fate::Wait);
        assert_eq!(fate(true, Some(false), (&[], 1), &[]), Fate::Wait, "nobody else could have it");
        assert_eq!(fate(true, Some(false), (&[a], 2), &[]), Fate::Wait, "one copy would be left of two");
    }
}
