//! How operators' commands reach a cluster.

use crate::admin::Admin;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use wire::bundle::Bundle;
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};

/// How to reach a cluster.
#[derive(Args)]
pub struct Access {
    /// Bundle of an operator, as `surf cluster init` or `surf dev up` made it.
    #[arg(long, env = "SURF_ADMIN_BUNDLE", value_name = "FILE")]
    bundle: PathBuf,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    wait_s: u64,
}

impl Access {
    /// Asks the leader as an operator.
    pub async fn ask(&self, request: AdminRequest) -> Result<AdminReply> {
        self.ask_patiently(request, Duration::ZERO).await
    }

    /// Asks the leader for what takes up to `takes`, also where that is longer than a leader is looked for.
    pub async fn ask_patiently(&self, request: AdminRequest, takes: Duration) -> Result<AdminReply> {
        let admin = Admin::load(&self.bundle)?;
        let reply = admin.ask_admin(request, Duration::from_secs(self.wait_s).max(takes)).await;
        admin.close().await;
        reply
    }

    /// Returns the connection for a command that asks a lot, and how long it may take to find the leader.
    pub fn enter(&self) -> Result<(Admin, Duration)> {
        Ok((Admin::load(&self.bundle)?, Duration::from_secs(self.wait_s)))
    }

    /// Reads the bundle.
    pub fn bundle(&self) -> Result<Bundle> {
        Ok(Bundle::load(&self.bundle)?)
    }

    /// The cluster's state.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let admin = Admin::load(&self.bundle)?;
        let status = admin.status(Duration::from_secs(self.wait_s)).await;
        admin.close().await;
        status
    }
}
