//! Checks of the whole metadata, and repairs, for `surf fsck`.
//!
//! The running checks are in `checks`. Repairs wait until nobody answers from a cache what they change.

use super::Server;
use super::cert::asker;
use crate::checks::Reader;
use crate::error::ProposeError;
use crate::fs::blockref::{self, BlockRef};
use crate::fs::cert::Asker;
use crate::fs::check::places;
use crate::fs::operator::Change;
use crate::fs::view::{Kv, KvExt};
use crate::fs::{Command, CommandReply, keys, repair, retention, uses};
use crate::shared::Shared;
use std::collections::BTreeSet;
use std::time::Duration;
use wire::ids::{BlockHash, Ino, SessionId};
use wire::limits::NAME_BYTES_MAX;
use wire::message::admin::AdminReply;
use wire::message::check::{BlockUse, CheckId, CheckReply, CheckRequest, CheckedBlock, INDEX_KEY_BYTES_MAX, Repair};
use wire::op::check_name;
use wire::tls::PeerIdentity;

/// Taking the state of a large cluster takes a while.
const FREEZE_LIMIT: Duration = Duration::from_secs(600);
/// Blocks, and uses of blocks, in a page.
const PAGE: usize = 4096;
const USES_PAGE: usize = 512;
/// Numbers and counts that a repair may set: real ones stay far below this.
const NUMBERS_MAX: u64 = 1 << 62;

impl Server {
    pub(super) async fn check(&self, peer: &PeerIdentity, request: CheckRequest) -> Result<AdminReply, ProposeError> {
        let answered = match request {
            CheckRequest::Begin => self.begin_check(peer).await,
            CheckRequest::Findings(check) => self.findings(check).await,
            CheckRequest::Blocks { check, after } => self.blocks(check, after).await,
            CheckRequest::Uses { check, hashes, after } => {
                let hashes: BTreeSet<BlockHash> = hashes.into_iter().collect();
                self.on_frozen(check, move |state| {
                    let (found, after) = uses::uses(state, &hashes, after, USES_PAGE);
                    let block_use = |(hash, ino, range)| BlockUse { hash, ino, path: places::of(state, ino), range };
                    CheckReply::Uses { uses: found.into_iter().map(block_use).collect(), after }
                })
                .await
            }
            CheckRequest::Referenced(hashes) => {
                let state = self.shared.consensus.state().clone();
                let look = move || hashes.iter().map(|hash| blockref::is_referenced(&*state, hash)).collect();
                blocking(look).await.map(CheckReply::Referenced)
            }
            CheckRequest::Repair { check, seq, repairs } => return self.repair(peer, check, seq, repairs).await,
            CheckRequest::End(check) => {
                self.shared.checks.end(check);
                Ok(CheckReply::Ended)
            }
            CheckRequest::Extend(check) => self.shared.checks.find(check).map(|_| CheckReply::Extended),
            CheckRequest::Digest(check) => Ok(self.digest(check)),
            CheckRequest::Mark(check) => match self.shared.checks.find(check) {
                Ok(_) => self.shared.propose(Command::Mark(check)).await.map(|_| Ok(CheckReply::Marked))?,
                Err(reason) => Err(reason),
            },
        };
        Ok(answered.map_or_else(AdminReply::Failed, AdminReply::Check))
    }

    /// Answers without asking whether this node leads: its own state is meant.
    pub(super) fn digest(&self, check: CheckId) -> CheckReply {
        CheckReply::Digest(self.shared.consensus.digest(check))
    }

    async fn begin_check(&self, peer: &PeerIdentity) -> Result<CheckReply, String> {
        let admission = self.shared.checks.admit(Reader::Check, peer)?;
        let state = self.shared.consensus.freeze(FREEZE_LIMIT).await.map_err(|error| error.to_string())?;
        let (applied, pairs) = (state.applied(), state.pair_count());
        Ok(CheckReply::Begun { check: self.shared.checks.begin(state, admission)?, applied, pairs })
    }

    async fn findings(&self, check: CheckId) -> Result<CheckReply, String> {
        let running = self.shared.checks.find(check)?;
        let (findings, ended) = running.findings().await?;
        if ended && let Some(failure) = running.state.failure() {
            return Err(format!("the state could not be read: {failure}"));
        }
        Ok(CheckReply::Findings { findings, looked: running.looked(), ended })
    }

