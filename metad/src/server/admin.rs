//! Operators' requests.

use super::Server;
use super::cert::asker;
use crate::cluster::met::{self, Leaver};
use crate::cluster::{placement, watch};
use crate::error::ProposeError;
use crate::fs::operator::Change;
use crate::fs::{audit, cert, retention, session, settings, token};
use std::time::Duration;
use wire::ids::{MetadId, SessionId};
use wire::layout::{Layout, LayoutMember};
use wire::limits::{BLOCKD_TEXT_BYTES_MAX, BLOCKD_WEIGHT_MAX, DOWN_AFTER_MIN_MS, HEAD_BYTES_MAX};
use wire::message::admin::{AdminReply, AdminRequest, BlockdHealth, ClusterStatus};
use wire::message::cert::{AuditEvent, AuditRecords};
use wire::message::check::CheckRequest;
use wire::message::meta::MetaReply;
use wire::tls::{PeerIdentity, Role, Subject};

/// A snapshot of a large state takes a while.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(600);

/// Room for a list of certificates in an answer.
const CERTS_BYTES: usize = HEAD_BYTES_MAX - (64 << 10);

/// A drained daemon that has been silent for so long has been switched off.
const SILENT_MS: u64 = 3_000;

impl Server {
    pub(super) async fn admin(&self, peer: &PeerIdentity, request: AdminRequest) -> Result<MetaReply, ProposeError> {
        if let AdminRequest::Check(CheckRequest::Digest(check)) = request {
            return Ok(MetaReply::Admin(AdminReply::Check(self.digest(check))));
        }
        if let AdminRequest::Refusals { since } = request {
            let records = self.shared.refused.since(since);
            return Ok(MetaReply::Admin(AdminReply::Audit(AuditRecords { records })));
        }
        self.shared.consensus.read_barrier().await?;
        let consensus = &self.shared.consensus;
        let reply = match request {
            AdminRequest::Status => AdminReply::Status(Box::new(self.status().await)),
            AdminRequest::AddMetad { id, addr } => {
                self.shared.check_asker(&asker(peer)).await?;
                let added = outcome(consensus.add(id, addr).await)?;
                self.noted(peer, added, AuditEvent::MetadAdded, id).await
            }
            AdminRequest::AddLearner { id, addr } => {
                self.shared.check_asker(&asker(peer)).await?;
                let added = outcome(consensus.add_learner(id, addr).await)?;
                self.noted(peer, added, AuditEvent::MetadAdded, id).await
            }
            AdminRequest::ReplaceMetad { old, new } => {
                let leaving = match self.leaving(old).await {
                    Ok(leaving) => leaving,
                    Err(reason) => return Ok(MetaReply::Admin(AdminReply::Failed(reason))),
                };
                self.shared.check_asker(&asker(peer)).await?;
                let replaced = outcome(consensus.replace(old, new).await)?;
                self.removed_metad(peer, replaced, (old, leaving)).await?
            }
            AdminRequest::RemoveMetad { id } => {
                let leaving = match self.leaving(id).await {
                    Ok(leaving) => leaving,
                    Err(reason) => return Ok(MetaReply::Admin(AdminReply::Failed(reason))),
                };
                self.shared.check_asker(&asker(peer)).await?;
                let removed = outcome(consensus.remove(id).await)?;
                self.removed_metad(peer, removed, (id, leaving)).await?
            }
            AdminRequest::SetRedundancy { replicas, min_sync } => self.set_redundancy(peer, replicas, min_sync).await?,
            AdminRequest::DrainBlockd { name, drain } => self.drain_blockd(peer, &name, drain).await?,
            AdminRequest::ReplaceBlockd { name, successor } => self.replace_blockd(peer, &name, &successor).await?,
            AdminRequest::RemoveBlockd { name, keep_identity } => {
                self.remove_blockd(peer, &name, keep_identity).await?
            }
            AdminRequest::SetDownAfter { ms } => self.set_down_after(peer, ms).await?,
            AdminRequest::Snapshot => match consensus.snapshot(SNAPSHOT_LIMIT).await {
                Ok(()) => AdminReply::Done,
                Err(error) => AdminReply::Failed(error.to_string()),
            },
            AdminRequest::PinBlocks { name, keep_ms } => self.pin_blocks(peer, name, keep_ms).await?,
            AdminRequest::Pins => AdminReply::Pins(retention::pins(&**consensus.state(), self.shared.clock.now())),
            AdminRequest::ReleasePin { name } => self.release_pin(peer, name).await?,
            AdminRequest::EvictSession { session } => self.evict(peer, session).await?,
            AdminRequest::ResumeDeletion { force } => self.resume_deletion(peer, force).await?,
            AdminRequest::Check(request) => self.check(peer, request).await?,
            AdminRequest::CreateToken(new) => self.create_token(peer, new).await?,
            AdminRequest::Tokens => AdminReply::Tokens(token::list(&**consensus.state(), self.shared.clock.now())),
            AdminRequest::RevokeToken { id } => self.revoke_token(peer, id).await?,
            AdminRequest::Certs => AdminReply::Certs(Box::new(cert::list(&**consensus.state()).within(CERTS_BYTES))),
            AdminRequest::RevokeCert { target, force, reason } => self.revoke_cert(peer, target, force, reason).await?,
            AdminRequest::AllowCert { target } => self.allow_cert(peer, target).await?,
            AdminRequest::SetCertLife { ms } => self.set_cert_life(peer, ms).await?,
            AdminRequest::Audit { since } => {
                AdminReply::Audit(AuditRecords { records: audit::since(&**consensus.state(), since) })
            }
            AdminRequest::Rotation => AdminReply::Rotation(Box::new(self.rotation_status().await)),
            AdminRequest::SetTrust { step, force } => self.set_trust(peer, step, force).await?,
            AdminRequest::WeighBlockd { name, weight } => self.weigh_blockd(peer, &name, weight).await?,
            // Answered above, by any node.
            AdminRequest::Refusals { .. } => AdminReply::Done,
        };
        Ok(MetaReply::Admin(reply))
    }

