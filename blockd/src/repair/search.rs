//! Looking for blocks on all other daemons. What one of them does wrong is its own matter: it is asked once more after
//! the others, and then counts as silent for the rest of the audit. Nobody is asked without a bound of time.
//!
//! A daemon's word that it has a block is checked: it has to serve the block's first byte. Where it names many, some are
//! checked, and the others are asked for elsewhere only if it does not serve all of those. No claim is believed for
//! good before the block was sent: blocks are fetched in turns from all who say that they have some, and whoever could
//! not send one ([`Claims`]) is not believed again.

use super::claims::Claims;
use super::missing::Found;
use super::probe::{NoAnswer, Readable, probe, readable};
use super::read_repair::RepairQueue;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::ring::Ring;
use wire::layout::{Layout, LayoutMember};
use wire::limits::BLOCK_BYTES_MAX;
use wire::quic::Endpoint;

/// How long another daemon may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take when it is asked once more.
const ASK_AGAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long all of a daemon's answers to one audit may take, beyond [`ANSWER_TIME`] for each.
const MEMBER_TIME: Duration = Duration::from_secs(10);
/// Most answers take milliseconds.
const ANSWER_TIME: Duration = Duration::from_millis(100);
/// Before a daemon that gave no answer is asked once more: one that is behind asks metad meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Claims of a daemon that are checked because of one page at most.
const CHECKED_MAX: usize = 64;
/// Blocks that are fetched because of one page at most. Comparing with others copies more, at a rate of its own.
pub(super) const FETCHED_MAX: usize = 64;
/// The same while comparing goes on, or there is no room: enough to see who does not have what it says.
pub(super) const FETCHED_TO_CHECK: usize = 8;

/// How each other daemon has answered during one audit.
#[derive(Default)]
pub struct Voices {
    members: BTreeMap<BlockdId, Voice>,
    /// A daemon did not know the layout.
    pub was_behind: bool,
}

#[derive(Default)]
struct Voice {
    failures: u8,
    /// Time that its answers took beyond what they may.
    excess: Duration,
    /// Why it is not asked any more.
    unheard: Option<NoAnswer>,
    /// It has not said all that it was asked, or is unheard though it should answer.
    is_partial: bool,
}

impl Voice {
    /// Notes how long an answer took. A daemon that takes long too often is not asked any more, so all of its answers to an
    /// audit hold that up by little more than the audit takes anyway.
    fn took(&mut self, time: Duration) {
        self.excess = self.excess.saturating_add(time.saturating_sub(ANSWER_TIME));
        if self.excess > MEMBER_TIME {
            (self.unheard, self.is_partial) = (Some(NoAnswer::Slow), true);
        }
    }
}

impl Voices {
    /// Begins without these daemons, which are known to be silent.
    #[must_use]
    pub fn without(silent: &[BlockdId]) -> Self {
        let unheard = |id: &BlockdId| (*id, Voice { unheard: Some(NoAnswer::Silent), ..Voice::default() });
        Self { members: silent.iter().map(unheard).collect(), was_behind: false }
    }

    fn of(&mut self, id: BlockdId) -> &mut Voice {
        self.members.entry(id).or_default()
    }

    fn is_heard(&self, id: &BlockdId) -> bool {
        self.members.get(id).is_none_or(|voice| voice.unheard.is_none())
    }

    /// Returns whether all who should have answered have, to everything.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.members.values().all(|voice| !voice.is_partial)
    }

    /// The daemons that are not asked any more, and why.
    pub fn unheard(&self) -> impl Iterator<Item = (&BlockdId, NoAnswer)> {
        self.members.iter().filter_map(|(id, voice)| voice.unheard.map(|reason| (id, reason)))
    }
}

/// The blocks that a daemon turned out to have.
struct Held {
    /// It has them.
    proven: BTreeSet<BlockHash>,
    /// It says that it has them, and is not believed.
    unproven: BTreeSet<BlockHash>,
    /// It was not asked about all, or could not answer for all.
    is_partial: bool,
}

/// A daemon's word that it has a block.
type Claim = (BlockdId, BlockHash);

/// What all daemons said together.
#[derive(Default)]
struct Said {
    proven: Vec<Claim>,
    unproven: BTreeSet<Claim>,
}

/// What looking for blocks needs.
pub struct Search {
    /// This daemon.
    pub id: BlockdId,
    /// What is here.
    pub store: Arc<Store>,
    /// How others are reached.
    pub endpoint: Endpoint,
    /// Fetches what others have.
    pub repairs: RepairQueue,
    /// What they could not send.
    pub claims: Arc<Claims>,
}