    async fn blocks(&self, check: CheckId, after: Option<BlockHash>) -> Result<CheckReply, String> {
        let grace_ms = u64::try_from(self.shared.config.gc_grace.as_millis()).unwrap_or(u64::MAX);
        let now = self.shared.clock.now();
        self.on_frozen(check, move |state| {
            // As the deletion does: blocks that are pinned for a backup stay, and all blocks while deletion is stopped.
            let deletable = retention::deletable_before(state, now).unwrap_or(0);
            let overdue = now.as_millis().saturating_sub(grace_ms).min(deletable);
            let mut range = keys::blocks();
            if let Some(after) = after {
                range.start = [keys::block(&after).as_slice(), &[0]].concat();
            }
            let pairs = state.pairs(range, PAGE);
            let last = pairs.len() < PAGE;
            let blocks = pairs.iter().filter_map(|(key, value)| {
                let hash = keys::block_hash(key)?;
                let block: BlockRef = wire::codec::decode(value).ok()?;
                let referenced = block.count > 0;
                let overdue = !referenced && block.zero_since_ms < overdue;
                Some(CheckedBlock { hash, len: block.len, referenced, overdue })
            });
            CheckReply::Blocks { blocks: blocks.collect(), last }
        })
        .await
    }

    async fn on_frozen(
        &self,
        check: CheckId,
        look: impl FnOnce(&dyn Kv) -> CheckReply + Send + 'static,
    ) -> Result<CheckReply, String> {
        let running = self.shared.checks.find(check)?;
        let state = running.state.clone();
        let reply = blocking(move || look(&*state)).await?;
        match running.state.failure() {
            Some(failure) => Err(format!("the state could not be read: {failure}")),
            None => Ok(reply),
        }
    }

    async fn repair(
        &self,
        peer: &PeerIdentity,
        check: CheckId,
        seq: u64,
        repairs: Vec<Repair>,
    ) -> Result<AdminReply, ProposeError> {
        let running = match self.shared.checks.find(check) {
            Ok(running) => running,
            Err(reason) => return Ok(AdminReply::Failed(reason)),
        };
        if let Some(reason) = repairs.iter().find_map(refused) {
            return Ok(AdminReply::Failed(reason));
        }
        // Some repairs follow from a look at the whole state, which cannot be repeated when they are applied. So only
        // those are proposed that this node has found itself.
        if !running.take(seq, &repairs) {
            let reason = "a repair was asked for that this check has not found, or not lately: nothing was repaired";
            return Ok(AdminReply::Failed(reason.to_owned()));
        }
        let base = repair::repairs(&*running.state).count;
        let repairing = repair::Repairing { check, base, seq, repairs };
        let (shared, asker) = (self.shared.clone(), asker(peer));
        // It runs to its end even if the caller goes away: it waits for sessions that were asked to drop what they
        // cached.
        let carried_out = self.shared.changes.spawn(async move { carry_out(&shared, &asker, repairing).await });
        match carried_out.await.map_err(|error| ProposeError::Refused(error.to_string()))?? {
            CommandReply::Repaired(made) => Ok(AdminReply::Check(CheckReply::Repaired(made))),
            _ => Ok(AdminReply::Failed("another check has mended something meanwhile: check again".to_owned())),
        }
    }
}

/// Proposes repairs once nobody answers from a cache what they change.
async fn carry_out(shared: &Shared, asker: &Asker, repairing: repair::Repairing) -> Result<CommandReply, ProposeError> {
    let Some(term) = shared.consensus.leadership() else {
        return Err(ProposeError::NotLeader(shared.consensus.leader().await));
    };
    let touched: BTreeSet<_> = {
        let state = shared.consensus.state();
        repairing.repairs.iter().flat_map(|repair| repair::touched(&**state, repair)).collect()
    };
    shared.wait_for_others(None).await?;
    // There is no session: whatever any session has cached is recalled.
    // Directories may get other parents.
    let confined = shared.confined().into_iter().map(|(session, _)| session).collect();
    let touched = (touched.into_iter().collect(), confined);
    let _changing = shared.begin_change(term, (SessionId::default(), None), touched, false).await?;
    shared.propose_by(Some(term), asker, Change::Repair(repairing)).await
}

/// Returns why a repair is not proposed: everything that enters the log is valid.
fn refused(repair: &Repair) -> Option<String> {
    let name = match repair {
        Repair::Entry { name, .. } | Repair::Rewrite { name, .. } | Repair::Parent { name, .. } => Some(name),
        // Some have the name of an entry at their end.
        Repair::Index(key) if key.len() > INDEX_KEY_BYTES_MAX + NAME_BYTES_MAX => {
            return Some("a key is too long".to_owned());
        }
        Repair::NextIno(Ino(number)) | Repair::References { found: number, .. } if *number > NUMBERS_MAX => {
            return Some("a number is too large".to_owned());
        }
        _ => None,
    };
    // An invalid name can be removed, but not given.
    let is_given = !matches!(repair, Repair::Entry { .. });
    let error = name.and_then(|name| check_name(name).err()).filter(|_| is_given);
    error.map(|error| format!("a repair gives a name that is none: {error}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
