//! `surf status`: state of a cluster in short.

use super::cluster::{Access, Health};
use crate::output;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;

/// State of a cluster in short. Exit code 2 when something is missing.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    access: Access,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let status = self.access.status().await?;
        let health = Health::of(&status);
        let (used, total) = (
            status.statfs.total_bytes - status.statfs.free_bytes.min(status.statfs.total_bytes),
            status.statfs.total_bytes,
        );
        if self.json {
            output::json(&serde_json::json!({
                "cluster": status.cluster,
                "healthy": health.problems.is_empty(),
                "problems": health.problems,
                "used_bytes": used,
                "total_bytes": total,
                "inodes": status.statfs.inodes,
                "sessions": status.sessions.len(),
            }))?;
        } else {
            let word = if health.problems.is_empty() { "healthy" } else { "needs attention" };
            println!("{}: {word}", status.cluster);
            for problem in &health.problems {
                println!("  {problem}");
            }
            println!(
                "{} of {} used, {} inodes, {} sessions",
                output::bytes(used),
                output::bytes(total),
                status.statfs.inodes,
                status.sessions.len()
            );
        }
        Ok(if health.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }
}