    /// Records a change of the membership that was made.
    async fn noted(&self, peer: &PeerIdentity, reply: AdminReply, event: AuditEvent, id: MetadId) -> AdminReply {
        if matches!(reply, AdminReply::Done) {
            self.shared.note(peer, event, format!("metad-{id}")).await;
        }
        reply
    }

    /// Returns the metad that is about to leave. Somebody may have mistaken the number: one that never was a member is not
    /// removed, for its name would be refused when it is needed.
    async fn leaving(&self, id: MetadId) -> Result<Leaver, String> {
        let members = self.shared.members_met().await;
        let is_member = members.iter().any(|member| member.id == id);
        if !is_member && !settings::metads_ever(&**self.shared.consensus.state()).contains(&id) {
            return Err(format!("metad-{id} never was a member: `surf cluster status` shows who is"));
        }
        Ok(met::leaver(members, id))
    }

    /// Refuses a metad that was removed. The change of the membership is made, so it is not a failure if this cannot be
    /// done: the command is repeated then.
    async fn removed_metad(
        &self,
        peer: &PeerIdentity,
        reply: AdminReply,
        (id, leaving): (MetadId, Leaver),
    ) -> Result<AdminReply, ProposeError> {
        if !matches!(reply, AdminReply::Done) {
            return Ok(reply);
        }
        let (holder, shown) = match leaving {
            Leaver::Alone(holder, shown) => (holder, shown),
            Leaver::Beside(Subject { name, .. }, other) => {
                tracing::warn!(%id, name, %other, "the certificate of the metad that was removed is not revoked");
                self.noted(peer, reply, AuditEvent::MetadRemoved, id).await;
                return Ok(AdminReply::Report(vec![format!(
                    "metad-{id} is removed, but its certificate is not revoked: metad-{other} may have one of the same name. \
                     If it has not, `surf cert revoke {name} --role metad`"
                )]));
            }
        };
        let revoked = self.shared.revoke_removed(peer, holder, shown).await?;
        let reply = self.noted(peer, reply, AuditEvent::MetadRemoved, id).await;
        Ok(match revoked {
            Ok(()) => reply,
            Err(reason) => AdminReply::Failed(format!("metad-{id} is removed, but its certificate is not: {reason}")),
        })
    }

