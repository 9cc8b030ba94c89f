//! `surf session`: who uses the cluster.

use super::access::Access;
use crate::output::{self, say};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use wire::ids::SessionId;
use wire::limits::LEASE_MS;
use wire::message::admin::{AdminRequest, ClusterStatus};

/// An eviction waits for the leases of its session, and perhaps for another leader.
const EVICTION_LIMIT: Duration = Duration::from_millis(LEASE_MS + 5_000);

/// Sessions of mounts: list them, end one.
#[derive(Args)]
pub struct Session {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All that live, with the host and the mount point of each.
    List {
        #[command(flatten)]
        access: Access,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// End one, as if its machine had been silent for too long: after five seconds at most, its locks are free and nobody
    /// waits for it any more. What it had not stored it stores in a new session, beside what others have done since. This
    /// keeps no machine out.
    Evict {
        #[command(flatten)]
        access: Access,
        /// Its number, as `surf session list` shows it.
        session: u64,
    },
}

impl Session {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::List { access, json } => list(&access.status().await?, json)?,
            Command::Evict { access, session } => {
                access
                    .ask_patiently(AdminRequest::EvictSession { session: SessionId(session) }, EVICTION_LIMIT)
                    .await?;
                say!("session {session} has ended");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn list(status: &ClusterStatus, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&to_json(status).into());
    }
    print_table(status);
    Ok(())
}

/// The sessions in output for programs.
#[must_use]
pub fn to_json(status: &ClusterStatus) -> Vec<serde_json::Value> {
    let one = |(id, host, purpose): &(SessionId, String, String)| json!({ "id": id, "host": host, "purpose": purpose });
    status.sessions.iter().map(one).collect()
}

/// Prints the sessions for people.
pub fn print_table(status: &ClusterStatus) {
    let row = |(id, host, purpose): &(SessionId, String, String)| vec![id.to_string(), host.clone(), purpose.clone()];
    output::table(&["SESSION", "HOST", "PURPOSE"], &status.sessions.iter().map(row).collect::<Vec<_>>());
}
