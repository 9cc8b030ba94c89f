//! Answers requests: which roles may ask what, which layout the sender knows (I11), and the dispatch of
//! [`BlockRequest`].
//!
//! Any certificate of the cluster may open a connection; each request then needs a role. The server has no state of
//! its own: it is all in the parts that [`Server`] holds.

use crate::chord::driver::Ring;
use crate::confined::{self, NEEDS_TICKET};
use crate::error::NOT_A_MEMBER;
use crate::heartbeat::drop_blocks;
use crate::layouts::{Layouts, Refusal};
use crate::metrics::Metrics;
use crate::missed::missed;
use crate::origins::{Origin, Origins};
use crate::reading::Reading;
use crate::refused::Refused;
use crate::repair::handoff::Handoff;
use crate::repair::read_repair::RepairQueue;
use crate::repair::throttle::Activity;
use crate::replicate::{Chain, LAG_MAX, Outcome, Received, Replicator};
use crate::stamps::Stamps;
use crate::store::{self, Store};
use crate::tickets::Tickets;
use bytes::Bytes;
use futures::future::{MaybeDone, maybe_done, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use wire::cert::KeyId;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, PartyId};
use wire::limits::BLOCK_BYTES_MAX;
use wire::message::block::{BlockReply, BlockRequest, BlockRequestKind, BlockdStatus, Digest};
use wire::quic::{Incoming, Service};
use wire::sections::Sections;
use wire::tls::{PeerIdentity, Role, Subject};
use wire::{Error, describe};

/// Most names in one reply of `List`.
const LIST_MAX: u32 = 65_536;
/// Most bytes that a name with its length takes, in memory and encoded.
const LISTED_BYTES: usize = size_of::<(BlockHash, u32)>() + 37;
/// Most bytes that a digest takes, in memory and encoded.
const DIGEST_BYTES: usize = size_of::<Digest>() + 39;

/// The answering side of a block daemon.
pub struct Server {
    /// This daemon.
    pub id: BlockdId,
    /// Where blocks are.
    pub store: Arc<Store>,
    /// When they were renewed.
    pub stamps: Arc<Stamps>,
    /// Forwards blocks to the rest of their chain.
    pub replicator: Replicator,
    /// Its knowledge of the layout.
    pub layouts: Arc<Layouts>,
    /// This daemon's place among its neighbours.
    pub ring: Arc<Ring>,
    /// Queue for corrupt copies.
    pub repairs: RepairQueue,
    /// What owners missed.
    pub handoff: Arc<Handoff>,
    /// Blocks renewed less than this long ago are not dropped, whatever a request says.
    pub drop_grace_min: Duration,
    /// What is revoked.
    pub refused: Arc<Refused>,
    /// The keys of block tickets.
    pub tickets: Arc<Tickets>,
    /// When clients were last at work.
    pub activity: Arc<Activity>,
    /// Whose turn it is to read.
    pub(crate) reading: Arc<Reading>,
    /// For whom puts are.
    pub(crate) origins: Arc<Origins>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the disk has failed for good.
    pub disk_failed: CancellationToken,
}

/// A block that is being stored.
#[derive(Clone, Copy)]
struct Putting<'a> {
    hash: BlockHash,
    epoch: LayoutEpoch,
    origin: &'a Origin,
    /// The key of the sender that gets a receipt: it is confined.
    holder: Option<KeyId>,
}

/// Reports whether the holder of a certificate may send this request.
fn may_ask(subject: &Subject, request: BlockRequestKind) -> bool {
    match request {
        BlockRequestKind::Put => match subject.role {
            Role::Client => !subject.grant.read_only,
            Role::Blockd | Role::Admin => true,
            Role::Metad => false,
        },
        BlockRequestKind::Get | BlockRequestKind::Lookup | BlockRequestKind::Status => true,
        BlockRequestKind::GetByTicket => subject.role == Role::Client,
        BlockRequestKind::Drop | BlockRequestKind::RevokedChanged => subject.role == Role::Metad,
        BlockRequestKind::List | BlockRequestKind::Probe => subject.role != Role::Client,
        BlockRequestKind::Chord | BlockRequestKind::Digests => subject.role == Role::Blockd,
        BlockRequestKind::Verify | BlockRequestKind::Fetch => subject.role == Role::Admin,
    }
}