impl Search {
    /// Looks for blocks that this daemon owes, and has some that others have fetched, at most `fetched_max` of those
    /// that are believed and as many of the others.
    pub async fn look_for(
        &self,
        layout: &Layout,
        hashes: &[BlockHash],
        voices: &mut Voices,
        fetched_max: usize,
    ) -> Found {
        let mut absent: BTreeSet<BlockHash> =
            hashes.iter().filter(|hash| !self.store.contains(hash)).copied().collect();
        let said = self.ask_all(layout, &mut absent, voices).await;
        self.fetch(&said, &absent, fetched_max);
        let coming = said.proven.iter().map(|(_, hash)| *hash).filter(|hash| self.is_wanted(hash)).collect();
        let ring = Ring::new(layout);
        // Of the owners that answer, the first counts a block: the sum over all daemons counts each once. One that says
        // that it has the block does not count it.
        let is_mine = |hash: &BlockHash| {
            let counts = |id: &BlockdId| voices.is_heard(id) && !said.unproven.contains(&(*id, *hash));
            let mut owners = ring.owners(hash.point()).into_iter().map(|index| layout.members[index].id);
            owners.find(|id| *id == self.id || counts(id)) == Some(self.id)
        };
        absent.retain(is_mine);
        Found { absent, coming }
    }

    /// Asks one daemon after the other, and once more those that gave no answer. Takes off what one of them has.
    async fn ask_all(&self, layout: &Layout, absent: &mut BTreeSet<BlockHash>, voices: &mut Voices) -> Said {
        let mut said = Said::default();
        let mut others: Vec<&LayoutMember> = layout.members.iter().filter(|member| member.id != self.id).collect();
        // Those that serve reads and own nothing come last, and of the others those that gave no answer before.
        others.sort_by_key(|member| (member.failed || member.out, voices.of(member.id).failures));
        let mut queue: VecDeque<(&LayoutMember, bool)> = others.into_iter().map(|member| (member, false)).collect();
        while let Some((member, again)) = queue.pop_front() {
            if absent.is_empty() {
                break;
            }
            if !voices.is_heard(&member.id) {
                continue;
            }
            if again {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            let asked: Vec<BlockHash> = absent.iter().copied().collect();
            let limit = if again { ASK_AGAIN_TIMEOUT } else { ASK_TIMEOUT };
            let begun = Instant::now();
            let held = self.held_by(layout, member, &asked, limit).await;
            let voice = voices.of(member.id);
            voice.took(begun.elapsed());
            match held {
                Ok(held) => {
                    voice.is_partial |= held.is_partial;
                    absent.retain(|hash| !held.proven.contains(hash));
                    said.proven.extend(held.proven.into_iter().map(|hash| (member.id, hash)));
                    said.unproven.extend(held.unproven.into_iter().map(|hash| (member.id, hash)));
                }
                Err(_) if voice.failures == 0 => {
                    voice.failures += 1;
                    queue.push_back((member, true));
                }
                Err(reason) => {
                    voice.unheard = Some(reason);
                    // A daemon that is out is not expected to answer.
                    voice.is_partial |= !member.out;
                    voices.was_behind |= reason == NoAnswer::Behind;
                }
            }
        }
        said
    }

    /// Without room, it is enough that another daemon has once sent the block.
    fn is_wanted(&self, hash: &BlockHash) -> bool {
        // It may be as long as any. One that was too long for the room there was is in the way no more once any fits.
        self.store.has_room_for(BLOCK_BYTES_MAX as u32) || !self.claims.is_elsewhere(hash)
    }

    /// Has blocks fetched that others say they have. When too many wait, the next search finds them again.
    fn fetch(&self, said: &Said, absent: &BTreeSet<BlockHash>, max: usize) {
        let believed = said.proven.iter().filter(|(_, hash)| self.is_wanted(hash));
        // A daemon that is not believed may have had no time: if it sends the block all the same, the block is found.
        let (liars, doubtful): (Vec<_>, Vec<_>) =
            said.unproven.iter().filter(|(_, hash)| absent.contains(hash)).partition(|(id, _)| self.claims.is_liar(id));
        // One block is enough to see whether a liar has mended its ways.
        let mut once = BTreeSet::new();
        let again = in_turns(liars.into_iter(), max).into_iter().filter(|(id, _)| once.insert(*id));
        let wanted = in_turns(believed, max).into_iter().chain(in_turns(doubtful.into_iter(), max)).chain(again);
        for (from, hash) in wanted {
            let _ = self.repairs.fetch(hash, from);
        }
    }

    /// Those of the blocks that another daemon has.
    async fn held_by(
        &self,
        layout: &Layout,
        member: &LayoutMember,
        hashes: &[BlockHash],
        limit: Duration,
    ) -> Result<Held, NoAnswer> {
        if member.failed || member.out {
            // A daemon with a failed disk answers every probe with no, but still serves what it has; one that is out
            // may know an old layout, and be cut off from the metads alone.
            let Readable { read, unknown, is_busy, .. } =
                readable(&self.endpoint, member.addr, layout.epoch, hashes, limit).await;
            if unknown == hashes.len() {
                return Err(if is_busy { NoAnswer::Busy } else { NoAnswer::Silent });
            }
            let (unproven, proven) = read.into_iter().partition(|hash| self.claims.is_false(&member.id, hash));
            return Ok(Held { proven, unproven, is_partial: unknown > 0 });
        }
        let present = probe(&self.endpoint, member.addr, layout.epoch, hashes, limit).await?;
        let (mut unproven, claimed): (BTreeSet<_>, BTreeSet<_>) =
            present.into_iter().partition(|hash| self.claims.is_false(&member.id, hash));
        let checked: Vec<BlockHash> = some_of(&claimed, CHECKED_MAX);
        let Readable { read, refused, unknown, .. } =
            readable(&self.endpoint, member.addr, layout.epoch, &checked, limit).await;
        let mut proven = claimed.clone();
        if refused + unknown > 0 {
            proven = read;
            unproven.extend(claimed.difference(&proven));
        }
        Ok(Held { proven, unproven, is_partial: unknown > 0 })
    }
}

/// Up to `max` of these claims. Daemons take turns, and the first one is any of them, as is the first block of each: none
/// can fill the places of the others.
fn in_turns<'a>(claims: impl Iterator<Item = &'a Claim>, max: usize) -> Vec<Claim> {
    let mut by_daemon: HashMap<BlockdId, VecDeque<BlockHash>> = HashMap::new();
    for (id, hash) in claims {
        by_daemon.entry(*id).or_default().push_back(*hash);
    }
    let mut daemons: Vec<_> = by_daemon.into_iter().collect();
    let any = |len: usize| (wire::chance::number() % len.max(1) as u64) as usize;
    daemons.sort_unstable_by_key(|(id, _)| *id);
    let first = any(daemons.len());
    daemons.rotate_left(first);
    for (_, hashes) in &mut daemons {
        hashes.rotate_left(any(hashes.len()));
    }
    let mut chosen = Vec::new();
    while chosen.len() < max && !daemons.is_empty() {
        chosen.extend(daemons.iter_mut().filter_map(|(id, hashes)| hashes.pop_front().map(|hash| (*id, hash))));
        daemons.retain(|(_, hashes)| !hashes.is_empty());
    }
    chosen.truncate(max);
    chosen
}

