//! What all parts of a node share.

use crate::cluster::liveness::Liveness;
use crate::config::Config;
use crate::error::ProposeError;
use crate::fs::{Command, CommandReply, Stamped};
use crate::lease::Leases;
use crate::raft::Consensus;
use crate::server::{Batcher, Clock, Events};
use std::sync::Arc;
use tokio::sync::Mutex;
use wire::quic::Endpoint;

/// What all parts of a node share.
pub struct Shared {
    pub(crate) config: Config,
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) endpoint: Endpoint,
    pub(crate) liveness: Liveness,
    pub(crate) events: Events,
    pub(crate) leases: Leases,
    pub(crate) batcher: Batcher,
    pub(crate) clock: Arc<Clock>,
    /// Layouts are changed one at a time.
    pub(crate) layout_change: Mutex<()>,
}

impl Shared {
    /// Proposes a command, stamped with the leader's time.
    pub(crate) async fn propose(&self, command: Command) -> Result<CommandReply, ProposeError> {
        self.consensus.propose(Stamped { now: self.clock.now(), command }).await
    }
}