/// Reports whether a request stays within the bounds of this daemon. The bounds of its lists were checked when it was
/// decoded.
fn is_bounded(request: &BlockRequest, payload_len: usize) -> bool {
    match request {
        BlockRequest::Put { .. } => (1..=BLOCK_BYTES_MAX).contains(&payload_len),
        _ => payload_len == 0,
    }
}

/// Returns the most bytes that an answer takes until it is fetched, if it may be long.
fn answer_bytes(request: &BlockRequest) -> usize {
    match request {
        BlockRequest::Get { len, .. } => (*len as usize).min(BLOCK_BYTES_MAX),
        BlockRequest::List { limit, .. } => (*limit).min(LIST_MAX) as usize * LISTED_BYTES,
        BlockRequest::Probe { hashes, .. } => hashes.len() * 2,
        BlockRequest::Digests { spans, .. } => spans.len() * DIGEST_BYTES,
        _ => 0,
    }
}

impl Service for Server {
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), Error> {
        // Every role may ask something.
        peer.subject.check_enforced()
    }

    async fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, mut incoming: Incoming) {
        // The certificate is compared with the first bytes: for a sender that may not ask, nothing else is decoded.
        let kind = match incoming.kind::<BlockRequestKind>() {
            Ok(kind) => kind,
            Err(error) => return incoming.refuse(&error.to_string()).await,
        };
        if !may_ask(&peer.subject, kind) {
            self.metrics.unauthorized.add(1);
            return incoming.refuse(&format!("a {} may not ask this of a blockd", peer.subject.role)).await;
        }
        if peer.subject.is_confined() && !confined::is_for_confined(kind) {
            self.metrics.unauthorized.add(1);
            return incoming.refuse(NEEDS_TICKET).await;
        }
        let request = match incoming.decode::<BlockRequest>() {
            Ok(request) => request,
            Err(error) => return incoming.refuse(&error.to_string()).await,
        };
        tracing::debug!(?request, "request");
        if !is_bounded(&request, incoming.payload_len()) {
            return incoming.refuse("the request exceeds a limit").await;
        }
        let Some(request) = confined::cut_to_ticket(&self.tickets, &peer, request).await else {
            return incoming.respond(&BlockReply::TicketRefused, &[]).await;
        };
        if peer.subject.role == Role::Client {
            self.activity.note();
        }
        let answer_bytes = answer_bytes(&request);
        if answer_bytes > 0 && incoming.reserve_answer(answer_bytes).await.is_err() {
            return incoming.refuse_busy("too many answers wait to be fetched").await;
        }
        let (reply, payload) = match request {
            BlockRequest::Put { hash, epoch, chain, needed, origin } => {
                let (behind, origin) = (chain.clone(), self.origins.of(&peer.subject, origin));
                let holder = peer.subject.is_confined().then_some(peer.certificate.key);
                let put = Putting { hash, epoch, origin: &origin, holder };
                let copies = self.put(put, chain, usize::from(needed.max(1)), incoming).await;
                self.note_missed(hash, &behind, &copies, peer.subject.role == Role::Client);
                return;
            }
            BlockRequest::Get { hash, epoch, offset, len } => {
                let deadline = incoming.deadline().into();
                match self.get(peer.subject.party(), (hash, epoch), (offset, len), deadline).await {
                    Some(answer) => answer,
                    None => return incoming.refuse_busy("others read, and its turn did not come in time").await,
                }
            }
            other => (self.answer(peer.subject.party(), other).await, None),
        };
        incoming.respond(&reply, payload.as_slice()).await;
    }
}

