//! Operators' requests.

use super::Server;
use crate::error::ProposeError;
use crate::fs::{Command, CommandReply, check, session, settings};
use std::time::Duration;
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::message::meta::MetaReply;

/// A snapshot of a large state takes a while.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(600);

impl Server {
    pub(super) async fn admin(&self, request: AdminRequest) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        let consensus = &self.shared.consensus;
        let reply = match request {
            AdminRequest::Status => AdminReply::Status(Box::new(self.status().await)),
            AdminRequest::AddMetad { id, addr } => outcome(consensus.add(id, addr).await)?,
            AdminRequest::RemoveMetad { id } => outcome(consensus.remove(id).await)?,
            AdminRequest::SetRedundancy { replicas, min_sync } => self.set_redundancy(replicas, min_sync).await?,
            AdminRequest::Snapshot => match consensus.snapshot(SNAPSHOT_LIMIT).await {
                Ok(()) => AdminReply::Done,
                Err(error) => AdminReply::Failed(error.to_string()),
            },
            AdminRequest::Check => {
                let state = consensus.state().clone();
                match tokio::task::spawn_blocking(move || check::check(&*state)).await {
                    Ok(problems) => AdminReply::Problems(problems),
                    Err(error) => AdminReply::Failed(error.to_string()),
                }
            }
        };
        Ok(MetaReply::Admin(reply))
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
            blockds: self.shared.liveness.blockds(&layout),
            sessions: session::all(&**state)
                .into_iter()
                .map(|(id, session)| (id, session.opening.host, session.opening.purpose))
                .collect(),
            statfs: self.shared.liveness.statfs(&layout, settings::inode_count(&**state)),
            layout,
        }
    }

    async fn set_redundancy(&self, replicas: u8, min_sync: u8) -> Result<AdminReply, ProposeError> {
        if !(1..=5).contains(&replicas) || !(1..=replicas).contains(&min_sync) {
            return Ok(AdminReply::Failed("replicas are 1 to 5, synced ones 1 to as many".to_owned()));
        }
        let _one_at_a_time = self.shared.layout_change.lock().await;
        let mut layout = settings::layout(&**self.shared.consensus.state());
        layout.epoch = layout.epoch.next();
        (layout.replicas, layout.min_sync) = (replicas, min_sync);
        match self.shared.propose(Command::SetLayout(layout)).await? {
            CommandReply::Done => Ok(AdminReply::Done),
            _ => Err(ProposeError::Unknown),
        }
    }
}

fn outcome(result: Result<(), ProposeError>) -> Result<AdminReply, ProposeError> {
    match result {
        Ok(()) => Ok(AdminReply::Done),
        Err(ProposeError::Refused(reason)) => Ok(AdminReply::Failed(reason)),
        Err(error) => Err(error),
    }
}
