//! This daemon's exchange with metad: heartbeats, layouts (I11), block reports (I10).
//!
//! Two tasks, each with its own [`Metads`], so that a long report never delays a heartbeat. While no metad answers, the
//! daemon serves on with the layout that it has.

use crate::config::Config;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::repair::progress::Progress;
use crate::stamps::Stamps;
use crate::store::Store;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use wire::Error;
use wire::ids::{BlockHash, BlockdId};
use wire::leader::{LOOK_LIMIT, WHO_LEADS, another_leads};
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest};
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
/// Blocks in one page of a report.
const REPORT_PAGE: u32 = 4096;
/// Pause between two pages of a report: it is never urgent.
const REPORT_PAUSE: Duration = Duration::from_millis(200);

/// The metads, and which of them is believed to lead.
pub struct Metads {
    endpoint: Endpoint,
    configured: Vec<SocketAddr>,
    leader: Option<SocketAddr>,
    next: usize,
}

impl Metads {
    /// Begins with the configured addresses.
    #[must_use]
    pub fn new(endpoint: Endpoint, configured: Vec<SocketAddr>) -> Self {
        Self { endpoint, configured, leader: None, next: 0 }
    }

    /// Asks the leader, or any other metad where the leader is not known or does not answer, and follows redirections.
    /// It must be safe to send the request twice.
    ///
    /// # Errors
    /// The error of the last metad asked, when none answered.
    pub async fn ask(&mut self, request: &MetaRequest) -> Result<MetaReply, Error> {
        let mut last = Error::Closed;
        for _ in 0..self.configured.len() + REDIRECTS_MAX {
            let Some(addr) = self.leader.or_else(|| self.configured.get(self.next).copied()) else { break };
            let peer = self.endpoint.peer(addr, Role::Metad);
            let answer = tokio::select! {
                answer = peer.request::<_, MetaReply>(request, &[], ASK_TIMEOUT) => answer,
                leader = self.another_leads(addr) => {
                    self.leader = Some(leader);
                    continue;
                }
            };
            match answer {
                Ok((MetaReply::NotLeader { leader, nodes }, _)) => {
                    self.learn(nodes.into_iter().map(|(_, addr)| addr));
                    self.leader = leader.map(|(_, addr)| addr).filter(|leader| *leader != addr);
                    if self.leader.is_none() {
                        self.turn();
                    }
                    last = Error::Unanswered { peer: addr.to_string(), reason: "no leader is known".to_owned() };
                }
                Ok((reply, _)) => {
                    self.leader = Some(addr);
                    return Ok(reply);
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
    async fn another_leads(&self, asked: SocketAddr) -> SocketAddr {
        let look = |node| {
            let peer = self.endpoint.peer(node, Role::Metad);
            async move { peer.request::<_, MetaReply>(&WHO_LEADS, &[], LOOK_LIMIT).await.map(|(reply, _)| reply) }
        };
        another_leads(asked, || self.configured.clone(), look).await
    }

    fn turn(&mut self) {
        self.next = (self.next + 1) % self.configured.len().max(1);
    }

    /// Remembers nodes that the configuration does not name: the configured ones may all have been replaced.
    fn learn(&mut self, nodes: impl Iterator<Item = SocketAddr>) {
        for addr in nodes {
            if !self.configured.contains(&addr) {
                self.configured.push(addr);
            }
        }
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
                Ok(MetaReply::BlockdAlive { layout }) => {
                    if missed {
                        tracing::info!("metad answers again");
                    }
                    (heard, missed) = (Instant::now(), false);
                    self.layouts.heard_metad(asked);
                    backoff = Backoff::default();
                    self.metrics.heartbeats.add(1);
                    layout.into_iter().for_each(|layout| self.layouts.learn(layout));
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
                () = self.wanted() => {}
                () = self.progress.news() => {}
            }
        }
    }

    /// Waits until a newer layout is wanted, and then a moment: many senders may ask for it at once.
    async fn wanted(&self) {
        self.layouts.wanted().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
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
            let page: Vec<BlockHash> =
                self.store.list(first, REPORT_PAGE as usize).into_iter().map(|(hash, _)| hash).collect();
            from = if page.len() < REPORT_PAGE as usize { None } else { page.last().and_then(BlockHash::next) };
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
    stamps: &Stamps,
    metrics: &Metrics,
    hashes: &[BlockHash],
    grace: Duration,
) -> Vec<BlockHash> {
    let mut dropped = Vec::new();
    for hash in hashes {
        let Some(dropping) = stamps.begin_drop(*hash, grace) else {
            metrics.drops_refused.add(1);
            continue;
        };
        match store.drop_block(*hash).await {
            Ok(_) => {
                dropping.done();
                dropped.push(*hash);
            }
            Err(error) => tracing::warn!(%hash, %error, "a block could not be dropped"),
        }
    }
    metrics.dropped.add(dropped.len() as u64);
    dropped
}

/// One per GiB of capacity, at least one.
fn default_weight(capacity_bytes: u64) -> u32 {
    u32::try_from(capacity_bytes >> 30).unwrap_or(u32::MAX).max(1)
}
