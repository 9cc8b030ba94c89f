//! Changes of the membership: nodes join, are replaced and leave, one change at a time.

use super::machine::Position;
use super::types::{Membership, TypeConfig};
use super::{Raft, not_leader};
use crate::consensus::Member;
use crate::error::ProposeError;
use crate::fs::settings;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, RaftMetrics, ServerState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::codec;
use wire::ids::MetadId;
use wire::limits::{CAUGHT_UP_ENTRIES, METADS_MAX};
use wire::message::meta::LogPlace;

/// A node that runs answers many heartbeats in this time.
const ALIVE_LIMIT: Duration = Duration::from_secs(2);
/// What a new node lacks after openraft's own wait arrives within this time.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
/// Another voter leads within this time if it can.
const STEP_ASIDE_LIMIT: Duration = Duration::from_secs(3);

/// Returns how long ago a node has answered this leader.
fn heard(metrics: &RaftMetrics<TypeConfig>, id: u64) -> Option<Duration> {
    let at = metrics.heartbeat.as_ref()?.get(&id).copied().flatten()?;
    Some(openraft::Instant::elapsed(&at.into_inner()))
}

impl Raft {
    /// The nodes of the cluster.
    #[must_use]
    pub(super) fn members(&self) -> Vec<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let matched = |id: &u64| {
            let replication = metrics.replication.as_ref()?;
            replication.get(id)?.as_ref().map(|log_id| log_id.index)
        };
        membership
            .nodes()
            .filter_map(|(id, node)| {
                let addr = node.addr.parse().ok()?;
                let (voter, matched) = (voters.contains(id), matched(id).unwrap_or(0));
                Some(Member { id: MetadId(*id), addr, voter, matched, heard: heard(&metrics, *id) })
            })
            .collect()
    }

    /// Adds a node: it follows until it has caught up, then votes. A vote for one that does not run could stop the
    /// cluster for good.
    ///
    /// # Errors
    /// When this node does not lead, or the new one does not answer, or not catch up. It only follows then.
    pub(super) async fn add(&self, id: MetadId, addr: SocketAddr) -> Result<(), ProposeError> {
        self.refuse_other(id, addr)?;
        let node = BasicNode::new(addr.to_string());
        // openraft waits only while much is missing.
        self.raft.add_learner(id.0, node, true).await.map_err(membership_error)?;
        if !self.members().iter().any(|member| member.id == id && member.voter) {
            self.wait_alive(id).await?;
            let (_, applied) = self.progress();
            let has_caught_up = |metrics: &RaftMetrics<TypeConfig>| {
                let matched = metrics.replication.as_ref().and_then(|all| all.get(&id.0)?.as_ref());
                matched.is_some_and(|log_id| log_id.index.saturating_add(CAUGHT_UP_ENTRIES) >= applied)
            };
            let caught_up = self.raft.wait(Some(CATCH_UP_LIMIT)).metrics(has_caught_up, "the new one's log").await;
            caught_up.map_err(|_| {
                ProposeError::Refused(format!("metad-{id} has not caught up, and does not vote yet: add it again"))
            })?;
        }
        self.change(ChangeMembers::AddVoterIds([id.0].into()), true).await
    }

    /// Adds a node that only follows.
    ///
    /// # Errors
    /// When this node does not lead, the number is or was that of another node, or there are too many nodes.
    pub(super) async fn add_learner(&self, id: MetadId, addr: SocketAddr) -> Result<(), ProposeError> {
        if self.refuse_other(id, addr)? {
            return Ok(());
        }
        let node = BasicNode::new(addr.to_string());
        self.raft.add_learner(id.0, node, false).await.map(|_| ()).map_err(membership_error)
    }

    /// Returns whether the node is a member. Refuses a number that belongs to a node at another address, because openraft
    /// would silently go on with the address that it knows; a number that another node had before, which may come back
    /// with its files; and a member too many.
    fn refuse_other(&self, id: MetadId, addr: SocketAddr) -> Result<bool, ProposeError> {
        let members = self.members();
        match members.iter().find(|member| member.id == id) {
            Some(known) if known.addr == addr => Ok(true),
            Some(known) => Err(ProposeError::Refused(format!(
                "metad-{id} is a member already, at {}: a new one needs a number that was never used",
                known.addr
            ))),
            None if members.len() >= METADS_MAX => {
                Err(ProposeError::Refused(format!("a cluster has {METADS_MAX} metads at most")))
            }
            None => {
                let ever = settings::metads_ever(&*self.state);
                match ever.last().filter(|_| ever.contains(&id)) {
                    Some(last) => Err(ProposeError::Refused(format!(
                        "there was a metad-{id} before: a new one needs a number that was never used, such as {}",
                        last.0.saturating_add(1)
                    ))),
                    None => Ok(false),
                }
            }
        }
    }

    /// Waits until a node has answered this leader. What it has of the log may be from a time when it still ran.
    ///
    /// # Errors
    /// When it does not answer.
    async fn wait_alive(&self, id: MetadId) -> Result<(), ProposeError> {
        let since = Instant::now();
        let answers =
            |metrics: &RaftMetrics<TypeConfig>| heard(metrics, id.0).is_some_and(|ago| ago <= since.elapsed());
        let heard = self.raft.wait(Some(ALIVE_LIMIT)).metrics(answers, "the new one's answer").await;
        heard.map(|_| ()).map_err(|_| {
            ProposeError::Refused(format!(
                "metad-{id} does not answer: it gets no vote before it runs at the address that it was added with"
            ))
        })
    }

    /// Gives a learner the vote of another node, and removes that one.
    ///
    /// # Errors
    /// When this node does not lead, or the learner is none, has not caught up, or does not answer.
    pub(super) async fn replace(&self, old: MetadId, new: MetadId) -> Result<(), ProposeError> {
        let members = self.members();
        let Some(joining) = members.iter().find(|member| member.id == new) else {
            return Err(ProposeError::Refused(format!("metad-{new} is no member: it has to follow before it votes")));
        };
        let (_, applied) = self.progress();
        if !joining.voter && joining.matched.saturating_add(CAUGHT_UP_ENTRIES) < applied {
            return Err(ProposeError::Refused(format!("metad-{new} has not caught up")));
        }
        if !joining.voter {
            self.wait_alive(new).await?;
        }
        if old == self.id && !joining.voter && members.iter().filter(|member| member.voter).count() == 1 {
            // Nobody else could lead yet.
            self.change(ChangeMembers::AddVoterIds([new.0].into()), true).await?;
            let wait = self.raft.wait(Some(STEP_ASIDE_LIMIT));
            let votes = |membership: &Membership| membership.membership().voter_ids().any(|id| id == new.0);
            let seen = wait.metrics(|metrics| votes(&metrics.membership_config), "the new voter").await;
            seen.map_err(|error| ProposeError::Refused(error.to_string()))?;
        }
        self.step_aside(old).await?;
        // Both at once: a majority of the voters before and one of those after must agree, and there is no moment at
        // which the cluster depends on more nodes than before.
        let both = vec![ChangeMembers::AddVoterIds([new.0].into()), ChangeMembers::RemoveVoters([old.0].into())];
        self.change(ChangeMembers::Batch(both), false).await?;
        // With its vote, it goes altogether. It is still there if it had none.
        if members.iter().any(|member| member.id == old && !member.voter) {
            self.change(ChangeMembers::RemoveNodes([old.0].into()), true).await?;
        }
        Ok(())
    }

    /// Hands the leadership to another voter if this node is the one that leaves: openraft cannot change a membership to
    /// which its leader does not belong any more, and an election would take longer. A voter that has taken over carries
    /// out what is left.
    ///
    /// # Errors
    /// `NotLeader` after the leadership has passed on, or could have.
    async fn step_aside(&self, leaving: MetadId) -> Result<(), ProposeError> {
        let members = self.members();
        let others = members.iter().filter(|member| member.voter && member.id != leaving);
        let Some(next) = others.max_by_key(|member| member.matched).filter(|_| leaving == self.id) else {
            return Ok(());
        };
        let refused = |error: &dyn std::fmt::Display| ProposeError::Refused(error.to_string());
        self.raft.trigger().transfer_leader(next.id.0).await.map_err(|error| refused(&error))?;
        let wait = self.raft.wait(Some(STEP_ASIDE_LIMIT));
        // The next leader is asked again, be it this node.
        let _ = wait.metrics(|metrics| metrics.state != ServerState::Leader, "another leader").await;
        Err(ProposeError::NotLeader(None))
    }

    /// Removes a node.
    ///
    /// # Errors
    /// When this node does not lead, or too few would be left.
    pub(super) async fn remove(&self, id: MetadId) -> Result<(), ProposeError> {
        self.step_aside(id).await?;
        self.change(ChangeMembers::RemoveVoters([id.0].into()), true).await?;
        self.change(ChangeMembers::RemoveNodes([id.0].into()), true).await
    }

    /// Changes the membership. A node that votes no more goes on as a learner, if `retains`.
    async fn change(&self, change: ChangeMembers<u64, BasicNode>, retains: bool) -> Result<(), ProposeError> {
        self.raft.change_membership(change, retains).await.map(|_| ()).map_err(membership_error)
    }

    /// The nodes as the applied state has them.
    pub(super) fn settled_members(&self) -> (LogPlace, Vec<(MetadId, SocketAddr)>) {
        let stored = self.store.position().and_then(|bytes| codec::decode::<Position>(&bytes).ok());
        let membership = stored.unwrap_or_default().membership;
        let since = membership
            .log_id()
            .as_ref()
            .map(|log_id| LogPlace { term: log_id.committed_leader_id().term, index: log_id.index });
        let named = |(id, node): (&u64, &BasicNode)| Some((MetadId(*id), node.addr.parse().ok()?));
        (since.unwrap_or_default(), membership.membership().nodes().filter_map(named).take(METADS_MAX).collect())
    }
}

fn membership_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => not_leader(&forward),
        error => ProposeError::Refused(error.to_string()),
    }
}
