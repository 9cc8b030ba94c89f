//! What all parts of a node share.

use crate::checks::Checks;
use crate::cluster::liveness::Liveness;
use crate::config::Config;
use crate::consensus::Consensus;
use crate::error::ProposeError;
use crate::fs::cert::{self, Asker, Outcome};
use crate::fs::operator::Change;
use crate::fs::{Command, CommandReply, Stamped};
use crate::lease::{Leases, UnderWay};
use crate::own_issuer::OwnIssuer;
use crate::refused::Refused;
use crate::server::{Batcher, Clock, Events, OrphanTurns, Turns, WrongSecrets};
use std::sync::Arc;
use tokio::sync::{Mutex, Notify};
use tokio_util::task::TaskTracker;
use wire::quic::Endpoint;

/// Block daemons at a time for which the names of blocks are looked through: changes to the state wait while a page is
/// read.
const SCANS_MAX: usize = 2;
/// Renewals under way at once: each is an entry of the log and a signature.
const RENEWALS_MAX: usize = 64;

/// What all parts of a node share.
pub struct Shared {
    pub(crate) config: Config,
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) endpoint: Endpoint,
    /// What this node signs with.
    pub(crate) issuer: Arc<OwnIssuer>,
    pub(crate) liveness: Liveness,
    pub(crate) events: Events,
    pub(crate) leases: Leases,
    pub(crate) batcher: Batcher,
    pub(crate) under_way: Arc<UnderWay>,
    pub(crate) clock: Arc<Clock>,
    /// Changes under way. They run to their ends even if nobody waits for them any more.
    pub(crate) changes: TaskTracker,
    pub(crate) checks: Checks,
    /// Taken to change the layout: one change at a time.
    pub(crate) layout_change: Mutex<()>,
    /// Limits the pages of referenced blocks that are read at a time.
    pub(crate) scans: Turns,
    /// About which removed files each session is asked next.
    pub(crate) orphan_turns: OrphanTurns,
    pub(crate) wrong_secrets: WrongSecrets,
    /// Whom this node has refused.
    pub(crate) refused: Refused,
    /// Limits the renewals that are under way.
    pub(crate) renewals: Turns,
    /// Notified when this node has proposed a change to what is revoked.
    pub(crate) revoked_changed: Notify,
}

impl Shared {
    /// Makes all parts. Must be called within a runtime, before any part is used.
    #[must_use]
    pub fn new(config: Config, consensus: Arc<dyn Consensus>, endpoint: Endpoint) -> Self {
        let (clock, changes) = (Arc::new(Clock::default()), TaskTracker::new());
        Self {
            batcher: Batcher::start(consensus.clone(), clock.clone(), &changes),
            consensus,
            endpoint,
            issuer: Arc::new(OwnIssuer::of(&config)),
            liveness: Liveness::default(),
            events: Events::default(),
            leases: Leases::default(),
            under_way: Arc::default(),
            clock,
            changes,
            checks: Checks::default(),
            layout_change: Mutex::new(()),
            scans: Turns::new(SCANS_MAX),
            orphan_turns: OrphanTurns::default(),
            wrong_secrets: WrongSecrets::default(),
            refused: Refused::default(),
            renewals: Turns::new(RENEWALS_MAX),
            revoked_changed: Notify::new(),
            config,
        }
    }

    /// Proposes a command, stamped with the leader's time.
    pub(crate) async fn propose(&self, command: Command) -> Result<CommandReply, ProposeError> {
        self.consensus.propose(Stamped { now: self.clock.now(), command }).await
    }

    /// Proposes what an operator asks for, in this term if one is given.
    ///
    /// # Errors
    /// [`ProposeError::Refused`] when the operator was revoked meanwhile, and those of a proposal.
    pub(crate) async fn propose_by(
        &self,
        term: Option<u64>,
        asker: &Asker,
        change: Change,
    ) -> Result<CommandReply, ProposeError> {
        let command = Command::ByOperator { asker: asker.clone(), change };
        match self.consensus.propose_in(term, Stamped { now: self.clock.now(), command }).await? {
            CommandReply::Revoked(Outcome::AskerRevoked) => Err(revoked_meanwhile(asker)),
            reply => Ok(reply),
        }
    }

    /// Checks, before something is done for an operator that no entry of the log can make depend on it, that the operator is
    /// not revoked.
    pub(crate) async fn check_asker(&self, asker: &Asker) -> Result<(), ProposeError> {
        self.consensus.read_barrier().await?;
        if cert::asker_is_revoked(&**self.consensus.state(), asker) {
            return Err(revoked_meanwhile(asker));
        }
        Ok(())
    }
}

/// The operator finds out by its next request, which is not answered.
fn revoked_meanwhile(asker: &Asker) -> ProposeError {
    ProposeError::Refused(format!("the operator {} was revoked while its request was under way", asker.name))
}