impl Server {
    async fn answer(&self, party: PartyId, request: BlockRequest) -> BlockReply {
        match request {
            // I10: a metad that is behind does not know about newer references.
            BlockRequest::Drop { epoch, .. } if epoch < self.layouts.newest().epoch => BlockReply::Dropped(Vec::new()),
            BlockRequest::Drop { hashes, grace_ms, .. } => {
                let grace = Duration::from_millis(grace_ms).max(self.drop_grace_min);
                BlockReply::Dropped(drop_blocks(&self.store, &self.stamps, &self.metrics, &hashes, grace).await)
            }
            BlockRequest::List { from, last, limit } => {
                BlockReply::Blocks(self.store.list_within(from, last, limit.min(LIST_MAX) as usize))
            }
            BlockRequest::Probe { epoch, .. } | BlockRequest::Digests { epoch, .. } if self.is_behind(epoch) => {
                BlockReply::Behind
            }
            BlockRequest::Probe { hashes, .. } => {
                // A block on a failed disk is not a copy for which others could be dropped. I9: nor is one that is
                // about to be dropped here. The stamp is renewed before the store is looked at, so that no drop slips
                // in between.
                let stays = |hash: &BlockHash| {
                    let is_here = || self.store.contains(hash);
                    // Nothing is noted of a block that is not here: others may ask about millions.
                    !self.store.has_failed() && is_here() && self.stamps.try_renew(*hash) && is_here()
                };
                BlockReply::Present(hashes.iter().map(stays).collect())
            }
            BlockRequest::Digests { spans, .. } => BlockReply::Digests(self.store.digests(&spans)),
            BlockRequest::Chord(question) => match self.ring.answer(&question) {
                Some(reply) => BlockReply::Chord(reply),
                None => BlockReply::Failed(NOT_A_MEMBER.to_owned()),
            },
            BlockRequest::Lookup { point } => match self.ring.look_up(point).await {
                Some((member, hops)) => BlockReply::Found { member, hops },
                None => BlockReply::Failed(NOT_A_MEMBER.to_owned()),
            },
            BlockRequest::Status => BlockReply::Status(self.status()),
            BlockRequest::RevokedChanged { version } => {
                self.refused.hint(version);
                BlockReply::Done
            }
            BlockRequest::Verify { hashes } => self.verify(party, &hashes).await,
            BlockRequest::Fetch { hashes, from } => {
                let layout = self.layouts.newest();
                let ring = wire::layout::ring::Ring::new(&layout);
                let is_mine = |index: &usize| layout.members[*index].id == self.id;
                let belongs = |hash: &BlockHash| ring.owners(hash.point()).iter().any(is_mine);
                let wanted = hashes.into_iter().filter(|hash| belongs(hash) && !self.store.contains(hash));
                BlockReply::Fetching(wanted.map(|hash| u32::from(self.repairs.fetch(hash, from))).sum())
            }
            BlockRequest::Put { .. } | BlockRequest::Get { .. } | BlockRequest::GetByTicket { .. } => {
                unreachable!("dispatched by the caller")
            }
        }
    }

    async fn verify(&self, party: PartyId, hashes: &[BlockHash]) -> BlockReply {
        let mut good = Vec::with_capacity(hashes.len());
        for hash in hashes {
            if !self.store.has_copy(hash) {
                good.push(None);
                continue;
            }
            let _turn = self.reading.turn(party, u64::from(self.store.len_of(hash).unwrap_or(0))).await;
            good.push(match self.store.get(*hash).await {
                Ok(block) => block.map(|_| true),
                Err(store::Error::Corrupt { .. } | store::Error::Io { .. }) => {
                    self.metrics.corrupt.add(1);
                    self.repairs.push(*hash);
                    Some(false)
                }
                Err(error) => return BlockReply::Failed(describe(&error)),
            });
        }
        BlockReply::Verified(good)
    }

