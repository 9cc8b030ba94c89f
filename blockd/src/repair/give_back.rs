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
//! The second and third lines are for blocks whose commit came after their owners had changed: their owners compared when
//! nobody referred to them. Every other way leaves a copy too many, never one too few.

use super::duties::Duties;
use super::healer::{ASK_TIMEOUT, Failed, Healer, PAGE};
use super::pass::after;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::layout::ring::Ring;
use wire::limits::UPLOAD_FRESH_MS;
use wire::message::block::{BlockReply, BlockRequest};
use wire::tls::Role;

/// A client commits what it has uploaded within [`UPLOAD_FRESH_MS`], or uploads it again; twice that, for clocks are not asked.
const YOUNG: Duration = Duration::from_millis(2 * UPLOAD_FRESH_MS);

/// What becomes of a copy.
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

/// Decides on a copy that belongs to `owners`, of which `lacking` do not have it.
#[must_use]
pub fn fate(is_referenced: bool, is_young: Option<bool>, owners: &[BlockdId], lacking: &[BlockdId]) -> Fate {
    match (is_referenced, is_young) {
        _ if owners.is_empty() => Fate::Wait,
        (true, _) if lacking.is_empty() => Fate::Drop,
        (true, _) => Fate::Send(lacking.to_vec()),
        (false, Some(true)) => Fate::Send(owners.to_vec()),
        (false, Some(false)) => Fate::Leave,
        (false, None) => Fate::Wait,
    }
}

impl Healer {
    /// Gives back what belongs elsewhere. True when nothing that matters is left.
    pub(super) async fn give_back(&mut self, layout: &Layout, duties: &Duties) -> bool {
        let mut empty = true;
        for span in &duties.foreign {
            let mut from = Some(span.first_hash());
            while let Some(first) = from {
                let page: Vec<(BlockHash, u32)> = self.store.list_within(first, span.last_hash(), PAGE as usize);
                from = if page.len() < PAGE as usize { None } else { page.last().and_then(|(hash, _)| after(hash)) };
                if page.is_empty() {
                    break;
                }
                match self.give_back_page(layout, &page).await {
                    Ok(all_gone) => empty &= all_gone,
                    Err(reason) => {
                        tracing::debug!(reason, "copies that belong elsewhere stay for now");
                        return false;
                    }
                }
            }
        }
        empty
    }

    async fn give_back_page(&mut self, layout: &Layout, page: &[(BlockHash, u32)]) -> Result<bool, Failed> {
        let asked_at = Instant::now();
        let hashes: Vec<BlockHash> = page.iter().map(|(hash, _)| *hash).collect();
        let unreferenced = self.unreferenced(&hashes).await?;
        let ring = Ring::new(layout);
        let owners_of = |hash: &BlockHash| -> Vec<BlockdId> {
            ring.owners(hash.point()).into_iter().map(|index| layout.members[index].id).collect()
        };
        let mut by_owner: BTreeMap<BlockdId, Vec<BlockHash>> = BTreeMap::new();
        for hash in &hashes {
            owners_of(hash).into_iter().for_each(|owner| by_owner.entry(owner).or_default().push(*hash));
        }
        let mut present: HashSet<(BlockdId, BlockHash)> = HashSet::new();
        for (owner, hashes) in by_owner {
            let request = BlockRequest::Probe { epoch: layout.epoch, hashes: hashes.clone() };
            match self.ask(layout, &owner, &request).await {
                Ok(BlockReply::Present(here)) if here.len() == hashes.len() => {
                    present
                        .extend(hashes.into_iter().zip(here).filter(|(_, here)| *here).map(|(hash, _)| (owner, hash)));
                }
                Ok(other) => return Err(format!("answered {other:?}")),
                Err(reason) => return Err(reason),
            }
        }
        let mut all_gone = true;
        for hash in hashes {
            let owners = owners_of(&hash);
            let lacking: Vec<BlockdId> =
                owners.iter().filter(|owner| !present.contains(&(**owner, hash))).copied().collect();
            let is_young = self.stamps.is_younger(&hash, YOUNG);
            let gone = match fate(!unreferenced.contains(&hash), is_young, &owners, &lacking) {
                Fate::Leave => continue,
                Fate::Wait => false,
                Fate::Drop => true,
                Fate::Send(whom) => self.send(layout, hash, &whom).await,
            };
            all_gone &= gone && self.drop_given(layout, hash, asked_at).await;
            if self.layouts.newest().epoch != layout.epoch {
                return Err("the layout has changed".to_owned());
            }
        }
        Ok(all_gone)
    }

    /// Sends a block to owners; true when each has stored it.
    async fn send(&mut self, layout: &Layout, hash: BlockHash, owners: &[BlockdId]) -> bool {
        let Ok(Some(block)) = self.store.get(hash).await else { return false };
        for owner in owners {
            let Some(member) = layout.member(owner) else { return false };
            let request = BlockRequest::Put { hash, epoch: layout.epoch, chain: Vec::new(), needed: 1 };
            let peer = self.endpoint.peer(member.addr, Role::Blockd);
            match peer.request::<_, BlockReply>(&request, std::slice::from_ref(&block), ASK_TIMEOUT).await {
                Ok((BlockReply::Stored { synced, .. }, _)) if synced.contains(owner) => {}
                other => {
                    let reason =
                        other.map_or_else(|error| error.to_string(), |(reply, _)| format!("answered {reply:?}"));
                    tracing::debug!(%hash, owner = member.name, reason, "an owner did not take its block");
                    return false;
                }
            }
            self.progress.copied(block.len() as u64);
            self.throttle.spend(block.len() as u64, &self.activity).await;
        }
        true
    }

    /// Drops a copy that every owner has, unless somebody renewed it since they were asked.
    async fn drop_given(&self, layout: &Layout, hash: BlockHash, asked_at: Instant) -> bool {
        let Some(_dropping) = self.stamps.begin_drop(hash, asked_at.elapsed()) else { return false };
        // It may belong here again. A pass under the new layout begins only when this is over.
        if self.layouts.newest().epoch != layout.epoch {
            return false;
        }
        match self.store.drop_block(hash).await {
            Ok(_) => {
                self.metrics.given_back.add(1);
                true
            }
            Err(error) => {
                tracing::warn!(%hash, %error, "a copy that belongs elsewhere could not be dropped");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards I10.
    #[test]
    fn a_copy_goes_only_when_every_owner_has_the_block() {
        let (a, b) = (BlockdId([1; 16]), BlockdId([2; 16]));
        assert_eq!(fate(true, Some(false), &[a, b], &[]), Fate::Drop);
        assert_eq!(fate(true, None, &[a, b], &[b]), Fate::Send(vec![b]));
        assert_eq!(fate(false, Some(true), &[a, b], &[]), Fate::Send(vec![a, b]), "its stamp is renewed there, too");
        assert_eq!(fate(false, Some(false), &[a, b], &[b]), Fate::Leave, "it is not brought back");
        assert_eq!(fate(false, None, &[a, b], &[b]), Fate::Wait);
        assert_eq!(fate(true, Some(false), &[], &[]), Fate::Wait, "nobody else could have it");
    }
}
