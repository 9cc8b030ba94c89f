//! This daemon's exchange with metad: heartbeats, layouts (I11), block reports (I10).
//!
//! Two tasks, each with its own [`Metads`], so that a long report never delays a heartbeat. While no metad answers, the
//! daemon serves on with the layout that it has.

use crate::config::Config;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::refused::Refused;
use crate::repair::progress::Progress;
use crate::stamps::Stamps;
use crate::store::Store;
use crate::tickets::Tickets;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use wire::Error;
use wire::ids::{BlockHash, BlockdId};
use wire::leader::{KnownMetads, LOOK_LIMIT, WHO_LEADS, another_leads};
use wire::limits::BLOCKD_WEIGHT_MAX;
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest, Redirect};
use wire::quic::Endpoint;
use wire::retry::Backoff;
use wire::tls::Role;

/// How long metad may take to answer: longer than an election, shorter than the silence that makes a daemon count as
/// dead.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long metad may be silent before this is logged. Elections, and metads that start at the same time, take less.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// Most redirections followed for one request: during an election nodes may point at each other.
const REDIRECTS_MAX: usize = 4;
/// How often a request is sent again to a metad that has too much to do, with growing pauses: for some 10 s in all.
const BUSY_MAX: usize = 16;
/// Pause between two heartbeats that somebody has caused: whoever makes things up causes few.
const WANTED_PAUSE: Duration = Duration::from_millis(100);
/// Blocks that are dropped together: their removals share a group of the writer, and puts of them wait meanwhile.
const DROPS_AT_ONCE: usize = 1024;
/// Blocks in one page of a report.
const REPORT_PAGE: usize = 4096;
/// Pause between two pages of a report: it is never urgent.
const REPORT_PAUSE: Duration = Duration::from_millis(200);

/// The metads, and which of them is believed to lead.
pub struct Metads {
    endpoint: Endpoint,
    known: KnownMetads,
    leader: Option<SocketAddr>,
    next: usize,
}

impl Metads {
    /// Begins with the configured addresses.
    #[must_use]
    pub fn new(endpoint: Endpoint, configured: Vec<SocketAddr>) -> Self {
        Self { endpoint, known: KnownMetads::new(configured), leader: None, next: 0 }
    }

