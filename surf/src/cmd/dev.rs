//! `surf dev`: a cluster of real daemons on this machine.

mod daemon;
mod status;
mod up;

use anyhow::Result;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A cluster of real daemons on this machine.
#[derive(Args)]
pub struct Dev {
    #[command(subcommand)]
    command: Command,
}

/// Where the cluster is.
#[derive(Args)]
struct Place {
    /// Directory of the cluster.
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Make a cluster, or start the one that is there, and wait until it serves.
    Up(up::Up),
    /// Stop every daemon; data stays, and `up` starts the same cluster again.
    Down(daemon::Down),
    /// Stop one daemon cleanly.
    Stop(daemon::Stop),
    /// Start one daemon that was stopped or killed.
    Start(daemon::Start),
    /// Kill one daemon at once (SIGKILL), as a crash would.
    Kill(daemon::Kill),
    /// Which daemons run, and who leads.
    Status(status::Status),
}

/// Default time that a daemon gets to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

impl Dev {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Up(up) => up.run().await?,
            Command::Down(down) => down.run().await?,
            Command::Stop(stop) => stop.run().await?,
            Command::Start(start) => start.run()?,
            Command::Kill(kill) => kill.run().await?,
            Command::Status(status) => status.run().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