    async fn status(&self) -> ClusterStatus {
        let consensus = &self.shared.consensus;
        let state = consensus.state();
        let (term, applied) = consensus.progress();
        let layout = settings::layout(&**state);
        let members = consensus.members();
        ClusterStatus {
            cluster: settings::cluster(&**state).unwrap_or_default(),
            leader: self.shared.config.id,
            term,
            applied,
            metads: members.iter().map(|m| (m.id, m.addr, m.voter, m.matched)).collect(),
            metads_heard_ms: members.iter().map(|m| m.heard.map(|ago| ago.as_millis() as u64)).collect(),
            metads_ever: settings::metads_ever(&**state).into_iter().collect(),
            blockds: self.shared.liveness.blockds(&layout),
            sessions: session::all(&**state)
                .into_iter()
                .map(|(id, session)| (id, session.opening.host, session.opening.purpose))
                .collect(),
            statfs: self.shared.liveness.statfs(&layout, settings::inode_count(&**state)),
            deletion_stopped: retention::deletion_stopped(&**state),
            pins: retention::pins(&**state, self.shared.clock.now()),
            layout,
        }
    }

    async fn set_redundancy(
        &self,
        peer: &PeerIdentity,
        replicas: u8,
        min_sync: u8,
    ) -> Result<AdminReply, ProposeError> {
        if !(1..=5).contains(&replicas) || !(1..=replicas).contains(&min_sync) {
            return Ok(AdminReply::Failed("replicas are 1 to 5, synced ones 1 to as many".to_owned()));
        }
        self.changed(peer, |layout| layout.with_redundancy(replicas, min_sync)).await
    }

    async fn set_down_after(&self, peer: &PeerIdentity, ms: u64) -> Result<AdminReply, ProposeError> {
        if ms < DOWN_AFTER_MIN_MS {
            return Ok(AdminReply::Failed(format!("at least {} s", DOWN_AFTER_MIN_MS / 1000)));
        }
        let step = |layout: &Layout| Layout { epoch: layout.epoch.next(), down_after_ms: ms, ..layout.clone() };
        self.changed(peer, |layout| Some(step(layout))).await
    }

    async fn drain_blockd(&self, peer: &PeerIdentity, name: &str, drain: bool) -> Result<AdminReply, ProposeError> {
        let layout = settings::layout(&**self.shared.consensus.state());
        let Some(member) = named(&layout, name) else { return Ok(unknown(&layout, name)) };
        if member.draining == drain {
            return Ok(AdminReply::Done);
        }
        let id = member.id;
        let left = |layout: &Layout| layout.owning().filter(|owner| owner.id != id).count();
        let is_enough = |layout: &Layout| !drain || left(layout) >= usize::from(layout.min_sync);
        if !is_enough(&layout) {
            let (left, min_sync) = (left(&layout), layout.min_sync);
            let reason = format!("the {left} others are too few: a block is stored on {min_sync} daemons at least");
            return Ok(AdminReply::Failed(reason));
        }
        // Checked again in this step: another daemon may have been drained meanwhile.
        self.changed(peer, |layout| if is_enough(layout) { layout.drained(&id, drain) } else { None }).await
    }

    async fn weigh_blockd(&self, peer: &PeerIdentity, name: &str, weight: u32) -> Result<AdminReply, ProposeError> {
        let layout = settings::layout(&**self.shared.consensus.state());
        let Some(member) = named(&layout, name) else { return Ok(unknown(&layout, name)) };
        if !(1..=BLOCKD_WEIGHT_MAX).contains(&weight) {
            return Ok(AdminReply::Failed(format!("a weight is 1 to {BLOCKD_WEIGHT_MAX}")));
        }
        if member.weight == weight {
            return Ok(AdminReply::Done);
        }
        let id = member.id;
        self.changed(peer, |layout| layout.weighed(&id, weight, &placement::reweighed(layout, &id, weight))).await
    }

    /// Ends a session that lives, or seems to.
    async fn evict(&self, peer: &PeerIdentity, id: SessionId) -> Result<AdminReply, ProposeError> {
        let Some(session) = session::find_or_ended(&**self.shared.consensus.state(), id) else {
            return Ok(AdminReply::Failed(format!("there is no session {id}: `surf session list` shows all")));
        };
        if session.has_ended() {
            // It may have been asked for before, of a leader that was lost before it could answer.
            return Ok(AdminReply::Done);
        }
        // A new leader does not wait for a session that has ended: the leases must have ended before it, under one
        // leadership.
        let Some(term) = self.shared.consensus.leadership() else {
            return Err(ProposeError::NotLeader(self.shared.consensus.leader().await));
        };
        self.shared.end_leases(term, id).await?;
        self.shared.propose_by(Some(term), &asker(peer), Change::CloseSessions(vec![id])).await?;
        self.shared.forget_leases(id);
        let who = format!("session {id} of client {}", session.opening.client);
        self.shared.note(peer, AuditEvent::Evicted, who).await;
        Ok(AdminReply::Done)
    }