    /// Asks the leader, or any other metad where the leader is not known or does not answer, and follows redirections.
    /// It must be safe to send the request twice.
    ///
    /// # Errors
    /// The error of the last metad asked, when none answered.
    pub async fn ask(&mut self, request: &MetaRequest) -> Result<MetaReply, Error> {
        let mut last = Error::Closed;
        let (mut pauses, mut busy, mut asked) = (Backoff::default(), 0, 0);
        while asked < self.known.ways_in().len() + REDIRECTS_MAX {
            asked += 1;
            let ways_in = self.known.ways_in();
            // There may be fewer than before: metads were removed.
            let next = ways_in.get(self.next % ways_in.len().max(1)).copied();
            let Some(addr) = self.leader.or(next) else { break };
            let peer = self.endpoint.peer(addr, Role::Metad);
            let answer = tokio::select! {
                answer = peer.request::<_, MetaReply>(request, &[], ASK_TIMEOUT) => answer,
                said = self.another_leads(addr) => Ok((MetaReply::NotLeader(said), Bytes::new())),
            };
            match answer {
                Ok((MetaReply::NotLeader(said), _)) => {
                    self.leader = self.known.learn(&said).filter(|leader| *leader != addr);
                    if self.leader.is_none() {
                        self.turn();
                    }
                    last = Error::Unanswered { peer: addr.to_string(), reason: "no leader is known".to_owned() };
                }
                Ok((reply, _)) => {
                    self.leader = Some(addr);
                    return Ok(reply);
                }
                // It leads, or it will say who does: another one could only send this one back here.
                Err(error @ Error::Busy { .. }) if busy < BUSY_MAX => {
                    (busy, asked, last) = (busy + 1, asked - 1, error);
                    tokio::time::sleep(pauses.delay()).await;
                }
                Err(error) => {
                    self.leader = None;
                    self.turn();
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The metad that leads instead of `asked`, which is silent.
    async fn another_leads(&self, asked: SocketAddr) -> Redirect {
        let look = |node| {
            let peer = self.endpoint.peer(node, Role::Metad);
            async move { peer.request::<_, MetaReply>(&WHO_LEADS, &[], LOOK_LIMIT).await.map(|(reply, _)| reply) }
        };
        let is_believed = |said: &Redirect| self.known.clone().learn(said).is_some();
        another_leads(asked, || self.known.members().to_vec(), look, is_believed).await
    }

    fn turn(&mut self) {
        self.next = self.next.wrapping_add(1);
    }
}

/// State that both tasks need.
#[derive(Clone)]
pub struct Reporter {
    /// This daemon.
    pub id: BlockdId,
    /// Its name, zone, weight, intervals.
    pub config: Arc<Config>,
    /// Where it serves.
    pub advertise: SocketAddr,
    /// Its blocks.
    pub store: Arc<Store>,
    /// Its knowledge of the layout.
    pub layouts: Arc<Layouts>,
    /// What is revoked.
    pub refused: Arc<Refused>,
    /// The keys of block tickets.
    pub tickets: Arc<Tickets>,
    /// When blocks were renewed.
    pub stamps: Arc<Stamps>,
    /// Progress of repair.
    pub progress: Arc<Progress>,
    /// Endpoint for calls to metads.
    pub endpoint: Endpoint,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Reporter {
    fn metads(&self) -> Metads {
        Metads::new(self.endpoint.clone(), self.config.metads.clone())
    }

    async fn heartbeat(&self) -> BlockdHeartbeat {
        let stats = self.store.stats();
        BlockdHeartbeat {
            id: self.id,
            name: self.config.name.clone(),
            addr: self.advertise,
            zone: self.config.zone.clone(),
            weight: self.config.weight.unwrap_or_else(|| default_weight(stats.capacity_bytes)),
            capacity_bytes: stats.capacity_bytes,
            free_bytes: stats.free_bytes,
            block_count: stats.block_count,
            epoch: self.layouts.newest().epoch,
            every_ms: u64::try_from(self.config.heartbeat_every.as_millis()).unwrap_or(u64::MAX),
            repair: self.progress.report(&self.store),
            failed: self.store.has_failed(),
            revoked: self.refused.mark(),
        }
    }

    /// Sends heartbeats until cancelled, and one at once when a newer layout is known elsewhere.
    pub async fn send_heartbeats(self, stop: CancellationToken) {
        let mut metads = self.metads();
        let mut backoff = Backoff::default();
        let (mut heard, mut missed) = (Instant::now(), false);
        loop {
            let beat = MetaRequest::BlockdHeartbeat(self.heartbeat().await);
            let asked = Instant::now();
            let Some(answer) = stop.run_until_cancelled(metads.ask(&beat)).await else { return };
            let pause = match answer {
                Ok(MetaReply::BlockdAlive { layout, revoked, tickets, now }) => {
                    if missed {
                        tracing::info!("metad answers again");
                    }
                    (heard, missed) = (Instant::now(), false);
                    self.layouts.heard_metad(asked);
                    backoff = Backoff::default();
                    self.metrics.heartbeats.add(1);
                    layout.into_iter().for_each(|layout| self.layouts.learn(layout));
                    self.refused.learn(revoked).await;
                    self.tickets.learn(tickets, now);
                    self.config.heartbeat_every
                }
                other => {
                    let reason =
                        other.map_or_else(|error| error.to_string(), |reply| format!("answered {}", reply.kind_name()));
                    if !missed && heard.elapsed() > SILENCE_LIMIT {
                        tracing::warn!(reason, "no metad takes heartbeats: check `metads` and the network");
                        missed = true;
                    }
                    self.metrics.heartbeat_failures.add(1);
                    backoff.delay().min(self.config.heartbeat_every)
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.wanted(asked) => {}
                () = self.progress.news() => {}
            }
        }
    }

    /// Waits until a newer layout is wanted, or another list of what is revoked, or a key of tickets, and then a moment: many
    /// senders may ask for it at once.
    async fn wanted(&self, last: Instant) {
        tokio::select! {
            () = self.layouts.wanted() => {}
            () = self.refused.wanted() => {}
            () = self.tickets.wanted() => {}
        }
        tokio::time::sleep(Duration::from_millis(10).max(WANTED_PAUSE.saturating_sub(last.elapsed()))).await;
    }

    /// Reports all blocks, page by page, until cancelled, and drops those that nothing refers to.
    pub async fn send_reports(self, stop: CancellationToken) {
        let mut metads = self.metads();
        loop {
            if stop.run_until_cancelled(tokio::time::sleep(self.config.report_every)).await.is_none() {
                return;
            }
            match stop.run_until_cancelled(self.report(&mut metads)).await {
                None => return,
                Some(Ok(dropped)) => tracing::debug!(dropped, "all blocks reported"),
                Some(Err(reason)) => tracing::warn!(reason, "a block report failed: the next one starts anew"),
            }
        }
    }

    async fn report(&self, metads: &mut Metads) -> Result<usize, String> {
        let mut from = Some(BlockHash([0; 32]));
        let mut dropped = 0;
        while let Some(first) = from {
            // Damaged copies are among them, or those to which nothing refers would be reported as damaged for ever.
            let page = self.store.names(first, REPORT_PAGE);
            from = if page.len() < REPORT_PAGE { None } else { page.last().and_then(BlockHash::next) };
            if page.is_empty() {
                break;
            }
            let request = MetaRequest::BlockReport { id: self.id, epoch: self.layouts.newest().epoch, blocks: page };
            match metads.ask(&request).await.map_err(|error| error.to_string())? {
                MetaReply::Unreferenced(hashes) => {
                    dropped +=
                        drop_blocks(&self.store, &self.stamps, &self.metrics, &hashes, self.config.grace).await.len();
                }
                other => return Err(format!("metad answered {}", other.kind_name())),
            }
            tokio::time::sleep(REPORT_PAUSE).await;
        }
        Ok(dropped)
    }
}

/// Drops blocks that metad counts no reference to, except those renewed within `grace` (I10). Returns the dropped
/// blocks.
pub async fn drop_blocks(
    store: &Store,
    stamps: &Arc<Stamps>,
    metrics: &Metrics,
    hashes: &[BlockHash],
    grace: Duration,
) -> Vec<BlockHash> {
    let mut dropped = Vec::new();
    for portion in hashes.chunks(DROPS_AT_ONCE) {
        let mut marked = Vec::with_capacity(portion.len());
        for hash in portion {
            match stamps.begin_drop(*hash, grace) {
                Some(mark) => marked.push((*hash, mark)),
                None => metrics.drops_refused.add(1),
            }
        }
        let outcomes = match store.drop_all(&marked).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::warn!(blocks = marked.len(), %error, "blocks could not be dropped");
                continue;
            }
        };
        for ((hash, mark), outcome) in marked.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    mark.done();
                    dropped.push(hash);
                }
                Err(error) => tracing::warn!(%hash, %error, "a block could not be dropped"),
            }
        }
    }
    metrics.dropped.add(dropped.len() as u64);
    dropped
}

/// One per GiB of capacity, at least one.
fn default_weight(capacity_bytes: u64) -> u32 {
    u32::try_from(capacity_bytes >> 30).unwrap_or(u32::MAX).clamp(1, BLOCKD_WEIGHT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::runtime::Handle;
    use wire::ids::MetadId;
    use wire::message::meta::LogPlace;
    use wire::quic::{Incoming, ServerHandle, Service};
    use wire::tls::{ClusterCa, PeerIdentity, Subject};

    /// A metad that is overloaded at first, and then answers this.
    struct Metad {
        busy: usize,
        asked: AtomicUsize,
        reply: MetaReply,
    }

    impl Service for Metad {
        fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
            Ok(())
        }

        async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, request: Incoming) {
            if self.asked.fetch_add(1, Ordering::Relaxed) < self.busy {
                return request.refuse_busy("this is a test").await;
            }
            request.respond(&self.reply, &[]).await;
        }
    }