    fn status(&self) -> BlockdStatus {
        let stats = self.store.stats();
        let (predecessor, successors) = self.ring.neighbours();
        BlockdStatus {
            id: self.id,
            capacity_bytes: stats.capacity_bytes,
            free_bytes: stats.free_bytes,
            block_count: stats.block_count,
            epoch: self.layouts.newest().epoch,
            predecessor,
            successors,
        }
    }

    /// Reports whether a newer layout is known elsewhere, and asks for it then.
    fn is_behind(&self, epoch: LayoutEpoch) -> bool {
        let _ = self.layouts.compare(epoch);
        epoch > self.layouts.newest().epoch
    }

    /// Notes the owners that a put went past.
    fn note_missed(&self, hash: BlockHash, behind: &[BlockdId], copies: &Outcome, is_of_client: bool) {
        let layout = self.layouts.newest();
        let owners: Vec<BlockdId> = layout.owners(&hash).iter().map(|owner| owner.id).collect();
        for owner in missed(self.id, &owners, behind, copies, is_of_client) {
            self.handoff.add(owner, hash);
        }
    }

    /// Receives, verifies, stores, and passes on. The copy is on stable storage before it is acknowledged (I9).
    /// Answers when enough daemons have it, and goes on until the whole chain has. Returns who has it then.
    async fn put(&self, put: Putting<'_>, chain: Chain, needed: usize, mut incoming: Incoming) -> Outcome {
        let Putting { hash, epoch, origin, .. } = put;
        // I11: under its owners, this daemon keeps the copy, and notes who misses it.
        let layout = self.layouts.as_new_as(epoch).await;
        if let Err(refusal) = self.layouts.may_store(epoch) {
            incoming.respond(&refused(refusal), &[]).await;
            return Outcome::default();
        }
        // A daemon that cannot store the block does not count.
        let has_room = self.store.has_room_for(incoming.payload_len() as u32);
        let elsewhere = if has_room { needed - 1 } else { needed };
        let (arrivals, forward) =
            self.replicator.forward((hash, epoch, origin.id()), (&*layout, chain), elsewhere as u8, &incoming);
        let mut others = pin!(maybe_done(forward.run()));
        let received = {
            let mut receiving = pin!(self.replicator.receive(hash, &mut incoming, arrivals));
            tokio::select! {
                biased;
                () = &mut others => receiving.await,
                received = &mut receiving => received,
            }
        };
        let (block, sections) = match received {
            Ok(Received::Block(block, sections)) => (block, sections),
            Ok(Received::Mismatch) => {
                self.metrics.mismatches.add(1);
                incoming.refuse(&format!("the payload does not match its name {hash}")).await;
                return Outcome::default();
            }
            Err(error) => {
                tracing::debug!(%hash, %error, "the sender went away");
                return Outcome::default();
            }
        };
        self.store_and_answer(put, (&block, sections), needed, others, incoming).await
    }

