//! State that healing works with: the parts of the daemon, and how it asks others.

use super::handoff::Handoff;
use super::pass::Round;
use super::progress::Progress;
use super::throttle::{Activity, Throttle};
use crate::heartbeat::Metads;
use crate::layouts::Layouts;
use crate::metrics::Metrics;
use crate::stamps::Stamps;
use crate::store::Store;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

/// Names in one page of a list, and in one request to metad.
pub(super) const PAGE_NAMES: u32 = 4096;
/// How long another daemon may take to answer.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Source of the knowledge which blocks are referred to.
pub enum References {
    /// metad knows it.
    Metads(Metads),
    /// Every block counts as referred to, for daemons that run without metads.
    All,
}

/// State that healing needs.
pub struct Healer {
    /// This daemon.
    pub id: BlockdId,
    /// Where blocks are.
    pub store: Arc<Store>,
    /// When they were renewed.
    pub stamps: Arc<Stamps>,
    /// Its knowledge of the layout.
    pub layouts: Arc<Layouts>,
    /// Endpoint for calls to others.
    pub endpoint: Endpoint,
    /// The source of references.
    pub references: References,
    /// Whether clients are at work.
    pub activity: Arc<Activity>,
    /// The rate of copying.
    pub throttle: Arc<Throttle>,
    /// The progress that metad learns.
    pub progress: Arc<Progress>,
    /// What owners missed.
    pub handoff: Arc<Handoff>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time between two comparisons while nothing changes.
    pub compare_every: Duration,
    /// Time that a pass has for each of its sources ([`super::patience`]).
    pub account: Duration,
    /// What passes have heard of them since the last complete round.
    pub round: Round,
}

/// Why a step was not done. The pass goes on without its source.
pub(super) type Failed = String;

impl Healer {
    /// Returns the unreferenced ones of these blocks.
    pub(super) async fn unreferenced(&mut self, blocks: &[BlockHash]) -> Result<HashSet<BlockHash>, Failed> {
        let References::Metads(metads) = &mut self.references else { return Ok(HashSet::new()) };
        let epoch = self.layouts.newest().epoch;
        let request = MetaRequest::BlockReport { id: self.id, epoch, blocks: blocks.to_vec() };
        match metads.ask(&request).await {
            Ok(MetaReply::Unreferenced(hashes)) => Ok(hashes.into_iter().collect()),
            Ok(other) => Err(format!("metad answered {}", other.kind_name())),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) async fn ask(
        &self,
        layout: &Layout,
        whom: &BlockdId,
        request: &BlockRequest,
    ) -> Result<BlockReply, Failed> {
        let member = layout.member(whom).ok_or("it has left the layout")?;
        let peer = self.endpoint.peer(member.addr, Role::Blockd);
        let asked = peer.request::<_, BlockReply>(request, &[], ASK_TIMEOUT).await;
        asked.map(|(reply, _)| reply).map_err(|error| format!("{}: {error}", member.name))
    }
}