    fn endpoint(ca: &ClusterCa, role: Role) -> Endpoint {
        let identity = ca.issue(&Subject::new(role, "x")).unwrap();
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap()
    }

    fn serve(endpoint: &Endpoint, busy: usize, reply: MetaReply) -> (Arc<Metad>, ServerHandle) {
        let metad = Arc::new(Metad { busy, asked: AtomicUsize::new(0), reply });
        (metad.clone(), endpoint.serve(metad, &Handle::current()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_a_busy_metad_refuses_is_sent_to_it_again_and_to_no_other() {
        let ca = ClusterCa::create("t").unwrap();
        let [busy, other] = [(), ()].map(|()| endpoint(&ca, Role::Metad));
        let (asked, _serving) = serve(&busy, 3, MetaReply::Done);
        let (not_asked, _idle) = serve(&other, 0, MetaReply::Done);
        let mut metads = Metads::new(endpoint(&ca, Role::Blockd), vec![busy.local_addr(), other.local_addr()]);
        assert!(matches!(metads.ask(&MetaRequest::GetLayout).await, Ok(MetaReply::Done)));
        assert_eq!((asked.asked.load(Ordering::Relaxed), not_asked.asked.load(Ordering::Relaxed)), (4, 0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_metad_that_was_removed_leads_nobody_back_to_itself() {
        let ca = ClusterCa::create("t").unwrap();
        let [removed, leader] = [(), ()].map(|()| endpoint(&ca, Role::Metad));
        let named = |number, of: &Endpoint| (MetadId(number), of.local_addr());
        let old = Redirect { leader: Some(named(1, &removed)), nodes: vec![named(1, &removed)], ..Redirect::default() };
        let (_removed, _astray) = serve(&removed, 0, MetaReply::NotLeader(old.clone()));
        let (leads, _serving) = serve(&leader, 0, MetaReply::Done);
        let mut metads = Metads::new(endpoint(&ca, Role::Blockd), vec![removed.local_addr()]);
        let since = LogPlace { term: 2, index: 9 };
        let new = Redirect { leader: Some(named(2, &leader)), nodes: vec![named(2, &leader)], term: 2, since };
        metads.known.learn(&new);
        assert_eq!(metads.known.members(), [leader.local_addr()], "the configured one is no member");
        assert_eq!(metads.known.learn(&old), None);
        assert!(matches!(metads.ask(&MetaRequest::GetLayout).await, Ok(MetaReply::Done)));
        assert_eq!(leads.asked.load(Ordering::Relaxed), 1);
    }
}