    async fn store_and_answer(
        &self,
        put: Putting<'_>,
        (block, sections): (&Bytes, Sections),
        needed: usize,
        mut others: Pin<&mut MaybeDone<impl Future<Output = Outcome>>>,
        mut incoming: Incoming,
    ) -> Outcome {
        let Putting { hash, origin, .. } = put;
        // The sender's budget bounds what waits here for the writer, and for slow daemons, after the answer as well.
        let _held = incoming.take_held();
        let local = async {
            // I10: the stamp is renewed before the store is looked at, so that no drop slips in between.
            let stamp = self.stamps.begin_put(hash).await;
            let stored = self.store.put_with_sections(origin.party(), hash, block.clone(), sections).await;
            if stored.is_err() && !self.store.contains(&hash) {
                stamp.refused();
            }
            stored
        };
        let mut local = pin!(local);
        let (mut copies, mut local_ended, mut others_ended) = (Outcome::default(), false, false);
        let mut unanswered = Some(incoming);
        let (mut lagging, mut answered) = (None, None);
        while !(local_ended && others_ended) {
            let overdue = async {
                match answered {
                    Some(at) => tokio::time::sleep_until(at + LAG_MAX).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = overdue, if local_ended => others_ended = true,
                stored = &mut local, if !local_ended => {
                    local_ended = true;
                    self.count(stored, block.len(), &mut copies);
                }
                () = &mut others, if !others_ended => {
                    others_ended = true;
                    let outcome = others.as_mut().take_output().unwrap_or_default();
                    self.metrics.chain_failures.add(outcome.failed.len() as u64);
                    copies.add(outcome);
                }
            }
            if (copies.synced.len() >= needed || (local_ended && others_ended))
                && let Some(incoming) = unanswered.take()
            {
                self.answer_put(put, &copies, incoming).await;
                answered = Some(Instant::now());
                lagging = self.replicator.lag(origin.id());
                if lagging.is_none() && !others_ended {
                    tracing::debug!(%hash, "too many blocks lag behind: the rest of the chain is left to repair");
                    others_ended = true;
                }
            }
        }
        drop(lagging);
        copies
    }

    /// Counts the outcome of this daemon's own copy.
    fn count(&self, stored: Result<bool, store::Error>, len: usize, copies: &mut Outcome) {
        match stored {
            Ok(_) => {
                self.metrics.puts.add(1);
                self.metrics.put_bytes.add(len as u64);
                // I9: the store has synced it.
                copies.synced.insert(0, self.id);
            }
            Err(error) if error.is_no_space() => copies.full.push(self.id),
            Err(error) => {
                if matches!(error, store::Error::Failed) {
                    self.disk_failed.cancel();
                }
                copies.failed.push((self.id, describe(&error)));
            }
        }
    }

    async fn answer_put(&self, put: Putting<'_>, copies: &Outcome, incoming: Incoming) {
        let Putting { hash, epoch, holder, .. } = put;
        if let Some(newer) = &copies.newer {
            self.layouts.learn(newer.clone());
        }
        // I11: this is checked now that the block is stored. A daemon that compares under newer owners from now on
        // finds it here.
        let reply = match self.layouts.may_store(epoch) {
            Err(refusal) => refused(refusal),
            Ok(()) => BlockReply::Stored {
                synced: copies.synced.clone(),
                failed: copies.failed.clone(),
                full: copies.full.clone(),
                layout: self.layouts.compare(epoch),
                // All of it has come, and fits its name.
                receipt: holder.and_then(|holder| self.tickets.receipt(&holder, &hash)),
            },
        };
        incoming.respond(&reply, &[]).await;
    }

    /// Reads in the party's turn. `None` when that has not come at the deadline: nobody waits for the block then.
    pub(crate) async fn get(
        &self,
        party: PartyId,
        (hash, epoch): (BlockHash, LayoutEpoch),
        (offset, len): (u32, u32),
        deadline: Instant,
    ) -> Option<(BlockReply, Option<Bytes>)> {
        let layout = self.layouts.compare(epoch);
        // What the index says costs the disk nothing, and needs no turn.
        if !self.store.has_copy(&hash) {
            self.metrics.misses.add(1);
            return Some((BlockReply::NotHere { corrupt: false, layout }, None));
        }
        let cost = match self.store.cost_of_part(&hash, offset, len) {
            Some((block_len, 0)) => {
                self.metrics.gets.add(1);
                return Some((BlockReply::Content { block_len }, Some(Bytes::new())));
            }
            Some((_, cost)) => cost,
            None => 0,
        };
        let turn = self.reading.turn(party, cost);
        let _turn = timeout_at(deadline, turn).await.ok()?;
        // I9: the store verifies what it returns, the whole block or those of its sections that hold the part.
        Some(match self.store.get_part(hash, offset, len).await {
            Ok(Some((block_len, bytes))) => {
                self.metrics.gets.add(1);
                self.metrics.get_bytes.add(bytes.len() as u64);
                (BlockReply::Content { block_len }, Some(bytes))
            }
            Ok(None) => {
                self.metrics.misses.add(1);
                (BlockReply::NotHere { corrupt: false, layout }, None)
            }
            // A copy that cannot be read is as bad as one that reads wrongly.
            Err(store::Error::Corrupt { .. } | store::Error::Io { .. }) => {
                self.metrics.corrupt.add(1);
                tracing::warn!(%hash, "a corrupt copy was quarantined; it is repaired from another daemon");
                self.repairs.push(hash);
                (BlockReply::NotHere { corrupt: true, layout }, None)
            }
            Err(error) => (BlockReply::Failed(describe(&error)), None),
        })
    }
}

fn refused(refusal: Refusal) -> BlockReply {
    match refusal {
        Refusal::OldLayout(layout) => BlockReply::OldLayout(layout),
        Refusal::Fenced(reason) => BlockReply::Failed(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::Point;
    use wire::layout::ring::Span;

    #[test]
    fn each_request_needs_its_role() {
        let (drop, put, probe) = (BlockRequestKind::Drop, BlockRequestKind::Put, BlockRequestKind::Probe);
        let subject = |role| Subject::new(role, "x");
        assert!(may_ask(&subject(Role::Metad), drop) && !may_ask(&subject(Role::Admin), drop));
        assert!(may_ask(&subject(Role::Client), put) && !may_ask(&subject(Role::Metad), put));
        assert!(!may_ask(&subject(Role::Client), probe), "a hash is no permission");
        let mut reader = subject(Role::Client);
        reader.grant.read_only = true;
        assert!(!may_ask(&reader, put));
    }

    #[test]
    fn a_block_is_between_one_byte_and_four_mebibytes_long() {
        let put = BlockRequest::Put {
            hash: BlockHash([0; 32]),
            epoch: LayoutEpoch(0),
            chain: Vec::new(),
            needed: 1,
            origin: None,
        };
        assert!(!is_bounded(&put, 0) && is_bounded(&put, 1));
        assert!(is_bounded(&put, BLOCK_BYTES_MAX) && !is_bounded(&put, BLOCK_BYTES_MAX + 1));
    }

    #[test]
    fn room_is_reserved_for_as_much_as_an_answer_of_lists_may_take() {
        let (hash, epoch) = (BlockHash([0xFF; 32]), LayoutEpoch(1));
        let digest = Digest { count: u64::MAX, bytes: u64::MAX, sum: u128::MAX };
        let span = Span { first: Point(0), last: Point(1) };
        for count in [1, 1000] {
            let list = BlockRequest::List { from: hash, last: hash, limit: count as u32 };
            let probe = BlockRequest::Probe { epoch, hashes: vec![hash; count] };
            let digests = BlockRequest::Digests { epoch, spans: vec![span; count] };
            for (request, answer, in_memory) in [
                (list, BlockReply::Blocks(vec![(hash, u32::MAX); count]), size_of::<(BlockHash, u32)>()),
                (probe, BlockReply::Present(vec![true; count]), 1),
                (digests, BlockReply::Digests(vec![digest; count]), size_of::<Digest>()),
            ] {
                let framing = wire::codec::encoded_len(&BlockReply::Blocks(Vec::new())) + 2;
                let least = wire::codec::encoded_len(&answer).saturating_sub(framing) + count * in_memory;
                assert!(answer_bytes(&request) >= least, "{} for {}", answer_bytes(&request), answer.kind_name());
            }
        }
        let endless = BlockRequest::List { from: hash, last: hash, limit: u32::MAX };
        assert_eq!(answer_bytes(&endless), LIST_MAX as usize * LISTED_BYTES);
    }
}
