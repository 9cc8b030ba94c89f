//! `surf fsck`: checks whether a cluster's metadata contradicts itself, and whether its blocks are where they belong,
//! while the cluster is in use.

mod blocks;
mod copies;
mod report;
mod state;

use super::access::Access;
use crate::admin::Admin;
use anyhow::{Result, bail};
use clap::Args;
use report::Report;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::check::{CheckId, CheckReply, CheckRequest};

/// Something was found and mended.
pub const REPAIRED: u8 = 1;
/// Something was found and left.
pub const LEFT: u8 = 4;
/// Something could not be checked.
pub const UNCHECKED: u8 = 8;
/// The command line is wrong.
pub const USAGE: u8 = 16;

/// A step may take the state of a large cluster, or read all its extents.
const STEP_LIMIT: Duration = Duration::from_secs(600);
/// Rounds of checking and mending: a repair may uncover another fault.
const ROUNDS_MAX: usize = 5;

/// Check the metadata and the blocks of a cluster, while it is used.
///
/// The exit code is a sum: 0 nothing was found, 1 something was found and is mended, 4 something was found and is left,
/// 8 something could not be checked, 16 the command line is wrong.
#[derive(Args)]
pub struct Fsck {
    #[command(flatten)]
    access: Access,
    /// Mend what can be mended without losing anything.
    #[arg(long)]
    repair: bool,
    /// Have every copy of every block read and compared with its name.
    #[arg(long)]
    verify: bool,
    /// Leave the blocks out, and check the metadata alone.
    #[arg(long, conflicts_with = "verify")]
    metadata_only: bool,
    /// As JSON: an object per finding and line, and a summary at the end.
    #[arg(long)]
    json: bool,
}

/// A way into the cluster while it is checked.
struct Cluster {
    admin: Admin,
    wait: Duration,
    /// The leader when the check began: no other metad knows the check.
    leader: SocketAddr,
}

impl Cluster {
    /// Takes a step of a check. It is sent once, because findings are reported only once.
    async fn step(&self, request: CheckRequest) -> Result<CheckReply> {
        match self.admin.ask_once(self.leader, AdminRequest::Check(request), STEP_LIMIT).await? {
            AdminReply::Check(reply) => Ok(reply),
            other => bail!("metad answered {other:?} to a check"),
        }
    }
}

impl Fsck {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let mut report = Report::new(self.json, self.repair);
        if let Err(error) = self.check(&mut report).await {
            report.fail(&format!("{error:#}"));
        }
        Ok(ExitCode::from(report.end()))
    }

    async fn check(&self, report: &mut Report) -> Result<()> {
        let (admin, wait) = self.access.enter()?;
        // The wait for a leader happens only here.
        admin.status(wait).await?;
        let (_, leader) = admin.leader().await?;
        let mut cluster = Cluster { admin, wait, leader };
        let checked = self.check_all(&mut cluster, report).await;
        cluster.admin.close().await;
        checked
    }

    async fn check_all(&self, cluster: &mut Cluster, report: &mut Report) -> Result<()> {
        for round in 1.. {
            // Another one may lead since the last round.
            (_, cluster.leader) = cluster.admin.leader().await?;
            let check = state::begin(cluster, report).await?;
            let more = self.check_with(cluster, check, report, round).await;
            // If this fails, the check ends by itself.
            let _ = cluster.step(CheckRequest::End(check)).await;
            if !more? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns true when something was mended, and another round may find more.
    async fn check_with(&self, cluster: &Cluster, check: CheckId, report: &mut Report, round: usize) -> Result<bool> {
        let mended = state::check(cluster, check, report, self.repair).await?;
        if mended && round < ROUNDS_MAX {
            return Ok(true);
        }
        if !self.metadata_only {
            blocks::check(cluster, check, report, blocks::How { verify: self.verify, repair: self.repair }).await?;
        }
        Ok(false)
    }
}
