//! `surf dev down|stop|start|kill`: the processes of a cluster.

use super::{Place, STOP_LIMIT};
use crate::dev::{self, Daemon, DevDir, is_running};
use crate::output::{complain, duration, say};
use anyhow::{Result, bail};
use clap::Args;
use std::time::Duration;

/// Stop every daemon.
#[derive(Args)]
pub(super) struct Down {
    #[command(flatten)]
    place: Place,
    /// Kill what has not ended after this many seconds.
    #[arg(long, default_value_t = STOP_LIMIT.as_secs(), value_name = "SECONDS")]
    wait_s: u64,
}

/// Stop one daemon cleanly.
#[derive(Args)]
pub(super) struct Stop {
    #[command(flatten)]
    place: Place,
    /// Its name, such as blockd-2.
    name: String,
}

/// Start one daemon.
#[derive(Args)]
pub(super) struct Start {
    #[command(flatten)]
    place: Place,
    /// Its name, such as blockd-2.
    name: String,
    /// What it logs.
    #[arg(long, default_value = "info,openraft::raft::responder=error", value_name = "FILTER")]
    daemon_log: String,
}

/// Kill one daemon.
#[derive(Args)]
pub(super) struct Kill {
    #[command(flatten)]
    place: Place,
    /// Its name, such as blockd-2.
    name: String,
}

impl Down {
    pub(super) async fn run(self) -> Result<()> {
        let dir = DevDir::take(&self.place.dir, false)?;
        let mut cluster = dir.require()?;
        // Block daemons end first: they report to metad until the end.
        let (mut blockds, mut metads): (Vec<&mut Daemon>, Vec<&mut Daemon>) =
            cluster.daemons.iter_mut().partition(|daemon| daemon.kind == dev::Kind::Blockd);
        let limit = Duration::from_secs(self.wait_s);
        let (first, second) = (dev::stop_all(&mut blockds, limit).await, dev::stop_all(&mut metads, limit).await);
        dir.save(&cluster)?;
        let (first, second) = (first?, second?);
        let killed = [first.killed, second.killed].concat();
        if !killed.is_empty() {
            complain!("surf: killed after {}: {}", duration(limit), killed.join(", "));
        }
        say!("{} daemons stopped", first.ended.len() + second.ended.len() + killed.len());
        Ok(())
    }
}

impl Stop {
    pub(super) async fn run(self) -> Result<()> {
        let dir = DevDir::take(&self.place.dir, false)?;
        let mut cluster = dir.require()?;
        let daemon = cluster.daemon(&self.name)?;
        if !is_running(daemon) {
            bail!("{} does not run", self.name);
        }
        let report = dev::stop_all(&mut [daemon], STOP_LIMIT).await;
        dir.save(&cluster)?;
        if report?.killed.is_empty() {
            say!("{} stopped", self.name);
        } else {
            say!("{} killed, because it did not end within {}", self.name, duration(STOP_LIMIT));
        }
        Ok(())
    }
}

impl Start {
    pub(super) fn run(self) -> Result<()> {
        let dir = DevDir::take(&self.place.dir, false)?;
        let mut cluster = dir.require()?;
        let daemon = cluster.daemon(&self.name)?;
        dev::start(daemon, &self.daemon_log)?;
        let pid = daemon.pid;
        dir.save(&cluster)?;
        say!("{} started (pid {pid})", self.name);
        Ok(())
    }
}

impl Kill {
    pub(super) async fn run(self) -> Result<()> {
        let dir = DevDir::take(&self.place.dir, false)?;
        let mut cluster = dir.require()?;
        let daemon = cluster.daemon(&self.name)?;
        if !is_running(daemon) {
            bail!("{} does not run", self.name);
        }
        let killed = dev::kill(daemon).await;
        dir.save(&cluster)?;
        killed?;
        say!("{} killed", self.name);
        Ok(())
    }
}