/// Up to `max` of the blocks, spread over all of them.
fn some_of(hashes: &BTreeSet<BlockHash>, max: usize) -> Vec<BlockHash> {
    let step = hashes.len().div_ceil(max).max(1);
    let start = (wire::chance::number() % step as u64) as usize;
    hashes.iter().skip(start).step_by(step).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_one_daemon_leave_room_for_those_of_others() {
        let name = |number: u16| BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap());
        let mut claims: Vec<Claim> = (0..1000).map(|number| (BlockdId([1; 16]), name(number))).collect();
        claims.push((BlockdId([2; 16]), name(2000)));
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let chosen = in_turns(claims.iter(), 8);
            assert!(chosen.len() == 8 && chosen.contains(&claims[1000]));
            seen.extend(chosen);
        }
        assert!(seen.len() > 300, "each claim has its turn");
        assert!(in_turns(claims[..3].iter(), 8).len() == 3 && in_turns([].iter(), 8).is_empty());
    }

    #[test]
    fn a_daemon_that_is_slow_at_every_page_is_left_out_and_a_busy_one_is_not() {
        let (mut slow, mut busy) = (Voice::default(), Voice::default());
        let asked = (0..10_000).take_while(|_| {
            slow.took(Duration::from_millis(950));
            slow.unheard.is_none()
        });
        assert!(asked.count() < 15);
        (0..10_000).for_each(|_| busy.took(Duration::from_millis(90)));
        busy.took(Duration::from_secs(5));
        assert_eq!(busy.unheard, None);
    }
}
