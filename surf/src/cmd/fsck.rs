//! `surf fsck`: checks whether a cluster's metadata contradicts itself, and whether its blocks are where they belong,
//! while the cluster is in use.

mod answers;
mod blocks;
mod copies;
mod daemons;
mod metads;
mod report;
mod state;

use super::access::Access;
use crate::admin::Admin;
use anyhow::{Result, anyhow, bail};
use clap::Args;
use report::Report;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::check::{CheckId, CheckReply, CheckRequest};

/// Something was found and mended.
pub const EXIT_REPAIRED: u8 = 1;
/// Something was found and left.
pub const EXIT_FINDINGS_LEFT: u8 = 4;
/// Something could not be checked.
pub const EXIT_UNCHECKED: u8 = 8;
/// The command line is wrong.
pub const EXIT_USAGE: u8 = 16;

/// A step may take the state of a large cluster, or read all its extents.
const STEP_LIMIT: Duration = Duration::from_secs(600);
/// How often the check is extended. metad ends a check of which it hears nothing for two minutes.
const EXTEND_CHECK_EVERY: Duration = Duration::from_secs(20);
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

/// The signals by which a check is ended.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// Waits until the check is to end. Cancel-safe.
    async fn requested(&mut self) -> anyhow::Error {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        anyhow!("interrupted: what was not reached is not checked")
    }
}

/// Extends the check, even while nothing is asked of metad. Does not end.
async fn extend(cluster: &Cluster, check: CheckId) {
    loop {
        tokio::time::sleep(EXTEND_CHECK_EVERY).await;
        // The next step says what is wrong.
        let _ = cluster.step(CheckRequest::Extend(check)).await;
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
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut stop = Stop { interrupt, terminate };
        for round in 1.. {
            // Another one may lead since the last round.
            (_, cluster.leader) = cluster.admin.leader().await?;
            let check = tokio::select! {
                begun = state::begin(cluster, report) => begun?,
                interrupted = stop.requested() => return Err(interrupted),
            };
            let more = tokio::select! {
                more = self.check_with(cluster, check, report, round) => more,
                () = extend(cluster, check) => Ok(false),
                interrupted = stop.requested() => Err(interrupted),
            };
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
        let are_equal = round > 1 || metads::compare(cluster, check, report).await?;
        // Repairs follow from the leader's state. If another metad has the right one, they would spread the damage.
        if !are_equal && self.repair {
            report.note("the metads differ: nothing of the metadata was repaired".to_owned());
        }
        let mended = state::check(cluster, check, report, self.repair && are_equal).await?;
        if mended && round < ROUNDS_MAX {
            return Ok(true);
        }
        if !self.metadata_only {
            blocks::check(cluster, check, report, blocks::How { verify: self.verify, repair: self.repair }).await?;
        }
        Ok(false)
    }
}