    /// Names a daemon's successor. The successor must not have joined: what it owns by then would have to move.
    async fn replace_blockd(
        &self,
        peer: &PeerIdentity,
        name: &str,
        successor: &str,
    ) -> Result<AdminReply, ProposeError> {
        let layout = settings::layout(&**self.shared.consensus.state());
        let Some(member) = named(&layout, name) else { return Ok(unknown(&layout, name)) };
        if successor.is_empty() || successor.len() > BLOCKD_TEXT_BYTES_MAX {
            return Ok(AdminReply::Failed(format!("names have 1 to {BLOCKD_TEXT_BYTES_MAX} bytes")));
        }
        if named(&layout, successor).is_some() {
            let reason = format!("{successor} has joined already: only a new daemon can take over another one's place");
            return Ok(AdminReply::Failed(reason));
        }
        if let Some(other) = layout.members.iter().find(|other| other.successor.as_deref() == Some(successor)) {
            let reason = format!("{successor} is to replace {} already", other.name);
            return Ok(if other.id == member.id { AdminReply::Done } else { AdminReply::Failed(reason) });
        }
        let id = member.id;
        self.changed(peer, |layout| Some(layout.succeeded_by(&id, successor))).await
    }

    /// Removes a daemon, unless it runs or may run.
    async fn remove_blockd(
        &self,
        peer: &PeerIdentity,
        name: &str,
        keep_identity: bool,
    ) -> Result<AdminReply, ProposeError> {
        let layout = settings::layout(&**self.shared.consensus.state());
        let Some(member) = named(&layout, name) else { return Ok(unknown(&layout, name)) };
        let states = self.shared.liveness.blockds(&layout);
        let health = layout.members.iter().zip(&states).find(|(other, _)| other.id == member.id);
        let is_silent = health.is_some_and(|(_, state)| state.heard_ms.is_none_or(|ms| ms > SILENT_MS));
        match health.map(|(_, state)| state.health) {
            Some(BlockdHealth::Suspect) => {
                return Ok(AdminReply::Failed(format!("{name} may run: wait until it is down")));
            }
            Some(BlockdHealth::Failed) => {
                return Ok(AdminReply::Failed(format!(
                    "{name} runs, and others copy from it: stop it when they have all"
                )));
            }
            Some(BlockdHealth::Up | BlockdHealth::Draining) => {
                return Ok(AdminReply::Failed(format!("{name} runs: `surf blockd drain {name}` first")));
            }
            Some(BlockdHealth::Drained) if !is_silent => {
                return Ok(AdminReply::Failed(format!("{name} runs, and would join again: stop it first")));
            }
            _ => {}
        }
        let id = member.id;
        // First: one that is refused already cannot join again in between.
        if !keep_identity
            && let Err(reason) = self.shared.revoke_removed(peer, Subject::new(Role::Blockd, name), None).await?
        {
            return Ok(AdminReply::Failed(reason));
        }
        let removed = self.changed(peer, |layout| Some(layout.removed(&id))).await?;
        if matches!(removed, AdminReply::Done) {
            self.shared.note(peer, AuditEvent::BlockdRemoved, format!("blockd {name}")).await;
        }
        Ok(removed)
    }

    async fn changed(
        &self,
        peer: &PeerIdentity,
        step: impl FnOnce(&Layout) -> Option<Layout>,
    ) -> Result<AdminReply, ProposeError> {
        Ok(match watch::change_by(&self.shared, Some(&asker(peer)), step).await? {
            Some(_) => AdminReply::Done,
            None => AdminReply::Failed("too many changes are under way: wait until blocks have moved".to_owned()),
        })
    }
}

fn named<'a>(layout: &'a Layout, name: &str) -> Option<&'a LayoutMember> {
    layout.members.iter().find(|member| member.name == name)
}

fn unknown(layout: &Layout, name: &str) -> AdminReply {
    let names: Vec<&str> = layout.members.iter().map(|member| member.name.as_str()).collect();
    AdminReply::Failed(format!("there is no block daemon {name:?}; there are {}", names.join(", ")))
}

fn outcome(result: Result<(), ProposeError>) -> Result<AdminReply, ProposeError> {
    match result {
        Ok(()) => Ok(AdminReply::Done),
        Err(ProposeError::Refused(reason)) => Ok(AdminReply::Failed(reason)),
        Err(error) => Err(error),
    }
}
